"""Numbers of repetitions: few in `make test`, all in `make test-all`.

A test whose number comes from here has the marker `many`: `make test-all` runs those, and only
those, once more.
"""

from __future__ import annotations

import os

IS_ALL = os.environ.get("SKBCAPD_TRIES") == "all"


def tries(every: int, few: int) -> int:
    """The number of repetitions in this run."""
    return every if IS_ALL else few
