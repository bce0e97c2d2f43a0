"""Escaping of untrusted text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.text_safety import escaped, escaped_bytes


@pytest.mark.fuzz
@given(st.text())
def test_hostile_text_is_escaped(text: str) -> None:
    """For any name, the result is one line of printable characters; printable characters are
    unchanged.
    """
    shown = escaped(text)
    assert shown.isprintable()
    assert escaped(shown) == shown
    if text.isprintable():
        assert shown == text


def test_escapes() -> None:
    """Terminal escapes, new lines, changes of direction and lone surrogates are escaped."""
    assert escaped("a\x1b[2J\nb\u202ec\udcff\xe9") == "a\\x1b[2J\\nb\\u202ec\\udcff\xe9"


@pytest.mark.fuzz
@given(st.binary(), st.binary())
def test_different_values_stay_different(first: bytes, second: bytes) -> None:
    """Bytes become printable ASCII, and different bytes different text."""
    assert escaped_bytes(first).isascii()
    assert escaped_bytes(first).isprintable()
    assert (escaped_bytes(first) == escaped_bytes(second)) == (first == second)


def test_bytes_are_spelled_out() -> None:
    """A backslash is doubled, each byte that is not printable ASCII becomes two digits."""
    assert escaped_bytes(b"a\\\x1b\xe9 ") == "a\\\\\\x1b\\xe9 "
