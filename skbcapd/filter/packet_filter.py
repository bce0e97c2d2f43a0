"""Packet filters: translates expressions of tcpdump to the C text that the kernel program is
compiled with.

    "tcp port 443"  -> libpcap ->  classic BPF, per link type  ->  one C function per filter and link type

In: pcap-filter expressions. Out: the C text, and how many bytes of a frame it can read. libpcap
runs in a child process, because names of hosts are looked up here (`names`); libpcap itself finds
ports and protocols in files.

The rule not to break: the result is always that of the interpreter of libpcap. A load that begins
or ends after the frame rejects the packet, sums of offsets do not overflow, a shift by 32 or more
gives 0, a division by 0 rejects the packet. `tests/kernel/test_packet_filter.py` compares the
compiled text with `pcap_offline_filter`.

Source: pcap-filter(7); bpf_filter.c and pcap/bpf.h of libpcap 1.10;
Documentation/networking/filter.rst.
"""

from __future__ import annotations

import ctypes
import functools
import json
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skbcapd.child import Child
from skbcapd.filter import names
from skbcapd.filter.netmask import UNKNOWN
from skbcapd.pcapng import link_type

EXPRESSION_MAX = 4096  # characters, about 200 hosts: libpcap takes 0.5 s for them, and 5 s for 500
INSTRUCTIONS_MAX = 4096  # of one filter and link type, as in the kernel (BPF_MAXINSNS)
WINDOW_MIN = 64
_SNAPLEN = 1 << 18
_DLT = {101: 12}  # LINKTYPE_RAW; our other numbers are the same in files and in libpcap
_TOP = 0xFFFFFFFF
_SPECIAL = 0xFFFFF000  # SKF_AD_OFF: loads that only sockets of the kernel support

# Codes of instructions: class, then size and mode, or operation and source.
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_SIZES = {0x00: (4, "WORD"), 0x08: (2, "HALF"), 0x10: (1, "BYTE")}
_IMM, _ABS, _IND, _MEM, _LEN, _MSH = range(0x00, 0xC0, 0x20)
_OPERATIONS = {0x00: "+", 0x10: "-", 0x20: "*", 0x30: "/", 0x40: "|", 0x50: "&", 0x60: "<<", 0x70: ">>", 0x90: "%"}
_XOR, _NEG = 0xA0, 0x80
_OPERATIONS[_XOR] = "^"
_JA = 0x00
_COMPARISONS = {0x10: "==", 0x20: ">", 0x30: ">=", 0x40: "&"}
_X = 0x08  # the operand is X, not k
_RET_A = 0x10
_TXA = 0x80


class FilterError(ValueError):
    """An expression that cannot be used; the text is the error of libpcap, or the limit that is
    exceeded.
    """


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of classic BPF."""

    code: int
    jt: int
    jf: int
    k: int


@dataclass(frozen=True, slots=True)
class Source:
    """Filters for the kernel program: C text, and the size of the window in bytes."""

    text: str
    window: int


Programs = Mapping[int, Sequence[Instruction]]
"""A compiled expression: LINKTYPE_* -> program."""


def compile_expression(
    expression: str, link: int, netmask: int = UNKNOWN, *, optimize: bool = True
) -> list[Instruction]:
    """Compile an expression with libpcap, in this process.

    Args:
        expression: as for tcpdump; an empty one matches each packet.
        link: LINKTYPE_* of the frames; they begin with the link-layer header, and include VLAN
            tags.
        netmask: see netmask_of.
        optimize: whether to optimize, which takes most of the time.

    Returns:
        The program.

    Raises:
        FilterError: libpcap reports an error, or the program is too long.

    Source: pcap_compile(3PCAP).
    """
    try:
        from scapy.libs import winpcapy as pcap  # noqa: PLC0415  looks for the library, which takes a while
    except OSError as error:
        raise FilterError(f"libpcap is missing ({error}): filters need Debian's libpcap0.8") from None
    handle = pcap.pcap_open_dead(_DLT.get(link, link), _SNAPLEN)
    program = pcap.bpf_program()
    text = ctypes.create_string_buffer(expression.encode(errors="replace"))
    try:
        if pcap.pcap_compile(handle, ctypes.byref(program), text, optimize, netmask) != 0:
            raise FilterError(pcap.pcap_geterr(handle).decode(errors="replace").strip())
        found = program.bf_insns[: program.bf_len] if program.bf_len <= INSTRUCTIONS_MAX else []
        instructions = [Instruction(each.code, each.jt, each.jf, each.k & _TOP) for each in found]
        length = program.bf_len
        pcap.pcap_freecode(ctypes.byref(program))
    finally:
        pcap.pcap_close(handle)
    if any(step.code & 7 == _LD and step.code & 0xE0 == _ABS and step.k >= _SPECIAL for step in instructions):
        raise FilterError("inbound, outbound and similar words are not supported; use the setting directions")
    if length > INSTRUCTIONS_MAX:
        raise FilterError(f"{length} instructions of BPF, expected at most {INSTRUCTIONS_MAX}")
    return instructions


@functools.lru_cache(maxsize=256)
def compile_all(expression: str, netmask: int = UNKNOWN, *, is_live: bool = True) -> Programs:
    """Compile an expression for all link types for which it is valid; cached in this process.

    Args:
        expression: as for tcpdump.
        netmask: see netmask_of.
        is_live: for the kernel program. Otherwise for files, also of other programs: they have more
            link types, and there is no window.

    Returns:
        LINKTYPE_* -> program. No packet matches if its link type is missing: the expression is not
        valid for it, such as `ether host` without an Ethernet header; or it reads more bytes of
        rare frames (802.11) than of Ethernet frames, and the window of each packet would have to be
        longer.

    Raises:
        FilterError: it is valid neither for Ethernet nor for packets without a link layer (the text
            is the error for Ethernet), also if it is valid for rare interfaces only, such as a type
            of 802.11; or a name was not found in time.
    """
    if len(expression) > EXPRESSION_MAX:
        raise FilterError(f"{len(expression)} characters, expected at most {EXPRESSION_MAX}")
    if not expression.isprintable():
        raise FilterError("a character that is not printable")
    child = Child(functools.partial(_work, expression, netmask, is_live), socket.SOCK_STREAM)
    try:
        with child.channel.makefile("rw") as channel:
            addresses = _names.look_up(_receive(channel, child))
            _send(channel, addresses)
            found = _receive(channel, child)
    except LookupError as error:
        raise FilterError(str(error)) from None
    finally:
        child.close()
    if isinstance(found, str):
        raise FilterError(found)
    return {int(link): [Instruction(*step) for step in program] for link, program in found.items()}


def forget() -> None:
    """Clear the cache: compile and look up again from now on."""
    global _names  # noqa: PLW0603  names are looked up once in a process, or since this was called
    _names = names.Names()
    compile_all.cache_clear()


_names = names.Names()


def _send(channel: Any, message: object) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


def _receive(channel: Any, child: Child) -> Any:
    """The next message of the child.

    Raises:
        FilterError: the child has ended.
    """
    line = channel.readline()
    if not line:
        raise FilterError(f"libpcap failed: {' | '.join(child.stderr().splitlines()[-3:]) or 'no message'}")
    return json.loads(line)


def _work(expression: str, netmask: int, is_live: bool, channel: socket.socket) -> None:  # noqa: FBT001  for partial
    """Runs in the child: report unknown names, receive their addresses, and compile."""
    names.only_files()
    with channel.makefile("rw") as parent:
        places = names.find(expression, _complaint)
        _send(parent, sorted({place.name for place in places}))
        addresses = json.loads(parent.readline())
        try:
            programs = _compile_links(names.replace(expression, places, addresses), netmask, is_live=is_live)
        except (FilterError, LookupError) as error:
            _send(parent, str(error))
            return
        packed = {
            link: [(step.code, step.jt, step.jf, step.k) for step in program] for link, program in programs.items()
        }
        _send(parent, packed)


def _complaint(expression: str) -> str:
    """The error of libpcap for Ethernet; empty if the expression is valid without a link layer
    only.
    """
    said = []
    for link in (link_type.ETHERNET, link_type.RAW):
        try:
            compile_expression(expression, link, optimize=False)
        except FilterError as error:
            said.append(str(error))
        else:
            return ""
    return said[0]


def _compile_links(expression: str, netmask: int, *, is_live: bool) -> Programs:
    """Like `compile_all`, for an expression without names."""
    programs, errors = {}, {}
    for link in link_type.LINK_TYPES if is_live else link_type.LINK_TYPES + link_type.FOREIGN:
        try:
            programs[link] = compile_expression(expression, link, netmask)
        except FilterError as error:
            errors[link] = error
    usual = {link_type.ETHERNET, link_type.RAW} & programs.keys()
    if not (usual if is_live else programs):
        raise errors[link_type.ETHERNET]
    if not is_live:
        return programs
    furthest = max(reach(programs[link]) for link in usual)
    return {link: program for link, program in programs.items() if reach(program) <= furthest}


class Interpreter:
    """One program in libpcap's own interpreter.

    Args:
        program: of classic BPF.

    Source: pcap_offline_filter(3PCAP).
    """

    def __init__(self, program: Sequence[Instruction]) -> None:
        from scapy.libs import winpcapy as pcap  # noqa: PLC0415  as in compile_expression

        # struct bpf_insn, which the binding has under different names.
        packed = b"".join(struct.pack("=HBBI", step.code, step.jt, step.jf, step.k) for step in program)
        self._steps = ctypes.create_string_buffer(packed, len(packed))
        self._program = pcap.bpf_program(bf_len=len(program))
        self._program.bf_insns = ctypes.cast(self._steps, type(self._program.bf_insns))
        self._header = pcap.pcap_pkthdr()
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
        self._run = prototype(("pcap_offline_filter", pcap._lib))  # noqa: SLF001  the binding has no types for it
        self._places = ctypes.addressof(self._program), ctypes.addressof(self._header)
        self._window = reach(program)

    def takes(self, frame: bytes | memoryview, wire_len: int) -> bool:
        """Whether the program matches a frame.

        Args:
            frame: its first bytes, at least those that the program can read.
            wire_len: length of the frame.
        """
        start = bytes(frame[: self._window])
        self._header.caplen, self._header.len = len(start), wire_len
        return bool(self._run(*self._places, start))


class Matcher:
    """Evaluates filters in Python, for packets without a label.

    Args:
        filters: the argument of `source`.
    """

    def __init__(self, filters: Mapping[int, Programs]) -> None:
        self._programs = filters
        self._interpreters: dict[tuple[int, int], Interpreter] = {}

    def takes(self, number: int, link: int, frame: bytes | memoryview, wire_len: int) -> bool:
        """Whether a filter matches a frame.

        Args:
            number: number of the filter; an unknown number matches all frames.
            link: LINKTYPE_* of the frame.
            frame: its first bytes.
            wire_len: length of the frame.
        """
        if number not in self._programs:
            return True
        if link not in self._programs[number]:
            return False
        interpreter = self._interpreters.get((number, link))
        if interpreter is None:
            interpreter = self._interpreters[number, link] = Interpreter(self._programs[number][link])
        return interpreter.takes(frame, wire_len)


class OfflineFilter:
    """Evaluates an expression for packets of files.

    Args:
        expression: as for tcpdump.

    Raises:
        FilterError: it is valid for no link type, or a name in it was not found in time.
    """

    def __init__(self, expression: str) -> None:
        self._programs = compile_all(expression, is_live=False)
        self._interpreters: dict[int, Callable[[bytes | memoryview, int], bool]] = {}

    def for_link(self, link: int) -> Callable[[bytes | memoryview, int], bool]:
        """A function for frames of a link type; its arguments are the first bytes and the length of
        a frame.

        If the expression is not valid for the link type, no frame matches.
        """
        if link not in self._interpreters:
            program = self._programs.get(link)
            self._interpreters[link] = Interpreter(program).takes if program else lambda _frame, _wire_len: False
        return self._interpreters[link]


def reach(program: Sequence[Instruction]) -> int:
    """How many bytes of a frame a program can read; 2^32 or more if that is not known.

    The largest possible values of registers are tracked. Programs with a loop (`protochain`) are
    not supported.
    """
    states: dict[int, dict[object, int]] = {0: {}}
    furthest = 0
    for at, step in enumerate(program):
        state = states.get(at)
        if state is None:
            continue
        if step.code == _JMP | _JA and step.k > len(program):
            return _TOP + 1
        furthest = max(furthest, _touched(step, state))
        after = _after(step, state)
        for target in _targets(step, at):
            known = states.setdefault(target, after)
            states[target] = {name: max(known.get(name, 0), after.get(name, 0)) for name in known | after}
    return furthest


def _targets(step: Instruction, at: int) -> list[int]:
    """The possible next instructions."""
    if step.code & 7 == _RET:
        return []
    if step.code & 7 != _JMP:
        return [at + 1]
    if step.code & 0xF0 == _JA:
        return [at + 1 + step.k - (1 << 32 if step.k >> 31 else 0)]
    return [at + 1 + step.jt, at + 1 + step.jf]


def _touched(step: Instruction, state: dict[object, int]) -> int:
    """The end of the bytes that a load reads; 0 for other instructions."""
    kind, mode = step.code & 7, step.code & 0xE0
    if kind == _LDX and mode == _MSH:
        return step.k + 1
    if kind == _LD and mode in {_ABS, _IND}:
        return step.k + _SIZES[step.code & 0x18][0] + (state.get("x", 0) if mode == _IND else 0)
    return 0


def _after(step: Instruction, state: dict[object, int]) -> dict[object, int]:
    """The largest values of registers and memory after an instruction that does not jump."""
    kind, mode = step.code & 7, step.code & 0xE0
    a, x = state.get("a", 0), state.get("x", 0)
    if kind in {_LD, _LDX}:
        loaded = {
            _IMM: step.k,
            _MEM: state.get(step.k, 0),
            _LEN: _TOP,
            _MSH: 60,
        }.get(mode, (1 << 8 * _SIZES[step.code & 0x18][0]) - 1)
        return state | {"a" if kind == _LD else "x": loaded}
    if kind in {_ST, _STX}:
        return state | {step.k: a if kind == _ST else x}
    if kind == _ALU:
        return state | {"a": _largest(step.code & 0xF0, a, x if step.code & _X else step.k, known=not step.code & _X)}
    if kind == _MISC:
        return state | ({"a": x} if step.code & 0xF8 == _TXA else {"x": a})
    return state


def _largest(operation: int, a: int, b: int, *, known: bool) -> int:
    """The largest result of `A operation b`; b is the largest operand, or the operand itself if it
    is constant.
    """
    sign = _OPERATIONS.get(operation, "")
    if sign == "+":
        found = a + b
    elif sign == "*":
        found = a * b
    elif sign == "&":
        found = min(a, b)
    elif sign in {"|", "^"}:
        found = (1 << max(a, b).bit_length()) - 1
    elif sign == "<<" and known:
        found = a << min(b, 32)
    elif sign == ">>":
        found = a >> min(b, 32) if known else a
    elif sign == "/":
        found = a // b if known and b else a
    elif sign == "%":
        found = min(a, b)
    else:
        found = _TOP
    return min(found, _TOP)


def window(programs: Iterable[Sequence[Instruction]], most: int) -> int:
    """The window that all programs need: a power of two, at least 4 bytes longer than what they can
    read.

    Args:
        programs: programs of all filters and link types.
        most: length of the longest frame, a power of two; nothing after it is read.
    """
    furthest = max((reach(program) for program in programs), default=0)
    return min(max(WINDOW_MIN, 1 << (furthest + 3).bit_length()), 2 * most)


_PRELUDE = """\
/* Big-endian loads from the frame; the window is longer than any checked place. */
#define BYTE(at) (bytes[at])
#define HALF(at) __builtin_bswap16(*(const u16 *)(bytes + (at)))
#define WORD(at) __builtin_bswap32(*(const u32 *)(bytes + (at)))

/* Jumps back that one evaluation may take: headers that `protochain` follows. */
#define TURNS 16
"""


def compile_each(expressions: Mapping[int, str], netmask: int = UNKNOWN) -> dict[int, Programs]:
    """Compile several filters; see `compile_all`.

    Args:
        expressions: expressions, by number.
        netmask: see netmask_of.

    Raises:
        FilterError: an expression cannot be used.
    """
    return {
        # Calls with the same arguments use the cache.
        number: compile_all(expression, netmask if "broadcast" in expression else UNKNOWN)
        for number, expression in expressions.items()
    }


def source(filters: Mapping[int, Programs], most: int) -> Source:
    """The C text of all filters, which bpf/filter.h includes.

    Args:
        filters: from `compile_each`.
        most: length of the longest frame in bytes, a power of two.

    Returns:
        C text with `u32 packet_filter(u32 number, u32 type, const u8 *bytes, u32 have, u32
        wire_len)`: 0 if the filter with this number rejects a frame of an interface with this
        ARPHRD_* type, of which the first `have` bytes are at `bytes`. For an unknown type, no frame
        is rejected, so that Python can report it; the same for an unknown number.
    """
    parts, cases = [_PRELUDE], []
    every: list[Sequence[Instruction]] = []
    for number, programs in filters.items():
        every += programs.values()
        parts += [function(f"filter_{number}_{link}", program) for link, program in programs.items()]
        parts.append(_by_device_type(number, programs))
        cases.append(f"\tcase {number}:\n\t\treturn filter_{number}(type, bytes, have, wire_len);\n")
    parts.append(
        "static inline u32 packet_filter(u32 number, u32 type, const u8 *bytes, u32 have, u32 wire_len)\n"
        f"{{\n\tswitch (number) {{\n{''.join(cases)}\tdefault:\n\t\treturn 1;\n\t}}\n}}\n"
    )
    return Source("\n".join(parts), window(every, most))


def _by_device_type(number: int, programs: Programs) -> str:
    """The function of one filter, which selects the program for the link type of the interface."""
    cases = []
    for link in link_type.LINK_TYPES:
        cases += [f"\tcase {arphrd}:\n" for arphrd in link_type.device_types(link)]
        call = f"filter_{number}_{link}(bytes, have, wire_len)" if link in programs else "0"
        cases.append(f"\t\treturn {call};\n")
    return (
        f"static inline u32 filter_{number}(u32 type, const u8 *bytes, u32 have, u32 wire_len)\n"
        f"{{\n\tswitch (type) {{\n{''.join(cases)}\tdefault:\n\t\treturn 1;\n\t}}\n}}\n"
    )


def function(name: str, program: Sequence[Instruction]) -> str:
    """The C text of a program: `static inline u32 NAME(const u8 *bytes, u32 have, u32 wire_len)`,
    0: rejected.

    Args:
        name: name of the function.
        program: program in classic BPF.

    Returns:
        The text; it uses the macros above, BOUND of bpf/layout.h and the number WINDOW.
    """
    targets = {target for at, step in enumerate(program) for target in _targets(step, at) if step.code & 7 == _JMP}
    lines = [
        f"static inline u32 {name}(const u8 *bytes, u32 have, u32 wire_len)",
        "{",
        "\tu32 a = 0, x = 0, m[16] = {};",
    ]
    lines += ["\tu64 at;", "\tint turns = TURNS;"]
    for at, step in enumerate(program):
        if at in targets:
            lines.append(f"l{at}:")
        lines += [f"\t{line}" for line in _statements(step, at)]
    return "\n".join([*lines, "}", ""])


def _statements(step: Instruction, at: int) -> list[str]:
    """One instruction as lines of C."""
    kind, k = step.code & 7, f"{step.k}U"
    match kind:
        case 0 | 1:  # _LD, _LDX
            return _load(step, "a" if kind == _LD else "x")
        case 2 | 3:  # _ST, _STX
            return [f"m[{step.k & 15}] = {'a' if kind == _ST else 'x'};"]
        case 4:  # _ALU
            return _arithmetic(step)
        case 5:  # _JMP
            return _jump(step, at)
        case 6:  # _RET
            return [f"return {'a' if step.code & 0x18 == _RET_A else k};"]
        case _:
            return ["a = x;" if step.code & 0xF8 == _TXA else "x = a;"]


def _load(step: Instruction, register: str) -> list[str]:
    mode, k = step.code & 0xE0, step.k
    if mode == _IMM:
        return [f"{register} = {k}U;"]
    if mode == _LEN:
        return [f"{register} = wire_len;"]
    if mode == _MEM:
        return [f"{register} = m[{k & 15}];"]
    size, macro = (1, "BYTE") if mode == _MSH else _SIZES[step.code & 0x18]
    if mode == _IND:
        lines = [f"at = (u64)x + {k}U;", f"if (at + {size} > have)", "\treturn 0;"]
        return [*lines, f"{register} = {macro}(BOUND(at, WINDOW - 1));"]
    lines = [f"if (have < {k + size}ULL)", "\treturn 0;"]
    if mode == _MSH:
        return [*lines, f"x = (BYTE({k} & WINDOW - 1) & 15) << 2;"]
    return [*lines, f"{register} = {macro}({k} & WINDOW - 1);"]


def _arithmetic(step: Instruction) -> list[str]:
    operation = step.code & 0xF0
    operand = "x" if step.code & _X else f"{step.k}U"
    if operation == _NEG:
        return ["a = -a;"]
    sign = _OPERATIONS[operation]
    if sign in {"/", "%"}:
        return [f"if (!{operand})", "\treturn 0;", f"a = a {sign} {operand};"]
    if sign in {"<<", ">>"}:
        return [f"a = {operand} < 32 ? a {sign} ({operand} & 31) : 0;"]
    return [f"a = a {sign} {operand};"]


def _jump(step: Instruction, at: int) -> list[str]:
    targets = _targets(step, at)
    if step.code & 0xF0 == _JA:
        bound = ["if (!--turns)", "\treturn 0;"] if targets[0] <= at else []
        return [*bound, f"goto l{targets[0]};"]
    operand = "x" if step.code & _X else f"{step.k}U"
    sign = _COMPARISONS[step.code & 0xF0]
    return [f"if (a {sign} {operand})", f"\tgoto l{targets[0]};", f"goto l{targets[1]};"]
