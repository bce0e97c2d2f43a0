"""The service under a real systemd: Debian 12's, as the first process of a virtual machine, on its own kernel.

One boot; service_trial.py does inside what an administrator and bad luck would do, and tells; the claims are here.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skbcapd.log import Event
from tests.vm import boot, kernels

KERNEL = "6.1"
DEADLINE_S = 15 * 60


@pytest.fixture(scope="module")
def trial() -> Iterator[dict[str, Any]]:
    """What happened inside, and under "captures" a directory with the files."""
    with tempfile.TemporaryDirectory() as name:
        command = f".venv/bin/python tests/vm/service_trial.py {boot.SHARE}"
        result = boot.run_in_vm(kernels.fetch(KERNEL), command, DEADLINE_S, systemd=True, keep=Path(name))
        if result.returncode != 0:
            pytest.fail(result.report(), pytrace=False)
        yield {**json.loads(result.output.splitlines()[-1]), "captures": Path(name) / "captures"}


def test_it_becomes_active(trial: dict[str, Any]) -> None:
    """Under systemd as the first process, `systemctl start` returns when packets are captured; the status says so."""
    assert trial["first"] == "systemd"
    assert trial["start"] == ""
    assert trial["started"]["ActiveState"] == "active"
    assert trial["started"]["StatusText"].endswith(".part")
    assert trial["counted"]


def test_it_has_two_capabilities(trial: dict[str, Any]) -> None:
    """It runs as a user of its own, with CAP_SYS_ADMIN and CAP_SYS_PTRACE, seccomp on, and can gain nothing."""
    status = trial["process"]
    assert re.search(r"^CapEff:\t0*280000$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\t0*280000$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    assert not re.search(r"^Uid:\t0\t", status, re.MULTILINE)


@pytest.mark.parametrize(("number", "restarts"), [("SIGKILL", "1"), ("SIGSTOP", "2")])
def test_it_comes_back(trial: dict[str, Any], number: str, restarts: str) -> None:
    """A process that is killed, or that no longer drains and so no longer feeds the watchdog, is replaced."""
    assert trial[number]["restarted"]
    assert trial[number]["ActiveState"] == "active"
    assert trial[number]["NRestarts"] == restarts


@pytest.mark.parametrize(("name", "message"), [("good", "settings reloaded"), ("bad", "not reloaded: .*snapplen")])
def test_it_reloads(trial: dict[str, Any], name: str, message: str) -> None:
    """`systemctl reload` ends when it is over; a bad file changes nothing, and the journal says why."""
    assert (trial[name]["said"], trial[name]["stayed"], trial[name]["ActiveState"]) == ("", True, "active")
    assert any(re.search(message, entry["MESSAGE"]) for entry in trial["journal"])


def test_it_stops(trial: dict[str, Any]) -> None:
    """A stop is a clean end, not a timeout."""
    assert trial["stop"] == ""
    assert trial["stopped"]["ActiveState"] == "inactive"
    assert trial["stopped"]["Result"] == "success"


def test_each_start_has_a_file(trial: dict[str, Any]) -> None:
    """Three starts are three files, those of the killed processes finished by the next; nobody else may read them."""
    names = [name for name, _ in trial["files"]]
    assert len(names) == 3
    assert all(name.endswith(".pcapng") for name in names)
    assert {mode for _, mode in trial["files"]} == {"0o100600"}


def test_the_packets_have_their_process(trial: dict[str, Any]) -> None:
    """All datagrams sent before and after the trouble are in the files, as tshark reads them, named."""
    first, _, last = sorted(trial["captures"].glob("skbcapd-*.pcapng"))
    for path, packets in ((first, 101), (last, 103)):
        command = [
            "tshark",
            "-r",
            str(path),
            "-Y",
            "udp.dstport == 1009 && !icmp",
            "-T",
            "fields",
            "-e",
            "frame.comment",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        comments = done.stdout.splitlines()
        assert len(comments) == packets
        assert all(re.match(r"comm=\S+ pid=\d+ tgid=\d+", comment) for comment in comments)


def test_the_journal_has_fields(trial: dict[str, Any]) -> None:
    """Start and stop are found by MESSAGE_ID, with file and counts in fields of their own."""
    entries = trial["journal"]
    starts = [entry for entry in entries if entry.get("MESSAGE_ID") == Event.STARTED.message_id]
    (stop,) = [entry for entry in entries if entry.get("MESSAGE_ID") == Event.STOPPED.message_id]
    assert len(starts) == len({entry["SKBCAPD_FILE"] for entry in starts}) == 3
    assert {entry["SYSLOG_IDENTIFIER"] for entry in [*starts, stop]} == {"skbcapd"}
    assert stop["PRIORITY"] == "6"
    assert stop["SKBCAPD_DROPPED"] == "0"
    assert int(stop["SKBCAPD_PACKETS"]) >= 103
    assert Path(stop["SKBCAPD_FILE"]).name.removeprefix(".").removesuffix(".part") in {n for n, _ in trial["files"]}
