"""arm64: a system of Debian's packages, unpacked and not installed, as the initrd of an emulated machine.

In: the name of a kernel, a shell command. Out: what the command printed, by the serial console.

Nothing of the other architecture runs on this machine: apt resolves the packages, dpkg-deb unpacks
them, and this module writes the tree as a cpio archive (newc), not compressed. The archive of the
packages stays in the cache. Behind it are two more, which the kernel unpacks over the first: one with
the checkout and skbcapd's own package for arm64, one with the first process and modules of the kernel.

The rule: a file under its final name is complete.

Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.cache import user_cache
from tests.vm import boot, kernels

SUITE = "bookworm"
PACKAGES = (
    *("busybox-static", "ethtool", "iproute2", "kmod", "libpcap0.8", "nftables", "python3", "python3-bpfcc"),
    *("python3-hypothesis", "python3-pytest", "python3-pytest-timeout", "python3-regex", "python3-scapy"),
    *("python3-systemd", "python3-yaml", "tshark"),
)
_LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl", "usr/share/icons")
_MODULES = ("crypto/*.ko*", "drivers/net/*.ko*", "lib/*.ko*", "net/**/*.ko*")
_CHECKOUT = ("bpf", "docs", "etc", "pyproject.toml", "skbcapd", "tests", "wireshark")
# An archive here has no times: an unchecked file is used all the same.
_COMPILE = ("/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")
_MEMORY = "3G"  # the system takes 0.7 GiB of it
_START, _END = "@ begin", "@ end"

_INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /proc /sys /dev /run /tmp /root /etc /var/cache
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
echo 'root:x:0:' >/etc/group
echo '127.0.0.1 localhost' >/etc/hosts
export HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONPYCACHEPREFIX=
ip link set lo up
modprobe tun
cd /checkout
echo '{_START}'
sh /command </dev/null 2>&1
echo '{_END}' $?
poweroff -f
"""


def run(name: str, command: str, deadline_s: float, flavour: str = kernels.ARM64) -> boot.VmResult:
    """Boots an arm64 kernel and runs a command there, in a copy of the checkout.

    Args:
        name: as for kernels.fetch.
        command: shell commands.
        deadline_s: seconds from start to end, boot included.
        flavour: as for kernels.fetch.
    """
    start = time.monotonic()
    image = kernels.fetch(name, flavour)
    with tempfile.TemporaryDirectory(prefix="skbcapd-arm64-") as directory:
        work = Path(directory)
        (work / "kernel").write_bytes(_plain_image(image.read_bytes()))
        shutil.copyfile(_system(), work / "initrd")
        with (work / "initrd").open("ab") as initrd:
            initrd.write(_ours())
            initrd.writelines(_of_this_run(image, command, work))
        console = boot.emulate(
            [
                *("qemu-system-aarch64", "-M", "virt", "-cpu", "neoverse-n1", "-smp", "2", "-m", _MEMORY, "-nographic"),
                *("-no-reboot", "-nic", "none", "-kernel", str(work / "kernel"), "-initrd", str(work / "initrd")),
                *("-append", "console=ttyAMA0 rdinit=/init panic=-1 loglevel=3", *boot.ONE_THREAD.split()),
            ],
            deadline_s,
        )
    run = re.search(rf"^{_START}\r?\n(.*)^{_END} (\d+)", console, re.MULTILINE | re.DOTALL)
    output = run[1].replace("\r", "") if run else ""
    return boot.VmResult(int(run[2]) if run else None, output, console, time.monotonic() - start)


def _plain_image(image: bytes) -> bytes:
    """The kernel without its EFI wrapper, which qemu before 8.0 cannot decompress.

    Source: drivers/firmware/efi/libstub/zboot-header.S.
    """
    if image[4:8] != b"zimg":
        return gzip.decompress(image) if image[:2] == b"\x1f\x8b" else image
    offset, size = (int.from_bytes(image[at : at + 4], "little") for at in (8, 12))
    compressed = image[offset : offset + size]
    kind = image[24:56].split(b"\0")[0].decode()
    if kind == "gzip":
        return gzip.decompress(compressed)
    return subprocess.run([kind, "-d", "-c"], input=compressed, capture_output=True, check=True).stdout


@functools.cache
def _system() -> Path:
    """The archive of the packages, from the cache if they are the same as last time, or not to be had now.

    Raises:
        CalledProcessError: they cannot be had, and none are in the cache.
    """
    cache = user_cache() / "arm64"
    try:
        return _of_today(cache)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        for kept in cache.glob("system-*.cpio"):
            return kept
        raise


def _of_today(cache: Path) -> Path:
    """The archive of today's packages."""
    options = kernels.apt_options(kernels.find_source(), SUITE, cache / "apt", kernels.ARM64)
    kernels.run(["apt-get", *options, "update"])
    plan = kernels.run(["apt-get", *options, "--quiet=0", "-oAPT::Install-Recommends=0", "-s", "install", *PACKAGES])
    wanted = re.findall(r"^Inst (\S+) \((\S+)", plan, re.MULTILINE)
    digest = hashlib.sha256(repr((wanted, _LEFT_OUT, _COMPILE)).encode()).hexdigest()[:16]
    archive = cache / f"system-{digest}.cpio"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            work = Path(directory)
            tree = kernels.download([f"{package}={version}" for package, version in wanted], options, work)
            for left_out in _LEFT_OUT:
                shutil.rmtree(tree / left_out, ignore_errors=True)
            subprocess.run([*_COMPILE, str(tree / "usr/lib")], check=False, stdout=subprocess.DEVNULL)
            with (work / "archive").open("wb") as file:
                file.writelines(_archive(tree))
            for old in cache.glob("system-*.cpio"):
                old.unlink()
            (work / "archive").rename(archive)
    return archive


@functools.cache
def _ours() -> bytes:
    """The archive of the checkout and of the package for arm64."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        tree = work / "tree"
        (tree / "checkout").mkdir(parents=True)
        for name in _CHECKOUT:
            if (boot.CHECKOUT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(boot.CHECKOUT / name, tree / "checkout" / name, ignore=ignored)
            else:
                shutil.copy(boot.CHECKOUT / name, tree / "checkout" / name)
        subprocess.run([*_COMPILE, str(tree / "checkout")], check=True)
        kernels.run([str(boot.CHECKOUT / "tools/deb"), str(work / "package"), kernels.ARM64])
        (package,) = (work / "package").glob("*.deb")
        kernels.run(["dpkg-deb", "-x", str(package), str(tree)])
        return b"".join(_archive(tree))


def _of_this_run(image: Path, command: str, work: Path) -> Iterator[bytes]:
    """The archive of the first process, the command, and the modules that the tests can need."""
    tree = work / "tree"
    tree.mkdir()
    (tree / "init").write_text(_INIT)
    (tree / "init").chmod(0o755)
    (tree / "command").write_text(command)
    (release,) = boot.modules(image).iterdir()
    below = tree / "lib/modules" / release.name
    for module in (path for pattern in _MODULES for path in (release / "kernel").glob(pattern)):
        copy = below / module.relative_to(release)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, copy)
    # With Linux 7 they are in a package that nothing else needs; without them, depmod only warns.
    for path in release.glob("modules.*"):
        if path.name in {"modules.order", "modules.builtin", "modules.builtin.modinfo"}:
            shutil.copy(path, below)
    kernels.run(["depmod", "-b", str(tree), release.name])
    return _archive(tree)


def _archive(tree: Path) -> Iterator[bytes]:
    """A cpio archive (newc) of a tree; all files belong to root."""
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            content = str(path.readlink()).encode()
        elif path.is_file():
            content = path.read_bytes()
        elif path.is_dir():
            content = b""
        else:
            continue
        yield _entry(str(path.relative_to(tree)), status.st_mode, content)
    yield _entry("TRAILER!!!", 0, b"")


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """One file of an archive."""
    encoded = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + "".join(f"{number:08x}" for number in numbers).encode() + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
