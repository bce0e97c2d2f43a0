"""The requests of `skbcapd dump` at the control socket.

In: a line, and the user who sent it. Out: an answer for JSON.

    dump [after=SECONDS] [since=SECONDS]    {"dump": NUMBER}, or {"error": ..., "hint": ...}
    dumped NUMBER                           the state of that dump (see output.dump), or an error

The rules not to break: only root and the user of the daemon may order a dump, as only they may send it
the signal. An order does nothing itself: it makes the event loop do what it does for the signal,
between two drains.
"""

from __future__ import annotations

import os
import re
import signal
from typing import Any

from skbcapd.config.settings import AFTER, SINCE
from skbcapd.output.dump import Orders

_DUMP = re.compile(rb"dump(?: after=([0-9]{1,9}))?(?: since=([0-9]{1,9}))?")
_DUMPED = re.compile(rb"dumped ([0-9]{1,9})")


class Dumps:
    """Answers requests for dumps.

    Args:
        orders: of the ring buffer; None: there is none.
    """

    def __init__(self, orders: Orders | None) -> None:
        self._orders = orders

    def answer(self, line: bytes, user: int) -> dict[str, Any] | None:
        """The answer to a line; None: it is no request for a dump.

        Args:
            line: without its end.
            user: id of the user who sent it.
        """
        if found := _DUMPED.fullmatch(line):
            facts = self._orders.facts(int(found[1])) if self._orders else None
            return {"error": "no such dump; expected the number of one of the last dumps"} if facts is None else facts
        if found := _DUMP.fullmatch(line):
            after, since = (None if text is None else text.decode() + "s" for text in found.groups())
            return self._order(after, since, user)
        return None

    def _order(self, after: str | None, since: str | None, user: int) -> dict[str, Any]:
        if user not in {0, os.geteuid()}:
            return {
                "error": "only root and the user of the daemon may order a dump",
                "hint": "run this as its user or as root",
            }
        if self._orders is None:
            return {
                "error": "files.mode is files, so all packets are already in files; expected ring",
                "hint": "set files.mode: ring for the daemon",
            }
        try:
            after_s = AFTER.parse(after) if after else 0
            since_s = SINCE.parse(since) if since else None
        except ValueError:
            return {"error": f"expected after: {AFTER.expected}; since: {SINCE.expected}"}
        has_signal = self._orders.are_waiting  # a second one would make a second dump
        number = self._orders.add(after_s, since_s)
        if number is None:
            return {"error": "too many dumps are ordered", "hint": "try again in a second"}
        if not has_signal:
            signal.raise_signal(signal.SIGUSR2)
        return {"dump": number}
