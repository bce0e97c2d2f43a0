"""Waiting for a condition, never for a time.

In: a condition. The function returns when it is true, and fails the test when the deadline has
passed. All waits of the kernel tests use it, so none can hang. SKBCAPD_SLOWNESS multiplies the
deadlines: an emulated machine is about fifty times slower.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

DEADLINE_S = 60.0 * float(os.environ.get("SKBCAPD_SLOWNESS", "1"))


def until(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as `condition` is true.

    Args:
        condition: checked every 10 ms.
        what: the condition in words, for the error message.

    Raises:
        TimeoutError: it was not true within the deadline.
    """
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {DEADLINE_S:.0f} s: {what}")
        time.sleep(0.01)
