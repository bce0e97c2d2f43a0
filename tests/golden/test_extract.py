"""`skbcapd extract`: what it takes and writes, beside what tshark finds in the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import blocks, traffic
from tests.support.command import run
from tests.support.judges import facts, rows
from tests.support.selection import FILTERS, SELECTORS

FIELDS = (
    "frame.time_epoch",
    "frame.len",
    "frame.cap_len",
    "frame.interface_name",
    "frame.comment",
    "frame.packet_flags",
    "ip.checksum",
    "eth.type",
)


def extract(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `skbcapd extract`."""
    code, stdout, stderr = run("extract", *arguments)
    return code, stdout.decode(), stderr


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The capture of all selectors."""
    path = tmp_path_factory.mktemp("capture") / "a.pcapng"
    traffic.write(path)
    return path


def numbers(path: Path, display: str) -> list[int]:
    """Which packets tshark finds, from 0."""
    return [int(number) - 1 for (number,) in rows(path, "frame.number", where=display)]


def content(path: Path) -> list[blocks.Packet]:
    """All packets of a file."""
    return blocks.packets(path.read_bytes())


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_are_those_of_tshark(name: str, capture: Path, out: Path) -> None:
    """A selector takes the packets that tshark's own display filter finds, as they are and in the same order."""
    words, display = SELECTORS[name]
    found = numbers(capture, display)
    code, stdout, stderr = extract(capture, "-w", out, *words)
    assert (code, stdout, stderr.splitlines()[0]) == (0, "", f"skbcapd: {len(found)} packets to {out}")
    everything = content(capture)
    assert content(out) == [everything[number] for number in found]
    assert (len(found) > 0) == (name != "thread")


@pytest.mark.parametrize("expression", FILTERS)
def test_filters_are_those_of_tshark(expression: str, capture: Path) -> None:
    """A FILTER behind the files takes what tshark finds, whatever the link type."""
    found = numbers(capture, FILTERS[expression])
    assert found
    assert extract(capture, "--count", *expression.split()) == (0, f"{len(found)}\n", "")
    assert extract("--count", capture, expression) == (0, f"{len(found)}\n", "")


def test_the_judges_are_content(capture: Path, out: Path) -> None:
    """Tshark reads the same of all packets; capinfos finds each interface once, without statistics."""
    assert extract(capture, "-w", out)[0] == 0
    assert rows(out, *FIELDS) == rows(capture, *FIELDS)
    found = facts(out)
    assert sorted(value for name, value in found if name == "Name") == ["eth0", "eth0", "wg0"]
    assert ("Number of packets", "1009") in found
    assert {value for name, value in found if name == "Number of stat entries"} == {"0"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count"], "the following arguments are required: FILE"),
        (["{file}"], "one of the arguments -w --count is required"),
        (["{file}", "--count", "-w", "x"], "not allowed with argument"),
        (["{file}", "--count", "--port", "70000"], "argument --port: found '70000'; expected a port from 0 to 65535"),
        (["{file}", "--count", "--port", "9-8"], "argument --port: found '9-8'"),
        (["{file}", "--count", "--port", "http"], "argument --port: found 'http'"),
        (
            ["{file}", "--count", "--peer", "10.0.0"],
            "argument --peer: found '10.0.0'; expected an address or a network",
        ),
        (["{file}", "--count", "--tgid", "0"], "argument --tgid/--pid: found '0'; expected a process id"),
        (["{file}", "--count", "--comm", ""], "argument --comm: found '' (empty); expected a glob"),
        (["{file}", "--count", "--comm", "/(/"], "argument --comm: found '/(/' (bad regular expression"),
        (["{file}", "--count", "--direction", "up"], "invalid choice: 'up'"),
        (["{file}", "--count", "--from", "soon"], "skbcapd: --from soon: not a time; expected a date and time"),
        (["{file}", "--count", "--from", "@2", "--to", "@1"], "skbcapd: --to @1 is not after --from @2"),
        (["{file}", "--count", "tcp", "prot", "7"], 'skbcapd: FILTER: found "tcp prot 7" ('),
    ],
)
def test_invalid_command_lines(words: list[str], message: str, capture: Path) -> None:
    """A wrong word is refused by name, with exit code 2, and nothing is read or written."""
    code, stdout, stderr = extract(*(word.format(file=capture) for word in words))
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert "Traceback" not in stderr
