"""Containers of podman in a storage of their own, which is gone afterwards.

In: an archive of an image. Out: running containers and what they print. Each runs in a network
namespace of the tests, as one with --network=host does in that of the host.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import skbcapd
from tests.kernel.namespace import Namespace
from tests.support.deadline import DEADLINE_S

ROOT = Path(skbcapd.__file__).parent.parent
IMAGE = f"localhost/skbcapd:{skbcapd.__version__}"
# On a host without CAP_SYS_RESOURCE, the limits that podman sets by default are refused.
_HERE = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", f"--timeout={DEADLINE_S:.0f}")


class Podman:
    """Podman with the image.

    Args:
        storage: directory for images and containers.
    """

    def __init__(self, storage: Path) -> None:
        self._words = [
            # Not crun: that of Debian 12 refuses hosts with both versions of cgroups.
            *("podman", "--runtime=runc", "--cgroup-manager=cgroupfs", "--root", str(storage / "root")),
            *("--runroot", str(storage / "run"), "--tmpdir", str(storage / "tmp"), "--events-backend=none"),
        ]
        self.volumes = storage / "volumes"
        self.volumes.mkdir()

    def do(self, *words: str) -> str:
        """Run a command of podman that ends; what it prints.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run([*self._words, *words], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, namespace: Namespace, options: Sequence[str], words: Sequence[str]) -> subprocess.Popen[str]:
        """Start a container.

        Args:
            namespace: network namespace that is that of the host for it.
            options: of `podman run`.
            words: for the program in the image.
        """
        command = [*self._words, "run", "--rm", *_HERE, *options, IMAGE, *words]
        pipe = subprocess.PIPE
        return namespace.do(subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

    def volume(self, name: str, mode: int = 0o1777) -> Path:
        """A new directory for a container."""
        made = self.volumes / name
        made.mkdir()
        made.chmod(mode)
        return made


@contextmanager
def podman(archive: Path) -> Iterator[Podman]:
    """Podman with the image of an archive, and nothing else."""
    storage = Path(tempfile.mkdtemp(prefix="skbcapd-podman-", dir="/var/tmp"))
    made = Podman(storage)
    try:
        made.do("load", "--quiet", "--input", str(archive))
        yield made
    finally:
        made.do("rm", "--all", "--force", "--time=0")
        subprocess.run(["umount", "--quiet", str(storage / "root/overlay")], check=False)  # podman leaves it mounted
        shutil.rmtree(storage)


def await_line(process: subprocess.Popen[str], wanted: str) -> str:
    """Read what a container prints on stderr up to a line; returns all of it. podman ends the
    container at the deadline.

    Raises:
        AssertionError: it ended without such a line.
    """
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if re.search(wanted, line):
            return said
    raise AssertionError(said)


def build(place: Path) -> tuple[Path, str]:
    """Builds the image; its archive and its digest."""
    done = subprocess.run([str(ROOT / "tools/image"), str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    archive, digest, _ = done.stdout.splitlines()
    return Path(archive), digest


def namespaces(pid: int | str) -> dict[str, str]:
    """The namespaces of a process, by kind."""
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    return {kind: str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in kinds}
