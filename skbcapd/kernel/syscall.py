"""bpf(2) and related system calls.

In: a command and its attributes as bytes. Out: the result of the kernel.

The rule: only this module builds records of the system call interface.

Source: include/uapi/linux/bpf.h (union bpf_attr, struct bpf_map_info, struct bpf_prog_info).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct
import time
from pathlib import Path

_NUMBER = {"x86_64": 321, "aarch64": 280}
_CREATE, _LOOKUP, _UPDATE, _DELETE, _LOAD, _OBJECT_INFO, _OPEN_TRACEPOINT = 0, 1, 2, 3, 5, 15, 17
_RECURSION_MISSES = 208  # offset in struct bpf_prog_info
_ANY, _NO_EXIST = 0, 1  # flags of an update
_NEXT_KEY = 4
_MEMBARRIER_NUMBER, _MEMBARRIER_GLOBAL = {"x86_64": 324, "aarch64": 283}, 1  # waits for a grace period of RCU
_PROGRAM_S = 0.02  # some thousand times as long as a program runs
_NO_COMMAND = 0x7FFF
_PROGRAM = {"socket": (1, 0), "kprobe": (2, 0), "tracepoint": (26, 23)}  # BPF_PROG_TYPE_*, and the attach type
_PROG_ATTR = struct.Struct("<IIQQIIQII16sIIIIQIIQII")
# r0 = 0; r2 = 1; *(u64 *)(r10 - 8) = 0; if that is r0, it becomes r2; return 0.
_COMPARE_AND_EXCHANGE = bytes.fromhex(
    "b700000000000000 b702000001000000 7a0af8ff00000000 db2af8fff1000000 b700000000000000 9500000000000000"
)
_PERF_EVENT_OPEN_NUMBER = {"x86_64": 298, "aarch64": 241}
_PERF_ATTR_SIZE, _PERF_CONFIG_1 = 112, 56
_PERF_FLAG_FD_CLOEXEC, _PERF_SET_BPF = 8, 0x40042408
KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe/type")
_LIBC = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    """One bpf(2) call.

    Raises:
        OSError: from the kernel.
    """
    result = int(_LIBC.syscall(_NUMBER[platform.machine()], command, attributes, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def refusal() -> str:
    """Why the kernel rejects bpf(2) calls; empty if it does not. The test is an unknown command."""
    try:
        _bpf(_NO_COMMAND, bytes(8))
    except OSError as error:
        return "" if error.errno == errno.EINVAL else os.strerror(error.errno or 0)
    return ""


def lacking_atomics() -> str:
    """Why the kernel rejects compare-and-exchange in a program; empty if it does not. The shared segments
    need it.

    Source: BPF_CMPXCHG in include/uapi/linux/bpf.h, since Linux 5.12.
    """
    try:
        os.close(load_program("atomics", _COMPARE_AND_EXCHANGE, "socket", 0))
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def update(table: int, key: bytes, value: bytes, flags: int = _ANY) -> None:
    """Set an entry of a map."""
    key_buffer, value_buffer = (
        ctypes.create_string_buffer(key, len(key)),
        ctypes.create_string_buffer(value, len(value)),
    )
    _bpf(_UPDATE, struct.pack("<IIQQQ", table, 0, _address(key_buffer), _address(value_buffer), flags))


def add(table: int, key: bytes, value: bytes) -> None:
    """Add an entry to a map.

    Raises:
        FileExistsError: the entry exists.
    """
    update(table, key, value, _NO_EXIST)


def wait_for_programs() -> None:
    """Wait until all programs that run now have ended. Where membarrier is refused (`nohz_full=`, a filter of
    system calls), wait for longer than a program runs.
    """
    if _LIBC.syscall(_MEMBARRIER_NUMBER[platform.machine()], _MEMBARRIER_GLOBAL, 0, 0):
        time.sleep(_PROGRAM_S)


def entries(table: int, key_size: int, value_size: int, most: int) -> list[tuple[bytes, bytes]]:
    """Entries of a map, at most `most`, with their values. None is removed while this reads."""
    found: list[tuple[bytes, bytes]] = []
    key, after = ctypes.create_string_buffer(key_size), ctypes.create_string_buffer(key_size)
    last = 0
    with contextlib.suppress(FileNotFoundError):  # there is no further key
        while len(found) < most:
            _bpf(_NEXT_KEY, struct.pack("<IIQQQ", table, 0, last, _address(after), 0))
            key.raw = after.raw
            last = _address(key)
            found.append((key.raw, lookup(table, key.raw, value_size)))
    return found


def remove(table: int, key: bytes) -> None:
    """Remove an entry of a map.

    Raises:
        FileNotFoundError: there is no such entry.
    """
    key_buffer = ctypes.create_string_buffer(key, len(key))
    _bpf(_DELETE, struct.pack("<IIQQQ", table, 0, _address(key_buffer), 0, 0))


def lookup(table: int, key: bytes, size: int) -> bytes:
    """The value of an entry, `size` bytes (for a per-CPU map: of all processors).

    Raises:
        FileNotFoundError: there is no such entry.
    """
    key_buffer, value_buffer = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(size)
    _bpf(_LOOKUP, struct.pack("<IIQQQ", table, 0, _address(key_buffer), _address(value_buffer), 0))
    return value_buffer.raw


def info(descriptor: int) -> bytes:
    """The struct bpf_map_info or bpf_prog_info of a descriptor."""
    buffer = ctypes.create_string_buffer(256)
    _bpf(_OBJECT_INFO, struct.pack("<IIQ", descriptor, len(buffer), _address(buffer)))
    return buffer.raw


def misses(program: int) -> int:
    """How often the kernel skipped a program because it was already running on that processor."""
    return int(struct.unpack_from("<Q", info(program), _RECURSION_MISSES)[0])


def make_map(name: str, kind: int, key_size: int, value_size: int, entries: int, flags: int) -> int:
    """Create a map; returns its descriptor. `kind` and `flags` are BPF_MAP_TYPE_* and BPF_F_*;
    sizes are in bytes.

    Raises:
        OSError: from the kernel.
    """
    return _bpf(_CREATE, struct.pack("<IIIIIII16s", kind, key_size, value_size, entries, flags, 0, 0, name.encode()))


def map_info(descriptor: int) -> tuple[int, int, int, int, int]:
    """The parameters of a map: kind, sizes of key and value, entries, flags."""
    kind, _, key_size, value_size, entries, flags = struct.unpack_from("<6I", info(descriptor))
    return kind, key_size, value_size, entries, flags


def load_program(name: str, instructions: bytes, kind: str, type_id: int) -> int:
    """Load a program for a kprobe, or for a raw tracepoint with typed arguments.

    Args:
        name: name of the program.
        instructions: 8 bytes each.
        kind: "kprobe" or "tracepoint".
        type_id: type id of the typedef of the tracepoint in the kernel's BTF; 0 for a kprobe.

    Returns:
        The descriptor of the program.

    Raises:
        OSError: rejected; `strerror` has the last output of the verifier.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    program_type, attach_type = _PROGRAM[kind]

    def load(level: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
        attributes = _PROG_ATTR.pack(
            *(program_type, len(instructions) // 8, _address(code), _address(licence)),
            *(level, len(log) if log else 0, _address(log) if log else 0),
            *(0, 0, name.encode()[:15], 0, attach_type, 0, 0, 0, 0, 0, 0, 0, type_id),
        )
        return _bpf(_LOAD, attributes)

    try:
        return load(0, None)
    except OSError as error:
        log = ctypes.create_string_buffer(1 << 24)
        try:
            return load(1, log)
        except OSError:
            last = log.value.decode(errors="replace").strip().splitlines()[-4:]
            raise OSError(error.errno, f"{error.strerror}: {' | '.join(last)}") from None


def attach_tracepoint(program: int) -> int:
    """Attach a program from load_program; closing the returned descriptor detaches it."""
    return _bpf(_OPEN_TRACEPOINT, struct.pack("<QIIQ", 0, program, 0, 0))


def attach_kprobe(program: int, symbol: str) -> int:
    """Attach a program to the entry of a kernel function; closing the returned descriptor detaches
    it.

    Source: perf_event_open(2), kprobe_init_event_attr in kernel/trace/trace_event_perf.c: the type
    of the event is that of the kprobe PMU, config1 the address of the symbol's name, config2 the
    offset in it.

    Raises:
        OSError: from the kernel.
    """
    name = ctypes.create_string_buffer(symbol.encode())
    attributes = bytearray(_PERF_ATTR_SIZE)
    struct.pack_into("<II", attributes, 0, int(KPROBE_PMU.read_text()), len(attributes))
    struct.pack_into("<QQ", attributes, _PERF_CONFIG_1, _address(name), 0)
    number = _PERF_EVENT_OPEN_NUMBER[platform.machine()]
    # An event of processor 0 is enough: the program of a kprobe runs on all processors.
    event = int(_LIBC.syscall(number, bytes(attributes), -1, 0, -1, _PERF_FLAG_FD_CLOEXEC))
    if event < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"kprobe {symbol}: {os.strerror(error)}")
    try:
        fcntl.ioctl(event, _PERF_SET_BPF, program)
    except OSError:
        os.close(event)
        raise
    return event


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)
