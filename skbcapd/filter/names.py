"""Names of hosts in a packet filter: found, looked up once each, and replaced by their addresses.

In: an expression. Out: the same expression with addresses, `host db.example` as `host (192.0.2.7 or 2001:db8::7)`.

libpcap looks a name up whenever it compiles it: once for each link type, and it waits as long as the system's resolver
does. So it is asked in a process where only /etc/hosts is known (`only_files`), and says which names it lacks.

The rule not to break: which word is a host's name is libpcap's to say, never ours. A word is a name where libpcap,
given another one in its place, says that it does not know that one.

Source: gen_scode in gencode.c of libpcap 1.10; `__nss_configure_lookup` in nss/nsswitch.c of glibc.
"""

from __future__ import annotations

import ctypes
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

DEADLINE_S = 10.0  # for all names of a process together: as long as glibc waits for one whose server is silent
_UNKNOWN = re.compile(r"unknown host '(.+?)'")
_PROBE = "skbcapd-probe.invalid"  # RFC 2606: no such name is in any file
_PLACEHOLDERS = {4: "192.0.2.1", 6: "2001:db8::1"}  # RFC 5737, RFC 3849
_WORD = r"(?<![-_.A-Za-z0-9:\\])\\?{}(?![-_.A-Za-z0-9:])"

Complain = Callable[[str], str]
"""What libpcap says against an expression, empty if nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a host's name stands in an expression, and of which versions of IP its addresses may be there."""

    start: int
    end: int
    name: str
    versions: frozenset[int]


def only_files() -> None:
    """Have this process look names up in files alone, for good: no name server, no cache daemon.

    Source: `__nss_configure_lookup`, which nss.h declares for this.
    """
    configure_lookup = ctypes.CDLL(None)["__nss_configure_lookup"]
    for table in (b"hosts", b"networks"):
        configure_lookup(table, b"files")


def find(expression: str, complain: Complain) -> list[Place]:
    """The names that libpcap lacks, from left to right.

    Args:
        expression: as the user has it.
        complain: libpcap, in a process that has called `only_files`.
    """
    places: list[Place] = []
    text, shift = expression, 0  # text: what was found stands replaced in it; shift: by how much it is longer there
    while found := _UNKNOWN.search(complain(text)):
        place = _place(text, found[1], complain)
        if place is None:
            break
        places.append(Place(place.start - shift, place.end - shift, place.name, place.versions))
        placeholder = _PLACEHOLDERS[min(place.versions)]
        text = text[: place.start] + placeholder + text[place.end :]
        shift += len(placeholder) - (place.end - place.start)
    return places


def _place(text: str, name: str, complain: Complain) -> Place | None:
    """Where the first unknown host stands; None where no address may stand (`gateway` wants a name)."""
    for match in re.finditer(_WORD.format(re.escape(name)), text):
        start, end = match.span()
        told = _UNKNOWN.search(complain(text[:start] + _PROBE + text[end:]))
        if told is None or told[1] != _PROBE:
            continue  # a port, a network or the like of the same name
        said = {version: complain(text[:start] + one + text[end:]) for version, one in _PLACEHOLDERS.items()}
        taken = {version for version, words in said.items() if not words or _UNKNOWN.search(words)}
        if not taken and said[4] == said[6]:
            taken = {4, 6}  # what is wrong comes later
        return Place(start, end, name, frozenset(taken)) if taken else None
    return None


def replace(expression: str, places: Iterable[Place], addresses: Mapping[str, Sequence[str]]) -> str:
    """The expression with addresses instead of names.

    Args:
        expression: as given to `find`.
        places: from `find`.
        addresses: of each name.

    Raises:
        LookupError: a name has no address of a version that may stand in its place; its text is for people.
    """
    parts, done = [], 0
    for place in places:
        fitting = [one for one in addresses[place.name] if ipaddress.ip_address(one).version in place.versions]
        if not fitting:
            suffix = " for specified address family" if addresses[place.name] else ""
            raise LookupError(f"unknown host '{place.name}'{suffix}")
        before = expression[done : place.start]
        text = " or ".join(fitting)
        # In `(a or b)` the grammar wants no parentheses around the first one; `or` and `and` go from left to right.
        parts += [before, text if before.rstrip().endswith("(") else f"({text})"]
        done = place.end
    return "".join([*parts, expression[done:]])


class Names:
    """What names mean: each is asked for once, and all of them have one deadline.

    Args:
        deadline_s: to wait for, over all calls.
        ask: a name's addresses; empty if it has none. May take as long as it likes.
    """

    def __init__(self, deadline_s: float = DEADLINE_S, ask: Callable[[str], list[str]] | None = None) -> None:
        self._deadline_s = self._left_s = deadline_s
        self._ask = ask or _addresses
        self._asked: set[str] = set()
        self._known: dict[str, list[str]] = {}
        self._changed = threading.Condition()

    def look_up(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The addresses of names, all asked for at once.

        Raises:
            LookupError: some have not been answered in time; its text is for people.
        """
        wanted = set(names)
        for name in sorted(wanted - self._asked):
            self._asked.add(name)
            # A thread that waits for a name server cannot be ended; as a daemon it does not keep the process.
            threading.Thread(target=self._learn, args=(name,), daemon=True).start()
        start = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: wanted <= self._known.keys(), self._left_s)
            known = {name: self._known[name] for name in wanted & self._known.keys()}
        self._left_s = max(0.0, self._left_s - (time.monotonic() - start))
        if missing := sorted(wanted - known.keys()):
            raise LookupError(
                f"unknown host {', '.join(map(repr, missing))}: no name server answered in {self._deadline_s:g} s; "
                "expected an address, or a name in /etc/hosts"
            )
        return known

    def _learn(self, name: str) -> None:
        found = self._ask(name)
        with self._changed:
            self._known[name] = found
            self._changed.notify_all()


def _addresses(name: str) -> list[str]:
    """A name's addresses as the system knows them, in an order of their own: a name server may turn its own."""
    try:
        found = socket.getaddrinfo(name.encode(), None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return []
    return sorted({str(address[0]).split("%")[0] for *_, address in found})
