"""Compile, load and attach the kernel program: a child process that hands over descriptors and ends.

In: definitions, and which hook to take. Out, over a socket: descriptors of maps, programs and links.

The rule: bcc lives in this child only. The compiler (LLVM) takes more than 100 MiB of memory and keeps it; the
child's end gives it back, and the parent holds nothing but descriptors. The child leaves by os._exit, because bcc would
detach everything at a regular exit.

bcc raises bare `Exception` and prints the compiler's complaints on stderr: both become one error message here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skbcapd import syscall
from skbcapd.errors import KernelError

# What the installed package holds is a copy of the tree's bpf/ (pyproject.toml).
_PACKAGE = Path(__file__).parent
SOURCES = _PACKAGE / "bpf" if (_PACKAGE / "bpf").is_dir() else _PACKAGE.parent / "bpf"

_FUNCTION = re.compile(r"^int (\w+)\(void \*ctx\)\n\{\n.*?^\}\n", re.MULTILINE | re.DOTALL)
_RDONLY_CAST = 0x10000  # stands for the kernel's function in what the compiler makes

# Where a packet's way goes on: function -> those behind it, each with the map it is called through and its place there.
_STAGES = {
    "on_transmit": {"identify_out": ("stages_out", 1), "take_out": ("stages_out", 2), "copy_out": ("stages_out", 3)},
    "on_receive": {"identify_in": ("stages_in", 1), "take_in": ("stages_in", 2), "copy_in": ("stages_in", 3)},
}
_FILTERS = {"on_transmit": {"filter_out": ("stages_out", 0)}, "on_receive": {"filter_in": ("stages_in", 0)}}


@dataclass(frozen=True, slots=True)
class Hook:
    """One place in the kernel where a function of the program runs.

    Args:
        kind: "kprobe" or "tracepoint" (a raw one, with typed arguments).
        target: kernel function or tracepoint.
        function: function of bpf/skbcapd.bpf.c.
        type_id: of a tracepoint, in the kernel's BTF; 0 until it is known.
    """

    kind: str
    target: str
    function: str
    type_id: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


def source(filters: str = "", functions: Collection[str] | None = None) -> str:
    """The program's text: skbcapd.bpf.c with the files it includes in place (bcc rewrites only its main file).

    Args:
        filters: what stands for filters.h, from packet_filter.source.
        functions: which of those that the kernel calls are wanted; None for all. Others would cost the compiler time.
    """

    def included(match: re.Match[str]) -> str:
        return filters if match[1] == "filters.h" else included_in((SOURCES / match[1]).read_text())

    def included_in(text: str) -> str:
        return re.sub(r'#include "(\w+\.h)"\n', included, text)

    def wanted(match: re.Match[str]) -> str:
        return match[0] if functions is None or match[1] in functions else ""

    return _FUNCTION.sub(wanted, included_in((SOURCES / "skbcapd.bpf.c").read_text()))


def start(
    maps: Sequence[str], definitions: Mapping[str, int | str], hooks: list[Hook], measure: Hook, filters: str = ""
) -> Loader:
    """Fork the child; it compiles and loads, attaches `measure`, and waits to be told to attach `hooks`.

    Args:
        maps: names of the maps whose descriptors are wanted.
        definitions: from layout.definitions; with WINDOW there are filters.
        hooks: where the program is attached.
        measure: the hook for measuring.
        filters: as for `source`.
    """
    return _fork(lambda channel: _child(channel, maps, definitions, hooks, measure, filters))


def start_filters(
    maps: Mapping[str, int], definitions: Mapping[str, int | str], hooks: Sequence[Hook], filters: str
) -> Loader:
    """Fork a child that compiles other filters for a program that runs; its message names their maps and places.

    Args:
        maps: the running program's, name to descriptor.
        definitions: those it was compiled with, and WINDOW.
        hooks: where it is attached.
        filters: as for `source`.
    """
    return _fork(lambda channel: _filters_child(channel, maps, definitions, hooks, filters))


def _fork(work: Callable[[socket.socket], None]) -> Loader:
    """Fork a child that does some work and reports through a channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    complaints = tempfile.TemporaryFile()  # noqa: SIM115  closed by Loader.close
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            os.dup2(complaints.fileno(), 2)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
            work(theirs)
        except BaseException:  # noqa: BLE001 the child has no caller: everything becomes a line for the parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    theirs.close()
    return Loader(pid, ours, complaints)


class Loader:
    """The parent's end: ask the child for its next step, get descriptors or a KernelError."""

    def __init__(self, pid: int, channel: socket.socket, complaints: Any) -> None:
        self._pid = pid
        self._channel = channel
        self._complaints = complaints

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The child's next message and the descriptors with it.

        Raises:
            KernelError: the child failed; its last words are in the message.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, 1 << 16, 64)
        except OSError as error:
            raise KernelError(f"the loader process failed: {error.strerror}") from None
        if not data:
            raise self._failure()
        return json.loads(data), list(descriptors)

    def fileno(self) -> int:
        """Readable when the child has something to say, or has ended."""
        return self._channel.fileno()

    def attach(self) -> tuple[dict[str, Any], list[int]]:
        """Tell the child to attach the hooks; its answer names them, with a descriptor each."""
        with contextlib.suppress(BrokenPipeError):
            self._channel.send(b"attach")
        return self.receive()

    def close(self) -> None:
        """End the child and reap it."""
        self._channel.close()
        self._complaints.close()
        os.waitpid(self._pid, 0)

    def _failure(self) -> KernelError:
        self._complaints.seek(0)
        lines = [line.strip() for line in self._complaints.read().decode(errors="replace").splitlines() if line.strip()]
        text = "\n".join(lines)
        if "No module named 'bcc'" in text:
            return KernelError(
                "bcc is not installed for this Python", "install Debian's python3-bpfcc (not the bcc of PyPI)"
            )
        if "Operation not permitted" in text:
            return KernelError(
                "the kernel refuses to load BPF programs: operation not permitted",
                "run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN; see `skbcapd doctor`",
            )
        return KernelError(
            "the kernel program could not be loaded: "
            + (" | ".join(lines[-6:])[-1500:] or "the loader died in silence"),
            "`skbcapd doctor` tells what this kernel offers",
        )


def _child(
    channel: socket.socket,
    maps: Sequence[str],
    definitions: Mapping[str, int | str],
    hooks: list[Hook],
    measure: Hook,
    filters: str,
) -> None:
    """Runs in the child: load, report, measure, attach on request, report."""
    from bcc import lib  # noqa: PLC0415  the room of bcc, on purpose not in the parent

    stages = _behind(hooks, _STAGES) | (_behind(hooks, _FILTERS) if filters else {})
    every = [measure, *hooks, *stages]
    program = _compile(definitions, every, filters)
    with ThreadPoolExecutor() as threads:  # the verifier takes its time with each, and has a processor each
        loaded = dict(zip(every, threads.map(lambda hook: _load(program, hook), every), strict=True))
    for stage, (table, place) in stages.items():
        program[table.encode()][ctypes.c_int(place)] = ctypes.c_int(loaded[stage])
    measuring = _attach(program, measure, loaded[measure])
    descriptors = [lib.bpf_table_fd(program.module, name.encode()) for name in maps]
    _send(channel, {"maps": list(maps)}, descriptors)
    if not channel.recv(64):
        return  # the parent has given up
    os.close(measuring)  # detaches; bcc's own way looks into tracefs, which is root's
    links = [_attach(program, hook, loaded[hook]) for hook in hooks]
    _send(channel, {"hooks": len(hooks)}, links + [loaded[hook] for hook in hooks])


def _filters_child(
    channel: socket.socket,
    maps: Mapping[str, int],
    definitions: Mapping[str, int | str],
    hooks: Sequence[Hook],
    filters: str,
) -> None:
    """Runs in the child: load filters that use the maps of the running program, report."""
    from bcc import lib  # noqa: PLC0415  as in _child

    small = dict.fromkeys(("SEGMENTS_MADE", "LABELS_MAX", "OWNERS_MAX", "FLOWS_MAX", "HOLDERS_MAX"), 1)
    stages = _behind(hooks, _FILTERS)
    program = _compile({**definitions, **small}, list(stages), filters)
    # The maps that were just made give way to the running program's; the window is new, its length may be another one.
    running = {lib.bpf_table_fd(program.module, name.encode()): descriptor for name, descriptor in maps.items()}
    for stage in stages:
        _exchange_maps(program, stage.function, running)
    _send(channel, {"places": list(stages.values())}, [_load(program, stage) for stage in stages])


def _compile(definitions: Mapping[str, int | str], hooks: Sequence[Hook], filters: str) -> Any:
    """The program, compiled for some hooks, with its maps. Frames are taken as the first of them does."""
    os.environ["BCC_KERNEL_SOURCE"] = str(SOURCES)
    from bcc import BPF, lib  # noqa: PLC0415  as in _child

    # bcc optimizes what the front end hands over, which need not do it before; and nothing reads the debug information.
    flags = ["-Wno-everything", "-fno-strict-aliasing", "-Os", "-g0", "-Xclang", "-disable-llvm-passes"]
    flags.append(f"-DCALL_RDONLY_CAST={_RDONLY_CAST}")
    flags += [f"-D{name}={value}" for name, value in definitions.items()]
    if hooks[0].kind == "kprobe":
        flags.append("-DKPROBE")
    program = BPF(text=source(filters, {hook.function for hook in hooks}), cflags=flags)
    for number in range(lib.bpf_num_functions(program.module)):
        _call_kernel(program, lib.bpf_function_name(program.module, number), int(definitions.get("RDONLY_CAST", 0)))
    return program


def _call_kernel(program: Any, function: bytes, type_id: int) -> None:
    """Make the calls of _RDONLY_CAST in a compiled function calls of the kernel's function with this type id.

    Source: BPF_PSEUDO_KFUNC_CALL in include/uapi/linux/bpf.h: a call whose source register is 2.
    """
    for code in _instructions(program, function):
        if code[0] == 0x85 and int.from_bytes(code[4:8], "little") == _RDONLY_CAST:
            code[1] |= 2 << 4
            code[4:8] = list(type_id.to_bytes(4, "little"))


def _instructions(program: Any, function: bytes) -> Iterator[Any]:
    """Each instruction of a compiled function, in place; the second half of a wide one left out."""
    from bcc import lib  # noqa: PLC0415  as in _child

    start, size = lib.bpf_function_start(program.module, function), lib.bpf_function_size(program.module, function)
    at = 0
    while at < size:
        code = (ctypes.c_uint8 * 8).from_address(start + at)
        yield code
        at += 16 if code[0] == 0x18 else 8


def _behind(hooks: Sequence[Hook], table: Mapping[str, Mapping[str, tuple[str, int]]]) -> dict[Hook, tuple[str, int]]:
    """The programs that the way goes on to behind hooks, each with its map and place."""
    return {
        replace(hook, function=function): place
        for hook in hooks
        for function, place in table.get(hook.function, {}).items()
    }


def _exchange_maps(program: Any, function: str, others: Mapping[int, int]) -> None:
    """Put other maps into a compiled function, descriptor for descriptor.

    Source: BPF_PSEUDO_MAP_FD in include/uapi/linux/bpf.h: a load of 64 bits whose source register is 1.
    """
    for code in _instructions(program, function.encode()):
        descriptor = int.from_bytes(code[4:8], "little")
        if code[0] == 0x18 and code[1] >> 4 == 1 and descriptor in others:
            code[4:8] = list(others[descriptor].to_bytes(4, "little"))


def _send(channel: socket.socket, message: dict[str, Any], descriptors: list[int]) -> None:
    socket.send_fds(channel, [json.dumps(message).encode()], descriptors)


def _load(program: Any, hook: Hook) -> int:
    """Load one hook's function; its descriptor."""
    from bcc import BPF, lib  # noqa: PLC0415  as in _child

    function = hook.function.encode()
    if hook.kind == "kprobe":
        return int(program.load_func(function, BPF.KPROBE).fd)
    start, size = lib.bpf_function_start(program.module, function), lib.bpf_function_size(program.module, function)
    return syscall.load_tracepoint(hook.function, ctypes.string_at(start, size), hook.type_id)


def _attach(program: Any, hook: Hook, descriptor: int) -> int:
    """Attach one hook; the descriptor returned keeps it attached after this process has ended."""
    if hook.kind == "tracepoint":
        return syscall.attach_tracepoint(descriptor)
    function, target = hook.function.encode(), hook.target.encode()
    program.attach_kprobe(event=target, fn_name=function)
    return int(program.kprobe_fds[b"p_" + target.replace(b"+", b"_").replace(b".", b"_")][function])
