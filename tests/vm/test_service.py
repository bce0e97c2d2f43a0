"""The service under a real systemd: Debian 12's, as the first process of a virtual machine, on its
own kernel.

One boot: service_trial.py does inside what an administrator and bad luck would do, and tells; the
claims are here.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skbcapd.events import Event
from tests.support.judges import facts, rows
from tests.vm import boot, kernels
from tests.vm.service_trial import TLS_PORT

KERNEL = "6.1"
DEADLINE_S = 15 * 60
pytestmark = pytest.mark.timeout(0)  # the deadline is enough
COMMAND = f".venv/bin/python -B -m tests.vm.service_trial {boot.SHARE}"


@pytest.fixture(scope="module")
def trial() -> Iterator[dict[str, Any]]:
    """The results of the trial, and under "captures" the files, oldest first."""
    with tempfile.TemporaryDirectory() as name:
        result = boot.run_in_vm(kernels.fetch(KERNEL), COMMAND, DEADLINE_S, systemd=True, keep=Path(name))
        if result.returncode != 0:
            pytest.fail(result.report(), pytrace=False)
        captures = sorted(Path(name, "captures").glob("*.pcapng"), key=lambda path: path.name[-13:])
        yield {**json.loads(result.output.splitlines()[-1]), "captures": captures}


def messages(trial: dict[str, Any], event: Event) -> list[dict[str, str]]:
    """The journal entries of one kind."""
    return [entry for entry in trial["journal"] if entry.get("MESSAGE_ID") == event.value]


def test_it_becomes_active(trial: dict[str, Any]) -> None:
    """`systemctl start` returns when packets are captured, and the status shows it."""
    assert trial["first"] == "systemd"
    assert (trial["start"]["printed"], trial["start"]["ActiveState"]) == ("", "active")
    assert re.fullmatch(r"\d+ packets, 0 dropped, .*\.pcapng\.part", trial["start"]["StatusText"])


def test_it_has_two_capabilities(trial: dict[str, Any]) -> None:
    """It runs as its own user, with CAP_SYS_ADMIN and CAP_SYS_PTRACE, with seccomp, and cannot gain
    privileges.
    """
    status = trial["process"]
    assert re.search(r"^CapEff:\t0*280000$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\t0*280000$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    assert not re.search(r"^Uid:\t0\t", status, re.MULTILINE)


def test_its_group_reads(trial: dict[str, Any]) -> None:
    """Files have mode 640 of the default config, not that of the unit's umask: the group can read
    them, others cannot.
    """
    modes = trial["modes"]
    assert modes["skbcapd"] == "skbcapd:skbcapd 750"
    assert {modes[path.name] for path in trial["captures"][:3]} == {"skbcapd:skbcapd 640"}
    assert trial["member"].split() == ["0a", "0d", "0d", "0a"]
    assert "Permission denied" in trial["stranger"]


def test_files_of_another_group(trial: dict[str, Any]) -> None:
    """A group in `files.owner` that the unit does not allow is logged; with a drop-in it owns the
    files.
    """
    assert trial["modes"][trial["captures"][-1].name] == "skbcapd:adm 640"
    warnings = [entry["MESSAGE"] for entry in messages(trial, Event.WARNING)]
    (refused,) = [warning for warning in warnings if "SupplementaryGroups=" in warning]
    assert f"{trial['captures'][2].name}.part: Operation not permitted; " in refused


def test_it_reads_key_logs(trial: dict[str, Any]) -> None:
    """The restrictions of the unit let it read a key log in the directory of docs/secrets.md: tshark decrypts the file,
    which a reload has ended, with nothing else.
    """
    found = trial["tls"]
    assert (found["printed"], found["keys"], found["is_there"]) == ("", "root:skbcapd 640", True)
    assert found["secrets"] >= 5
    path, where = trial["captures"][0], f"http.request and tcp.port == {TLS_PORT}"
    requests = rows(path, "http.request.uri", where=where, decode=f"tcp.port=={TLS_PORT},tls")
    assert requests == [["/TLSv1_2"], ["/TLSv1_3"]]


@pytest.mark.parametrize("name", ["good", "bad"])
def test_it_reloads(trial: dict[str, Any], name: str) -> None:
    """A reload is in the journal, and the process stays; a bad config changes nothing, and its
    error is logged.
    """
    found = trial[name]
    assert (found["printed"], found["said"], found["ActiveState"]) == ("", True, "active")
    assert found["MainPID"] == found["before"] == trial["start"]["MainPID"]
    assert any(re.search("not reloaded: .*snapplen", entry["MESSAGE"]) for entry in messages(trial, Event.NOT_RELOADED))


def test_a_full_disk(trial: dict[str, Any]) -> None:
    """A full disk is logged, and so is the end of it; the service does not end."""
    found = trial["disk"]
    assert (found["full"], found["goes_on"], found["ActiveState"]) == (True, True, "active")
    assert found["MainPID"] == trial["start"]["MainPID"]


def test_compiled_programs_are_kept(trial: dict[str, Any]) -> None:
    """One cached program for each setting of attach, and the answers from BTF; only the user of the
    service can read or write them.
    """
    assert trial["kept"] == ["skbcapd:skbcapd 600"] * 3


@pytest.mark.parametrize(("name", "restarts", "why"), [("killed", "1", "signal"), ("stuck", "2", "watchdog")])
def test_it_comes_back(trial: dict[str, Any], name: str, restarts: str, why: str) -> None:
    """A process that was killed, or that no longer drains and feeds the watchdog, is replaced."""
    found = trial[name]
    assert (found["is_new"], found["ActiveState"], found["NRestarts"]) == (True, "active", restarts)
    assert any(f"Failed with result '{why}'" in entry["MESSAGE"] for entry in trial["journal"])


def test_several_captures_at_once(trial: dict[str, Any]) -> None:
    """A unit of the template runs at the same time, writes its own files, and has its own metrics."""
    found = trial["another"]
    assert (found["printed"], found["running"]["ActiveState"], found["stopped"]) == ("", "active", "")
    assert (found["after"]["ActiveState"], found["after"]["Result"]) == ("inactive", "success")
    first = found["of_the_first"]
    assert (first["ActiveState"], first["MainPID"]) == ("active", first["before"])
    assert found["files"] == ["skbcapd:skbcapd 640"]
    seen = re.search(r"^skbcapd_packets_seen_total (\S+)$", found["metrics"], re.MULTILINE)
    assert seen, found["metrics"]
    assert float(seen[1]) >= 113


def test_it_stops(trial: dict[str, Any]) -> None:
    """Under load it ends within TimeoutStopSec: all packets counted as written are in the file."""
    found = trial["stop"]
    assert (found["printed"], found["grown"]) == ("", True)
    assert (found["ActiveState"], found["Result"]) == ("inactive", "success")
    (stopped,) = messages(trial, Event.STOPPED)
    assert ("Number of packets", stopped["SKBCAPD_PACKETS"]) in facts(trial["captures"][-1])


def test_the_packets_have_their_process(trial: dict[str, Any]) -> None:
    """Each start, the full disk and a clock that is set, either way, began a file, which tshark
    reads whole.

    Datagrams there have their sender; the 113 are those that another capture was shown as well.
    """
    assert trial["clock"] == [True, True]
    assert trial["steps"] == [False, True, False, True, False]
    for path, packets in zip(trial["captures"], (101, 109, 103, 107, 107 + 113, 0), strict=True):
        found = rows(path, "frame.comment", where="udp.dstport == 1009 && !icmp")
        assert len(found) == packets, path.name
        assert all(f" tgid={trial['sender']}" in comment for (comment,) in found)


def test_the_journal_has_fields(trial: dict[str, Any]) -> None:
    """Start and stop are found by MESSAGE_ID, with file and counts in separate fields."""
    starts, (stopped,) = messages(trial, Event.STARTED), messages(trial, Event.STOPPED)
    assert len(starts) == len({entry["SKBCAPD_FILE"] for entry in starts}) == 3
    assert {entry["SYSLOG_IDENTIFIER"] for entry in [*starts, stopped]} == {"skbcapd"}
    assert stopped["PRIORITY"] == "6"
    assert int(stopped["SKBCAPD_DROPPED"]) >= 0
    assert Path(stopped["SKBCAPD_FILE"]).name.removesuffix(".part") == trial["captures"][-1].name


def test_kprobes_attach(trial: dict[str, Any]) -> None:
    """The kprobes that record users of sockets are attached; with `attach: kprobe`, all of them."""
    hooks = [entry["MESSAGE"] for entry in messages(trial, Event.STARTED)]
    assert "tracepoint net_dev_queue" in hooks[0]
    assert {"inet_sendmsg", "inet_recvmsg", "inet6_sendmsg", "inet6_recvmsg"} <= set(trial["kprobes"])
    assert "kprobe __dev_queue_xmit" in hooks[1]
    assert {"__dev_queue_xmit", "__netif_receive_skb_core"} <= set(trial["more_kprobes"]) - set(trial["kprobes"])
