"""`skbcapd report`: sums compared with those of `top`, limits, and what the page does with hostile text."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from skbcapd.__main__ import main
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.analysis.sources import Sources
from skbcapd.analysis.top import as_json
from skbcapd.errors import FileError, UsageError
from skbcapd.pcapng import comment as label
from skbcapd.report import page as pages
from skbcapd.report.causes import Causes, Kind
from skbcapd.report.collect import Collector
from skbcapd.report.flows import Connection, End, Flows
from skbcapd.report.timeline import Timeline
from tests.support.strangers import SHB, block, comment, interface, options, packet, process, section, udp

START = section() + interface(opts=options((9, b"\x09"), (2, b"eth<0>")))
TIME_NS = 1_622_469_600_123_456_789
HOSTILE = ("</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a&amp;b", "=cmd|' /C'!A0", "<!--")


def _statistics(number: int, received: int, matched: int, dropped: int) -> bytes:
    body = struct.pack("<III", number, 0, 0) + options(
        *((code, struct.pack("<Q", value)) for code, value in ((4, received), (6, matched), (7, dropped)))
    )
    return struct.pack("<II", 5, 12 + len(body)) + body + struct.pack("<I", 12 + len(body))


def _traffic(path: Path, count: int = 500, names: tuple[str, ...] = ("curl", "dig", "nginx")) -> None:
    chance = random.Random(3)
    blocks = [START]
    for number in range(count):
        at, direction = chance.randrange(len(names)), chance.choice((1, 2))
        here, there = "10.0.0.1", f"192.168.7.{chance.randrange(5)}"
        frame = udp(*((here, there) if direction == 2 else (there, here)), size=chance.randrange(60, 900))
        text = label.comment([("comm", names[at].encode()), ("pid", 7), ("tgid", 100 + at)])
        opts = comment(text.encode(), (2, struct.pack("<I", direction)))
        blocks.append(packet(frame, opts, time=TIME_NS + number * 10**7, wire_len=len(frame)))
    blocks.append(
        packet(
            udp("10.0.0.9", "10.0.0.1", size=70),
            comment(b"via=unknown", (2, struct.pack("<I", 1))),
            time=TIME_NS,
            wire_len=70,
        )
    )
    path.write_bytes(b"".join(blocks) + _statistics(0, count + 9, count + 1, 7))


def _collected(*paths: Path, by: str = "tgid") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a report has, and what `top --json` has."""
    collector = Collector(by)
    sources = Sources(paths, Selection(Selectors()), ended=collector.origins.add)
    collector.read(sources.unordered())
    rows = json.loads("".join(as_json(collector._account.processes, by)))
    return json.loads(json.dumps(collector.result())), rows


@pytest.mark.parametrize("by", ["tgid", "process"])
def test_its_rows_are_those_of_top(tmp_path: Path, by: str) -> None:
    """The sums of each row are those of `skbcapd top --json`."""
    _traffic(path := tmp_path / "a.pcapng")
    data, rows = _collected(path, by=by)
    keys = set(rows[0]) - {"peers", "comms"}
    assert [{key: row[key] for key in keys} for row in data["rows"]] == [
        {key: row[key] for key in keys} for row in rows
    ]
    assert [row["peers"] for row in data["rows"]] == [len(row["peers"]) for row in rows]
    assert data["packets"] == 501
    assert data["bytes"] == sum(row["bytes"] for row in rows)


def test_all_sums_are_equal(tmp_path: Path) -> None:
    """Timeline, connections, protocols and links have the same sums as the rows."""
    _traffic(path := tmp_path / "a.pcapng")
    data, _ = _collected(path)
    for key in ("packets", "bytes"):
        assert sum(sum(each[key]) for each in data["timeline"]["series"]) == data[key]
        assert sum(each[key] for each in data["connections"]) == data[key]
        assert sum(each[key] for each in data["protocols"]) == data[key]
    assert sum(link["bytes"] for link in data["links"]) == data["bytes"]
    assert sum(pair["bytes"] for pair in data["pairs"]) == data["bytes"]
    assert data["morePairs"] == {"rows": 0, "bytes": 0}
    assert len(data["timeline"]["series"][0]["bytes"]) <= 240
    (unknown,) = data["unattributed"]
    assert (unknown["via"], unknown["packets"], unknown["bytes"]) == ("unknown", 1, 70)
    assert (unknown["direction"], unknown["protocol"]) == ("received", "UDP")
    assert "no socket has the port" in unknown["why"]


def test_losses_of_several_sections_are_added_up(tmp_path: Path) -> None:
    """Also of a section without packets."""
    paths = [tmp_path / "a.pcapng", tmp_path / "b.pcapng"]
    for path in paths:
        _traffic(path, 20)
    paths[1].write_bytes(paths[1].read_bytes() + START + _statistics(0, 1000, 0, 1000))  # no packets, only losses
    data, _ = _collected(*paths)
    (found,) = data["interfaces"]
    assert found["name"] == "eth<0>"
    assert (found["received"], found["matched"], found["dropped"]) == (1058, 42, 1014)
    assert found["interface"] is None


def _tcp(source: str, destination: str, flags: int) -> bytes:
    frame = bytearray(udp(source, destination, size=54))
    frame[23], frame[46], frame[47] = 6, 5 << 4, flags
    frame[34:38] = struct.pack(">HH", 40000, 80) if destination.endswith(".1") else struct.pack(">HH", 80, 40000)
    return bytes(frame)


def test_packets_without_a_process_have_a_cause(tmp_path: Path) -> None:
    """By `via`, direction and protocol, with what other packets of the connection say; the sums are those of `top`."""

    def unowned(via: str, frame: bytes, flags: int, count: int = 1) -> bytes:
        opts = comment(f"via={via}".encode(), (2, struct.pack("<I", flags)))
        return packet(frame, opts, time=TIME_NS, wire_len=len(frame)) * count

    here, there, other = "10.0.0.1", "10.0.0.2", "10.0.0.3"
    arp, icmp = b"\xff" * 12 + b"\x08\x06" + bytes(28), bytearray(udp(there, here))
    icmp[23] = 1  # an echo reply
    blocks = [
        START,
        unowned("unknown", _tcp(there, here, 2), 1, 2),  # before the server has accepted the connection
        packet(_tcp(here, there, 16), process(7, "nginx"), time=TIME_NS, wire_len=54),
        unowned("unknown", _tcp(other, here, 2), 1, 3),
        unowned("unknown", _tcp(other, here, 16), 1),
        unowned("kernel", _tcp(here, other, 4), 2, 5),
        unowned("kernel", arp, 2),
        unowned("unknown", arp, 1),
        unowned("unknown", udp(there, here), 1 | 4 << 2, 7),
        unowned("unknown", bytes(icmp), 1),
        unowned("unknown", udp(here, there), 2),
        unowned("forwarded", udp(there, other), 2, 11),
        packet(udp(there, here), time=TIME_NS, wire_len=60) * 13,
    ]
    (path := tmp_path / "a.pcapng").write_bytes(b"".join(blocks))
    data, rows = _collected(path)
    found = {
        (row["via"], row["direction"], row["protocol"], row["packets"]): row["why"] for row in data["unattributed"]
    }
    assert list(found) == sorted(found, key=lambda key: -key[3])
    expected = {
        ("unknown", "received", "TCP SYN", 2): "other packets of the connection have a process: it arrived before",
        ("unknown", "received", "TCP SYN", 3): "no process listens at the port",
        ("unknown", "received", "TCP", 1): "it belongs to no known connection",
        ("kernel", "sent", "TCP RST", 5): "the kernel resets a connection",
        ("kernel", "sent", "ARP", 1): "address resolution",
        ("unknown", "received", "ARP", 1): "the kernel itself receives",
        ("unknown", "received", "UDP", 7): "it is for another machine",
        ("unknown", "received", "echo reply", 1): "no process is known that has sent the request",
        ("unknown", "sent", "UDP", 1): "it left in a tunnel",
        ("forwarded", "sent", "", 11): "it came in through another interface",
        (None, "", "", 13): "the file does not say",
    }
    assert found.keys() == expected.keys()
    for key, why in expected.items():
        assert found[key].startswith(why), key
    assert sum(row["packets"] for row in data["unattributed"]) == sum(row["packets"] for row in rows if not row["tgid"])


def test_causes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limits nothing is distinguished, and everything is counted."""
    monkeypatch.setattr("skbcapd.report.causes._CELLS_MAX", 100)
    causes: Causes[str] = Causes()
    for number in range(500):
        end = End(bytes(4), number)
        connection = Connection("tcp/80", end, end, 0, 0, "", is_owned=False, has_process=True)
        causes.add(Kind(b"unknown", 1, "TCP"), connection, 10)
        causes.add(Kind(b"%d" % number, 2, "UDP"), None, 1)
    assert len(causes._sums) < 200
    found = list(causes.rows())
    assert len(found) <= 70
    assert (sum(row[2] for row in found), sum(row[3] for row in found)) == (1000, 5500)


def test_origins_have_the_settings_of_each_host(tmp_path: Path) -> None:
    """Interfaces of two hosts are two rows; those beyond the limit are added up."""
    blocks = []
    for host in (b"a", b"b", b"a"):
        texts = (2, b"x86_64"), (3, b"Linux " + host), (4, b"skbcapd 9"), (1, b"on " + host)
        blocks.append(block(SHB, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + options(*texts)))
        settings = (2, b"eth0"), (3, b"netns"), (6, bytes(5) + host), (8, struct.pack("<Q", 10**9)), (9, b"\x09")
        blocks.append(interface(opts=options(*settings, (11, b"\0tcp"), (12, b"Linux")), snaplen=96))
        times = options((2, struct.pack("<II", 0, 10**6)), (3, struct.pack("<II", 0, 7 * 10**6)))
        body = struct.pack("<III", 0, 0, 0) + options((4, struct.pack("<Q", 11)))[:-4] + times
        blocks.append(block(5, body))
    (path := tmp_path / "a.pcapng").write_bytes(b"".join(blocks))
    data, _ = _collected(path)
    a, b = data["captures"]
    assert a == {
        "hardware": "x86_64",
        "os": "Linux a",
        "application": "skbcapd 9",
        "comment": "on a",
        "first": 1,
        "last": 7,
        "sections": 2,
    }
    assert (b["os"], b["sections"]) == ("Linux b", 1)
    eth0, other = data["interfaces"]
    assert eth0 == {
        "name": "eth0",
        "description": "netns",
        "filter": "tcp",
        "linkType": 1,
        "snaplen": 96,
        "address": "00:00:00:00:00:61",
        "speed": 10**9,
        "os": "Linux",
        "received": 22,
        "matched": None,
        "dropped": None,
        "interface": None,
    }
    assert (other["address"], other["received"]) == ("00:00:00:00:00:62", 11)
    blocks = [section(), *(interface(opts=options((2, b"%d" % number))) for number in range(600))]
    (path := tmp_path / "b.pcapng").write_bytes(b"".join(blocks) + _statistics(599, 3, 2, 1))
    data, _ = _collected(path)
    assert len(data["interfaces"]) == 501
    assert data["interfaces"][-1]["name"] == "others"
    assert data["interfaces"][-1]["received"] == 3


def test_the_page_has_hostile_names_as_data_only(tmp_path: Path) -> None:
    """No text from a file is HTML, and nothing is loaded from elsewhere."""
    _traffic(path := tmp_path / "a.pcapng", names=HOSTILE)
    data, _ = _collected(path)
    text = pages.page("by <process>", data | {"errors": ["</script>"], "settings": []}, "library</script>")
    assert {row["process"] for row in data["rows"]} >= set(HOSTILE)
    assert text.count("</script") == 3  # those of the template
    assert "<img" not in text
    assert "<!--" not in text
    assert "<title>by &lt;process></title>" in text
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert inside
    assert json.loads(inside[1]) == data | {"errors": ["</script>"], "settings": []}
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text)


def test_a_page_of_many_processes_is_bounded(tmp_path: Path) -> None:
    """Rows beyond the limit are added up."""
    count = 6000
    frame = udp("10.0.0.1", "192.168.7.1", size=60)
    names = [f"p{number:06}{'x' * 9}" for number in range(count)]
    with (path := tmp_path / "a.pcapng").open("wb") as file:
        file.write(START)
        for number, name in enumerate(names):
            file.write(packet(frame, process(100 + number, name, 2), time=TIME_NS + number * 10**8, wire_len=60))
    data, rows = _collected(path)
    assert data["packets"] == count
    assert len(data["rows"]) == 5000
    assert data["more"]["rows"] == len(rows) - 5000
    assert len(data["pairs"]) == 5000
    assert data["morePairs"] == {"rows": 1000, "bytes": 60_000}
    assert data["more"]["packets"] + sum(row["packets"] for row in data["rows"]) == count
    assert sum(sum(each["packets"]) for each in data["timeline"]["series"]) == count
    assert len(pages.page("t", data | {"errors": [], "settings": []}, "")) < 4 << 20  # the library has 5 MB


def test_a_timeline_has_a_bounded_number_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals become longer, and many keys are added up."""
    monkeypatch.setattr("skbcapd.report.timeline._CELLS_MAX", 1000)
    monkeypatch.setattr("skbcapd.report.timeline._KEYS_MAX", 100)
    timeline = Timeline("others")
    for number in range(30_000):
        timeline.add(number * 10**9, "a", 10)
    for number in range(500):
        timeline.add(0, str(number), 1)
    assert timeline._count <= 1000
    begin_ns, ((packets, sizes), (others, _)) = timeline.series([["a"], ["others"]], 100)
    assert begin_ns == 0
    assert len(packets) <= 100
    assert sum(packets) == 30_000
    assert sum(sizes) == 300_000
    assert sum(others) == 500 - 99


def test_a_timeline_without_packets() -> None:
    """It is empty."""
    assert Timeline("others").series([[]], 100) == (0, [[[], []]])


def test_connections_have_both_directions_and_the_first_known_owner() -> None:
    """A connection has two directions, and belongs to a process if any of its packets does."""
    flows: Flows[str] = Flows()
    there, back = bytearray(udp("10.0.0.1", "10.0.0.2", size=80)), bytearray(udp("10.0.0.2", "10.0.0.1", size=90))
    there[34:38], back[34:38] = struct.pack(">HH", 7, 53), struct.pack(">HH", 53, 7)
    flows.add(5, memoryview(back), 1, 1, 90, "unknown", is_owned=False)
    flows.add(3, memoryview(there), 1, 2, 80, "dig", is_owned=True)
    flows.add(9, memoryview(b"\0" * 12 + b"\x08\x06" + b"\0" * 28), 1, 1, 42, "arp", is_owned=False)
    (found,) = flows.connections
    assert (found.packets, found.bytes, found.first_ns, found.last_ns, found.owner) == (2, 170, 3, 5, "dig")
    assert (str(found.local), str(found.remote)) == ("10.0.0.1:7", "10.0.0.2:53")
    assert flows.protocols["arp"] == [1, 42]
    assert flows.left_out == 1


def test_without_the_library_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has a hint."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="found no charting library") as caught:
        pages.plotly()
    assert "pip install plotly; otherwise: --plotly FILE" in str(caught.value.hint)


def test_the_library_can_be_a_file(tmp_path: Path) -> None:
    """Its text is used; a file that is not there is one line."""
    (file := tmp_path / "plotly.min.js").write_text("const Plotly = 7;")
    assert pages.plotly(file) == "const Plotly = 7;"
    with pytest.raises(FileError, match=r"missing.js: No such file or directory; expected plotly.min.js"):
        pages.plotly(tmp_path / "missing.js")


def test_errors_of_a_file_are_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The page is written for a truncated file, too; a source is never overwritten."""
    _traffic(path := tmp_path / "a.pcapng", 20)
    path.write_bytes(path.read_bytes()[:-5])
    monkeypatch.setattr("skbcapd.report.report.plotly", lambda _file: "")
    monkeypatch.setattr("sys.argv", ["skbcapd", "report", str(path), "-o", str(out := tmp_path / "out.html")])
    assert main() == 1
    assert "a.pcapng" in capfd.readouterr().err
    text = out.read_text()
    assert "the file ends" in text
    assert f"{path} -o" in text  # the command line
    monkeypatch.setattr("sys.argv", ["skbcapd", "report", str(path), "-o", str(path)])
    assert main() == 1
    assert "is read and written" in caplog.text
