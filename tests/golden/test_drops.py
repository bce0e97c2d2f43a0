"""Dropped packets in a file: what `top`, `extract`, `split`, `report` and `index` make of them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from skbcapd.analysis.drops import DropAccount
from skbcapd.analysis.selectors import Selection, Selectors, pattern
from skbcapd.analysis.sources import Sources
from skbcapd.fleet.index import index
from skbcapd.report.collect import Collector
from tests.support.command import run
from tests.support.judges import rows
from tests.support.strangers import comment, interface, options, packet, process, section, udp

OF_DROPS = b"network namespace of init: dropped packets"
NAMES = (b"eth0", b"drops@host", b"drops@web")
LINKS = (1, 1, 101)
TIME_NS = 1_622_469_600_123_456_000
CURL = " drop=NETFILTER_DROP at=nf_hook_slow"
# Number, interface, options, length of the frame.
PACKETS = (
    (13, 0, process(1058, "curl"), 100),
    (11, 0, process(77, "nginx", 1), 61),
    (7, 1, process(1058, "curl", 2, CURL), 100),
    (5, 1, process(77, "nginx", 1, " drop=SOCKET_RCVBUFF at=udp_queue_rcv_one_skb"), 61),
    (3, 2, comment(b"via=unknown drop=NO_SOCKET", (2, b"\1\0\0\0")), 60),
    (19, 1, comment(b"via=unknown drop=OTHERHOST at=ip_rcv_core", (2, b"\1\0\0\0")), 60),
    (2, 1, comment(rb'comm="\x1b[31m" pid=9 tgid=9 drop="\x3dx y" at="\x3d1"', (2, b"\2\0\0\0")), 60),
)
CAPTURED = sum(count for count, number, *_ in PACKETS if number == 0)
DROPPED = sum(count for count, number, *_ in PACKETS if number)
WHEN = "2021-05-31 14:00:00.123456  2021-05-31 14:00:00.123456"
HEAD = "FIRST (UTC)                 LAST (UTC)"
TABLE = [
    f"PACKETS  BYTES  REASON               DIRECTION  INTERFACE   TGID  PROCESS      AT                     {HEAD}",
    f"      7    700  NETFILTER_DROP       out        drops@host  1058  curl         nf_hook_slow           {WHEN}",
    f"      5    305  SOCKET_RCVBUFF       in         drops@host    77  nginx        udp_queue_rcv_one_skb  {WHEN}",
    f"      3    138  NO_SOCKET            in         drops@web      -  via=unknown  -                      {WHEN}",
    rf"      2    120  =x y                 out        drops@host     9  \x1b[31m     =1                     {WHEN}",
    f"     19   1140  OTHERHOST (no loss)  in         drops@host     -  via=unknown  ip_rcv_core            {WHEN}",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with packets that were captured, and packets that were dropped."""
    made = [section()]
    made += [
        interface(link_type=link, opts=options((2, name), (3, b"" if name == b"eth0" else OF_DROPS), (9, b"\x09")))
        for name, link in zip(NAMES, LINKS, strict=True)
    ]
    for count, number, opts, size in PACKETS:
        frame = udp("10.0.0.1", "10.0.0.2", size)[14 if LINKS[number] == 101 else 0 :]
        made.append(packet(frame, opts, number=number, time=TIME_NS) * count)
    (tmp_path / "a.pcapng").write_bytes(b"".join(made))
    return tmp_path / "a.pcapng"


def skbcapd(command: str, *words: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code, stdout, stderr = run(command, *words)
    return code, stdout.decode(), stderr


def sums(path: Path, where: str) -> Counter[str]:
    """The bytes that tshark finds, by process id."""
    found: Counter[str] = Counter()
    for text, size in rows(path, "frame.comment", "frame.len", where=where):
        found[text.partition("tgid=")[2].partition(" ")[0] or "-"] += int(size)
    return found


IS_DROPPED = 'frame.interface_name matches "^drops@"'


def test_top_counts_what_was_captured_and_names_the_rest(path: Path) -> None:
    """A dropped packet may have been captured before: the rows are the sums of tshark without them, and a message has
    their number. If dropped packets are selected, the rows are those of them.
    """
    code, stdout, stderr = skbcapd("top", "--json", path)
    assert (code, stderr) == (0, f"skbcapd: {DROPPED} dropped packets are left out: skbcapd top --drops\n")
    assert {str(row["tgid"]): row["bytes"] for row in json.loads(stdout)} == sums(path, f"!({IS_DROPPED})")
    code, stdout, stderr = skbcapd("top", "--json", path, "--dropped", "*")
    assert (code, stderr) == (0, "")
    assert {str(row["tgid"] or "-"): row["bytes"] for row in json.loads(stdout)} == sums(path, IS_DROPPED)


def test_top_of_drops(path: Path) -> None:
    """One row for each reason, interface, direction, process and function; losses first; escaped. JSON and CSV have
    the same.
    """
    code, stdout, stderr = skbcapd("top", "--drops", path)
    assert (code, stderr, stdout.splitlines()) == (0, "", TABLE)
    code, stdout, stderr = skbcapd("top", "--drops", "--json", path)
    found = json.loads(stdout)
    assert (code, stderr, sum(row["packets"] for row in found)) == (0, "", DROPPED)
    time = "2021-05-31T14:00:00.123456000Z"
    assert found[0] == {
        "reason": "NETFILTER_DROP",
        "loss": True,
        "interface": "drops@host",
        "direction": "out",
        "tgid": 1058,
        "process": "curl",
        "via": None,
        "at": "nf_hook_slow",
        "packets": 7,
        "bytes": 700,
        "first": time,
        "last": time,
    }
    assert [row["reason"] for row in found if not row["loss"]] == ["OTHERHOST"]
    code, stdout, stderr = skbcapd("top", "--drops", "--csv", path)
    assert (code, stderr) == (0, "")
    lines = list(csv.DictReader(io.StringIO(stdout)))
    assert [int(row["packets"]) for row in lines] == [row["packets"] for row in found]
    assert [lines[3][key] for key in ("reason", "at", "process")] == ["'=x y", "'=1", r"\x1b[31m"]


def test_no_drops_are_an_empty_table(tmp_path: Path) -> None:
    """A file without them has headings only, and JSON an empty list; `top` says nothing of them."""
    file = tmp_path / "a.pcapng"
    file.write_bytes(section() + interface() + packet(udp("10.0.0.1", "10.0.0.2"), process(7, "a")))
    assert skbcapd("top", "--drops", "--json", file) == (0, "[]\n", "")
    assert skbcapd("top", "--drops", file)[1].split()[:3] == ["PACKETS", "BYTES", "REASON"]
    assert skbcapd("top", file)[2] == ""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--dropped", "NETFILTER_*"), "drop=NETFILTER_"),
        (("--dropped", "/^(NO_|OTHER)/"), "drop=(NO_|OTHER)"),
        (("--dropped", "*"), "drop="),
        (("--dropped-at", "ip_*"), "at=ip_"),
        (("--dropped", "*", "--process", "curl"), "comm=curl .*drop="),
    ],
)
def test_selectors_of_drops(words: tuple[str, ...], text: str, path: Path, tmp_path: Path) -> None:
    """`extract`, `split` and `capture -r` take the dropped packets that tshark finds by their comments."""
    fields = ("frame.interface_name", "frame.comment", "frame.len")
    expected = rows(path, *fields, where=f'frame.comment matches "(^| ){text}"')
    out = tmp_path / "out.pcapng"
    said = skbcapd("extract", path, "-w", out, *words)[2].splitlines()
    assert said[0] == f"skbcapd: {len(expected)} packets to {out}"
    assert rows(out, *fields) == expected


def test_the_other_readers_have_the_same_selectors(path: Path, tmp_path: Path) -> None:
    """`split` and `capture -r` take the same packets; a line has the reason, with -v also the function."""
    words = "--dropped", "NO_SOCKET"
    skbcapd("split", path, "--by", "interface", "-d", tmp_path / "parts", *words)
    assert [len(rows(file, "frame.number")) for file in (tmp_path / "parts").iterdir()] == [3]
    line = "14:00:00.123456 ?/unknown drops@web in drop=NO_SOCKET IP 10.0.0.1.0 > 10.0.0.2.0: "
    assert [text[: len(line)] for text in skbcapd("capture", "-r", path, *words)[1].splitlines()] == [line] * 3
    line = skbcapd("capture", "-r", path, "-v", "-c", "1", "--dropped-at", "nf_*")[1]
    assert line.startswith("14:00:00.123456 curl[1058] drops@host out drop=NETFILTER_DROP IP (tos")
    assert line.endswith(" {at=nf_hook_slow}\n")


def test_drops_are_no_traffic_of_a_report_or_an_index(path: Path) -> None:
    """The sums of a report and of an index are those of `top`; a report of selected drops is about them."""
    for texts, packets, left_out in (({}, CAPTURED, DROPPED), ({"drop": [pattern("*")]}, DROPPED, 0)):
        selection = Selection(Selectors(texts=texts))
        collector = Collector("tgid", has_drops=selection.is_of_drops)
        collector.read(Sources([path], selection).unordered())
        assert (collector.result()["packets"], collector.left_out) == (packets, left_out)
    found = list(index(path))
    assert sum(row.packets_out + row.packets_in + row.packets_unknown for row in found) == CAPTURED
    assert {row.interface for row in found} == {"eth0"}


def test_an_interface_that_is_named_so_is_an_interface(path: Path) -> None:
    """A user of a network namespace can give an interface this name; its packets are traffic."""
    file = path.with_name("c.pcapng")
    head = section() + interface(opts=options((2, b"drops@host"), (3, b"network namespace web"), (9, b"\x09")))
    file.write_bytes(head + packet(udp("10.0.0.1", "10.0.0.2", 60), comment(b"comm=curl tgid=7", (2, b"\1\0\0\0"))))
    code, stdout, stderr = skbcapd("top", file)
    assert (code, stderr, "curl" in stdout) == (0, "", True)


def test_memory_is_bounded(path: Path) -> None:
    """Beyond the limit, further rows are one, and no packet is left out."""
    file = path.with_name("b.pcapng")
    head = section() + interface(opts=options((2, b"drops@eth0"), (3, OF_DROPS), (9, b"\x09")))
    count = 211 + 101
    blocks = (packet(b"x", comment(b"drop=A tgid=%d" % number, (2, b"\1\0\0\0"))) for number in range(1, count + 1))
    file.write_bytes(head + b"".join(blocks))
    account = DropAccount(211)
    account.read(Sources([file], Selection(Selectors())).unordered())
    assert len(account.rows) == 212
    assert account.rows[0].packets == 101
    assert account.rows[0].stamp.via == b"others"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("top", "--drops", "--by", "process"), "--drops with --by process"),
        (("capture", "--dropped", "A"), "--dropped: found no -r"),
        (("capture", "--dropped-at", "A"), "--dropped-at: found no -r"),
    ],
)
def test_where_they_are_refused(words: tuple[str, ...], said: str, path: Path) -> None:
    """An option that has no effect is an error."""
    code, _, stderr = skbcapd(words[0], *([path] if words[0] == "top" else []), *words[1:])
    assert code == 2
    assert said in stderr
