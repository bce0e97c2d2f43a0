"""Runs inside the virtual machine, under systemd: installs the unit, starts it, and treats it badly.

In: the checkout, the directory for answers. Out: one line of JSON, what systemd and the journal said at each step; the
capture files, copied to that directory for the judge outside.

The rule: nothing is judged here, and nothing waits without an end.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import scapy

CHECKOUT = Path(__file__).resolve().parents[2]
PLACE = Path("/opt/skbcapd")
LOGS = Path("/var/log/private/skbcapd")
UNITS = Path("/etc/systemd/system")
PORT = 1009
LIMIT_S = 240.0  # for any one step: the compiler alone takes half a minute under emulation

# Everything but the times is as in the unit.
SLOW = "[Service]\nTimeoutStartSec=240\nTimeoutStopSec=75\nWatchdogSec=13\nRestartSec=1\n"


def install() -> None:
    """What `make install` does, with Debian's Python and the checkout's scapy."""
    for name in ("skbcapd", "bpf", "etc"):
        shutil.copytree(CHECKOUT / name, PLACE / "lib" / ("skbcapd" if name == "skbcapd" else f"skbcapd/{name}"))
    shutil.copytree(Path(scapy.__file__).parent, PLACE / "lib" / "scapy")
    program = PLACE / "bin" / "skbcapd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={PLACE}/lib exec /usr/bin/python3 -m skbcapd "$@"\n')
    program.chmod(0o755)
    text = (CHECKOUT / "systemd" / "skbcapd.service").read_text()
    (UNITS / "skbcapd.service").write_text(text.replace("@bindir@", str(program.parent)))
    slow = UNITS / "skbcapd.service.d" / "slow.conf"
    slow.parent.mkdir()
    slow.write_text(SLOW)
    systemctl("daemon-reload")


def systemctl(*words: str) -> str:
    """What systemctl prints."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False, timeout=LIMIT_S)
    return done.stdout + done.stderr


def show(name: str) -> str:
    """A property of the unit."""
    return systemctl("show", "--value", f"--property={name}", "skbcapd.service").strip()


def until(condition: Callable[[], object]) -> bool:
    """Wait for a condition; whether it came."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def send(packets: int) -> None:
    """Datagrams from this process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(packets):
            sender.sendto(b"trial %d" % number, ("127.0.0.1", PORT))


def state() -> dict[str, str]:
    """What systemd says of the unit."""
    return {name: show(name) for name in ("ActiveState", "SubState", "Result", "NRestarts", "StatusText", "MainPID")}


def journal() -> list[dict[str, str]]:
    """The unit's entries."""
    command = ["journalctl", "--output=json", "--no-pager", "--unit=skbcapd.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    return [json.loads(line) for line in done.stdout.splitlines()]


def restarted(before: str) -> bool:
    """Whether the unit is active again, under another process."""
    return until(lambda: show("ActiveState") == "active" and show("MainPID") not in {before, "0"})


def run() -> dict[str, object]:
    """All steps."""
    found: dict[str, object] = {"first": Path("/proc/1/comm").read_text().strip()}
    install()
    found["start"] = systemctl("start", "skbcapd.service")
    found["started"] = state()
    status = Path("/proc", show("MainPID"), "status")
    if status.exists():
        found["process"] = status.read_text()
    send(101)
    config = Path("/etc/skbcapd.yaml")
    for name, text in (("good", "snaplen: 131072\n"), ("bad", "snapplen: 96\n")):
        config.write_text(text)
        before = show("MainPID")
        found[name] = {"said": systemctl("reload", "skbcapd.service"), "stayed": show("MainPID") == before, **state()}
    config.unlink()
    found["counted"] = until(lambda: show("StatusText").split(" ")[0] not in {"", "0"})
    for number in (signal.SIGKILL, signal.SIGSTOP):
        before = show("MainPID")
        systemctl("kill", "--kill-who=main", f"--signal={number.name}", "skbcapd.service")
        found[number.name] = {"restarted": restarted(before), **state()}
    send(103)
    found["stop"] = systemctl("stop", "skbcapd.service")
    found["stopped"] = state()
    found["files"] = sorted((path.name, oct(path.stat().st_mode)) for path in LOGS.glob("skbcapd-*"))
    found["journal"] = journal()
    return found


if __name__ == "__main__":
    answers = Path(sys.argv[1])
    result = run()
    print(json.dumps(result))
    shutil.copytree(LOGS, answers / "captures", ignore=shutil.ignore_patterns("current*", ".*"))
