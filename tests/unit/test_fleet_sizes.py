"""The computed section of docs/fleet.md is what tools/fleet_sizes.py computes."""

from __future__ import annotations

from pathlib import Path

import pytest

import skbcapd
from tools.fleet_sizes import day, digits, duration, section, size

PAGE = Path(skbcapd.__file__).parent.parent / "docs/fleet.md"


def test_the_page_has_the_computed_section() -> None:
    """No number there is written by hand."""
    assert section() in PAGE.read_text()


def test_a_day_is_the_sum_of_its_hosts() -> None:
    """Ten times the hosts, or ten times the captures, make ten times everything but the parts of an hour."""
    one, more, larger = day(100, 1), day(1_000, 1), day(100, 10)
    assert more == larger
    for name in ("captures", "files", "rows", "index_bytes", "table", "compaction_s", "sources"):
        assert getattr(more, name) == pytest.approx(10 * getattr(one, name))
    assert (day(1, 0.001).parts_of_hour, one.parts_of_hour) == (1, 1)
    assert one.captures == 1e11


def test_numbers_have_two_digits() -> None:
    """Sizes and durations are rounded to two digits, with the unit that fits."""
    assert [size(of) for of in (7, 1.25e6, 999e6, 1e12, 2.16e13)] == ["7 B", "1.2 MB", "1 GB", "1 TB", "22 TB"]
    assert [digits(of) for of in (0.07, 9, 930, 929_368)] == ["0.1", "9", "930", "930,000"]
    assert [duration(of) for of in (42, 7200)] == ["0.7 CPU minutes", "2 CPU hours"]
