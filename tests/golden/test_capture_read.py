"""`skbcapd capture -r`: which packets it prints, beside what tshark finds in the same files."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from skbcapd.cli.main import command
from tests.support import traffic
from tests.support.command import ROOT, run
from tests.support.judges import rows
from tests.support.selection import FILTERS, HALF, SELECTORS
from tests.support.strangers import comment, interface, options, packet, pcap, section, udp
from tests.support.traffic import COUNT

DIRECTIONS = {"": "?", "1": "in", "2": "out"}


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The capture of all selectors."""
    path = tmp_path_factory.mktemp("capture") / "a.pcapng"
    traffic.write(path)
    return path


def printed(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[str]:
    """The lines, with seconds since 1970 to nanoseconds."""
    assert command(["capture", "-tt", "--nano", *map(str, words)]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out.splitlines()


def times(path: Path, display: str) -> list[Decimal]:
    """The times of the packets that tshark finds."""
    return [Decimal(time) for (time,) in rows(path, "frame.time_epoch", where=display)]


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_are_those_of_tshark(name: str, capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A selector takes the packets that tshark's own display filter finds, in the same order."""
    words, display = SELECTORS[name]
    found = printed(capsys, "-r", capture, *words)
    assert [Decimal(line.split()[0]) for line in found] == times(capture, display)


@pytest.mark.parametrize("expression", FILTERS)
def test_filters_are_those_of_tshark(
    expression: str, capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A FILTER, or one in a file with comments, takes what tshark finds."""
    expected = times(capture, FILTERS[expression])
    file = tmp_path / "filter"
    file.write_text("# which packets\n" + expression.replace(" ", "  # the next word\n\t"))
    for words in (expression.split(), [expression], ["-F", str(file)]):
        assert [Decimal(line.split()[0]) for line in printed(capsys, "-r", capture, *words)] == expected


def test_selectors_and_a_filter(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Selectors, -i, -Q and a FILTER together take what tshark's filters take together."""
    found = printed(
        capsys, "-r", capture, "-i", "eth0", "-Q", "out", "--comm", "curl*", "--from", HALF, "tcp", "port", "443"
    )
    display = (
        'frame.interface_name == "eth0" && frame.packet_flags_direction == 2 && frame.comment contains "comm=curl" '
        f"&& frame.number > {COUNT // 2} && ({FILTERS['tcp port 443']})"
    )
    assert found
    assert [Decimal(line.split()[0]) for line in found] == times(capture, display)


def test_a_line_has_what_tshark_reads(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Process, way of finding it, interface and direction are those in the file."""
    expected = []
    fields = ("frame.comment", "frame.interface_name", "frame.packet_flags_direction")
    for text, name, flags in rows(capture, *fields):
        said = dict(pair.split("=") for pair in text.split())
        process = said.get("process") or said.get("comm") or "?"
        who = f"{process}[{said['tgid']}]" if "tgid" in said else process
        expected.append(f"{who}/{said['via']}" if "via" in said else who)
        expected[-1] += f" {name} {DIRECTIONS[flags.removeprefix('0x0000000').replace('0', '')]}"
    assert [" ".join(line.split()[1:4]) for line in printed(capsys, "-r", capture)] == expected


def test_the_process_in_detail(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With -v, a line ends with unit, user, container and pod; and with the name of the thread if it is another one."""
    found = {re.sub(".* ({.*})", r"\1", line) for line in printed(capsys, "-v", "-r", capture) if line.endswith("}")}
    assert found == {
        "{unit=ssh.service user=root}",
        "{comm=isc-net-0000 user=me}",
        "{container=web pod=prod/web/nginx}",
    }


def test_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files in any form are one capture, in the order of time; so is a directory, with all other arguments."""
    first, second = tmp_path / "a.pcapng", tmp_path / "b.pcapng"
    traffic.write(first, count=50)
    traffic.write(second, first=50, count=50)
    whole = printed(capsys, "-r", second, "-r", first)
    assert len(whole) == 100
    assert printed(capsys, "-r", first, second) == whole
    (tmp_path / "a.pcapng.gz").write_bytes(gzip.compress(first.read_bytes()))
    first.unlink()
    assert printed(capsys, "-r", tmp_path / "a.pcapng.gz", second) == whole
    assert printed(capsys, "-r", tmp_path) == whole
    assert printed(capsys, "-r", tmp_path, "-c", "53") == whole[:53]
    only = [line for line in whole if " in " in line]
    assert printed(capsys, "-r", tmp_path / "a.pcapng.gz", second, "-Q", "in") == only


def test_files_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of tcpdump has no columns for processes; one of dumpcap has the interface; one of ptcpdump the process."""
    other = tmp_path / "a.pcap"
    frame = udp("1.1.1.1", "2.2.2.2")
    other.write_bytes(pcap([frame], 0xA1B23C4D, ">"))
    assert printed(capsys, "-r", other) == ["1.000000001 IP 1.1.1.1.0 > 2.2.2.2.0: UDP, length 18"]
    other = tmp_path / "a.pcapng"
    description = interface(opts=options((2, b"eth\x1b[7")))
    said = comment(b"PID: 7\nCmd: /usr/bin/a b\nArgs: x")
    other.write_bytes(section() + description + packet(frame) + packet(frame, said))
    assert [line.split(" IP ")[0].split()[1:] for line in printed(capsys, "-r", other)] == [
        ["?", "eth\\x1b[7", "?"],
        ["a\\x20b[7]", "eth\\x1b[7", "?"],
    ]


def test_standard_input_is_printed_while_it_comes(capture: Path) -> None:
    """With -l, the first packets are printed before the last ones are written."""
    content = capture.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-m", "skbcapd", "capture", "-lr", "-"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(content[: len(content) // 2])
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(COUNT // 4)]
        process.stdin.write(content[len(content) // 2 :])
        process.stdin.close()
        rest = process.stdout.read()
    assert (process.returncode, len(lines) + rest.count(b"\n")) == (0, COUNT)


def test_a_reader_that_ends(tmp_path: Path) -> None:
    """`| head -n 1` ends the command without a message."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(section() + interface() + packet(udp("1.1.1.1", "2.2.2.2")) * 1_000_000)
    with subprocess.Popen(
        [sys.executable, "-m", "skbcapd", "capture", "-r", str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_damaged_file(capture: Path, tmp_path: Path) -> None:
    """The packets before the damage are printed, then the error, with exit code 1."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(capture.read_bytes()[:-30])
    code, stdout, stderr = run("capture", "-r", path)
    assert (code, stdout.count(b"\n")) == (1, COUNT - 1)
    assert re.fullmatch(r"skbcapd: .*a\.pcapng: at byte \d+: the file ends .*\n", stderr)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-r", "nosuch.pcapng"], "nosuch.pcapng: No such file or directory"),
        (["-r", "{file}", "nosuch.pcap", "tcp"], "nosuch.pcap: No such file or directory; expected a capture file"),
        (["-r", "{file}", "tcp", "prot", "7"], 'FILTER: found "tcp prot 7" ('),
        (["-r", "{file}", "-i", "/(/"], "-i: bad regular expression"),
        (["-r", "{file}", "--set", "snaplen=96"], "--set with -r: found both"),
        (["-r", "{file}", "--duration", "3"], "--duration with -r: found both"),
        (["-r", "{file}", "-B", "4096"], "-B with -r: found both"),
        (["-r", "{file}", "--payload", "none"], "--payload with -r: found both"),
        (["-r", "{file}", "--pid", "7", "--children"], "--children with -r: found both"),
        (["-r", "{file}", "--", "true"], "a command after -- with -r: found both"),
        (["-r", "{file}", "-w", "x"], "skbcapd extract FILE -w OUT"),
        (["-r", "{file}", "-F", "nosuch"], "nosuch: No such file or directory; expected a file with a filter"),
        (["-r", "{file}", "-F", "{file}", "tcp"], "FILTER: found 'tcp' beside -F"),
        (["--peer", "10.0.0.1"], "--peer: found no -r"),
        (["--to", "10:00"], "--to: found no -r"),
    ],
)
def test_invalid_command_lines(words: list[str], message: str, capture: Path) -> None:
    """A wrong word is an error that names it, and nothing is printed."""
    code, stdout, stderr = run("capture", *(word.format(file=capture) for word in words))
    assert code in {1, 2}
    assert stdout == b""
    assert message in stderr
    assert "Traceback" not in stderr
