"""A dictionary with a maximum number of entries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skbcapd.lru import Bounded


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 7))))
def test_the_least_used_is_forgotten(most: int, steps: list[tuple[bool, int]]) -> None:
    """After any sequence of operations, it has at most so many entries: those set or used last, in
    that order.
    """
    bounded: Bounded[int, str] = Bounded(most)
    expected: list[int] = []
    for is_set, key in steps:
        if is_set:
            bounded[key] = str(key)
        else:
            assert bounded.use(key) == (str(key) if key in expected else None)
        if is_set or key in expected:
            expected = [*(one for one in expected if one != key), key][-most:]
        assert list(bounded) == expected
