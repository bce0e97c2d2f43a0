"""The interfaces of a capture: those that are named, in the caller's namespace, or all of all
namespaces.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Capture, CaptureEverywhere, Daemon, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import End, Wire
from tests.kernel.scenes import IFF_TUN, open_tun
from tests.support.blocks import Packet
from tests.support.deadline import DEADLINE_S, until
from tests.support.judges import rows

COUNT = 23
ARPHRD_CAN, ARPHRD_IEEE80211_RADIOTAP = 280, 803
TUNSETLINK = 0x400454CD


@pytest.fixture
def markers(wire: Wire) -> Iterator[tuple[Marker, Marker]]:
    """Senders of numbered frames at both ends."""
    with (
        closing(Marker(wire.near.namespace, wire.near.device)) as near,
        closing(Marker(wire.far.namespace, wire.far.device)) as far,
    ):
        yield near, far


def sent(packets: list[Packet], *markers: Marker) -> list[tuple[str, bytes]]:
    """The marker frames of a capture that were sent, with the names of their interfaces."""
    ours = {frame for marker in markers for frame in marker.sent}
    return [(packet.interface, packet.data) for packet in packets if packet.data in ours and packet.direction == "out"]


def send_on_loopback(end: End, payload: bytes) -> None:
    """Send a datagram within the machine, to a socket that receives it."""
    with closing(end.namespace.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as both:
        both.bind(("127.0.0.1", 0))
        both.sendto(payload, both.getsockname())


def test_the_far_end_is_not_watched(wire: Wire, markers: tuple[Marker, Marker], tmp_path: Path) -> None:
    """An interface of another namespace is not captured, even if it has the same index as the named
    one.
    """
    file = tmp_path / "near.pcapng"
    indexes = [end.namespace.do(socket.if_nametoindex, end.device) for end in (wire.near, wire.far)]
    assert indexes[0] == indexes[1]
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-w", str(file))) as capture:
        for _ in range(COUNT):
            for marker in markers:
                marker.send()
        assert capture.stop().exit_code == 0

    assert sent(read(file), *markers) == [(wire.near.device, frame) for frame in markers[0].sent]


def test_a_namespace_is_selected_by_its_name(wire: Wire, markers: tuple[Marker, Marker], tmp_path: Path) -> None:
    """A capture of the far namespace, started at the near end, has only frames of the far
    interface; the file names the namespace.
    """
    file = tmp_path / "far.pcapng"
    name = wire.far.namespace.name
    with closing(Capture(wire.near.namespace, "-i", "any", "-w", str(file), namespaces=name)) as capture:
        for _ in range(COUNT):
            for marker in markers:
                marker.send()
        assert capture.stop().exit_code == 0

    assert sent(read(file), *markers) == [(wire.far.device, frame) for frame in markers[1].sent]
    assert rows(file, "frame.interface_description") == [[f"network namespace {name}"]] * len(read(file))


def test_two_interfaces_stay_separate(wire: Wire, markers: tuple[Marker, Marker], tmp_path: Path) -> None:
    """With -i given twice, the file has the frames of both interfaces, each under its own name, and
    no others.
    """
    file, payload = tmp_path / "two.pcapng", b"only on loopback"
    arguments = ("-i", wire.near.device, "-i", "lo", "-w", str(file))
    with closing(Capture(wire.near.namespace, *arguments)) as capture:
        for _ in range(COUNT):
            markers[0].send()
            send_on_loopback(wire.near, payload)
            send_on_loopback(wire.far, payload)
        assert capture.stop().exit_code == 0
    packets = [packet for packet in read(file) if packet.direction == "out"]

    assert [packet.data for packet in packets if packet.interface == wire.near.device] == markers[0].sent
    assert [packet.data[-len(payload) :] for packet in packets if packet.interface == "lo"] == [payload] * COUNT
    assert {packet.interface for packet in packets} == {wire.near.device, "lo"}


@pytest.mark.parametrize("arguments", [(), ("-i", "any")])
def test_any_is_every_namespace(
    arguments: tuple[str, ...], wire: Wire, markers: tuple[Marker, Marker], tmp_path: Path
) -> None:
    """Without -i, or with `-i any`, the interfaces of all namespaces are captured, each under its
    own name.
    """
    file = tmp_path / "any.pcapng"
    near, far = wire.near.device, wire.far.device
    with closing(CaptureEverywhere(wire.near.namespace, *arguments, "-w", str(file))) as capture:
        for _ in range(COUNT):
            for marker in markers:
                marker.send()
        assert capture.stop().exit_code == 0

    expected = [
        pair
        for frames in zip(markers[0].sent, markers[1].sent, strict=True)
        for pair in zip((near, far), frames, strict=True)
    ]
    ours = {f"network namespace {end.namespace.name}" for end in (wire.near, wire.far)}
    assert sent([packet for packet in read(file) if packet.description in ours], *markers) == expected


def test_ip_netns_exec_will_do(wire: Wire, markers: tuple[Marker, Marker], tmp_path: Path) -> None:
    """A capture also works when it is started by `ip netns exec`, which mounts another /sys without
    tracefs.
    """
    file, namespace = tmp_path / "exec.pcapng", wire.near.namespace
    through = ("ip", "netns", "exec", namespace.name)
    with closing(Capture(namespace, "-i", wire.near.device, "-w", str(file), through=through)) as capture:
        for _ in range(COUNT):
            markers[0].send()
        assert capture.stop().exit_code == 0

    assert sent(read(file), markers[0]) == [(wire.near.device, frame) for frame in markers[0].sent]


def test_types_of_interfaces(wire: Wire, tmp_path: Path) -> None:
    """A type that libpcap knows has its link type; an unknown type is not captured, with one log
    line.
    """
    file, there = tmp_path / "types.pcapng", wire.near.namespace
    frames = {"radio7": (ARPHRD_IEEE80211_RADIOTAP, b"radiotap"), "can7": (ARPHRD_CAN, b"can")}
    with ExitStack() as stack:
        arguments = ("-i", "radio7", "-i", "can7", "-w", str(file))
        devices = {}
        for name, (kind, _) in frames.items():
            devices[name] = there.do(open_tun, name, IFF_TUN)
            stack.callback(os.close, devices[name])
            fcntl.ioctl(devices[name], TUNSETLINK, kind)
            there.ip(f"link set {name} addrgenmode none up")
        capture = stack.enter_context(closing(Capture(there, *arguments)))
        for name, (_, frame) in frames.items():
            for number in range(COUNT):
                os.write(devices[name], b"\x45" + frame + bytes([number]))
        ended = capture.stop()

    found = [(packet.interface, packet.link_type, packet.data) for packet in read(file)]
    assert found == [("radio7", 127, b"\x45radiotap" + bytes([number])) for number in range(COUNT)]
    assert ended.stderr.count("interface can7 has an unknown type (280) and is not captured") == 1
    assert ended.totals["on other interfaces"] >= COUNT


def test_an_unknown_interface_is_refused(wire: Wire, tmp_path: Path) -> None:
    """A name without an interface in the caller's namespace is a usage error, and leaves no file."""
    file = tmp_path / "none.pcapng"
    command = [sys.executable, "-m", "skbcapd", "capture", "-i", wire.far.device, "-w", str(file)]
    done = wire.near.namespace.do(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )

    assert done.returncode == 2
    assert wire.far.device in done.stderr
    assert "Traceback" not in done.stderr
    assert not file.exists()


def elsewhere(control: Path) -> int:
    """The number of packets on other interfaces, from the status of a daemon."""
    command = [sys.executable, "-m", "skbcapd", "status", "--json", "--set", f"control.socket={control}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    return int(json.loads(done.stdout)["packets"]["other_interfaces"])


def test_a_namespace_that_appears_is_captured(wire: Wire, markers: tuple[Marker, Marker], tmp_path: Path) -> None:
    """A missing namespace is reported at the start; a namespace that gets the name later is
    captured, also if it was seen before.
    """
    control, name, marker = tmp_path / "control", f"skbcapd-later-{os.getpid()}", markers[0]
    place = Path("/run/netns") / name
    with ExitStack() as stack:
        daemon = Daemon(wire.near, tmp_path / "files", namespaces=name, control__socket=str(control))
        stack.callback(daemon.close)
        for _ in range(COUNT):
            marker.send()
        until(lambda: elsewhere(control) >= COUNT, "they are not wanted")
        place.touch()
        stack.callback(place.unlink)
        subprocess.run(["mount", "--bind", wire.near.namespace.path, place], check=True)
        stack.callback(lambda: subprocess.run(["umount", place], check=True))

        def is_captured() -> bool:
            marker.send()
            written = next((tmp_path / "files").glob("skbcapd-*.part")).read_bytes()
            return any(frame in written for frame in marker.sent[COUNT:])

        until(is_captured, "the namespace is captured")
        ended = daemon.stop()
    assert f"namespaces: no network namespace {name} is there now" in ended.stderr
    (file,) = (tmp_path / "files").glob("skbcapd-*.pcapng")
    found = [packet.data for packet in read(file) if packet.direction == "out"]
    assert 0 < len(found) <= len(marker.sent) - COUNT
    assert found == marker.sent[-len(found) :]
    assert ended.lost == 0
