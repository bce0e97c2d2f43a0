"""The process fields of a real capture, compared with the kernel."""

from __future__ import annotations

import os
import pwd
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.capture import ROOT, Capture, read, with_value
from tests.kernel.namespace import Wire
from tests.support.blocks import INTERFACE, PACKET, SECTION, STATISTICS, Block, Packet, blocks, comment_fields, options
from tests.support.deadline import DEADLINE_S

COUNT = 23
FIELDS = (
    *("comm", "pid", "tgid", "process", "ppid", "uid", "user", "gid", "exe", "cmdline", "cgroup", "unit", "container"),
    *("pod", "ns_pid"),
)
NOBODY_UID = 65534
CUSTOM = 0xBAD
PATIENT = with_value("skbcapd.attribution.command_lines", "PATIENCE_S", 30.0)
"""The thread that reads a command line can be late on a busy machine."""

# Sends datagrams, from the address given to the one given, then waits for the end of its input. Its
# command line has text that looks like fields, and control characters.
SENDER = f"""# x" uid=0 \x1b[31m
import os, socket, sys
with open("/proc/self/comm", "wb") as comm:
    comm.write(b"tmux: \\xffserver")
os.seteuid({NOBODY_UID})
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((sys.argv[1], 0))
for _ in range({COUNT}):
    sender.sendto(b"fields", (sys.argv[2], 9))
print(flush=True)
sys.stdin.read()
"""


# Sends from a thread with another name: datagrams while the process has one name, and as many with
# another one.
THREADS = f"""
import os, socket, sys, threading
def named(name, thread):
    with open(f"/proc/self/task/{{thread}}/comm", "wb") as comm:
        comm.write(name)
def send():
    named(b"isc-net-0000", threading.get_native_id())
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((sys.argv[1], 0))
    for name in (b"dig", b"x comm=dig"):
        named(name, os.getpid())
        for _ in range({COUNT}):
            sender.sendto(name + b"fields", (sys.argv[2], 9))
worker = threading.Thread(target=send)
worker.start()
worker.join()
"""


@contextmanager
def sender(wire: Wire) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has sent all its datagrams and still runs."""
    command = [sys.executable, "-c", SENDER, wire.near.ipv4, wire.far.ipv4]
    popen = wire.near.namespace.do(subprocess.Popen, command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with popen as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"\n"
            yield process
        finally:
            process.kill()


def sent_by(packets: list[Packet]) -> list[Packet]:
    """The datagrams in a capture."""
    return [packet for packet in packets if packet.data.endswith(b"fields")]


def test_a_comment_has_the_values_of_the_kernel(wire: Wire, tmp_path: Path) -> None:
    """Parent, user, program, arguments and cgroup of each packet are those of the sender, with any
    bytes.
    """
    file = tmp_path / "fields.pcapng"
    arguments = ("-i", wire.near.device, "-w", str(file))
    settings = {"comment": ",".join(FIELDS), "directions": "out"}
    with closing(Capture(wire.near.namespace, *arguments, through=PATIENT, **settings)) as capture:
        with sender(wire) as process:
            proc = Path("/proc") / str(process.pid)
            exe, cmdline = str((proc / "exe").readlink()), (proc / "cmdline").read_bytes()
            cgroups = {line.split(":", 2)[2] for line in (proc / "cgroup").read_text().splitlines()}
            ended = capture.stop()
        assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    found = [comment_fields(packet.comment) for packet in sent_by(read(file))]

    assert len(found) == COUNT
    assert all(fields == found[0] for fields in found)
    told = found[0]
    assert told.pop("comm") == "tmux: \xffserver"
    assert {told.pop("pid"), told.pop("tgid")} == {str(process.pid)}
    assert told.pop("ppid") == str(os.getpid())
    assert (told.pop("uid"), told.pop("user")) == (str(NOBODY_UID), pwd.getpwuid(NOBODY_UID).pw_name)
    assert told.pop("exe") == exe
    shown = cmdline[:-1].replace(b"\0", b" ").decode("latin-1")
    assert len(shown) > 128
    assert 'x" uid=0 \x1b[31m\n' in shown[:128]
    assert told.pop("cmdline") == shown[:128]
    assert told.pop("cut") == "cmdline"
    assert told.pop("cgroup") in cgroups
    assert (told.pop("gid"), told.pop("ns_pid")) == (str(os.getegid()), str(process.pid))
    assert told.keys() <= {"unit", "container", "pod"}


def send_from_a_thread(wire: Wire) -> int:
    """Send all of THREADS; returns the id of the process."""
    command = [sys.executable, "-c", THREADS, wire.near.ipv4, wire.far.ipv4]
    with wire.near.namespace.do(subprocess.Popen, command, cwd=ROOT) as process:
        assert process.wait(DEADLINE_S) == 0
        return int(process.pid)


@pytest.mark.vm
def test_a_thread_is_found_by_its_processs_name(wire: Wire, tmp_path: Path) -> None:
    """The comment has the name of the process at the time of each packet, if the sending thread has
    another name.
    """
    file = tmp_path / "process.pcapng"
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-w", str(file), directions="out")) as capture:
        tgid = send_from_a_thread(wire)
        ended = capture.stop()
    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    packets = sent_by(read(file))
    assert len(packets) == 2 * COUNT
    for packet in packets:
        fields = comment_fields(packet.comment)
        assert (fields["comm"], fields["tgid"]) == ("isc-net-0000", str(tgid))
        assert fields["pid"] != fields["tgid"]
        assert packet.data.endswith(fields["process"].encode() + b"fields")
    assert {comment_fields(packet.comment)["process"] for packet in packets} == {"dig", "x comm=dig"}


@pytest.mark.vm
@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ("[{process: dig, action: drop}]", {"x comm=dig": COUNT}),
        ("[{process: dig}, {action: drop}]", {"dig": COUNT}),
        ("[{comm: dig}, {action: drop}]", {}),
    ],
)
def test_a_rule_matches_the_process(rules: str, kept: dict[str, int], wire: Wire, tmp_path: Path) -> None:
    """A rule with `process` matches all threads of a process while it has that name; `comm` the
    threads with that name.
    """
    file = tmp_path / "rules.pcapng"
    with closing(
        Capture(wire.near.namespace, "-i", wire.near.device, "-w", str(file), directions="out", rules=rules)
    ) as capture:
        send_from_a_thread(wire)
        ended = capture.stop()
    assert ended.exit_code == 0, ended.stderr
    assert Counter(comment_fields(packet.comment)["process"] for packet in sent_by(read(file))) == kept


def test_a_process_block_stands_before_its_packets(wire: Wire, tmp_path: Path) -> None:
    """With process_blocks the sender is described before its first packet, without its arguments,
    and only once.
    """
    file = tmp_path / "blocks.pcapng"
    arguments = ("-i", wire.near.device, "-w", str(file))
    with closing(Capture(wire.near.namespace, *arguments, process_blocks="true", directions="out")) as capture:
        with sender(wire) as process:
            exe = str(Path(f"/proc/{process.pid}/exe").readlink())
            ticks = int(Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
            [boot_s] = (int(line[6:]) for line in Path("/proc/stat").read_text().splitlines() if line[:6] == "btime ")
            ended = capture.stop()
        assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    packets = sent_by(read(file))
    assert {packet.process for packet in packets} == {(process.pid, process.pid)}
    assert {packet.comment for packet in packets} == {f'comm="tmux: \\xffserver" pid={process.pid} tgid={process.pid}'}
    found = list(blocks(file.read_bytes()))
    described = [(number, block) for number, block in enumerate(found) if entry(block).get("pid") == process.pid]
    ours = [number for number, block in enumerate(found) if block.kind == PACKET and b"fields" in block.body]

    assert len(ours) == COUNT
    assert len(described) == 1
    assert described[0][0] < ours[0]
    assert {block.kind for block in found} == {SECTION, INTERFACE, CUSTOM, PACKET, STATISTICS}
    told = entry(described[0][1])
    start_s = int.from_bytes(told.pop(9), "little") / 1e9
    assert -0.1 < start_s - (boot_s + ticks / os.sysconf("SC_CLK_TCK")) < 1.1  # btime is in whole seconds
    assert told == {
        "pid": process.pid,
        2: b"tmux: \\xffserver",
        3: exe.encode(),
        5: struct.pack("<I", os.getpid()),
        6: struct.pack("<I", NOBODY_UID),
        7: pwd.getpwuid(NOBODY_UID).pw_name.encode(),
    }


def entry(block: Block) -> dict[int | str, Any]:
    """The content of a process block, by option code, and its `pid`; nothing for another block."""
    if block.kind != CUSTOM:
        return {}
    pen, kind, length, pid = struct.unpack_from("<4I", block.body)
    assert (pen, kind, length) == (32622, 3, len(block.body) - 12)
    return {"pid": pid} | {code: value for _, code, value in options(block.body[16:])}
