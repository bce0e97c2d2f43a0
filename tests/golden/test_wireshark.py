"""The Wireshark files: fields, filters, columns and colors, as Debian's tshark shows them."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from skbcapd.attribution.fields import FIELDS
from skbcapd.pcapng.comment import CommentError, comment, parse
from skbcapd.text_safety import escaped_bytes
from tests.support.judges import judge
from tests.support.strangers import comment as with_comment
from tests.support.strangers import interface, options, packet, process, section, udp

WIRESHARK = Path(__file__).parents[2] / "wireshark"
DISSECTOR = ("-X", f"lua_script:{WIRESHARK / 'skbcapd.lua'}")
START = section() + interface(opts=options((2, b"eth0"), (9, b"\x09")))
FRAME = udp("10.0.0.1", "10.0.0.2")
KEYS = (*FIELDS, "via")
DROPS = ("comm=nginx pid=7 tgid=7 drop=NETFILTER_DROP at=nf_hook_slow", "drop=NO_SOCKET at=ip_rcv")


def fields(path: Path, where: str = "") -> list[dict[str, list[str]]]:
    """The fields of skbcapd, by key, of each packet, or of those that match a filter."""
    chosen = ["-Y", where] if where else []
    columns = [part for key in (*KEYS, "other") for part in ("-e", f"skbcapd.{key}")]
    found = json.loads(judge(path, "tshark", *DISSECTOR, "-n", *chosen, "-T", "json", *columns))
    return [{key.partition(".")[2]: texts for key, texts in row["_source"]["layers"].items()} for row in found]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the capture file of the test."""
    return tmp_path / "a.pcapng"


def write(path: Path, *comments: str | bytes | None) -> Path:
    """A file with a packet for each comment; None: a packet without one."""
    texts = [text.encode() if isinstance(text, str) else text for text in comments]
    made = (packet(FRAME, b"" if text is None else with_comment(text, (2, b"\x02\0\0\0"))) for text in texts)
    path.write_bytes(START + b"".join(made))
    return path


def expected(text: str) -> dict[str, list[str]]:
    """The fields that our own parser finds in a comment."""
    try:
        pairs = parse(text)
    except CommentError:
        return {}
    said = {key: escaped_bytes(value) for key, value in pairs}
    if not said.keys() & {"comm", "process", "tgid", "via", "drop"}:
        return {}
    if said.keys() & {"comm", "process", "tgid"}:
        said.setdefault("via", "current")
    if "comm" in said:
        said.setdefault("process", said["comm"])
    found: dict[str, list[str]] = {}
    for key, value in said.items():
        is_number = key in FIELDS and FIELDS[key].is_number
        if key not in KEYS or (is_number and not re.fullmatch(r"[0-9]{1,10}", value)):
            found.setdefault("other", []).append(f"{key}={value}")
        else:
            found[key] = [str(int(value)) if is_number else value]
    return found


def test_every_key_is_a_field(path: Path) -> None:
    """Each key of the comment has a field; an unknown key is shown under skbcapd.other."""
    values = [number if key != "via" and FIELDS[key].is_number else f"a {key}" for number, key in enumerate(KEYS, 7)]
    text = comment([*zip(KEYS, values, strict=True), ("later", "a b"), ("also", 3)])
    assert fields(write(path, text)) == [
        {key: [str(value)] for key, value in zip(KEYS, values, strict=True)} | {"other": ["later=a b", "also=3"]}
    ]


def test_the_plain_case_has_a_via_too(path: Path) -> None:
    """If the comment has no via, the field is current, so that the column is never empty."""
    words = ("socket", "flow", "inode", "kernel", "forwarded", "unknown")
    process = "comm=a pid=7 tgid=8"
    found = fields(
        write(path, process, *(f"{process} via={word}" for word in words), *(f"via={word}" for word in words))
    )
    assert [packet["via"] for packet in found] == [["current"], *[[word] for word in words * 2]]


def test_the_process_is_a_field_always(path: Path) -> None:
    """The comment has the process name only if it differs from the thread; the field has it for all
    packets.
    """
    found = fields(write(path, "comm=isc-net-0000 pid=8 tgid=7 process=dig", "comm=dig pid=7 tgid=7", "process=dig"))
    assert [packet["process"] for packet in found] == [["dig"]] * 3


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("skbcapd", [1, 2, 3, 4, 7, 8]),
        ("skbcapd.tgid == 1058", [1]),
        ("skbcapd.tgid > 100 && skbcapd.pid != skbcapd.tgid", [2]),
        ('skbcapd.comm == "tmux: server"', [3]),
        ('skbcapd.comm contains "chron"', [1, 2]),
        ('skbcapd.via == "kernel"', [4]),
        ("!skbcapd", [5, 6]),
        ('skbcapd.drop contains "NETFILTER"', [7]),
        ("skbcapd.drop && !skbcapd.process", [8]),
        ('skbcapd.at == "ip_rcv"', [8]),
        ('skbcapd.comm == "gr\\\\xc3\\\\xb6n"', []),
    ],
)
def test_display_filters(where: str, found: list[int], path: Path) -> None:
    """Fields are numbers and texts that display filters compare."""
    texts = ["comm=chronyd pid=1058 tgid=1058", "comm=chronyd pid=11 tgid=10580"]
    write(path, *texts, 'comm="tmux: server" pid=7 tgid=8', "via=kernel", "hello", None, *DROPS)
    lines = judge(path, "tshark", *DISSECTOR, "-Y", where, "-T", "fields", "-e", "frame.number").split()
    assert [int(line) for line in lines] == found


def test_comments_of_others_give_nothing(path: Path) -> None:
    """A comment that is not completely in the grammar has no field; a later comment of skbcapd has
    them.
    """
    others = [
        "hello",
        "PID: 7\nCmd: a",
        "comm=a tgid=7 ",
        "comm=a  tgid=7",
        "comm=a comm=b",
        'comm="a"',
        "x=1",
        "=",
        "",
    ]
    others += ['comm="a', 'comm="a b"c', "comm=a\\", 'comm="\\x41 "', 'comm="\\x1B"', 'comm="=" ', "comm=a\ttgid=7"]
    assert fields(write(path, *others, "comm=gr\u00fcn tgid=7", None)) == [{}] * (len(others) + 2)
    path.write_bytes(
        START + packet(FRAME, options((1, b"seen by bob"), (1, b"comm=a pid=7 tgid=7"), (2, b"\x02\0\0\0")))
    )
    assert fields(path)[0]["tgid"] == ["7"]


def test_a_name_reaches_no_terminal(path: Path) -> None:
    """For any process name, the field is one line of printable ASCII, and no other field is forged."""
    names = [
        b"",
        b"\x1b[31m",
        b"a\nb",
        b"x tgid=1",
        bytes(range(1, 16)),
        b"gr\xc3\xb6n",
        b'"\\',
        b"\\x41",
        b"\xff" * 15,
    ]
    found = fields(write(path, *(comment([("comm", name), ("tgid", 7)]) for name in names)))
    said = [
        {"comm": [escaped_bytes(name)], "process": [escaped_bytes(name)], "tgid": ["7"], "via": ["current"]}
        for name in names
    ]
    assert found == said


KEY = st.sampled_from([*KEYS, "x", "long_key"])
VALUE = st.one_of(st.binary(max_size=20), st.integers(0, 2**33).map(lambda number: str(number).encode()))
SPELT = st.lists(st.tuples(KEY, VALUE), min_size=1, max_size=5, unique_by=lambda pair: pair[0]).map(comment)
ALIKE = st.lists(
    st.sampled_from([*'aZ7=" \\x3d', '="', '" ', "comm=", "tgid=", "\\x0a", "\\x3d", "via=a"]), max_size=12
)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.one_of(SPELT, ALIKE.map("".join)), min_size=199, max_size=199))
def test_it_reads_as_our_own_parser_does(tmp_path: Path, texts: list[str]) -> None:
    """For any comment, in the grammar or almost, the dissector accepts the same ones as
    skbcapd.pcapng.comment.
    """
    found = fields(write(tmp_path / "a.pcapng", *texts))
    wanted = [expected(text) for text in texts]
    for sums in wanted:  # numbers beyond 32 bits are not of skbcapd
        for key in (field.name for field in FIELDS.values() if field.is_number):
            if key in sums and int(sums[key][0]) >= 1 << 32:
                sums.setdefault("other", []).append(f"{key}={sums.pop(key)[0]}")
    assert [{key: sorted(texts) for key, texts in row.items()} for row in found] == [
        {key: sorted(texts) for key, texts in row.items()} for row in wanted
    ]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with the Wireshark files, copied as in docs/wireshark.md."""
    home = tmp_path / "home"
    shutil.copytree(WIRESHARK / "profiles", home / ".config/wireshark/profiles")
    plugins = home / ".local/lib/wireshark/plugins"
    plugins.mkdir(parents=True)
    shutil.copy(WIRESHARK / "skbcapd.lua", plugins)
    return home


def test_the_profile_has_the_columns(path: Path, home: Path) -> None:
    """With the profile, a line has process, via, direction and interface between the usual columns."""
    path.write_bytes(
        START
        + packet(FRAME, process(1058, "chronyd"))
        + packet(FRAME, process(1058, "chronyd", 1, " via=flow"))
        + packet(FRAME, with_comment(b"via=kernel"))
    )
    text = judge(path, "tshark", "-n", "-C", "skbcapd", "-T", "tabs", home=home)
    info = "0 \u2192 0 [BAD UDP LENGTH 0 < 8]"
    rest = f"eth0\t10.0.0.1\t\u2192\t10.0.0.2\tUDP\t60\t{info}"
    assert [re.sub(r" *\t *", "\t", line.strip()) for line in text.splitlines()] == [
        f"1\t0.000000000\tchronyd\t1058\tcurrent\tOutbound\t{rest}",
        f"2\t0.000000000\tchronyd\t1058\tflow\tInbound\t{rest}",
        f"3\t0.000000000\t\t\tkernel\t\t{rest}",
    ]


def test_the_profile_has_colors(path: Path, home: Path) -> None:
    """Each packet is colored by its via; a packet without a comment of skbcapd is not."""
    path.write_bytes(
        START
        + packet(FRAME, process(1058, "chronyd"))
        + packet(FRAME, process(1058, "chronyd", 1))
        + packet(FRAME, process(1058, "chronyd", 1, " via=socket"))
        + b"".join(
            packet(FRAME, with_comment(text)) for text in (b"via=kernel", b"via=forwarded", b"via=unknown", b"hi")
        )
        + packet(FRAME, process(1058, "chronyd", 1, " drop=NO_SOCKET"))
        + packet(FRAME, with_comment(b"drop=NO_SOCKET at=udp_rcv via=unknown"))
    )
    rule = ("-T", "fields", "-e", "frame.coloring_rule.name")
    assert judge(path, "tshark", "-C", "skbcapd", "--color", *rule, home=home).splitlines() == [
        "skbcapd: sent",
        "skbcapd: received",
        "skbcapd: received",
        "skbcapd: kernel",
        "skbcapd: forwarded",
        "skbcapd: unknown process",
        "",
        "skbcapd: dropped",
        "skbcapd: dropped",
    ]


def copies(path: Path) -> Path:
    """A TCP connection on two interfaces, both with the same identifiers; segment 7 is really sent again."""
    there = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    out = there / IP(src="10.0.0.1", dst="10.0.0.2")
    into = there / IP(src="10.0.0.2", dst="10.0.0.1")
    ports, back = {"sport": 40000, "dport": 80, "window": 500}, {"sport": 80, "dport": 40000, "window": 500}
    segments = [
        out / TCP(**ports, flags="S", seq=100),
        into / TCP(**back, flags="SA", seq=900, ack=101),
        out / TCP(**ports, flags="A", seq=101, ack=901),
        out / TCP(**ports, flags="PA", seq=101, ack=901) / (b"x" * 10),
        into / TCP(**back, flags="A", seq=901, ack=111),
        out / TCP(**ports, flags="PA", seq=111, ack=901) / (b"y" * 10),
        out / TCP(**ports, flags="PA", seq=111, ack=901) / (b"y" * 10),
        into / TCP(**back, flags="A", seq=901, ack=121),
    ]
    blocks = []
    for number, segment in enumerate(segments, 1):
        opts = with_comment(b"comm=a pid=7 tgid=7", (2, b"\x02\0\0\0"), (5, struct.pack("<Q", 1 << 63 | number)))
        times = (number * 10**9, number * 10**9 + 1000)
        blocks += [packet(bytes(segment), opts, number=at, time=time) for at, time in enumerate(times)]
    path.write_bytes(START + interface(opts=options((2, b"br0"), (9, b"\x09"))) + b"".join(blocks))
    return path


def numbers(path: Path, where: str, *arguments: str) -> list[int]:
    """The numbers of the frames that a display filter selects."""
    found = judge(path, "tshark", *DISSECTOR, *arguments, "-Y", where, "-T", "fields", "-e", "frame.number")
    return [int(line) for line in found.split()]


@pytest.mark.parametrize("passes", [(), ("-2",)])
def test_a_packet_on_a_second_interface_is_a_copy(passes: tuple[str, ...], path: Path) -> None:
    """skbcapd.copy names the first frame of a packet; without copies, only the real retransmission is marked."""
    copies(path)
    assert numbers(path, "skbcapd.copy", *passes) == list(range(2, 17, 2))
    assert numbers(path, "skbcapd.copy == 3", *passes) == [4]
    assert numbers(path, "tcp.analysis.retransmission", *passes) == [2, 4, 8, 12, 13, 14]
    assert numbers(path, "tcp.analysis.retransmission && !skbcapd.copy", *passes) == [13]
    assert numbers(path, "tcp.analysis.flags && !skbcapd.copy", *passes) == [13]


def entries(name: str) -> list[list[str]]:
    """The rows of a table of the profile, in the format of Wireshark, which escapes quotes."""
    lines = (WIRESHARK / "profiles/skbcapd" / name).read_text().splitlines()
    rows = [re.findall(r'"((?:[^"\\]|\\x[0-9a-f]{2})*)"(?:,|$)', line) for line in lines if not line.startswith("#")]
    assert all(
        line.count('"') == 2 * len(row) for line, row in zip([x for x in lines if x[0] != "#"], rows, strict=True)
    )
    return [[re.sub(r"\\x(..)", lambda match: chr(int(match[1], 16)), text) for text in row] for row in rows]


def test_filter_buttons_and_graphs_have_valid_filters(path: Path, home: Path) -> None:
    """The profile is read without a complaint, and each filter of a button or graph selects what it says."""
    copies(path)
    judge(path, "tshark", "-C", "skbcapd", home=home)
    buttons, graphs = entries("dfilter_buttons"), entries("io_graphs")
    assert {len(row) for row in buttons} == {4}
    names = [row[1] for row in buttons + graphs]
    assert names.count("Dropped") == 2  # a button and a graph
    assert {len(row) for row in graphs} == {9}
    found = {row[1]: numbers(path, row[2]) for row in buttons + graphs if "${" not in row[2]}
    firsts = list(range(1, 17, 2))
    assert found == {
        "No copies": firsts,
        "TCP problems": [13],
        "Dropped": [],
        "No process": [],
        "All packets": firsts,
        "Sent by a process": firsts,
        "Received by a process": [],
        "Unknown process": [],
        "Kernel and forwarded": [],
        "Frames by process id": list(range(1, 17)),
    }
    for row in buttons:
        if "${" in row[2]:  # refers to the selected packet, which tshark has not
            assert numbers(path, row[2]) == []
    kinds = {(row[0], row[4], row[5], row[7], row[8]) for row in graphs}
    assert kinds <= {
        (shown, style, unit, "None", "1")
        for shown in ("Enabled", "Disabled")
        for style in ("Line", "Bar", "Dot")
        for unit in ("Bits", "Packets", "MAX(Y Field)")
    }


@pytest.mark.parametrize("row", ['"MAYBE","a","ip","b"', '"TRUE","a","x""y","b"', '"TRUE","a","ip","b","c"'])
def test_tshark_finds_a_wrong_button(row: str, path: Path, home: Path) -> None:
    """A row in a wrong format is reported by tshark, so the test above can fail."""
    copies(path)
    (home / ".config/wireshark/profiles/skbcapd/dfilter_buttons").write_text(row + "\n")
    with pytest.raises(AssertionError, match="tshark"):
        judge(path, "tshark", "-C", "skbcapd", home=home)
