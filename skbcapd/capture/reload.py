"""Other settings while a capture runs: read, checked, compiled and put in place, and no packet is missed.

In: a signal's wish, a config file. Out: the capture goes on with the new settings, or with the old ones and a line for
each problem.

The rule: the capture is never held up. Other filters are compiled by a child while packets are written as before;
the service asks `finish` when the child has something to say. A bad file changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from skbcapd.capture.capture import Capture
from skbcapd.capture.rules import filters_of
from skbcapd.config.settings import ROWS, Settings
from skbcapd.errors import ConfigError, KernelError
from skbcapd.filter import packet_filter
from skbcapd.kernel.abi import CAPTURE_MAX
from skbcapd.kernel.loader import Loader

RELOADED = {"snaplen", "filter", "rules", "checksums", "dedup", "comment", "process_blocks"}
"""Keys that take effect while a capture runs."""


class Reload:
    """One capture's settings over time.

    Args:
        capture: running.
        settings: that it was started with.
        load: reads the settings anew, or raises ConfigError.
        choose: what the capture makes of settings: its fields by name.
        say: takes one line for people.
        tell: told True when a reload begins and False when it is over, for better or worse.
        refuse: takes a line that says why nothing is changed; `say` unless given.
    """

    def __init__(
        self,
        capture: Capture,
        settings: Settings,
        load: Callable[[], Settings],
        choose: Callable[[Settings, int], Mapping[str, Any]],
        say: Callable[[str], None],
        tell: Callable[[bool], None] | None = None,
        refuse: Callable[[str], None] | None = None,
    ) -> None:
        self._tell = tell or (lambda _: None)
        self._capture = capture
        self._settings = settings
        self._load = load
        self._choose = choose
        self._say, self._refuse = say, refuse or say
        self._first = 1  # number of the first rule's filter: those of other rules have other numbers, for good
        self._again = False
        self._coming, self._coming_first = settings, 1
        self.child: Loader | None = None
        """What compiles other filters, if that is going on."""

    @property
    def settings(self) -> Settings:
        """The settings that were put in place last, also those that wait for the next start."""
        return self._settings

    def begin(self) -> None:
        """Read the settings and put them in place; or, where filters have to be compiled, begin to."""
        if self.child is not None:
            self._again = True
            return
        self._tell(True)  # noqa: FBT003  the name of the method says what is true
        self._begin()
        if self.child is None:
            self._tell(False)  # noqa: FBT003

    def _begin(self) -> None:
        try:
            self._coming = self._load()
        except ConfigError as error:
            for problem in error.problems:
                self._refuse(f"not reloaded: {problem}")
            return
        before, after = (_expressions(settings) for settings in (self._settings, self._coming))
        if before == after or not any(after):
            self._coming_first = self._first
            self._put(None)
            return
        self._coming_first = self._first + len(before) - 1
        numbered = filters_of(self._coming.filter, self._coming.rules, self._coming_first)
        try:
            self.child = self._capture.program.compile_filters(packet_filter.source(numbered, CAPTURE_MAX))
        except packet_filter.FilterError as error:  # a name that could be looked up a moment ago
            self._refuse(f"not reloaded: {error}")

    def finish(self) -> None:
        """Put the settings in place whose filters are compiled now."""
        child, self.child = self.child, None
        self._put(child)
        if self._again:
            self._again = False
            self.begin()
        else:
            self._tell(False)  # noqa: FBT003

    def close(self) -> None:
        """Wait no longer."""
        if self.child is not None:
            self.child.close()
            self.child = None

    def _put(self, child: Loader | None) -> None:
        try:
            self._capture.change(child, **self._choose(self._coming, self._coming_first))
        except KernelError as error:
            self._refuse(f"not reloaded: {error}")
            return
        for key in ROWS.keys() - RELOADED:
            if _value(self._coming, key) != _value(self._settings, key):
                self._say(f"{key} takes effect at the next start")
        self._settings, self._first = self._coming, self._coming_first
        self._say("settings reloaded")


def _expressions(settings: Settings) -> list[str]:
    """All packet filters: the one for every packet first, empty if there is none."""
    return [settings.filter, *(rule.filter for rule in settings.rules if rule.filter)]


def _value(settings: Settings, key: str) -> object:
    return reduce(getattr, key.split("."), settings)
