"""The command line: valid and invalid arguments, and their messages. No kernel program is loaded."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

import skbcapd
from skbcapd.capture.totals import Totals
from skbcapd.cli import arguments, capture, writing
from skbcapd.cli.main import command, parser
from skbcapd.config.parser import default_settings
from skbcapd.config.settings import Settings
from skbcapd.daemon import app
from skbcapd.daemon.report import Report, print_descendants, print_link_types, print_totals
from skbcapd.errors import ConfigError, SkbcapdError, UsageError
from skbcapd.kernel.program import Counters
from skbcapd.output.interface import FILE_S, PROMPT_S
from skbcapd.output.key_log import KeyLogs
from tests.support import faults

ROOT = Path(skbcapd.__file__).parent.parent
FAULTS = {
    "capture -s 10": "errors about -s and FILTER",
    "capture -i lo tcp prot 443": "errors about -s and FILTER",
    "capture --set snaplen=1 -s 0 -i nosuch0": "-s 0",
    "check --set files.owner=nobody-here": "check: an owner that does not exist",
}
COMMANDS = (
    "capture",
    "run",
    "check",
    "config",
    "dump",
    "status",
    "doctor",
    "top",
    "extract",
    "split",
    "report",
    "index",
    "ship",
    "fleet",
    "extcap",
)


def skbcapd_says(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a real process."""
    done = subprocess.run(
        [sys.executable, "-m", "skbcapd", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["", *COMMANDS])
@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_and_version_everywhere(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command and all its subcommands print help and version, on stdout, with exit code 0."""
    with pytest.raises(SystemExit) as ended:
        command([name, option] if name else [option])
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (0, "")
    expected = f"skbcapd {skbcapd.__version__}\n" if option == "--version" else f"usage: skbcapd {name}"
    assert said.out.startswith(expected.rstrip(" "))


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The help lists all commands, each with a line of text."""
    with pytest.raises(SystemExit):
        command(["--help"])
    assert tuple(re.findall(r"^    (\w+) +\w", capsys.readouterr().out, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["caputre"], "invalid choice: 'caputre'"),
        (["run", "eth0"], "unrecognized arguments: eth0"),
        (["capture", "-c", "0"], "'0' is not a positive number of packets"),
        (["capture", "-c", "-1"], "'-1' is not a positive number"),
        (["capture", "-c", "1e3"], "'1e3' is not a positive number"),
        (["capture", "-c", str(1 << 63)], "is not a positive number"),
        (["capture", "-w"], "expected one argument"),
        *[(["run", "--duration", text], "not a positive number of seconds") for text in ("0", "-1", "x", "nan", "inf")],
        (["doctor", "--config", "x"], "unrecognized arguments"),
    ],
)
def test_invalid_command_lines(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line gives exit code 2, with usage and reason on stderr, and nothing on
    stdout.
    """
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.startswith("usage: skbcapd")
    assert message in said.err


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["capture", "-i", "nosuch0"], UsageError, "no interface nosuch0 in this network namespace"),
        (["capture", "-i", "lo", "-i", "nosuch0"], UsageError, "no interface nosuch0"),
        (["capture", "-i", "sixteen_bytes_ab"], ConfigError, "interfaces"),
        (["capture", "-i", ""], ConfigError, "interfaces"),
        (["capture", "-i", "any", "-i", "lo"], ConfigError, "any"),
        (["capture", "-s", "10"], ConfigError, "from 64 to 262144"),
        (["capture", "-s", "10"], ConfigError, '-s: snaplen: found "10"'),
        (["capture", "-s", ""], ConfigError, '-s: snaplen: found ""'),
        (["capture", "-i", "a/b"], ConfigError, '-i: interfaces: found "a/b"'),
        (["capture", "-i", "lo", "tcp", "prot", "443"], ConfigError, 'FILTER: filter: found "tcp prot 443"'),
        (["capture", "--set", "snaplen=1", "-s", "0", "-i", "nosuch0"], UsageError, "no interface nosuch0"),
        (["capture", "--set", "filter=tcp prot"], ConfigError, "--set: filter: found"),
        (["capture", "--set", "dedup=x", "-s", "1"], ConfigError, "--set: dedup: found"),
        (["extcap", "--extcap-interface", "skbcapd", "--snaplen", "1"], ConfigError, "--snaplen: snaplen: found"),
        (["extcap", "--extcap-capture-filter", "tcp prot"], ConfigError, "--extcap-capture-filter: filter: found"),
        (
            ["check", "--set", "files.owner=nobody-here"],
            UsageError,
            "files.owner is nobody-here: no such user or group",
        ),
        (["check", "--set", "files.owner=:nobody-here"], UsageError, "no such user or group"),
        (["capture", "--set", "snaplen"], UsageError, "--set snaplen: expected KEY=VALUE"),
        (["capture", "--set", "snapplen=96"], ConfigError, "snaplen"),
        (["run", "--config", "/nonexistent/skbcapd.yaml"], ConfigError, "/nonexistent/skbcapd.yaml"),
        (["check", "--set", "buffer.size=1"], ConfigError, "buffer.size"),
    ],
)
def test_impossible_requests(arguments: list[str], error: type[SkbcapdError], message: str) -> None:
    """Impossible requests give an error with their name before anything starts, with exit code 2."""
    with pytest.raises(error) as raised:
        command(arguments)
    if (fault := FAULTS.get(" ".join(arguments))) is not None:
        faults.compare(fault, 1, str(raised.value).splitlines()[0])
    assert message in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(("name", "is_said"), [("a.pcap", True), ("a.cap", True), ("a.pcapng", False), ("a", False)])
def test_the_format_is_said(name: str, is_said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: FBT001
    """A name of another format is not changed, but a line says what will be in the file."""
    _, target = writing._output(parser().parse_args(["capture", "-w", str(tmp_path / name)]), Settings(), KeyLogs(()))
    target.close()
    remedy = f"skbcapd extract {tmp_path / name} -w OUT --format pcap"
    expected = f"{tmp_path / name} will be pcapng; for the older format: {remedy}\n"
    assert capsys.readouterr().err == expected * is_said


@pytest.mark.parametrize(("words", "latency_s"), [([], FILE_S), (["-U"], PROMPT_S), (["-U", "-C", "1"], PROMPT_S)])
def test_packets_can_be_written_at_once(
    words: list[str], latency_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-U is that of tcpdump, for a file and for a series of files."""
    begun: list[app.Run] = []

    def serve(run: app.Run) -> int:
        run.target.close()
        begun.append(run)
        return 0

    monkeypatch.setattr(app, "serve", serve)
    options = parser().parse_args(["capture", "-w", str(tmp_path / "a"), *words])
    settings = default_settings({"files.directory": str(tmp_path)})
    program: Any = io.StringIO()  # it is only closed
    assert writing.capture(program, settings, options, None) == 0
    assert [run.output.latency_s for run in begun] == [latency_s]


def test_files_belong_to_who_called_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root under sudo, a new file belongs to the caller, unless files.owner says otherwise."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for words, environment, owner in (
        ([], {"SUDO_UID": "1009", "SUDO_GID": "1013"}, "1009:1013"),
        (["--set", "files.owner=root"], {"SUDO_UID": "1009", "SUDO_GID": "1013"}, "root"),
        ([], {"SUDO_UID": "0", "SUDO_GID": "0"}, "self"),
    ):
        for name, text in environment.items():
            monkeypatch.setenv(name, text)
        options = parser().parse_args(["capture", "-w", "a.pcapng", *words])
        assert capture._settings(options).files.owner == owner


def test_a_usage_error_has_a_hint() -> None:
    """A missing interface gives two lines on stderr and exit code 2."""
    assert skbcapd_says("capture", "-i", "nosuch0") == (
        2,
        "",
        "skbcapd: no interface nosuch0 in this network namespace\n  (hint) `ip -brief link` lists them; any: all\n",
    )


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("snaplen: 96\n", 0, "{path}: no problems\n"),
        ("snaplen: 96\nsnapplen: 1\ninterfaces: []\n", 2, "skbcapd: {path}:2: snapplen: "),
    ],
)
def test_check(text: str, code: int, said: str, tmp_path: Path) -> None:
    """`check` only reads the config file; its problems have file and line."""
    path = tmp_path / "a.yaml"
    path.write_text(text)
    found, out, err = skbcapd_says("check", "--config", str(path))
    assert (found, out) == (code, "")
    assert err.startswith(said.format(path=path))


def test_the_shipped_config_is_found_and_right(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --config, the system's file is used, otherwise the one of the source tree; that one
    has no problems.
    """
    beside = ROOT / "etc" / "skbcapd.yaml"
    found = arguments.config_path(parser().parse_args(["check"]))
    assert found == (arguments.SYSTEM_CONFIG if arguments.SYSTEM_CONFIG.exists() else beside)
    assert command(["check", "--config", str(beside)]) == 0
    assert capsys.readouterr().err == f"{beside}: no problems\n"


@pytest.mark.parametrize(
    ("totals", "lines"),
    [
        (Totals(0, 0, 0, 0, 0, 0, Counters(), 0), ["0 packets captured", "0 packets dropped by kernel"]),
        (
            Totals(
                *(101, 2, 19, 3, 5, 7, Counters(200, 100, filtered=50, full=11, contended=13, start=17), 1),
                other_interfaces=29,
                unattributed=31,
            ),
            [
                "101 packets captured",
                "24 packets dropped by kernel",
                "17 packets dropped, because the start of the frame is unknown",
                "7 packets missed while the kernel program was already running",
                "9 packets seen, but not accounted for",
                "5 packets dropped by the output",
                "2 packets filtered",
                "29 packets on other interfaces",
                "31 packets left out, because their process is not known",
                "19 packets seen before on another interface",
            ],
        ),
    ],
)
def test_the_totals(totals: Totals, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """At the end the two lines of tcpdump are printed, and one for each other outcome; `quiet`
    prints drops only.
    """
    print_totals(totals)
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines))
    print_totals(totals, quiet=True)
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines[1:5] if not line.startswith("0")))


def test_several_link_types_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A file with several link types is said, with the command that makes one file of each; one is not."""
    print_link_types([1], Path("a.pcapng"))
    print_link_types([], Path("a.pcapng"))
    assert capsys.readouterr() == ("", "")
    print_link_types([1, 101], Path("a\x1b.pcapng"))
    said = "several link types (ethernet, raw), and many programs read only one; for one file each: "
    assert capsys.readouterr().err == said + "skbcapd split a\\x1b.pcapng --by link-type\n"


@pytest.mark.parametrize(
    ("tgids", "shown"),
    [
        ([], ""),
        ([7], "1 processes of the command still run (7)"),
        (list(range(7, 20)), "7, 8, 9, 10, 11, 12, 13, ...)"),
    ],
)
def test_processes_that_run_longer(tgids: list[int], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Some ids are printed, with the command that captures them further."""
    print_descendants(tgids)
    said = capsys.readouterr().err
    assert shown in said
    assert said.endswith("skbcapd capture --pid 7 --children\n") == bool(tgids)


class Counted:
    """A capture with totals."""

    def totals(self) -> Totals:
        """Prime numbers."""
        return Totals(101, 2, 0, 3, 5, 7, Counters(200, 100, filtered=50, full=11, contended=13, start=17), 19)


class Written:
    """Files."""

    path = "a.pcapng.part"


def test_the_live_line_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """In a log there is a line every ten seconds with packets, drops, processes and the current
    file.
    """
    report = Report(Counted(), Written())  # type: ignore[arg-type]
    for _ in range(29):
        report.tick()
    report.close()
    expected = "101 packets, 53 dropped, 19 processes, a.pcapng.part\n"
    assert capsys.readouterr() == ("", expected * 2)


@pytest.mark.parametrize(("columns", "shown"), [(0, 52), (80, 52), (53, 52), (52, 51), (11, 10)])
def test_the_live_line_on_a_terminal(columns: int, shown: int) -> None:
    """On a terminal there is one line that is updated each second, and is not wider than the
    terminal.
    """
    program = (
        "from tests.unit.test_cli import Counted, Written\n"
        "from skbcapd.daemon.report import Report\n"
        "report = Report(Counted(), Written())\n"
        "report.tick(); report.tick(); report.close()\n"
    )
    master, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (25, columns))
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=terminal, check=True)
    os.close(terminal)
    said = os.read(master, 1000).decode()
    os.close(master)
    assert said == ("\r\x1b[K" + "101 packets, 53 dropped, 19 processes, a.pcapng.part"[:shown]) * 2 + "\r\n"
