"""Patterns for untrusted texts."""

from __future__ import annotations

import contextlib
import time

import pytest

from skbcapd.config.pattern import TEXT_MAX, TextPattern

# Each of them backtracks for years in Python's re, with a text that almost matches.
EXPLODING = [
    (r"/^(\S+ ?)+$/", "a" * 36 + "\t\t"),
    (r"/(a+)+b/", "a" * 4096),
    (r"/(a|aa)+$/", "a" * 4000 + "b"),
    (r"/(?:a?){60}a{60}b/", "a" * 59),
    (r"/(.*)(.*)(.*)(.*)(.*)(.*)x$/", "x" * 4000 + "y"),
    (r"/(?=(a+)+b)a/", "a" * 4000),
    (r"/^(([a-z])+.)+[A-Z]([a-z])+$/", "a" * 4000),
    (r"/(a{1,100}){1,100}b/", "a" * 4000),
    (r"/^(?:(?:\w+)\s?)*!$/", "word " * 800),
]


@pytest.mark.parametrize(("pattern", "text"), EXPLODING)
def test_a_match_ends_when_its_time_is_over(pattern: str, text: str) -> None:
    """Any match ends: with a result, or when its time is over."""
    made = TextPattern(pattern)
    begin = time.thread_time()
    with contextlib.suppress(TimeoutError):
        assert not made.matches(text, 0.02)
    assert time.thread_time() - begin < 0.5  # on a slow machine, too


def test_some_do_take_too_long() -> None:
    """A match that exceeds its time limit raises an error."""
    with pytest.raises(TimeoutError):
        TextPattern(r"/(?=(a+)+b)a/").matches("a" * 4000, 0.005)


def test_globs_are_fast() -> None:
    """A glob with many stars does not backtrack."""
    begin = time.thread_time()
    assert not TextPattern("*a" * 200 + "b").matches("a" * TEXT_MAX, 0.02)
    assert time.thread_time() - begin < 0.5


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("ssh*", "sshd", True),
        ("ssh", "sshd", False),
        ("s?hd", "sshd", True),
        ("[rs]shd", "sshd", True),
        ("/^ssh/", "sshd", True),
        ("/^sh/", "sshd", False),
        ("/a.b/", "a\nb", True),
        ("/\\bx\\b/", "a x b", True),
        ("//", "//", True),  # too short for an expression
        ("a" * TEXT_MAX, "a" * (TEXT_MAX + 1), True),
    ],
)
def test_matches(pattern: str, text: str, *, matches: bool) -> None:
    """Globs match the complete text, expressions any part; at most TEXT_MAX characters are read."""
    assert TextPattern(pattern).matches(text, 1) == matches


@pytest.mark.parametrize("pattern", ["/(/", "/[a/", "/a{9999999999}/", "/*/"])
def test_invalid_expressions(pattern: str) -> None:
    """A wrong expression gives an error with the reason."""
    with pytest.raises(ValueError, match="bad regular expression"):
        TextPattern(pattern)


def test_patterns_are_compared_by_their_text() -> None:
    """Unchanged settings are equal."""
    assert TextPattern("/a/") == TextPattern("/a/") != TextPattern("a")
