"""Who sends: a sender names itself, says who it is, and writes it into what it sends.

A name goes in, a report comes out as one line of JSON on stdout; the test compares it with the label on each
packet. A payload of 16 bytes or more starts with the sender's own tgid and tid, so that the frame itself proves its
label. The rest repeats every 251 bytes: NULs are in it, and no two pages of it are alike, so that a swapped page
shows. A signature holds the name, too: it is what the thread was called when it sent.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

MAGIC = b"skbc"
WHO = struct.Struct("!4sIII")
SIGNED_MAGIC = b"skbs"
SIGNATURE = struct.Struct("!4sIII16s")

_CYCLE = bytes(range(251))


@dataclass(frozen=True)
class Identity:
    """A thread as the kernel knows it; `comm` is the name's bytes as latin-1 text."""

    comm: str
    tgid: int
    tid: int


def myself() -> Identity:
    """Give the calling thread under the name that it has now."""
    comm = Path("/proc/thread-self/comm").read_bytes()[:-1].decode("latin-1")
    return Identity(comm, os.getpid(), threading.get_native_id())


def signature(sequence: int) -> bytes:
    """Give a payload that says who the calling thread is now, its name included."""
    who = myself()
    return SIGNATURE.pack(SIGNED_MAGIC, who.tgid, who.tid, sequence, who.comm.encode("latin-1"))


def become(comm: str) -> Identity:
    """Give the calling thread a name, as prctl(PR_SET_NAME) does.

    Args:
        comm: at most 15 characters, each standing for the byte of its latin-1 code.

    Returns:
        The thread, so named.
    """
    Path("/proc/thread-self/comm").write_bytes(comm.encode("latin-1"))
    return Identity(comm, os.getpid(), threading.get_native_id())


def report(*senders: Identity) -> None:
    """Say on stdout who sent."""
    print(json.dumps([asdict(sender) for sender in senders]), flush=True)


def pause(*so_far: Identity) -> None:
    """Report, and wait for the test to say that it goes on."""
    report(*so_far)
    sys.stdin.readline()


def pattern(size: int, start: int = 0) -> bytes:
    """Give `size` bytes that look nowhere like the page before."""
    start %= len(_CYCLE)
    return (_CYCLE * ((start + size) // len(_CYCLE) + 1))[start : start + size]


def payload(size: int, tgid: int, tid: int, sequence: int) -> bytes:
    """Give the payload number `sequence` of a sender: who it is, as far as that fits, then the pattern."""
    return (WHO.pack(MAGIC, tgid, tid, sequence) + pattern(max(size - WHO.size, 0), sequence))[:size]
