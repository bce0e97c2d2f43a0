# ruff: noqa: RUF009 - _key makes a dataclass field, which is all that the rule wants to see
"""The table of settings: every key with its default, kind and meaning, and what is made of it.

Nothing enters; `Settings` leaves, and `ROWS`, from which `config` knows keys and kinds, and `reference`, the text of
etc/skbcapd.yaml, and `schema`, that of etc/skbcapd.schema.json. A field made by `_key` is one key of the file: its
default as the file spells it, its kind (type, range, unit) and its text in the manual, meaning and reason.

The rule not to break: a key stands here and nowhere else. To add one, add its field and write the reference file anew:
`skbcapd config > etc/skbcapd.yaml` and `skbcapd config --schema > etc/skbcapd.schema.json`; a test holds them to
that. A new section is a dataclass of its own and one more field of `Settings`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import ipaddress
import json
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

from skbcapd.filter import packet_filter

# The units a quantity may be written in; the empty one is the unit of the setting itself.
BYTES = {"": 1}
SIZE = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
DURATION = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Direction = Literal["out", "in"]
Transmit = Literal["queue", "driver"]
Encode = Literal["kernel", "scapy"]
Checksums = Literal["keep", "fill"]
Dedup = Literal["first", "all"]
Comment = Literal["comm", "pid", "tgid", "ppid", "uid", "user", "exe", "cmdline", "cgroup", "unit", "container", "none"]
Compress = Literal["none", "gzip", "zstd"]
Mode = Literal["files", "ring"]
Attach = Literal["auto", "kprobe", "tracepoint"]
Action = Literal["keep", "drop", "dump"]
Via = Literal["current", "socket", "flow", "inode", "path", "kernel", "forwarded", "unknown", "group"]
Level = Literal["debug", "info", "warning", "error"]


class ReasonError(ValueError):
    """A value that is not right, and why."""


class Kind(Protocol):
    """What a value may be: says it in words, and reads one.

    `parse` raises ValueError for anything else: ReasonError where it is worth saying why.
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
        """The words."""
        return {"enum": list(self.words)}

    def parse(self, text: str) -> str:
        """The word itself."""
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
    """A whole number from `low` to `high`, both as the file would spell them, in one of `units`."""

    noun: str
    low: str
    high: str
    units: Mapping[str, int]
    zero: str = ""
    """What 0 means, where it may stand beside the range."""

    @property
    def expected(self) -> str:
        """Range and units."""
        units = ", ".join(unit for unit in self.units if unit)
        zero = f"0 for {self.zero}, or " if self.zero else ""
        return f"{zero}{self.noun} from {self.low} to {self.high}" + (f" (units: {units})" if units else "")

    @property
    def schema(self) -> dict[str, Any]:
        """A number of the setting's own unit in range, or a number with a unit."""
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

    def _amount(self, text: str) -> int:
        # Python reads no more than 4300 digits; YAML 1.1 would take a leading zero for octal.
        match = re.fullmatch(r"(0|[1-9][0-9]{0,17})([A-Za-z]*)", text)
        if not match or match[2] not in self.units:
            raise ValueError(text)
        return int(match[1]) * self.units[match[2]]


@dataclass(frozen=True, slots=True)
class Text:
    """Text that `accepts` takes. Nothing unprintable, so that it can be shown and handed to the system as it is."""

    expected: str
    accepts: Callable[[str], object]

    @property
    def schema(self) -> dict[str, Any]:
        """Text, which YAML may take for a number."""
        return {"type": ["string", "integer"], "minLength": 1}

    def parse(self, text: str) -> str:
        """The text itself."""
        if not text or not text.isprintable() or not self.accepts(text):
            raise ValueError(text)
        return text


@dataclass(frozen=True, slots=True)
class Expression:
    """A packet filter; empty for none."""

    expected = "a packet filter as tcpdump has it"
    schema: ClassVar[dict[str, Any]] = {"type": "string", "maxLength": packet_filter.EXPRESSION_MAX}

    def parse(self, text: str) -> str:
        """The expression itself, when libpcap can compile it."""
        try:
            if text:
                packet_filter.compile_all(text)
        except packet_filter.FilterError as error:
            raise ReasonError(str(error)) from None
        return text


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of `item`, none twice; the word `alone` stands for all and cannot stand beside others."""

    item: Word | Text
    alone: str = ""
    may_be_empty: bool = False

    @property
    def expected(self) -> str:
        """What the items are."""
        return f"a list, each entry {self.item.expected}"

    @property
    def schema(self) -> dict[str, Any]:
        """A list of different items."""
        least = 0 if self.may_be_empty else 1
        return {"type": "array", "items": self.item.schema, "minItems": least, "uniqueItems": True}

    def parse(self, text: str) -> tuple[str, ...]:
        """The items of a list written with commas, as defaults and `--set` have it."""
        if self.may_be_empty and not text:
            return ()
        return tuple(self.item.parse(item) for item in self.split(text))

    def split(self, text: str) -> list[str]:
        """The items' texts."""
        return [item.strip() for item in text.split(",")]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text to match: a glob, or a regular expression between slashes."""

    expected = "a glob (ssh*) or a regular expression (/^ssh/)"
    schema: ClassVar[dict[str, Any]] = {"type": ["string", "integer"], "minLength": 1}

    def parse(self, text: str) -> re.Pattern[str]:
        """The pattern: a glob matches the whole, a regular expression any part."""
        if not text or not text.isprintable():
            raise ValueError(text)
        if len(text) > 2 and text[0] == text[-1] == "/":
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of what may mean something else in a later Python
                    return re.compile(text[1:-1], re.DOTALL)
            except (re.error, OverflowError, RecursionError) as error:
                raise ReasonError(f"bad regular expression: {error}") from None
        return re.compile(r"\A" + fnmatch.translate(text))


@dataclass(frozen=True, slots=True)
class Records:
    """A list of rules."""

    expected = "a list of rules, such as [{comm: chronyd, action: keep}, {action: drop}]"

    @property
    def schema(self) -> dict[str, Any]:
        """A list of objects."""
        return {"type": "array", "items": _object(parts(Rule)) | {"minProperties": 1}}

    def parse(self, text: str) -> tuple[Rule, ...]:
        """No rule; what a list of them says is read by `config`."""
        if text:
            raise ValueError(text)
        return ()


@dataclass(frozen=True, slots=True)
class Row:
    """A key's default as the file spells it, its kind, and what the manual says: meaning and reason."""

    default: str
    kind: Kind
    doc: str


def _key(default: str, kind: Kind, doc: str) -> Any:
    return dataclasses.field(default=kind.parse(default), metadata={"row": Row(default, kind, doc)})


def _part(kind: Kind, doc: str) -> Any:
    """A key of a rule: not there unless it is given."""
    return dataclasses.field(default=None, metadata={"row": Row("", kind, doc)})


def _words(literal: object) -> Word:
    return Word(get_args(literal))


def parts(record: type) -> dict[str, Row]:
    """The keys of a record in a list, such as a rule."""
    return {each.name: each.metadata["row"] for each in dataclasses.fields(record)}


def _rule_keys() -> str:
    """The keys of a rule, for the manual."""
    keys = (f"{name}, {row.doc}" for name, row in parts(Rule).items())
    return "Keys of a rule: " + "; ".join(keys) + ". Text is " + Pattern.expected + "."


def address(text: str) -> tuple[str, int]:
    """Split an IP address from its port.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(?:([0-9.]+)|\[([0-9a-fA-F:.]+)\]):([1-9][0-9]{0,4})", text)
    if not match or int(match[3]) > 65535:
        raise ValueError(text)
    found = ipaddress.IPv4Address(match[1]) if match[1] else ipaddress.IPv6Address(match[2])
    return str(found), int(match[3])


# As dev_valid_name in net/core/dev.c has it, where IFNAMSIZ is 16.
DEVICE = Text(
    "a device name or glob (1 to 15 bytes, no space, / or :)",
    lambda text: re.fullmatch(r"(?!\.\.?$)[^\s/:]+", text) and len(text.encode()) <= 15,
)
# PATH_MAX in linux/limits.h.
DIRECTORY = Text("a path (no ~: only a shell knows it)", lambda text: text[0] != "~" and len(text.encode()) < 4096)

TEMPLATE = Text(
    "a file name with {time} and {number}, perhaps {host}, that ends in .pcapng",
    lambda text: (
        re.fullmatch(r"(?=.*\{time\})(?=.*\{number\})([\w.+-]|\{time\}|\{number\}|\{host\})+\.pcapng", text)
        and all(text.count(place) <= 1 for place in ("{time}", "{number}", "{host}"))
    ),
)
PERMISSIONS = Text("three octal digits of permission bits", lambda text: re.fullmatch(r"[0-7]{3}", text))
# sun_path in linux/un.h has 108 bytes, with a NUL.
SOCKET = Text(
    "none, or an absolute path of at most 107 bytes",
    lambda text: text == "none" or (text[0] == "/" and len(text.encode()) <= 107),
)
LISTEN = Text(
    "none, or an IP address and a port (127.0.0.1:9479, [::1]:9479)",
    lambda text: text == "none" or address(text),
)
TEXTFILE = Text(
    "none, or a path that ends in .prom", lambda text: text == "none" or (text.endswith(".prom") and text[0] != "~")
)
OWNER = Text("self, USER, USER:GROUP or :GROUP", lambda text: re.fullmatch(r"[\w.-]+|[\w.-]*:[\w.-]+", text))


NAMESPACE = Text("a name in /run/netns, an inode number, or self", lambda text: re.fullmatch(r"[^/\0]{1,255}", text))


@dataclass(frozen=True, slots=True)
class Buffer:
    """Keys below `buffer`."""

    size: int = _key(
        "64MiB",
        Quantity("a size", "4MiB", "4GiB", SIZE),
        "Memory shared by kernel and Python, in whole segments of 1 MiB. What the disk cannot take at once waits here; "
        "when it is full, packets are dropped and counted. 64 MiB hold about half a second at 1 Gbit/s.",
    )


@dataclass(frozen=True, slots=True)
class Files:
    """Keys below `files`."""

    directory: str = _key(
        "/var/log/skbcapd",
        DIRECTORY,
        "Where capture files are written. A relative path starts at the directory in which skbcapd was started. "
        "One daemon writes to one directory.",
    )
    mode: Mode = _key(
        "files",
        _words(Mode),
        "files: every packet goes to a file. ring: the last packets stay in memory, and `skbcapd dump` or SIGUSR2 "
        "writes them to a file; those that are in it when skbcapd ends are forgotten.",
    )
    ring: int = _key(
        "64MiB",
        Quantity("a size", "8MiB", "4GiB", SIZE),
        "Memory for packets in mode: ring, beside buffer.size. The oldest go in pieces of at most 2 MiB.",
    )
    name: str = _key(
        "skbcapd-{host}-{time}-{number}.pcapng",
        TEMPLATE,
        "Names of the files; {time} is UTC. Only files of such names are ever removed. In work they end in .part, and "
        "current.pcapng leads to the newest.",
    )
    size: int = _key("100MiB", Quantity("a size", "1MiB", "1024GiB", SIZE, "no limit"), "A file is full at this size.")
    every: int = _key(
        "1h",
        Quantity("a duration", "1s", "366d", DURATION, "never"),
        "A new file begins at each multiple of this time since midnight UTC, also when there are no packets.",
    )
    packets: int = _key(
        "0",
        Quantity("a number of packets", "1", "999999999999", BYTES, "no limit"),
        "A file is full with so many packets. Counting takes Python's time for each packet.",
    )
    keep_size: int = _key(
        "10GiB", Quantity("a size", "1MiB", "1048576GiB", SIZE, "no limit"), "The oldest files go when all are larger."
    )
    keep_number: int = _key(
        "0", Quantity("a number of files", "1", "999999", BYTES, "no limit"), "The oldest files go when there are more."
    )
    keep_age: int = _key(
        "0", Quantity("a duration", "1m", "9999d", DURATION, "ever"), "Files go this long after their end."
    )
    keep_free: int = _key(
        "100MiB",
        Quantity("a size", "0", "1048576GiB", SIZE),
        "Bytes of the disk that stay free: the oldest files go, and if that does not help, packets are lost and "
        "counted until there is room again.",
    )
    compress: Compress = _key(
        "none",
        _words(Compress),
        "How finished files are packed, by a process of its own, also those of an earlier run. "
        "Wireshark opens gzip and zstd.",
    )
    flush: int = _key(
        "1s",
        Quantity("a duration", "1s", "1h", DURATION, "never"),
        "How often what was written is forced to the disk, so that a power failure costs no more. "
        "What a killed skbcapd has written is safe without it.",
    )
    permissions: str = _key("640", PERMISSIONS, "Permission bits of the files, in octal.")
    owner: str = _key(
        "self",
        OWNER,
        "Owner of the files: USER, USER:GROUP or :GROUP; self is that of the process. In the systemd unit a drop-in "
        "must allow it: SupplementaryGroups=GROUP for a group; for a user CAP_CHOWN and CAP_DAC_OVERRIDE in "
        "CapabilityBoundingSet= and AmbientCapabilities=.",
    )


@dataclass(frozen=True, slots=True)
class Log:
    """Keys below `log`."""

    level: Level = _key(
        "info", _words(Level), "The least grave message that is logged. debug is for reports of a fault in skbcapd."
    )


@dataclass(frozen=True, slots=True)
class Control:
    """Keys below `control`."""

    socket: str = _key(
        "/run/skbcapd/control",
        SOCKET,
        "A socket at which `skbcapd status` asks the daemon how it goes, for the daemon's user and group. It tells "
        "counts, processes and settings, never packets, and takes no orders. Each daemon needs its own.",
    )


@dataclass(frozen=True, slots=True)
class Metrics:
    """Keys below `metrics`. Both need prometheus_client (python3-prometheus-client)."""

    listen: str = _key(
        "none",
        LISTEN,
        "Where Prometheus asks for metrics, at /metrics. Anybody who reaches the port may ask; it tells counts only. "
        "The units allow addresses of this host only.",
    )
    textfile: str = _key(
        "none",
        TEXTFILE,
        "A file with the same metrics for node_exporter's textfile collector, written anew every 15 s, and removed at "
        "the end.",
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """One process rule: conditions, all of which must hold, and what to do. What is not given is None."""

    comm: re.Pattern[str] | None = _part(Pattern(), "name of the thread")
    exe: re.Pattern[str] | None = _part(Pattern(), "path of the program")
    cmdline: re.Pattern[str] | None = _part(Pattern(), "command line, words joined by spaces")
    pid: int | None = _part(Quantity("a whole number", "1", "4194304", BYTES), "number of the thread")
    tgid: int | None = _part(Quantity("a whole number", "1", "4194304", BYTES), "number of the process")
    children: bool | None = _part(Switch(), "what the rule says of the process may hold for an ancestor instead")
    uid: int | None = _part(Quantity("a whole number", "0", "4294967295", BYTES), "number of the effective user")
    user: re.Pattern[str] | None = _part(Pattern(), "name of that user in /etc/passwd")
    gid: int | None = _part(Quantity("a whole number", "0", "4294967295", BYTES), "number of the effective group")
    cgroup: re.Pattern[str] | None = _part(Pattern(), "path of the cgroup")
    unit: re.Pattern[str] | None = _part(Pattern(), "systemd unit")
    container: re.Pattern[str] | None = _part(Pattern(), "id of the container, also its first 12 digits, or its name")
    netns: str | None = _part(
        Text("a name or number", lambda _: True), "network namespace: name in /run/netns, or inode"
    )
    interface: re.Pattern[str] | None = _part(Pattern(), "name of the device")
    direction: Direction | None = _part(_words(Direction), "out, sent; in, received")
    via: Via | None = _part(_words(Via), "how the process was found; current is the plain case")
    action: Action | None = _part(
        _words(Action),
        "keep, the default; drop; or dump: keep, and write what is in memory (files.mode: ring) to a file",
    )
    snaplen: int | None = _part(Quantity("a whole number of bytes", "64", "262144", BYTES), "bytes kept of each frame")
    filter: str | None = _part(Expression(), "packets to keep, of those that match")

    @property
    def conditions(self) -> set[str]:
        """The conditions that are given."""
        given = {each.name for each in dataclasses.fields(self) if getattr(self, each.name) is not None}
        return given - {"children", "action", "snaplen", "filter"}

    @property
    def contradiction(self) -> str:
        """What does not go together; empty if all does."""
        if self.action == "drop" and (self.snaplen is not None or self.filter is not None):
            return "found drop beside snaplen or filter, expected one or the other"
        if self.children and not self.conditions - {"netns", "interface", "direction", "via"}:
            return "found children without a condition on a process, expected one, such as comm"
        return ""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one capture; quantities are in bytes."""

    interfaces: tuple[str, ...] = _key(
        "any",
        ListOf(DEVICE, alone="any"),
        "Devices to capture on, also those that appear later: names, or globs ([eth0, wg*]); any is every device.",
    )
    namespaces: tuple[str, ...] = _key(
        "",
        ListOf(NAMESPACE, may_be_empty=True),
        "Network namespaces that the devices are in: names of `ip netns`, inode numbers (`readlink /proc/PID/ns/net`), "
        "or self, the one in which skbcapd runs. Empty: all of them for interfaces: any, else self.",
    )
    exclude: tuple[str, ...] = _key(
        "",
        ListOf(DEVICE, may_be_empty=True),
        "Devices not to capture on, of those that interfaces means; in every network namespace: [lo, docker*].",
    )
    directions: tuple[Direction, ...] = _key(
        "out, in", ListOf(_words(Direction)), "Packets to capture: out, sent through the device; in, received by it."
    )
    transmit: Transmit = _key(
        "queue",
        _words(Transmit),
        "Where sent packets are taken. queue: when the sender hands them over, before the queueing discipline, so that "
        "most still know their process. driver: behind it, after segmentation, as tcpdump sees them.",
    )
    snaplen: int = _key(
        "262144",
        Quantity("a whole number of bytes", "64", "262144", BYTES),
        "Bytes kept of each frame. The default keeps all of it; 96 keeps the headers and makes files smaller.",
    )
    filter: str = _key(
        "",
        Expression(),
        "Packets to capture, such as: tcp port 443 and not host 10.0.0.1. It is asked in the kernel, before anything "
        "else is done for a packet. Names of hosts and services are looked up once, at start. Empty: every packet.",
    )
    rules: tuple[Rule, ...] = _key(
        "",
        Records(),
        "What to do with whose packets: the first rule whose conditions all hold decides; without one they are kept. "
        "A condition on what is not known does not hold. " + _rule_keys(),
    )
    checksums: Checksums = _key(
        "keep",
        _words(Checksums),
        "Checksums that the network card completes are not in a frame when it is captured on its way out. keep: as "
        "they are, marked in epb_flags. fill: completed, which takes Python's time for each such packet.",
    )
    dedup: Dedup = _key(
        "all",
        _words(Dedup),
        "A packet that passes several interfaces (veth, bridge, bond, VLAN, NAT). all: on each of them; what belongs "
        "together has the same epb_packetid. first: only on the first of those that are captured; the others are "
        "counted. That is the sender's own interface where it is on this machine. Of a packet from outside it is the "
        "uplink, where the first of a connection may be of nobody known yet, though a later interface would say.",
    )
    comment: tuple[Comment, ...] = _key(
        "comm, pid, tgid",
        ListOf(_words(Comment), alone="none"),
        "What a packet's comment says of its process, in this order. pid is the thread, tgid the process. cmdline may "
        "hold passwords: it is off by default, and cut to 128 bytes. What is not known is left out. All but the first "
        "three are read from /proc, once per label. none: no comment; option 8 alone names the process.",
    )
    process_blocks: bool = _key(
        "false",
        Switch(),
        "A block for each process, in front of its first packet, as newer versions of Wireshark read them: name, "
        "program, parent, user, start. With the command line only where comment has it.",
    )
    encode: Encode = _key(
        "kernel",
        _words(Encode),
        "Who writes the packets' blocks. kernel: the kernel program, no Python per packet. "
        "scapy: Python, for every packet; the same bytes, very much slower, for tests.",
    )
    attach: Attach = _key(
        "auto",
        _words(Attach),
        "How to hook into the kernel. auto: frames at tracepoints, which is cheaper and misses none; users of sockets "
        "by kprobes where the kernel has them, which names more processes. The others use one of them for all.",
    )
    buffer: Buffer = dataclasses.field(default_factory=Buffer)
    files: Files = dataclasses.field(default_factory=Files)
    log: Log = dataclasses.field(default_factory=Log)
    control: Control = dataclasses.field(default_factory=Control)
    metrics: Metrics = dataclasses.field(default_factory=Metrics)


def _rows(section: object, prefix: str = "") -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        row, name = field.metadata.get("row"), prefix + field.name
        rows |= {name: row} if row else _rows(getattr(section, field.name), name + ".")
    return rows


ROWS: Mapping[str, Row] = _rows(Settings())
"""Every key, dotted, in the order of the reference file."""

SECTIONS = {key.partition(".")[0] for key in ROWS if "." in key}
_HEADER = """\
# yaml-language-server: $schema=skbcapd.schema.json
# The settings of skbcapd: every key, with its default. A key that is left out has its default.
# On the command line, --set KEY=VALUE is stronger than this file: --set buffer.size=256MiB, --set directions=out,in
"""


def reference() -> str:
    """Write the reference file.

    Returns:
        The text of etc/skbcapd.yaml: every key with its meaning, range and default.
    """
    text, section = _HEADER, ""
    for key, row in ROWS.items():
        prefix, _, name = key.rpartition(".")
        default = f"[{row.default}]" if isinstance(row.kind, ListOf | Records) else row.default or '""'
        indent = "  " if prefix else ""
        if prefix != section:
            text += f"\n{prefix}:"
            section = prefix
        comment = [row.doc, f"Default {default}; {row.kind.expected}."]
        lines = [indent + "# " + line for part in comment for line in textwrap.wrap(part, 96)]
        text += "\n".join(["", *lines, f"{indent}{name}: {default}", ""])
    return text


def schema() -> str:
    """Write the JSON Schema of the config file, for editors.

    Returns:
        The text of etc/skbcapd.schema.json. What it cannot say (regular expressions, packet filters, what does not go
        together) is left to `skbcapd check`.

    Source: JSON Schema, draft 7, which editors know.
    """
    plain = {key: row for key, row in ROWS.items() if "." not in key}
    sections: dict[str, dict[str, Row]] = {}
    for key, row in ROWS.items():
        section, _, name = key.rpartition(".")
        if section:
            sections.setdefault(section, {})[name] = row
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "skbcapd.yaml", **_object(plain)}
    for section, rows in sections.items():
        whole["properties"][section] = _object(rows) | {"type": ["object", "null"]}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _object(rows: Mapping[str, Row]) -> dict[str, Any]:
    """The schema of keys on one level."""
    properties = {}
    for name, row in rows.items():
        default = f" Default {row.default}." if row.default else ""
        properties[name] = {"description": f"{row.doc}{default} {row.kind.expected}."} | row.kind.schema
    return {"type": "object", "additionalProperties": False, "properties": properties}
