"""`make install` and `make uninstall`, into directories of the test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import skbcapd

ROOT = Path(skbcapd.__file__).parent.parent
SYSUSERS = "usr/local/lib/sysusers.d/skbcapd.conf"


def make(*arguments: str) -> str:
    """Run make; returns its stderr."""
    return subprocess.run(["make", "-s", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stderr


def files(place: Path) -> set[str]:
    """All files below a directory, without compiled modules."""
    return {
        str(path.relative_to(place))
        for path in place.rglob("*")
        if not path.is_dir() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DESTDIR with everything installed."""
    place = tmp_path_factory.mktemp("staged")
    make("install", f"DESTDIR={place}")
    return place


def in_place(place: Path) -> list[str]:
    """Variables that put all files below a directory, as if it were the root of the system."""
    return [
        f"prefix={place}/usr",
        f"sysconfdir={place}/etc",
        f"wireshark_libdir={place}/wireshark",
        f"wireshark_datadir={place}/share",
        f"PYTHON={sys.executable}",
        "DESTDIR=/",  # systemd of this machine is not touched
    ]


def test_all_code_is_installed(staged: Path) -> None:
    """All modules, and all files of the kernel program, are in the private directory, and nothing
    else.
    """
    expected = (
        files(ROOT / "skbcapd")
        | {f"bpf/{name}" for name in files(ROOT / "bpf")}
        | {f"etc/{name}" for name in files(ROOT / "etc")}
    )
    assert expected >= {"cli/main.py", "bpf/skbcapd.bpf.c"}
    assert files(staged / "usr/local/lib/skbcapd/skbcapd") == expected


def test_the_rest_is_in_the_standard_directories(staged: Path) -> None:
    """Program, config, units, man pages and completion are in the directories that Debian's
    programs read.
    """
    units = {f"usr/local/lib/systemd/system/{path.name}" for path in (ROOT / "systemd").iterdir()}
    units -= {"usr/local/lib/systemd/system/skbcapd.sysusers"}
    rest = {
        name for name in files(staged) if not name.startswith("usr/local/lib/skbcapd/") and "/wireshark/" not in name
    }
    assert rest == {
        "etc/skbcapd.yaml",
        "usr/local/bin/skbcapd",
        SYSUSERS,
        "usr/local/share/man/man8/skbcapd.8",
        "usr/local/share/man/man5/skbcapd.yaml.5",
        "usr/local/share/bash-completion/completions/skbcapd",
        *(f"usr/local/share/doc/skbcapd/{name}" for name in ("README.md", *files(ROOT / "docs"))),
        *units,
    }


def test_links_of_installed_pages_lead_to_installed_files(staged: Path) -> None:
    """Each relative link of an installed page leads to an installed file; the pages are otherwise those of the tree."""
    pages = sorted((staged / "usr/local/share/doc/skbcapd").glob("*.md"))
    assert {page.name for page in pages} >= {"README.md", "format.md"}
    for page in pages:
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
        assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == [], page.name
        source = ROOT / page.name if page.name == "README.md" else ROOT / "docs" / page.name
        plain = [re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", one.read_text()) for one in (page, source)]
        assert plain[0] == plain[1], page.name


def test_wireshark_finds_its_files(staged: Path) -> None:
    """Dissector, profile and extcap program are in the directories that tshark reports."""
    said = subprocess.run(["tshark", "-G", "folders"], capture_output=True, text=True, check=True).stdout
    folders = dict(re.findall(r"^([\w ]+):\s+(/.*)$", said, re.MULTILINE))
    plugins, extcap = folders["Global Lua Plugins"], (folders.get("Extcap path") or folders["Global Extcap path"])
    profile = folders["Global configuration"] + "/profiles/skbcapd"
    assert {f"/{name}" for name in files(staged) if "/wireshark/" in name} == {
        f"{plugins}/skbcapd.lua",
        f"{extcap}/skbcapd",
        f"{profile}/preferences",
        f"{profile}/colorfilters",
        f"{profile}/dfilter_buttons",
        f"{profile}/io_graphs",
    }


def test_the_units_user_is_made(staged: Path, tmp_path: Path) -> None:
    """systemd-sysusers creates the user and the group that both units name, without a login."""
    (tmp_path / "etc").mkdir()
    with (staged / SYSUSERS).open() as text:
        subprocess.run(["systemd-sysusers", f"--root={tmp_path}", "-"], stdin=text, capture_output=True, check=True)
    name, _, _, group, _, _, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert f"{name}:x:{group}:" in (tmp_path / "etc/group").read_text()
    assert shell == "/usr/sbin/nologin"
    for unit in (staged / "usr/local/lib/systemd/system").glob("*.service"):
        assert re.findall(r"^(?:User|Group)=(\S+)$", unit.read_text(), re.MULTILINE) == [name, name]


def test_no_placeholder_is_left(staged: Path) -> None:
    """In installed programs and units all @names@ are replaced; programs are executable, other
    files are not.
    """
    for name in files(staged):
        path = staged / name
        if "bin/" in name or name.endswith(".service"):
            assert not re.search(r"@\w+@", path.read_text()), name
        assert path.stat().st_mode & 0o7777 == (0o755 if "bin/" in name or "extcap/" in name else 0o644), name


def test_the_installed_program_is_alone(tmp_path: Path) -> None:
    """It runs its own code and config, with any PYTHONPATH and working directory."""
    make("install", *in_place(tmp_path))
    decoy = tmp_path / "decoy"
    decoy.mkdir()
    for module in ("skbcapd", "yaml", "scapy"):
        (decoy / f"{module}.py").write_text("raise SystemExit('decoy')\n")
    done = subprocess.run(
        [str(tmp_path / "usr/bin/skbcapd"), "check", "--config", str(tmp_path / "etc/skbcapd.yaml")],
        cwd=decoy,
        env={"PYTHONPATH": str(decoy), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, f"{tmp_path}/etc/skbcapd.yaml: no problems\n")


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    """If Python lacks a library, two lines name it and its package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    make("install", *in_place(tmp_path), f"PYTHON={tmp_path}/bare/bin/python")
    command = [str(tmp_path / "usr/bin/skbcapd"), "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"skbcapd: \S+python has no module \w+\n  \(hint\) .*python3-scapy.*\n", done.stderr)


def test_uninstall_leaves_nothing(tmp_path: Path) -> None:
    """After install and uninstall there is no file, and no directory of skbcapd."""
    make("install", f"DESTDIR={tmp_path}")
    assert files(tmp_path)
    (tmp_path / "var/cache/skbcapd").mkdir(parents=True)  # as a capture creates it
    (tmp_path / "var/cache/skbcapd/program.json").touch()
    make("uninstall", f"DESTDIR={tmp_path}")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir() or "skbcapd" in path.name] == []


def test_others_files_stay(tmp_path: Path) -> None:
    """Files from before an install still exist after an uninstall, in the same directories."""
    others = {"usr/local/bin/other", "etc/other.yaml", "usr/local/share/man/man8/other.8", "var/log/skbcapd/a.pcapng"}
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    make("install", f"DESTDIR={tmp_path}")
    make("uninstall", f"DESTDIR={tmp_path}")
    assert files(tmp_path) == others


def test_an_edited_config_stays(tmp_path: Path) -> None:
    """A config that the administrator has changed stays after another install and an uninstall;
    both report it.
    """
    config = tmp_path / "etc/skbcapd.yaml"
    make("install", f"DESTDIR={tmp_path}")
    config.write_text("snaplen: 96\n")
    assert "kept" in make("install", f"DESTDIR={tmp_path}")
    assert config.read_text() == "snaplen: 96\n"
    assert "kept" in make("uninstall", f"DESTDIR={tmp_path}")
    assert files(tmp_path) == {"etc/skbcapd.yaml"}
    assert config.read_text() == "snaplen: 96\n"


def test_an_untouched_config_follows_the_defaults(tmp_path: Path) -> None:
    """An unchanged config of an older version is replaced by that of the new version."""
    make("install", f"DESTDIR={tmp_path}")
    for name in ("etc/skbcapd.yaml", "usr/local/lib/skbcapd/skbcapd/etc/skbcapd.yaml"):
        (tmp_path / name).write_text("# of an older version\n")
    assert make("install", f"DESTDIR={tmp_path}") == ""
    assert (tmp_path / "etc/skbcapd.yaml").read_text() == (ROOT / "etc/skbcapd.yaml").read_text()


def test_modules_of_an_older_version_are_deleted(tmp_path: Path) -> None:
    """A module that this version no longer has is deleted by a second install."""
    make("install", f"DESTDIR={tmp_path}")
    old = tmp_path / "usr/local/lib/skbcapd/skbcapd/old.py"
    old.write_text("")
    make("install", f"DESTDIR={tmp_path}")
    assert not old.exists()
