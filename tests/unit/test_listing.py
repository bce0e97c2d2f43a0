"""The list of finished files in memory equals the directory, at no cost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.output import listing as listing_module
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.listing import Listing
from skbcapd.output.retention import Keep
from tests.support import faults

NAMES = [f"{number}.pcapng" for number in range(1, 8)]


def number_of(name: str) -> int:
    """The number at the beginning of a name."""
    first, _, rest = name.partition(".")
    return int(first) if rest == "pcapng" and first.isdecimal() else 0


def no_watch(_directory: int) -> None:
    """A machine without a free inotify instance."""
    raise OSError(24, "Too many open files")


@pytest.fixture(params=["inotify", "none"])
def listing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listing]:
    """The list of an empty directory."""
    if request.param == "none":
        monkeypatch.setattr(listing_module, "Watch", no_watch)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    made = Listing(descriptor, number_of)
    yield made
    made.close()
    os.close(descriptor)


def looked_at(path: Path) -> list[tuple[int, str, int]]:
    """The files in the directory itself."""
    files = [entry for entry in path.iterdir() if number_of(entry.name) and entry.is_file() and not entry.is_symlink()]
    return sorted((number_of(entry.name), entry.name, entry.stat().st_size) for entry in files)


def change(path: Path, what: str, name: str) -> None:
    """Changes by others in a directory."""
    place, other = path / name, path / f"9{name}"
    if what == "write":
        place.write_bytes(bytes(number_of(name) * 7))
    elif what == "rename" and place.exists():
        place.rename(other)
    elif what == "remove":
        place.unlink(missing_ok=True)
    elif what == "link" and not place.exists():
        place.symlink_to("/etc/hostname")
    elif what == "back" and other.exists():
        other.rename(place)


CHANGES = st.sampled_from(["write", "rename", "remove", "link", "back", "look"])


@pytest.mark.parametrize("has_inotify", [True, False])
@given(changes=st.lists(st.tuples(CHANGES, st.sampled_from(NAMES)), max_size=30))
def test_whatever_others_do_is_noticed(
    has_inotify: bool,  # noqa: FBT001
    changes: list[tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """After any changes the list equals the directory, and so does the sum of sizes."""
    path = tmp_path_factory.mktemp("listing")
    with pytest.MonkeyPatch.context() as patch:
        if not has_inotify:
            patch.setattr(listing_module, "Watch", no_watch)
        descriptor = os.open(path, os.O_RDONLY)
        listing = Listing(descriptor, number_of)
        for what, name in changes:
            change(path, what, name)
            if what == "look":
                listing.refresh()
        listing.refresh()
        found = looked_at(path)
        sizes = has_inotify or not any(what == "write" for what, _ in changes)
        assert [entry[: 2 + sizes] for entry in listing] == [entry[: 2 + sizes] for entry in found]
        if sizes:
            assert listing.total == sum(size for _, _, size in found)
        listing.close()
        os.close(descriptor)


def test_only_regular_files_count(listing: Listing, tmp_path: Path) -> None:
    """A directory, a link, a FIFO and a device with the name of a file are not counted."""
    (tmp_path / NAMES[0]).mkdir()
    (tmp_path / NAMES[1]).symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / NAMES[2])
    (tmp_path / NAMES[3]).write_bytes(b"abc")
    listing.refresh()
    assert [entry.name for entry in listing] == [NAMES[3]]
    assert listing.total == 3


def test_many_files_cost_nothing(tmp_path: Path) -> None:
    """With 20,000 files, the work of a second takes no longer than with none, and their age is
    still checked.
    """
    for number in range(1, 20_001):
        name = f"skbcapd-a-20261101T000000.000Z-{number:06}.pcapng"
        os.close(os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY, 0o640))
    os.utime(tmp_path / "skbcapd-a-20261101T000000.000Z-000001.pcapng", (1, 1))
    directory = CaptureDirectory(tmp_path, keep=Keep(age_s=3600))
    directory.tick()
    assert len(list(tmp_path.glob("*.pcapng"))) == 19_999
    begun = time.process_time()
    for _ in range(100):
        directory.tick()
    spent = time.process_time() - begun
    faults.compare("a directory of 100,000 files", 1, f"20,000 files: {spent:.2f} % of a processor when idle")
    assert spent < 0.1, f"{spent * 10:.1f} ms for each second"
    directory.close()
