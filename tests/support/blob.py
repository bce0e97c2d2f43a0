"""Handmade BTF. In: types. Out: bytes as in /sys/kernel/btf/vmlinux.

Source: Documentation/bpf/btf.rst in the kernel tree.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)
# 32-bit words after the three words of each type: a fixed part, and a part for each member.
FIXED = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
PER_MEMBER = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}

Member = tuple[str, int, int] | tuple[str, int, int, int]  # name, type, bit offset, and a bitfield's width


class Blob:
    """A blob that grows; `add` returns the id of the new type."""

    def __init__(self) -> None:
        self._types = b""
        self._strings = b"\0"
        self._count = 0

    def _text(self, name: str) -> int:
        if not name:
            return 0
        self._strings += name.encode() + b"\0"
        return len(self._strings) - len(name) - 1

    def add(self, kind: int, name: str = "", members: int = 0) -> int:
        """A type whose content does not matter; the words after its header look like types."""
        words = FIXED.get(kind, 0) + PER_MEMBER.get(kind, 0) * members
        self._types += struct.pack("<III", self._text(name), kind << 24 | members, 4)
        self._types += struct.pack("<I", STRUCT << 24) * words
        self._count += 1
        return self._count

    def struct(self, name: str, size: int, *members: Member, kind: int = STRUCT) -> int:
        """A struct or union."""
        has_bitfields = any(len(member) == 4 for member in members)
        self._types += struct.pack("<III", self._text(name), has_bitfields << 31 | kind << 24 | len(members), size)
        for member, type_id, offset, *width in members:
            self._types += struct.pack("<III", self._text(member), type_id, (*width, 0)[0] << 24 | offset)
        self._count += 1
        return self._count

    def enum(self, name: str, *members: tuple[str, int], kind: int = ENUM) -> int:
        """An enum: names and values of its members."""
        self._types += struct.pack("<III", self._text(name), kind << 24 | len(members), 4)
        for member, value in members:
            words = (self._text(member), value & 0xFFFFFFFF, 0)
            self._types += struct.pack(f"<{PER_MEMBER[kind]}I", *words[: PER_MEMBER[kind]])
        self._count += 1
        return self._count

    def refer(self, kind: int, target: int, name: str = "") -> int:
        """A pointer, a qualifier or a typedef."""
        self._types += struct.pack("<III", self._text(name), kind << 24, target)
        self._count += 1
        return self._count

    def tracepoint(self, name: str, *arguments: int) -> None:
        """A tracepoint with arguments of these types, after that of the tracepoint itself."""
        self._types += struct.pack("<III", 0, FUNC_PROTO << 24 | (len(arguments) + 1), 0)
        for kind in (0, *arguments):
            self._types += struct.pack("<II", 0, kind)
        self._count += 1
        self.refer(TYPEDEF, self.refer(PTR, self._count), f"btf_trace_{name}")

    def build(self, magic: int = 0xEB9F, version: int = 1, types: bytes = b"") -> bytes:
        """The complete blob, with `types` after the added types."""
        types = self._types + types
        header = struct.pack("<HBBIIIII", magic, version, 0, 24, 0, len(types), len(types), len(self._strings))
        return header + types + self._strings


def kernel(structs: Mapping[str, tuple[int, Mapping[str, int | tuple[int, int]]]], *functions: str) -> bytes:
    """A blob of plain structs and of functions.

    Args:
        structs: name -> (size in bytes, members); name of a member -> its byte offset, or (bit
            offset, width).
        functions: their names.
    """
    blob = Blob()
    for name, (size, members) in structs.items():
        blob.struct(
            name,
            size,
            *((field, 0, at * 8) if isinstance(at, int) else (field, 0, *at) for field, at in members.items()),
        )
    for name in functions:
        blob.add(FUNC, name)
    return blob.build()
