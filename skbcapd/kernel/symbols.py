"""Names of the kernel's functions, by the address of an instruction.

In: /proc/kallsyms and /proc/modules. Out: the name of the function that an address is in.

The rule: a name is right, or it is empty. The functions of the kernel itself never move. Those of modules
do, so their names are valid only while the loaded modules are the same as when the table was read.

Source: kernel/kallsyms.c (s_show), kernel/module/procfs.c (m_show).
"""

from __future__ import annotations

import bisect
import re
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from skbcapd.attribution.budget import Budget
from skbcapd.lru import Bounded

AHEAD_S = 0.5  # for reading the table again; packets wait meanwhile
KNOWN_MAX = 4096  # addresses
_MODULES_S = 1.0  # the list of modules is read at most so often
_TEXT = re.compile(rb"^([0-9a-f]{8,16}) [tTwW] ([^\s\[]+)(?:\t\[(\w+)\])?\n", re.MULTILINE)
_NO_MODULES = {b"bpf", b"__builtin__ftrace", b"__builtin__kprobes"}  # they come and go, and drop no packets
_NOWHERE = 1 << 64
_END = b"_etext"  # of the kernel itself
_OF_MODULE = b"\t["  # behind each name of a module; these come after all others


class Table:
    """Functions by address.

    Args:
        text: lines of /proc/kallsyms.
    """

    def __init__(self, text: bytes) -> None:
        found: dict[int, bytes] = {}
        for address, name, module in _TEXT.findall(text):
            if module not in _NO_MODULES:
                found.setdefault(int(address, 16), name)  # the first of several names
        found.pop(0, None)
        self._addresses = array("Q", sorted(found))
        self._names = [found[address] for address in self._addresses]

    @property
    def start(self) -> int:
        """The first address; none is above it if the table is empty."""
        return self._addresses[0] if self._addresses else _NOWHERE

    def name(self, at: int) -> bytes:
        """The name of the last function that begins at or before an address; empty if there is none."""
        place = bisect.bisect_right(self._addresses, at)
        return self._names[place - 1] if place else b""

    def address(self, name: bytes) -> int:
        """Where a function begins; 0: nowhere."""
        return self._addresses[self._names.index(name)] if name in self._names else 0


class Symbols:
    """The functions of the running kernel.

    Args:
        kallsyms: the table; addresses of 0 if this process may not see them.
        modules: the loaded modules.
        clock: seconds.
    """

    def __init__(
        self,
        kallsyms: Path = Path("/proc/kallsyms"),
        modules: Path = Path("/proc/modules"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kallsyms, self._modules, self._clock = kallsyms, modules, clock
        self._budget = Budget(AHEAD_S, clock)
        self._known: Bounded[int, bytes] = Bounded(KNOWN_MAX)
        self._core_end = 0
        self._core = self._of_modules = Table(b"")
        self._loaded: list[bytes] = []
        self._modules_at: list[tuple[int, int]] = []  # start and end of each
        self._checked = clock()
        self._read()  # not limited: no packet waits yet

    def function(self, address: int) -> bytes:
        """The name of the function whose call returns to an address, without a suffix of the compiler; empty if it
        is not known.
        """
        at = address - 1  # the call may be the last instruction
        if at < self._core.start or not self._is_certain(at):
            return b""
        found = self._known.use(at)
        if found is None:
            table = self._core if at < self._core_end else self._of_modules
            found = self._known[at] = table.name(at).partition(b".")[0]
        return found

    def _is_certain(self, at: int) -> bool:
        """Whether the table is right for an address: in the kernel itself always, in a module if the modules are those
        of the table.
        """
        if at < self._core_end:
            return True
        now = self._clock()
        if now - self._checked >= _MODULES_S:
            self._checked = now
            if self._list_modules() != self._loaded:
                self._loaded = []
                if not self._budget.is_spent:
                    with self._budget.spending():
                        self._read()
        return bool(self._loaded) and any(start <= at < end for start, end in self._modules_at)

    def _read(self) -> None:
        """Read the table, with the list of modules before and after it. The part of the kernel itself, which is first,
        is parsed once only.
        """
        before = self._list_modules()
        try:
            text = self._kallsyms.read_bytes()
        except OSError:
            text = b""
        core, mark, _ = text.partition(_OF_MODULE)
        modules_at = core.rfind(b"\n") + 1 if mark else len(text)
        self._known.clear()
        if not self._core_end:
            self._core = Table(text[:modules_at])
            self._core_end = self._core.address(_END)
        self._of_modules = Table(text[modules_at:])
        self._loaded = before if self._list_modules() == before else []
        self._modules_at = [_range(line) for line in self._loaded]

    def _list_modules(self) -> list[bytes]:
        """Name, size, and address of each loaded module."""
        try:
            lines = self._modules.read_bytes().splitlines()
        except OSError:
            return []
        words = [line.split() for line in lines]
        return [b" ".join((word[0], word[1], word[5])) for word in words if len(word) >= 6]


def _range(line: bytes) -> tuple[int, int]:
    """Start and end of a module in memory. Other parts of it than its code can be elsewhere."""
    _, size, address = line.split()
    return int(address, 16), int(address, 16) + int(size)
