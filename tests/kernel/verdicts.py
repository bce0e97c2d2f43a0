"""Verdicts of our packet filters in the kernel: the text that runs there for packets, here run for frames of a test.

Expressions and frames go in, verdicts come out. skbcapd writes the C text as it does for a capture, bcc compiles it,
the kernel verifies it, and BPF_PROG_TEST_RUN runs it. Only the window that bpf/filter.h
copies out of an skb is filled by the test.

Source: include/uapi/linux/bpf.h (BPF_PROG_TEST_RUN of raw tracepoint programs takes their arguments, since Linux 5.10).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence

from bcc import BPF

from skbcapd.filter import packet_filter
from skbcapd.kernel.abi import CAPTURE_MAX
from skbcapd.kernel.compiler import SOURCES
from tests.kernel.expressions import ETHERNET, Frame

_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_TEST_RUN = 10
_ATTR = struct.Struct("<IIIIQQIIIIQQIIII")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PROGRAM = """
#define BOUND(value, mask) ({ u64 _b = (value); asm volatile("" : "+r"(_b)); _b & (mask); })
%s
struct frame { u32 type, have, wire_len, spare; u8 bytes[2 * WINDOW]; };
BPF_ARRAY(frames, struct frame, FRAMES);

int judge(u64 *ctx)
{
	u32 number = ctx[0], index = ctx[1];
	struct frame *frame = frames.lookup(&index);

	return frame ? !!packet_filter(number, frame->type, frame->bytes, frame->have, frame->wire_len) : -1;
}
"""
_DEVICE_TYPES = {ETHERNET: 1}  # ARPHRD_ETHER; else ARPHRD_NONE
_ARPHRD_NONE = 65534


def verdicts(expressions: Sequence[str], frames: Sequence[Frame]) -> Iterator[list[bool]]:
    """For each expression, which of the frames its filter takes."""
    os.environ["BCC_KERNEL_SOURCE"] = str(SOURCES)
    source = packet_filter.source(packet_filter.compile_each(dict(enumerate(expressions))), CAPTURE_MAX)
    flags = [f"-DWINDOW={source.window}", f"-DFRAMES={len(frames)}", "-Wno-everything", "-Os"]
    program = BPF(text=(_PROGRAM % source.text).encode(), cflags=flags)
    try:
        judge = program.load_func(b"judge", BPF.RAW_TRACEPOINT).fd
        table = program[b"frames"]
        for index, frame in enumerate(frames):
            have = min(len(frame.data), source.window - 4)
            leaf = table.Leaf(_DEVICE_TYPES.get(frame.link_type, _ARPHRD_NONE), have, frame.wire_len, 0)
            ctypes.memmove(leaf.bytes, frame.data, have)
            table[ctypes.c_int(index)] = leaf
        for number in range(len(expressions)):
            yield [_run(judge, number, index) for index in range(len(frames))]
    finally:
        program.cleanup()


def _run(program: int, *arguments: int) -> bool:
    context = struct.pack(f"<{len(arguments)}Q", *arguments)
    buffer = ctypes.create_string_buffer(context, len(context))
    place = ctypes.addressof(buffer)
    attributes = ctypes.create_string_buffer(
        _ATTR.pack(program, 0, 0, 0, 0, 0, 0, 0, len(context), 0, place, 0, 0, 0, 0, 0), _ATTR.size
    )
    if _LIBC.syscall(_BPF, _TEST_RUN, attributes, _ATTR.size) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    (verdict,) = struct.unpack_from("<I", attributes, 4)
    assert verdict in {0, 1}
    return bool(verdict)
