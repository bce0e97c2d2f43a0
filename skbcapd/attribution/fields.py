"""The table of comment fields: what the comment of a packet can say about its process, and about its drop,
one row per field.

In: a thread from the kernel program, what /proc says about its process, and why the kernel dropped the
packet. Out: a value for each field.

Everything else follows from the rows: the setting `comment`, the keys of a rule, the JSON Schema
and the man page (`config.settings`), what is cut to fit into a label (`pcapng.comment`), what `top`
and `split` group by (`pcapng.reader`), the fields in Wireshark and the table in docs/format.md
(`make generate`). CONTRIBUTING.md shows how to add a row.

The rule not to break: a value is right, or it is missing (None or empty).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from skbcapd.attribution.processes import Process, User, container_of, short_id, unit_of

Value: TypeAlias = bytes | int | None


class Dropped(NamedTuple):
    """Why the kernel has dropped a packet.

    Args:
        reason: the kernel's own name of the reason.
        function: the function that dropped it; empty if it is not known.
    """

    reason: bytes
    function: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a comment.

    Args:
        name: key in the comment, in a rule, and in Wireshark behind `skbcapd.`: letters and `_`.
        title: its name in Wireshark.
        doc: its description, as the end of a sentence.
        of_thread: returns the value that the kernel program has read; does not read /proc.
        of_process: returns the value that was read from /proc.
        of_drop: returns the value of a dropped packet, which has it also without a process.
        most: the largest number; 0 for text.
        least: the smallest number.
        is_default: whether the comment has it by default.
        is_cuttable: whether its end may be cut so that the comment fits into a label.
        is_group: whether `top` and `split` may group packets by it.
        unless_equal: name of another field: left out if the values are equal.
        also: returns other texts that a rule can match.
    """

    name: str
    title: str
    doc: str
    of_thread: Callable[[User], Value] | None = None
    of_process: Callable[[Process], Value] | None = None
    of_drop: Callable[[Dropped], Value] | None = None
    most: int = 0
    least: int = 0
    is_default: bool = False
    is_cuttable: bool = False
    is_group: bool = False
    unless_equal: str = ""
    also: Callable[[Process], Iterable[bytes]] = lambda _process: ()

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers, not text."""
        return bool(self.most)

    @property
    def in_comment(self) -> str:
        """Its description as a field of a comment, which can leave it out."""
        return self.doc + (f", left out if it equals {self.unless_equal}" if self.unless_equal else "")

    def value(self, user: User, process: Process | None) -> Value:
        """Return its value; None or empty if it is not known.

        Args:
            user: a thread of a process.
            process: its record from /proc; None if it is not known, or was not read.
        """
        if self.of_thread is not None:
            return self.of_thread(user)
        return self.of_process(process) if self.of_process is not None and process is not None else None

    def of_dropped(self, dropped: Dropped | None) -> Value:
        """Return its value for a packet; None if it is not about drops, or the packet was not dropped."""
        return self.of_drop(dropped) if self.of_drop is not None and dropped is not None else None


def _number_in_namespace(process: Process) -> int | None:
    """The last number of NSpid: the id in the innermost PID namespace (proc_pid_status(5))."""
    found = re.search(rb"^NSpid:(?:\t[0-9]{1,10})*\t([0-9]{1,10})\n", process.status, re.MULTILINE)
    return int(found[1]) if found else None


_PID_MAX = 1 << 22  # PID_MAX_LIMIT of include/linux/threads.h
_ID_MAX = (1 << 32) - 1

TABLE: tuple[Field, ...] = (
    Field(
        name="comm",
        title="Thread",
        doc="name of the thread, up to 15 bytes, chosen by the process itself",
        of_thread=lambda user: user.comm,
        is_default=True,
        is_group=True,
    ),
    Field(
        name="pid",
        title="Thread id (pid)",
        doc="thread id",
        of_thread=lambda user: user.tid or None,
        least=1,
        most=_PID_MAX,
        is_default=True,
    ),
    Field(
        name="tgid",
        title="Process id (tgid)",
        doc="process id, which ps and most other tools call PID",
        of_thread=lambda user: user.tgid,
        least=1,
        most=_PID_MAX,
        is_default=True,
        is_group=True,
    ),
    Field(
        name="process",
        title="Process",
        doc="name of the process (of its main thread)",
        of_thread=lambda user: user.process,
        is_default=True,
        is_group=True,
        unless_equal="comm",
    ),
    Field(
        name="ppid",
        title="Parent process id",
        doc="process id of the parent",
        of_process=lambda process: process.ppid,
        most=_PID_MAX,
    ),
    Field(
        name="uid",
        title="User id",
        doc="effective user id",
        of_process=lambda process: process.uid,
        most=_ID_MAX,
    ),
    Field(
        name="user",
        title="User",
        doc="name of this user in /etc/passwd",
        of_process=lambda process: process.user,
        is_cuttable=True,
        is_group=True,
    ),
    Field(
        name="gid",
        title="Group id",
        doc="effective group id",
        of_process=lambda process: process.gid,
        most=_ID_MAX,
    ),
    Field(
        name="exe",
        title="Executable",
        doc="path of the program; ends in (deleted) if the file was deleted",
        of_process=lambda process: process.exe,
        is_cuttable=True,
    ),
    Field(
        name="cmdline",
        title="Command line",
        doc="command line, words joined by spaces",
        of_process=lambda process: process.cmdline.rstrip(b"\0").replace(b"\0", b" "),
        is_cuttable=True,
    ),
    Field(
        name="cgroup",
        title="Control group",
        doc="path of the cgroup of version 2, otherwise of systemd, otherwise the first one that is not /",
        of_process=lambda process: process.cgroup,
        is_cuttable=True,
    ),
    Field(
        name="unit",
        title="systemd unit",
        doc="systemd unit; for a unit of a user manager: user@1000.service/foo.service",
        of_process=lambda process: unit_of(process.cgroup),
        is_cuttable=True,
        is_group=True,
    ),
    Field(
        name="container",
        title="Container",
        doc="name of the container, otherwise the first 12 digits of its id; a rule also accepts the complete id",
        of_process=lambda process: process.names.name or short_id(container_of(process.cgroup)),
        is_cuttable=True,
        is_group=True,
        also=lambda process: (container_of(process.cgroup), short_id(container_of(process.cgroup))),
    ),
    Field(
        name="pod",
        title="Kubernetes pod",
        doc="namespace/pod/container of Kubernetes, or namespace/pod",
        of_process=lambda process: process.names.pod,
        is_cuttable=True,
        is_group=True,
    ),
    Field(
        name="ns_pid",
        title="Process id in its namespace",
        doc="process id in its own PID namespace",
        of_process=_number_in_namespace,
        least=1,
        most=_PID_MAX,
    ),
    Field(
        name="drop",
        title="Drop reason",
        doc="reason why the kernel dropped the packet, as the kernel calls it; only of dropped packets",
        of_drop=lambda dropped: dropped.reason,
        is_default=True,
    ),
    Field(
        name="at",
        title="Dropped at",
        doc="function of the kernel that dropped the packet, if the kernel shows its symbols",
        of_drop=lambda dropped: dropped.function,
        is_default=True,
        is_cuttable=True,
    ),
)
FIELDS: Mapping[str, Field] = {field.name: field for field in TABLE}
CUTTABLE = tuple(field.name for field in TABLE if field.is_cuttable)
GROUPS = tuple(field.name for field in TABLE if field.is_group)


def needs_process(names: Iterable[str]) -> bool:
    """Whether any of these fields is read from /proc; unknown names are ignored."""
    return any(FIELDS[name].of_process is not None for name in names if name in FIELDS)


def comment_fields(
    names: Iterable[str], *candidates: tuple[User, Process | None], dropped: Dropped | None = None
) -> list[tuple[str, bytes | int]]:
    """The fields of a comment: of one process, or those that all candidates have in common.

    Args:
        names: names of fields, in the order of the comment; unknown names are ignored.
        candidates: one or more candidates: the thread (tgid 0 if it is not known), and the record of
            its process from /proc (None if it is not known, or was not read).
        dropped: why the packet was dropped; None: it was not.

    Returns:
        Names and values, without those that are not known or differ between candidates.
    """
    found: dict[str, bytes | int] = {}
    # A field that one of them does not have is not common to all.
    is_known = all(user.tgid for user, _ in candidates)
    for name in names:
        field = FIELDS.get(name)
        if field is None:
            continue
        if field.of_drop is not None:
            value = field.of_dropped(dropped)
        elif not is_known:
            continue
        elif len(candidates) == 1:  # nearly always, and five times faster than a set
            value = field.value(*candidates[0])
        else:
            values = {field.value(*one) for one in candidates}
            value = values.pop() if len(values) == 1 else None
        if value is not None and (value != b"" or name == "comm"):
            found[name] = value
    return [(name, value) for name, value in found.items() if value != found.get(FIELDS[name].unless_equal)]
