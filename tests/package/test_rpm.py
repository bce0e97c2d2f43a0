"""The RPM package, built by `tools/rpm` and checked with the rpm and rpmlint of Debian. It was not
run on Fedora or RHEL.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import skbcapd

ROOT = Path(skbcapd.__file__).parent.parent
RPM = ROOT / "contrib/rpm"


def output(*command: str | Path) -> str:
    """The output of a command."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package."""
    place = tmp_path_factory.mktemp("rpm")
    done = subprocess.run([str(ROOT / "tools/rpm"), str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [found] = place.glob("*.rpm")
    return found


def test_rpmlint_is_silent(package: Path) -> None:
    """Rpmlint reports nothing about package and spec, except what contrib/rpm/rpmlint.toml has with its
    reason.
    """
    done = subprocess.run(
        ["rpmlint", "-c", str(RPM / "rpmlint.toml"), str(package), str(RPM / "skbcapd.spec")],
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if ": E: " in line or ": W: " in line]
    assert (done.returncode, found) == (0, [])


def test_version_and_config(package: Path) -> None:
    """It has the version of the program, and an update keeps a changed config file."""
    assert output("rpm", "-qp", "--qf", "%{VERSION}", package) == skbcapd.__version__
    assert output("rpm", "-qpc", package).splitlines() == ["/etc/skbcapd.yaml"]


def test_it_runs_what_the_package_has(package: Path, tmp_path: Path) -> None:
    """The unpacked program finds its modules, wherever the package has put them."""
    with package.open("rb") as file:
        cpio = subprocess.run(["rpm2archive", "-"], stdin=file, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-xz", "-C", str(tmp_path)], input=cpio, check=True)
    program = (tmp_path / "usr/bin/skbcapd").read_text()
    assert "/usr/lib/skbcapd" in program
    moved = program.replace("/usr/lib/skbcapd", f"{tmp_path}/usr/lib/skbcapd")
    (tmp_path / "program").write_text(moved)
    assert skbcapd.__version__ in output("/usr/bin/python3", "-I", tmp_path / "program", "--version")
    units = (tmp_path / "usr/lib/systemd/system/skbcapd.service").read_text()
    assert "ExecStart=/usr/bin/skbcapd run" in units
