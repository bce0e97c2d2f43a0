"""Interfaces above others, which need a tap of their own (kernel/taps.py): finds them while a capture runs.

In: the interfaces of the own network namespace, and the namespaces in which packets are captured. Out: taps.

The rule: the capture never waits for a list of interfaces, except at its start, for that of the own
namespace. Other namespaces are listed when a packet is captured on a new interface there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from skbcapd.attribution import sockets
from skbcapd.attribution.namespaces import RUN
from skbcapd.capture.interfaces import Interfaces
from skbcapd.kernel import links
from skbcapd.kernel.taps import Taps, Upper
from skbcapd.worker import TimedCall

START_S = 30.0
_LOOK_S = 5.0


class Above:
    """The interfaces above others of one capture.

    Args:
        taps: gets them.
        interfaces: of the capture.
        is_wanted: whether received packets are captured.
    """

    def __init__(self, taps: Taps, interfaces: Interfaces, *, is_wanted: bool) -> None:
        self._taps, self._interfaces, self._is_wanted = taps, interfaces, is_wanted
        self._own = links.OWN.stat().st_ino
        self._changes = links.Changes()
        self._lister: TimedCall[list[Upper]] = TimedCall("links", START_S)
        self._new: set[int] = set()  # namespaces to list
        self._there: set[int] | None = None  # those that were found
        self._next_look = 0.0

    def start(self) -> None:
        """List the interfaces of the own namespace, and load the program for them, if there are any. The hooks are not
        attached yet.
        """
        self._list(self._in_own, START_S)
        self._taps.load()

    def started(self) -> None:
        """The capture is attached: open the taps. Named namespaces are listed next."""
        self._taps.bind()
        self._list(self._in_named, 0)

    def fileno(self) -> int:
        """Readable when interfaces have changed; -1: there is no descriptor."""
        return self._changes.fileno()

    def tick(self, *, is_reloading: bool) -> bool:
        """Called when interfaces have changed, and each second while it returns that something goes on.

        Args:
            is_reloading: as for Taps.tick.
        """
        is_used = self._taps.is_used or self._lister.is_used or self._new or self._interfaces.entered
        if is_used or self._changes.are_there:
            self._go_on(is_reloading=is_reloading)
        return bool(self._taps.is_at_work or self._lister.is_used or self._new)

    def _go_on(self, *, is_reloading: bool) -> None:
        self._new |= self._taps.tick(is_reloading=is_reloading) | self._interfaces.entered
        self._new.discard(self._own)
        self._interfaces.entered.clear()
        is_waiting = self._lister.is_waiting
        if found := self._lister.late():
            self._taps.add(found)
        if is_waiting:
            return
        if self._there is not None:
            self._taps.keep(self._there | {self._own})
            self._there = None
        if self._changes.take():
            self._list(self._in_own, 0)
        elif self._new:
            new, self._new = self._new, set()
            self._list(lambda: self._in_new(new), 0)
        elif self._taps.is_elsewhere(self._own) and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_S
            self._list(self._look, 0)

    def close(self) -> None:
        """Release what this has opened; the taps stay."""
        self._changes.close()

    def _list(self, work: Callable[[], list[Upper]], timeout_s: float) -> None:
        if not self._is_wanted:
            return
        with contextlib.suppress(TimeoutError):  # `tick` gets the result
            self._taps.add(self._lister.call(work, timeout_s))
        self._lister.end_thread()  # this process may fork soon

    def _in_own(self) -> list[Upper]:
        return links.uppers([links.OWN], self._wants)

    def _in_named(self) -> list[Upper]:
        with contextlib.suppress(OSError):
            return links.uppers(sorted(RUN.iterdir()), self._wants)
        return []

    def _in_new(self, new: set[int]) -> list[Upper]:
        there = sockets.namespaces()
        return links.uppers([there[inode] for inode in new & there.keys()], self._wants)

    def _look(self) -> list[Upper]:
        """Look which namespaces there are; a tap must not keep one alive."""
        there = sockets.namespaces()
        if len(there) < sockets.NAMESPACES_MAX:
            self._there = {*there}
        return []

    def _wants(self, netns: int, ifindex: int, name: str) -> bool:
        return self._interfaces.wants(name, netns) and not self._taps.has(netns, ifindex)
