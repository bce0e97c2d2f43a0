"""The kernel's types, with the answers of the last start.

In: the questions of a start, which are the same each time. Out: their answers, from the cache
(cache.py) if this BTF was asked before; otherwise, and for a new question, BTF is indexed, which
takes 0.1 s.

The rule: only answers are kept, never an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from skbcapd.kernel import btf
from skbcapd.kernel.btf import VMLINUX, Btf
from skbcapd.kernel.cache import Cache, digest

T = TypeVar("T", int, bool, "int | None", "list[int]", "list[str]", "list[tuple[int, str]]")


class KeptBtf(Btf):
    """The types of one kernel, as Btf; `keep` writes new answers to the cache.

    Args:
        blob: as for Btf. It is checked when it is indexed.
    """

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        self._cache = Cache(digest((blob, Path(btf.__file__).read_bytes(), Path(__file__).read_bytes())))
        body = self._cache.get()
        self._answers = {} if body is None else json.loads(body)
        self._is_indexed = self._is_new = False

    def bits(self, struct_name: str, field: str) -> tuple[int, int]:  # noqa: D102 - as Btf
        offset, width = self._ask(f"bits {struct_name} {field}", lambda: [*Btf.bits(self, struct_name, field)])
        return offset, width

    def has(self, struct_name: str, field: str) -> bool:  # noqa: D102
        return self._ask(f"has {struct_name} {field}", lambda: Btf.has(self, struct_name, field))

    def tracepoint(self, name: str) -> int | None:  # noqa: D102
        return self._ask(f"tracepoint {name}", lambda: Btf.tracepoint(self, name))

    def function(self, name: str) -> int | None:  # noqa: D102
        return self._ask(f"function {name}", lambda: Btf.function(self, name))

    def arguments(self, tracepoint: str) -> list[str]:  # noqa: D102
        return self._ask(f"arguments {tracepoint}", lambda: Btf.arguments(self, tracepoint))

    def enumerators(self, name: str) -> list[tuple[int, str]]:  # noqa: D102
        found = self._ask(f"enumerators {name}", lambda: Btf.enumerators(self, name))
        return [(value, text) for value, text in found]  # the cache has lists

    def enumerator(self, name: str) -> int | None:  # noqa: D102
        return self._ask(f"enumerator {name}", lambda: Btf.enumerator(self, name))

    def number(self, struct_name: str) -> int:  # noqa: D102
        return self._ask(f"number {struct_name}", lambda: Btf.number(self, struct_name))

    def size(self, struct_name: str) -> int:  # noqa: D102
        return self._ask(f"size {struct_name}", lambda: Btf.size(self, struct_name))

    def keep(self) -> None:
        """Write the answers to the cache, if there are new ones."""
        if self._is_new:
            self._cache.put(json.dumps(self._answers).encode())
            self._is_new = False

    def _ask(self, question: str, find: Callable[[], T]) -> T:
        if question not in self._answers:
            if not self._is_indexed:
                super().__init__(self._blob)
                self._is_indexed = True
            self._answers[question] = find()
            self._is_new = True
        answer: T = self._answers[question]
        return answer


def load(path: Path = VMLINUX) -> KeptBtf:
    """The BTF of the running kernel.

    Raises:
        BtfError: as Btf.load; if it is no BTF, at the first question.
    """
    return KeptBtf(btf.read(path))
