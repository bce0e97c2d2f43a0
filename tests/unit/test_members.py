"""Files whose granules are compressed alone: any program reads them as before, and parts can be decompressed."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

from skbcapd.output import pack
from skbcapd.pcapng.granules import GRANULE, granules
from skbcapd.pcapng.members import Member, gzip_member, members
from tests.support.stored_files import store, unpacked
from tests.support.strangers import block, interface, options, packet, section, udp

TOOLS = ("gzip", "zstd")


def capture(order: str = "<", count: int = 4001) -> bytes:
    """Packets of two sections, with other blocks between them."""
    chance = random.Random(count)
    head = section(order) + interface(order, opts=options((2, b"eth0"), (9, b"\x09"), order=order))
    made = []
    for _ in range(2):
        made.append(head)
        for number in range(count):
            if number % 500 == 300:
                made.append(interface(order) + block(0x0BAD, bytes(64), order))
            made.append(packet(udp("10.0.0.1", "192.0.2.1", size=chance.randrange(60, 1500)), b"", order))
    return b"".join(made)


def table(path: Path) -> list[Member]:
    """The members of a file."""
    with path.open("rb") as file:
        return list(members(file.fileno()))


@pytest.mark.parametrize("order", ["<", ">"])
def test_granules_begin_with_a_packet(order: str) -> None:
    """What stands before the first packet is alone; each granule but the last is some blocks longer than 1 MiB, ends at
    a multiple of it, and begins with a packet.
    """
    data = capture(order)
    head, *found = granules(io.BytesIO(data))
    assert head + b"".join(found) == data
    assert len(head) == data.index(struct.pack(order + "I", 6))
    assert all(each[:4] == struct.pack(order + "I", 6) for each in found)
    ends = [sum(map(len, found[: number + 1])) + len(head) for number in range(len(found))]
    second = data.index(data[:12], 12)
    assert len(ends) == len(data) // GRANULE + 2
    near = [end % GRANULE for end in ends[:-1] if not second <= end < second + 2000]
    assert len(near) == len(ends) - 2
    assert max(near) < 2000


def test_any_bytes_stay_the_same() -> None:
    """Torn files, files with wrong lengths, and no captures at all: the granules are the file, and never large."""
    chance, data = random.Random(5), capture(count=701)
    wrong = bytearray(data)
    wrong[len(data) // 2 :] = chance.randbytes(len(data) - len(data) // 2)
    long = section() + block(0x0BAD, bytes(GRANULE - 12)) * 5 + section(">")[:20]
    hostile = [
        b"",
        b"x",
        data[:-1],
        data[:7],
        bytes(wrong),
        long,
        bytes(3 * GRANULE),
        chance.randbytes(2 * GRANULE + 1),
        section() + struct.pack("<II", 6, 0xFFFFFFFC) + bytes(5 * GRANULE),
        section() + struct.pack("<II", 6, 16 << 20) + bytes(GRANULE),
    ]
    for each in hostile + [data[: chance.randrange(len(data))] for _ in range(53)]:
        found = list(granules(io.BytesIO(each)))
        assert b"".join(found) == each
        assert all(0 < len(part) <= 4 * GRANULE for part in found)


@pytest.mark.parametrize("tool", TOOLS)
def test_the_whole_file_and_its_members(tool: str, tmp_path: Path) -> None:
    """The program decompresses the whole file, and each member alone; the members are the granules."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(capture())
    stored = store(path, f"{tool} members")
    assert subprocess.run([tool, "-dc", stored], capture_output=True, check=True).stdout == path.read_bytes()
    assert subprocess.run([tool, "-tq", stored], check=True).returncode == 0
    found = table(stored)
    parts = [unpacked(stored, member.offset, member.length) for member in found]
    assert parts == list(granules(io.BytesIO(path.read_bytes())))
    assert [member.size for member in found] == [len(part) for part in parts]
    assert sum(found[-1][:2]) == stored.stat().st_size


@pytest.mark.parametrize("tool", TOOLS)
def test_files_of_other_programs(tool: str, tmp_path: Path) -> None:
    """A file that gzip has compressed has no members that are certain, even two in a row; zstd writes frames, of which
    only those with a size are.
    """
    path = tmp_path / "a"
    data = random.Random(7).randbytes(300_000)
    path.write_bytes(subprocess.run([tool, "-qc"], input=data, capture_output=True, check=True).stdout * 2)
    assert table(path) == []
    if tool == "zstd":
        one = subprocess.run(
            ["zstd", "-qc", "--stream-size=300000"], input=data, capture_output=True, check=True
        ).stdout
        path.write_bytes(one + struct.pack("<II", 0x184D2A5E, 5) + b"12345" + one + b"garbage")
        assert table(path) == [Member(0, len(one), 300_000), Member(len(one) + 13, len(one), 300_000)]


@pytest.mark.parametrize("tool", TOOLS)
def test_torn_and_hostile_members(tool: str, tmp_path: Path) -> None:
    """A member is certain only if it is complete; wrong lengths lead to no byte outside of the file."""
    path, chance = tmp_path / "a", random.Random(11)
    parts = [chance.randbytes(1 << 16), bytes(1 << 18), b"x", chance.randbytes(1 << 17)]
    stored = b"".join(pack._MEMBERS[tool](part) for part in parts)
    path.write_bytes(stored)
    whole = table(path)
    assert [member.size for member in whole] == [len(part) for part in parts]
    for size in [*range(60), *(chance.randrange(len(stored)) for _ in range(101))]:
        path.write_bytes(stored[:size])
        assert table(path) == [member for member in whole if member.offset + member.length <= size]
    for _ in range(307):
        wrong = bytearray(stored)
        member = chance.choice(whole)
        for _ in range(3):
            wrong[member.offset + chance.randrange(26)] = chance.choice((0, 1, 255, chance.randrange(256)))
        path.write_bytes(wrong)
        for found in table(path):
            assert found.length > 0
            assert found.offset + found.length <= len(stored)


def test_many_tiny_members_end_the_search(tmp_path: Path) -> None:
    """A file of members without content, or a frame of blocks without content, is not read to its end."""
    path = tmp_path / "a"
    empty = b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00"
    good = pack._MEMBERS["gzip"](b"good")
    for count, has_found in ((101, True), (300_007, False)):
        path.write_bytes(empty * count + good)
        assert bool(table(path)) == has_found
    for count, has_found in ((101, True), (1_100_009, False)):
        path.write_bytes(b"\x28\xb5\x2f\xfd\xa0\xff\xff\xff\xff" + bytes(3 * count) + b"\1\0\0")
        assert bool(table(path)) == has_found


def test_a_member_of_python(tmp_path: Path) -> None:
    """Python's gzip reads members one after the other."""
    path = tmp_path / "a.gz"
    path.write_bytes(gzip_member(b"one") + gzip_member(b"") + gzip_member(b"two"))
    assert gzip.decompress(path.read_bytes()) == b"onetwo"
    assert [member.size for member in table(path)] == [3, 3]


@pytest.mark.parametrize(("kind", "said"), [("zstd", "No such file or directory"), ("gzip", "No space left on device")])
def test_what_fails_is_one_line(kind: str, said: str, tmp_path: Path) -> None:
    """Without zstd, or without space, the process ends with an error."""
    full = Path("/dev/full") if kind == "gzip" else tmp_path / "out"
    with full.open("wb") as target:
        done = subprocess.run(
            pack.command(kind),
            input=capture(count=11),
            stdout=target,
            stderr=subprocess.PIPE,
            env=os.environ | {"PATH": str(tmp_path)},
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.decode() == said + "\n"
