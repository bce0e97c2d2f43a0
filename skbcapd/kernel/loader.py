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
from typing import Any, TypeVar

from skbcapd.child import Child
from skbcapd.errors import KernelError
from skbcapd.kernel import compiler, syscall
from skbcapd.kernel.abi import Stage

# The direction of each hook: the suffix of its programs, and of the map for tail calls.
_DIRECTIONS = {"on_transmit": "out", "on_receive": "in", "on_tap": "in", "on_dropped": "drop"}
# The program at kfree_skb finds guard and process itself; dropped packets have no labels.
_NOT_OF_DROPS = frozenset({Stage.GUARD, Stage.PROCESS, Stage.LABEL})
STAGES_IN = "stages_in"
T = TypeVar("T")
_UNFILTERED = tuple(stage for stage in Stage if stage is not Stage.FILTER)


@dataclass(frozen=True, slots=True)
class Hook:
    """A place in the kernel where a function of the program runs.

    Args:
        kind: "kprobe", "tracepoint" (a raw one, with typed arguments), or "socket" (the filter of a packet socket).
        target: kernel function, tracepoint, or which sockets.
        function: function of bpf/skbcapd.bpf.c.
        type_id: type id of the tracepoint in the kernel's BTF; 0 until it is known.
    """

    kind: str
    target: str
    function: str
    type_id: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


TAP = Hook("socket", "interfaces above others", "on_tap")
TAP_STAGES = "stages_tap"
"""The map of its tail calls: programs of different types cannot share one."""


def start(
    maps: Sequence[str], definitions: Mapping[str, int | str], hooks: list[Hook], measure: Hook, filters: str = ""
) -> Loader:
    """Fork a child that compiles and loads the program, attaches `measure`, and waits for the
    request to attach `hooks`.

    Args:
        maps: names of the maps whose descriptors are returned.
        definitions: from abi.definitions; with filters, also WINDOW.
        hooks: hooks to attach.
        measure: hook of the measurement.
        filters: as for `compiler.source`.
    """
    return Loader(lambda channel: _child(channel, maps, definitions, hooks, measure, filters))


def start_tap(maps: Mapping[str, int], definitions: Mapping[str, int | str], filters: str) -> Loader:
    """Fork a child that compiles and loads the program for interfaces above others: as another type of program, of the
    same text. It sends the map of its tail calls, and the program.

    Args:
        maps: as for `load_filters`.
        definitions: as for `load_filters`.
        filters: as for `compiler.source`.
    """
    return Loader(lambda channel: _tap_child(channel, maps, definitions, filters))


def load_filters(
    maps: Mapping[str, int], definitions: Mapping[str, int | str], hooks: Sequence[Hook], filters: str
) -> tuple[list[tuple[str, int]], list[int]]:
    """Compile and load other filters for a running program. Called in a child, because it takes
    seconds and much memory.

    Args:
        maps: maps of the running program, name -> descriptor.
        definitions: definitions of the running program, and WINDOW.
        hooks: hooks of the running program.
        filters: as for `compiler.source`.

    Returns:
        Map and slot of each program, and its descriptor.

    Raises:
        KernelError: the kernel rejects them.
        Exception: from bcc.
    """
    stages = _behind(hooks, (Stage.FILTER,))
    made = _build(definitions, list(stages), filters)
    # Maps that the running program does not have belong to the filters: the window, whose size can
    # change.
    loaded = _load(made, list(stages), _with_own(maps, made, list(stages)))
    return list(stages.values()), [loaded[stage] for stage in stages]


def _with_own(maps: Mapping[str, int], made: compiler.Object, hooks: Sequence[Hook]) -> dict[str, int]:
    """Maps of the running program, and new ones for those that it does not have."""
    used = set().union(*(made.used(hook.function) for hook in hooks))
    return {**maps, **_make([table for table in made.maps if table.name in used - maps.keys()])}


def _make(tables: Iterable[compiler.Map]) -> dict[str, int]:
    """New maps, by name. The kernel clears their memory."""
    made = _in_parallel(
        lambda table: syscall.make_map(*astuple(table)), tables, lambda table: table.value_size * table.entries
    )
    return {table.name: descriptor for table, descriptor in made.items()}


def _in_parallel(make: Callable[[T], int], what: Iterable[T], size: Callable[[T], int]) -> dict[T, int]:
    """What `make` returns for each: with one thread for each processor, the largest first, because the kernel keeps a
    processor busy.
    """
    largest_first = sorted(what, key=size, reverse=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return dict(zip(largest_first, threads.map(make, largest_first), strict=True))


# Causes and hints for the last line of a child that has reached a limit of the process or the
# cgroup.
_DESCRIPTORS = "increase LimitNOFILE= of the unit or `ulimit -n`: a capture needs about 50"
_MEMORY = "increase MemoryMax= of the unit, --memory of the container or `ulimit -v`; compiling takes 250 MiB"
_TASKS = "increase TasksMax= of the unit, --pids-limit of the container or `ulimit -u`; `ulimit -v` also counts"
_LIMITS = {
    "Too many open files in system": ("the system has no free file descriptor", "increase sysctl fs.file-max"),
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
    """The child process, for its parent: request steps, receive descriptors or a KernelError.

    Args:
        work: function of the child; it replies by `send`.
        nice: added to the nice value of the child.
    """

    def __init__(self, work: Callable[[socket.socket], None], nice: int = 0) -> None:
        self._child = Child(work, socket.SOCK_SEQPACKET, nice)
        self._channel = self._child.channel

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next message of the child, and its descriptors.

        Raises:
            KernelError: the child failed; its last output is in the message.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, 1 << 16, 64)
        except ConnectionResetError:  # it ended before it read a message
            data, descriptors = b"", []
        except OSError as error:
            raise KernelError(f"the loader process failed: {error.strerror}") from None
        if not data:
            raise self._failure()
        return json.loads(data), list(descriptors)

    def fileno(self) -> int:
        """Readable when the child has a message, or has ended."""
        return self._channel.fileno()

    def attach(self) -> tuple[dict[str, Any], list[int]]:
        """Make the child attach the hooks; returns their names, each with a descriptor."""
        with contextlib.suppress(BrokenPipeError):
            self._channel.send(b"attach")
        return self.receive()

    def close(self) -> None:
        """End the child in any state, and reap it."""
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
                "the kernel does not allow to load BPF programs: operation not permitted",
                "run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN; see `skbcapd doctor`",
            )
        for sign, (what, hint) in _LIMITS.items():
            if sign in text:
                return KernelError(f"the kernel program could not be loaded: {what}", hint)
        return KernelError(
            "the kernel program could not be loaded: "
            + (" | ".join(_reasons(lines)[-6:])[-1500:] or "the loader process exited without an error message"),
            "`skbcapd doctor` checks this kernel",
        )


def _reasons(lines: Sequence[str]) -> list[str]:
    """The last output without the frames of a traceback, which only help developers."""
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
    descriptors = _make(made.maps)
    loaded = _load(made, every, descriptors)
    for stage, (table, place) in stages.items():
        syscall.update(descriptors[table], struct.pack("<I", place), struct.pack("<I", loaded[stage]))
    measuring = _attach(measure, loaded[measure])
    send(channel, {"maps": list(maps)}, [descriptors[name] for name in maps])
    if not channel.recv(64):
        return  # the parent has ended
    os.close(measuring)
    links = [_attach(hook, loaded[hook]) for hook in hooks]
    send(channel, {"hooks": len(hooks)}, links + [loaded[hook] for hook in hooks])


def _tap_child(
    channel: socket.socket, maps: Mapping[str, int], definitions: Mapping[str, int | str], filters: str
) -> None:
    """Runs in the child."""
    stages = _behind((TAP,), Stage if filters else _UNFILTERED)
    every = [TAP, *stages]
    made = _build(definitions, every, filters)
    there = _with_own({name: maps[name] for name in maps.keys() - {STAGES_IN}}, made, every)
    loaded = _load(made, every, there)
    for stage, (_, place) in stages.items():
        syscall.update(there[STAGES_IN], struct.pack("<I", place), struct.pack("<I", loaded[stage]))
    send(channel, {}, [there[STAGES_IN], loaded[TAP]])


def _build(definitions: Mapping[str, int | str], hooks: Sequence[Hook], filters: str) -> compiler.Object:
    """The program, compiled for some hooks; the kind of the first one decides how frames are read."""
    if hooks[0].kind != "tracepoint":
        definitions = {**definitions, "KPROBE": 1}
    if hooks[0].kind == "socket":
        definitions = {**definitions, "TAP": 1}
    return compiler.build(definitions, {hook.function for hook in hooks}, filters)


def _behind(hooks: Sequence[Hook], stages: Iterable[Stage]) -> dict[Hook, tuple[str, int]]:
    """The programs of some stages after hooks, each with the map of its tail call, and its index there."""
    return {
        replace(hook, function=f"{stage.name.lower()}_{direction}"): (
            TAP_STAGES if hook.kind == "socket" else f"stages_{direction}",
            stage,
        )
        for hook in hooks
        if (direction := _DIRECTIONS.get(hook.function))
        for stage in stages
        if not (direction == "drop" and stage in _NOT_OF_DROPS)
    }


def send(channel: socket.socket, message: dict[str, Any], descriptors: list[int]) -> None:
    """Called in the child: send a message and descriptors to `receive` of the parent."""
    socket.send_fds(channel, [json.dumps(message).encode()], descriptors)


def _load(made: compiler.Object, hooks: Sequence[Hook], maps: Mapping[str, int]) -> dict[Hook, int]:
    """Load the functions of some hooks; returns their descriptors."""

    def load(hook: Hook) -> int:
        return syscall.load_program(hook.function, made.code(hook.function, maps), hook.kind, hook.type_id)

    return _in_parallel(load, hooks, lambda hook: len(made.functions[hook.function]))


def _attach(hook: Hook, program: int) -> int:
    """Attach one hook; it stays attached while the returned descriptor is open."""
    if hook.kind == "tracepoint":
        return syscall.attach_tracepoint(program)
    return syscall.attach_kprobe(program, hook.target)
