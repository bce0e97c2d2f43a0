"""The stages together, with a program whose packets the test writes, and an output that records
what it gets.
"""

from __future__ import annotations

import io
import mmap
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skbcapd.attribution.processes import Process, Processes, User
from skbcapd.capture.interfaces import INTERFACES_MAX, REMEMBERED
from skbcapd.capture.resolver import QUESTIONS
from skbcapd.capture.rules import Rules
from skbcapd.capture.totals import Numbers, Totals
from skbcapd.config.parser import default_settings
from skbcapd.errors import KernelError
from skbcapd.kernel import abi
from skbcapd.kernel.marker import Marker
from skbcapd.kernel.segments import LOCAL_PER_RANGE, Packet
from skbcapd.output.interface import Snapshot
from skbcapd.output.pcapng_output import PcapngOutput
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT, PACKET, walk
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface
from tests.support.frames import NTP_FRAME
from tests.support.proc import TICK, Proc
from tests.support.rig import FakeProgram, Recording, Rig
from tests.support.writer import block, cut, packet, upcall

HERE = Path("/proc/self/ns/net").stat().st_ino
ELSEWHERE = HERE + 1


def accounted(totals: Totals) -> int:
    """All totals."""
    left_out = totals.filtered + totals.other_interfaces + totals.unattributed + totals.duplicates + totals.self_test
    return totals.written + left_out + totals.kernel.lost + totals.dropped


def unpacked(label: bytes) -> dict[str, Any]:
    """The fields of a struct label by name, with its options cut to their length."""
    found = abi.LABEL.unpack(label)._asdict()
    return found | {"options": found["options"][: found["options_len"]]}


def valid_labels(rig: Rig[Any]) -> list[dict[str, Any]]:
    """The labels that the program still uses."""
    labels = [unpacked(label) for label in rig.program.labels.values()]
    return [label for label in labels if label["generation"] == rig.program.control[abi.GENERATION]]


# Labels


def test_the_first_packet_installs_the_label_of_the_next() -> None:
    """A packet without a label is written, and its key gets a label with its interface, counters,
    snaplen and options.
    """
    rig = Rig(snaplen=96)
    rig.drain(upcall(NTP_FRAME))

    [stamp] = rig.output.stamps
    [(key, label)] = rig.program.labels.items()
    assert key == abi.KEY.pack(1, 2, 2, 1058, 1059, 59_000_000_000, 0, 0)
    assert unpacked(label) == {
        "comm": b"chronyd".ljust(16, b"\0"),
        "device": b"eth0".ljust(16, b"\0"),
        "process": b"chronyd".ljust(16, b"\0"),
        "interface_id": 7,
        "slot": 1,
        "snaplen": 96,
        "filter": 0,
        "generation": 0,
        "options_len": len(stamp.options),
        "flags_at": stamp.flags_at,
        "headers_only": 0,
        "options": stamp.options,
    }
    assert rig.program.control[abi.SNAPLEN] == 96


@pytest.mark.parametrize(
    ("via", "tgid", "text"),
    [
        (0, 1058, b"comm=chronyd pid=1059 tgid=1058"),
        (1, 1058, b"comm=chronyd pid=1059 tgid=1058 via=socket"),
        (2, 1058, b"comm=chronyd pid=1059 tgid=1058 via=flow"),
        (3, 1058, b"comm=chronyd pid=1059 tgid=1058 via=inode"),
        (4, 1058, b"comm=chronyd pid=1059 tgid=1058 via=path"),
        (5, 0, b"via=kernel"),
        (6, 0, b"via=forwarded"),
        (7, 0, b"via=unknown"),
    ],
)
def test_the_options_of_a_packet(via: int, tgid: int, text: bytes) -> None:
    """A packet names its process in comment and option 8, and says how it was found, or why there
    is none.
    """
    rig = Rig()
    rig.drain(upcall(NTP_FRAME, via=via, tgid=tgid, tid=tgid and 1059, comm=b"chronyd" if tgid else b""))
    [stamp] = rig.output.stamps
    process = struct.pack("<HHII", 8, 8, 1058, 1059) if tgid else b""
    comment = struct.pack("<HH", 1, len(text)) + text + bytes(-len(text) % 4)
    flags = struct.pack("<HHI", 2, 4, 0)
    assert stamp.options == comment + flags + process + bytes(4)
    assert stamp.options[stamp.flags_at - 4 :].startswith(flags)


@pytest.mark.parametrize("frame", [b"", b"\x01", NTP_FRAME])
@pytest.mark.parametrize("flags", [1 | 3 << 2, 2 | 1 << 9 | 1 << 11])
def test_kernel_and_python_write_the_same_block(frame: bytes, flags: int) -> None:
    """Python writes the same block as the kernel program with the label."""
    sink = io.BytesIO()
    rig = Rig(PcapngOutput(sink))
    rig.drain(upcall(frame, time_ns=1_622_469_600_123_456_789, flags=flags, original_len=1500))

    label = unpacked(*rig.program.labels.values())
    options = bytearray(label["options"])
    options[label["flags_at"]] |= flags & 0xFF
    options[label["flags_at"] + 1] |= flags >> 8
    stamped = block(6, label["interface_id"], frame, bytes(options), 1_622_469_600_123_456_789, 1500)
    blocks = [sink.getvalue()[at : at + size] for at, _, size in walk(memoryview(sink.getvalue()))]
    assert blocks[-1] == stamped
    assert [kind for _, kind, _ in walk(memoryview(sink.getvalue()))] == [0x0A0D0D0A, 1, 6]


def test_no_labels_for_an_output_without_labels() -> None:
    """With `encode: scapy` and with text, no label is installed: all packets pass through Python."""
    rig = Rig(Recording(labels=False))
    rig.drain(upcall(NTP_FRAME), upcall(NTP_FRAME))
    assert not rig.program.labels
    assert rig.output.frames == [NTP_FRAME] * 2
    assert not PcapngOutput(io.BytesIO(), "scapy").labels


def test_a_cut_packet_is_written_again() -> None:
    """A packet with a label that could not be read to its end gets a shorter block, with the
    options of its label.
    """
    sink = io.BytesIO()
    rig = Rig(PcapngOutput(sink))
    rig.drain(upcall(NTP_FRAME), packet(0, b"one"))
    label = unpacked(*rig.program.labels.values())
    before = len(sink.getvalue())
    stamp = Label(label["options"], label["flags_at"])
    rig.drain(cut(0, NTP_FRAME[:41], 2 | 1 << 9, 90, stamp=stamp), packet(0, b"two"))

    [(_, shorter, size), (_, _, after)] = walk(memoryview(sink.getvalue())[before:])
    options = bytearray(label["options"])
    options[label["flags_at"] : label["flags_at"] + 4] = struct.pack("<I", 2 | 1 << 9)
    assert shorter == 6
    assert sink.getvalue()[before:] == block(6, 0, NTP_FRAME[:41], bytes(options), 7, 90) + packet(0, b"two")
    assert (size, after) == (32 + 44 + len(options), 36)


@pytest.mark.parametrize("kind", ["upcall", "cut"])
def test_packets_on_several_interfaces_have_an_identifier(kind: str) -> None:
    """Each packet of a linked key has its own epb_packetid, after the flags; the label belongs to
    the key.
    """
    sink = io.BytesIO()
    rig = Rig(PcapngOutput(sink))
    rig.drain(upcall(b"1", linked=1, packet_id=7))
    if kind == "upcall":
        rig.drain(upcall(b"2", linked=1, packet_id=1 << 63 | 9))
    else:
        label = unpacked(*rig.program.labels.values())
        stamp = Label(label["options"], label["flags_at"], linked=True)
        rig.drain(cut(0, b"2", 2, 1, stamp=stamp, packet_id=1 << 63 | 9))

    found = [body[-24:-16] for body in packet_bodies(sink.getvalue())]
    assert found == [struct.pack("<Q", 7), struct.pack("<Q", 1 << 63 | 9)]


def packet_bodies(data: bytes) -> list[bytes]:
    """The blocks of packets, up to their end option."""
    view = memoryview(data)
    return [bytes(view[at : at + size - 4]) for at, kind, size in walk(view) if kind == PACKET]


def test_checksums_are_completed() -> None:
    """A checksum that the program requests is computed, with and without a label, and no longer
    marked.
    """
    frame = bytes(34) + bytes(6) + b"\x12\x34"
    rig = Rig()
    rig.drain(upcall(frame, flags=2 | 1 << 9, checksum=34 | 4 << 16))
    label = unpacked(*rig.program.labels.values())
    stamp = Label(label["options"], label["flags_at"])
    rig.drain(cut(7, frame, 2 | 1 << 9, len(frame), stamp=stamp, checksum=34 | 4 << 16))

    assert rig.output.frames == [bytes(38) + b"\xed\xcb\x12\x34"] * 2
    assert rig.output.flags == [2, 2]


def test_a_question_is_answered_without_a_label() -> None:
    """A packet whose process was looked up names it, and gets no label: the next packet has another
    key.
    """
    rig = Rig(find_holders={4711: (User(1058, 1058, 0, b"chronyd"),)}.get)
    asked: dict[str, Any] = {"via": abi.VIA_UNRESOLVED, "tgid": 0, "tid": 0, "comm": b"", "sk": 1, "inode": 4711}
    rig.drain(upcall(NTP_FRAME, time_ns=time.time_ns(), **asked))

    assert b"comm=chronyd pid=1058 tgid=1058 via=inode" in rig.output.stamps[0].options
    assert rig.program.labels == {}
    assert rig.program.holders.keys() == {4711}
    assert rig.program.control[abi.QUESTIONS] == QUESTIONS


@pytest.mark.parametrize(
    ("users", "said", "ids"),
    [
        ([(80, b"nginx"), (81, b"nginx")], b"comm=nginx via=group", b""),
        ([(80, b"nginx"), (81, b"other")], b"via=group", b""),
        ([(80, b"nginx")], b"comm=nginx tgid=80 via=group", struct.pack("<HHII", 8, 8, 80, 0)),
    ],
)
def test_common_values_of_a_group_are_written(users: list[tuple[int, bytes]], said: bytes, ids: bytes) -> None:
    """A packet with several candidates has their common fields, and so has the label for the next
    ones.
    """
    members = tuple(User(tgid, tgid, 0, comm, comm) for tgid, comm in users)
    rig = Rig(find_holders=lambda *_: members)
    rig.program.groups[1 << 63] = [(1, 101), (2, 103)]
    asked: dict[str, Any] = {"via": abi.VIA_UNRESOLVED, "tgid": 0, "tid": 0, "comm": b"", "sk": 0, "inode": 1 << 63}
    rig.drain(upcall(NTP_FRAME, time_ns=time.time_ns(), **asked))
    common = abi.USER.unpack(rig.program.holders[1 << 63])
    known: dict[str, Any] = {"via": abi.VIA_GROUP, "tgid": common.tgid, "tid": common.tid, "start": common.start}
    rig.drain(upcall(NTP_FRAME, comm=common.comm.rstrip(b"\0"), **known))

    label = unpacked(*rig.program.labels.values())
    for options in (rig.output.stamps[0].options, rig.output.stamps[1].options, label["options"]):
        assert said in options
        assert ids in options
        assert (b"comm=" in options, b" pid=" in options) == (b"comm=" in said, False)
        assert bool(ids) == (struct.pack("<HH", 8, 8) in options)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """A /proc with chronyd, whose thread 1059 started a second later."""
    made = Proc(tmp_path)
    made.add(1058)
    made.thread(1058, 1059, ticks=6000)
    return made


THREAD: dict[str, Any] = {"tgid": 1058, "tid": 1059, "start": 6000 * TICK + 7}


@pytest.mark.parametrize(
    ("comment", "arguments", "text"),
    [
        ("comm pid tgid", {}, b"comm=chronyd pid=1059 tgid=1058"),
        ("tgid user exe", {}, b"tgid=1058 user=_chrony exe=/usr/sbin/chronyd"),
        ("unit comm", {"via": abi.VIA_FLOW}, b"unit=chrony.service comm=chronyd via=flow"),
        ("comm ppid uid", {"start": 7}, b"comm=chronyd"),
        ("container", {}, b""),
        ("cmdline", {"via": abi.VIA_KERNEL, "tgid": 0, "tid": 0}, b"via=kernel"),
        ("cmdline cgroup", {}, b'cmdline="/usr/sbin/chronyd -F 1" cgroup=/system.slice/chrony.service'),
        ("none", {}, b""),
        ("none", {"via": abi.VIA_UNKNOWN, "tgid": 0, "tid": 0}, b""),
    ],
)
def test_the_comment_has_the_fields_of_the_setting(
    comment: str, arguments: dict[str, Any], text: bytes, proc: Proc
) -> None:
    """Fields are in the order of the setting; unknown and uncertain values are left out."""
    processes = Processes(cmdline=True, proc=proc.path, users=proc.users)
    rig = Rig(comment=comment.split(), processes=processes)
    rig.drain(upcall(NTP_FRAME, **{**THREAD, **arguments}))

    options = rig.output.stamps[0].options
    if text:
        assert options[:4] == struct.pack("<HH", 1, len(text))
        assert options[4 : 4 + len(text)] == text
    else:
        assert options[:4] == struct.pack("<HH", 2, 4)  # flags come first


def test_values_of_the_kernel_program_need_no_proc() -> None:
    """With comm, pid and tgid, or without a comment, /proc is not read."""
    for comment in (["tgid", "comm", "pid"], ["none"]):
        rig = Rig(comment=comment, processes=None)
        rig.drain(upcall(NTP_FRAME))
        assert len(rig.output.stamps) == 1


def test_a_process_is_described_in_front_of_its_packet(proc: Proc) -> None:
    """Each process is described before its packet; one that has ended by the packet's data; no
    process by nothing.
    """
    rig = Rig(process_blocks=True, processes=Processes(proc=proc.path, users=proc.users))
    rig.drain(upcall(b"1", tgid=0, tid=0, via=abi.VIA_UNKNOWN), upcall(b"2", **THREAD), upcall(b"3", tgid=7, tid=7))

    exe = b"/usr/sbin/chronyd"
    assert rig.output.processes == [
        (1, Process(1058, 5900 * TICK, b"chronyd", 1, 101, b"_chrony", exe, b"", b"")),
        (2, Process(7, 5900 * TICK, b"chronyd", None, None, b"", b"", b"", b"")),
    ]


def test_a_process_block_is_written_once_for_each_section() -> None:
    """A process block is written once per section; a new section repeats the last 4096."""
    stream = io.BytesIO()
    output = PcapngOutput(stream)
    before = len(stream.getvalue())
    described = [Process(tgid, TICK, b"x", 1, 0, b"", b"", b"", b"") for tgid in range(1, 4100)]
    for _ in range(2):
        for process in described[-4096:]:
            output.add_process(process)
    once = len(stream.getvalue()) - before
    next_file = PcapngOutput(stream)
    after = len(stream.getvalue()) - before - once
    for process in output.processes:
        next_file.add_process(process)

    blocks = memoryview(stream.getvalue()[before : before + once] + stream.getvalue()[before + once + after :])
    tgids = [int.from_bytes(blocks[at + 20 : at + 24], "little") for at, _, _ in walk(blocks)]
    assert tgids == [*range(4, 4100)] * 2


def test_a_label_has_the_bytes_of_names_in_the_kernel() -> None:
    """The bytes after the NUL of a name are part of the label, because the kernel compares them,
    but not of the name.
    """
    rig = Rig()
    rig.drain(upcall(NTP_FRAME, comm=b"chronyd\0ld name", process=b"lead\0er", device=b"eth0\0nas7"))
    label = unpacked(*rig.program.labels.values())
    assert (label["comm"], label["device"]) == (b"chronyd\0ld name\0", b"eth0\0nas7".ljust(16, b"\0"))
    assert label["process"] == b"lead\0er".ljust(16, b"\0")
    assert b"comm=chronyd pid=1059 tgid=1058 process=lead" in rig.output.stamps[0].options
    assert rig.output.interfaces[0].name == b"eth0"


def test_a_packet_seen_during_the_self_test_is_cut() -> None:
    """A frame that was captured completely because of the self-test is cut to the snaplen."""
    rig = Rig(snaplen=64)
    rig.drain(upcall(bytes(range(99))))
    assert rig.output.frames == [bytes(range(64))]
    assert rig.program.control[abi.SNAPLEN] == 64


# Devices


def test_an_interface_is_described_once() -> None:
    """However many processes send through an interface, it has one interface block and one row of
    counters.
    """
    rig = Rig(snaplen=1000)
    rig.drain(upcall(b"1", netns=HERE), upcall(b"2", netns=HERE, tgid=7), packet(7, b"3"), upcall(b"4", direction=1))

    assert rig.output.interfaces == [
        Interface(
            b"eth0",
            f"network namespace {HERE}",
            1,
            1000,
            bytes.fromhex("3c7c3f2023bd"),
            rig.output.interfaces[0].speed_bps,
            None,
        )
    ]
    assert rig.program.devices == {
        abi.DEVICE_KEY.pack(1, 2, way): abi.DEVICE.pack(b"eth0", 1, 0, 7, 0) for way in (DIRECTION_IN, DIRECTION_OUT)
    }
    assert rig.output.written == [(7, b"1"), (7, b"2"), (-1, b"3"), (7, b"4")]


@pytest.mark.parametrize(
    ("other", "name", "description"),
    [
        ({"device": b"eth1"}, b"eth1", f"network namespace {ELSEWHERE}"),
        ({"ifindex": 3}, b"eth0", f"network namespace {ELSEWHERE}"),
        ({"net": 2, "netns": HERE}, b"eth0", f"network namespace {HERE}"),
    ],
)
def test_another_interface(other: dict[str, Any], name: bytes, description: str) -> None:
    """A renamed interface, another one, and one of another namespace each have their own interface
    and counters.
    """
    rig = Rig()
    rig.drain(upcall(b"1", netns=ELSEWHERE), upcall(b"2", **({"netns": ELSEWHERE} | other)), slot=1)

    assert [(one.name, one.description) for one in rig.output.interfaces] == [
        (b"eth0", f"network namespace {ELSEWHERE}"),
        (name, description),
    ]
    assert rig.output.written == [(7, b"1"), (8, b"2")]
    assert max(unpacked(label)["slot"] for label in rig.program.labels.values()) == 2
    assert [abi.DEVICE.unpack(row)[1] for row in rig.program.devices.values()][-1] == 2


@pytest.mark.parametrize(
    ("changes", "link_type", "mac"),
    [
        ({}, 1, bytes.fromhex("3c7c3f2023bd")),
        ({"device_type": 772, "mac": bytes(6)}, 1, None),
        ({"device_type": 65534, "mac": b""}, 101, None),
        ({"device_type": 768, "mac": bytes([10, 0, 0, 1])}, 101, None),
        ({"device_type": 823, "mac": bytes(range(8))}, 101, None),
        ({"device_type": 803}, 127, bytes.fromhex("3c7c3f2023bd")),
    ],
)
def test_link_type_and_address(changes: dict[str, Any], link_type: int, mac: bytes | None) -> None:
    """An interface without a link layer is RAW; only six bytes that are not all zero are a hardware
    address.
    """
    rig = Rig()
    rig.drain(upcall(NTP_FRAME, **changes))
    [interface] = rig.output.interfaces
    assert (interface.link_type, interface.mac) == (link_type, mac)


def test_the_link_types_of_a_file() -> None:
    """Link types of interfaces in the file are known, each once; others do not count."""
    rig = Rig()
    types = [(b"eth0", 2, 1), (b"eth1", 3, 1), (b"tun0", 4, 65534), (b"can0", 5, 280)]
    rig.drain(*[upcall(NTP_FRAME, device=name, ifindex=ifindex, device_type=kind) for name, ifindex, kind in types])
    assert rig.capture.interfaces.link_types == [1, 101]


def test_an_interface_of_unknown_type_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """Frames of an unknown interface type are not written; one warning is logged, and the packets
    count as those of other interfaces.
    """
    rig = Rig()
    rig.drain(*[upcall(NTP_FRAME, device=b"can0", device_type=280)] * 3, slot=1)

    assert caplog.messages == ["interface can0 has an unknown type (280) and is not captured"]
    assert rig.output.frames == []
    assert not rig.output.interfaces
    assert not rig.program.labels
    [row] = set(rig.program.devices.values())
    assert abi.DEVICE.unpack(row) == abi.Device(b"can0".ljust(16, b"\0"), 1, 1, 0, 0xFFFFFFFF)
    assert rig.capture.totals().other_interfaces == 3


@pytest.mark.parametrize(
    ("interfaces", "frames"),
    [
        (("any",), [b"1", b"2", b"3"]),
        (("eth0",), [b"1"]),
        (("eth1",), [b"2"]),
        (("eth0", "eth1"), [b"1", b"2"]),
        (("eth0", "any"), [b"1", b"2", b"3"]),
        (("eth2",), []),
    ],
)
def test_only_selected_interfaces_are_captured(interfaces: tuple[str, ...], frames: list[bytes]) -> None:
    """Names select interfaces of this network namespace; packets of others are counted, and the
    program knows it.
    """
    rig = Rig(interfaces=interfaces)
    rig.drain(
        upcall(b"1", netns=HERE),
        upcall(b"2", netns=HERE, device=b"eth1", ifindex=3),
        upcall(b"3", netns=ELSEWHERE, net=2),
    )
    assert rig.output.frames == frames
    assert bool(rig.program.control[abi.DEVICE_FILTER]) == ("any" not in interfaces)
    assert rig.capture.totals().other_interfaces == 3 - len(frames)
    assert rig.capture.totals().filtered == 0
    assert sum(abi.DEVICE.unpack(row)[2] for row in set(rig.program.devices.values())) == 3 - len(frames)


# Ends and totals


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_a_limit_applies_within_a_range(limit: int) -> None:
    """With a limit, exactly so many packets are written, also if it is reached between blocks of
    one range.
    """
    rig = Rig(limit=limit)
    kinds = ["upcall", "packet", "packet", "cut", "packet", "packet", "upcall", "packet", "cut"]
    for number, kind in enumerate(kinds):
        frame = bytes([number])
        made = {"upcall": upcall(frame), "packet": packet(7, frame), "cut": cut(0, frame, 0, 2)}
        rig.program.put(made[kind])
    assert not rig.capture.is_full
    rig.capture.drain()
    assert rig.capture.is_full
    rig.drain(packet(7, b"later"))

    assert rig.output.frames == [bytes([number]) for number in range(limit)]
    assert rig.capture.totals().written == limit


def test_filtered_packets_do_not_count_for_a_limit() -> None:
    """A limit counts written packets only."""
    rig = Rig(limit=1, interfaces=("eth0",))
    rig.drain(upcall(b"1", netns=ELSEWHERE, net=2), upcall(b"2", netns=HERE))
    assert rig.output.frames == [b"2"]


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["upcall", "elsewhere", "odd", "packet", "filtered", "full", "contended", "start"])),
    st.integers(0, 40),
    st.booleans(),
)
def test_every_packet_is_counted_once(kinds: list[str], drained: int, broken: bool) -> None:  # noqa: FBT001
    """When a capture has ended, seen = written + filtered + dropped, for all outcomes of packets
    and outputs.
    """
    rig = Rig(interfaces=("eth0",))
    rig.drain(upcall(b"first", netns=HERE, tgid=0))
    for number, kind in enumerate(kinds, 1):
        frame = struct.pack("<I", number)
        if kind == "packet":
            rig.program.put(packet(7, frame), slot=1)
        elif kind == "upcall":
            rig.program.put(upcall(frame, netns=HERE, tgid=number))
        elif kind == "elsewhere":
            rig.program.put(upcall(frame, netns=ELSEWHERE, net=2, ifindex=number))
        elif kind == "odd":
            rig.program.put(upcall(frame, netns=HERE, ifindex=3, device_type=280))
        else:
            rig.program.count(1, **{kind: 1})
        if number == drained:
            rig.capture.drain()
    rig.capture.stop(broken=broken)
    totals = rig.capture.totals()

    assert accounted(totals) == totals.kernel.seen == 1 + len(kinds)
    assert totals.written == len(rig.output.frames)
    assert totals.missed == 3
    assert totals.processes == sum(interface == 7 for interface, _ in rig.output.written) - 1


def test_packets_during_the_detach_are_written() -> None:
    """A packet of a program that still ran on another processor during the detach is written."""
    rig = Rig()
    rig.program.on_detach = [upcall(NTP_FRAME)]
    rig.capture.stop()
    assert rig.output.frames == [NTP_FRAME]
    assert accounted(rig.capture.totals()) == 1


class Failing(Recording):
    """An output whose reader ends at its third packet."""

    def write_packet(self, found: Packet, interface_id: int, stamp: Label, _snapshot: Snapshot) -> None:
        """Take a packet."""
        if len(self.written) == 2:
            raise BrokenPipeError
        super().write_packet(found, interface_id, stamp, _snapshot)


def test_a_broken_output_drops_complete_ranges() -> None:
    """Packets that an output cannot write are counted as dropped, with the rest of their range,
    each once.
    """
    rig = Rig(Failing())
    rig.drain(upcall(b"1"))
    rig.program.put(upcall(b"2"), upcall(b"3"), packet(7, b"4"))
    with pytest.raises(BrokenPipeError):
        rig.capture.drain()
    rig.program.put(packet(7, b"5"))
    rig.capture.stop(broken=True)

    totals = rig.capture.totals()
    assert (totals.written, totals.dropped) == (1, 4)
    assert accounted(totals) == totals.kernel.seen == 5


# The start


def test_the_order_of_a_start() -> None:
    """The results of the measurement are in the control page before the first packet is seen."""
    rig = Rig()
    rig.capture.start()
    rig.capture.stop()
    assert rig.program.calls == ["measure", "attach", "detach"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, ["paged frames cannot be read"]),
        ({"process_context": False}, ["cannot tell system calls from softirqs", "paged frames cannot be read"]),
    ],
)
def test_limitations_of_the_kernel_are_logged(
    arguments: dict[str, bool], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The start logs one line for each limitation of this kernel, and captures."""
    rig = Rig()
    vars(rig.program).update(arguments)
    rig.capture.start()
    assert [any(line.startswith(start) for line in caplog.messages) for start in said] == [True] * len(said)
    assert len(caplog.messages) == len(said)


def test_a_program_that_cannot_measure(caplog: pytest.LogCaptureFixture) -> None:
    """A failed measurement is logged, and the capture starts without it."""
    rig = Rig()

    def measure(_marker: Marker) -> None:
        raise KernelError("no page", "none")

    rig.program.measure = measure  # type: ignore[method-assign]
    rig.capture.start()
    assert caplog.messages[0].startswith("cannot measure where the kernel maps its pages: no page")
    assert rig.program.calls == ["attach"]


@pytest.mark.parametrize("whole", [True, False])
def test_the_marker_is_checked_and_not_written(*, whole: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The marker's frame proves that pages can be read, and is not written; an incomplete frame
    proves nothing.
    """
    rig = Rig()
    rig.program.paged = True
    others = 1 << 62

    def measure(marker: Marker) -> None:
        FakeProgram.measure(rig.program, marker)
        frame = bytes(42) + (marker.bytes if whole else marker.bytes[:-1])
        same_bytes = upcall(b"other" + marker.bytes, net=others)
        rig.program.on_attach = [same_bytes, upcall(frame, net=marker.net), upcall(b"ACK", net=marker.net)]

    rig.program.measure = measure  # type: ignore[method-assign,assignment]
    rig.capture.start()
    rig.drain(upcall(NTP_FRAME, net=others))
    rig.capture.stop()

    # If its own namespace is not allowed, the connection of the marker is captured like any other.
    expected = 2 if rig.capture._self_test.private_net else 3 if whole else 4
    assert bool(rig.program.control[abi.PAGE_BASE]) == whole
    assert rig.output.frames[0].startswith(b"other")
    assert rig.output.frames[-1] == NTP_FRAME
    assert [line[:12] for line in caplog.messages] == ([] if whole else ["paged frames"])
    totals = rig.capture.totals()
    assert len(rig.output.frames) == totals.written == expected
    assert accounted(totals) == totals.kernel.seen == 4


# A turn of the loop


def test_a_busy_output_is_given_nothing() -> None:
    """While the output is busy, packets stay in the segments; none is dropped or written twice."""
    rig = Rig()
    rig.drain(upcall(b"1"), packet(7, b"2"))
    rig.output.is_busy = True
    for frame in (b"3", b"4"):
        rig.drain(packet(7, frame))
    assert rig.output.frames == [b"1", b"2"]
    assert not rig.capture.has_more
    assert not rig.capture.is_complete
    rig.output.is_busy = False
    rig.capture.drain()
    assert rig.output.frames == [b"1", b"2", b"3", b"4"]
    assert rig.capture.is_complete
    assert accounted(rig.capture.totals()) == 4


def test_a_drain_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain whose time is over ends after a range and reports it; the next one continues with the
    next packet.
    """
    rig = Rig(Recording(labels=False))
    count = 3 * LOCAL_PER_RANGE + 7
    rig.program.put(*(upcall(struct.pack("<I", number), tid=number + 1) for number in range(count)))
    monkeypatch.setattr("skbcapd.capture.capture.TURN_S", 0.0)
    drained, cut_short = [], []
    for _ in range(5):
        rig.capture.drain()
        drained.append(len(rig.output.frames))
        cut_short.append(rig.capture.has_more)
    assert drained == [LOCAL_PER_RANGE, 2 * LOCAL_PER_RANGE, 3 * LOCAL_PER_RANGE, count, count]
    assert cut_short == [True] * 4 + [False]
    assert rig.output.frames == [struct.pack("<I", number) for number in range(count)]
    assert accounted(rig.capture.totals()) == count


def test_packets_left_at_the_end_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture ends in time even if its output stays busy: the rest is dropped, and each packet
    counted once.
    """
    monkeypatch.setattr("skbcapd.capture.capture.FINAL_DRAIN_S", 0.05)
    rig = Rig()
    rig.drain(upcall(b"1"), packet(7, b"2"))
    rig.output.is_busy = True
    rig.program.on_detach = [packet(7, b"3"), upcall(b"4", tid=7), packet(7, b"5")]
    rig.capture.stop()
    totals = rig.capture.totals()
    assert (totals.written, totals.dropped) == (2, 3)
    assert accounted(totals) == totals.kernel.seen == 5


def test_only_completed_packets_count_as_written() -> None:
    """A packet counts as written when the output has written it to the disk, not when the output
    gets it.
    """
    rig = Rig()
    rig.drain(upcall(b"1"), packet(7, b"2"))
    rig.output.accepted, rig.output.completed = 2, 1
    assert rig.capture.current_totals().written == 0
    rig.program.put(packet(7, b"3"))
    rig.output.accepted = 3
    assert rig.capture.current_totals().written == 0
    rig.output.completed, rig.output.lost = 2, 1
    assert rig.capture.current_totals().written == 1
    rig.output.completed = 3
    assert rig.capture.current_totals().written == 2


# Sleep


def test_no_packet_is_missed_during_sleep() -> None:
    """The capture does not sleep if a packet has arrived."""
    rig = Rig()
    assert rig.capture.request_wakeup(abi.Sleep.UNTIL_PACKET)
    assert rig.program.control[abi.SLEEPING] == 1
    assert not rig.capture.cancel_wakeup()
    assert rig.program.control[abi.SLEEPING] == 0
    rig.program.put(upcall(NTP_FRAME))
    assert not rig.capture.request_wakeup(abi.Sleep.UNTIL_PACKET)
    assert rig.program.control[abi.SLEEPING] == 0


def test_a_late_disk_gets_what_is_buffered() -> None:
    """What the output buffered as its disk was late is passed on without a packet, until all is written."""
    rig = Rig()
    rig.drain(upcall(NTP_FRAME))
    rig.output.accepted, rig.output.completed = 2, 1
    flushes = rig.output.flushes
    for _ in range(3):
        rig.drain()
    assert rig.output.flushes == flushes + 3
    rig.output.completed = 2
    for _ in range(3):
        rig.drain()
    assert rig.output.flushes == flushes + 4


@pytest.mark.parametrize("fills", [False, True])
def test_a_file_sleeps_over_packets_with_a_label_only(*, fills: bool) -> None:
    """Until a packet needs Python the capture may sleep; not if one came meanwhile, in this segment or the next."""
    rig = Rig()
    rig.drain(upcall(NTP_FRAME))
    rig.program.put(packet(7, NTP_FRAME))
    assert rig.capture.request_wakeup(abi.Sleep.UNTIL_UPCALL)
    rig.program.control[abi.SLEEPING] = 0  # as the program does
    assert rig.capture.cancel_wakeup()
    rig.program.put(*([packet(7, bytes(60_000))] * 40 if fills else []), upcall(NTP_FRAME))
    assert not rig.capture.request_wakeup(abi.Sleep.UNTIL_UPCALL)


# Rules


def ruled(text: str, output: Recording | None = None, **arguments: Any) -> Rig[Recording]:
    """A capture with rules as in --set."""
    return Rig(output, rules=Rules(default_settings({"rules": text, "files.mode": "ring"}).rules), **arguments)


@pytest.mark.parametrize("labels", [True, False])
def test_a_dropped_packet_is_counted_and_labelled(*, labels: bool) -> None:
    """A rule with `drop` writes nothing; its label makes the program drop the next packets, also
    with text output.
    """
    rig = ruled("[{comm: chronyd, action: drop}]", Recording(labels=labels))
    rig.drain(upcall(NTP_FRAME), upcall(NTP_FRAME, comm=b"other", tid=1060))

    assert rig.output.frames == [NTP_FRAME]
    assert [unpacked(label)["snaplen"] for label in rig.program.labels.values()] == [0, abi.CAPTURE_MAX][: 1 + labels]
    totals = rig.capture.totals()
    assert (totals.written, totals.filtered) == (1, 1)
    assert accounted(totals) == totals.kernel.seen


def test_a_rule_keeps_less_or_more() -> None:
    """The snaplen of a rule applies to the first packet and to the label; the program captures
    enough bytes.
    """
    rig = ruled("[{comm: chronyd, snaplen: 64}, {comm: other, snaplen: 200}]", snaplen=80)
    rig.drain(upcall(NTP_FRAME), upcall(NTP_FRAME, comm=b"other", tid=1060), upcall(NTP_FRAME, comm=b"third", tid=1061))

    assert rig.output.frames == [NTP_FRAME[:64], NTP_FRAME, NTP_FRAME[:80]]
    assert [unpacked(label)["snaplen"] for label in rig.program.labels.values()] == [64, 200, 80]
    assert rig.program.control[abi.SNAPLEN] == 200
    assert rig.output.interfaces[0].snaplen == 200


@pytest.mark.parametrize(
    ("rules", "settings", "kept", "in_kernel"),
    [
        ("", {"payload": "none"}, 42, True),
        ("", {}, 90, False),
        ("[{comm: chronyd, payload: none}]", {}, 42, False),
        ("[{comm: other, payload: none}]", {}, 90, False),
        ("[{comm: chronyd, payload: all}]", {"payload": "none"}, 90, False),
        ("[{comm: other, payload: all}]", {"payload": "none"}, 42, False),
        ("[{comm: chronyd}]", {"payload": "none"}, 42, True),
        ("[{comm: chronyd, filter: udp port 123}]", {"payload": "none"}, 42, False),
        ("[{comm: chronyd, payload: none, action: dump}]", {}, 42, False),
        ("[{comm: chronyd, snaplen: 64}]", {"payload": "none"}, 42, True),
        ("", {"payload": "none", "snaplen": 40}, 40, True),
    ],
)
def test_payload_is_cut_off(rules: str, settings: dict[str, Any], kept: int, *, in_kernel: bool) -> None:
    """The payload of a rule, otherwise the setting, applies to the first packets and to the label.

    The program leaves out payload of packets without a label only if no rule can need it.
    """
    assert len(NTP_FRAME) == 90
    rig = ruled(rules or "[]", **settings)
    rig.drain(upcall(NTP_FRAME), upcall(NTP_FRAME))

    assert rig.output.frames == [NTP_FRAME[:kept]] * 2
    [label] = rig.program.labels.values()
    assert unpacked(label)["headers_only"] == (kept < len(NTP_FRAME))
    assert rig.program.control[abi.HEADERS_ONLY] == in_kernel


def test_nothing_is_kept_of_a_frame_without_known_headers() -> None:
    """If all of a frame can be payload, its packet is written without a byte."""
    rig = ruled("[]", payload="none")
    rig.drain(upcall(NTP_FRAME, payload=0))
    assert rig.output.frames == [b""]


def test_a_rule_asks_for_a_dump_at_each_packet() -> None:
    """Packets of a rule with `dump` are written and request a dump; their label has no options, so
    all come to Python.
    """
    asked: list[tuple[str, int]] = []
    rig = ruled(
        "[{comm: chronyd, filter: udp port 123, action: dump, dump_after: 1m}]",
        ask_for_dump=lambda *words: asked.append(words),
    )
    rig.drain(upcall(NTP_FRAME), upcall(NTP_FRAME), upcall(NTP_FRAME, comm=b"other", tid=1060), upcall(bytes(60)))

    assert rig.output.frames == [NTP_FRAME] * 3
    assert asked == [("rules[1]", 60)] * 2
    stamps = [unpacked(label)["options"] for label in rig.program.labels.values()]
    assert stamps == [b"", *(stamp.options for stamp in rig.output.stamps[2:])]


def test_a_rules_filter_judges_the_first_packet_too() -> None:
    """The program filters by the number in the label; Python filters the packet without a label
    with the same expression.
    """
    rig = ruled("[{comm: chronyd, filter: udp port 123}, {comm: other, filter: tcp}]")
    rig.drain(upcall(NTP_FRAME), upcall(NTP_FRAME, comm=b"other", tid=1060))

    assert rig.output.frames == [NTP_FRAME]
    assert [unpacked(label)["filter"] for label in rig.program.labels.values()] == [1, 2]
    assert rig.program.control[abi.SNAPLEN] == abi.CAPTURE_MAX
    assert rig.program.control[abi.FILTERED] == 0
    assert rig.capture.totals().filtered == 1


def test_statistics_accept_what_filter_and_rules_keep() -> None:
    """Packets that the filter or a rule excludes are received and not accepted; those on other
    interfaces are in no statistics.
    """
    rig = Rig(exclude=("eth1",))
    rig.drain(upcall(NTP_FRAME), upcall(NTP_FRAME, device=b"eth1", ifindex=3))
    rig.program.count(1, delivered=5, filtered=7, unattributed=11, full=13)
    rig.program.count(2, other_interfaces=17)
    [statistics] = rig.capture.statistics()
    assert (statistics.received, statistics.accepted) == (1 + 5 + 7 + 11 + 13, 1 + 5 + 13)
    totals = rig.capture.totals()
    assert accounted(totals) == totals.kernel.seen


def test_packets_without_a_process_are_counted_apart() -> None:
    """If the last rule drops everything else, packets without a process are counted as
    unattributed, in Python and (by the label) in the program; those of other processes as filtered.
    """
    rig = ruled("[{comm: chronyd}, {action: drop}]")
    unknown = upcall(NTP_FRAME, via=7, tgid=0, tid=0, start=0, comm=b"", process=b"")
    rig.drain(upcall(NTP_FRAME), upcall(NTP_FRAME, comm=b"other", tid=1060), unknown, unknown)

    totals = rig.capture.totals()
    assert (totals.written, totals.filtered, totals.unattributed) == (1, 1, 2)
    labels = [unpacked(label) for label in rig.program.labels.values()]
    assert [(bool(label["snaplen"]), label["filter"]) for label in labels] == [(True, 0), (False, 0), (False, 1)]


def test_labels_are_of_their_generation() -> None:
    """After a change of settings no older label is valid, and the program gets all changes at once."""
    rig = Rig(snaplen=96, filter="udp")
    rig.drain(upcall(NTP_FRAME))
    assert rig.program.control[abi.FILTERED] == 1
    rig.capture.change(replace(rig.plan, snaplen=64, payload="none", filter="", dedup=True))
    rig.drain(upcall(NTP_FRAME))

    [label] = rig.program.labels.values()
    assert (unpacked(label)["generation"], unpacked(label)["snaplen"]) == (1, 64)
    control = rig.program.control
    words = (abi.GENERATION, abi.SNAPLEN, abi.HEADERS_ONLY, abi.FILTERED, abi.DEDUP)
    assert [control[word] for word in words] == [1, 64, 1, 0, 1]


@pytest.mark.parametrize(
    ("interfaces", "exclude", "written"),
    [
        (("any",), (), ["eth0", "eth1", "wg0", "eth0"]),
        (("any",), ("eth*",), ["wg0"]),
        (("eth*",), (), ["eth0", "eth1"]),
        (("eth?", "wg0"), ("*1",), ["eth0", "wg0"]),
        (("eth[1-3]",), (), ["eth1"]),
        (("eth0",), ("eth0",), []),
    ],
)
def test_interfaces_are_selected_by_globs(
    interfaces: tuple[str, ...], exclude: tuple[str, ...], written: list[str]
) -> None:
    """Names and globs select interfaces of this namespace; `exclude` applies to all namespaces, and
    is counted apart.
    """
    rig = Rig(interfaces=interfaces, exclude=exclude)
    devices = ((b"eth0", 2, HERE), (b"eth1", 3, HERE), (b"wg0", 4, HERE), (b"eth0", 2, ELSEWHERE))
    for number, (device, ifindex, netns) in enumerate(devices, 1):
        rig.drain(upcall(NTP_FRAME, device=device, ifindex=ifindex, netns=netns, net=number))

    assert [interface.name.decode() for interface in rig.output.interfaces] == written
    totals = rig.capture.totals()
    assert (totals.written, totals.other_interfaces, totals.filtered) == (len(written), 4 - len(written), 0)
    assert bool(rig.program.control[abi.DEVICE_FILTER]) == (interfaces != ("any",) or bool(exclude))


@pytest.mark.parametrize(
    ("interfaces", "namespaces", "written"),
    [
        (("any",), ("self",), [HERE]),
        (("any",), (str(ELSEWHERE),), [ELSEWHERE]),
        (("eth*",), (str(ELSEWHERE), "self"), [HERE, ELSEWHERE]),
        (("wg0",), (str(ELSEWHERE),), []),
        (("any",), ("no-such-name", "\x01"), []),
    ],
)
def test_interfaces_are_selected_by_namespaces(
    interfaces: tuple[str, ...], namespaces: tuple[str, ...], written: list[int]
) -> None:
    """With `namespaces`, interfaces of other namespaces are not captured, whatever `interfaces` is."""
    rig = Rig(interfaces=interfaces, namespaces=namespaces)
    for number, netns in enumerate((HERE, ELSEWHERE, ELSEWHERE + 1), 1):
        rig.drain(upcall(NTP_FRAME, netns=netns, net=number))
    assert [one.description for one in rig.output.interfaces] == [f"network namespace {inode}" for inode in written]
    totals = rig.capture.totals()
    assert (totals.written, totals.other_interfaces, totals.filtered) == (len(written), 3 - len(written), 0)
    assert rig.program.control[abi.DEVICE_FILTER] > 0


def test_many_interfaces_are_bounded() -> None:
    """With more interfaces than are stored, each packet is written and counted, and the oldest are
    evicted.
    """
    rig = Rig()
    sent = REMEMBERED + 101
    for number in range(sent):
        rig.drain(upcall(b"1", ifindex=number, device=b"v%d" % number), slot=0)
    assert len(rig.output.written) == sent == rig.capture.interface_count
    assert len(rig.capture.interfaces._known) == REMEMBERED
    totals = rig.capture.totals()
    assert (totals.written, totals.kernel.seen) == (sent, sent)
    assert accounted(totals) == sent


def test_more_interfaces_than_a_file_may_have(caplog: pytest.LogCaptureFixture) -> None:
    """An interface beyond the limit is not captured, which is logged and counted; a new list has
    others.
    """
    rig = Rig()
    rig.drain(upcall(b"1"))
    rig.capture.interfaces._numbered = INTERFACES_MAX
    rig.drain(upcall(b"2", device=b"late", ifindex=7), upcall(b"3"))
    assert rig.output.frames == [b"1", b"3"]
    assert caplog.messages == [f"interface late is one more than the {INTERFACES_MAX} of a file, and is not captured"]
    assert rig.capture.totals().other_interfaces == 1
    assert accounted(rig.capture.totals()) == 3
    rig.capture.renumber()
    rig.drain(upcall(b"4", device=b"later", ifindex=8), upcall(b"5"))
    assert rig.output.frames == [b"1", b"3", b"4", b"5"]


@given(st.lists(st.integers(-1, 4 << 20 | 7)))
def test_processes_are_counted_once(tgids: list[int]) -> None:
    """Each process id is counted once, in memory of fixed size."""
    numbers = Numbers(4 << 20)
    size = len(numbers._bits)
    for tgid in [*tgids, *tgids]:
        numbers.add(tgid)
    assert numbers.count == len({tgid for tgid in tgids if 0 < tgid <= 4 << 20})
    assert len(numbers._bits) == size


@given(st.sets(st.integers(1, 4 << 20)), st.sets(st.integers(1, (4 << 20) - 1)))
def test_processes_of_python_and_of_the_program_are_counted_once(mine: set[int], others: set[int]) -> None:
    """A process that both have seen counts once, wherever its id is; the other set comes in pages."""
    numbers = Numbers(4 << 20)
    for tgid in mine:
        numbers.add(tgid)
    bits = sum(1 << tgid for tgid in others).to_bytes(1 << 19, "little")
    pages = [bits[at : at + mmap.PAGESIZE] for at in range(0, len(bits), mmap.PAGESIZE)]
    assert numbers.count_with(pages) == numbers.count_with([bits]) == len(mine | others)


def test_a_slow_disk_causes_memory_pressure() -> None:
    """While more than half of the memory waits, the output gets memory pressure, and otherwise not."""
    rig = Rig()
    big = packet(0, bytes(250_000))
    room = abi.SEGMENT_SIZE // len(big)
    rig.drain(*[big] * room)
    assert rig.output.pressure == 0
    rig.drain(*[big] * (room * (rig.program.geometry.segment_count - 1)))
    assert rig.output.pressure > 0


def test_many_first_packets_are_decided_about_once() -> None:
    """Of packets that came before their label, only the first one in a drain makes one; a new name
    makes another one.
    """
    rig = Rig()
    rig.drain(*[upcall(NTP_FRAME)] * 7, upcall(NTP_FRAME, comm=b"renamed"), upcall(NTP_FRAME))
    assert rig.capture.labels == 2
    assert [b"comm=renamed" in stamp.options for stamp in rig.output.stamps] == [False] * 7 + [True, False]
    rig.drain(upcall(NTP_FRAME))  # its label was deleted, or it would not be here
    assert rig.capture.labels == 3


def test_a_renumbering_leaves_no_old_label() -> None:
    """A first packet during a renumbering is written with the old number, and gets no label."""
    rig = Rig()
    rig.drain(upcall(b"1", comm=b"one"))
    rig.program.put(upcall(b"2", comm=b"two"))
    rig.capture.renumber()
    assert not rig.output.restarted
    rig.capture.drain()
    [statistics] = rig.output.restarted
    assert rig.output.frames == [b"1", b"2"]
    assert [(one.interface_id, one.received) for one in statistics] == [(7, 2)]
    assert valid_labels(rig) == []
    assert "let_end" in rig.program.calls
    rig.drain(upcall(b"3", comm=b"two"))
    assert len(valid_labels(rig)) == 1
