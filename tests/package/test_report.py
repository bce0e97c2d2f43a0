"""The page of `skbcapd report` in a browser: no error, the numbers of `top`, hostile names, accessibility.

Chromium draws the page without a display. axe-core checks the accessibility; pip fetches the package that has it into
a cache outside the checkout.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from skbcapd.pcapng import comment as label
from tests.support.cache import user_cache
from tests.support.strangers import comment, interface, options, packet, process, section, udp

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
# Runs at the end of the page, and leaves a result that the test can read.
RESULT = """<pre id="result"></pre><script>
const problems = [];
window.addEventListener("error", (event) => problems.push(event.message));
axe.run(document).then((found) => {
  const lines = [...document.querySelectorAll("#rows tbody tr")];
  document.getElementById("result").textContent = JSON.stringify({
    violations: found.violations.map(({ id, impact, nodes }) => [id, impact, nodes.length, nodes[0].html]),
    problems, hacked: typeof hacked !== "undefined", images: document.querySelectorAll("section img").length,
    scripts: document.querySelectorAll("body script").length, bold: document.querySelectorAll("section td b").length,
    charts: document.querySelectorAll(".js-plotly-plot svg.main-svg").length,
    rows: lines.map((row) => [...row.cells].map((cell) => cell.textContent)),
    summary: document.getElementById("summary").textContent,
  });
});
</script></body>"""


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


def _shown(page: Path, axe: str, *, is_dark: bool = False) -> dict[str, Any]:
    """What a browser shows of a page, and what axe-core finds."""
    tested = page.with_name("tested.html")
    script = "<script>" + axe.replace("</script", r"<\/script") + "</script>"
    text = page.read_text()
    head, _, tail = text.rpartition("</body>")
    tested.write_text(head + script + RESULT + tail)
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--blink-settings=preferredColorScheme={0 if is_dark else 1}", "--virtual-time-budget=20000"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", tested.as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    result = re.search(r'<pre id="result">([^<]+)</pre>', done.stdout)
    assert result, f"the script did not end; console: {console}"
    found = json.loads(html.unescape(result[1])) | {"console": console}
    assert isinstance(found, dict)
    return found


def _check(found: dict[str, Any], charts: int) -> None:
    assert found["console"] == []
    assert found["problems"] == []
    assert not found["hacked"]
    assert (found["images"], found["bold"], found["scripts"]) == (0, 0, 5)
    assert found["charts"] >= charts
    assert [each for each in found["violations"] if each[1] in {"serious", "critical"}] == []


def test_a_browser_shows_the_numbers_of_top(tmp_path: Path, axe: str) -> None:
    """Of 20 processes with ordinary names, and of those with hostile names; in light and dark."""
    names = [*HOSTILE, *(f"daemon{number}" for number in range(20))]
    with (path := tmp_path / "a.pcapng").open("wb") as file:
        file.write(START)
        for number in range(2000):
            at, direction = number % len(names), 1 + number % 2
            here, there = "10.0.0.1", f"192.168.7.{number % 9}"
            source, destination = (here, there) if direction == 2 else (there, here)
            frame = udp(source, destination, size=60 + at)
            text = label.comment([("comm", names[at].encode()), ("pid", 100 + at), ("tgid", 100 + at)])
            opts = comment(text.encode(), (2, direction.to_bytes(4, "little")))
            file.write(packet(frame, opts, time=TIME_NS + number * 10**8, wire_len=len(frame)))
    _skbcapd("report", path, "-o", page := tmp_path / "page.html")
    wanted = [
        [f"{row['process']} ({row['tgid']})", f"{row['packets']:,}", f"{row['bytes']:,}"]
        for row in json.loads(_skbcapd("top", "--json", path))
    ]
    assert len(wanted) == len(names)
    for is_dark in (False, True):
        found = _shown(page, axe, is_dark=is_dark)
        _check(found, 5)
        assert [[row[0], row[2], row[3]] for row in found["rows"]] == wanted
        assert found["summary"].startswith("2,000 packets, ")


def test_a_page_of_100_000_processes_is_smaller_than_10_mb(tmp_path: Path, axe: str) -> None:
    """And a browser shows it."""
    with (path := tmp_path / "a.pcapng").open("wb") as file:
        file.write(START)
        for number in range(100_000):
            frame = udp("10.0.0.1", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", size=60)
            opts = process(100 + number, f"p{number:06}xxxxxxxx", 2)
            file.write(packet(frame, opts, time=TIME_NS + number * 10**8, wire_len=60))
    _skbcapd("report", path, "-o", page := tmp_path / "page.html")
    assert page.stat().st_size < 10**7
    found = _shown(page, axe)
    _check(found, 5)
    assert found["summary"].startswith("100,000 packets, 6,000,000 bytes")
