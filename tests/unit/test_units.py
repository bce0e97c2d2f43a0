"""The systemd units, checked with systemd-analyze."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "systemd"
NAMES = ("skbcapd.service", "skbcapd@.service")
SHIP = ("skbcapd-ship.service", "skbcapd-ship.timer")


def installed(name: str, directory: Path) -> Path:
    """The unit as installed by `make install`, with its program."""
    program = directory / "skbcapd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = (UNITS / name).read_text().replace("@bindir@", str(directory))
    path = directory / name
    path.write_text(text)
    return path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    command = ["systemd-analyze", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", [*NAMES, *SHIP])
def test_verify_is_silent(name: str, tmp_path: Path) -> None:
    """The analyzer reports nothing about the unit."""
    path = installed(name, tmp_path)
    if name.endswith(".timer"):
        installed(name.replace(".timer", ".service"), tmp_path)
    done = analyze("verify", "--man=no", str(path).replace("@.service", "@x.service"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", [*NAMES, SHIP[0]])
def test_exposure(name: str, tmp_path: Path) -> None:
    """The exposure is 2.0 at most."""
    done = analyze("security", "--offline=yes", "--threshold=20", str(installed(name, tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_open_unit_is_exposed(tmp_path: Path) -> None:
    """A unit without hardening exceeds the threshold."""
    path = tmp_path / "open.service"
    path.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze("security", "--offline=yes", "--threshold=20", str(path)).returncode


def test_the_template_is_the_same_service() -> None:
    """The two units differ only in names."""
    one, many = (
        [line for line in (UNITS / name).read_text().splitlines() if line and not line.startswith("#")]
        for name in NAMES
    )
    names = (
        (" --config /etc/skbcapd-%i.yaml --set files.directory=%L/skbcapd-%i", ""),
        (" --set control.socket=%t/skbcapd-%i/control", ""),
        ("skbcapd-%i", "skbcapd"),
        (" (%i)", ""),
    )
    for old, new in names:
        many = [line.replace(old, new) for line in many]
    assert many == one
