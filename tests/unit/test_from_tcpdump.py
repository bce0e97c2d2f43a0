"""docs/from-tcpdump.md names each option of tcpdump, and `skbcapd capture` does what the page says."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from skbcapd.cli import capture, tcpdump
from skbcapd.cli.main import command, parser
from skbcapd.config.settings import Settings
from skbcapd.errors import SkbcapdError, UsageError
from tests.support.strangers import pcap, udp

PAGE = Path(__file__).parents[2] / "docs/from-tcpdump.md"
ROWS = {
    tuple(re.findall(r"`([^`]+)`", names)): text.replace("\\|", "|").replace("`", "")
    for names, text in re.findall(r"^\| (`-[^|]*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
}
NAMES = [name for names in ROWS for name in names]
# tcpdump(8), version 4.99
LONG = (
    *("--buffer-size", "--count", "--list-interfaces", "--help", "--version", "--interface", "--monitor-mode"),
    *("--immediate-mode", "--time-stamp-type", "--list-time-stamp-types", "--time-stamp-precision", "--micro"),
    *("--nano", "--dont-verify-checksums", "--list-data-link-types", "--number", "--no-optimize"),
    *("--no-promiscuous-mode", "--print", "--direction", "--absolute-tcp-sequence-numbers", "--snapshot-length"),
    *("--packet-buffered", "--linktype", "--relinquish-privileges"),
)
VALUES = {
    "-B": "4096",
    "-c": "1",
    "-C": "1",
    "-E": "x",
    "-G": "60",
    "-i": "any",
    "-j": "host",
    "-m": "x",
    "-M": "x",
    "-Q": "inout",
    "-s": "0",
    "-T": "rpc",
    "-V": "x",
    "-w": "x",
    "-W": "3",
    "-y": "EN10MB",
    "-z": "gzip",
    "-Z": "root",
    "--time-stamp-precision": "micro",
    "-F": "{filter}",
    "-r": "{file}",
}
CAPTURE_ONLY = {"-B": "-B with -r", "-C": "-C: found no file", "-G": "-G: found no file", "-W": "-W: found no file"}
REFUSED_WITH = {"-w": ["-w", "x", "-r", "{file}"], "--print": ["--print", "-w", "x"]}


def row_of(name: str) -> tuple[tuple[str, ...], str]:
    """The row with an option."""
    return next((names, text) for names, text in ROWS.items() if name in names)


@pytest.fixture
def words(tmp_path: Path) -> dict[str, str]:
    """Files for the command line."""
    (tmp_path / "a.pcap").write_bytes(pcap([udp("1.1.1.1", "2.2.2.2")] * 3))
    (tmp_path / "filter").write_text("udp\n")
    return {"file": str(tmp_path / "a.pcap"), "filter": str(tmp_path / "filter")}


def test_each_option_of_tcpdump_has_a_row() -> None:
    """Each option that the help of tcpdump names, and each long one of its manual, is on the page."""
    done = subprocess.run(["tcpdump", "--help"], capture_output=True, text=True, check=False, timeout=20)
    usage = done.stdout + done.stderr
    (letters,) = re.findall(r"tcpdump \[-([^\]]+)\]", usage)
    named = {f"-{letter}" for letter in letters} | set(re.findall(r"\[ (--?[\w-]+)", usage))
    assert len(named) > 40
    assert named | set(LONG) <= set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_each_row_is_an_option_of_tcpdump(name: str) -> None:
    """Tcpdump knows each option of the page."""
    option = [name, "1"] if row_of(name)[0][0] in VALUES else [name]
    done = subprocess.run(
        ["tcpdump", *option, "--version", "-r", "/dev/null"], capture_output=True, text=True, check=False, timeout=20
    )
    assert not re.search("unrecognized|invalid option|requires an argument", done.stdout + done.stderr)


@pytest.mark.parametrize("name", NAMES)
def test_each_option_does_what_its_row_says(
    name: str, words: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """An option is accepted without a word, or refused or ignored with the words of its row."""
    names, text = row_of(name)
    value = VALUES.get(names[0])
    given = [] if value is None else [value.format(**words)]
    if names[0] in REFUSED_WITH:
        with pytest.raises(UsageError) as refused:
            command(["capture", *(word.format(**words) for word in REFUSED_WITH[names[0]])])
        assert str(refused.value).partition("(hint) ")[2].replace(" [FILTER]", "") in text
        assert "refused" in text
        return
    if text.startswith("refused: ") or names[0] in CAPTURE_ONLY:
        with pytest.raises(UsageError) as refused:
            command(["capture", name, *given, "-r", words["file"]])
        expected = CAPTURE_ONLY.get(names[0]) or text.removeprefix("refused: ")
        assert expected in str(refused.value)
        return
    line = ["capture", name, *given, *([] if names[0] == "-r" else ["-r", words["file"]])]
    if names[-1] in {"--help", "--version"}:
        with pytest.raises(SystemExit, match=r"^0$"):
            command(line)
    else:
        assert command(line) == 0
    said = capsys.readouterr()
    assert said.out
    note = said.err.removeprefix("skbcapd: ").rstrip("\n").replace("is ignored: ", "")
    if "ignored" in text or name in {"-vv", "-vvv"}:
        assert note.partition(" ")[2] in text
        assert note
    else:
        assert said.err == ""


@pytest.mark.parametrize("other", tcpdump.OTHERS, ids=lambda other: other.names[0])
def test_each_word_is_on_the_page(other: tcpdump.Other) -> None:
    """The page has all names of an option without effect, what is said about it, and whether it is refused."""
    names, text = row_of(other.names[0])
    assert names == other.names
    kind = "refused: " if other.is_refused else "ignored: " if other.says else "always so"
    assert text.startswith(kind + other.says)


def test_letters_together(words: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Options without a value can be written as one word, also before one with a value."""
    assert command(["capture", "-nnpKtXs0", "-lc1", "-r", words["file"], "udp"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("IP 1.1.1.1.0 > 2.2.2.2.0: UDP, length 18\n\t0x0000:  4500 ")
    assert said.err == "skbcapd: -s is ignored: -r prints what is in the file\n"


def settings(*arguments: str) -> Settings:
    """The settings of a command line."""
    options = parser().parse_args(["capture", *arguments])
    tcpdump.check(options)
    return capture._settings(options)


def test_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """Options that set settings set these, and only these."""
    assert settings("-B", "65536") == settings("--set", "buffer.size=64MiB")
    assert settings("-Q", "in") == settings("--set", "directions=in")
    assert settings("-Q", "inout") == settings() == settings("-n", "-p", "-U", "-l", "-K")
    assert settings("-s", "96", "-i", "eth0") == settings("--set", "snaplen=96", "--set", "interfaces=eth0")
    assert capsys.readouterr().err == ""
    assert settings("-B", "100") == settings("--set", "buffer.size=4MiB")
    assert capsys.readouterr().err == "skbcapd: -B: 4096 KiB, the smallest buffer\n"


@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        ("-w /tmp/x/a.pcap -C 5", ("/tmp/x", "a-{time}-{number}.pcapng", 5_000_000, 0, 0), ""),
        ("-w a.pcapng -C 2m -W 7", (".", "a-{time}-{number}.pcapng", 2 << 20, 0, 7), ""),
        ("-w a -C 1", (".", "a-{time}-{number}.pcapng", 1 << 20, 0, 0), "skbcapd: -C: 1 MiB, the smallest file\n"),
        ("-w a -G 3600 -C 1g", (".", "a-{time}-{number}.pcapng", 1 << 30, 3600, 0), ""),
        (
            "-w /a/t-%Y-%m-%d_%H:%M.pcap -G 60",
            ("/a", "t-{time}-{number}.pcapng", 0, 60, 0),
            "skbcapd: -w: the names are t-TIME-NUMBER.pcapng, with the time in UTC\n",
        ),
        (
            "-w %s -G 60",
            (".", "skbcapd-{time}-{number}.pcapng", 0, 60, 0),
            "skbcapd: -w: the names are skbcapd-TIME-NUMBER.pcapng, with the time in UTC\n",
        ),
    ],
)
def test_a_series(
    arguments: str, expected: tuple[str, str, int, int, int], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """-C, -G and -W set the settings of a series of files; nothing else limits it."""
    files = settings(*arguments.split()).files
    assert (files.directory, files.name, files.size, files.every, files.keep_number) == expected
    assert (files.keep_size, files.keep_free, files.keep_age, files.mode) == (0, 0, 0, "files")
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-C 5", "-C: found no file; expected -w FILE"),
        ("-G 5 -w -", "-G: found no file; expected -w FILE"),
        ("-W 5 -w x", "-W: found no -C; expected -C SIZE"),
        ("-W 5 -G 60 -w x", "--duration 300 ends after 5 files"),
        ("-C 5 -w a{b", "expected no braces"),
        ("-F /nosuch/file", "/nosuch/file: No such file"),
    ],
)
def test_impossible_series(arguments: str, message: str) -> None:
    """Options that do not fit together are an error that says what to use."""
    with pytest.raises(SkbcapdError) as refused:
        settings(*arguments.split())
    assert message in str(refused.value)


@pytest.mark.parametrize("arguments", ["-C 0", "-C x", "-C 5t", "-G 0", "-W -1", "-B 1.5", "-Q both", "-j"])
def test_invalid_values(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value is an error of the command line."""
    with pytest.raises(SystemExit) as ended:
        command(["capture", *arguments.split()])
    assert (ended.value.code, "error: argument" in capsys.readouterr().err) == (2, True)


def test_the_list_of_interfaces(capsys: pytest.CaptureFixture[str]) -> None:
    """-D lists the interfaces that `ip link` lists, and those that are up."""
    assert command(["capture", "-D"]) == 0
    lines = capsys.readouterr().out.splitlines()
    done = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    found = re.findall(r"^\d+: ([^:@]+)[:@][^<]*<([^>]*)>", done.stdout, re.MULTILINE)
    listed = [re.fullmatch(r"(\S+) \[(.*)\], \S.*", line) for line in lines[:-1]]
    assert [(each[1], "Up" in each[2]) for each in listed if each] == [
        (name, "UP" in flags.split(",")) for name, flags in found
    ]
    assert lines[-1].startswith("any ")


def test_options_of_the_manual() -> None:
    """What is only accepted for habit is neither in the help nor in the man page."""
    (actions,) = (each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    text = actions.choices["capture"].format_help()
    assert not [
        name for other in tcpdump.OTHERS for name in other.names if re.search(rf"^  {name}[, ]", text, re.MULTILINE)
    ]
