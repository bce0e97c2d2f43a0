"""The process rules of the settings: which packets are kept, by process.

In: the process of a packet, its interface and direction. Out: a verdict: drop, or how many bytes to
keep of which packets. It is made once per label, in the upcall; the kernel program applies it to
all later packets of the label.

The rule not to break: the first rule of which all conditions are true decides, and a condition is
false if its value is not known. So `{user: root, action: drop}` does not drop packets of a process
that could not be looked up. For a packet of a group, a condition is true if it is true for all its
members. Packets wait for rules, and others choose the texts: all regular expressions of a decision
take at most DECIDE_S.

The exception is payload: a rule with `payload: none` that does not match also cuts the payload of packets
whose process is not known, and may be its own. Too little in the file is better than too much.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skbcapd.attribution.budget import Budget
from skbcapd.attribution.fields import FIELDS, Dropped, Value, needs_process
from skbcapd.attribution.namespaces import RUN, is_called
from skbcapd.attribution.processes import Process, User
from skbcapd.config.pattern import TextPattern
from skbcapd.config.settings import Payload, Rule
from skbcapd.text_safety import escaped

_LOG = logging.getLogger(__name__)
DECIDE_S = 0.05  # regular expressions of one decision; an ordinary match takes microseconds
DECIDE_BUSY_S = 0.001  # the same, if they have taken more than a tenth of the time
_MATCH_S = 0.02  # one regular expression
_ANCESTORS_MAX = 64
_SCAN_S = 0.5  # for the names of threads, in `rule_warnings`
_UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
# Programs whose threads have other names, with an example; also for programs that are not running.
_RENAMES: Mapping[str, str] = {
    **dict.fromkeys(("delv", "dig", "host", "mdig", "named", "nslookup", "nsupdate"), "isc-net-0000"),
    **dict.fromkeys(("firefox", "firefox-esr", "thunderbird"), "Socket Thread"),
    **dict.fromkeys(("chrome", "chromium"), "Chrome_ChildIOT"),
    "java": "http-nio-8080-e",
    "mysqld": "connection",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """The values of a packet that conditions of a rule can use.

    Args:
        interface: name of its interface.
        netns: inode number of its network namespace.
        direction: "out" or "in".
        via: how the process was found: "current" or a word of the comment.
        user: the thread; tgid 0 if it is not known.
        process: record of its process from /proc; None if it is not known, or was not read.
        group: all candidates if there are several; then user and process are not used.
        roots: process id of a candidate -> the process of a rule with `children` that it descends from.
        dropped: why the kernel dropped the packet; None: it was not dropped.
    """

    interface: bytes
    netns: int
    direction: str
    via: str
    user: User
    process: Process | None
    group: Sequence[tuple[User, Process | None]] = ()
    roots: Mapping[int, int] = field(default_factory=dict)
    dropped: Dropped | None = None

    @property
    def candidates(self) -> Sequence[tuple[User, Process | None]]:
        """The processes that the packet can belong to: all members of the group, otherwise its process."""
        return self.group or [(self.user, self.process)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the rules for all packets of a label.

    Args:
        keeps: whether packets are kept.
        snaplen: bytes kept of each frame; 0: the setting snaplen.
        payload: "all" or "none"; None: the setting payload.
        filter: number of the packet filter of the rule; 0: no filter.
        dump: number (from 1) of a rule with `action: dump`; 0: none.
        dump_after_s: seconds for which the dump continues.
        is_unattributed: dropped by a rule for all other packets, although another rule asks for its process, which is
            not known for certain.
    """

    keeps: bool = True
    snaplen: int = 0
    payload: Payload | None = None
    filter: int = 0
    dump: int = 0
    dump_after_s: int = 0
    is_unattributed: bool = False


class Rules:
    """Evaluates the rules in their order.

    Args:
        rules: from the settings.
        first_filter: number of the filter of the first rule; the others follow.
        parent: returns the parent of a process; None if it is not certain.
        named: directory with the names of network namespaces.
        clock: seconds.
    """

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        first_filter: int = 1,
        parent: Callable[[Process], Process | None] = lambda _process: None,
        named: Path = RUN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._budget = Budget(DECIDE_S, clock)
        self._left_s = 0.0  # remaining time for regular expressions in this decision
        self._slow: set[str] = set()  # conditions that took too long; each is logged once
        self._parent = parent
        self._named = named
        filtering = [at for at, rule in enumerate(rules) if rule.filter]
        self._numbers = {at: first_filter + number for number, at in enumerate(filtering)}
        self._needs_record = any(needs_process(rule.fields) for rule in rules)
        self.needs_process = self._needs_record or any(rule.children for rule in rules)
        self.roots = frozenset(
            tgid for rule in rules if rule.children and isinstance(tgid := rule.fields.get("tgid"), int)
        )
        """The processes whose descendants the rules ask for."""
        self.most = max((rule.snaplen or 0 for rule in rules), default=0)
        """The largest snaplen of a rule; 0: no rule has one."""
        self.keeps_payload = any(rule.payload == "all" for rule in rules)
        """Whether a rule keeps payload, whatever the setting payload is."""
        self.is_empty = not rules
        """Whether there are no rules; then every packet is kept."""

    @property
    def filters(self) -> dict[int, str]:
        """The packet filters of the rules, by number."""
        return {number: self._rules[at].filter or "" for at, number in self._numbers.items()}

    def decide(self, subject: Subject) -> Verdict:
        """The verdict of the first rule that matches."""
        self._left_s = DECIDE_BUSY_S if self._budget.is_spent else DECIDE_S
        payload: Payload | None = None
        asks = False  # whether another rule was about its process
        for at, rule in enumerate(self._rules):
            if not self._is_there(at, rule, subject):
                continue
            if not rule.of_process or all(self._is_meant(at, rule, *one, subject.roots) for one in subject.candidates):
                if rule.action == "drop":
                    return Verdict(
                        keeps=False, is_unattributed=asks and not (rule.conditions or self._is_known(subject))
                    )
                dump = at + 1 if rule.action == "dump" else 0
                return Verdict(
                    snaplen=rule.snaplen or 0,
                    payload=payload or rule.payload,
                    filter=self._numbers.get(at, 0),
                    dump=dump,
                    dump_after_s=rule.dump_after or 0,
                )
            asks = True
            if rule.payload == "none" and self._may_match(at, rule, subject):
                payload = "none"
        return Verdict(payload=payload)

    def _is_known(self, subject: Subject) -> bool:
        """Whether all values of the process that conditions can ask for are known."""
        has_record = subject.process is not None or not self._needs_record
        return bool(subject.user.tgid) and not subject.group and has_record

    def _is_there(self, at: int, rule: Rule, subject: Subject) -> bool:
        """Whether all conditions that are not about the process are true."""
        return (
            (rule.direction is None or rule.direction == subject.direction)
            and (rule.via is None or rule.via == subject.via)
            and (
                rule.interface is None or self._fits(rule.place(at + 1, "interface"), rule.interface, subject.interface)
            )
            and (rule.netns is None or is_called(rule.netns, subject.netns, self._named))
            and self._is_dropped(at, rule, subject.dropped)
        )

    def _is_dropped(self, at: int, rule: Rule, dropped: Dropped | None) -> bool:
        """Whether all conditions on the drop of a packet are true."""
        return all(
            self._is_same(rule.place(at + 1, key), wanted, FIELDS[key].of_dropped(dropped))
            for key, wanted in rule.of_drop.items()
        )

    def _may_match(self, at: int, rule: Rule, subject: Subject) -> bool:
        """Whether the packet may belong to a process of the rule: one of a group, or one that is not known.

        Until a connection is accepted, its packets can have no known process. A forwarded packet can be on
        its way to a process, such as one in a container.
        """
        return subject.via != "kernel" and any(
            self._may_be_meant(at, rule, *one, subject.roots) for one in subject.candidates
        )

    def _may_be_meant(self, at: int, rule: Rule, user: User, process: Process | None, roots: Mapping[int, int]) -> bool:
        """Whether all conditions on a process are true, but for those whose values are not known because
        the process, or its record from /proc, is not known.
        """
        if process is not None or (user.tgid and not needs_process(rule.fields) and not rule.children):
            return self._is_meant(at, rule, user, process, roots)
        known = {} if rule.children or not user.tgid else rule.of_process
        return all(
            FIELDS[key].of_process is not None or self._holds(rule.place(at + 1, key), key, wanted, user, None)
            for key, wanted in known.items()
        )

    def _is_meant(self, at: int, rule: Rule, user: User, process: Process | None, roots: Mapping[int, int]) -> bool:
        """Whether all conditions on a process are true for this process, or (with `children`) for
        an ancestor.
        """
        return any(self._is_of(at, rule, *person) for person in self._people(rule, user, process, roots))

    def _people(
        self, rule: Rule, user: User, process: Process | None, roots: Mapping[int, int]
    ) -> Iterator[tuple[User, Process | None]]:
        """The processes that the conditions are evaluated for."""
        yield user, process
        if rule.children:
            if root := roots.get(user.tgid):  # also if the processes between them have ended
                yield User(root, root, 0, b"", b""), None
            for _ in range(_ANCESTORS_MAX):
                process = process and self._parent(process)
                if process is None:
                    return
                yield User(process.tgid, process.tgid, process.start, process.comm, process.comm), process

    def _is_of(self, at: int, rule: Rule, user: User, process: Process | None) -> bool:
        """Whether all conditions on a process are true for this one."""
        return bool(user.tgid) and all(
            self._holds(rule.place(at + 1, key), key, wanted, user, process) for key, wanted in rule.of_process.items()
        )

    def _holds(self, name: str, key: str, wanted: TextPattern | int, user: User, process: Process | None) -> bool:
        """Whether a condition is true; it is false if the value is not known."""
        field = FIELDS[key]
        others = field.also(process) if process is not None else ()
        return self._is_same(name, wanted, field.value(user, process), others)

    def _is_same(self, name: str, wanted: TextPattern | int, value: Value, others: Iterable[bytes] = ()) -> bool:
        """Whether a value, or one of the other texts for it, is the wanted one; false if it is not known."""
        if isinstance(wanted, int):
            return value == wanted
        return any(isinstance(text, bytes) and self._fits(name, wanted, text) for text in (value, *others))

    def _fits(self, name: str, pattern: TextPattern, text: bytes) -> bool:
        """Whether a text matches; an unknown text, which is empty, does not."""
        if not text:
            return False
        if not pattern.is_expression:
            return pattern.matches(os.fsdecode(text), _MATCH_S)
        begin = self._clock()
        try:
            if self._left_s <= 0:
                raise TimeoutError  # noqa: TRY301  as one that runs out
            with self._budget.spending():
                return pattern.matches(os.fsdecode(text), min(self._left_s, _MATCH_S))
        except TimeoutError:
            if name not in self._slow:
                self._slow.add(name)
                _LOG.warning(
                    "%s: the regular expression %s takes too long (more than 20 ms, or less if that happens often); "
                    "the condition is false for this process",
                    name,
                    pattern.text,
                )
            return False
        finally:
            self._left_s -= self._clock() - begin


def filters_of(everything: str, rules: Sequence[Rule], first: int = 1) -> dict[int, str]:
    """All packet filters by number: 0 is the setting `filter`, if there is one; then those of the
    rules.
    """
    return ({0: everything} if everything else {}) | Rules(rules, first).filters


def rule_warnings(
    rules: Iterable[Rule], interfaces: Iterable[str], units: Sequence[str] = _UNITS, proc: Path = Path("/proc")
) -> Iterator[str]:
    """Warnings about rules: names that do not exist on this machine, or that need another key. One
    line each.

    Args:
        rules: from the settings.
        interfaces: names of existing interfaces.
        units: directories with units of systemd.
        proc: directory of procfs.
    """
    names = list(interfaces)
    threads: Mapping[str, Sequence[str]] | None = None
    for number, rule in enumerate(rules, 1):
        user, unit, comm = (rule.fields.get(key) for key in ("user", "unit", "comm"))
        if _is_unknown(user, [entry.pw_name for entry in pwd.getpwall()]):
            yield f"{rule.place(number, 'user')}: no such user is known on this machine"
        if _is_unknown(rule.interface, names):
            yield f"{rule.place(number, 'interface')}: there is no such interface now"
        if _is_unknown(unit, [path.name for directory in units for path in Path(directory).glob("*")]):
            yield f"{rule.place(number, 'unit')}: systemd has no such unit now"
        if isinstance(comm, TextPattern) and "process" not in rule.fields:
            threads = _threads(proc) if threads is None else threads
            for name, others in threads.items():
                other = next((one for one in others if not _means(comm, one)), "")
                if other and _means(comm, name):
                    yield (
                        f"{rule.place(number, 'comm')}: {name} gives its threads other names, such as {other}; "
                        f"{'--process' if rule.is_option else 'the key process'} means all threads of {name}"
                    )
                    break


def _is_unknown(pattern: TextPattern | int | None, names: Iterable[str]) -> bool:
    """Whether a pattern matches none of the names."""
    return isinstance(pattern, TextPattern) and not any(_means(pattern, name) for name in names)


def _means(pattern: TextPattern, name: str) -> bool:
    try:
        return pattern.matches(name, _MATCH_S)
    except TimeoutError:
        return False


def _threads(proc: Path) -> dict[str, list[str]]:
    """Names of processes and different names of their threads, as many as can be read in time."""
    found = {name: [example] for name, example in _RENAMES.items()}
    end = time.monotonic() + _SCAN_S
    with contextlib.suppress(OSError):
        for process in proc.iterdir():
            if time.monotonic() > end:
                break
            if process.name.isdecimal():
                with contextlib.suppress(OSError):  # the process has ended
                    name = _comm(process)
                    others = {_comm(thread) for thread in (process / "task").iterdir()} - {name}
                    if others:
                        found.setdefault(name, []).extend(sorted(others))
    return found


def _comm(directory: Path) -> str:
    """The name of a thread, escaped."""
    with (directory / "comm").open("rb") as file:
        name = os.fsdecode(file.read(64).removesuffix(b"\n"))
    return escaped(name)
