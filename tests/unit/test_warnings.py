"""Warnings about settings that are valid, but name missing things or have unwanted effects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skbcapd.config.parser import default_settings
from skbcapd.daemon.warnings import _has_namespace, warnings_for
from tests.support import faults

MIB = 1 << 20


def said(directory: Path, **settings: str) -> list[str]:
    """The warnings about settings; a dot in a key is written as two underscores."""
    chosen = {"files.directory": str(directory / "not" / "yet")}
    return list(
        warnings_for(default_settings(chosen | {key.replace("__", "."): text for key, text in settings.items()}))
    )


def test_the_defaults_have_no_warnings(tmp_path: Path) -> None:
    """The reference settings have no warnings."""
    assert said(tmp_path, files__keep_free="0") == []


def test_a_namespace_that_is_not_there(tmp_path: Path) -> None:
    """A missing network namespace (name or number) is reported; our own number, and self, are not."""
    ours = str(Path("/proc/self/ns/net").stat().st_ino)
    wanted = f"self,{ours},nosuch,7"
    expected = [
        f"namespaces: no network namespace {name} is there now; it is captured when it appears" for name in "n7"
    ]
    lines = said(tmp_path, namespaces=wanted)
    faults.compare("a namespace that does not exist", 1, f"said: {lines[0]}")
    assert lines == [expected[0].replace(" n ", " nosuch "), expected[1]]
    assert said(tmp_path, rules="[{netns: nosuch, action: drop}]") == [
        "rules[1].netns: no network namespace nosuch is there now"
    ]


def test_a_namespace_appears(tmp_path: Path) -> None:
    """A name below /run/netns exists, and so does its inode number."""
    (tmp_path / "blue").touch()
    assert _has_namespace("blue", tmp_path, tmp_path)
    assert _has_namespace(str((tmp_path / "blue").stat().st_ino), tmp_path, tmp_path)
    assert not _has_namespace("red", tmp_path, tmp_path)
    assert not _has_namespace("7", tmp_path / "none", tmp_path)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"files.keep_size": "50MiB"}, 100 * MIB),
        ({"files.keep_size": "99MiB"}, 100 * MIB),
        ({"files.keep_size": "100MiB"}, 0),
        ({"files.keep_size": "0"}, 0),
        ({"files.keep_size": "1MiB", "files.size": "0"}, 0),
        ({"files.keep_size": "50MiB", "files.mode": "ring"}, 64 * MIB),
        ({"files.keep_size": "50MiB", "files.mode": "ring", "files.ring": "48MiB"}, 0),
        ({"files.keep_size": "50MiB", "files.mode": "ring", "files.size": "0"}, 64 * MIB),
    ],
)
def test_less_is_kept_than_one_file(settings: dict[str, str], size: int, tmp_path: Path) -> None:
    """keep_size below the maximum size of one file is reported, with both numbers."""
    chosen = {"files.directory": str(tmp_path), "files.keep_free": "0"} | settings
    found = list(warnings_for(default_settings(chosen)))
    if found and settings == {"files.keep_size": "50MiB"}:
        faults.compare("keep_size below one file", 1, found[0])
    assert len(found) == bool(size)
    if size:
        kept = int(chosen["files.keep_size"].removesuffix("MiB")) * MIB
        assert found[0].startswith(f"files.keep_size of {kept} bytes is less than one file, which may have {size}:")


def test_more_is_kept_free_than_the_disk_has(tmp_path: Path) -> None:
    """keep_free above the size of the disk is reported: nothing would be written."""
    disk = os.statvfs(tmp_path)
    whole = disk.f_blocks * disk.f_frsize
    assert said(tmp_path, files__keep_free=str(whole)) == []
    (found,) = said(tmp_path, files__keep_free=str(whole + 1))
    assert "no packet is written" in found


@pytest.mark.parametrize(("size", "used"), [("100MiB", 64), ("65000KiB", 32), ("4MiB", 8), ("4095MiB", 2048)])
def test_a_buffer_of_another_size(size: str, used: int, tmp_path: Path) -> None:
    """A size that is no power of two is reported with the size that is used."""
    [line] = said(tmp_path, buffer__size=size, files__keep_free="0")
    assert f" MiB: {used} MiB are used" in line
    assert said(tmp_path, buffer__size=f"{used}MiB", files__keep_free="0") == []


@pytest.mark.parametrize(("permissions", "count"), [("640", 0), ("600", 0), ("644", 1), ("641", 1)])
def test_secrets_that_everybody_can_read(permissions: str, count: int, tmp_path: Path) -> None:
    """TLS secrets in files that every user can read are reported; without secrets such files are not."""
    chosen = {"files__permissions": permissions, "files__keep_free": "0"}
    assert said(tmp_path, **chosen) == []
    lines = said(tmp_path, secrets="keys.log", **chosen)
    assert len(lines) == count
    assert all(f"files.permissions is {permissions}: every user can read the capture files" in line for line in lines)
