"""Indexes arrive, whatever happens between, and nothing is deleted before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from skbcapd.errors import FileError
from skbcapd.fleet import ship as shipping
from skbcapd.fleet.ship import HELD, ship

NAME = "skbcapd-web-2026112{}T100000.000Z-00000{}.pcapng"


@pytest.fixture(autouse=True)
def _no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rclone configuration of the user who runs the tests."""
    monkeypatch.setenv("RCLONE_CONFIG", "/nonexistent/rclone.conf")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory of captures of two days, each with an index."""
    directory = tmp_path / "captures"
    directory.mkdir()
    for number in range(1, 4):
        name = NAME.format(number // 3, number)
        (directory / name).write_bytes(b"capture %d" % number)
        (directory / f"{name}.index.csv.gz").write_bytes(b"index %d" % number)
    (directory / "skbcapd-web-20261121T100000.000Z-000009.pcapng.part").write_bytes(b"now")
    (directory / "current.pcapng").symlink_to(NAME.format(1, 3))
    return directory


def tree(path: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def indexes() -> dict[str, bytes]:
    """What must arrive."""
    return {
        f"index/raw/host=web/date=2026-11-2{number // 3}/{NAME.format(number // 3, number)}.index.csv.gz": b"index %d"
        % number
        for number in range(1, 4)
    }


def test_indexes_arrive(source: Path, tmp_path: Path) -> None:
    """Each index is below its host and day; the second run copies nothing new, and nothing is gone."""
    before = tree(source)
    for _ in range(2):
        ship(source, str(tmp_path / "fleet"), "web")
        assert tree(tmp_path / "fleet") == indexes()
    left = {name: data for name, data in tree(source).items() if not name.startswith(HELD)}
    assert left == before


def test_captures_arrive(source: Path, tmp_path: Path) -> None:
    """With captures, finished ones that have an index arrive, too."""
    (source / "skbcapd-web-20261121T110000.000Z-000010.pcapng").write_bytes(b"not indexed yet")
    ship(source, str(tmp_path / "fleet"), "web", captures=True)
    captures = {
        f"captures/host=web/date=2026-11-2{number // 3}/{NAME.format(number // 3, number)}": b"capture %d" % number
        for number in range(1, 4)
    }
    assert tree(tmp_path / "fleet") == indexes() | captures


def test_a_host_that_was_away_catches_up(source: Path, tmp_path: Path) -> None:
    """The remote cannot be reached while retention deletes everything: all indexes arrive later, then nothing of them
    is kept.
    """
    remote = tmp_path / "fleet"
    remote.write_bytes(b"no directory")
    with pytest.raises(FileError, match="not everything has arrived"):
        ship(source, str(remote), "web")
    for path in list(source.iterdir()):
        if path.is_file():
            path.unlink()
    with pytest.raises(FileError, match="not everything has arrived"):
        ship(source, str(remote), "web")
    assert len(tree(source / HELD)) == 3
    remote.unlink()
    ship(source, str(remote), "web")
    assert tree(remote) == indexes()
    assert tree(source / HELD) == {}


def test_a_new_index_of_a_file_replaces_the_old_one(source: Path, tmp_path: Path) -> None:
    """An index that was written again, of another size, arrives again."""
    ship(source, str(tmp_path / "fleet"), "web")
    path = source / f"{NAME.format(1, 3)}.index.csv.gz"
    new = path.with_name("new")
    new.write_bytes(b"index 3, written again")
    new.replace(path)
    ship(source, str(tmp_path / "fleet"), "web")
    assert b"index 3, written again" in tree(tmp_path / "fleet").values()
    assert len(tree(source / HELD)) == 3


def test_what_is_kept_is_bounded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the remote is never reached, the oldest indexes that retention has deleted are deleted, each with a line."""
    remote = tmp_path / "fleet"
    remote.write_bytes(b"no directory")
    with pytest.raises(FileError):
        ship(source, str(remote), "web")
    for path in source.glob("*.index.csv.gz"):
        path.unlink()
    monkeypatch.setattr(shipping, "HELD_MAX", 15)
    with pytest.raises(FileError):
        ship(source, str(remote), "web")
    assert sorted(tree(source / HELD).values()) == [b"index 2", b"index 3"]
    assert [NAME.format(0, 1) in message for message in caplog.messages] == [True]


def test_two_at_a_time(source: Path, tmp_path: Path) -> None:
    """A second run beside the first one ends with one line."""
    (source / HELD).mkdir()
    with subprocess.Popen(
        ["flock", str(source / HELD), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdin.write(b"locked\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(FileError, match="used by another"):
            ship(source, str(tmp_path / "fleet"), "web")
        holder.stdin.close()
    ship(source, str(tmp_path / "fleet"), "web")
    assert tree(tmp_path / "fleet") == indexes()


def test_the_daemon_still_uses_linked_files(source: Path, tmp_path: Path) -> None:
    """Captures keep one name: the daemon compresses no file with two."""
    ship(source, str(tmp_path / "fleet"), "web", captures=True)
    assert {path.stat().st_nlink for path in source.glob("*.pcapng")} == {1}


def test_no_rclone(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FileError) as raised:
        ship(source, str(tmp_path / "fleet"), "web")
    assert raised.value.hint == "apt-get install rclone"


def test_a_link_instead_of_the_directory(source: Path, tmp_path: Path) -> None:
    """Who can write to the directory cannot lead it elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    (source / HELD).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError):
        ship(source, str(tmp_path / "fleet"), "web")
    assert list((tmp_path / "elsewhere").iterdir()) == []
