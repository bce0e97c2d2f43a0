"""TLS secrets in files that are read: left out by default, copied on request, wherever they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.judges import judge
from tests.support.key_logs import found, line, secrets
from tests.support.strangers import block, interface, packet, process, section

WIREGUARD = 0x57474B4C
TEXT = b"# a comment\n\nno secret\n" + line(1) + line(2).replace(b"\n", b"\r\n")


def write(path: Path, order: str = "<") -> Path:
    """A file with secrets before, between and after three packets."""
    path.write_bytes(
        section(order)
        + secrets(TEXT, order)
        + interface(order)
        + packet(b"first", order=order, time=1)
        + secrets(line(3), order)
        + packet(b"second", order=order, time=2)
        + packet(b"third", order=order, time=3)
        + secrets(line(4), order)
    )
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_secrets_are_left_out(order: str, path: Path, out: Path) -> None:
    """By default no secret is in the result, and all packets are."""
    write(path, order)
    assert run("extract", path, "-w", out)[0] == 0
    data = out.read_bytes()
    assert (found(data), data.count(b"CLIENT_RANDOM")) == ([], 0)
    assert run("extract", path, "--count")[1] == b"3\n"
    assert run("top", path)[0] == 0


@pytest.mark.parametrize("order", ["<", ">"])
def test_secrets_are_copied(order: str, path: Path, out: Path) -> None:
    """With --secrets all, each line stands before the packets that it stood before, without comments and other lines.
    Those after the last packet are left out.
    """
    write(path, order)
    assert run("extract", path, "-w", out, "--secrets", "all")[0] == 0
    judge(out, "capinfos")
    assert found(out.read_bytes()) == [(0, [line(1), line(2)]), (1, [line(3)])]


def test_secrets_of_several_files(path: Path, out: Path, tmp_path: Path) -> None:
    """The secrets of each file stand before its first packet that is selected."""
    other = tmp_path / "b.pcapng"
    other.write_bytes(section() + secrets(line(9)) + interface() + packet(b"last", process(7, "curl"), time=2))
    write(path)
    assert run("extract", path, other, "-w", out, "--secrets", "all", "--process", "curl")[0] == 0
    assert found(out.read_bytes()) == [(0, [line(9)])]


def test_secrets_that_are_none(path: Path, out: Path) -> None:
    """Secrets of another type, with a wrong length, or in a block that is too short, are left out; packets are read."""
    path.write_bytes(
        section()
        + interface()
        + secrets(line(1), kind=WIREGUARD)
        + secrets(line(2), size=1 << 30)
        + block(10, b"\0" * 4)
        + block(10, b"")
        + secrets(b"\xff" * 1000)
        + packet(b"frame")
    )
    assert run("extract", path, "-w", out, "--secrets", "all")[0] == 0
    assert found(out.read_bytes()) == []
    assert out.read_bytes().count(b"frame") == 1


def test_pcap_has_no_secrets(path: Path, out: Path) -> None:
    """--secrets all with --format pcap is an error, and nothing is written."""
    code, _, stderr = run("extract", write(path), "-w", out, "--secrets", "all", "--format", "pcap")
    assert code != 0
    assert "pcap files have no secrets" in stderr
    assert not out.exists()
