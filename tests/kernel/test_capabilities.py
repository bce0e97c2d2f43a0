"""The capabilities of the systemd unit: with them a capture works completely, and each of them is
needed.

The capture runs as root, but for the capabilities: what root owns it may open, as the unit's user
what its user owns.
"""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Capture, read
from tests.kernel.namespace import Wire
from tests.kernel.test_older_sockets import holder, unacknowledged
from tests.support.deadline import until

GRANTED = re.findall(
    r"CAP_(\w+)",
    *re.findall(r"^CapabilityBoundingSet=(.*)$", (ROOT / "systemd/skbcapd.service").read_text(), re.MULTILINE),
)


def only(capabilities: list[str]) -> tuple[str, ...]:
    """A command that starts another one with these capabilities."""
    names = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    return ("setpriv", "--inh-caps=-all", f"--bounding-set={names}")


def named(wire: Wire, file: Path, capabilities: list[str]) -> bool:
    """Whether packets on a connection older than the capture have the name of its process."""
    with holder(wire, "0.0.0.0") as (process, connection):  # noqa: S104  in a namespace of our own
        arguments = ("-i", wire.near.device, "-w", str(file))
        with closing(Capture(wire.near.namespace, *arguments, through=only(capabilities))) as capture:
            connection.send(b"older")
            until(lambda: unacknowledged(connection) == 0, "it has been acknowledged")
            ended = capture.stop()
    assert ended.exit_code == 0, ended.stderr
    comments = [packet.comment for packet in read(file) if packet.data.endswith(b"older")]
    assert comments
    return all(f" tgid={process.pid} " in comment for comment in comments)


def test_the_units_are_enough(wire: Wire, tmp_path: Path) -> None:
    """With only the capabilities of the unit, the process of an older connection is known."""
    assert named(wire, tmp_path / "all.pcapng", GRANTED)


def test_without_sys_admin(wire: Wire, tmp_path: Path) -> None:
    """Nothing is captured, and the error names the capability."""
    with pytest.raises(AssertionError, match=r"ended before it captured: .*CAP_SYS_ADMIN"):
        named(wire, tmp_path / "none.pcapng", [name for name in GRANTED if name != "SYS_ADMIN"])


def test_without_sys_ptrace(wire: Wire, tmp_path: Path) -> None:
    """Packets are captured, but the process of an older connection is not known."""
    assert not named(wire, tmp_path / "some.pcapng", [name for name in GRANTED if name != "SYS_PTRACE"])


@pytest.mark.faults
@pytest.mark.devices("link lower0 name upper0 type macvlan")
def test_without_net_raw(wire: Wire, tmp_path: Path) -> None:
    """A warning names the interface whose packets are captured on the one below only."""
    warning = (
        "what arrives on above0 is captured on the interface below only: no packet socket: Operation not permitted"
    )
    wire.near.namespace.ip(f"link add link {wire.near.device} name above0 type macvlan", "link set above0 up")
    try:
        for names, count in (([*GRANTED, "NET_RAW"], 0), (GRANTED, 1)):
            file = tmp_path / f"{count}.pcapng"
            with closing(Capture(wire.near.namespace, "-i", "above0", "-w", str(file), through=only(names))) as capture:
                assert capture.stop().stderr.count(warning) == count
    finally:
        wire.near.namespace.ip("link del above0")


def test_these_are_all() -> None:
    """This file tests each capability of the unit."""
    assert GRANTED == ["SYS_ADMIN", "SYS_PTRACE"]
