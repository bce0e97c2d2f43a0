"""Times on the command line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from skbcapd.analysis.when import Span, span
from skbcapd.errors import UsageError

NOW = datetime(2026, 11, 28, 9, 30, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A zone one hour ahead of UTC in winter, by a rule that needs no file."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def ns(text: str) -> int:
    """A time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-28T08:00", ns("2026-11-28T07:00")),
        ("2026-11-28 08:00:07", ns("2026-11-28T07:00:07")),
        ("2026-11-28", ns("2026-11-27T23:00")),
        ("2026-07-28T08:00", ns("2026-07-28T06:00")),
        ("2026-11-28T08:00:00Z", ns("2026-11-28T08:00")),
        ("2026-11-28T08:00:00+05:30", ns("2026-11-28T02:30")),
        ("2026-11-28T08:00:00.123456789Z", ns("2026-11-28T08:00") + 123456789),
        ("2026-11-28T08:00:00.5", ns("2026-11-28T07:00") + 500_000_000),
        ("10:30", ns("2026-11-28T09:30")),
        ("10:31", ns("2026-11-27T09:31")),
        ("9:00:07", ns("2026-11-28T08:00:07")),
        ("3h ago", NOW_NS - 3 * 3600 * 10**9),
        ("90s ago", NOW_NS - 90 * 10**9),
        ("5 m ago", NOW_NS - 300 * 10**9),
        ("2d ago", ns("2026-11-26T09:30")),
        ("1w ago", ns("2026-11-21T09:30")),
        ("@1622469600.123456789", 1622469600_123456789),
        ("@7", 7 * 10**9),
    ],
)
def test_a_time(text: str, expected: int) -> None:
    """Each form, as a begin and as an end."""
    assert span(text, None, NOW_NS) == Span(expected, None)
    assert span(None, text, NOW_NS) == Span(None, expected)


def test_a_time_of_day_ends_a_span_that_has_begun() -> None:
    """From 23:00 to 1:00 is two hours of the last night; from 8:00 to 12:00 is today, even before
    12:00.
    """
    assert span("23:00", "1:00", NOW_NS) == Span(ns("2026-11-27T22:00"), ns("2026-11-28T00:00"))
    assert span("8:00", "12:00", NOW_NS) == Span(ns("2026-11-28T07:00"), ns("2026-11-28T11:00"))
    assert span("2026-11-01T20:00", "21:00", NOW_NS) == Span(ns("2026-11-01T19:00"), ns("2026-11-01T20:00"))


def test_the_night_of_a_change_of_the_clock() -> None:
    """A time of day uses the zone of its own day."""
    after_ns = ns("2026-10-25T12:00")
    assert span("1:00", "4:00", after_ns) == Span(ns("2026-10-24T23:00"), ns("2026-10-25T03:00"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "25:00",
        "10:60",
        "3h",
        "3x ago",
        "-3h ago",
        "@",
        "@-1",
        "2026-13-01",
        "0001-01-01",
        "9" * 10 + "d ago",
    ],
)
def test_invalid_times(text: str) -> None:
    """An invalid time gives the option and what was expected."""
    for begin, end, option in ((text, None, "--from"), (None, text, "--to")):
        with pytest.raises(UsageError, match=f"^{option} .*: not a time; expected a date and time") as raised:
            span(begin, end, NOW_NS)
        assert raised.value.exit_code == 2


def test_the_end_is_after_the_begin() -> None:
    """An empty span is an error."""
    with pytest.raises(UsageError, match="--to 3h ago is not after --from 2h ago; expected a later time"):
        span("2h ago", "3h ago", NOW_NS)
    with pytest.raises(UsageError, match="is not after"):
        span("@7", "@7", NOW_NS)
