"""Reload: new settings for a running capture, and no packet is missed.

In: a config file, on SIGHUP. Out: the capture has the new settings; or it keeps the old ones, and
each problem is logged.

The rule: the capture never waits. A child process reads the file, resolves names of hosts, compiles
filters and loads them, however long that takes. The event loop calls `finish` when the child has a
result. A file with errors changes nothing.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Mapping
from functools import reduce
from typing import NamedTuple

from skbcapd.capture.capture import Capture
from skbcapd.capture.plan import RELOADED, compile_filters, plan_for
from skbcapd.config.settings import ROWS, Settings
from skbcapd.errors import ConfigError, KernelError
from skbcapd.events import Event
from skbcapd.filter import packet_filter
from skbcapd.filter.packet_filter import Programs
from skbcapd.kernel.abi import CAPTURE_MAX
from skbcapd.kernel.loader import Loader, send
from skbcapd.kernel.program import Filters

_LOG = logging.getLogger(__name__)
_NICE = 10  # the capture has a higher priority


class Prepared(NamedTuple):
    """The result of a child that has read the config file.

    Args:
        settings: all of them.
        filters: compiled, by number.
        first: number of the filter of the first rule.
        places: map and slot of each filter program, whose descriptors are passed with this; empty:
            the filters are unchanged.
        problems: errors; then nothing changes.
        source: the text of the filter programs; None: the filters are unchanged.
    """

    settings: Settings
    filters: Mapping[int, Programs]
    first: int
    places: list[tuple[str, int]]
    problems: list[str]
    source: packet_filter.Source | None = None


class Reload:
    """The current settings of a capture, and reloads.

    Args:
        capture: running.
        settings: settings at the start.
        load: reads the settings again, or raises ConfigError; called in the child.
        tell: called with True when a reload begins, and with False when it ends.
    """

    def __init__(
        self,
        capture: Capture,
        settings: Settings,
        load: Callable[[], Settings],
        tell: Callable[[bool], None] | None = None,
    ) -> None:
        self._tell = tell or (lambda _: None)
        self._capture = capture
        self._settings = settings
        self._load = load
        self._filters: Mapping[int, Programs] = compile_filters(settings)
        self._first = 1  # number of the filter of the first rule; numbers are never reused
        self._again = False
        self.child: Loader | None = None
        """The child that prepares a reload; None if there is none."""

    @property
    def settings(self) -> Settings:
        """The settings of the last reload, including those that take effect at the next start."""
        return self._settings

    def begin(self) -> None:
        """Start a child that reads the settings; if there is one, another one follows it."""
        if self.child is not None:
            self._again = True
            return
        self._tell(True)  # noqa: FBT003  the name of the method says what is true
        try:
            self.child = Loader(self._work, _NICE)
        except OSError as error:  # no process, descriptor or memory is left
            _refuse(f"{error.strerror}; expected to start a process for it")
            self._tell(False)  # noqa: FBT003

    def finish(self) -> None:
        """Use the settings that the child has prepared; called when its socket is readable."""
        child, self.child = self.child, None
        if child is None:
            return
        try:
            self._put(*_receive(child))
        except KernelError as error:
            _refuse(error)
        finally:
            child.close()
        if self._again:
            self._again = False
            self.begin()
        else:
            self._tell(False)  # noqa: FBT003

    def close(self) -> None:
        """End the child."""
        if self.child is not None:
            self.child.close()
            self.child = None

    def prepare(self) -> tuple[Prepared, list[int]]:
        """Read and compile the settings; called in the child. Returns also the descriptors of new
        filters.
        """
        packet_filter.forget()  # names can have new addresses
        try:
            settings = self._load()
        except ConfigError as error:
            return Prepared(self._settings, self._filters, self._first, [], [str(each) for each in error.problems]), []
        first = self._first
        filters = compile_filters(settings, first)
        if filters == self._filters:
            return Prepared(settings, filters, first, [], []), []
        first += len([number for number in self._filters if number])
        filters = compile_filters(settings, first)
        if not filters:
            return Prepared(settings, filters, first, [], []), []
        source = packet_filter.source(filters, CAPTURE_MAX)
        loaded = self._capture.program.load_filters(source)
        return Prepared(settings, filters, first, list(loaded.places), [], source), list(loaded.descriptors)

    def _work(self, channel: socket.socket) -> None:
        """Runs in the child."""
        prepared, descriptors = self.prepare()
        memory = os.memfd_create("skbcapd-settings")  # a message has a size limit, filters do not
        with os.fdopen(memory, "wb", closefd=False) as file:
            pickle.dump(prepared, file)
        send(channel, {}, [*descriptors, memory])

    def _put(self, prepared: Prepared, descriptors: list[int]) -> None:
        """Use the settings that the child has prepared."""
        for problem in prepared.problems:
            _refuse(problem)
        if prepared.problems:
            return
        plan = plan_for(prepared.settings, prepared.filters, prepared.first)
        filters = Filters(prepared.places, descriptors, prepared.source) if prepared.source else None
        try:
            self._capture.change(plan, filters)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        for key in ROWS.keys() - RELOADED:
            if _value(prepared.settings, key) != _value(self._settings, key):
                _LOG.info("%s takes effect at the next start", key, extra=Event.RELOADED.extra())
        self._settings, self._filters, self._first = prepared.settings, prepared.filters, prepared.first
        _LOG.info("settings reloaded", extra=Event.RELOADED.extra())


def _receive(child: Loader) -> tuple[Prepared, list[int]]:
    """The result of a child, with the descriptors of its filters."""
    _, [*descriptors, memory] = child.receive()
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        return pickle.load(file), descriptors  # noqa: S301  our own child made it


def _refuse(reason: object) -> None:
    _LOG.warning("not reloaded: %s", reason, extra=Event.NOT_RELOADED.extra())


def _value(settings: Settings, key: str) -> object:
    return reduce(getattr, key.split("."), settings)
