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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skbcapd import syscall
from skbcapd.errors import KernelError

# What the installed package holds is a copy of the tree's bpf/ (pyproject.toml).
_PACKAGE = Path(__file__).parent
SOURCES = _PACKAGE / "bpf" if (_PACKAGE / "bpf").is_dir() else _PACKAGE.parent / "bpf"

# Where a packet's way goes on: function -> the one that is called next, and the map that it is called through. All
# programs of such a map have to be for functions of one type, and the driver's is not that of receiving.
_NEXT = {"on_transmit": ("take_out", b"takers_out"), "on_receive": ("take_in", b"takers_in")}


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


def source() -> str:
    """The program's text: skbcapd.bpf.c with the files it includes in place (bcc rewrites only its main file)."""
    text = (SOURCES / "skbcapd.bpf.c").read_text()
    return re.sub(r'#include "(\w+\.h)"\n', lambda match: (SOURCES / match[1]).read_text(), text)


def start(maps: Sequence[str], definitions: Mapping[str, int | str], hooks: list[Hook], measure: Hook) -> Loader:
    """Fork the child; it compiles and loads, attaches `measure`, and waits to be told to attach `hooks`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    complaints = tempfile.TemporaryFile()  # noqa: SIM115  closed by Loader.close
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            os.dup2(complaints.fileno(), 2)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
            _child(theirs, maps, definitions, hooks, measure)
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
    channel: socket.socket, maps: Sequence[str], definitions: Mapping[str, int | str], hooks: list[Hook], measure: Hook
) -> None:
    """Runs in the child: load, report, measure, attach on request, report."""
    os.environ["BCC_KERNEL_SOURCE"] = str(SOURCES)
    from bcc import BPF, lib  # noqa: PLC0415  the room of bcc, on purpose not in the parent

    flags = [f"-D{name}={value}" for name, value in definitions.items()] + ["-Wno-everything", "-Os"]
    if measure.kind == "kprobe":
        flags.append("-DKPROBE")
    program = BPF(text=source(), cflags=flags)
    takers = {replace(hook, function=_NEXT[hook.function][0]): hook for hook in hooks if hook.function in _NEXT}
    every = [measure, *hooks, *takers]
    with ThreadPoolExecutor() as threads:  # the verifier takes its time with each, and has a processor each
        loaded = dict(zip(every, threads.map(lambda hook: _load(program, hook), every), strict=True))
    for taker, hook in takers.items():
        program[_NEXT[hook.function][1]][ctypes.c_int(0)] = ctypes.c_int(loaded[taker])
    measuring = _attach(program, measure, loaded[measure])
    descriptors = [lib.bpf_table_fd(program.module, name.encode()) for name in maps]
    _send(channel, {"maps": list(maps)}, descriptors)
    if not channel.recv(64):
        return  # the parent has given up
    if measure.kind == "kprobe":
        program.detach_kprobe(event=measure.target.encode(), fn_name=measure.function.encode())
    else:
        os.close(measuring)
    links = [_attach(program, hook, loaded[hook]) for hook in hooks]
    _send(channel, {"hooks": len(hooks)}, links + [loaded[hook] for hook in hooks])


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
