"""Answers from BTF that are kept for the next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from skbcapd.errors import BtfError
from skbcapd.kernel import abi, kept_btf
from skbcapd.kernel.btf import VMLINUX, Btf
from skbcapd.kernel.kept_btf import KeptBtf
from tests.support import blob
from tests.support.blob import Blob


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory, which does not exist yet."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each time that BTF is indexed."""
    found: list[int] = []
    index = Btf._index

    def count(self: Btf) -> None:
        found.append(1)
        index(self)

    monkeypatch.setattr(Btf, "_index", count)
    return found


def types(size: int = 24) -> bytes:
    """BTF with a struct, a tracepoint and a function."""
    made = Blob()
    integer = made.add(blob.INT, "int")
    made.struct("words", size, ("first", integer, 0), ("bits", integer, 35, 2))
    made.add(blob.TYPEDEF, "btf_trace_event")
    made.add(blob.FUNC, "cast")
    return made.build()


def answers(btf: Btf) -> list[object]:
    """One answer of each kind."""
    return [
        btf.bits("words", "bits"),
        btf.offset("words", "gone", "first"),
        btf.has("words", "gone"),
        btf.tracepoint("event"),
        btf.tracepoint("gone"),
        btf.function("cast"),
        btf.number("words"),
        btf.size("words"),
    ]


def test_the_next_start_has_the_same_answers(directory: Path, indexed: list[int]) -> None:
    """The second start gets the answers of Btf without an index, and writes nothing."""
    expected = answers(Btf(types()))
    del indexed[:]
    for _ in range(2):
        btf = KeptBtf(types())
        assert answers(btf) == expected
        btf.keep()
    assert len(indexed) == 1
    assert len([*directory.iterdir()]) == 1


def test_a_new_question_is_answered_and_kept(indexed: list[int]) -> None:
    """A question that was not asked before is answered from the index, and then kept, too."""
    btf = KeptBtf(types())
    assert btf.size("words") == 24
    btf.keep()
    for _ in range(2):
        btf = KeptBtf(types())
        assert (btf.size("words"), btf.number("words")) == (24, 2)
        btf.keep()
    assert len(indexed) == 2


def test_another_kernel_has_its_own_answers() -> None:
    """Answers are of the same bytes only."""
    for size in (24, 32, 24):
        btf = KeptBtf(types(size))
        assert btf.size("words") == size
        btf.keep()


def test_errors_are_not_kept() -> None:
    """A missing struct, and bytes that are no BTF, are an error at each start."""
    for _ in range(2):
        btf = KeptBtf(types())
        with pytest.raises(BtfError, match="struct gone is not in"):
            btf.size("gone")
        btf.keep()
        with pytest.raises(BtfError, match="at least a header"):
            KeptBtf(b"").size("words")


def test_without_a_directory_it_is_indexed(monkeypatch: pytest.MonkeyPatch, indexed: list[int]) -> None:
    """If the cache cannot be written, each start indexes BTF."""
    monkeypatch.setenv("CACHE_DIRECTORY", "/proc/none")
    for _ in range(2):
        btf = KeptBtf(types())
        assert btf.size("words") == 24
        btf.keep()
    assert len(indexed) == 2


def test_the_definitions_of_the_running_kernel() -> None:
    """All definitions of the kernel program are the same with kept answers."""
    expected = abi.definitions(Btf.load(VMLINUX), abi.Geometry(4))
    for _ in range(2):
        btf = kept_btf.load()
        assert abi.definitions(btf, abi.Geometry(4)) == expected
        btf.keep()
