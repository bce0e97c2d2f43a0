"""The input of the compiler, and the cache of its output."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from skbcapd.kernel import compiler
from skbcapd.kernel.compiler import Map, Object

MAPS = (Map("controls", 2, 4, 888, 1, 1024), Map("labels", 9, 40, 592, 16384, 0))


def load_map(place: int) -> bytes:
    """The instruction that loads a map: 64 bits, its source register 1 (BPF_PSEUDO_MAP_FD)."""
    return bytes([0x18, 0x11, 0, 0]) + place.to_bytes(4, "little") + bytes(8)


EXIT = bytes([0x95, 0, 0, 0, 0, 0, 0, 0])
# 64 bits, looks like a load of a map
NUMBER = bytes([0x18, 0x01, 0, 0, 1, 0, 0, 0]) + bytes([0, 0, 0, 0, 0x18, 0x11, 0, 0])
MADE = Object({"on_transmit": load_map(1) + NUMBER + load_map(0) + EXIT, "on_receive": load_map(1) + EXIT}, MAPS)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory, which does not exist yet."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int | str]]:
    """The definitions of each call of the compiler; it returns MADE."""
    asked: list[dict[str, int | str]] = []

    def compile_(definitions: dict[str, int | str], *_: object) -> Object:
        asked.append(definitions)
        return MADE

    monkeypatch.setattr(compiler, "_compile", compile_)
    return asked


def test_the_source_is_one_text() -> None:
    """The compiled text contains each file of bpf/ once, in place of its include."""
    text = compiler.source()
    assert "#include" not in text
    for path in compiler.SOURCES.glob("*.[ch]"):
        body = re.sub(r'#include "\w+\.h"\n', "", path.read_text())
        last = body.rstrip().splitlines()[-12:]
        assert text.count("\n".join(last)) == 1, path.name


def test_only_wanted_functions_are_compiled() -> None:
    """The text contains the wanted entry points and no others, and all other functions."""
    every, some = compiler.source(), compiler.source(functions={"on_transmit", "frame_out"})
    called = re.compile(r"^int (\w+)\(void", re.MULTILINE)

    assert {"on_transmit", "frame_out", "on_receive", "on_used", "on_measure"} < set(called.findall(every))
    assert called.findall(some) == ["on_transmit", "frame_out"]
    assert set(some.splitlines()) < set(every.splitlines())
    assert re.findall(r"^static inline .*$", some, re.MULTILINE) == re.findall(
        r"^static inline .*$", every, re.MULTILINE
    )


def test_maps_are_put_in_place() -> None:
    """The descriptor of a map replaces its index, and nothing else changes."""
    code = MADE.code("on_transmit", {"labels": 0x1234, "controls": 7})

    assert code == load_map(0x1234) + NUMBER + load_map(7) + EXIT
    assert MADE.used("on_transmit") == {"labels", "controls"}
    assert MADE.used("on_receive") == {"labels"}


def test_the_compiler_runs_once(directory: Path, compiled: list[dict[str, int | str]]) -> None:
    """The output is cached; another text, definition or function is compiled again."""
    for _ in range(3):
        assert compiler.build({"A": 1, "B": 2}, {"on_transmit"}, "") == MADE
    assert compiler.build({"B": 2, "A": 1}, {"on_transmit"}, "") == MADE
    assert len(compiled) == 1
    for different in (
        ({"A": 2, "B": 2}, {"on_transmit"}, ""),
        ({"A": 1, "B": 2}, {"on_receive"}, ""),
        ({"A": 1}, {"on_transmit"}, ""),
    ):
        compiler.build(*different)
    assert len(compiled) == 4
    assert len([*directory.iterdir()]) == 4
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_the_compiler_has_both_processors() -> None:
    """The programs of received packets are one part, all others the second; with one processor there is one part."""
    functions = {"on_receive", "process_in", "on_transmit", "process_out", "on_state", "on_measure", "block_drop"}

    parts = compiler._halves(functions, 2)
    assert parts == [
        {"on_receive", "process_in", "block_drop"},
        {"on_transmit", "process_out", "on_state", "on_measure"},
    ]
    assert compiler._halves({"filter_out"}, 2) == [{"filter_out"}]
    assert compiler._halves(functions, 1) == [functions]


def test_another_compiler_compiles_again(
    directory: Path, compiled: list[dict[str, int | str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output of another version of bcc is not used."""
    compiler.build({}, {"on_transmit"}, "")
    monkeypatch.setattr(compiler, "_compiler", lambda: "another")
    compiler.build({}, {"on_transmit"}, "")
    assert len(compiled) == 2
    assert len([*directory.iterdir()]) == 2


def other_owner(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is another one."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)


def link(path: Path, _: pytest.MonkeyPatch) -> None:
    """A symbolic link instead of the file."""
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def other_content(path: Path, _: pytest.MonkeyPatch) -> None:
    """Valid JSON, but not the cached one."""
    digest, _newline, body = path.read_bytes().partition(b"\n")
    path.write_bytes(digest + b"\n" + body.replace(b"16384", b"16385"))


def other_name(path: Path, _: pytest.MonkeyPatch) -> None:
    """The output for another input."""
    compiler.build({"A": 1}, {"on_transmit"}, "")
    [other] = set(path.parent.iterdir()) - {path}
    other.replace(path)


def pipe(path: Path, _: pytest.MonkeyPatch) -> None:
    """A FIFO without a writer."""
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path, _: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path, _: os.truncate(path, path.stat().st_size - 1), id="cut"),
        pytest.param(lambda path, _: path.chmod(0o620), id="its group may write"),
        pytest.param(lambda path, _: path.unlink(), id="gone"),
        *(
            pytest.param(spoil, id=str(spoil.__name__))
            for spoil in (other_owner, other_content, link, pipe, other_name)
        ),
    ],
)
def test_untrusted_cache_files_are_replaced(
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
    directory: Path,
    compiled: list[dict[str, int | str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that is incomplete, not ours or not regular is not used, and replaced."""
    compiler.build({}, {"on_transmit"}, "")
    [path] = directory.iterdir()
    spoil(path, monkeypatch)
    asked = len(compiled)
    assert compiler.build({}, {"on_transmit"}, "") == MADE
    assert len(compiled) == asked + 1
    assert json.loads(path.read_bytes().partition(b"\n")[2])["maps"][1]["entries"] == 16384
    monkeypatch.undo()


def test_the_oldest_are_deleted(directory: Path, compiled: list[dict[str, int | str]]) -> None:
    """At most 16 files are cached; the last used one stays, and so do other files."""
    for number in range(16):
        compiler.build({"A": number}, {"on_transmit"}, "")
        newest = max(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    (directory / "another's.json").touch()
    os.utime(directory / "another's.json", (0, 0))
    compiler.build({"A": 0}, {"on_transmit"}, "")
    compiler.build({"A": 16}, {"on_transmit"}, "")
    assert len([*directory.iterdir()]) == 16 + 1
    assert len(compiled) == 17
    compiler.build({"A": 0}, {"on_transmit"}, "")
    assert len(compiled) == 17
    compiler.build({"A": 1}, {"on_transmit"}, "")
    assert len(compiled) == 18


def test_nothing_need_be_kept(directory: Path, compiled: list[dict[str, int | str]]) -> None:
    """Without a cache, everything is compiled each time."""
    directory.write_text("not a directory")
    for _ in range(2):
        assert compiler.build({}, {"on_transmit"}, "") == MADE
    assert len(compiled) == 2
