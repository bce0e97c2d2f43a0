"""Man pages and completion: up to date, without errors, and as complete as the help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skbcapd
from skbcapd.analysis.split import BY
from skbcapd.attribution.fields import GROUPS
from skbcapd.config.settings import ROWS
from tools import manual

ROOT = Path(skbcapd.__file__).parent.parent
PAGES = ("skbcapd.8", "skbcapd.yaml.5")


def help_of(*command: str) -> str:
    """The output of `skbcapd ... --help`."""
    return subprocess.run(
        [sys.executable, "-m", "skbcapd", *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def commands() -> list[str]:
    """The commands in the help of the program."""
    return re.findall(r"^    (\w+) +\w", help_of(), re.MULTILINE)


def rendered(page: str) -> str:
    """A page as on a wide terminal."""
    environment = os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "1000", "MAN_KEEP_FORMATTING": ""}
    text = subprocess.run(
        ["man", "--nh", "-l", str(ROOT / "man" / page)], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return text.replace("\N{HYPHEN}", "-")


@pytest.mark.parametrize("path", manual.texts())
def test_generated_files_are_up_to_date(path: str) -> None:
    """The generated files equal the output of `make generate`."""
    assert (ROOT / path).read_text() == manual.texts()[path]


@pytest.mark.parametrize(
    ("command", "argument"),
    [("capture", "[FILTER...]"), ("top", "[FILE...]"), ("extract", "FILE..."), ("ship", "DIR")],
)
def test_the_synopsis_shows_what_is_optional(command: str, argument: str) -> None:
    """An argument that a command does not need is in brackets, one that it needs is not."""
    [synopsis] = re.findall(rf"^ {{5}}skbcapd {command} (.*)$", rendered("skbcapd.8"), re.MULTILINE)
    assert f" {argument} " in f" {synopsis} "


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_finds_no_fault(page: str) -> None:
    """Mandoc reports no warnings."""
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(ROOT / "man" / page)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_man_has_no_warning(page: str) -> None:
    """groff, with all warnings enabled, formats the page without a warning, 80 columns wide."""
    environment = os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(ROOT / "man" / page)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout


def test_the_page_has_every_option() -> None:
    """skbcapd(8) has all commands, and all options of their help."""
    page = rendered("skbcapd.8").partition("   Commands\n")[2].partition("\nFILES\n")[0]
    for command in commands():
        [part] = re.findall(rf"^     skbcapd {command}\b.*?(?=^     \S|\Z)", page, re.MULTILINE | re.DOTALL)
        options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(command))) - {"-h", "--help", "--version"}
        assert {option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", part)} == set(), command


def test_the_page_has_every_setting() -> None:
    """skbcapd.yaml(5) has all keys with meaning and default, in the order of the reference file."""
    page = re.sub(r"\s+", " ", rendered("skbcapd.yaml.5"))
    at = 0
    for key, row in ROWS.items():
        meaning = re.sub(r"\n  (\w+): ", r" \1 ", row.doc)  # a list, with a tag for each word
        at = page.index(" ".join(["", key, *meaning.split()]), at)
        assert re.search(rf"Default .\[?{re.escape(row.default)}\]?.; ", page[at:])


def complete(line: str) -> set[str]:
    """The completions of bash at the end of a line, split into words as bash does."""
    words = re.findall(r"=|[^\s=]+", line)
    if line.endswith(" "):
        words.append("")
    script = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; }; _skbcapd; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(ROOT / "completions/skbcapd"), *words],
        cwd=ROOT / "man",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("skbcapd ca", {"capture"}),
        ("skbcapd nosuch", set()),
        ("skbcapd split --by ", set(BY)),
        ("skbcapd top --by ", {*GROUPS, "peer"}),
        ("skbcapd extract --format ", {"pcap", "pcapng"}),
        ("skbcapd split --by t", {"tgid"}),
        ("skbcapd capture -i l", {"lo"}),
        ("skbcapd capture -i a", {"any"}),
        ("skbcapd capture -c ", set()),
        ("skbcapd top skbcapd.y", {"skbcapd.yaml.5", "skbcapd.yaml.5.in"}),
        ("skbcapd run --config skbcapd.8", {"skbcapd.8", "skbcapd.8.in"}),
        ("skbcapd run --set buf", {"buffer.size="}),
        ("skbcapd run --set transmit=", {"queue", "driver"}),
        ("skbcapd run --set transmit=d", {"driver"}),
        ("skbcapd run --set snaplen=", set()),
        ("skbcapd capture --du", {"--duration"}),
    ],
)
def test_completion(line: str, offered: set[str]) -> None:
    """Bash completes commands, options, words, interfaces, files and settings at their positions."""
    assert complete(line) == offered


def test_completion_has_every_command_and_option() -> None:
    """Bash completes all commands of the help, and all options of each."""
    assert complete("skbcapd ") == {*commands(), "--help", "--version"}
    for command in commands():
        options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(command)))
        assert options <= complete(f"skbcapd {command} -"), command
