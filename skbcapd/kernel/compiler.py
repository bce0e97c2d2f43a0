"""Compiles the kernel program with bcc, and caches the result for the next start.

In: definitions and the wanted functions. Out: their instructions, and the maps that they use.

The rule: only this module uses bcc. The compiler (LLVM) takes more than 100 MiB of memory and keeps
it, and bcc interferes with a normal exit. So it runs in child processes: one for each direction of
packets, at the same time.

The output is cached (cache.py) for all inputs: program text, definitions (with the offsets of the
running kernel) and compiler. The verifier of the kernel checks it like the output of the compiler.

bcc raises bare `Exception`, and prints the errors of the compiler on stderr.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from skbcapd.child import Child
from skbcapd.kernel import syscall
from skbcapd.kernel.cache import Cache, digest

# The installed package has a copy of bpf/ (pyproject.toml).
_PACKAGE = Path(__file__).parents[1]
SOURCES = _PACKAGE / "bpf" if (_PACKAGE / "bpf").is_dir() else _PACKAGE.parent / "bpf"

_FUNCTION = re.compile(r"^int (\w+)\(void \*ctx\)\n\{\n.*?^\}\n", re.MULTILINE | re.DOTALL)
# The programs of sent packets take as long to compile as these, with those that record users of sockets.
_NOT_SENT = re.compile(r"on_(receive|tap|drop|dropped)|\w+_(in|drop)")
_RDONLY_CAST = 0x10000  # stands for the kernel function in the output of the compiler

# bcc optimizes the output of the front end, so the front end does not optimize; debug information
# is not needed.
_FLAGS = (
    *("-Wno-everything", "-fno-strict-aliasing", "-Os", "-g0", "-Xclang", "-disable-llvm-passes"),
    f"-DCALL_RDONLY_CAST={_RDONLY_CAST}",
)

# Sizes of maps that no instruction depends on, for `Object.maps`. The maps of bcc itself are not
# used, so they are small.
_SIZES = {
    "segments": "SEGMENTS_MADE",
    "labels": "LABELS_MAX",
    "owners": "OWNERS_MAX",
    "flows": "FLOWS_MAX",
    "holders": "HOLDERS_MAX",
    "groups": "GROUPS_MAX",
    "forks": "FORKS_MAX",
    "fragments": "FRAGMENTS_MAX",
    "descendants": "DESCENDANTS_MAX",
}


@dataclass(frozen=True, slots=True)
class Map:
    """The parameters of a map; see BPF_MAP_CREATE in include/uapi/linux/bpf.h."""

    name: str
    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Object:
    """The output of the compiler.

    Args:
        functions: name -> instructions, 8 bytes each; a load of a map has its index in `maps`.
        maps: all maps of the program text.
    """

    functions: Mapping[str, bytes]
    maps: tuple[Map, ...]

    def code(self, function: str, maps: Mapping[str, int]) -> bytes:
        """The instructions of a function, with the descriptors of maps filled in."""
        code = bytearray(self.functions[function])
        for at in _map_loads(code):
            place = int.from_bytes(code[at + 4 : at + 8], "little")
            code[at + 4 : at + 8] = maps[self.maps[place].name].to_bytes(4, "little")
        return bytes(code)

    def used(self, function: str) -> set[str]:
        """The names of the maps that a function loads."""
        code = self.functions[function]
        return {self.maps[int.from_bytes(code[at + 4 : at + 8], "little")].name for at in _map_loads(code)}


def source(filters: str = "", functions: Collection[str] | None = None) -> str:
    """The program text: skbcapd.bpf.c with its included files inserted, because bcc rewrites only
    the main file.

    Args:
        filters: content of filters.h, from packet_filter.source.
        functions: entry points to include; None: all. Each one takes time to compile.
    """

    def included(match: re.Match[str]) -> str:
        return filters if match[1] == "filters.h" else included_in((SOURCES / match[1]).read_text())

    def included_in(text: str) -> str:
        return re.sub(r'#include "(\w+\.h)"\n', included, text)

    def wanted(match: re.Match[str]) -> str:
        return match[0] if functions is None or match[1] in functions else ""

    return _FUNCTION.sub(wanted, included_in((SOURCES / "skbcapd.bpf.c").read_text()))


def build(definitions: Mapping[str, int | str], functions: Collection[str], filters: str) -> Object:
    """Compile functions, or take them from the cache.

    Args:
        definitions: from abi.definitions; with filters, also WINDOW.
        functions: entry points to include.
        filters: as for `source`.

    Raises:
        ChildProcessError: the compiler failed; its errors are on stderr.
    """
    text = source(filters, functions)
    flags = [*_FLAGS, *(f"-D{name}={value}" for name, value in sorted(definitions.items()))]
    kept = Cache(_digest(text, flags))
    if (body := kept.get()) is not None:
        return _from_json(body)
    made = _compile(definitions, functions, filters)
    kept.put(_to_json(made))
    return made


def _compile(definitions: Mapping[str, int | str], functions: Collection[str], filters: str) -> Object:
    """Compile functions, each half of them in a process of its own: most of the time is that of LLVM for a function."""
    with ExitStack() as stack:
        children = []
        for half in _halves(functions, len(os.sched_getaffinity(0))):
            work = partial(_child, source(filters, half), definitions)
            children.append(Child(work, socket.SOCK_STREAM))
            stack.callback(children[-1].close)
        parts = [_received(child) for child in children]
    if any(part.maps != parts[0].maps for part in parts):
        raise ValueError("the parts of the program have different maps")
    return Object({name: code for part in parts for name, code in part.functions.items()}, parts[0].maps)


def _halves(functions: Collection[str], processors: int) -> list[set[str]]:
    """The functions in two parts that take about equally long; in one part if there is only one processor."""
    if processors == 1:
        return [set(functions)]
    others = {name for name in functions if _NOT_SENT.fullmatch(name)}
    return [half for half in (others, set(functions) - others) if half]


def _received(child: Child) -> Object:
    """The output of a child.

    Raises:
        ChildProcessError: it failed; its errors are now on the stderr of this process.
    """
    with child.channel.makefile("rb") as file:
        body = file.read()
    if not body:
        os.write(2, child.stderr().encode(errors="replace"))
        raise ChildProcessError("the compiler failed")
    return _from_json(body)


def _child(text: str, definitions: Mapping[str, int | str], channel: socket.socket) -> None:
    """Runs in a child: compile, and send the output."""
    channel.sendall(_to_json(_compile_text(text, definitions)))


def _compile_text(text: str, definitions: Mapping[str, int | str]) -> Object:
    """Compile with bcc, which also creates maps: their parameters are read from those."""
    from bcc import BPF, lib  # noqa: PLC0415  it takes a tenth of a second

    small = {**definitions, **dict.fromkeys(_SIZES.values(), 1)}
    with _only_sources():
        program = BPF(text=text, cflags=[*_FLAGS, *(f"-D{name}={value}" for name, value in small.items())])
    places: dict[int, int] = {}
    maps: list[Map] = []
    # bcc declares no types for these functions.
    module = ctypes.c_void_p(program.module)
    lib.bpf_table_name.restype = ctypes.c_char_p
    for number in range(lib.bpf_num_tables(module)):
        name = lib.bpf_table_name(module, ctypes.c_size_t(number)).decode()
        descriptor = lib.bpf_table_fd(program.module, name.encode())
        kind, key, value, entries, flags = syscall.map_info(descriptor)
        places[descriptor] = len(maps)
        maps.append(Map(name, kind, key, value, int(definitions.get(_SIZES.get(name, ""), entries)), flags))
    functions = {}
    for number in range(lib.bpf_num_functions(program.module)):
        name = lib.bpf_function_name(program.module, number)
        code = bytearray(
            ctypes.string_at(lib.bpf_function_start(program.module, name), lib.bpf_function_size(program.module, name))
        )
        _call_kernel(code, int(definitions.get("RDONLY_CAST", 0)))
        for at in _map_loads(code):
            place = places[int.from_bytes(code[at + 4 : at + 8], "little")]
            code[at + 4 : at + 8] = place.to_bytes(4, "little")
        functions[name.decode()] = bytes(code)
    return Object(functions, tuple(maps))


@contextmanager
def _only_sources() -> Iterator[None]:
    """Meanwhile, this process sees no files but those of bpf/.

    Otherwise bcc reads /proc/kallsyms, for 0.13 s, to find out whether the kernel has some helper functions. The
    program text does not depend on that. Without CAP_SYS_CHROOT it just takes longer.
    """
    os.environ["BCC_KERNEL_SOURCE"] = str(SOURCES)
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        with suppress(PermissionError):
            os.chroot(SOURCES)
            os.chdir("/")
            os.environ["BCC_KERNEL_SOURCE"] = "/"
        yield
    finally:
        if os.environ["BCC_KERNEL_SOURCE"] == "/":
            os.fchdir(root)
            os.chroot(".")
        os.close(root)


def _call_kernel(code: bytearray, type_id: int) -> None:
    """Replace calls of _RDONLY_CAST by calls of the kernel function with this type id.

    Source: BPF_PSEUDO_KFUNC_CALL in include/uapi/linux/bpf.h: a call whose source register is 2.
    """
    for at in _instructions(code):
        if code[at] == 0x85 and int.from_bytes(code[at + 4 : at + 8], "little") == _RDONLY_CAST:
            code[at + 1] |= 2 << 4
            code[at + 4 : at + 8] = type_id.to_bytes(4, "little")


def _map_loads(code: bytes | bytearray) -> Iterator[int]:
    """The offsets of instructions that load maps.

    Source: BPF_PSEUDO_MAP_FD in include/uapi/linux/bpf.h: a load of 64 bits whose source register
    is 1.
    """
    return (at for at in _instructions(code) if code[at] == 0x18 and code[at + 1] >> 4 == 1)


def _instructions(code: bytes | bytearray) -> Iterator[int]:
    """The offset of each instruction; the second half of a wide one is left out."""
    at = 0
    while at < len(code):
        yield at
        at += 16 if code[at] == 0x18 else 8


def _digest(text: str, flags: Collection[str]) -> str:
    """The name of the cache file for this input, this module and the installed compiler."""
    files = [Path(__file__), *sorted((SOURCES / "include").rglob("*.h"))]
    parts = [text, *flags, *(path.read_text() for path in files), _compiler()]
    return digest(map(str.encode, parts))


def _compiler() -> str:
    """The version of bcc, from its files: importing it would take 0.1 s."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        return ""  # the import of bcc will report it
    files = sorted(Path(found.origin).parent.glob("*.py"))
    return " ".join(f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files)


def _from_json(body: bytes) -> Object:
    record = json.loads(body)
    functions = {name: bytes.fromhex(code) for name, code in record["functions"].items()}
    return Object(functions, tuple(Map(**fields) for fields in record["maps"]))


def _to_json(made: Object) -> bytes:
    functions = {name: code.hex() for name, code in made.functions.items()}
    return json.dumps({"functions": functions, "maps": [*map(asdict, made.maps)]}).encode()
