"""Patterns for text that others choose: globs, and regular expressions with a time limit.

In: a pattern from the settings, then texts: names, paths, command lines. Out: whether it matches.

The rule not to break: whoever chooses the text decides how long a backtracking expression takes. So
`regex` matches regular expressions, which stops a match that takes too long, and no text is longer
than TEXT_MAX. A glob backtracks at most as far as its own length: `re` is sufficient.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

TEXT_MAX = 4096  # characters of a text that are looked at: as long as a path may be, and as much as is read of any


@dataclass(frozen=True, slots=True)
class TextPattern:
    """A pattern.

    Args:
        text: a glob, which matches the whole, or a regular expression between slashes, which matches any part.

    Raises:
        ValueError: a regular expression that is none; the message says why.
    """

    text: str
    _compiled: Any = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", self._compile())

    def _compile(self) -> Any:
        if not self.is_expression:
            return re.compile(r"\A" + fnmatch.translate(self.text))
        import regex  # noqa: PLC0415  most settings have no regular expression

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what may mean something else in a later Python
                re.compile(self.text[1:-1], re.DOTALL)  # its grammar is the one that people know
                return regex.compile(self.text[1:-1], regex.DOTALL)
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise ValueError(f"bad regular expression: {error}") from None

    @property
    def is_expression(self) -> bool:
        """Whether it is a regular expression."""
        return len(self.text) > 2 and self.text[0] == self.text[-1] == "/"

    def matches(self, text: str, seconds: float) -> bool:
        """Whether it matches a text, of which TEXT_MAX characters are looked at.

        Args:
            text: any text.
            seconds: how long a regular expression may take.

        Raises:
            TimeoutError: it takes longer.
        """
        text = text[:TEXT_MAX]
        if self.is_expression:
            return self._compiled.search(text, timeout=seconds) is not None
        return self._compiled.search(text) is not None
