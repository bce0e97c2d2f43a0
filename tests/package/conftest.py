"""On systems other than Debian the clean Debian systems are left out by name, and the summary lists
them. The container image and the package are built once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.namespace import Wire, wire
from tests.package.podman import ROOT, Podman, build, podman
from tests.vm import kernels

LEFT_OUT = kernels.unavailable()

collect_ignore = ["test_chroot.py"] if LEFT_OUT else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was left out."""
    if LEFT_OUT:
        terminalreporter.write_line(f"clean Debian systems left out: {LEFT_OUT}")


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package."""
    place = tmp_path_factory.mktemp("dist")
    subprocess.run([str(ROOT / "tools/deb"), str(place)], capture_output=True, check=True)
    [package] = place.glob("*.deb")
    return package


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The archive of the container image, and its digest."""
    archive, digest = build(tmp_path_factory.mktemp("image"))
    yield archive, digest
    archive.unlink()


@pytest.fixture(scope="session")
def engine(image: tuple[Path, str]) -> Iterator[Podman]:
    """Podman with the image."""
    with podman(image[0]) as made:
        yield made


@pytest.fixture(scope="module")
def host() -> Iterator[Wire]:
    """The network of the host that runs containers."""
    with wire() as made:
        yield made
