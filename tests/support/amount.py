"""How often a test tries what needs many tries: few times in `make test`, all of them in `make test-all`.

A test whose number comes from here has the marker `many`: `make test-all` runs those, and only those, once more.
"""

from __future__ import annotations

import os

IS_ALL = os.environ.get("SKBCAPD_TRIES") == "all"


def tries(every: int, few: int) -> int:
    """How many tries this run has time for."""
    return every if IS_ALL else few
