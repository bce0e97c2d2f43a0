# ruff: noqa: RUF009 - _key makes a dataclass field, which is all that the rule wants to see
"""The table of settings: every key with its default, kind and description.

Out: `Settings`, and `ROWS`, from which `parser` takes keys and kinds, and `reference` writes the
config file and its schema. A field made by `_key` is one key of the file: its default as written in
the file, its kind (type, range, unit) and its description in the man page.

The rule not to break: a key is defined here and nowhere else. To add one, add its field and run
`make generate`; a test compares the generated files with this table. A new section is a new
dataclass and one more field of `Settings`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from skbcapd.attribution.fields import FIELDS, TABLE, Field
from skbcapd.config.kinds import (
    BYTES,
    DIRECTORY,
    DURATION,
    INTERFACE,
    KEY_LOG,
    LISTEN,
    NAMESPACE,
    OWNER,
    PERMISSIONS,
    SIZE,
    SOCKET,
    TEMPLATE,
    TEXTFILE,
    Expression,
    Kind,
    ListOf,
    Pattern,
    Quantity,
    Switch,
    Text,
    Word,
)
from skbcapd.config.pattern import TextPattern

Direction = Literal["out", "in"]
Transmit = Literal["queue", "driver"]
Encode = Literal["kernel", "scapy"]
Payload = Literal["all", "none"]
Checksums = Literal["keep", "fill"]
Dedup = Literal["first", "all"]
Drops = Literal["none", "count", "capture"]
Compress = Literal["none", "gzip", "zstd"]
Mode = Literal["files", "ring"]
Attach = Literal["auto", "kprobe", "tracepoint"]
Action = Literal["keep", "drop", "dump"]
Via = Literal["current", "socket", "flow", "inode", "path", "kernel", "forwarded", "unknown", "group"]
Level = Literal["debug", "info", "warning", "error"]


AFTER = Quantity("a duration", "1s", "1h", DURATION)
"""How long a dump continues after its trigger."""
SINCE = Quantity("a duration", "1s", "366d", DURATION)
"""How far back a dump begins."""


@dataclass(frozen=True, slots=True)
class Records:
    """A list of rules."""

    expected = "a list of rules, for example [{comm: chronyd, action: keep}, {action: drop}]"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema: a list of objects."""
        return {"type": "array", "items": object_schema(RULE_KEYS) | {"minProperties": 1}}

    def parse(self, text: str) -> tuple[Rule, ...]:
        """No rules: `parser` reads a list of rules."""
        if text:
            raise ValueError(text)
        return ()


@dataclass(frozen=True, slots=True)
class Row:
    """A key's default as written in the file, its kind, and its description in the man page: a paragraph; lines of
    it that begin with two spaces are a list.
    """

    default: str
    kind: Kind
    doc: str


def object_schema(rows: Mapping[str, Row]) -> dict[str, Any]:
    """The JSON Schema of the keys on one level."""
    properties = {}
    for name, row in rows.items():
        default = f" Default {row.default}." if row.default else ""
        meaning = row.doc if row.doc.endswith(".") else f"{row.doc}:"
        meaning = meaning.replace("\n  ", "\n- ")  # editors show Markdown
        properties[name] = {"description": f"{meaning}{default} {row.kind.expected}."} | row.kind.schema
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _key(default: str, kind: Kind, doc: str) -> Any:
    return dataclasses.field(default=kind.parse(default), metadata={"row": Row(default, kind, doc)})


def _part(kind: Kind, doc: str) -> Any:
    """A key of a rule; None if it is missing."""
    return dataclasses.field(default=None, metadata={"row": Row("", kind, doc)})


def _words(literal: object) -> Word:
    return Word(get_args(literal))


def _rule_keys() -> str:
    """The keys of a rule, a line for each. Those of a process and its drop are described as fields of a comment."""
    keys = (f"  {name}: {row.doc}" for name, row in RULE_KEYS.items() if name not in FIELDS)
    return "\n".join(["Keys of a rule: all fields of comment (see there), and", *keys, f"Text is {Pattern.expected}."])


def _comment_keys() -> str:
    """The fields of a comment, a line for each."""
    return "\n".join(["Fields:", *(f"  {field.name}: {field.in_comment}" for field in TABLE), ""])


@dataclass(frozen=True, slots=True)
class Buffer:
    """Keys below `buffer`."""

    size: int = _key(
        "64MiB",
        Quantity("a size", "4MiB", "4GiB", SIZE),
        "Memory that the kernel program writes to and skbcapd reads from. It has segments of 2 MiB; their number is "
        "the largest power of two that fits into this size, and at least 4 (8 MiB). Packets wait here while the disk "
        "is slow. When it is full, packets are dropped and counted. 64 MiB hold about half a second at 1 Gbit/s.",
    )


@dataclass(frozen=True, slots=True)
class Files:
    """Keys below `files`."""

    directory: str = _key(
        "/var/log/skbcapd",
        DIRECTORY,
        "Directory for capture files. A relative path starts at the directory in which skbcapd was started. Each "
        "daemon needs its own directory. With the systemd unit, a directory outside of /var/log/skbcapd must belong to "
        "the user skbcapd, and needs a drop-in with ReadWritePaths=.",
    )
    mode: Mode = _key(
        "files",
        _words(Mode),
        "files: write every packet to a file. ring: keep the last packets in memory, in a ring buffer. `skbcapd dump`, "
        "SIGUSR2 or a rule with action: dump writes them to a file. Packets in memory are discarded when skbcapd ends.",
    )
    ring: int = _key(
        "64MiB",
        Quantity("a size", "8MiB", "4GiB", SIZE),
        "Size of the ring buffer (mode: ring), in addition to buffer.size. When it is full, the oldest packets are "
        "discarded, up to 2 MiB of them at a time. `skbcapd status` shows for how long it lasts at the current rate.",
    )
    ring_time: int = _key(
        "0",
        Quantity("a duration", "1s", "366d", DURATION, "no limit"),
        "Discard packets from the ring buffer when they are older than this, for example 5m. files.ring limits it, "
        "too: with more traffic, it holds less time.",
    )
    name: str = _key(
        "skbcapd-{host}-{time}-{number}.pcapng",
        TEMPLATE,
        "Names of the files; {time} is in UTC. skbcapd deletes only files with such names. The name of the file that "
        "is being written ends in .part. The symbolic link current.pcapng points to the newest file.",
    )
    size: int = _key(
        "100MiB", Quantity("a size", "1MiB", "1024GiB", SIZE, "no limit"), "Begin a new file at this size."
    )
    every: int = _key(
        "1h",
        Quantity("a duration", "1s", "366d", DURATION, "never"),
        "Begin a new file at each multiple of this time since 1970 UTC, for example 1h: at each full hour. This also "
        "happens if there are no packets.",
    )
    packets: int = _key(
        "0",
        Quantity("a number of packets", "1", "999999999999", BYTES, "no limit"),
        "Begin a new file after this number of packets. Python then counts each packet, which costs CPU.",
    )
    keep_size: int = _key(
        "10GiB",
        Quantity("a size", "1MiB", "1048576GiB", SIZE, "no limit"),
        "Delete the oldest files when the total size of all finished files exceeds this.",
    )
    keep_number: int = _key(
        "0",
        Quantity("a number of files", "1", "999999", BYTES, "no limit"),
        "Delete the oldest files when there are more finished files than this.",
    )
    keep_age: int = _key(
        "0",
        Quantity("a duration", "1m", "9999d", DURATION, "no limit"),
        "Delete files when they have been finished for this long.",
    )
    keep_free: int = _key(
        "100MiB",
        Quantity("a size", "0", "1048576GiB", SIZE),
        "Free space to leave on the disk. With less, skbcapd deletes the oldest files of earlier runs, except dumps "
        "and the newest file. If that is not enough, packets are dropped and counted until there is space again.",
    )
    compress: Compress = _key(
        "none",
        _words(Compress),
        "Compress finished files, also those of an earlier run. A separate process does it, with low priority (in the "
        "systemd unit: normal priority). "
        "Wireshark opens files compressed with gzip or zstd.",
    )
    seekable: bool = _key(
        "false",
        Switch(),
        "Compress each MiB of a file alone, and whole packets only, as members of gzip or frames of zstd: `skbcapd "
        "fleet extract` then reads only the parts that it needs. All programs that read gzip read such files. With "
        "zstd, Wireshark must be newer than 4.0.",
    )
    index: bool = _key(
        "false",
        Switch(),
        "Write an index beside each finished file, also beside those of an earlier run: which process exchanged "
        "packets with whom, when, and where in the file. A separate process does it, after the file is compressed.",
    )
    flush: int = _key(
        "5s",
        Quantity("a duration", "1s", "1h", DURATION, "never"),
        "Interval between two calls of fdatasync(2): a power failure loses at most the packets of this time. While "
        "packets arrive without a pause, they wait in the buffer for as long, at most 5s, before they are written: a "
        "SIGKILL loses those. A shorter interval costs CPU time.",
    )
    permissions: str = _key(
        "640", PERMISSIONS, "Permission bits of the files, in octal. The umask has no effect on them."
    )
    owner: str = _key(
        "self",
        OWNER,
        "Owner of the files: USER, USER:GROUP or :GROUP. self: user and group of the process. With the systemd unit, a "
        "drop-in must allow other owners: SupplementaryGroups=GROUP for a group; for a user, CAP_CHOWN and "
        "CAP_DAC_OVERRIDE in CapabilityBoundingSet= and AmbientCapabilities=.",
    )


@dataclass(frozen=True, slots=True)
class Log:
    """Keys below `log`."""

    level: Level = _key("info", _words(Level), "Minimum severity to log. debug helps to find errors in skbcapd itself.")


@dataclass(frozen=True, slots=True)
class Control:
    """Keys below `control`."""

    socket: str = _key(
        "/run/skbcapd/control",
        SOCKET,
        "UNIX socket on which the daemon answers `skbcapd status`. The user and the group of the daemon can connect. "
        "The answer has counters, processes and settings, but no packets. `skbcapd dump` and `skbcapd top` without "
        "files use it, too, but only for root and the user of the daemon. Each daemon needs its own socket.",
    )


@dataclass(frozen=True, slots=True)
class Metrics:
    """Keys below `metrics`. Both need prometheus_client (python3-prometheus-client)."""

    listen: str = _key(
        "none",
        LISTEN,
        "Address of an HTTP endpoint for Prometheus, with the path /metrics. It has no password. It shows counters, "
        "and with metrics.top also names of processes, users, units, containers, pods and interfaces. The systemd "
        "units allow connections from this host only.",
    )
    textfile: str = _key(
        "none",
        TEXTFILE,
        "File with the same metrics for the textfile collector of node_exporter. skbcapd replaces it every 15 s, and "
        "deletes it when it stops.",
    )
    top: int = _key(
        "0",
        Quantity("a number of names", "1", "20", BYTES, "none"),
        "Number of busiest interfaces whose counters are exported, and of busiest processes whose shares are exported; "
        "the same number of users, units, containers and pods, if `comment` has these fields. Their names are values "
        "of a label: each new name is a new time series in Prometheus.",
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """One process rule: conditions, all of which must be true, and the action. A missing key is
    None.
    """

    fields: Mapping[str, TextPattern | int] = dataclasses.field(default_factory=dict)
    """Conditions on the fields of attribution.fields."""
    children: bool | None = _part(
        Switch(), "the conditions on the process may be true for one of its ancestors instead"
    )
    netns: str | None = _part(
        Text("a name or number", lambda _: True), "network namespace, by its name in /run/netns or its inode number"
    )
    interface: TextPattern | None = _part(Pattern(), "name of the interface")
    direction: Direction | None = _part(_words(Direction), "out (sent) or in (received)")
    via: Via | None = _part(_words(Via), "how the process was found; current means that the comment has no via")
    action: Action | None = _part(
        _words(Action),
        "keep (default), drop, or dump (keep, and write the ring buffer to a file; needs files.mode: ring)",
    )
    dump_after: int | None = _part(
        AFTER,
        "how long a dump continues after a packet of this rule (action: dump)",
    )
    snaplen: int | None = _part(
        Quantity("a whole number of bytes", "64", "262144", BYTES), "maximum number of bytes to keep of each frame"
    )
    payload: Payload | None = _part(
        _words(Payload), "all, or none (keep only headers); without this key, as the setting payload"
    )
    filter: str | None = _part(Expression(), "keep only the packets that also match this packet filter")
    is_option: bool = False
    """Whether it comes from options of the command line, such as --unit."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Rule:
        """Make a rule from keys of the file, each of RULE_KEYS."""
        return cls(
            {key: value for key, value in values.items() if key in FIELDS},
            **{key: value for key, value in values.items() if key not in FIELDS},
        )

    @property
    def given(self) -> dict[str, Any]:
        """The keys that are present, as in the file."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if "row" in each.metadata}
        return {**self.fields, **{key: value for key, value in own.items() if value is not None}}

    def place(self, number: int, key: str) -> str:
        """Where a key of this rule is, as the user wrote it, for messages.

        Args:
            number: of the rule, from 1.
            key: one that it has.
        """
        if not self.is_option:
            return f"rules[{number}].{key}"
        wanted = self.fields[key]
        return f"--{key} {wanted.text if isinstance(wanted, TextPattern) else wanted}"

    @property
    def of_process(self) -> Mapping[str, TextPattern | int]:
        """The conditions on the process."""
        return {key: wanted for key, wanted in self.fields.items() if FIELDS[key].of_drop is None}

    @property
    def of_drop(self) -> Mapping[str, TextPattern | int]:
        """The conditions on the drop of a packet."""
        return {key: wanted for key, wanted in self.fields.items() if FIELDS[key].of_drop is not None}

    @property
    def conditions(self) -> set[str]:
        """The conditions that are present."""
        return self.given.keys() - {"children", "action", "dump_after", "snaplen", "payload", "filter"}

    @property
    def contradiction(self) -> str:
        """A message about keys that exclude each other; empty if there are none."""
        if self.action == "drop" and any(part is not None for part in (self.snaplen, self.payload, self.filter)):
            return "found drop beside snaplen, payload or filter, expected one or the other"
        if self.dump_after is not None and self.action != "dump":
            return "found dump_after without action: dump, expected both or none"
        if self.children and not self.of_process:
            return "found children without a condition on a process, expected one, such as comm"
        return ""


def _rule_row(field: Field) -> Row:
    """The row of a field as a condition."""
    if field.is_number:
        return Row("", Quantity("a whole number", str(field.least), str(field.most), BYTES), field.doc)
    return Row("", Pattern(), field.doc)


RULE_KEYS: Mapping[str, Row] = {field.name: _rule_row(field) for field in TABLE} | {
    each.name: each.metadata["row"] for each in dataclasses.fields(Rule) if "row" in each.metadata
}
"""The keys of a rule, in the order of the manual."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one capture; quantities are in bytes."""

    interfaces: tuple[str, ...] = _key(
        "any",
        ListOf(INTERFACE, alone="any"),
        "Interfaces to capture on, as names or globs ([eth0, wg*]). Interfaces that appear later are captured, too. "
        "any: all interfaces.",
    )
    namespaces: tuple[str, ...] = _key(
        "",
        ListOf(NAMESPACE, may_be_empty=True),
        "Network namespaces of these interfaces: names of `ip netns`, inode numbers (`readlink /proc/PID/ns/net`), or "
        "self, the namespace in which skbcapd runs. Empty: all namespaces with interfaces: any, otherwise self.",
    )
    exclude: tuple[str, ...] = _key(
        "",
        ListOf(INTERFACE, may_be_empty=True),
        "Interfaces not to capture on, for example [lo, docker*], in every network namespace. exclude overrides "
        "interfaces.",
    )
    directions: tuple[Direction, ...] = _key(
        "out, in", ListOf(_words(Direction)), "Packets to capture. out: sent packets. in: received packets."
    )
    transmit: Transmit = _key(
        "queue",
        _words(Transmit),
        "Where in the kernel to capture sent packets. queue: before the queueing discipline, while the sender is still "
        "known for most packets. driver: after the queueing discipline and after segmentation, as tcpdump does.",
    )
    snaplen: int = _key(
        "262144",
        Quantity("a whole number of bytes", "64", "262144", BYTES),
        "Maximum number of bytes to keep of each frame. The default keeps complete frames. A small number makes the "
        "files smaller, but is no protection: after short headers, 96 leaves the beginning of the payload, such as "
        "GET /?token=... For headers only, use payload: none.",
    )
    payload: Payload = _key(
        "all",
        _words(Payload),
        "What to keep after the headers of a packet. all: everything, up to snaplen. none: nothing; the kernel program "
        "cuts each frame after its transport header, however long it is. Addresses, ports, options, lengths and times "
        "stay. Headers of TCP, UDP, UDP-Lite, SCTP, DCCP, ICMP and ICMPv6 (8 bytes) are known. A packet with another "
        "protocol, an encrypted or tunneled one, or a later fragment, is cut after the outer IP header; ARP stays "
        "complete; other frames are cut after the Ethernet header. With snaplen, the smaller number of bytes is kept.",
    )
    filter: str = _key(
        "",
        Expression(),
        "Packet filter, for example: tcp port 443 and not host 10.0.0.1. The kernel program applies it before it "
        "copies a packet. Names of hosts and services are resolved once, when the filter is compiled. "
        "Empty: all packets.",
    )
    rules: tuple[Rule, ...] = _key(
        "",
        Records(),
        "Which packets to keep, by process. The first rule of which all conditions are true decides. If there is none, "
        "the packet is kept. A condition is false if its value is not known. " + _rule_keys(),
    )
    checksums: Checksums = _key(
        "keep",
        _words(Checksums),
        "Sent frames do not yet have the checksums that the network card computes. keep: leave them as they are, and "
        "mark the packet in epb_flags. fill: compute them. Python handles each such packet then, which costs CPU.",
    )
    dedup: Dedup = _key(
        "all",
        _words(Dedup),
        "For packets that pass through several interfaces (veth, bridge, bond, VLAN, NAT). all: capture them on each "
        "interface; all copies have the same epb_packetid. first: capture them only on the first of the captured "
        "interfaces, and count the others as duplicates. The first is the interface of the sender, if the sender is on "
        "this machine. For a packet from outside it is the uplink: the process of the first packet of a connection may "
        "be unknown there, and known on a later interface.",
    )
    drops: Drops = _key(
        "none",
        _words(Drops),
        "What to do about packets that the kernel drops: because no socket wants them, a firewall discards them, a "
        "buffer is full, or there is no route. none: nothing. count: count them by reason, interface, direction and "
        "process. `skbcapd status`, the metrics and the lines at the end of a capture show the numbers, to which the "
        "packet filter and rules do not apply. capture: count them, and write them to the file, on an interface "
        "drops@NAME for each network namespace, with the reason in the comment; packet filter and rules apply there.",
    )
    drops_rate: int = _key(
        "1000",
        Quantity("a whole number of packets", "1", "1000000", BYTES),
        "With drops: capture, maximum number of dropped packets of one reason to write per second. Of all reasons "
        "together, at most four times as many are written. The others are counted as limited.",
    )
    comment: tuple[str, ...] = _key(
        ", ".join(field.name for field in TABLE if field.is_default),
        ListOf(Word((*FIELDS, "none")), alone="none"),
        "What the comment of a packet says about its process and its drop, in this order. Unknown values are left "
        "out. "
        + _comment_keys()
        + "cmdline can contain passwords: it is off by default, and cut to 128 bytes. All fields but comm, pid, tgid, "
        "process, drop and at are read from /proc, once per label. Names of containers and pods come from files of "
        "docker, podman and Kubernetes, if skbcapd can read them. none: no comment; only option 8 contains the process "
        "id.",
    )
    process_blocks: bool = _key(
        "false",
        Switch(),
        "Write a block for each process before its first packet: name, program, parent, user and start time. Newer "
        "versions of Wireshark show it. The block has the command line only if comment has cmdline.",
    )
    secrets: tuple[str, ...] = _key(
        "",
        ListOf(KEY_LOG, may_be_empty=True),
        "Key log files of programs that use TLS (SSLKEYLOGFILE). Their new lines are written into the capture files, "
        "so Wireshark shows the decrypted content. Everybody who can read such a capture file can then decrypt these "
        "connections. Empty: none.",
    )
    encode: Encode = _key(
        "kernel",
        _words(Encode),
        "What writes the blocks of the packets. kernel: the kernel program. scapy: Python, for tests; the result is "
        "the same, but it is very slow.",
    )
    attach: Attach = _key(
        "auto",
        _words(Attach),
        "How to attach to the kernel. auto: tracepoints for frames, which is faster and misses fewer packets; kprobes, "
        "if the kernel has them, for the processes of sockets, which finds more processes. kprobe and tracepoint: "
        "only these.",
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
