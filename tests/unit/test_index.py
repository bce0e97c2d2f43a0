"""The index of a capture file: its rows lead to the packets, and its sums are those of `top`."""

from __future__ import annotations

import collections
import contextlib
import csv
import gzip
import os
import random
import re
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from skbcapd.analysis.account import Account
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.analysis.sources import Sources
from skbcapd.cli.main import command
from skbcapd.errors import FileError
from skbcapd.fleet import index_file, rows
from skbcapd.fleet.flows import usual_ends
from skbcapd.fleet.index import index, texts
from skbcapd.fleet.rows import Row
from skbcapd.frames import headers
from skbcapd.output.naming import escaped_host
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.link_type import ETHERNET
from tests.support import stored_files
from tests.support.strangers import block, interface, options, packet, pcap, process, section, udp

NANOSECONDS = options((9, b"\x09"))
TIME_NS = 1_622_469_600_123_456_789


def frame(chance: random.Random, direction: int) -> bytes:
    """A frame of one of many flows: IPv4, IPv6, VLAN tags, fragments, ARP, and too short ones."""
    here, there = "10.0.0.1", f"192.168.7.{chance.randrange(23)}"
    ends = (here, there) if direction == 2 else (there, here)
    kind = chance.randrange(8)
    made = bytearray(udp(*ends, size=chance.randrange(60, 1500), tags=chance.choice((0, 0, 0, 1, 2))))
    if kind == 0:
        return bytes(made[: chance.randrange(len(made))])
    if kind == 1:
        made[12:14] = b"\x08\x06"
    if kind == 2:
        six = [b"\x20\x01" + bytes(13) + bytes([chance.randrange(5)]) for _ in range(2)]
        head = struct.pack(">IHBB", 6 << 28, 500, chance.choice((6, 17, 58)), 64) + b"".join(six)
        return bytes(12) + b"\x86\xdd" + head + bytes(500)
    if kind == 3:
        made[20:22] = chance.choice((b"\x20\x00", b"\x00\x07", b"\x40\x00"))
    return bytes(made)


def capture(path: Path, count: int, order: str = "<") -> None:
    """Packets of 7 processes on two interfaces, in two sections; the second interface is described late."""
    chance = random.Random(count)
    with path.open("wb") as file:
        for part in range(2):
            names = [options((2, f"eth{number}".encode()), (9, b"\x09"), order=order) for number in range(2)]
            file.write(section(order) + interface(order, opts=names[0]))
            for number in range(count):
                if number == count // 2:
                    file.write(interface(order, opts=names[1]))
                direction, tgid = chance.choice((1, 2)), chance.randrange(100, 107)
                made = frame(chance, direction)
                opts = process(tgid, f"p{tgid}", direction) if order == "<" else b""
                time_ns = TIME_NS + (part * count + number) * 10**6 + chance.randrange(10**7)
                on = chance.randrange(2) if number >= count // 2 else 0
                file.write(packet(made, opts, order, number=on, time=time_ns, wire_len=len(made) + 3))


def sums(found: list[Row]) -> dict[object, list[int]]:
    """Packets and bytes, sent and received, by process."""
    result: dict[object, list[int]] = collections.defaultdict(lambda: [0] * 6)
    for row in found:
        counts = row.packets_out, row.bytes_out, row.packets_in, row.bytes_in, row.packets_unknown, row.bytes_unknown
        for at, value in enumerate(counts):
            result[row.process_pid][at] += value
    return dict(result)


def sums_of_top(path: Path) -> dict[object, list[int]]:
    """The same, as `top` adds them up."""
    account = Account()
    account.read(Sources([path], Selection(Selectors()), counted=account.counted).unordered())
    return {
        each.tgid: [*each.by_direction[DIRECTION_OUT], *each.by_direction[DIRECTION_IN], *each.by_direction[0]]
        for each in account.processes
    }


def read_back(path: Path, row: Row) -> list[tuple[int, int]]:
    """Number of the interface and captured length of each packet between both ends of a row, and whether the
    description is where the row says: read from the stored file, without the package under test.
    """
    described = stored_files.unpacked(path, row.interface_offset, row.interface_length)[row.interface_at :]
    order = {b"\1\0\0\0": "<", b"\0\0\0\1": ">"}[described[:4]]
    assert row.interface.encode() in described[:100]
    data, at, found = stored_files.unpacked(path, row.offset, row.length), row.first_at, []
    while at <= row.last_at:
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind == 6:
            number, _, _, _, wire_len = struct.unpack_from(order + "5I", data, at + 8)
            found.append((number, wire_len))
        at += size
    return found


@pytest.mark.parametrize("kind", [">", *stored_files.KINDS])
def test_sums_are_those_of_top(tmp_path: Path, kind: str) -> None:
    """Packets and bytes of each process and direction are those of `top`, for every kind of frame, and however the file
    is stored; the rows are the same, but for offsets in the file.
    """
    plain = tmp_path / "a.pcapng"
    capture(plain, 1501, ">" if kind == ">" else "<")
    path = plain if kind == ">" else stored_files.store(plain, kind)
    found = list(index(path))
    assert sums(found) == sums_of_top(path) == sums_of_top(plain)
    if kind not in {"gzip", "zstd"}:
        assert len({row.offset for row in found}) > 3
        places = Row._fields.index("file")
        assert [row[:places] for row in found] == [row[:places] for row in index(plain)]


@pytest.mark.parametrize("tool", stored_files.KINDS)
def test_a_row_leads_to_its_packets(tmp_path: Path, tool: str) -> None:
    """From the first to the last block of a row are its packets, also in a compressed file; the range begins and ends
    with a packet of its interface.
    """
    path = tmp_path / "a.pcapng"
    capture(path, 601)
    path = stored_files.store(path, tool)
    found = list(index(path))
    for row in found[::7]:
        between = read_back(path, row)
        assert between[0][0] == between[-1][0] == row.interface_id
        mine = row.packets_in + row.packets_out + row.packets_unknown
        assert sum(number == row.interface_id for number, _ in between) >= mine
        if mine == 1:
            assert row.bytes_in + row.bytes_out + row.bytes_unknown == between[0][1]


def test_an_index_file_has_the_rows(tmp_path: Path) -> None:
    """The file has the rows, and is fresh until the capture changes."""
    path = tmp_path / "a.pcapng"
    capture(path, 307)
    assert not index_file.is_fresh(path)
    assert index_file.write(path, "web") is None
    with gzip.open(index_file.path_of(path), "rt") as file:
        assert list(rows.read(file)) == list(index(path, "web"))
    assert index_file.is_fresh(path)
    os.utime(path, (1, 1))
    assert not index_file.is_fresh(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.pcapng", "a.pcapng.index.csv.gz"]


def test_a_name_of_a_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The name of a host in an index is that in the paths of `ship`; a capture that is not there is one line."""
    path = tmp_path / "a.pcapng"
    capture(path, 17)
    assert command(["index", "--host", 'wéb\n"1"/..', str(path), str(tmp_path / "nothing")]) == 1
    assert "nothing: No such file or directory; expected a capture file" in capsys.readouterr().err
    with gzip.open(index_file.path_of(path), "rt") as file:
        (host,) = {row.host_name for row in rows.read(file)}
    assert host == escaped_host('wéb\n"1"/..')
    assert re.fullmatch(r"[!-~]+", host)


def test_a_torn_file_keeps_its_rows(tmp_path: Path) -> None:
    """A file that ends anywhere has an index of all its complete packets, and one error with the offset."""
    path = tmp_path / "a.pcapng"
    capture(path, 101)
    whole = path.read_bytes()
    for size in (*range(0, 400, 7), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with gzip.open(index_file.path_of(path), "wt") as file:
            file.write("stale")
        found: list[Row] = []
        with contextlib.suppress(FileError):  # there is no packet before the error
            error = index_file.write(path)
            assert error is None or "at byte" in str(error)
            with gzip.open(index_file.path_of(path), "rt") as file:
                found = list(rows.read(file))
        assert sums(found) == sums_of_top(path)


def test_hostile_frames_hide_no_other_packets(tmp_path: Path) -> None:
    """Frames with wrong lengths before those of a flow do not take the flow's addresses away."""
    good = udp("10.0.0.1", "192.0.2.1", size=100)
    bad = bytearray(good)
    bad[16:18] = b"\x00\x05"  # total length
    path = tmp_path / "a.pcapng"
    opts = process(7, "ping")
    start = section() + interface(opts=NANOSECONDS)
    path.write_bytes(start + packet(bytes(bad), opts) * 3 + packet(good, opts) * 5)
    found = {row.peer_address: row.packets_out for row in index(path)}
    assert found == {None: 3, "192.0.2.1": 5}


def test_usual_frames_are_found_as_others() -> None:
    """Both ends of a frame with the usual headers are those that are read header by header, whatever bytes it has."""
    chance, count = random.Random(11), 0
    for number in range(4000):
        made = bytearray(frame(chance, chance.choice((1, 2)))) + bytes(60)
        for at in chance.sample(range(60), chance.choice((0, 1, 1, 4))):
            made[at] = chance.choice((0, 6, 17, 0x45, chance.randrange(256)))
        view = memoryview(bytes(made))
        usual = usual_ends(view, ETHERNET)
        if usual is None:
            continue
        count += 1
        read = headers.read(view, ETHERNET)
        ends, ports = headers.addresses(view, read), headers.ports(view, read)
        assert ends is not None, number
        assert ports is not None, number
        assert usual == (read.protocol, b"".join(ends) + struct.pack(">HH", *ports)), number
    assert count > 1000


def test_a_pcap_file_is_rejected(tmp_path: Path) -> None:
    """A pcap file has no processes and no interfaces: one line says what to do."""
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([udp("10.0.0.1", "192.0.2.1")]))
    with pytest.raises(FileError, match="expected pcapng"):
        index_file.write(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pcap"]


def test_times_outside_of_the_calendar(tmp_path: Path) -> None:
    """A time after 9999 is written as the last one, and read back."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(section() + interface() + packet(udp("10.0.0.1", "10.0.0.2"), time=(1 << 64) - 1) + block(99, b""))
    assert index_file.write(path) is None
    with gzip.open(index_file.path_of(path), "rt") as file:
        assert [row.ts_last for row in rows.read(file)] == [253402300799_999_999]


def test_commas_and_quotes(tmp_path: Path) -> None:
    """Text with commas and quotes is read back as it is, by Python's own reader of CSV, too."""
    path = tmp_path / 'a,"b.pcapng'
    opts = options((2, b'a,"b",'), (3, b'"'), (9, b"\x09"))
    path.write_bytes(section() + interface(opts=opts) + packet(udp("10.0.0.1", "10.0.0.2"), process(7, "p,q")))
    assert index_file.write(path, 'h"') is None
    with gzip.open(index_file.path_of(path), "rt") as file:
        (found,) = csv.DictReader(file)
    names = "interface", "netns", "process_name", "host_name", "file"
    assert [found[name] for name in names] == ['a,"b",', '"', "p,q", 'h"', 'a,"b.pcapng']
    (row,) = index(path, 'h"')
    assert [getattr(row, name) for name in names] == [found[name] for name in names]


def test_names_of_peers(tmp_path: Path) -> None:
    """A peer has the names of DNS answers and TLS clients in the file, also of those after its first packet."""
    local, peer = "10.0.0.1", "192.0.2.7"
    answer = DNS(id=1, qr=1, rd=1, qd=DNSQR(qname="a.example."), an=DNSRR(rrname="a.example.", rdata=peer))
    name = b"b.example"
    extension = struct.pack(">HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack(">H", len(extension)) + extension
    hello = b"\x16\3\1" + struct.pack(">H", len(body) + 4) + b"\1\0" + struct.pack(">H", len(body)) + body
    ethernet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    tcp = ethernet / IP(src=local, dst=peer) / TCP(sport=40000, dport=443)
    dns = ethernet / IP(src="10.0.0.53", dst=local) / UDP(sport=53, dport=40001) / answer
    out, received = process(7, "curl"), process(7, "curl", 1)
    frames = [(bytes(tcp), out), (bytes(dns), received), (bytes(tcp / Raw(hello)), out)]
    path = tmp_path / "a.pcapng"
    path.write_bytes(section() + interface() + b"".join(packet(made, opts) for made, opts in frames))
    assert {row.peer_address: row.peer_name for row in index(path)} == {peer: "a.example b.example", "10.0.0.53": None}


def test_a_file_that_changes_gets_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows while it is read has no index, and nothing of one is left."""
    path = tmp_path / "a.pcapng"
    capture(path, 101)

    def growing(found: Path, host: str) -> Iterator[str]:
        yield from texts(found, host)
        with found.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(index_file, "texts", growing)
    with pytest.raises(FileError, match="changed while it was read"):
        index_file.write(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pcapng"]


def test_memory_does_not_depend_on_names_of_interfaces(tmp_path: Path) -> None:
    """A name and a description as long as pcapng allows are cut; rows of many flows do not repeat them in memory."""
    long = b"\xff" * 65_000
    data = section() + interface(opts=options((2, long), (3, long), (9, b"\x09")))
    data += b"".join(packet(udp("10.0.0.1", f"192.0.2.{number}"), process(7, "ping")) for number in range(1, 152))
    path = tmp_path / "long.pcapng"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with (tmp_path / "index").open("wb") as file:
            assert index_file.write_to(texts(path), file) is None
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 20 << 20
    with gzip.open(tmp_path / "index", "rt") as file:
        found = list(rows.read(file))
    assert len(found) == 151
    assert {row.interface for row in found} == {"\\xff" * 520}
