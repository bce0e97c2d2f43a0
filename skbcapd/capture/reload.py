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
_NICE = 10  # the capture goes first


class Prepared(NamedTuple):
    """What a child has made of the config file.

    Args:
        settings: all of them.
        filters: compiled, by number.
        first: number of the first rule's filter.
        places: of the filters' programs, whose descriptors come with this; none: they are those in place.
        problems: why nothing is to be changed; then the rest is as it was.
    """

    settings: Settings
    filters: Mapping[int, Programs]
    first: int
    places: list[tuple[str, int]]
    problems: list[str]


class Reload:
    """One capture's settings over time.

    Args:
        capture: running.
        settings: that it was started with.
        load: reads the settings anew, or raises ConfigError; called in the child.
        tell: told True when a reload begins and False when it is over, for better or worse.
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
        self._first = 1  # number of the first rule's filter: those of other rules have other numbers, for good
        self._again = False
        self.child: Loader | None = None
        """What prepares other settings, if that is going on."""

    @property
    def settings(self) -> Settings:
        """The settings that were put in place last, also those that wait for the next start."""
        return self._settings

    def begin(self) -> None:
        """Have the settings read by a child; while there is one, again behind that."""
        if self.child is not None:
            self._again = True
            return
        self._tell(True)  # noqa: FBT003  the name of the method says what is true
        self.child = Loader(self._work, _NICE)

    def finish(self) -> None:
        """Put the settings in place that the child has prepared; to be called when it is readable."""
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
        """Wait no longer: end the child, whatever it does."""
        if self.child is not None:
            self.child.close()
            self.child = None

    def prepare(self) -> tuple[Prepared, list[int]]:
        """For the child: what the config file asks for, and descriptors of filters that are to be put in place."""
        packet_filter.forget()  # names may mean something else by now
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
        loaded = self._capture.program.load_filters(packet_filter.source(filters, CAPTURE_MAX))
        return Prepared(settings, filters, first, list(loaded.places), []), list(loaded.descriptors)

    def _work(self, channel: socket.socket) -> None:
        """Runs in the child."""
        prepared, descriptors = self.prepare()
        memory = os.memfd_create("skbcapd-settings")  # a message has a bound, filters need not keep to it
        with os.fdopen(memory, "wb", closefd=False) as file:
            pickle.dump(prepared, file)
        send(channel, {}, [*descriptors, memory])

    def _put(self, prepared: Prepared, descriptors: list[int]) -> None:
        """Go on as the child has prepared it."""
        for problem in prepared.problems:
            _refuse(problem)
        if prepared.problems:
            return
        plan = plan_for(prepared.settings, prepared.filters, prepared.first)
        try:
            self._capture.change(plan, Filters(prepared.places, descriptors) if prepared.places else None)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        for key in ROWS.keys() - RELOADED:
            if _value(prepared.settings, key) != _value(self._settings, key):
                _LOG.info("%s takes effect at the next start", key, extra=Event.RELOADED.extra())
        self._settings, self._filters, self._first = prepared.settings, prepared.filters, prepared.first
        _LOG.info("settings reloaded", extra=Event.RELOADED.extra())


def _receive(child: Loader) -> tuple[Prepared, list[int]]:
    """What a child has prepared, with the descriptors of its filters."""
    _, [*descriptors, memory] = child.receive()
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        return pickle.load(file), descriptors  # noqa: S301  our own child made it


def _refuse(reason: object) -> None:
    _LOG.warning("not reloaded: %s", reason, extra=Event.NOT_RELOADED.extra())


def _value(settings: Settings, key: str) -> object:
    return reduce(getattr, key.split("."), settings)
