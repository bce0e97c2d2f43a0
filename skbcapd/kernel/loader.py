"""Loads and attaches the kernel program: a child process that passes descriptors and ends.

In: definitions, and the wanted hooks. Out, over a socket: descriptors of maps, programs and links.

The rule: work that takes much time or memory (compiling, verifying) is done by the child, and its
end releases the memory. The parent only has descriptors. An error in the child becomes one error
message here.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from typing import Any

from skbcapd.child import Child
from skbcapd.errors import KernelError
from skbcapd.kernel import compiler, syscall
from skbcapd.kernel.abi import Stage

# Each hook's direction: the suffix of the programs of its stages, and of the map through which they are called.
_DIRECTIONS = {"on_transmit": "out", "on_receive": "in"}
_UNFILTERED = tuple(stage for stage in Stage if stage is not Stage.FILTER)


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
        definitions: from abi.definitions; with WINDOW there are filters.
        hooks: where the program is attached.
        measure: the hook for measuring.
        filters: as for `compiler.source`.
    """
    return Loader(lambda channel: _child(channel, maps, definitions, hooks, measure, filters))


def load_filters(
    maps: Mapping[str, int], definitions: Mapping[str, int | str], hooks: Sequence[Hook], filters: str
) -> tuple[list[tuple[str, int]], list[int]]:
    """Compile and load other filters for a program that runs; for a child, as it takes seconds and much memory.

    Args:
        maps: the running program's, name to descriptor.
        definitions: those it was compiled with, and WINDOW.
        hooks: where it is attached.
        filters: as for `compiler.source`.

    Returns:
        Map and place of each, and its descriptor.

    Raises:
        KernelError: the kernel refuses.
        Exception: what bcc raises.
    """
    stages = _behind(hooks, (Stage.FILTER,))
    made = _build(definitions, list(stages), filters)
    # What the running program has not is the filters' own: the window, whose length may be another one.
    used = set().union(*(made.used(stage.function) for stage in stages))
    own = {table.name: syscall.make_map(*astuple(table)) for table in made.maps if table.name in used - maps.keys()}
    loaded = _load(made, list(stages), {**maps, **own})
    return list(stages.values()), [loaded[stage] for stage in stages]


# What the last words of a child mean when it has come to a limit of the process or the cgroup.
_DESCRIPTORS = "raise LimitNOFILE= of the unit or `ulimit -n`: a capture needs about 50"
_MEMORY = "raise MemoryMax= of the unit, --memory of the container or `ulimit -v`; compiling takes 180 MiB"
_TASKS = "raise TasksMax= of the unit, --pids-limit of the container or `ulimit -u`; `ulimit -v` also counts"
_LIMITS = {
    "Too many open files in system": ("the system has no file descriptor left", "raise sysctl fs.file-max"),
    "Too many open files": ("the process may open no more files", _DESCRIPTORS),
    "Cannot allocate memory": ("out of memory", _MEMORY),
    "MemoryError": ("out of memory", _MEMORY),
    "std::bad_alloc": ("out of memory", _MEMORY),
    "failed to map segment": ("out of memory", _MEMORY),  # of a shared library
    "can't start new thread": ("the process may start no more threads", _TASKS),
    "Resource temporarily unavailable": ("the process may start no more threads or processes", _TASKS),
    "No space left on device": ("no space left on a device", "check free disk space of /tmp and /var/cache"),
}


class Loader:
    """The parent's end: ask the child for its next step, get descriptors or a KernelError.

    Args:
        work: what the child does; it answers by `send`.
        nice: added to the child's niceness.
    """

    def __init__(self, work: Callable[[socket.socket], None], nice: int = 0) -> None:
        self._child = Child(work, socket.SOCK_SEQPACKET, nice)
        self._channel = self._child.channel

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The child's next message and the descriptors with it.

        Raises:
            KernelError: the child failed; its last words are in the message.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, 1 << 16, 64)
        except ConnectionResetError:  # it has ended, and not read what it was sent
            data, descriptors = b"", []
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
        """End the child, whatever it does, and reap it."""
        self._child.close()

    def _failure(self) -> KernelError:
        lines = [line.strip() for line in self._child.stderr().splitlines() if line.strip()]
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
        for sign, (what, hint) in _LIMITS.items():
            if sign in text:
                return KernelError(f"the kernel program could not be loaded: {what}", hint)
        return KernelError(
            "the kernel program could not be loaded: "
            + (" | ".join(_reasons(lines)[-6:])[-1500:] or "the loader process exited without an error message"),
            "`skbcapd doctor` tells what this kernel offers",
        )


def _reasons(lines: Sequence[str]) -> list[str]:
    """Last words without the frames of a traceback: those are for who mends the code."""
    found: list[str] = []
    is_source = False
    for line in lines:
        if line.startswith(('File "', "Traceback (")):
            is_source = True
        elif is_source or (line and not line.strip("^~ ")):
            is_source = False
        else:
            found.append(line)
    return found


def _child(
    channel: socket.socket,
    maps: Sequence[str],
    definitions: Mapping[str, int | str],
    hooks: list[Hook],
    measure: Hook,
    filters: str,
) -> None:
    """Runs in the child: load, report, measure, attach on request, report."""
    stages = _behind(hooks, Stage if filters else _UNFILTERED)
    every = [measure, *hooks, *stages]
    made = _build(definitions, every, filters)
    descriptors = {table.name: syscall.make_map(*astuple(table)) for table in made.maps}
    loaded = _load(made, every, descriptors)
    for stage, (table, place) in stages.items():
        syscall.update(descriptors[table], struct.pack("<I", place), struct.pack("<I", loaded[stage]))
    measuring = _attach(measure, loaded[measure])
    send(channel, {"maps": list(maps)}, [descriptors[name] for name in maps])
    if not channel.recv(64):
        return  # the parent has given up
    os.close(measuring)
    links = [_attach(hook, loaded[hook]) for hook in hooks]
    send(channel, {"hooks": len(hooks)}, links + [loaded[hook] for hook in hooks])


def _build(definitions: Mapping[str, int | str], hooks: Sequence[Hook], filters: str) -> compiler.Object:
    """The program, compiled for some hooks. Frames are taken as the first of them does."""
    if hooks[0].kind == "kprobe":
        definitions = {**definitions, "KPROBE": 1}
    return compiler.build(definitions, {hook.function for hook in hooks}, filters)


def _behind(hooks: Sequence[Hook], stages: Iterable[Stage]) -> dict[Hook, tuple[str, int]]:
    """The programs of some stages behind hooks, each with the map through which it is called, and its index there."""
    return {
        replace(hook, function=f"{stage.name.lower()}_{direction}"): (f"stages_{direction}", stage)
        for hook in hooks
        if (direction := _DIRECTIONS.get(hook.function))
        for stage in stages
    }


def send(channel: socket.socket, message: dict[str, Any], descriptors: list[int]) -> None:
    """For the child: a message and descriptors for the parent's `receive`."""
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
