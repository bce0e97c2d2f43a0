"""Packets that the kernel drops: names of reasons from BTF, sums, and how they are shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from skbcapd.capture.drops import drops_of
from skbcapd.capture.rules import Rules
from skbcapd.cli import status
from skbcapd.config.parser import default_settings
from skbcapd.daemon.metrics import Metrics
from skbcapd.daemon.report import print_drops, print_totals
from skbcapd.kernel import abi, compiler, drops, requirements
from skbcapd.kernel.btf import Btf
from skbcapd.kernel.drops import Drop, Reasons
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import NO_LOSS
from tests.support import blob
from tests.support.blob import Blob
from tests.support.rig import FakeDrops, Recording, Rig, Scene
from tests.support.writer import dropped, upcall

DOCS = Path(drops.__file__).parents[2] / "docs" / "drops.md"


def types_of(*arguments: str, kind: int = blob.ENUM) -> bytes:
    """The BTF of a kernel whose tracepoint has these arguments."""
    made = Blob()
    types = {"sk_buff": made.struct("sk_buff", 232, ("_snd", 0, 0), ("_skb_refdst", 0, 88 * 8))}
    made.struct("dst_entry", 96, ("dev", 0, 0))
    types["sock"] = made.struct("sock", 8, ("a", 0, 0))
    if "reason" in arguments:
        names = ("SKB_NOT_DROPPED_YET", 0), ("SKB_CONSUMED", 1), ("SKB_DROP_REASON_NO_SOCKET", 7)
        types["reason"] = made.enum("skb_drop_reason", *names, kind=kind)
        made.enum("skb_drop_reason_subsys", ("SKB_DROP_REASON_SUBSYS_CORE", 0), ("SKB_DROP_REASON_SUBSYS_OVS", 2))
    constant = made.refer(blob.PTR, made.refer(blob.CONST, types["sock"]))
    pointers = {"sk_buff": made.refer(blob.PTR, types["sk_buff"]), "sock": constant, "void": made.refer(blob.PTR, 0)}
    made.tracepoint("kfree_skb", *(pointers.get(name, types.get(name, 0)) for name in arguments))
    return made.build()


def kernel(*arguments: str, kind: int = blob.ENUM) -> Btf:
    """A kernel whose tracepoint has these arguments."""
    return Btf(types_of(*arguments, kind=kind))


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (("sk_buff", "void"), {}),
        (("sk_buff", "void", "reason"), {"DROP_REASON": 2}),
        (("sk_buff", "void", "reason", "sock"), {"DROP_REASON": 2, "DROP_RECEIVER": 3}),
        (("sk_buff", "sock", "void", "reason"), {"DROP_RECEIVER": 1, "DROP_REASON": 3}),
    ],
)
def test_the_places_of_arguments_are_those_of_btf(arguments: tuple[str, ...], places: dict[str, int]) -> None:
    """Whatever the order and number of arguments, the reason and the socket are found by their types."""
    found = drops.definitions(kernel(*arguments))
    assert {name: found[name] for name in found if name in {"DROP_REASON", "DROP_RECEIVER"}} == places
    assert (found["SKB_REFDST"], found["DST_DEV"]) == (88, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sk_buff", "void"), "none: all drops are counted as unknown (since Linux 5.17 the kernel has reasons)"),
        (("sk_buff", "void", "reason"), "3 reasons, without (only since Linux 6.11) the socket of the receiver"),
        (("sk_buff", "void", "reason", "sock"), "3 reasons, with the socket of the receiver"),
    ],
)
def test_doctor_says_what_a_kernel_has(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """`skbcapd doctor` tells kernels apart: before 5.17, before 6.11, and later ones."""
    types = tmp_path / "kernel/btf/vmlinux"
    types.parent.mkdir(parents=True)
    types.write_bytes(types_of(*arguments))
    assert requirements.drop_reasons(tmp_path).text == said


@pytest.mark.parametrize("kind", [blob.ENUM, blob.ENUM64])
def test_the_names_of_reasons_are_those_of_btf(kind: int) -> None:
    """Names have no prefix; a reason of a module has the name of its subsystem; others have their number."""
    reasons = Reasons(kernel("sk_buff", "void", "reason", kind=kind))
    assert [reasons.name(number) for number in (0, 1, 7, 8, 2 << 16 | 3, 9 << 16 | 1, drops.UNKNOWN)] == [
        *("NOT_DROPPED_YET", "CONSUMED", "NO_SOCKET", "REASON_8", "OVS_3", "SUBSYSTEM_9_1", "unknown")
    ]
    assert len(reasons) == 3
    assert Reasons(kernel("sk_buff", "void")).name(drops.UNKNOWN) == "unknown"


def test_records_are_those_of_the_c_side() -> None:
    """The structs in bpf/drops.h have the members and sizes of the records here."""
    text = (compiler.SOURCES / "drops.h").read_text()
    sizes = {"u32": 4, "u64": 8}
    for name, record in (("drop_key", drops.KEY), ("drop_count", drops.COUNT)):
        found = re.search(rf"struct {name} {{(.*?)^}};", text, re.DOTALL | re.MULTILINE)
        assert found
        members = re.findall(r"^\t(u\d\d) (\w+)(?:\[(\d+)\])?;", found[1], re.MULTILINE)
        assert [member for _, member, _ in members] == list(record.members._fields)
        assert sum(sizes[kind] * int(count or 1) for kind, _, count in members) == record.size
    unknown = re.search(r"DROP_REASON_UNKNOWN (\w+)", text)
    assert unknown
    assert int(unknown[1], 16) == drops.UNKNOWN


def test_without_the_setting_nothing_of_it_is_compiled() -> None:
    """All of drops.h and its function are left out by the preprocessor unless DROPS_MAX is defined, and other files
    do not use it.
    """
    text = compiler.source("", {"on_transmit", "on_drop"})
    guarded = re.search(r"^#ifdef DROPS_MAX$(.*)^#endif$", text, re.DOTALL | re.MULTILINE)
    assert guarded
    rest = text[: guarded.start()] + text[guarded.end() :]
    code = re.sub(r"/\*.*?\*/", "", rest, flags=re.DOTALL)
    assert "drop_works" in guarded[1]
    assert not re.search(r"drop_|on_drop|DROPS_MAX|DROP_REASON", code)


ROWS = (
    Drop("NO_SOCKET", 1, 2, b"eth0", 4026531840, DIRECTION_IN, 0, b"", 53),
    Drop("OTHERHOST", 1, 2, b"eth0", 4026531840, DIRECTION_IN, 0, b"", 31),
    Drop("NETFILTER_DROP", 1, 2, b"eth0", 4026531840, DIRECTION_OUT, 1058, b"evil\x1b[2J", 29),
    Drop("NO_SOCKET", 1, 4, b"", 4026531840, DIRECTION_IN, 0, b"", 3),
    Drop("NETFILTER_DROP", 1, 2, b"eth0", 4026531840, DIRECTION_OUT, 0, b"", 2, is_of_others=True),
    Drop("NO_SOCKET", 1, 3, b"eth7", 4026531840, DIRECTION_IN, 0, b"", 1000),  # not captured
)


def scene() -> Scene:
    """A capture with drops."""
    made = Scene()
    made.rig.program.drops = FakeDrops(*ROWS)
    return made


def test_drops_of_other_interfaces_are_left_out() -> None:
    """The sums have the drops of captured interfaces, and those whose interface is not known; what nobody has lost is
    a number of its own.
    """
    made = scene()
    found = drops_of(made.rig.program, made.rig.capture.interfaces)  # type: ignore[arg-type]
    assert found is not None
    assert list(found.rows) == [*ROWS[:5]]
    assert (found.lost, found.no_loss, found.unlisted, found.missed) == (87, 31, 5, 2)
    assert found.by_reason() == {("NO_SOCKET", True): 56, ("OTHERHOST", False): 31, ("NETFILTER_DROP", True): 31}


def test_status_shows_them() -> None:
    """`status` has the sums, and a line for each reason, interface and process; names are escaped."""
    text = "".join(status.lines("socket", scene().look()))
    found = [line.split() for line in text.splitlines()]
    assert ["network", "drops", "87", "31", "more", "drops", "were", "no", "loss"] in found
    assert ["29", "1058", "out", "NETFILTER_DROP", "eth0", "evil\\x1b[2J"] in found
    assert ["31", "-", "in", "OTHERHOST", "(no", "loss)", "eth0", "-"] in found
    assert ["3", "-", "in", "NO_SOCKET", "-", "-"] in found
    assert ["2", "-", "out", "NETFILTER_DROP", "eth0", "(other", "processes)"] in found
    assert "\x1b" not in text
    assert "network drops" not in "".join(status.lines("socket", Scene().look()))


def test_the_metrics_have_reasons_and_no_names() -> None:
    """Prometheus reads the packets of each reason; there is no label with a name of a process or interface."""
    made = scene()
    families = text_string_to_metric_families(Metrics(made.statistics.snapshot).text().decode())
    found = {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels, reverse=True))): sample.value
        for family in families
        for sample in family.samples
        if "network_drops" in sample.name and not sample.name.endswith("_created")
    }
    name = "skbcapd_network_drops"
    assert found == {
        (f"{name}_total", "NO_SOCKET", "yes"): 56,
        (f"{name}_total", "OTHERHOST", "no"): 31,
        (f"{name}_total", "NETFILTER_DROP", "yes"): 31,
        (f"{name}_unlisted_total",): 5,
        (f"{name}_missed_total",): 2,
    }


def test_the_closing_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The lines at the end have the same numbers; without the setting there are none."""
    made = scene()
    print_drops(drops_of(made.rig.program, made.rig.capture.interfaces))  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [
        "the network stack dropped 87 packets; 31 more drops were no loss",
        "  53 NO_SOCKET in eth0",
        "  31 OTHERHOST in eth0",
        "  29 NETFILTER_DROP out eth0, evil\\x1b[2J (1058)",
        "  3 NO_SOCKET in -",
        "  2 NETFILTER_DROP out eth0, other processes",
        "  5 unlisted, on any interface: the list was full",
        "  2 missed while the kernel program was already running",
    ]
    print_drops(drops_of(Scene().rig.program, Scene().rig.capture.interfaces))  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


WEB: dict[str, Any] = {"net": 5, "netns": 4026531841}
RAW: dict[str, Any] = {"ifindex": abi.DROPS_RAW, "device_type": 65534}
NOBODY: dict[str, Any] = {"via": abi.VIA_UNKNOWN, "tgid": 0, "tid": 0, "start": 0, "comm": b"", "process": b""}


def rig(**arguments: Any) -> Rig[Recording]:
    """A capture of drops in two network namespaces."""
    described = {5: "network namespace web", 6: "network namespace of init"}
    made = Rig(describe_namespace=lambda cookie, _inode: described[cookie], **arguments)
    made.program.drops = FakeDrops()
    return made


def drop(frame: bytes, why: int = 7, on: tuple[int, bytes] = (2, b"eth0"), **changes: Any) -> bytes:
    """The block of a packet that the kernel has dropped."""
    return dropped(frame, reason=why, at=on, **changes)


def said(stamps: list[Label]) -> list[str]:
    """The comments of labels."""
    return [stamp.options[4 : 4 + int.from_bytes(stamp.options[2:4], "little")].decode() for stamp in stamps]


def test_dropped_packets_are_on_interfaces_of_their_own() -> None:
    """There is one for each namespace and link type, wherever the packets were dropped."""
    made = rig()
    made.drain(
        drop(b"1", **WEB),
        drop(b"2", on=(3, b"eth1"), **WEB),
        drop(b"3", **WEB | RAW),
        drop(b"4", net=6),
        drop(b"5", **WEB),
    )
    web, raw, host = made.output.interfaces
    assert [(one.name, one.description, one.link_type, one.mac) for one in (web, raw, host)] == [
        (b"drops@web", "network namespace web: dropped packets", 1, None),
        (b"drops@web", "network namespace web: dropped packets without a link-layer header", 101, None),
        (b"drops@host", "network namespace of init: dropped packets", 1, None),
    ]
    assert made.output.written == [(7, b"1"), (7, b"2"), (8, b"3"), (9, b"4"), (7, b"5")]


def test_each_dropped_packet_has_its_own_reason() -> None:
    """Packets of one process and interface that differ in the reason have different comments; no label is made, and
    a process is not needed.
    """
    made = rig()
    made.drain(drop(b"1", **WEB), drop(b"2", 8, **WEB), drop(b"3", **WEB), drop(b"4", **WEB | NOBODY))
    known = "comm=chronyd pid=1059 tgid=1058"
    assert said(made.output.stamps) == [
        f"{known} drop=REASON_7",
        f"{known} drop=REASON_8",
        f"{known} drop=REASON_7",
        "drop=REASON_7 via=unknown",
    ]
    assert not made.program.labels


def test_the_interface_of_the_drop_decides() -> None:
    """A packet that was dropped on an interface that is not captured is counted, and the program need not pass the next
    one; a rule on the interface means that one.
    """
    rules = Rules(default_settings({"rules": "[{interface: eth2, action: drop}]"}).rules)
    made = rig(interfaces=("any",), exclude=("eth1",), rules=rules)
    made.drain(drop(b"1", **WEB), drop(b"2", on=(3, b"eth1"), **WEB), drop(b"3", on=(4, b"eth2"), **WEB))
    totals = made.capture.totals()
    assert (made.output.frames, totals.other_interfaces, totals.filtered) == ([b"1"], 1, 1)
    unwanted = {
        abi.DEVICE_KEY.unpack(key).ifindex
        for key, device in made.program.devices.items()
        if abi.DEVICE.unpack(device).unwanted
    }
    assert unwanted == {3}


def test_a_dropped_packet_is_no_duplicate() -> None:
    """With `dedup: first`, a packet that was captured, and dropped later, is in the file as both."""
    made = rig(dedup=True)
    same = WEB | {"packet_id": 23, "linked": 1}
    made.drain(upcall(b"1", **same), upcall(b"2", device=b"br0", ifindex=9, **same), drop(b"3", **same))
    assert made.output.frames == [b"1", b"3"]
    assert made.capture.totals().duplicates == 1


def test_more_than_the_rate_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Packets that the program did not write have an outcome of their own, and are no loss of the capture."""
    made = rig(drops_rate=31, exclude=("eth7",))
    made.program.drops = FakeDrops(Drop("NO_SOCKET", 1, 3, b"eth7", 4026531841, DIRECTION_IN, 0, b"", 100, 11))
    assert made.program.control[abi.DROPS_RATE] == 31
    made.drain(drop(b"1", **WEB))
    made.program.count(1, limited=29)
    made.program.count(0, limited=11)  # before it was known that the interface is not captured
    totals = made.capture.totals()
    assert (totals.kernel.seen, totals.written, totals.kernel.lost) == (41, 1, 0)
    assert (totals.limited, totals.other_interfaces) == (29, 11)
    assert made.capture.statistics()[0].lost == 29
    print_totals(totals)
    assert "29 packets dropped by the network and not written, more than drops_rate allows" in capsys.readouterr().err


def test_the_page_explains_each_reason_that_is_no_loss() -> None:
    """docs/drops.md has a row for each of them, and no others."""
    assert set(re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE)) == NO_LOSS


def test_this_kernel_has_the_reasons() -> None:
    """On the running kernel, the reasons and the arguments are found."""
    btf = Btf.load()
    values = drops.definitions(btf)
    assert "DROP_REASON" in values
    assert "NO_SOCKET" in {Reasons(btf).name(number) for number in range(len(Reasons(btf)))}
