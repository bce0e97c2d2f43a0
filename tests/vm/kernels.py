"""Debian's kernels for the virtual machines: a name comes in, an image with its modules beside it
leaves.

A name is a version ("6.1", "6.12", "7"), "newest", or the path of a kernel image. Debian's packages
are fetched by apt with a state of its own, so that nothing on this machine is installed or changed;
mirror and signing key are the ones in the machine's own apt sources, hence no address stands here
and apt checks every signature. Unpacked kernels stay in a cache outside the checkout
(SKBCAPD_KERNEL_CACHE, else the user's cache directory), the newest of each suite in a directory
named after its package and version; it is used as it is when the mirror does not answer.

The rule: a directory under its final name is whole. Unpacking happens beside it, and a rename is
the last step.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.cache import user_cache

SUITES = ("bookworm", "trixie", "sid", "bullseye")  # the last one has the newest kernel that is too old
NEWEST = "sid"
AMD64, ARM64 = "amd64", "arm64"  # architectures, and flavours of kernels
DEFAULT_NAMES = ("6.1", "newest")  # the kernels of `make test-all`


class KernelUnavailableError(Exception):
    """The kernel is not available on this machine; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """Debian's archive for the apt of this machine: a mirror, and the signing key (as the text of
    the field, or empty).
    """

    uri: str
    signed_by: str


def fetch(name: str, flavour: str = AMD64) -> Path:
    """Finds a kernel image, fetching it first where needed.

    Args:
        name: a version such as "6.1" or "7", "newest", or the path of an image.
        flavour: as in the name of Debian's package: an architecture, or "rt-amd64", "arm64-16k".

    Returns:
        The path of vmlinuz; its modules are under lib/modules of the same tree.

    Raises:
        KernelUnavailableError: not a Debian machine, no such version, or the mirror does not
            answer.
    """
    if "/" in name:
        if not Path(name).is_file():
            raise KernelUnavailableError(f"{name} is no file")
        return Path(name)
    cache = cache_directory()
    if flavour != AMD64:
        cache /= flavour
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # for apt's state; another run may need the same kernel
            return _fetch_package(name, cache, flavour)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        for tree in sorted(cache.glob("*/linux-image-*"), key=_version, reverse=True):
            if name == "newest" or _matches(name, tree.name.removeprefix("linux-image-")):
                return _image(tree)
        said = str(error)
        if isinstance(error, subprocess.CalledProcessError):
            said = (error.stderr or error.stdout).strip()
        raise KernelUnavailableError(f"apt could not fetch kernel {name} and none is in {cache}: {said}") from error


def cache_directory() -> Path:
    """Returns the directory that keeps unpacked kernels."""
    own = os.environ.get("SKBCAPD_KERNEL_CACHE")
    if own:
        return Path(own).resolve()
    return user_cache() / "kernels"


def unavailable() -> str:
    """Returns why Debian's kernels cannot be fetched on this machine, or the empty string if they
    can.
    """
    if platform.machine() != "x86_64":
        return "the virtual machine tests are made for x86-64"
    if platform.freedesktop_os_release().get("ID") != "debian":
        return (
            "Debian's kernels come from Debian's archive, and this machine is no Debian; "
            "an image of your own works: make test-vm KERNEL=/boot/vmlinuz-..."
        )
    return ""


def _fetch_package(name: str, cache: Path, flavour: str) -> Path:
    reason = unavailable()
    if reason:
        raise KernelUnavailableError(reason)
    source = find_source()
    offered = []
    for suite in (NEWEST,) if name == "newest" else SUITES:
        apt = apt_options(source, suite, cache / suite / "apt", ARM64 if ARM64 in flavour else AMD64)
        run(["apt-get", *apt, "update"])
        package = f"linux-image-{flavour}"
        found = re.search(r"Depends:.*\blinux-image-(\d[^\s,]+)", run(["apt-cache", *apt, "show", package]))
        if not found:
            raise KernelUnavailableError(f"{package} of {suite} names no kernel")
        offered.append(f"{found[1]} in {suite}")
        if name == "newest" or _matches(name, found[1]):
            return _unpack(f"linux-image-{found[1]}", apt, cache / suite)
    raise KernelUnavailableError(f"Debian has no kernel {name} now; it has {', '.join(offered)}")


def _matches(name: str, release: str) -> bool:
    return release == name or release.startswith((f"{name}.", f"{name}-", f"{name}+"))


def _version(tree: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", tree.name)]


def _image(tree: Path) -> Path:
    (image,) = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    return image


def _unpack(package: str, apt: list[str], directory: Path) -> Path:
    shown = run(["apt-cache", *apt, "show", "--no-all-versions", package])
    version = re.search(r"^Version: (\S+)", shown, re.MULTILINE)
    if not version:
        raise KernelUnavailableError(f"apt knows no {package}")
    tree = directory / f"{package}_{version[1].replace(':', '%3a')}"
    if not tree.is_dir():
        # Since 7.x the image and the modules are separate packages.
        parts = re.findall(r"linux-(?:binary|modules)-[^\s,]+", shown)
        with tempfile.TemporaryDirectory(dir=directory) as name:
            work = Path(name)
            unpacked = download([package, *parts], apt, work)
            for old in directory.glob("linux-image-*"):
                shutil.rmtree(old)
            unpacked.rename(tree)
    return _image(tree)


def download(packages: list[str], apt: list[str], work: Path) -> Path:
    """Fetches Debian packages into a directory and unpacks them there, installed nowhere; returns
    the tree.
    """
    run(["apt-get", *apt, "download", *packages], directory=work)
    for archive in work.glob("*.deb"):
        run(["dpkg-deb", "-x", str(archive), str(work / "tree")])
    return work / "tree"


def run(command: list[str], directory: Path | None = None) -> str:
    """Runs a program; what it says on stdout."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, env=environment, cwd=directory, check=True, capture_output=True, text=True, timeout=600
    ).stdout


def apt_options(source: Source, suite: str, state: Path, architecture: str = AMD64) -> list[str]:
    """Returns what gives apt a state of its own, and one source."""
    options = apt_state(state)
    (state / "kernel.sources").write_text(
        f"Types: deb\nURIs: {source.uri}\nSuites: {suite}\nComponents: main\nArchitectures: {architecture}\n"
        + (f"Signed-By: {source.signed_by}\n" if source.signed_by else "")
    )
    settings = {
        "Dir::Etc::sourcelist": state / "kernel.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
    }
    return [*options, *(f"-o{key}={value}" for key, value in settings.items())]


def apt_state(state: Path) -> list[str]:
    """Returns what gives apt a state of its own; the machine's sources, proxies and the like stay
    in force.
    """
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::pkgcache": "pkgcache.bin",
        "APT::Sandbox::User": "root",  # the user of apt cannot enter a cache in a home directory
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
    }
    return ["--quiet=2", *(f"-o{key}={value}" for key, value in settings.items())]


def find_source(etc_apt: Path = Path("/etc/apt")) -> Source:
    """Finds Debian's main archive among the machine's apt sources.

    Args:
        etc_apt: the directory with sources.list and sources.list.d.

    Returns:
        The first source with component main that is no security, updates or backports suite.

    Raises:
        KernelUnavailableError: there is none.
    """
    texts = [etc_apt / "sources.list", *sorted(etc_apt.glob("sources.list.d/*"))]
    for path in texts:
        if not path.is_file():
            continue
        read = {".list": _read_lines, ".sources": _read_stanzas}.get(path.suffix)
        for source, suites, components in read(path.read_text()) if read else []:
            if "main" in components and any(re.fullmatch(r"[a-z]+", suite) for suite in suites):
                return source
    raise KernelUnavailableError(f"no source of Debian's main archive under {etc_apt}")


def _read_lines(text: str) -> list[tuple[Source, list[str], list[str]]]:
    """Reads the one-line format of sources.list(5)."""
    found = []
    for match in re.finditer(r"^\s*deb\s+(?:\[([^\]]*)\]\s+)?([a-z+]+://?\S+)\s+(\S+)\s+([^#\n]*)", text, re.MULTILINE):
        options, uri, suite, components = match.groups()
        signed_by = re.search(r"signed-by=(\S+)", options or "", re.IGNORECASE)
        key = signed_by[1].replace(",", " ") if signed_by else ""
        found.append((Source(uri, key), [suite], components.split()))
    return found


def _read_stanzas(text: str) -> list[tuple[Source, list[str], list[str]]]:
    """Reads the deb822 format of sources.list(5)."""
    found = []
    bare = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for stanza in re.split(r"\n\s*\n", bare):
        fields = {
            match[1].lower(): match[2].strip(" \t")
            for match in re.finditer(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t]+.*)*)", stanza, re.MULTILINE)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").strip().lower() in {
            "no",
            "false",
        }:
            continue
        uris = fields.get("uris", "").split()
        suites, components = fields.get("suites", "").split(), fields.get("components", "").split()
        if uris:
            found.append((Source(uris[0], fields.get("signed-by", "")), suites, components))
    return found
