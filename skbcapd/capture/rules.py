"""The user's process rules: which packets are kept, by whose they are.

In: whose packet it is, its device and direction. Out: a verdict: dropped, or how many bytes are kept of which packets.
Asked once per label, in the upcall; the kernel program carries it out on all later packets of the label.

The rule not to break: the first rule whose conditions all hold decides, and a condition on something that is not known
does not hold. So `{user: root, action: drop}` drops no packet of a process that nobody could look at. Of a packet that
may be any one's of several processes a condition holds where it holds for all of them.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skbcapd.attribution.namespaces import RUN, is_called
from skbcapd.attribution.processes import Process, container_of, unit_of
from skbcapd.config.settings import Rule

_ANCESTORS_MAX = 64
_UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
# Conditions that need more than what the kernel program takes.
_FROM_PROC = {"exe", "cmdline", "uid", "user", "gid", "cgroup", "unit", "container"}
_OF_PROCESS = _FROM_PROC | {"comm", "pid", "tgid"}


@dataclass(frozen=True, slots=True)
class Person:
    """A process, or one of its threads.

    Args:
        comm: of the thread.
        tid: thread; 0 when not known.
        tgid: process; 0 when not known.
        process: what /proc says of it; None when not known, or not asked for.
    """

    comm: bytes
    tid: int
    tgid: int
    process: Process | None


@dataclass(frozen=True, slots=True)
class Subject:
    """What a rule may ask of a packet without a label.

    Args:
        interface: name of its device.
        netns: inode number of the device's network namespace.
        direction: "out" or "in".
        via: how the process was found: "current" or a word of the comment.
        comm: of the thread.
        tid: thread; 0 when not known.
        tgid: process; 0 when not known.
        process: what /proc says of it; None when not known, or not asked for.
        group: all who may be meant, where that is more than one thread; the four before are not asked for then.
    """

    interface: bytes
    netns: int
    direction: str
    via: str
    comm: bytes
    tid: int
    tgid: int
    process: Process | None
    group: Sequence[Person] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the packets of a label.

    Args:
        keeps: whether any is kept.
        snaplen: bytes kept of each; 0: as many as of others.
        filter: number of the packet filter that chooses among them; 0: all.
        dump: number of the rule, from 1, that wants what is in memory to be written at each of them; 0: none does.
    """

    keeps: bool = True
    snaplen: int = 0
    filter: int = 0
    dump: int = 0


class Rules:
    """Rules in their order.

    Args:
        rules: as in the settings.
        first_filter: number of the first rule's filter; the others follow.
        parent: the parent of a process, where it is certain.
        named: where network namespaces have their names.
    """

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        first_filter: int = 1,
        parent: Callable[[Process], Process | None] = lambda _process: None,
        named: Path = RUN,
    ) -> None:
        self._rules = rules
        self._parent = parent
        self._named = named
        filtering = [at for at, rule in enumerate(rules) if rule.filter]
        self._numbers = {at: first_filter + number for number, at in enumerate(filtering)}
        self.needs_process = any(rule.conditions & _FROM_PROC or rule.children for rule in rules)
        self.most = max((rule.snaplen or 0 for rule in rules), default=0)
        """The most bytes of a frame that a rule asks for; 0: none says so."""

    @property
    def filters(self) -> dict[int, str]:
        """The rules' packet filters by number."""
        return {number: self._rules[at].filter or "" for at, number in self._numbers.items()}

    def decide(self, subject: Subject) -> Verdict:
        """The verdict of the first rule that matches."""
        for at, rule in enumerate(self._rules):
            if self._matches(rule, subject):
                if rule.action == "drop":
                    return Verdict(keeps=False)
                dump = at + 1 if rule.action == "dump" else 0
                return Verdict(snaplen=rule.snaplen or 0, filter=self._numbers.get(at, 0), dump=dump)
        return Verdict()

    def _matches(self, rule: Rule, subject: Subject) -> bool:
        return (
            (rule.direction is None or rule.direction == subject.direction)
            and (rule.via is None or rule.via == subject.via)
            and _fits(rule.interface, subject.interface)
            and (rule.netns is None or is_called(rule.netns, subject.netns, self._named))
            and all(any(_is_of(rule, one) for one in self._people(rule, person)) for person in _meant(subject))
        )

    def _people(self, rule: Rule, person: Person) -> Iterator[Person]:
        """Those of whom the rule's conditions on a process may hold."""
        process = person.process
        yield person
        if rule.children:
            for _ in range(_ANCESTORS_MAX):
                process = process and self._parent(process)
                if process is None:
                    return
                yield Person(process.comm, process.tgid, process.tgid, process)


def _meant(subject: Subject) -> Sequence[Person]:
    """All for whom a rule has to hold."""
    return subject.group or (Person(subject.comm, subject.tid, subject.tgid, subject.process),)


def _is_of(rule: Rule, person: Person) -> bool:
    """Whether all that the rule says of a process holds for this one."""
    if not rule.conditions & _OF_PROCESS:
        return True
    if not person.tgid:
        return False
    if not (_fits(rule.comm, person.comm) and rule.pid in {None, person.tid} and rule.tgid in {None, person.tgid}):
        return False
    if not rule.conditions & _FROM_PROC:
        return True
    process = person.process
    if process is None:
        return False
    container = container_of(process.cgroup)
    return (
        rule.uid in {None, process.uid}
        and rule.gid in {None, process.gid}
        and _fits(rule.user, process.user)
        and _fits(rule.exe, process.exe)
        and _fits(rule.cmdline, process.cmdline.rstrip(b"\0").replace(b"\0", b" "))
        and _fits(rule.cgroup, process.cgroup)
        and _fits(rule.unit, unit_of(process.cgroup))
        and (_fits(rule.container, container) or _fits(rule.container, container[:12]))
    )


def _fits(pattern: re.Pattern[str] | None, text: bytes) -> bool:
    """Whether a text is one that the pattern means; an unknown one, which is empty, is not."""
    return pattern is None or (bool(text) and pattern.search(os.fsdecode(text)) is not None)


def filters_of(everything: str, rules: Sequence[Rule], first: int = 1) -> dict[int, str]:
    """All packet filters by number: 0, asked about every packet, if there is one; then those of the rules."""
    return ({0: everything} if everything else {}) | Rules(rules, first).filters


def doubts(rules: Iterable[Rule], devices: Iterable[str], units: Sequence[str] = _UNITS) -> Iterator[str]:
    """What rules name and this machine does not have (yet): users, units, devices. One line each.

    Args:
        rules: as in the settings.
        devices: names of the devices there are.
        units: directories with systemd's units.
    """
    names = list(devices)
    for number, rule in enumerate(rules, 1):
        if rule.user and not any(rule.user.search(entry.pw_name) for entry in pwd.getpwall()):
            yield f"rules[{number}].user: no such user is known on this machine"
        if rule.interface and not any(rule.interface.search(name) for name in names):
            yield f"rules[{number}].interface: no such device is there now"
        known = (path.name for directory in units for path in Path(directory).glob("*"))
        if rule.unit and not any(rule.unit.search(name) for name in known):
            yield f"rules[{number}].unit: systemd has no such unit now"
