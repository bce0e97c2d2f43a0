"""Shared parts of the kernel tests: they need root, clean up after themselves, and print tables at
the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel import namespace, table
from tests.kernel.scene import is_makeable

LEFT_OUT = pytest.StashKey[dict[str, list[str]]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, by name, the tests that need interfaces that this kernel cannot create; in virtual
    machines none.
    """
    if os.geteuid() != 0 or "SKBCAPD_SLOWNESS" in os.environ:
        return
    needed = {item: mark.args for item in items if (mark := item.get_closest_marker("devices"))}
    missing = {kind for kind in set().union(*needed.values()) if not is_makeable(kind)}
    left_out = {item: kinds for item, kinds in needed.items() if missing.intersection(kinds)}
    items[:] = [item for item in items if item not in left_out]
    config.stash[LEFT_OUT] = {
        kind: [item.name for item, kinds in left_out.items() if kind in kinds] for kind in sorted(missing)
    }
    config.hook.pytest_deselected(items=list(left_out))


@pytest.fixture(scope="session", autouse=True)
def _root() -> Iterator[None]:
    """Fail, never skip, if the kernel cannot run the program; clean up on SIGTERM as on Ctrl-C."""
    if os.geteuid() != 0:
        pytest.fail("the kernel tests make network namespaces and load a BPF program: run them as root", pytrace=False)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def wire() -> Iterator[namespace.Wire]:
    """Two namespaces joined by a veth pair, for all tests of a file."""
    with namespace.wire() as made:
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 MiB."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(160 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables of the comparison and of attribution, and what was left out."""
    for kind, names in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.write_line(f"{len(names)} tests left out: this kernel has no `ip link add {kind}`")
    for title, lines in table.tables():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
