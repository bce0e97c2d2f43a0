"""The pages for users agree with the code: commands, settings, keys of the status, files, make targets, limits."""

import re
import shlex
import sys
from pathlib import Path
from typing import get_args

import pytest

from skbcapd.analysis import account, split
from skbcapd.attribution import containers, fields, namespaces, processes, sockets
from skbcapd.capture import descent, interfaces, resolver
from skbcapd.cli import main, status
from skbcapd.cli.processes import RULES_MAX
from skbcapd.config.settings import ROWS, Via
from skbcapd.daemon import command, log, server, statistics
from skbcapd.frames import summary
from skbcapd.kernel import abi
from skbcapd.output import block_writer, dump, pcapng_output, series
from skbcapd.pcapng import reader
from tests.support.rig import Scene

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_PLACEHOLDERS = {
    "FILE": "a.pcapng",
    "SECONDS": "1",
    "COUNT": "1",
    "BYTES": "96",
    "NAME": "eth0",
    "DIR": "parts",
    "DURATION": "10s",
    "FIELD": "tgid",
    "FILTER": "tcp",
    "ID": "1",
    "KEY=VALUE": "snaplen=96",
}
_NEEDED = {  # for a command that is named alone
    "top": ["a.pcapng"],
    "index": ["a.pcapng"],
    "ship": ["captures", "fleet:bucket"],
    "fleet": ["query", "d"],
    "split": ["a.pcapng", "--by", "tgid"],
    "extract": ["a.pcapng", "-w", "b.pcapng"],
}
_SECTIONS = {key.partition(".")[0] for key in ROWS if "." in key}


def code(page: Path) -> list[str]:
    """The code of a page: indented lines, and spans in backticks."""
    text = page.read_text()
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [*spans, *re.findall(r"^    (\S.*)$", text, re.MULTILINE)]


def command_lines(page: Path) -> list[list[str]]:
    """The command lines of skbcapd on a page, without optional parts' brackets, and with values for placeholders."""
    found = []
    for text in code(page):
        if match := re.search(r"(?:^|sudo |\$ |ssh root@host )skbcapd ((?:[a-z]+|--\w+)\b(?:[^:]|:(?! ))*)", text):
            plain = re.sub(r"\\?\|.*?(?=[\]\s]|$)", "", match[1].split(" | ")[0]).replace("...", "")
            plain = re.sub(r"[\[\]]", "", plain) if re.search(r"\[[-A-Z]", plain) else plain
            words = [_PLACEHOLDERS.get(word, word) for word in shlex.split(plain)]
            found.append([*words, *([] if len(words) > 1 else _NEEDED.get(words[0], ()))])
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_on_pages_are_accepted(page: Path) -> None:
    """The parser accepts each command line of a page."""
    parser = main.parser()
    for words in command_lines(page):
        status_code: object = 0
        try:
            parser.parse_args(words)
        except SystemExit as end:
            status_code = end.code
        assert status_code == 0, f"{page.name}: skbcapd {' '.join(words)}"


def test_all_commands_are_in_the_readme() -> None:
    """README.md lists each command that people use."""
    listed = {words[0] for words in command_lines(ROOT / "README.md") if words}
    assert listed >= set(main.COMMANDS) - {"extcap"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_on_pages_exist(page: Path) -> None:
    """Each setting that a page names exists, and a value beside it is one that it can have."""
    for text in code(page):
        match = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)?)(?::\s+(\S+))?", text)
        if match is None:
            continue
        key, value = match.groups()
        section, _, name = key.partition(".")
        if section in _SECTIONS and name and name not in ("py", "yaml"):
            assert key in ROWS, f"{page.name}: {text}"
        if key in ROWS and value and not value.isupper() and value[0] not in "[{":
            ROWS[key].kind.parse(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_targets_on_pages_exist(page: Path) -> None:
    """Each file of the tree and each make target that a page names exists, and so does what a link leads to."""
    targets = set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {
        "uninstall"
    }
    tree = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build", "dist"}
    for text in code(page):
        if re.fullmatch(r"[\w./-]+", text) and text.split("/")[0] in tree and "/" in text:
            assert (ROOT / text).exists() or (ROOT / f"{text}.py").exists(), f"{page.name}: {text}"
        if (match := re.match(r"make ([a-z-]+)\b", text)) and page.name != "CHANGELOG.md":
            assert match[1] in targets, f"{page.name}: {text}"
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if "://" not in link:
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}#{anchor}"


def test_the_keys_of_the_status_are_in_the_manual() -> None:
    """docs/monitoring.md lists each key of `skbcapd status --json`, and the lines of drops that people see."""
    page = (ROOT / "docs/monitoring.md").read_text()
    listed = re.search(r"prints all data on one line: (.*?)\. `settings` has every key", page, re.DOTALL)
    assert listed
    snapshot = Scene().look()
    assert set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", listed[1], flags=re.DOTALL))) == set(snapshot)
    for cause in snapshot["dropped"]:
        assert f"dropped              0  {status._CAUSES[cause]}" in page
        assert re.search(rf"^\| `{cause}` \|", page, re.MULTILINE)


LIMITS = (
    ("a dump that further triggers extend", f"{dump.AFTER_MAX_S / 3600:g} h"),
    ("orders of `skbcapd dump`", f"{dump.ORDERS_MAX} each"),
    ("names of the files of a dump", f"{series.PATHS_MAX:,}"),
    ("bytes that wait for a disk", f"{block_writer.QUEUE_MAX >> 20} MiB"),
    ("wait for the disk when a capture ends", f"{block_writer.STOP_S:g} s"),
    ("labels in the kernel", f"{abi.LABELS_MAX:,}"),
    ("sockets, flows, and processes", f"{abi.OWNERS_MAX:,}"),
    ("packets between two interfaces", f"{abi.SIGHTINGS:,}"),
    ("lookups of sockets in /proc", f"{resolver.QUESTIONS:,}"),
    ("records of processes", f"{processes.REMEMBERED:,}"),
    ("process blocks repeated", f"{pcapng_output.PROCESSES_REPEATED:,}"),
    ("candidate sockets", f"{abi.GROUP_MAX}; {abi.GROUPS_MAX:,}"),
    ("candidate sockets", f"{resolver.GROUPS_REMEMBERED:,} in Python"),
    ("descendants of a process", f"{abi.DESCENDANTS_MAX:,}"),
    ("scans for them", f"{descent.SCANS}, {descent.SCAN_S:g} s"),
    ("last packets after the end of a command", f"{command.QUIET_S:g} s without a packet, {command.LINGER_S:g} s"),
    ("combinations of selectors", f"{RULES_MAX:,}"),
    ("packets in fragments", f"{abi.FRAGMENTS_MAX:,}"),
    ("descriptors of a process", f"{abi.DESCRIPTORS_MAX:,}"),
    ("scan for processes", f"{sockets.SCAN_S:g} s"),
    ("TCP sockets read at start", f"{sockets.FLOWS_MAX:,}"),
    ("interfaces in the kernel", f"{abi.DEVICES_MAX:,}"),
    ("interfaces in Python", f"{interfaces.REMEMBERED:,}"),
    ("interfaces without a new file", f"{interfaces.INTERFACES_MAX:,}"),
    ("TCP connections in printed lines", f"{summary._CONNECTIONS_MAX:,}"),
    ("names of network namespaces", f"{namespaces.REMEMBERED:,}"),
    (
        "`reader`: block",
        f"{reader._BLOCK_MAX >> 20} MiB, {reader._INTERFACES_MAX:,}, {reader._DESCRIBED_MAX >> 20} MiB",
    ),
    ("`top`: processes", f"{account._PROCESSES_MAX:,}, {account._NAMES_MAX:,}, {account._PEERS_MAX:,}"),
    ("`split`: files", f"{split._FILES_MAX:,}, {split._GATHERED_MAX >> 20} MiB"),
    ("`split`: interfaces", f"{split._INTERFACES_MAX:,}, {split._DESCRIBED_MAX >> 30} GiB"),
    ("names of containers", f"{containers.REMEMBERED:,}"),
    ("log lines of one kind", f"{log.BURST} in {log.WINDOW_S:.0f} s"),
    ("packets sampled", f"{statistics.SAMPLES:,}"),
    ("processes in a window", f"of {statistics.WINDOW_S} s | {statistics.PROCESSES:,}"),
    ("processes counted", f"{fields._PID_MAX:,}"),
    ("clients of the control socket", f"{server.CLIENTS_MAX} each; {server.ACCEPTS_MAX} new"),
    ("their requests", f"{server.REQUEST_MAX >> 10} KiB in {server.READS_MAX} reads, {server.PATIENCE_S:g} s"),
    ("answer of `status`", f"{status.ANSWER_MAX >> 20} MiB, {status.PATIENCE_S:g} s"),
    ("fragments of one frame", f"{abi.PIECES_MAX}"),
)


@pytest.mark.parametrize(("what", "limit"), LIMITS)
def test_limits_are_those_of_the_code(what: str, limit: str) -> None:
    """The table of limits in DESIGN.md has the numbers of the code."""
    (row,) = re.findall(rf"^\| {re.escape(what)}.*", (ROOT / "DESIGN.md").read_text(), re.MULTILINE)
    assert limit in row


def test_prose_is_wrapped() -> None:
    """Prose on pages has at most 100 columns: a terminal shows it whole."""
    long = [
        f"{page.name}:{number}"
        for page in PAGES
        for number, line in enumerate(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines(), 1)
        if len(line) > 100 and not line.startswith(("|", "    ", "**"))
    ]
    print(*long, file=sys.stderr)
    assert not long


def test_messages_to_look_up_exist() -> None:
    """What docs/troubleshooting.md lists as a message of skbcapd, the code prints."""
    texts = [path.read_text() for path in [*ROOT.glob("skbcapd/**/*.py"), ROOT / "tools/skbcapd.in"]]
    source = re.sub(r"\"\s+f?\"", "", "".join(texts))
    source = re.sub(r"\{[^{}\n\"]*\}", "", source)
    page = (ROOT / "docs/troubleshooting.md").read_text()
    shown = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    listed = [text for text in shown if not re.search("=|FILE|Permission", text)]
    assert len(listed) >= 8
    for text in listed:
        words = re.split(r"\.\.\.|(?:, )?\b[0-9N] packets|5\.15| bcc|: CAP_SYS_ADMIN", text)
        for part in (word.strip(" ;:,") for word in words):
            assert part in source, f"{text}: {part}"


def test_the_man_page_explains_each_via() -> None:
    """skbcapd(8) lists each word behind via=."""
    page = (ROOT / "man/skbcapd.8").read_text()
    listed = page.partition(".Sh HOW A PROCESS IS FOUND")[2].partition(".Sh SIGNALS")[0]
    assert set(re.findall(r"^\.It (\w+)$", listed, re.MULTILINE)) == set(get_args(Via)) - {"current"}
