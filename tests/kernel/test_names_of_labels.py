"""Labels that the kernel program makes itself: each packet has the names of its moment, and Python hears of none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.kernel.capture import Daemon, read
from tests.kernel.namespace import Wire
from tests.kernel.sink import DISCARD_PORT
from tests.kernel.test_statistics import status
from tests.support.deadline import until

BARE = ["a", "ab", "abc", "nginx", "kworker/0:1", "abcdefghijklmno", "~!#$%&'()*+,-."]
QUOTED = {"a b": '"a b"', 'a"b': r'"a\"b"', "a=b": r'"a\x3db"', "\x7f\xe9": r'"\x7f\xc3\xa9"'}
CHILDREN = 40
REPEATS = 4  # with each name: the program copies a label when it needs it again, and uses the copy from then on
# Each child has its names one after the other, and sends a datagram with each, from a thread with another name at the
# end; so does the process that made it, before it forks and after it.
SENDER = """
import ctypes, os, socket, sys, threading
host, port, repeats, children, names = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5:]
rename = ctypes.CDLL(None).prctl
def send(names):
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for name in names:
        rename(15, os.fsencode(name), 0, 0, 0)
        for _ in range(repeats):
            udp.sendto(b"%d %d %s" % (os.getpid(), threading.get_native_id(), os.fsencode(name)), (host, port))
def forked(names):
    child = os.fork()
    if not child:
        send(names)
        thread = threading.Thread(target=send, args=(["thread"],))
        thread.start()
        thread.join()
        os._exit(0)
    os.waitpid(child, 0)
send(["parent"])
for _ in range(children):
    forked(names)
send(["parent", "later"])
"""


def expected(payload: str) -> str:
    """The comment for a datagram, which says who sent it."""
    tgid, tid, name = payload.split(" ", 2)
    text = f"comm={QUOTED.get(name, name)} pid={tid} tgid={tgid}"
    return text if tid == tgid else f"{text} process={BARE[-1]}"


def test_each_packet_has_the_names_of_its_moment(wire: Wire, tmp_path: Path) -> None:
    """New processes, threads and names in any order; all counts include what only the program knows."""
    control = tmp_path / "control"

    def run(*arguments: str) -> None:
        command = [sys.executable, "-c", SENDER, wire.far.ipv4, str(DISCARD_PORT), str(REPEATS), *arguments]
        wire.near.namespace.do(subprocess.run, command, check=True)

    with closing(Daemon(wire.near, tmp_path / "files", control__socket=str(control))) as daemon:
        run("0")
        until(lambda: status(control)["labels"] > 0, "the interface is known")
        run("1", *QUOTED, *BARE)
        before = status_after(control, REPEATS * (3 + 3 + len(QUOTED) + len(BARE) + 1))
        run(str(CHILDREN), *BARE)
        after = status_after(control, before["packets"]["written"] + REPEATS * (3 + CHILDREN * (len(BARE) + 1)))
        ended = daemon.stop()

    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    (file,) = (path for path in (tmp_path / "files").glob("*.pcapng") if not path.is_symlink())
    payloads = [(packet, packet.data[42:].decode()) for packet in read(file) if packet.data[36:38] == b"\0\x09"]
    sent = [(packet, payload) for packet, payload in payloads if re.match(r"\d+ \d+ ", payload)]
    assert len(sent) == REPEATS * (3 * 3 + len(QUOTED) + (CHILDREN + 1) * (len(BARE) + 1))
    assert [packet.comment for packet, _ in sent] == [expected(payload) for _, payload in sent]
    assert [packet.process for packet, _ in sent] == [tuple(map(int, payload.split()[:2])) for _, payload in sent]
    assert after["labels"] - before["labels"] >= CHILDREN * (len(BARE) + 1), json.dumps(after)
    assert after["upcalls"] - before["upcalls"] < CHILDREN
    assert after["processes"]["count"] - before["processes"]["count"] >= CHILDREN + 1


def status_after(control: Path, packets: int) -> dict[str, Any]:
    """The status once so many packets are written."""
    until(lambda: status(control)["packets"]["written"] >= packets, f"{packets} packets are written")
    return status(control)
