"""Captures of a fleet that does not exist, in the format of docs/format.md, and the truth about them.

In: numbers of hosts, files and packets. Out: DIRECTORY/captures/host=NAME/date=D/skbcapd-NAME-TIME-NUMBER.pcapng; the
packets to and from one address (the needle) as a list.

The rule: the same arguments make the same bytes. What is expected comes from here, not from code that reads captures.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from socket import inet_aton
from typing import NamedTuple

from skbcapd import __version__
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT, IF_DESCRIPTION, IF_NAME, IF_TSRESOL, SHB_USERAPPL
from skbcapd.pcapng.comment import label, option

NEEDLE = "1.2.3.4"
BEGIN_NS = 1_795_771_800 * 10**9  # 2026-11-27 09:30 UTC
FILE_S = 360
_PROGRAMS = (
    "curl",
    "sshd",
    "nginx",
    "postgres",
    "python3",
    "java",
    "chronyd",
    "dockerd",
    "redis-server",
    "tmux: server",
)
_PORTS = (443, 80, 53, 5432, 6379, 22, 8080)
_SIZES = (66, 66, 66, 1514, 1514, 590)
_PROCESSES, _FLOWS = 12, 40


class Seen(NamedTuple):
    """A packet to or from the needle."""

    time_ns: int
    host: str
    process: str
    tgid: int


class _Template(NamedTuple):
    """A block without its time."""

    before: bytes
    after: bytes
    process: str
    tgid: int
    is_needle: bool


def names(hosts: int) -> list[str]:
    """The names of hosts."""
    return [f"web-{number:05}" for number in range(hosts)]


def make(directory: Path, hosts: int, files: int, packets: int, seed: int = 7, flows: int = _FLOWS) -> list[Seen]:
    """Write captures.

    Args:
        directory: where `captures` is made.
        hosts: how many hosts.
        files: of each host, one after the other.
        packets: of each file.
        seed: of all that is chosen.
        flows: of each host, without those of the needle.

    Returns:
        The packets of the needle, in the order of time.
    """
    truth = []
    for number, host in enumerate(names(hosts)):
        chance = random.Random(f"{seed} {host}")  # noqa: S311  no cryptography
        has_needle = number % 11 == 3
        templates = list(_templates(number, chance, flows, has_needle=has_needle))
        for file in range(files):
            begin_ns = BEGIN_NS + file * FILE_S * 10**9
            begin = datetime.fromtimestamp(begin_ns // 10**9, UTC)
            path = directory / "captures" / f"host={host}" / f"date={begin:%Y-%m-%d}"
            path.mkdir(parents=True, exist_ok=True)
            usual = templates[:-4] if has_needle else templates
            times = sorted(begin_ns + chance.randrange(FILE_S * 10**9) for _ in range(packets))
            chosen = chance.choices(usual, k=packets)
            if has_needle and file % 3 == 2:  # connections of a few seconds
                at, count = chance.randrange(packets - packets // 25), packets // 40
                for which in chance.sample(range(at, at + packets // 25), count):
                    chosen[which] = chance.choice(templates[-4:])
            parts = [_head()]
            for time_ns, template in zip(times, chosen, strict=True):
                parts += template.before, struct.pack("<II", time_ns >> 32, time_ns & 0xFFFFFFFF), template.after
                if template.is_needle:
                    truth.append(Seen(time_ns, host, template.process, template.tgid))
            (path / f"skbcapd-{host}-{begin:%Y%m%dT%H%M%S}.000Z-{file:06}.pcapng").write_bytes(b"".join(parts))
    return sorted(truth)


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _head() -> bytes:
    end = option(0, b"")
    program = option(SHB_USERAPPL, f"skbcapd {__version__}".encode())
    section = _block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + program + end)
    described = option(IF_DESCRIPTION, b"network namespace of init") + option(IF_TSRESOL, b"\x09") + end
    return section + b"".join(
        _block(1, struct.pack("<HHI", 1, 0, 262144) + option(IF_NAME, name) + described) for name in (b"eth0", b"lo")
    )


def _templates(number: int, chance: random.Random, usual: int, *, has_needle: bool) -> Iterator[_Template]:
    """The blocks of a host, in both directions of each flow; those of the needle are the last four."""
    here = f"10.{number >> 8 & 255}.{number & 255}.1"
    processes = [(chance.choice(_PROGRAMS), chance.randrange(300, 400_000)) for _ in range(_PROCESSES)]
    flows = usual + (2 if has_needle else 0)
    for flow in range(flows):
        process, tgid = chance.choice(processes)
        is_needle = flow >= usual
        peer = NEEDLE if is_needle else f"{chance.randrange(11, 200)}.{chance.randrange(256)}.{flow}.{number & 255}"
        ports = chance.randrange(32768, 61000), chance.choice(_PORTS)
        for direction in (DIRECTION_OUT, DIRECTION_IN):
            ends = (here, peer) if direction == DIRECTION_OUT else (peer, here)
            frame = _frame(
                *ends, *(ports if direction == DIRECTION_OUT else ports[::-1]), chance.choice(_SIZES), chance
            )
            fields: list[tuple[str, bytes | str | int]] = [("comm", process), ("pid", tgid), ("tgid", tgid)]
            fields += [("user", "www-data"), ("unit", f"{flow}.service")]
            options = label(fields, direction, tgid, tgid).options
            length = 32 + len(frame) + (-len(frame) & 3) + len(options)
            yield _Template(
                struct.pack("<III", 6, length, 0),
                struct.pack("<II", len(frame), len(frame))
                + frame
                + bytes(-len(frame) & 3)
                + options
                + struct.pack("<I", length),
                process,
                tgid,
                is_needle,
            )


def _frame(source: str, target: str, source_port: int, target_port: int, size: int, chance: random.Random) -> bytes:
    """A TCP segment."""
    internet = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, size - 14, 0, 0x4000, 64, 6, 0, inet_aton(source), inet_aton(target)
    )
    segment = struct.pack(">HHIIBBHHH", source_port, target_port, chance.getrandbits(32), 1, 0x50, 0x18, 512, 0, 0)
    return bytes.fromhex("0200000000010200000000020800") + internet + segment + chance.randbytes(size - 54)
