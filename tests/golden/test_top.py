"""`skbcapd top`: its sums compared with those of tshark for the same file."""

from __future__ import annotations

import collections
import csv
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

import skbcapd
from skbcapd.pcapng import comment as label
from skbcapd.text_safety import escaped_bytes
from tests.support import faults
from tests.support.deadline import DEADLINE_S
from tests.support.judges import rows
from tests.support.memory import peak
from tests.support.strangers import comment, interface, options, packet, pcap, process, section, udp

ROOT = Path(skbcapd.__file__).parent.parent
NANOSECONDS = options((9, b"\x09"))
START = section() + interface(opts=NANOSECONDS)
HEADINGS = "TGID  PROCESS  PACKETS  BYTES  SENT  RECEIVED  FIRST (UTC)  LAST (UTC)  PEERS\n"
# Runs with a few MB more memory than it already uses.
SMALL = """
import re, resource, sys
from pathlib import Path
from skbcapd.__main__ import main
has = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (has + (11 << 20),) * 2)
sys.exit(main())
"""
HINT = "  (hint) check MemoryMax= of the unit, `ulimit -v`, and the free memory of this system\n"
TIME_NS = 1_622_469_600_123_456_789


def top(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `skbcapd top`."""
    done = subprocess.run(
        [sys.executable, "-m", "skbcapd", "top", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the capture file of the test."""
    return tmp_path / "a.pcapng"


def traffic(path: Path, count: int = 1009) -> None:
    """Packets of 7 processes with 11 peers, IPv4, with and without VLAN tags, in two directions."""
    chance = random.Random(5)
    with path.open("wb") as file:
        file.write(START)
        for number in range(count):
            tgid, direction = chance.randrange(100, 107), chance.choice((1, 2))
            here, there = "10.0.0.1", f"192.168.7.{chance.randrange(11)}"
            size, tags = chance.randrange(60, 1500), chance.choice((0, 0, 1, 2))
            ends = (here, there) if direction == 2 else (there, here)
            frame = udp(*ends, size=size, tags=tags)
            opts = process(tgid, f"p{tgid}", direction)
            file.write(packet(frame[:64], opts, time=TIME_NS + number * 10**6, wire_len=size))


def test_sums_are_those_of_tshark(path: Path) -> None:
    """Packets, bytes, directions, first, last and peers of each process are the sums of tshark's
    fields.
    """
    traffic(path)
    expected: dict[int, dict[str, Any]] = {}
    peers: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    fields = ("frame.comment", "frame.packet_flags_direction", "frame.len", "ip.src", "ip.dst", "frame.time_epoch")
    for text, direction, size, source, destination, time in rows(path, *fields):
        tgid, way = int(text.rpartition("=")[2]), {1: "received", 2: "sent"}[int(direction, 0)]
        sums = expected.setdefault(tgid, collections.Counter())
        for name, more in (("packets", 1), ("bytes", int(size)), (f"{way}_packets", 1), (f"{way}_bytes", int(size))):
            sums[name] += more
        peers[tgid][destination if way == "sent" else source] += int(size)
        sums.setdefault("first", time)
        sums["last"] = time
    code, out, err = top("--json", path)
    found = json.loads(out)
    assert (code, err, len(found)) == (0, "", 7)
    assert [each["bytes"] for each in found] == sorted((each["bytes"] for each in found), reverse=True)
    for each in found:
        sums = expected[each["tgid"]]
        for key, value in sums.items():
            if key in {"first", "last"}:
                assert each[key].endswith(str(value).partition(".")[2] + "Z")
            else:
                assert each[key] == value
        assert {peer["address"]: peer["bytes"] for peer in each["peers"]} == peers[each["tgid"]]
        assert (each["comm"], each["comms"], each["via"]) == (f"p{each['tgid']}", [f"p{each['tgid']}"], None)


def test_the_table(path: Path) -> None:
    """A line for each process, most bytes first: names as printable ASCII, unknown ones by via."""
    forged = comment(rb'comm="\x1b[31m\x0atmux: x" pid=7 tgid=8', (2, b"\x01\0\0\0"))
    path.write_bytes(
        START
        + packet(udp("10.0.0.1", "10.0.0.2"), process(1058, "chronyd"), time=TIME_NS)
        + packet(udp("10.0.0.1", "10.0.0.3"), process(1058, "chronyd-worker"), time=TIME_NS + 1000)
        + packet(udp("10.0.0.1", "10.0.0.2"), process(1058, "chronyd"), time=TIME_NS)
        + packet(udp("10.0.0.9", "10.0.0.2"), forged, time=TIME_NS, wire_len=99)
        + packet(b"arp?", comment(b"via=kernel", (2, b"\x02\0\0\0")), time=TIME_NS)
        + packet(b"x", time=TIME_NS)
    )
    when = "2021-05-31 14:00:00.123456"
    code, out, err = top(path)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "TGID  PROCESS              PACKETS  BYTES  SENT  RECEIVED  FIRST (UTC)                 LAST (UTC)"
        + 18 * " "
        + "PEERS",
        f"1058  chronyd +1                 3    180   180         0  {when}  {when[:-1]}7  10.0.0.2, 10.0.0.3",
        rf"   8  \x1b[31m\x0atmux: x        1     99     0        99  {when}  {when}  10.0.0.9",
        f"   -  via=kernel                 1      4     4         0  {when}  {when}",
        f"   -  -                          1      1     0         0  {when}  {when}",
    ]


def dig(path: Path) -> None:
    """Two runs of dig, whose threads have other names, a packet of a main thread, and one without a
    process.
    """
    thread = process(7, "isc-net-0000", more=" process=dig container=web")
    other = process(8, "isc-net-0001", more=" process=dig container=web")
    path.write_bytes(
        START
        + packet(udp("10.0.0.1", "10.0.0.2"), thread) * 5
        + packet(udp("10.0.0.1", "10.0.0.3"), other) * 3
        + packet(udp("10.0.0.1", "10.0.0.3"), process(8, "dig"))
        + packet(udp("10.0.0.1", "10.0.0.4"), process(9, "chronyd"))
        + packet(udp("10.0.0.1", "10.0.0.4"), comment(b"via=forwarded"))
    )


def test_a_process_is_found_by_its_name(path: Path) -> None:
    """A row has the name of the process, whatever the names of its threads; those are in JSON."""
    dig(path)
    assert [line.split()[:3] for line in top(path)[1].splitlines()] == [
        ["TGID", "PROCESS", "PACKETS"],
        ["7", "dig", "5"],
        ["8", "dig", "4"],
        ["9", "chronyd", "1"],
        ["-", "via=forwarded", "1"],
    ]
    found = json.loads(top("--json", path)[1])
    assert [(each["process"], each["comms"]) for each in found[:2]] == [
        ("dig", ["isc-net-0000"]),
        ("dig", ["isc-net-0001", "dig"]),
    ]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("process", [("-", "dig", "9"), ("9", "chronyd", "1"), ("-", "via=forwarded", "1")]),
        (
            "comm",
            [
                *(("7", "isc-net-0000", "5"), ("8", "isc-net-0001", "3"), ("8", "dig", "1"), ("9", "chronyd", "1")),
                ("-", "via=forwarded", "1"),
            ],
        ),
        ("container", [("-", "web", "8"), ("-", "-", "2"), ("-", "via=forwarded", "1")]),
    ],
)
def test_by_another_field(by: str, expected: list[tuple[str, str, str]], path: Path) -> None:
    """Packets of one row have the same value of the field in --by; all forms have it and the sums."""
    dig(path)
    lines = top("--by", by, path)[1].splitlines()
    assert lines[0].split()[1] == by.upper()
    assert [tuple(line.split()[:3]) for line in lines[1:]] == expected
    found = json.loads(top("--by", by, "--json", path)[1])
    assert [str(each["packets"]) for each in found] == [packets for _, _, packets in expected]
    assert [each[by] or "-" for each in found] == ["-" if name.startswith("via=") else name for _, name, _ in expected]
    cells = csv.DictReader(io.StringIO(top("--by", by, "--csv", path)[1]))
    assert [line["packets"] for line in cells] == [packets for _, _, packets in expected]


def test_csv_has_no_formulas(path: Path) -> None:
    """A name that a spreadsheet would read as a formula has an apostrophe before it, and no name
    ends its cell.
    """
    names = ["=cmd|' /C calc'!A0", "+1", "-bash", "@SUM(1)", 'a"=1+1', "a;=1", "\t=1", "chronyd"]
    made = (label.comment([("comm", name.encode()), ("pid", 7), ("tgid", tgid)]) for tgid, name in enumerate(names, 7))
    path.write_bytes(START + b"".join(packet(b"x", comment(text.encode())) for text in made))
    _, out, _ = top("--csv", path)
    found = {line["tgid"]: line["process"] for line in csv.DictReader(io.StringIO(out))}
    expected = [f"'{name}" if name[0] in "=+-@" else escaped_bytes(name.encode()) for name in names]
    assert [found[str(tgid)] for tgid, _ in enumerate(names, 7)] == expected
    cells = [cell for line in out.splitlines()[1:] for cell in re.findall(r'"(?:[^"]|"")*"|[^,]+', line)]
    formulas = sum(cell.lstrip('"')[:1] in {"=", "+", "@", "-"} for cell in cells)
    faults.compare("formulas as names in top --csv", len(names), f"{formulas} formulas in {len(cells)} cells")
    assert all(re.fullmatch(r'"(?![=+@-])(?:[^"]|"")*"|[0-9]+', cell) for cell in cells)


def test_csv(path: Path) -> None:
    """CSV has headings and a line for each process, with the number of peers and the busiest of
    them.
    """
    traffic(path)
    code, out, err = top("--csv", path)
    found = list(csv.DictReader(io.StringIO(out)))
    assert (code, err, len(found)) == (0, "", 7)
    assert all(int(line["sent_packets"]) + int(line["received_packets"]) == int(line["packets"]) for line in found)
    assert {(line["peers"], len(line["busiest"].split())) for line in found} == {("11", 10)}
    assert sum(int(line["packets"]) for line in found) == 1009


@pytest.mark.parametrize("tool", ["gzip", "zstd"])
def test_several_and_compressed_files(tool: str, path: Path) -> None:
    """Files are added up; a compressed one counts like the uncompressed one."""
    traffic(path)
    subprocess.run([tool, "-q", "-k", str(path)], check=True)
    copy = next(each for each in path.parent.iterdir() if each != path)
    once, twice = (json.loads(top("--json", *files)[1]) for files in ([copy], [path, copy]))
    assert sum(each["packets"] for each in once) == 1009
    assert [each["packets"] * 2 for each in once] == [each["packets"] for each in twice]


@pytest.mark.parametrize(("form", "named"), [("pcapng", 7), ("pcap", 0), ("nsecpcap", 0)])
def test_files_that_wireshark_wrote(form: str, named: int, path: Path) -> None:
    """The output of editcap for one of our captures has the same sums; as pcap, without comments,
    in one row.
    """
    traffic(path)
    copy = path.with_name("copy")
    subprocess.run(["editcap", "-F", form, str(path), str(copy)], capture_output=True, check=True)
    ours, theirs = (json.loads(top("--json", file)[1]) for file in (path, copy))
    assert [each["tgid"] is not None for each in theirs] == ([True] * named or [False])
    assert sum(each["bytes"] for each in theirs) == sum(each["bytes"] for each in ours)
    if named:
        assert theirs == ours


def test_ipv6_and_raw(path: Path) -> None:
    """Peers of IPv6 and of interfaces without a link layer are found; packets without IP, and cut
    headers, have none.
    """
    raw = bytes.fromhex("6000000000001140") + bytes(15) + b"\x01" + bytes(15) + b"\x02"
    path.write_bytes(
        section()
        + interface()
        + interface(link_type=101)
        + interface(link_type=147)
        + packet(raw, process(1, "a", 2), number=1)
        + packet(raw, process(1, "a", 1), number=1)
        + packet(bytes(12) + b"\x86\xdd" + raw, process(2, "a", 2))
        + packet(udp("1.2.3.4", "5.6.7.8")[14:], process(3, "a", 2), number=1)
        + packet(bytes(12) + b"\x86\xdd" + raw[:39], process(4, "a", 2))
        + packet(raw, process(5, "a", 2), number=2)
        + packet(b"", process(6, "a", 2), number=1)
        + packet(udp("1.2.3.4", "5.6.7.8"), process(7, "a", 0))
        + packet(bytes(12) + b"\x81\x00" * 11, process(8, "a", 2))
    )
    found = json.loads(top("--json", path)[1])
    addresses = {each["tgid"]: {peer["address"] for peer in each["peers"]} for each in found}
    nobody: set[str] = set()
    expected = {1: {"::1", "::2"}, 2: {"::2"}, 3: {"5.6.7.8"}, 4: nobody, 5: nobody, 6: nobody, 7: nobody, 8: nobody}
    assert addresses == expected


@pytest.mark.parametrize(
    ("content", "code", "lines", "said"),
    [
        (pcap([b"one", b"two"]), 0, 2, "no packet has a process; check that skbcapd wrote the files"),
        (
            START + packet(b"x") * 3,
            0,
            2,
            "no packet has a process; check that skbcapd wrote the files",
        ),
        (START + packet(opts=comment(b"PID: 7\nCmd: /bin/a")), 0, 2, ""),
        (START + packet(b"x", comment(b"via=forwarded")), 0, 2, ""),
        (START, 0, 1, ""),
        (b"garbage", 1, 1, "begins with 67 61 72 62 61 67 65; expected pcapng or pcap"),
        (b"", 1, 1, "empty; expected pcapng or pcap"),
        (START + packet(b"x", process(1, "a")) * 2 + b"torn", 1, 2, "the file ends 4 bytes into a block"),
        (b"\x28\xb5\x2f\xfdnot zstd", 1, 1, "zstd: "),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_files_of_others(content: bytes, code: int, lines: int, said: str, path: Path) -> None:
    """Files without processes, garbage and truncated files give the countable packets and one clear
    line, no traceback.
    """
    path.write_bytes(content)
    found, out, err = top(path)
    assert (found, len(out.splitlines())) == (code, lines)
    if content == START + packet(b"x", comment(b"via=forwarded")):
        faults.compare("top, all packets forwarded", 1, f"exit code {found}, {err.strip() or 'no message'}")
    assert said in err
    assert err.count("\n") == bool(said)


def test_times_outside_of_the_calendar(path: Path) -> None:
    """A file with the year 300000 gives seconds since 1970."""
    path.write_bytes(section() + interface(opts=options((9, b"\x00"))) + packet(b"x", process(1, "a"), time=1 << 43))
    code, out, _ = top(path)
    assert (code, "8796093022208.00000" in out) == (0, True)
    assert json.loads(top("--json", path)[1])[0]["first"] == "8796093022208.000000000s"


def test_a_closed_pipe_is_no_error(path: Path) -> None:
    """`top | head` ends without a message when the reader has ended."""
    traffic(path)
    end, other = os.pipe()
    os.close(end)
    with os.fdopen(other, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "skbcapd", "top", str(path)], cwd=ROOT, stdout=pipe, stderr=-1, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_file_that_cannot_be_read() -> None:
    """A read error, as on a bad sector, is one line and exit code 1: no traceback."""
    code, _, said = top("/proc/self/mem")
    faults.compare("top, a read that fails", 1, f"exit code {code}, {said.count(chr(10))} line")
    assert top("/proc/self/mem") == (1, HEADINGS, "skbcapd: /proc/self/mem: Input/output error at byte 0\n")


@pytest.mark.parametrize(
    ("form", "counted"),
    [
        (["--json"], r'^    "packets": (\d+),$'),
        (["--csv", "--by", "process"], r",(\d+),0,0,0,0,0,"),
        ([], r"  (\d+)      0     0         0  "),
    ],
)
def test_names_take_little_memory(form: list[str], counted: str, path: Path) -> None:
    """70,000 processes with different names of 500 bytes, which is too long for a name, need less
    than 192 MB.
    """
    count, name = 70_001, b"x" * 492
    with path.open("wb") as file:
        file.write(START)
        for number in range(count):
            text = b'comm="%b%08d" tgid=%d' % (name, number, number % 65536 + 1)
            file.write(packet(b"", comment(text)))
    with (path.parent / "out").open("w+") as out:
        code, kib = peak(path.parent / "peak", "top", *form, str(path), cwd=ROOT, stdout=out)
        out.seek(0)
        digits = [re.search(counted, line) for line in out]
    assert sum(int(found[1]) for found in digits if found) == count
    assert code == 0
    faults.compare(
        "names of many bytes in a capture", 1, f"{count} names, {' '.join(form) or 'table'}: {kib >> 10} MiB in top"
    )
    assert 10 << 10 < kib < 192 << 10


def test_no_memory_is_one_line(path: Path) -> None:
    """If there is not enough memory, one line says so."""
    with path.open("wb") as file:
        file.write(START)
        file.writelines(packet(b"x", process(tgid, "a")) for tgid in range(1, 65_536))
    done = subprocess.run(
        [sys.executable, "-c", SMALL, "top", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (1, "skbcapd: out of memory\n" + HINT)


def test_memory_is_bounded(path: Path) -> None:
    """Of 70,001 processes, the last are added up as others, and each packet is counted."""
    with path.open("wb") as file:
        file.write(START)
        file.writelines(packet(b"x", process(tgid, "a")) for tgid in range(1, 70_002))
    _, out, _ = top("--json", path)
    found = json.loads(out)
    assert len(found) == (1 << 16) + 1
    assert found[0]["via"] == "others"
    assert sum(each["packets"] for each in found) == 70_001


def talk(path: Path) -> None:
    """Two processes that ask for a name and talk to its address, and one that talks to another."""
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    server, resolver = "192.0.2.1", "10.0.0.53"
    records = DNSRR(rrname="example.com", type="A", rdata=server, ttl=60)
    answer = DNS(qr=1, qd=DNSQR(qname="example.com"), an=records, ancount=1)
    frames = [
        (ether / IP(src=resolver, dst="10.0.0.1") / UDP(sport=53, dport=40000) / answer, process(7, "curl", 1)),
        (ether / IP(src="10.0.0.1", dst=server) / TCP(sport=40001, dport=443) / Raw(bytes(700)), process(7, "curl", 2)),
        (ether / IP(src=server, dst="10.0.0.1") / TCP(sport=443, dport=40001) / Raw(bytes(900)), process(7, "curl", 1)),
        (
            ether / IP(src="10.0.0.1", dst=server) / UDP(sport=40002, dport=443) / Raw(bytes(90)),
            process(8, "firefox", 2),
        ),
        (ether / IP(src="10.0.0.1", dst="192.0.2.9") / TCP(sport=22, dport=40003), process(9, "sshd", 2)),
        (
            ether / ARP(psrc="10.0.0.1", pdst="10.0.0.2", hwsrc="02:00:00:00:00:01"),
            comment(b"via=kernel", (2, b"\x02\0\0\0")),
        ),
    ]
    path.write_bytes(START + b"".join(packet(bytes(frame), opts, time=TIME_NS) for frame, opts in frames))


def test_peers_have_services_and_names(path: Path) -> None:
    """A peer has the protocols and ports that were used, and the name that was asked for in the same file."""
    talk(path)
    code, out, err = top(path)
    assert (code, err) == (0, "")
    peers = [line.partition("2021-05-31")[2].partition("2021-05-31")[2][16:].strip() for line in out.splitlines()[1:]]
    assert peers == [
        "192.0.2.1 tcp/443 (example.com), 10.0.0.53 udp/53",
        "192.0.2.1 udp/443 (example.com)",
        "192.0.2.9 tcp/22",
        "",
    ]
    (first, *_) = json.loads(top("--json", path)[1])
    assert first["peers"][0] | {"bytes": 0} == {
        "address": "192.0.2.1",
        "packets": 2,
        "bytes": 0,
        "services": ["tcp/443"],
        "names": ["example.com"],
    }
    assert "example.com" not in top("--no-names", path)[1]
    assert "example.com" not in top("--no-names", "--json", path)[1]


def test_by_peer(path: Path) -> None:
    """A row for each peer has the sums that tshark finds for its address, and the processes that talk to it."""
    talk(path)
    code, out, err = top("--by", "peer", path)
    assert (code, err) == (0, "")
    head, *lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    assert (head[1], head[-1]) == ("PEER", "PROCESSES")
    assert [(line[0], line[1], line[-1]) for line in lines[:1]] == [
        ("-", "192.0.2.1 tcp/443 udp/443 (example.com)", "curl firefox")
    ]
    assert [line[1] for line in lines[1:3]] == ["10.0.0.53 udp/53", "192.0.2.9 tcp/22"]
    found = json.loads(top("--by", "peer", "--json", path)[1])
    for each in found:
        display = f"ip.addr == {each['peer']}" if each["peer"] else "!ip"
        sizes = [int(size) for (size,) in rows(path, "frame.len", where=display)]
        assert (each["packets"], each["bytes"]) == (len(sizes), sum(sizes))
    assert sum(each["packets"] for each in found) == 6
