"""Kinds of values in the config file: the text and the JSON Schema of each kind, and how it is
read.

In: the text of a value. Out: the value, or a ValueError (ReasonError if its message helps the
user).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from skbcapd.config.pattern import TextPattern
from skbcapd.filter import packet_filter

# Units of a quantity; the empty one is the unit of the setting.
BYTES = {"": 1}
SIZE = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
DURATION = {"s": 1, "m": 60, "h": 3600, "d": 86400}


# How people also write these units, in lower case.
_ALSO = {
    **{unit: (unit[0].lower(), f"{unit[0].lower()}b", unit.lower()) for unit in ("KiB", "MiB", "GiB")},
    "s": ("s", "sec", "secs", "second", "seconds"),
    "m": ("m", "min", "mins", "minute", "minutes"),
    "h": ("h", "hr", "hrs", "hour", "hours"),
    "d": ("d", "day", "days"),
}


class ReasonError(ValueError):
    """A wrong value, and the reason."""


class Kind(Protocol):
    """A kind of value: describes it, and parses it.

    `parse` raises ValueError for wrong values, or ReasonError if the reason helps the user.
    """

    @property
    def expected(self) -> str: ...  # noqa: D102 - the class says it

    @property
    def schema(self) -> dict[str, Any]: ...  # noqa: D102 - in JSON Schema, as far as that can say it

    def parse(self, text: str, /) -> Any: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Word:
    """One of the words of a Literal."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        """The words."""
        return f"one of {', '.join(self.words)}"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema."""
        return {"enum": list(self.words)}

    def parse(self, text: str) -> str:
        """The word."""
        if text not in self.words:
            raise ValueError(text)
        return text


@dataclass(frozen=True, slots=True)
class Switch:
    """True or false."""

    expected: str = "true or false"

    @property
    def schema(self) -> dict[str, Any]:
        """True or false."""
        return {"type": "boolean"}

    def parse(self, text: str) -> bool:
        """The value."""
        if text not in {"true", "false"}:
            raise ValueError(text)
        return text == "true"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A whole number from `low` to `high`, both as written in the file, in one of `units`."""

    noun: str
    low: str
    high: str
    units: Mapping[str, int]
    zero: str = ""
    """The meaning of 0, if it is allowed in addition to the range."""

    @property
    def expected(self) -> str:
        """Range and units."""
        units = ", ".join(unit for unit in self.units if unit)
        zero = f"0 for {self.zero}, or " if self.zero else ""
        return f"{zero}{self.noun} from {self.low} to {self.high}" + (f" (units: {units})" if units else "")

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema: a number in range, or a text with a number and a unit."""
        number: dict[str, Any] = {
            "type": "integer",
            "minimum": self._amount(self.low),
            "maximum": self._amount(self.high),
        }
        units = "|".join(unit for unit in self.units if unit)
        text: dict[str, Any] = {"type": "string", "pattern": f"^(0|[1-9][0-9]{{0,17}})({units})$"}
        choices: list[dict[str, Any]] = [{"const": 0}] if self.zero else []
        choices += ([number] if "" in self.units else []) + ([text] if units else [])
        return {"anyOf": choices} if len(choices) > 1 else choices[0]

    def parse(self, text: str) -> int:
        """The number in the smallest unit (bytes, seconds)."""
        if self.zero and text == "0":
            return 0
        value = self._amount(text)
        if not self._amount(self.low) <= value <= self._amount(self.high):
            raise ValueError(text)
        return value

    def near(self, text: str) -> str:
        """What a wrong text probably means: `10MiB` for `10MB`; empty if that is not clear."""
        match = re.fullmatch(r"([0-9]{1,18}) ?([A-Za-z]+)", text)
        unit = next((unit for unit in self.units if match and match[2].lower() in _ALSO.get(unit, ())), "")
        if not match or not unit:
            return ""
        meant = f"{int(match[1])}{unit}"
        try:
            self.parse(meant)
        except ValueError:
            return ""
        return meant

    def _amount(self, text: str) -> int:
        # Python reads at most 4300 digits; YAML 1.1 would read a leading zero as octal.
        match = re.fullmatch(r"(0|[1-9][0-9]{0,17})([A-Za-z]*)", text)
        if not match or match[2] not in self.units:
            raise ValueError(text)
        return int(match[1]) * self.units[match[2]]


@dataclass(frozen=True, slots=True)
class Text:
    """Text that `accepts` allows. It is printable, so that it can be logged and passed to the
    system unchanged.
    """

    expected: str
    accepts: Callable[[str], object]

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema: text, which YAML may read as a number."""
        return {"type": ["string", "integer"], "minLength": 1}

    def parse(self, text: str) -> str:
        """The text."""
        if not text or not text.isprintable() or not self.accepts(text):
            raise ValueError(text)
        return text


@dataclass(frozen=True, slots=True)
class Expression:
    """A packet filter; empty: no filter."""

    expected = "a packet filter in the syntax of tcpdump"
    schema: ClassVar[dict[str, Any]] = {"type": "string", "maxLength": packet_filter.EXPRESSION_MAX}

    def parse(self, text: str) -> str:
        """The expression, if libpcap can compile it."""
        try:
            if text:
                packet_filter.compile_all(text)
        except packet_filter.FilterError as error:
            raise ReasonError(str(error)) from None
        return text


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of `item`, without duplicates; the word `alone` means all, and must be the only entry."""

    item: Word | Text
    alone: str = ""
    may_be_empty: bool = False

    @property
    def expected(self) -> str:
        """The description of the items."""
        return f"a list, each entry {self.item.expected}"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema: a list of different items."""
        least = 0 if self.may_be_empty else 1
        return {"type": "array", "items": self.item.schema, "minItems": least, "uniqueItems": True}

    def parse(self, text: str) -> tuple[str, ...]:
        """Split a list written with commas, as in defaults and `--set`."""
        if self.may_be_empty and not text:
            return ()
        return tuple(self.item.parse(item) for item in self.split(text))

    def split(self, text: str) -> list[str]:
        """The texts of the items."""
        return [item.strip() for item in text.split(",")]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text to match: a glob, or a regular expression between slashes."""

    expected = "a glob (ssh*) or a regular expression (/^ssh/)"
    schema: ClassVar[dict[str, Any]] = {"type": ["string", "integer"], "minLength": 1}

    def parse(self, text: str) -> TextPattern:
        """The pattern: a glob matches the complete text, a regular expression any part."""
        if not text or not text.isprintable():
            raise ValueError(text)
        try:
            return TextPattern(text)
        except ValueError as error:
            raise ReasonError(str(error)) from None


def address(text: str) -> tuple[str, int]:
    """Split an IP address and its port.

    Raises:
        ValueError: it is not an address with a port.
    """
    match = re.fullmatch(r"(?:([0-9.]+)|\[([0-9a-fA-F:.]+)\]):([1-9][0-9]{0,4})", text)
    if not match or int(match[3]) > 65535:
        raise ValueError(text)
    found = ipaddress.IPv4Address(match[1]) if match[1] else ipaddress.IPv6Address(match[2])
    return str(found), int(match[3])


# As dev_valid_name in net/core/dev.c, where IFNAMSIZ is 16.
INTERFACE = Text(
    "an interface name or glob (1 to 15 bytes, no space, / or :)",
    lambda text: re.fullmatch(r"(?!\.\.?$)[^\s/:]+", text) and len(text.encode()) <= 15,
)
_PATH_MAX, _NAME_MAX = 4095, 255  # bytes: limits.h of Linux; no file system has longer names
# Maximum length of a file name: host name (HOST_NAME_MAX), time, number, and endings while its
# index is written.
_PLACES = {"{host}": "h" * 64, "{time}": "20260101T000000.000Z", "{number}": "0" * 12}
_ENDINGS = ".zst.index.csv.gz.part"


def _can_be_path(text: str, ending: str = "") -> bool:
    """Check whether a file system can have a path; with `ending`, while the file is written."""
    if text[0] == "~" or len(f"{text}{ending}".encode()) > _PATH_MAX:
        return False
    for name in f"{text}{ending}".split("/"):
        _check_name(name)
    return True


def _check_name(text: str) -> None:
    if (size := len(text.encode())) > _NAME_MAX:
        raise ReasonError(f"a file name of {size} bytes; file systems allow {_NAME_MAX}")


def _can_be_template(text: str) -> bool:
    if not re.fullmatch(r"(?=.*\{time\})(?=.*\{number\})([\w.+-]|\{time\}|\{number\}|\{host\})+\.pcapng", text):
        return False
    for place, longest in _PLACES.items():
        if text.count(place) > 1:
            return False
        text = text.replace(place, longest)
    _check_name(text + _ENDINGS)
    return True


DIRECTORY = Text("a path (~ is not expanded)", _can_be_path)
KEY_LOG = Text("a path of a file (~ is not expanded)", _can_be_path)
TEMPLATE = Text(
    "a file name with {time} and {number}, optionally {host}, that ends in .pcapng",
    _can_be_template,
)
PERMISSIONS = Text("three octal digits", lambda text: re.fullmatch(r"[0-7]{3}", text))
# sun_path in linux/un.h has 108 bytes, including a NUL.
SOCKET = Text(
    "none, or an absolute path of at most 107 bytes",
    lambda text: text == "none" or (text[0] == "/" and len(text.encode()) <= 107),
)
LISTEN = Text(
    "none, or an IP address and a port (127.0.0.1:9479, [::1]:9479)",
    lambda text: text == "none" or address(text),
)
TEXTFILE = Text(
    "none, or a path that ends in .prom",
    lambda text: text == "none" or (text.endswith(".prom") and _can_be_path(text, ".part")),
)
OWNER = Text("self, USER, USER:GROUP or :GROUP", lambda text: re.fullmatch(r"[\w.-]+|[\w.-]*:[\w.-]+", text))


NAMESPACE = Text("a name in /run/netns, an inode number, or self", lambda text: re.fullmatch(r"[^/\0]{1,255}", text))
