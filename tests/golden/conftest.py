"""The files that tests of one command read and write."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The capture file of the test."""
    return tmp_path / "a.pcapng"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What is written."""
    return tmp_path / "out.pcapng"
