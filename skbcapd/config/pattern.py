"""Patterns for text that others choose: globs, and regular expressions with a time limit.

In: a pattern from the settings, and texts: names, paths, command lines. Out: whether it matches.

The rule not to break: a text can make a backtracking expression take very long. So regular
expressions use the module `regex`, which has a time limit, and texts are cut to TEXT_MAX. A glob
backtracks at most as far as its own length: `re` is sufficient.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

# characters of a text that are matched: the maximum length of a path, and of a command line that is
# read
TEXT_MAX = 4096


@dataclass(frozen=True, slots=True)
class TextPattern:
    """A pattern.

    Args:
        text: a glob, which matches the complete text, or a regular expression between slashes,
            which matches any part.

    Raises:
        ValueError: the regular expression is wrong; the message has the reason.
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
                warnings.simplefilter("ignore")  # about syntax that can change in a later Python
                re.compile(self.text[1:-1], re.DOTALL)  # the syntax of `re` is the documented one
                return regex.compile(self.text[1:-1], regex.DOTALL)
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise ValueError(f"bad regular expression: {error}") from None

    @property
    def is_expression(self) -> bool:
        """Whether it is a regular expression."""
        return len(self.text) > 2 and self.text[0] == self.text[-1] == "/"

    def matches(self, text: str, seconds: float) -> bool:
        """Whether it matches the first TEXT_MAX characters of a text.

        Args:
            text: any text.
            seconds: time limit of a regular expression.

        Raises:
            TimeoutError: it takes longer.
        """
        text = text[:TEXT_MAX]
        if self.is_expression:
            return self._compiled.search(text, timeout=seconds) is not None
        return self._compiled.search(text) is not None
