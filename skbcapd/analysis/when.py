"""Times on the command line: `--from` and `--to`.

In: a text, and the time now. Out: nanoseconds since 1970 UTC.

The rule not to break: a time without a zone is local time, as `date` shows it. A time of day
without a date is the last one that is not in the future; as the end of a span, the first one after
its beginning.

No library is used: datetime reads ISO 8601, but only microseconds, and the rest is one line each.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import NamedTuple

from skbcapd.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO = re.compile(r"([0-9]{1,9}) ?([smhdw]) ago")
_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?")
_FRACTION = re.compile(r"(?<=:[0-9]{2})[.,]([0-9]{1,9})")
_EPOCH = re.compile(r"@([0-9]{1,12})(?:\.([0-9]{1,9}))?")
_EXPECTED = "a date and time as in 2026-11-28T10:00, 2026-11-28T10:00:00.5Z or 2026-11-28; 10:00; 3h ago; or @SECONDS"


class Span(NamedTuple):
    """A span of time: from `begin_ns` on, and before `end_ns`; None: open."""

    begin_ns: int | None = None
    end_ns: int | None = None


def span(begin: str | None, end: str | None, now_ns: int) -> Span:
    """The span between two times.

    Args:
        begin: a text; None: open.
        end: the same.
        now_ns: nanoseconds since 1970 UTC.

    Raises:
        UsageError: a text is not a time, or the end is not after the begin.
    """
    begin_ns = None if begin is None else _time(begin, "--from", now_ns)
    end_ns = None if end is None else _time(end, "--to", now_ns, begin_ns)
    if begin_ns is not None and end_ns is not None and begin_ns >= end_ns:
        raise UsageError(f"--to {end} is not after --from {begin}; expected a later time")
    return Span(begin_ns, end_ns)


def _time(text: str, option: str, now_ns: int, begin_ns: int | None = None) -> int:
    if ago := _AGO.fullmatch(text):
        return now_ns - int(ago[1]) * _UNITS[ago[2]] * 10**9
    if epoch := _EPOCH.fullmatch(text):
        return int(epoch[1]) * 10**9 + int((epoch[2] or "").ljust(9, "0"))
    if clock := _CLOCK.fullmatch(text):
        return _clock(int(clock[1]), int(clock[2]), int(clock[3] or 0), now_ns, begin_ns)
    fraction = _FRACTION.search(text)
    try:
        found = datetime.fromisoformat(_FRACTION.sub("", text))
        seconds = int(found.astimezone().timestamp())
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{option} {text}: not a time; expected {_EXPECTED}") from None
    return seconds * 10**9 + (int(fraction[1].ljust(9, "0")) if fraction else 0)


def _clock(hour: int, minute: int, second: int, now_ns: int, begin_ns: int | None) -> int:
    """A time of day."""
    base = datetime.fromtimestamp((now_ns if begin_ns is None else begin_ns) // 10**9).astimezone()
    # Without a zone, so each day has its own difference to UTC.
    day = base.replace(tzinfo=None, hour=hour, minute=minute, second=second, microsecond=0)
    tries = range(-1, 2)
    found = [int((day + timedelta(days=days)).astimezone().timestamp()) * 10**9 for days in tries]
    if begin_ns is None:
        return max(time for time in found if time <= now_ns)
    return min(time for time in found if time > begin_ns)
