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
from skbcapd.report.collect import Collector
from skbcapd.report.flows import Flows
from skbcapd.report.timeline import Timeline
from tests.support.strangers import comment, interface, options, packet, process, section, udp

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
    sources = Sources(paths, Selection(Selectors()), has_statistics=True)
    collector.read(sources.unordered())
    rows = json.loads("".join(as_json(collector._account.processes, by)))
    return json.loads(json.dumps(collector.result(sources.sections))), rows


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
    assert len(data["timeline"]["series"][0]["bytes"]) <= 240
    (unknown,) = data["unattributed"]
    assert (unknown["via"], unknown["packets"], unknown["bytes"]) == ("unknown", 1, 70)
    assert "proven" in unknown["why"]


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
    assert "pip install plotly" in str(caught.value.hint)


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
