"""The page of `skbcapd report` in a browser: no error, the numbers of `top`, hostile names, accessibility.

Chromium draws the page without a display. axe-core checks the accessibility; pip fetches the package that has it into
a cache outside the checkout.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from skbcapd.pcapng import comment as label
from skbcapd.text_safety import escaped_bytes
from tests.kernel.capture import Capture
from tests.kernel.namespace import Wire
from tests.support.cache import user_cache
from tests.support.chromium import Page, page
from tests.support.judges import rows
from tests.support.strangers import SHB, block, comment, interface, options, packet, pcap, process, section, udp

START = section() + interface(opts=options((9, b"\x09"), (2, b"eth0")))
TIME_NS = 1_790_000_000_000_000_000
AXE = "axe-playwright-python==0.1.8"  # has axe.min.js of axe-core
HOSTILE = (
    "</script><script>hacked=1</script>",
    "<img src=x onerror=hacked=1>",
    "<b>bold</b>",
    "a&lt;b",
    '"onclick="hacked=1',
    "=cmd|' /C'!A0",
    "\x1b[31mred",
    "\u202eright to left",
)
RESULT = """({
  hacked: typeof hacked !== "undefined", images: document.querySelectorAll("section img").length,
  scripts: document.querySelectorAll("body script").length, bold: document.querySelectorAll("section td b").length,
  charts: document.querySelectorAll(".js-plotly-plot svg.main-svg").length,
  rows: [...document.querySelectorAll("#rows tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent)),
  summary: document.getElementById("summary").textContent,
})"""
VIOLATIONS = """axe.run(document).then(({ violations }) => violations.map(
  ({ id, impact, nodes }) => [id, impact, nodes.length, nodes[0].html]
))"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    """A browser with one page."""
    with page(tmp_path / "profile") as made:
        yield made


@pytest.fixture(scope="session")
def axe() -> str:
    """The text of axe-core."""
    cache = user_cache() / "axe"
    name = AXE.replace("-", "_").replace("==", "-")
    if not (found := list(cache.glob(f"{name}*.whl"))):
        command = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--dest", str(cache), AXE]
        subprocess.run(command, check=True, timeout=300)
        found = list(cache.glob(f"{name}*.whl"))
    with zipfile.ZipFile(found[0]) as archive:
        return archive.read("axe_playwright_python/axe.min.js").decode()


def _skbcapd(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "skbcapd", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def _check(browser: Page, file: Path, axe: str = "", *, charts: int = 5, is_dark: bool = False) -> dict[str, Any]:
    """What a browser shows of a page, in which neither the browser nor axe-core (if it is given) finds an error."""
    browser.open(file, is_dark=is_dark)
    found: dict[str, Any] = browser.value(RESULT)
    if axe:
        browser.value(axe + ";0")
        violations = browser.value(VIOLATIONS)
        assert [each for each in violations if each[1] in {"serious", "critical"}] == []
    assert browser.console == []
    assert [each for each in browser.requests if not each.startswith(("file:", "data:", "blob:"))] == []
    assert not found["hacked"]
    assert (found["images"], found["bold"], found["scripts"]) == (0, 0, 3)
    assert found["charts"] >= charts
    return found


def _wanted(path: Path) -> list[list[str]]:
    """The rows of `top --json`, as a report shows them."""
    return [
        [f"{row['process']} ({row['tgid']})" if row["tgid"] else "", f"{row['packets']:,}", f"{row['bytes']:,}"]
        for row in json.loads(_skbcapd("top", "--json", path))
    ]


def _write(path: Path, names: Sequence[str]) -> None:
    """2,000 packets of so many processes."""
    blocks = [START]
    for number in range(2000):
        at, direction = number % len(names), 1 + number % 2
        here, there = "10.0.0.1", f"192.168.7.{number % 9}"
        source, destination = (here, there) if direction == 2 else (there, here)
        frame = udp(source, destination, size=60 + at)
        text = label.comment([("comm", names[at].encode()), ("pid", 100 + at), ("tgid", 100 + at)])
        opts = comment(text.encode(), (2, direction.to_bytes(4, "little")))
        blocks.append(packet(frame, opts, time=TIME_NS + number * 10**8, wire_len=len(frame)))
    path.write_bytes(b"".join(blocks))


def test_a_browser_shows_the_numbers_of_top(tmp_path: Path, axe: str, browser: Page) -> None:
    """Of 20 processes with ordinary names, and of those with hostile names; in light and dark."""
    names = [*HOSTILE, *(f"daemon{number}" for number in range(20))]
    _write(path := tmp_path / "a.pcapng", names)
    _skbcapd("report", path, "-o", file := tmp_path / "page.html")
    wanted = _wanted(path)
    assert len(wanted) == len(names)
    for is_dark in (False, True):
        found = _check(browser, file, axe, is_dark=is_dark)
        assert [[row[0], row[2], row[3]] for row in found["rows"]] == wanted
        assert found["summary"].startswith("2,000 packets, ")
        # The links of the flow graph can be seen.
        fill = "rgb(255, 255, 255)" if is_dark else "rgb(0, 0, 0)"
        assert browser.value("getComputedStyle(document.querySelector('.sankey-link')).fill") == fill


# Processes of these names send to each other, by TCP and UDP; one more sends to a closed port.
SENDERS = """
import ctypes, os, socket, sys
names = sys.argv[1:]
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in names]
for each in sockets:
    each.bind(("127.0.0.1", 0))
server = socket.create_server(("127.0.0.1", 0))
for number, name in enumerate(names):
    if not os.fork():
        ctypes.CDLL(None).prctl(15, os.fsencode(name))
        for size in range(7):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(bytes(number + 11 * size), sockets[number - 1].getsockname())
        client = socket.create_connection(server.getsockname())
        client.sendall(bytes(10_000 + number))
        client.close()
        os._exit(0)
for _ in names:
    server.accept()[0].recv(1 << 20, socket.MSG_WAITALL)
    os.wait()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"nobody", ("127.0.0.1", 9))
"""


def test_a_browser_shows_the_numbers_of_a_real_capture(tmp_path: Path, browser: Page, host: Wire) -> None:
    """More than 20 processes, some with hostile names: the page has the rows of `top --json`, and tshark counts
    the same packets and bytes.
    """
    names = [*HOSTILE, *(f"daemon{number}" for number in range(20))]
    space, path = host.near.namespace, tmp_path / "a.pcapng"
    with closing(Capture(space, "-i", "lo", "-w", str(path))) as capture:
        space.do(subprocess.run, [sys.executable, "-c", SENDERS, *names], check=True, timeout=60)
        ended = capture.stop()
    assert (ended.exit_code, ended.lost) == (0, 0)
    _skbcapd("report", path, "-o", file := tmp_path / "page.html")
    found = _check(browser, file)
    assert [[row[2], row[3]] for row in found["rows"]] == [row[1:] for row in _wanted(path)]
    shown = {row[0].rpartition(" (")[0] for row in found["rows"]}
    assert shown >= {escaped_bytes(os.fsencode(name)[:15]) for name in names}
    lengths = [int(line) for (line,) in rows(path, "frame.len")]
    assert found["summary"].startswith(f"{len(lengths):,} packets, {sum(lengths):,} bytes, ")
    causes = browser.value("[...document.querySelectorAll('#unattributed tbody tr')].map((row) => row.textContent)")
    [cause] = [each for each in causes if each.startswith("kernelsentICMP")]
    assert cause.startswith("kernelsentICMPan answer or an error message of the kernel1")


def test_a_browser_shows_unusual_captures(tmp_path: Path, axe: str, browser: Page) -> None:
    """Without packets, with one, without comments, pcap, truncated, of two hosts, with times outside of the calendar,
    with the longest names: no error, and each packet is counted.
    """
    frame = udp("10.0.0.1", "10.0.0.2")
    hosts = [
        block(SHB, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + options((3, f"Linux {name}".encode())))
        + interface(opts=options((9, b"\x09"), (2, b"eth0"), (6, bytes(5) + name.encode())))
        + packet(frame, process(7, name), time=TIME_NS)
        for name in ("a", "b")
    ]
    years = section() + interface(opts=options((9, b"\x00")))
    longest = section() + interface(
        opts=options((2, b"\xe2\x80\xae\"'</script>" * 19), (3, b"'" * 255), (11, b"\0<b>"))
    )
    for text in ("=" * 255, "</script>" * 28, "\u202e" * 85, "\"'`" * 85):
        longest += packet(frame, comment(label.comment([("comm", text.encode()), ("unit", text.encode())]).encode()))
    captures = {
        "empty": (START, 0),
        "one": (START + packet(frame, process(7, "curl"), time=TIME_NS), 1),
        "without": (START + packet(frame, time=TIME_NS) * 7, 7),
        "old": (pcap([frame] * 5), 5),
        "truncated": (START + packet(frame, process(7, "curl"), time=TIME_NS) * 3 + packet(frame)[:50], 3),
        "hosts": (b"".join(hosts), 2),
        "years": (years + packet(frame, process(7, "curl"), time=(1 << 64) - 1) + packet(frame, time=0), 2),
        "longest": (longest, 4),
    }
    for name, (data, count) in captures.items():
        (path := tmp_path / f"{name}.pcapng").write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-m", "skbcapd", "report", path, "-o", file := tmp_path / f"{name}.html"], check=False
        )
        assert done.returncode == (name == "truncated")
        found = _check(browser, file, axe if name == "longest" else "", charts=0 if name == "empty" else 5)
        assert found["summary"].startswith(f"{count} packets, " if count else "No packets."), name
        assert sum(int(row[2]) for row in found["rows"]) == count
        systems = browser.value(
            "[...document.querySelectorAll('#captures tbody tr')].map((row) => row.cells[1].textContent)"
        )
        assert systems == (["Linux a", "Linux b"] if name == "hosts" else [""])
        interfaces = browser.value("document.querySelectorAll('#interfaces tbody tr').length")
        assert interfaces == (2 if name == "hosts" else 1)


def test_charts_have_no_button_that_uploads(tmp_path: Path, browser: Page) -> None:
    """Plotly can have one; the page has those that it names."""
    _write(path := tmp_path / "a.pcapng", ["curl"])
    _skbcapd("report", path, "-o", file := tmp_path / "page.html")
    browser.open(file)
    titles = "[...new Set([...document.querySelectorAll('.modebar-btn')].map((each) => each.dataset.title))].sort()"
    expected = ["Download plot as a PNG", "Pan", "Reset axes", "Zoom", "Zoom in", "Zoom out"]
    assert browser.value(titles) == expected


# What has the focus: what it is, its name, and whether a line around it shows that.
FOCUS = """(() => {
  const element = document.activeElement, style = getComputedStyle(element), area = element.getBoundingClientRect();
  const name = element.getAttribute("aria-label") ?? element.id ?? "";
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && area.width > 0 &&
    [...ancestors(element)].every((each) => getComputedStyle(each).opacity !== "0");
  return [element.tagName, name || element.textContent, seen];
  function* ancestors(each) { for (; each; each = each.parentElement) yield each; }
})()"""


def _tab_to(browser: Page, name: str) -> None:
    """Press Tab until something has the focus; each step has a visible focus."""
    for _ in range(200):
        browser.press("Tab")
        tag, found, is_seen = browser.value(FOCUS)
        assert is_seen or tag == "BODY", (tag, found)
        if name in {found, tag}:
            return
    raise AssertionError(f"Tab does not reach {name}")


def test_a_page_can_be_used_by_keyboard(tmp_path: Path, browser: Page) -> None:
    """Tab reaches links, the buttons of charts, searches and the headings of tables, all with a visible focus; keys
    zoom, search, turn pages and sort.
    """
    _write(path := tmp_path / "a.pcapng", [f"daemon{number:02}" for number in range(60)])
    _skbcapd("report", path, "-o", file := tmp_path / "page.html")
    browser.open(file)
    first = "document.querySelector('#rows tbody td').textContent"
    where = "document.querySelector('#rows [role=status]').textContent"
    span = "JSON.stringify(document.getElementById('timeline').layout.xaxis.range)"
    _tab_to(browser, "Rates")
    _tab_to(browser, "unit")
    _tab_to(browser, "Zoom in")
    before = browser.value(span)
    browser.press("Enter")
    assert browser.value(span) != before
    _tab_to(browser, "Search in processes")
    for letter in "daemon59":
        browser.press(letter)
    assert browser.value(first) == "daemon59 (159)"
    assert browser.value(where) == "1 to 1 of 1"
    for _ in "daemon59":
        browser.press("Backspace")
    _tab_to(browser, "next")
    browser.press("Enter")
    assert browser.value(where) == "51 to 60 of 60"
    _tab_to(browser, "name")
    browser.press("Enter")
    assert browser.value(first) == "daemon00 (100)"
    assert browser.value("document.querySelector('#rows th').getAttribute('aria-sort')") == "ascending"
    _tab_to(browser, "BODY")


def test_a_page_can_be_printed(tmp_path: Path, browser: Page) -> None:
    """On paper there is no control; there are the charts, and each table with all its columns."""
    _write(path := tmp_path / "a.pcapng", [f"daemon{number:02}" for number in range(60)])
    _skbcapd("report", path, "-o", file := tmp_path / "page.html")
    for is_dark in (False, True):
        browser.open(file, is_dark=is_dark)
        (tmp_path / "page.pdf").write_bytes(browser.pdf())
        text = subprocess.run(
            ["pdftotext", "-layout", tmp_path / "page.pdf", "-"], check=True, capture_output=True, text=True
        ).stdout
        for line in ("2,000 packets, ", "bytes per second", "Busiest processes", "1 to 50 of 60", "busiest peers"):
            assert line in text, line
        for word in ("Drag to zoom", "previous", "Connections\n"):
            assert (word in text) == (word == "Connections\n"), word
        browser.media("print", is_dark=is_dark)
        hidden = "[...document.querySelectorAll('nav, input, select, .pages button, .modebar')].filter((each) =>"
        assert browser.value(f"{hidden} each.checkVisibility()).length") == 0
        assert browser.value("[...document.querySelectorAll('table')].every((each) => each.checkVisibility())")
        assert browser.value("getComputedStyle(document.querySelector('.chart text')).fill") == "rgb(0, 0, 0)"


def test_a_page_of_100_000_processes_is_smaller_than_10_mb(tmp_path: Path, axe: str, browser: Page) -> None:
    """And a browser shows it."""
    with (path := tmp_path / "a.pcapng").open("wb") as capture:
        capture.write(START)
        for number in range(100_000):
            frame = udp("10.0.0.1", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", size=60)
            opts = process(100 + number, f"p{number:06}xxxxxxxx", 2)
            capture.write(packet(frame, opts, time=TIME_NS + number * 10**8, wire_len=60))
    _skbcapd("report", path, "-o", file := tmp_path / "page.html")
    assert file.stat().st_size < 10**7
    found = _check(browser, file, axe)
    assert found["summary"].startswith("100,000 packets, 6,000,000 bytes")
