"""Taps: the kernel program as the filter of packet sockets, one on each interface above another one.

In: interfaces, each with a packet socket in its network namespace. Out: what arrives on them is captured.

The kernel gives a received frame to a VLAN, bond, team, macvlan or ipvlan interface in "another round"
within __netif_receive_skb_core, which passes neither its kprobe nor its tracepoint again. What it does
pass are packet sockets, as those of tcpdump. Their filter is the program, which rejects each packet:
the socket itself gets nothing.

The rules: without such an interface nothing is compiled, loaded or opened. A socket gets its filter
before it is bound. The program is loaded with the present packet filters, or it is loaded again.

Source: packet_rcv and run_filter in net/packet/af_packet.c; packet(7).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from skbcapd.child import is_readable
from skbcapd.errors import KernelError
from skbcapd.filter import packet_filter
from skbcapd.kernel import loader
from skbcapd.kernel.loader import STAGES_IN, TAP_STAGES, Loader
from skbcapd.kernel.packet_socket import PacketSocket, close_all, close_later

_LOG = logging.getLogger(__name__)
TAPS_MAX = 1024
_GONE = {errno.ENODEV, errno.ENXIO}


class Upper(NamedTuple):
    """An interface above another one.

    Args:
        netns: inode number of its network namespace.
        ifindex: its number there.
        name: its name.
        socket: a packet socket of that namespace, which is not bound yet; or why there is none.
    """

    netns: int
    ifindex: int
    name: str
    socket: PacketSocket | str


class _Tap(NamedTuple):
    name: str
    socket: PacketSocket


class Taps:
    """The sockets and the program of one capture.

    Args:
        maps: maps of the running program, name -> descriptor.
        definitions: definitions of its text.
        filters: as for `compiler.source`.
    """

    def __init__(self, maps: Mapping[str, int], definitions: Mapping[str, int | str], filters: str) -> None:
        self._maps, self._definitions, self._filters = maps, definitions, filters
        self._child: Loader | None = None
        self._loaded: tuple[int, int] | None = None  # map of its tail calls, program
        self._taps: dict[tuple[int, int], _Tap] = {}
        self._waiting: dict[tuple[int, int], _Tap] = {}
        self._refused: set[tuple[int, int]] = set()
        self._reasons: set[str] = set()
        self._is_over = False

    @property
    def names(self) -> list[str]:
        """The interfaces that have a tap."""
        return [tap.name for tap in self._taps.values()]

    @property
    def is_used(self) -> bool:
        """Whether there is a tap, or an interface that is to get one."""
        return bool(self._taps or self._waiting or self._child)

    @property
    def is_at_work(self) -> bool:
        """Whether the program is being loaded, or interfaces wait for it."""
        return bool(self._waiting or self._child)

    def has(self, netns: int, ifindex: int) -> bool:
        """Whether an interface has a tap, will get one, or cannot have one."""
        return any((netns, ifindex) in each for each in (self._taps, self._waiting, self._refused))

    def is_elsewhere(self, netns: int) -> bool:
        """Whether there are taps in other network namespaces than this one."""
        return any(key[0] != netns for taps in (self._taps, self._waiting) for key in taps)

    def add(self, uppers: Iterable[Upper]) -> None:
        """Interfaces that get a tap from `tick` or `bind`; their sockets belong to this from now on."""
        surplus = []
        for upper in uppers:
            key = upper.netns, upper.ifindex
            if isinstance(upper.socket, str):
                self._refuse(key, upper.name, upper.socket)
                continue
            is_full = len(self._taps) + len(self._waiting) >= TAPS_MAX
            if self._is_over or self.has(*key) or is_full:
                surplus.append(upper.socket)
            else:
                self._waiting[key] = _Tap(upper.name, upper.socket)
            if is_full:
                self._refuse(key, upper.name, f"{TAPS_MAX} interfaces have one already")
        close_later(surplus)
        if self._waiting and self._loaded is None and self._child is None:
            self._start()

    def load(self) -> None:
        """Wait until the program is loaded. Called before the hooks are attached: nobody drains meanwhile."""
        if self._child is not None:
            self._receive(self._child)

    def bind(self) -> None:
        """Give taps to the interfaces that were added before `load`."""
        self._bind(logging.DEBUG)

    def tick(self, *, is_reloading: bool) -> set[int]:
        """Give taps to the interfaces that were added, and forget those that are gone; never waits.

        Args:
            is_reloading: other filters are being loaded: the program is used with those.

        Returns:
            The namespaces of those that are gone.
        """
        gone = [key for key, tap in self._taps.items() if tap.socket.is_over()]
        close_later([self._taps.pop(key).socket for key in gone])
        if not is_reloading and self._child is not None and is_readable(self._child):
            self._receive(self._child)
        self._bind(logging.INFO)
        return {netns for netns, _ in gone}

    def keep(self, namespaces: Collection[int]) -> None:
        """Forget the interfaces of all other network namespaces: a packet socket keeps its namespace alive."""
        for taps in (self._taps, self._waiting):
            close_later([taps.pop(key).socket for key in [*taps] if key[0] not in namespaces])
        self._refused = {key for key in self._refused if key[0] in namespaces}

    def load_filters(
        self, definitions: Mapping[str, int | str], filters: str
    ) -> tuple[list[tuple[str, int]], list[int]]:
        """As loader.load_filters, for this program; nothing if it is not loaded. Called in a child."""
        if self._loaded is None:
            return [], []
        return loader.load_filters(self._with_stages(), definitions, [loader.TAP], filters)

    def exchange(self, filters: packet_filter.Source, tables: Collection[str]) -> Mapping[str, int]:
        """New filters are used from now on.

        Args:
            filters: their text.
            tables: maps for which they were loaded. If that of this program is not among them, it is being
                loaded with the filters before: that is begun again.

        Returns:
            The maps by name.
        """
        self._filters = filters.text
        self._definitions = {**self._definitions, "WINDOW": filters.window}
        if TAP_STAGES not in tables and self._child is not None:
            self._end_child()
            self._start()
        return {**self._with_stages(), **self._maps}

    def detach(self) -> None:
        """Stop them at once; nothing is added from now on."""
        self._is_over = True
        self._end_child()
        for tap in self._taps.values():
            tap.socket.stop()

    def close(self) -> None:
        """Release everything."""
        self._is_over = True
        self._end_child()
        close_all([tap.socket for taps in (self._taps, self._waiting) for tap in taps.values()])
        self._taps, self._waiting = {}, {}
        for descriptor in self._loaded or ():
            os.close(descriptor)
        self._loaded = None

    def _with_stages(self) -> dict[str, int]:
        """The maps that the program uses; that of its tail calls has the name of the text, too."""
        if self._loaded is None:
            return dict(self._maps)
        return {**self._maps, STAGES_IN: self._loaded[0], TAP_STAGES: self._loaded[0]}

    def _start(self) -> None:
        """Start a child that loads the program. If the system has no process left, there are no taps."""
        try:
            self._child = loader.start_tap(self._maps, self._definitions, self._filters)
        except OSError as error:
            self._give_up(f"no process to load a program: {error.strerror}")

    def _receive(self, child: Loader) -> None:
        """Take what the child has loaded. If it has failed, there are no taps."""
        try:
            _, descriptors = child.receive()
            self._loaded = descriptors[0], descriptors[1]
        except KernelError as error:
            self._give_up(str(error))
        self._end_child()

    def _give_up(self, reason: str) -> None:
        self._is_over = True
        waiting, self._waiting = self._waiting, {}
        for key, tap in waiting.items():
            self._refuse(key, tap.name, reason)
        close_later([tap.socket for tap in waiting.values()])

    def _bind(self, level: int) -> None:
        if self._loaded is None:
            return
        waiting, self._waiting = self._waiting, {}
        refused = []
        for key, tap in waiting.items():
            try:
                tap.socket.listen(key[1], self._loaded[1])
            except OSError as error:
                refused.append(tap.socket)
                if error.errno not in _GONE:
                    self._refuse(key, tap.name, f"packet socket: {error.strerror}")
                continue
            _LOG.log(level, "what arrives on %s is captured there from now on", tap.name)
            self._taps[key] = tap
        close_later(refused)

    def _refuse(self, key: tuple[int, int], name: str, reason: str) -> None:
        """A warning for the first interface with a reason."""
        self._refused.add(key)
        level = logging.DEBUG if reason in self._reasons else logging.WARNING
        self._reasons.add(reason)
        _LOG.log(level, "what arrives on %s is captured on the interface below only: %s", name, reason)

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
