"""Finds names of hosts in a packet filter, looks each of them up once, and replaces them by
addresses.

In: an expression. Out: the same expression with addresses, `host db.example` as `host (192.0.2.7 or
2001:db8::7)`.

libpcap looks a name up each time it compiles an expression: once for each link type, and it waits
as long as the resolver does. So it runs in a process that reads only /etc/hosts (`only_files`), and
reports the names that it does not know.

The rule not to break: only libpcap decides which word is the name of a host. A word is a name if
libpcap reports an unknown host when another name is in its place.

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

from skbcapd.worker import start_thread

DEADLINE_S = 10.0  # for all names of a process together: as long as glibc waits for one name if the server is silent
_UNKNOWN = re.compile(r"unknown host '(.+?)'")
_PROBE = "skbcapd-probe.invalid"  # RFC 2606: this name is in no file
_PLACEHOLDERS = {4: "192.0.2.1", 6: "2001:db8::1"}  # RFC 5737, RFC 3849
_WORD = r"(?<![-_.A-Za-z0-9:\\])\\?{}(?![-_.A-Za-z0-9:])"

Complain = Callable[[str], str]
"""The error of libpcap for an expression; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a host name in an expression, and the versions of IP that its addresses can
    have there.
    """

    start: int
    end: int
    name: str
    versions: frozenset[int]


def only_files() -> None:
    """Make this process look names up in files only, permanently: no name server, no cache daemon."""
    configure_lookup = ctypes.CDLL(None)["__nss_configure_lookup"]
    for table in (b"hosts", b"networks"):
        configure_lookup(table, b"files")


def find(expression: str, complain: Complain) -> list[Place]:
    """The names that libpcap does not know, from left to right.

    Args:
        expression: as the user wrote it.
        complain: runs libpcap, in a process that has called `only_files`.
    """
    places: list[Place] = []
    text, shift = expression, 0  # text: the expression with names replaced so far; shift: how much longer it is
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
    """The position of the first unknown host; None if no address is allowed there (`gateway` needs
    a name).
    """
    for match in re.finditer(_WORD.format(re.escape(name)), text):
        start, end = match.span()
        unknown = _UNKNOWN.search(complain(text[:start] + _PROBE + text[end:]))
        if unknown is None or unknown[1] != _PROBE:
            continue  # a port or network with the same name
        said = {version: complain(text[:start] + one + text[end:]) for version, one in _PLACEHOLDERS.items()}
        taken = {version for version, words in said.items() if not words or _UNKNOWN.search(words)}
        if not taken and said[4] == said[6]:
            taken = {4, 6}  # other errors are reported later
        return Place(start, end, name, frozenset(taken)) if taken else None
    return None


def replace(expression: str, places: Iterable[Place], addresses: Mapping[str, Sequence[str]]) -> str:
    """Replace names by addresses.

    Args:
        expression: the argument of `find`.
        places: from `find`.
        addresses: addresses of each name.

    Raises:
        LookupError: a name has no address of an allowed version; the text is the message.
    """
    parts, done = [], 0
    for place in places:
        fitting = [one for one in addresses[place.name] if ipaddress.ip_address(one).version in place.versions]
        if not fitting:
            suffix = " for specified address family" if addresses[place.name] else ""
            raise LookupError(f"unknown host '{place.name}'{suffix}")
        before = expression[done : place.start]
        text = " or ".join(fitting)
        # In `(a or b)` the grammar allows no parentheses around the first one; `or` and `and` are
        # left-associative.
        parts += [before, text if before.rstrip().endswith("(") else f"({text})"]
        done = place.end
    return "".join([*parts, expression[done:]])


class Names:
    """Looks up names, each once, all with one deadline.

    Args:
        deadline_s: time limit for all calls together.
        ask: returns the addresses of a name, empty if there are none; can take any time.
    """

    def __init__(self, deadline_s: float = DEADLINE_S, ask: Callable[[str], list[str]] | None = None) -> None:
        self._deadline_s = self._left_s = deadline_s
        self._ask = ask or _addresses
        self._asked: set[str] = set()
        self._known: dict[str, list[str]] = {}
        self._changed = threading.Condition()

    def look_up(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The addresses of names, which are looked up in parallel.

        Raises:
            LookupError: some were not found in time; the text is the message.
        """
        wanted = set(names)
        for name in sorted(wanted - self._asked):
            self._asked.add(name)
            # A thread that waits for a name server cannot be ended; a daemon thread does not keep
            # the process alive.
            start_thread(self._learn, name)
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
    """The addresses of a name from the resolver, sorted: a name server can change their order."""
    try:
        found = socket.getaddrinfo(name.encode(), None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return []
    return sorted({str(address[0]).split("%")[0] for *_, address in found})
