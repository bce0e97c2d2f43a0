"""BTF, the type information of the kernel: the offsets of all fields of its structs.

In: the bytes of /sys/kernel/btf/vmlinux. Out: byte offsets, bit offsets, sizes.

The rule: no offset is written by hand. bpf/ is compiled for the running kernel with offsets from
here, so it needs no kernel headers, and works if a field moves in a later release. A field that
this kernel does not have raises BtfError; `has` checks for it.

Types are indexed by name in one pass (0.1 s for 130,000 types). Members are decoded only for the
structs that are needed.

Source: Documentation/bpf/btf.rst in the kernel tree (type encoding, kinds, bitfields).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from skbcapd.errors import BtfError

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_PARAMETER = struct.Struct("<II")  # name, type
_ENUMERATOR = struct.Struct("<II")  # name, value (of 64 bits: its lower half)
_INDIRECTIONS = 8  # pointers and qualifiers of one argument
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)
_OTHER_KERNEL = "the kernel is too old or too new for skbcapd: boot another one, and report this one"
# Bytes after the 12-byte header of a type: a fixed part, and a part for each of its `vlen` members.
_FIXED = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_PER_MEMBER = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
# The same in words of 4 bytes, with the header, by kind.
_WORDS = [3 + _FIXED.get(kind, 0) // 4 for kind in range(32)]
_WORDS_PER_MEMBER = [_PER_MEMBER.get(kind, 0) // 4 for kind in range(32)]


class Btf:
    """The types of one kernel, indexed by the names of structs and unions.

    Args:
        blob: the bytes of /sys/kernel/btf/vmlinux, little endian.

    Raises:
        BtfError: not BTF, truncated, or with an unknown kind of type.

    Source: include/uapi/linux/btf.h.
    """

    def __init__(self, blob: bytes) -> None:
        try:
            magic, version, _, header_len, type_off, type_len, str_off, str_len = _HEADER.unpack_from(blob)
        except struct.error:
            raise BtfError(f"BTF is {len(blob)} bytes long; expected at least a header of {_HEADER.size}") from None
        if magic != _MAGIC or version != 1:
            raise BtfError(
                f"BTF starts with magic {magic:#06x} version {version}; expected {_MAGIC:#06x} version 1, little endian"
            )
        if header_len + max(type_off + type_len, str_off + str_len) > len(blob):
            raise BtfError(f"BTF is {len(blob)} bytes long; its header says that there are more")
        self._types = blob[header_len + type_off : header_len + type_off + type_len]
        self._strings = blob[header_len + str_off : header_len + str_off + str_len]
        self._at = [0]  # type id -> offset in _types; id 0 is void
        self._structs: dict[int, int] = {}  # offset of the name in _strings -> type id
        self._typedefs: dict[int, int] = {}  # the same for typedefs
        self._functions: dict[int, int] = {}  # the same for functions
        self._enums: dict[int, int] = {}  # the same for enums
        self._enum_places: list[int] = []  # offsets of all enums in _types
        self._known: dict[str, int] = {}  # answers of _find
        self._index()

    @classmethod
    def load(cls, path: Path = VMLINUX) -> Btf:
        """Read the BTF of the running kernel.

        Raises:
            BtfError: the file is missing (the kernel was built without CONFIG_DEBUG_INFO_BTF) or is
                not BTF.
        """
        return cls(read(path))

    def _index(self) -> None:
        end, words = len(self._types), memoryview(self._types)[: len(self._types) & ~3].cast("I")
        add, place, number, last = self._at.append, 0, 0, len(words) - _TYPE.size // 4
        while place <= last:  # 130,000 times
            name, info = words[place], words[place + 1]
            number += 1
            add(4 * place)
            kind = info >> 24 & 31
            if kind in (_STRUCT, _UNION):
                self._structs.setdefault(name, number)
            elif kind == _TYPEDEF:
                self._typedefs[name] = number
            elif kind == _FUNC:
                self._functions[name] = number
            elif kind in (_ENUM, _ENUM64):
                self._enums.setdefault(name, number)
                self._enum_places.append(4 * place)
            elif not _INT <= kind <= _ENUM64:
                raise BtfError(
                    f"BTF type {number} is of kind {kind}; expected {_INT} to {_ENUM64}",
                    "the kernel is newer than this version of skbcapd: update skbcapd, or boot an older kernel",
                )
            place += _WORDS[kind] + _WORDS_PER_MEMBER[kind] * (info & 0xFFFF)
        position = 4 * place
        if position != end:
            raise BtfError(f"BTF has {end} bytes of types; expected that they end with the last of {number} types")

    def _is_composite(self, number: int) -> bool:
        """Whether a type id is a struct or union; 0 is void."""
        return bool(number) and _TYPE.unpack_from(self._types, self._at[number])[1] >> 24 & 31 in (_STRUCT, _UNION)

    def _find(self, name: str) -> int:
        if name in self._known:
            return self._known[name]
        encoded = b"\0" + name.encode() + b"\0"
        position = self._strings.find(encoded)
        while position >= 0:
            number = self._structs.get(position + 1)
            if number is not None:
                self._known[name] = number
                return number
            position = self._strings.find(encoded, position + 1)
        raise BtfError(
            f"struct {name} is not in this kernel's BTF",
            _OTHER_KERNEL,
        )

    def _members(self, number: int) -> Iterator[tuple[bytes, int, int, int]]:
        """Each member as (name, type id, bit offset, bit width or 0 if it is no bitfield)."""
        position = self._at[number]
        _, info, _ = _TYPE.unpack_from(self._types, position)
        for index in range(info & 0xFFFF):
            at, kind, offset = _TYPE.unpack_from(self._types, position + 12 + 12 * index)
            end = self._strings.find(0, at)
            if end < 0 or kind >= len(self._at):
                raise BtfError(f"BTF type {number} has a member with name {at} and type {kind}; expected both to exist")
            name = self._strings[at:end]
            yield name, kind, offset & 0xFFFFFF if info >> 31 else offset, offset >> 24 if info >> 31 else 0

    def _field(self, number: int, field: str) -> tuple[int, int] | None:
        """Bit offset and bitfield width of a field, also inside anonymous members."""
        pending, looked_at = [(number, 0)], set()
        while pending:
            number, base = pending.pop()
            if number in looked_at:  # only broken BTF has a type twice, or within itself
                continue
            looked_at.add(number)
            for name, kind, offset, width in self._members(number):
                if name == field.encode():
                    return base + offset, width
                if not name and self._is_composite(kind):
                    pending.append((kind, base + offset))
        return None

    def bits(self, struct_name: str, field: str) -> tuple[int, int]:
        """The position of a bitfield: (bit offset from the start of the struct, width in bits;
        width 0: no bitfield).

        Raises:
            BtfError: no such struct or field on this kernel.
        """
        found = self._field(self._find(struct_name), field)
        if found is None:
            raise BtfError(
                f"struct {struct_name} has no field {field} on this kernel",
                _OTHER_KERNEL,
            )
        return found

    def offset(self, struct_name: str, *fields: str) -> int:
        """Byte offset of a field. For a renamed field, give all names; the first that exists
        counts.

        Raises:
            BtfError: no such struct, or none of the fields.
        """
        for field in fields:
            if self.has(struct_name, field):
                return self.bits(struct_name, field)[0] // 8
        return self.bits(struct_name, fields[-1])[0] // 8

    def has(self, struct_name: str, field: str) -> bool:
        """Whether this kernel has the struct, and the struct has the field."""
        try:
            return self._field(self._find(struct_name), field) is not None
        except BtfError:
            return False

    def tracepoint(self, name: str) -> int | None:
        """The type id of the typedef of a tracepoint; None if this kernel does not have the
        tracepoint.
        """
        return self._named(self._typedefs, "btf_trace_" + name)

    def function(self, name: str) -> int | None:
        """The type id of a function; None if this kernel does not have it."""
        return self._named(self._functions, name)

    def _named(self, types: Mapping[int, int], name: str) -> int | None:
        """The type id of a name."""
        start = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        return types.get(start) if start else None

    def arguments(self, tracepoint: str) -> list[str]:
        """The types of the arguments of a tracepoint: the name of the type, or of what it points to; empty if
        it has none. An empty list: this kernel does not have the tracepoint.
        """
        number = self.tracepoint(tracepoint)
        if number is None:
            return []
        prototype = self._target(self._target(number))
        at = self._at[prototype]
        count = _TYPE.unpack_from(self._types, at)[1] & 0xFFFF
        kinds = [_PARAMETER.unpack_from(self._types, at + 12 + _PARAMETER.size * index)[1] for index in range(count)]
        return [self._name_behind(kind) for kind in kinds[1:]]  # the first one is of the tracepoint itself

    def enumerators(self, name: str) -> list[tuple[int, str]]:
        """Values and names of an enum, in their order; empty if this kernel does not have it."""
        number = self._named(self._enums, name)
        if number is None:
            return []
        at = self._at[number]
        info = _TYPE.unpack_from(self._types, at)[1]
        size = _PER_MEMBER[info >> 24 & 31]
        found = [_ENUMERATOR.unpack_from(self._types, at + 12 + size * index) for index in range(info & 0xFFFF)]
        return [(value, self._string(place)) for place, value in found]

    def enumerator(self, name: str) -> int | None:
        """The value of a name in any enum, also in one without a name; None if this kernel does not have it."""
        place = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        for at in self._enum_places if place else ():
            info = _TYPE.unpack_from(self._types, at)[1]
            size = _PER_MEMBER[info >> 24 & 31]
            for index in range(info & 0xFFFF):
                found, value = _ENUMERATOR.unpack_from(self._types, at + 12 + size * index)
                if found == place:
                    return int(value)
        return None

    def _target(self, number: int) -> int:
        """The type that a typedef, pointer or qualifier leads to."""
        return int(_TYPE.unpack_from(self._types, self._at[number])[2])

    def _name_behind(self, number: int) -> str:
        for _ in range(_INDIRECTIONS):
            if not number:
                break
            name, info, target = _TYPE.unpack_from(self._types, self._at[number])
            if info >> 24 & 31 not in (_PTR, _CONST, _VOLATILE, _RESTRICT, _TYPE_TAG):
                return self._string(name)
            number = target
        return ""

    def _string(self, start: int) -> str:
        return self._strings[start : self._strings.find(0, start)].decode()

    def number(self, struct_name: str) -> int:
        """The type id of a struct.

        Raises:
            BtfError: no such struct.
        """
        return self._find(struct_name)

    def size(self, struct_name: str) -> int:
        """Size of a struct in bytes.

        Raises:
            BtfError: no such struct.
        """
        return int(_TYPE.unpack_from(self._types, self._at[self._find(struct_name)])[2])


def read(path: Path) -> bytes:
    """The bytes of a BTF file.

    Raises:
        BtfError: the file is missing (the kernel was built without CONFIG_DEBUG_INFO_BTF).
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BtfError(
            f"{path}: {error.strerror}; expected the kernel's type information (BTF)",
            "capture needs a kernel built with CONFIG_DEBUG_INFO_BTF=y, as Debian, Ubuntu and Fedora ship",
        ) from None
