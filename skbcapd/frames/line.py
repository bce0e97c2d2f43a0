"""A packet as a line: time, process, interface, direction, and a summary of the frame.

In: a packet, live or from a file. Out: its line; with a dump, also lines that begin with a tab.

The rules not to break: bytes of a packet, of a file or of a process name reach the terminal only if they are printable,
and names are one word each. What is not known is `?`; a packet with neither process nor interface nor direction (of a
file of tcpdump) has no such words.
"""

from __future__ import annotations

import time

from skbcapd.frames import dump
from skbcapd.frames.headers import Headers
from skbcapd.frames.summary import Form, Summary
from skbcapd.pcapng.reader import Stamp
from skbcapd.text_safety import escaped_bytes

_NS = 10**9
_DIRECTIONS = {1: "in", 2: "out"}  # bits of epb_flags


class Lines:
    """Makes the lines of one run: they can have numbers, and times since the first one.

    Args:
        form: what is in them.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._summary = Summary(form)
        self._number = 0
        self._first_ns: int | None = None
        self._last_ns: int | None = None

    def line(self, time_ns: int, stamp: Stamp, interface: bytes, frame: bytes, link_type: int, wire_len: int) -> bytes:
        """The line of the next packet.

        Args:
            time_ns: nanoseconds since 1970 UTC.
            stamp: process and direction.
            interface: name; empty: not known.
            frame: the captured bytes.
            link_type: LINKTYPE_ value.
            wire_len: length of the complete frame.

        Returns:
            Printable ASCII, with a line break.
        """
        self._number += 1
        number = f"{self._number:5}  " if self._form.numbered else ""
        text, found = self._summary.of(frame, link_type, wire_len)
        more = f" {{{_more(stamp)}}}" if self._form.verbose and _more(stamp) else ""
        place = _place(stamp, interface)
        return f"{number}{self._clock(time_ns)}{place}{text}{more}{self._dump(frame, found)}\n".encode("ascii")

    def _clock(self, time_ns: int) -> str:
        """The time, and a space; nothing if it is not wanted."""
        form = self._form
        if self._first_ns is None or self._last_ns is None:
            self._first_ns = self._last_ns = time_ns
        since_ns = time_ns - (self._last_ns if form.clock == 3 else self._first_ns)
        self._last_ns = time_ns
        if form.clock == 1:
            return ""
        seconds, fraction = divmod(abs(since_ns) if form.clock in {3, 5} else time_ns, _NS)
        rest = f".{fraction // 10 ** (9 - form.digits):0{form.digits}} "
        if form.clock == 2:
            return f"{seconds}{rest}"
        if form.clock in {3, 5}:
            sign = "-" if since_ns < 0 else " "
            return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{rest}"
        try:
            here = time.localtime(seconds)
        except (OverflowError, ValueError, OSError):  # a file can have any time
            return f"@{seconds}{rest}"
        return time.strftime("%Y-%m-%d %H:%M:%S" if form.clock == 4 else "%H:%M:%S", here) + rest

    def _dump(self, frame: bytes, found: Headers) -> str:
        raw = frame if self._form.dump_link else frame[found.network :]
        match self._form.dump:
            case "hex":
                return dump.hexadecimal(raw, characters=False)
            case "both":
                return dump.hexadecimal(raw, characters=True)
            case "text":
                return dump.text(raw)
        return ""


def _place(stamp: Stamp, interface: bytes) -> str:
    """Process, interface and direction, why the packet was dropped, and a space; empty for a packet of a file that has
    none of them.
    """
    if not (stamp.tgid or stamp.name or stamp.via or stamp.direction or interface):
        return ""
    name = _word(interface) if interface else "?"
    why = "" if stamp.drop is None else f"drop={_word(stamp.drop)} "
    return f"{_who(stamp)} {name} {_DIRECTIONS.get(stamp.direction, '?')} {why}"


def _who(stamp: Stamp) -> str:
    """The process, and how it was found unless it was running: `nginx[7]/socket`, `?/forwarded`."""
    name = "?" if stamp.name is None else _word(stamp.name)
    tgid = "" if stamp.tgid is None else f"[{stamp.tgid}]"
    return f"{name}{tgid}" + ("" if stamp.via is None else f"/{_word(stamp.via)}")


def _more(stamp: Stamp) -> str:
    """The other fields of the comment that are in a stamp."""
    fields = [("unit", stamp.unit), *stamp.more, ("at", stamp.at)]
    fields = [("comm", stamp.comm), *fields] if stamp.process is not None else fields
    return " ".join(f"{key}={_word(value)}" for key, value in fields if value is not None)


def _word(text: bytes) -> str:
    """A name without spaces, so that it is one word of the line."""
    return escaped_bytes(text).replace(" ", "\\x20")
