"""A dictionary with a maximum number of entries; all bounded caches use it.

In: entries. Out: at most so many; the oldest or least recently used entry is evicted first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Bounded(OrderedDict[Key, Value]):
    """A dictionary that evicts its first entry when it would have too many.

    Entries are in the order in which they were last set, or used by `use`.

    Args:
        most: maximum number of entries.
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
        """An entry, which becomes the last one to be evicted; None if there is none."""
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value
