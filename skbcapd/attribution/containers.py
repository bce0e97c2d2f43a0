"""Names of containers and Kubernetes pods, from the state files of the container engines.

In: the id of a container, from its cgroup, and that cgroup. Out: names; empty if they are not
known.

No engine is asked: its socket may hang, and the process that answers there would choose the names.
These files are read, by id:

    /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log    Kubernetes: a link for the log of each container
    /var/log/pods/NAMESPACE_POD_UID/                      Kubernetes: by the UID of the pod, which is in the cgroup
    DOCKER/containers/ID/config.v2.json                   docker; DOCKER is /var/lib/docker
    STORAGE/DRIVER-containers/containers.json             podman and CRI-O; STORAGE is /var/lib/containers/storage
    RUN/DRIVER-containers/volatile-containers.json        podman --rm; RUN is /run/containers/storage

All of them belong to root. Files of other users (podman without root) are not read: their file
systems may never respond.

The rule not to break: packets wait for this. Reading is limited in bytes, entries and time. The
content of a file gives names or nothing, never an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from skbcapd.attribution.budget import Budget
from skbcapd.lru import Bounded
from skbcapd.worker import TimedCall

REMEMBERED = 1024
FRESH_S = 10.0  # a container can be renamed
AGAIN_S = 1.0  # a container without a name is looked up again: its files can be later than its packets
AHEAD_S = 0.5  # packets wait during a lookup
NAME_MAX = 255  # bytes; a longer name is left out
_CONFIG_MAX = 1 << 20  # bytes of the config file of docker for one container
_LIST_MAX = 4 << 20  # bytes of the list of all containers
_ENTRIES_MAX = 1 << 14  # entries of a directory or of a list
_DRIVERS = ("overlay", "vfs", "btrfs", "zfs")

_ID = re.compile(rb"[0-9a-f]{64}")
_LOG = re.compile(r"([^_/]+)_([^_/]+)_([^_/]+)-([0-9a-f]{64})\.log")
_POD = re.compile(r"([^_/]+)_([^_/]+)_([0-9a-f-]+)")
# Names that the kubelet gives to containers in docker and CRI-O:
# k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT.
_KUBELET = re.compile(r"k8s_([^_/]+)_([^_/]+)_([^_/]+)_[^_/]+_[0-9]+")
_PAUSE = "POD"  # this container holds the namespaces of a pod, and runs no program
_UID = re.compile(rb"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?:[/:]|$)")


class Names(NamedTuple):
    """The names of a container and of its pod; empty if not known.

    Args:
        name: name of the container in its engine, or in its pod.
        pod: namespace/pod/container, or namespace/pod.
    """

    name: bytes = b""
    pod: bytes = b""


NOTHING = Names()


@dataclass(frozen=True, slots=True)
class Places:
    """The directories with the state files of the engines.

    Args:
        docker: directories of docker.
        storage: directories of podman and CRI-O.
        logs: directory of the Kubernetes logs.
        daemon: config file of docker, which can name another directory.
    """

    docker: tuple[Path, ...] = (Path("/var/lib/docker"), Path("/var/snap/docker/common/var-lib-docker"))
    storage: tuple[Path, ...] = (Path("/var/lib/containers/storage"), Path("/run/containers/storage"))
    logs: Path = Path("/var/log")
    daemon: Path = Path("/etc/docker/daemon.json")


class Containers:
    """Finds and caches names of containers, including containers that have ended.

    Args:
        places: directories with state files.
        clock: seconds.
    """

    def __init__(self, places: Places | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places or Places()
        self._clock = clock
        self._budget = Budget(AHEAD_S, clock)
        self._reader: TimedCall[Names | None] = TimedCall("containers")  # the disk of an engine may not respond
        self._known: Bounded[bytes, tuple[float, Names]] = Bounded(REMEMBERED)
        self._listed: dict[Path, _Listed] = {}
        self._docker: tuple[Path, ...] | None = None

    def find(self, identifier: bytes, cgroup: bytes) -> Names:
        """The names of a container.

        Args:
            identifier: its id, 64 hex digits; any other text has no names.
            cgroup: path of its cgroup.
        """
        if not _ID.fullmatch(identifier):
            return NOTHING
        now = self._clock()
        until, names = self._known.get(identifier, (now, NOTHING))
        if now < until or self._budget.is_spent or self._reader.is_waiting:
            return names
        self._reader.late()  # the names of another container
        with self._budget.spending(), contextlib.suppress(TimeoutError):
            # A container that has ended keeps its names, because ids are not reused.
            names = self._reader.call(partial(self._look, identifier.decode(), cgroup)) or names
        self._known[identifier] = self._clock() + (FRESH_S if any(names) else AGAIN_S), names
        return names

    def _look(self, identifier: str, cgroup: bytes) -> Names | None:
        in_pod = b"kubepods" in cgroup
        if in_pod and (found := self._list(self._places.logs / "containers", _read_logs).get(identifier)):
            return found
        name = self._engine_name(identifier)
        if not in_pod:
            return Names(_name(name)) if name else None
        if kubelet := _KUBELET.fullmatch(name):
            container, pod, namespace = kubelet.groups()
            inside = "" if container == _PAUSE else f"/{container}"
            return Names(_name(container), _name(f"{namespace}/{pod}{inside}"))
        uid = _UID.search(cgroup)
        pods = self._list(self._places.logs / "pods", _read_pods)
        found = pods.get(uid[1].decode().replace("_", "-")) if uid else None
        return found or (Names(_name(name)) if name else None)

    def _engine_name(self, identifier: str) -> str:
        """The name from docker, podman or CRI-O."""
        for root in self._docker_roots():
            name = _text(_read_json(root / "containers" / identifier / "config.v2.json", _CONFIG_MAX), "Name")
            if name:
                return name.removeprefix("/")
        for root in self._places.storage:
            for driver in _DRIVERS:
                for kind in ("containers", "volatile-containers"):
                    names = self._list(root / f"{driver}-containers" / f"{kind}.json", _read_storage)
                    if identifier in names:
                        return names[identifier].name.decode(errors="surrogateescape")
        return ""

    def _docker_roots(self) -> tuple[Path, ...]:
        if self._docker is None:
            moved = _text(_read_json(self._places.daemon, _CONFIG_MAX), "data-root")
            own = (Path(moved),) if moved.startswith("/") and "\0" not in moved else ()
            self._docker = own + self._places.docker
        return self._docker

    def _list(self, path: Path, read: Callable[[Path], Iterator[tuple[str, Names]]]) -> dict[str, Names]:
        """Names by container id, from a directory or file; read again only if that has changed."""
        listed = self._listed.setdefault(path, _Listed())
        version: tuple[int, ...] = ()
        with contextlib.suppress(OSError):
            state = path.stat()
            version = state.st_ino, state.st_mtime_ns, state.st_size
        if version != listed.version:
            # Two changes in the same tick of the file system's clock have the same time: a result
            # that was read so soon after the change is not final.
            is_final = not version or time.time_ns() - version[1] > 1_000_000_000
            listed.version = version if is_final else ()
            listed.names = dict(islice(read(path), _ENTRIES_MAX)) if version else {}
        return listed.names


@dataclass(slots=True)
class _Listed:
    """The content of a directory or file when it was last read."""

    version: tuple[int, ...] = ()
    names: dict[str, Names] = field(default_factory=dict)


def _read_logs(path: Path) -> Iterator[tuple[str, Names]]:
    for name in _entries(path):
        if found := _LOG.fullmatch(name):
            pod, namespace, container, identifier = found.groups()
            yield identifier, Names(_name(container), _name(f"{namespace}/{pod}/{container}"))


def _read_pods(path: Path) -> Iterator[tuple[str, Names]]:
    for name in _entries(path):
        if found := _POD.fullmatch(name):
            namespace, pod, uid = found.groups()
            yield uid, Names(b"", _name(f"{namespace}/{pod}"))


def _read_storage(path: Path) -> Iterator[tuple[str, Names]]:
    entries = _read_json(path, _LIST_MAX)
    for entry in entries if isinstance(entries, list) else []:
        names = entry.get("names") if isinstance(entry, dict) else None
        if isinstance(names, list) and names and isinstance(names[0], str):
            yield _text(entry, "id"), Names(_name(names[0]))


def _entries(path: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in islice(entries, 4 * _ENTRIES_MAX):
            yield entry.name


def _read_json(path: Path, most: int) -> Any:
    """The value in a JSON file; None if it is not a regular file, too long, or not JSON."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(file, "rb") as opened:
            state = os.fstat(file)
            if stat.S_ISREG(state.st_mode) and state.st_size <= most:
                return json.loads(opened.read(most))
    return None


def _text(found: Any, key: str) -> str:
    """The text of a key of an object; empty if there is none."""
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""


def _name(text: str) -> bytes:
    """A name as bytes; empty if it is too long."""
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can contain
        return b""
    return name if len(name) <= NAME_MAX else b""
