"""Waiting for a condition, never for a time.

A condition goes in; the function returns when it holds, or fails the test when the deadline has passed. Every wait
of the kernel tests has its deadline from here, so that none can hang. SKBCAPD_SLOWNESS stretches them all: an
emulated guest is some fifty times slower than the machine it runs on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

DEADLINE_S = 60.0 * float(os.environ.get("SKBCAPD_SLOWNESS", "1"))


def until(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as `condition` holds.

    Args:
        condition: asked every 10 ms.
        what: the condition in words, for the failure's message.

    Raises:
        TimeoutError: it did not hold within the deadline.
    """
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {DEADLINE_S:.0f} s: {what}")
        time.sleep(0.01)
