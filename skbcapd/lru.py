"""A dictionary with a bound: what is bounded in memory is bounded here.

In: entries. Out: at most so many of them, the oldest or the least used forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Bounded(OrderedDict[Key, Value]):
    """A dictionary that forgets its first entry where it would have too many.

    Entries stand in the order in which they were last set, or used by `use`.

    Args:
        most: entries.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.most:
            self.popitem(last=False)

    def use(self, key: Key) -> Value | None:
        """An entry, which is the last to be forgotten from now on; None where there is none."""
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value
