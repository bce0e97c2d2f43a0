"""The Debian package, built by `tools/deb` and checked with Debian's programs.

Installing, removing and purging it in a clean Debian is tests/package/chroot, which takes minutes
and the network.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import skbcapd

ROOT = Path(skbcapd.__file__).parent.parent
MODULE = "usr/lib/python3/dist-packages/skbcapd"


def output(*command: str | Path) -> str:
    """The output of a command."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def unpacked(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files."""
    place = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--raw-extract", str(deb), str(place)], check=True)
    return place


def test_lintian_is_silent(deb: Path) -> None:
    """Lintian reports neither errors nor warnings."""
    [changes] = deb.parent.glob("*.changes")
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", str(changes)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_control(deb: Path) -> None:
    """The package has the version of the program and depends on Debian's libpcap, bcc, scapy,
    systemd and yaml.
    """
    assert output("dpkg-deb", "-f", deb, "Version").strip() == skbcapd.__version__
    depends = output("dpkg-deb", "-f", deb, "Depends").strip().split(", ")
    assert set(depends) >= {
        "libpcap0.8",
        "python3-bpfcc",
        "python3-regex",
        "python3-scapy (>= 2.5)",
        "python3-systemd",
        "python3-yaml",
    }
    assert output("dpkg-deb", "-f", deb, "Recommends").strip() == "python3-prometheus-client"  # for `metrics` only


def test_the_module_is_in_debians_python(unpacked: Path, tmp_path: Path) -> None:
    """With dist-packages alone, the module runs and finds the program text; the package has no
    compiled modules.
    """
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import skbcapd, skbcapd.kernel.compiler; print(skbcapd.__file__, len(skbcapd.kernel.compiler.source()))",
        ],
        env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(unpacked / MODULE / "..")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    path, size = found.stdout.split()
    assert Path(path).resolve() == unpacked / MODULE / "__init__.py"
    assert int(size) > sum(path.stat().st_size for path in (ROOT / "bpf").glob("*.h"))
    assert list(unpacked.rglob("*.pyc")) == []


def test_the_program_is_debians_python(unpacked: Path) -> None:
    """/usr/bin/skbcapd runs Debian's Python, isolated, without its own path."""
    text = (unpacked / "usr/bin/skbcapd").read_text()
    assert text.startswith("#!/usr/bin/python3 -I\n")
    assert not re.search(r"sys\.path|@", text)


def test_the_config_is_the_administrators(unpacked: Path) -> None:
    """The config file, and no other file, is a conffile for dpkg."""
    assert (unpacked / "DEBIAN/conffiles").read_text().split() == ["/etc/skbcapd.yaml"]
    assert [path.name for path in (unpacked / "etc").rglob("*") if path.is_file()] == ["skbcapd.yaml"]


def test_it_contains_the_files_of_make_install(unpacked: Path, tmp_path: Path) -> None:
    """Without its own documentation, the package has exactly the files of `make install`."""
    subprocess.run(["make", "-s", "install", "prefix=/usr", f"DESTDIR={tmp_path}"], cwd=ROOT, check=True)
    installed = {
        re.sub(r"^usr/lib/skbcapd/", "usr/lib/python3/dist-packages/", str(path.relative_to(tmp_path)))
        for path in tmp_path.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    contained = {
        re.sub(r"^lib/|\.gz$", lambda match: "usr/lib/" if match[0] == "lib/" else "", str(path.relative_to(unpacked)))
        for path in unpacked.rglob("*")
        if path.is_file() and "DEBIAN" not in path.parts
    }
    own = {name for name in contained - installed if name.startswith(("usr/share/doc/", "usr/share/lintian/"))}
    assert contained - own - {"usr/lib/systemd/system-preset/90-skbcapd.preset"} == installed


def test_what_other_programs_use_is_an_example(unpacked: Path) -> None:
    """What contrib/ has for other programs is among the examples, where nothing reads it; single files without their
    directory.
    """
    examples, contrib = unpacked / "usr/share/doc/skbcapd/examples", ROOT / "contrib"
    included = {str(path.relative_to(examples)): path for path in examples.rglob("*") if path.is_file()}
    given = {
        path.name if path.parent.name in {"grafana", "prometheus"} else str(path.relative_to(contrib)): path
        for path in contrib.rglob("*")
        if path.parent.name not in {"rpm", "__pycache__"} and path.is_file()
    }
    assert included.keys() == given.keys()
    assert {"skbcapd.rules.yaml", "skbcapd.json", "kubernetes/daemonset.yaml", "spark/fleet.py"} <= included.keys()
    assert all(included[name].read_bytes() == path.read_bytes() for name, path in given.items())


def test_nothing_is_started_by_default(unpacked: Path) -> None:
    """The preset of the package is disable, and its scripts follow the presets, so an administrator
    can enable the service.
    """
    preset = (unpacked / "usr/lib/systemd/system-preset/90-skbcapd.preset").read_text()
    assert re.findall(r"^\w+ \S+$", preset, re.MULTILINE) == [
        "disable skbcapd.service",
        "disable skbcapd@*.service",
        "disable skbcapd-ship.timer",
    ]
    script = (unpacked / "DEBIAN/postinst").read_text()
    assert "deb-systemd-helper update-state 'skbcapd.service'" in script  # debhelper has found the unit
    assert re.findall(r"systemctl \w+ skbcapd\S*", script) == ["systemctl preset skbcapd.service"]
