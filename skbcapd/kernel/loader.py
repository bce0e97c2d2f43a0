"""Load and attach the kernel program: a child process that hands over descriptors and ends.

In: definitions, and which hook to take. Out, over a socket: descriptors of maps, programs and links.

The rule: what takes long or much memory (compiling, verifying) is the child's, and its end gives the memory back; the
parent holds nothing but descriptors. What fails in the child becomes one error message here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from typing import Any

from skbcapd.errors import KernelError
from skbcapd.kernel import compiler, syscall

# Where a packet's way goes on: function -> those behind it, each with the map it is called through and its place there.
_STAGES = {
    "on_transmit": {
        "identify_out": ("stages_out", 1),
        "take_out": ("stages_out", 2),
        "copy_out": ("stages_out", 3),
        "guard_out": ("stages_out", 4),
    },
    "on_receive": {
        "identify_in": ("stages_in", 1),
        "take_in": ("stages_in", 2),
        "copy_in": ("stages_in", 3),
        "guard_in": ("stages_in", 4),
    },
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


def start(
    maps: Sequence[str], definitions: Mapping[str, int | str], hooks: list[Hook], measure: Hook, filters: str = ""
) -> Loader:
    """Fork the child; it compiles and loads, attaches `measure`, and waits to be told to attach `hooks`.

    Args:
        maps: names of the maps whose descriptors are wanted.
        definitions: from layout.definitions; with WINDOW there are filters.
        hooks: where the program is attached.
        measure: the hook for measuring.
        filters: as for `compiler.source`.
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
        filters: as for `compiler.source`.
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
    stages = _behind(hooks, _STAGES) | (_behind(hooks, _FILTERS) if filters else {})
    every = [measure, *hooks, *stages]
    made = _build(definitions, every, filters)
    descriptors = {table.name: syscall.make_map(*astuple(table)) for table in made.maps}
    loaded = _load(made, every, descriptors)
    for stage, (table, place) in stages.items():
        syscall.update(descriptors[table], struct.pack("<I", place), struct.pack("<I", loaded[stage]))
    measuring = _attach(measure, loaded[measure])
    _send(channel, {"maps": list(maps)}, [descriptors[name] for name in maps])
    if not channel.recv(64):
        return  # the parent has given up
    os.close(measuring)
    links = [_attach(hook, loaded[hook]) for hook in hooks]
    _send(channel, {"hooks": len(hooks)}, links + [loaded[hook] for hook in hooks])


def _filters_child(
    channel: socket.socket,
    maps: Mapping[str, int],
    definitions: Mapping[str, int | str],
    hooks: Sequence[Hook],
    filters: str,
) -> None:
    """Runs in the child: load filters that use the maps of the running program, report."""
    stages = _behind(hooks, _FILTERS)
    made = _build(definitions, list(stages), filters)
    # What the running program has not is the filters' own: the window, whose length may be another one.
    used = set().union(*(made.used(stage.function) for stage in stages))
    own = {table.name: syscall.make_map(*astuple(table)) for table in made.maps if table.name in used - maps.keys()}
    loaded = _load(made, list(stages), {**maps, **own})
    _send(channel, {"places": list(stages.values())}, [loaded[stage] for stage in stages])


def _build(definitions: Mapping[str, int | str], hooks: Sequence[Hook], filters: str) -> compiler.Object:
    """The program, compiled for some hooks. Frames are taken as the first of them does."""
    if hooks[0].kind == "kprobe":
        definitions = {**definitions, "KPROBE": 1}
    return compiler.build(definitions, {hook.function for hook in hooks}, filters)


def _behind(hooks: Sequence[Hook], table: Mapping[str, Mapping[str, tuple[str, int]]]) -> dict[Hook, tuple[str, int]]:
    """The programs that the way goes on to behind hooks, each with its map and place."""
    return {
        replace(hook, function=function): place
        for hook in hooks
        for function, place in table.get(hook.function, {}).items()
    }


def _send(channel: socket.socket, message: dict[str, Any], descriptors: list[int]) -> None:
    socket.send_fds(channel, [json.dumps(message).encode()], descriptors)


def _load(made: compiler.Object, hooks: Sequence[Hook], maps: Mapping[str, int]) -> dict[Hook, int]:
    """Load the functions of some hooks, as many at once as there are processors; their descriptors."""

    def load(hook: Hook) -> int:
        return syscall.load_program(hook.function, made.code(hook.function, maps), hook.kind, hook.type_id)

    with ThreadPoolExecutor() as threads:
        return dict(zip(hooks, threads.map(load, hooks), strict=True))


def _attach(hook: Hook, program: int) -> int:
    """Attach one hook; the descriptor returned keeps it attached after this process has ended."""
    if hook.kind == "tracepoint":
        return syscall.attach_tracepoint(program)
    return syscall.attach_kprobe(program, hook.target)
