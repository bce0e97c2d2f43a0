"""Where tests keep what they fetch once."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """Returns the directory, outside the checkout, for what the tests fetch once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "skbcapd").resolve()
