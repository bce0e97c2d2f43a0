"""The labels of the kernel program (bpf/label.h) are those that Python makes: the same struct, byte by byte."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.capture.rules import Rules
from skbcapd.config.settings import Rule
from skbcapd.kernel import abi
from skbcapd.pcapng.comment import OPTIONS_MAX, parse
from tests.support.kernel_label import KernelLabels
from tests.support.rig import Recording, Rig
from tests.support.writer import upcall

DEFAULT = ("comm", "pid", "tgid", "process")
BARE = bytes(byte for byte in range(0x21, 0x7F) if byte not in b'"=\\')
COMMENTS = (DEFAULT, DEFAULT[::-1], ("process", "tgid"), ("pid",), ("none",), ("comm", "none"), ("process", "process"))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> KernelLabels:
    """The code of the kernel program."""
    return KernelLabels(tmp_path_factory.mktemp("label"))


@cache
def rig_for(comment: tuple[str, ...]) -> Rig[Recording]:
    """A capture with a comment, in which the program may make labels."""
    rig = Rig(comment=comment, snaplen=96, payload="none")
    rig.capture._labeler.use(rig.plan)
    return rig


def both(kernel: KernelLabels, comment: tuple[str, ...] = DEFAULT, **packet: Any) -> tuple[bytes | None, bytes]:
    """The labels of the program and of Python for a packet."""
    rig = rig_for(comment)
    rig.program.labels.clear()
    rig.drain(made := upcall(b"frame", **packet))
    call = abi.UPCALL.unpack(made, len(made) - 4 - abi.UPCALL.size)
    device = rig.program.devices[abi.DEVICE_KEY.pack(call.net, call.ifindex, call.direction)]
    [(_, expected)] = rig.program.labels.items()
    return kernel.make(rig.program.control, call, device), expected


def cut_off(label: bytes | None) -> bytes | None:
    """A label up to the end of its options: what is behind them is never read."""
    length = abi.LABEL.unpack(label).options_len if label else 0
    return label and label[: abi.LABEL.size - OPTIONS_MAX + length]


def text_of(label: bytes) -> dict[str, bytes]:
    """The comment of a label."""
    options = abi.LABEL.unpack(label).options
    return dict(parse(options[4:][: int.from_bytes(options[2:4], "little")].decode()))


@pytest.mark.parametrize("linked", [0, 1])
@pytest.mark.parametrize("via", range(abi.VIA_GROUP))
@pytest.mark.parametrize("comment", COMMENTS)
def test_each_comment(kernel: KernelLabels, comment: tuple[str, ...], via: int, linked: int) -> None:
    """Each order of fields, each way in which the process was found, with and without identifier and process."""
    for tgid, tid in ((1058, 1059), (1058, 0), (0, 0)):
        comm, process = (b"dig", b"isc") if tgid else (b"", b"")
        made, expected = both(kernel, comment, via=via, linked=linked, tgid=tgid, tid=tid, comm=comm, process=process)
        assert cut_off(made) == cut_off(expected)


def test_each_number_of_digits(kernel: KernelLabels) -> None:
    """Process and thread ids up to the largest one of Linux, at each change of the number of digits."""
    edges = [number for digits in range(8) for number in (10**digits - 1, 10**digits) if 0 < number <= 4 << 20]
    for number in [*edges, 5, 4096, 32767, 32768, 65536, 1234567, 4194303, 4194304]:
        made, expected = both(kernel, tgid=number, tid=max(1, number // 3))
        assert made, number
        assert cut_off(made) == cut_off(expected)
        assert text_of(made)["tgid"] == b"%d" % number


@given(st.integers(1, 99_999_999), st.integers(0, 99_999_999))
def test_any_number(kernel: KernelLabels, tgid: int, tid: int) -> None:
    """Any number of at most 8 digits."""
    made, expected = both(kernel, tgid=tgid, tid=tid)
    assert cut_off(made) == cut_off(expected)


@pytest.mark.parametrize("length", range(16))
def test_each_length_of_a_name(kernel: KernelLabels, length: int) -> None:
    """Names of 0 to 15 bytes; only the empty name of a thread is for Python, which quotes it."""
    name = b"abcdefghijklmno"[:length]
    for comm, process in ((name, b"x"), (b"x", name), (name, name), (name + b"\0old", name + b"\0new")):
        made, expected = both(kernel, comm=comm[:15], process=process[:15])
        assert cut_off(made) == (cut_off(expected) if comm[:1].strip(b"\0") else None)


def test_each_byte_of_a_name(kernel: KernelLabels) -> None:
    """Any byte at any place of a name: the program makes the label, or leaves it to Python, which quotes the name."""
    for byte in range(1, 256):
        for place in range(15):
            name = b"a" * place + bytes([byte]) + b"z" * (14 - place)
            for comm, process in ((name, b"p"), (b"c", name)):
                made, expected = both(kernel, comm=comm, process=process)
                assert cut_off(made) == (cut_off(expected) if byte in BARE else None), (byte, place)


@given(st.binary(max_size=16), st.binary(max_size=16), st.permutations(DEFAULT), st.integers(0, 4))
def test_any_names(kernel: KernelLabels, comm: bytes, process: bytes, order: list[str], count: int) -> None:
    """For any bytes of names, old ones behind a NUL included, there is no label or that of Python."""
    names = {"comm": comm.split(b"\0")[0], "process": process.split(b"\0")[0]}
    made, expected = both(kernel, tuple(order[:count]) or ("none",), comm=comm, process=process)
    is_quoted = {name: set(value) - set(BARE) or (name == "comm" and not value) for name, value in names.items()}
    is_left_out = "comm" in order[:count] and names["comm"] == names["process"]
    used = [name for name in names if name in order[:count] and not (name == "process" and is_left_out)]
    assert cut_off(made) == (None if any(is_quoted[name] for name in used) else cut_off(expected))


def test_the_names_decide_no_other_field(kernel: KernelLabels) -> None:
    """A name that looks like a field stays one value: it is for Python."""
    assert both(kernel, comm=b"a tgid=1")[0] is None
    assert both(kernel, comm=b"a", process=b'b"c')[0] is None
    assert both(kernel, ("pid",), comm=b"a tgid=1")[0] is not None


def test_what_is_for_python(kernel: KernelLabels) -> None:
    """No label for one of several processes, for a question, for an interface without a number of this generation, or
    if `naming` says so.
    """
    rig = Rig()
    rig.drain(made := upcall(b"1"))
    rig.capture._labeler.use(rig.plan)
    call = abi.UPCALL.unpack(made, len(made) - 4 - abi.UPCALL.size)
    [device] = set(rig.program.devices.values())
    known, control = abi.DEVICE.unpack(device), rig.program.control

    def is_made(by: abi.Upcall = call, **changes: Any) -> bool:
        return kernel.make(control, by, abi.DEVICE.pack(*known._replace(**changes))) is not None

    before = kernel.count
    assert is_made()
    assert (kernel.count, kernel.is_labelled(1058), kernel.is_labelled(1059)) == (before + 1, True, False)
    assert kernel.make(control, call, None) is None
    assert not is_made(unwanted=1)
    assert not is_made(generation=known.generation + 1)
    assert not is_made(call._replace(via=abi.VIA_GROUP))
    assert not is_made(call._replace(via=abi.VIA_UNRESOLVED))
    assert not is_made(call._replace(tgid=100_000_000))
    rig.capture._labeler.expire()
    assert not is_made()
    rig.capture._labeler.use(rig.plan)
    assert not is_made()
    assert is_made(generation=known.generation + 1)
    assert kernel.count == before + 2


def test_settings_for_which_python_decides() -> None:
    """The program makes no labels if a rule decides, if /proc is read, or if the output takes only what Python has
    written.
    """

    def naming(*, labels: bool = True, **settings: Any) -> int:
        rig = Rig(Recording(labels=labels), **settings)
        rig.capture._labeler.use(rig.plan)
        return int(rig.program.control[abi.NAMING])

    assert naming() == abi.Naming.ON | abi.Naming.VIA | abi.Naming.DIFFERS | 0x4321
    assert naming(comment=("process", "pid")) == abi.Naming.ON | abi.Naming.VIA | 0x24
    assert naming(comment=("none",)) == abi.Naming.ON
    assert naming(labels=False) == naming(process_blocks=True) == naming(comment=("comm", "exe")) == 0
    assert naming(rules=Rules([Rule(direction="in")])) == 0


def test_a_renumbering_stops_the_labels_of_the_program() -> None:
    """While interfaces get new numbers, the program makes no labels, and those before are not valid."""
    rig = Rig()
    rig.drain(upcall(b"1"))
    rig.capture._labeler.use(rig.plan)
    control, [before] = rig.program.control, set(rig.program.devices.values())
    rig.program.put(upcall(b"2"))
    rig.capture.renumber()
    assert control[abi.NAMING] == 0
    rig.capture.change(replace(rig.plan, snaplen=64))
    assert control[abi.NAMING] == 0
    rig.capture.drain()
    assert control[abi.NAMING] >> 32 == control[abi.GENERATION] == 3
    generations = {abi.DEVICE.unpack(row).generation for row in rig.program.devices.values()}
    assert control[abi.GENERATION] not in generations | {abi.DEVICE.unpack(before).generation}
    rig.drain(upcall(b"3"))
    [device] = {abi.DEVICE.unpack(row) for row in rig.program.devices.values()}
    assert (device.generation, device.interface_id) == (3, 8)


def test_an_excluded_interface_that_is_considered_again_has_no_number() -> None:
    """An interface that was excluded gets labels only after Python has numbered it."""
    rig = Rig(exclude=("eth0",))
    rig.drain(upcall(b"1"))
    rig.capture.interfaces._named = {"a name": 7}
    rig.capture.interfaces.reconsider()
    [device] = {abi.DEVICE.unpack(row) for row in rig.program.devices.values()}
    assert (device.unwanted, device.generation) == (0, 0xFFFFFFFF)


def test_processes_of_both_are_counted_once() -> None:
    """A process with a label of the program and packets that Python has written is one process."""
    rig = Rig()
    rig.drain(upcall(b"1", tgid=7), upcall(b"2", tgid=8))
    assert rig.capture.totals().processes == 2
    for tgid in (8, 9, (4 << 20) - 1):
        rig.program.bits[tgid >> 3] |= 1 << (tgid & 7)
    rig.program.count(1, labels=3)
    assert rig.capture.totals().processes == 4
    assert rig.capture.labels == 5
