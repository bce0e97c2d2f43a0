"""Names of containers and pods, from state files that the test makes, also from broken ones."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skbcapd.attribution import containers
from skbcapd.attribution.containers import NAME_MAX, NOTHING, Containers, Names, Places
from skbcapd.attribution.processes import Processes
from tests.support.deadline import until
from tests.support.proc import TICK, Proc

ID, OTHER = b"0123456789abcdef" * 4, b"f" * 64
UID = "01234567-89ab-cdef-0123-456789abcdef"
IN_POD = b"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod%b.slice/cri-containerd-%b.scope" % (
    UID.replace("-", "_").encode(),
    ID,
)


class Clock:
    """A clock that the test sets, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Directories of the engines, which do not exist yet."""
    return Places((tmp_path / "docker",), (tmp_path / "storage",), tmp_path / "log", tmp_path / "daemon.json")


@pytest.fixture
def known(places: Places, clock: Clock) -> Containers:
    """Finds names in those directories."""
    return Containers(places, clock)


def docker(root: Path, content: object, identifier: bytes = ID) -> Path:
    """The config file of docker for a container."""
    path = root / "containers" / identifier.decode() / "config.v2.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def storage(root: Path, content: object, file: str = "overlay-containers/containers.json") -> Path:
    """The list of containers of podman, old enough to be cached."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def test_docker(places: Places, known: Containers) -> None:
    """A container of docker has its name without the slash."""
    docker(places.docker[0], {"ID": ID.decode(), "Name": "/web", "State": {"Running": True}})
    assert known.find(ID, b"/system.slice/docker-%b.scope" % ID) == Names(b"web")
    assert known.find(OTHER, b"/system.slice/docker-%b.scope" % OTHER) == NOTHING


def test_docker_elsewhere(tmp_path: Path, places: Places, known: Containers) -> None:
    """The config file of docker can name another directory."""
    places.daemon.write_text(json.dumps({"data-root": str(tmp_path / "data")}))
    docker(tmp_path / "data", {"Name": "/moved"})
    assert known.find(ID, b"/docker/" + ID) == Names(b"moved")


@pytest.mark.parametrize(
    "file",
    [
        "overlay-containers/containers.json",
        "vfs-containers/containers.json",
        "overlay-containers/volatile-containers.json",
    ],
)
def test_podman(file: str, places: Places, known: Containers) -> None:
    """A container of podman has the first name in the list of its storage, for all drivers."""
    listed = [{"id": OTHER.decode(), "names": ["db"]}, {"id": ID.decode(), "names": ["web", "alias"]}]
    storage(places.storage[0], listed, file)
    assert known.find(ID, b"/machine.slice/libpod-%b.scope/container" % ID) == Names(b"web")
    assert known.find(OTHER, b"/machine.slice/libpod-%b.scope" % OTHER) == Names(b"db")


def test_kubernetes_by_the_containers_log(places: Places, known: Containers) -> None:
    """The link to the log of a container gives pod, namespace and container."""
    logs = places.logs / "containers"
    logs.mkdir(parents=True)
    (logs / f"web-7d4b_shop_nginx-{ID.decode()}.log").symlink_to("/nowhere")
    assert known.find(ID, IN_POD) == Names(b"nginx", b"shop/web-7d4b/nginx")


@pytest.mark.parametrize("uid", [UID, UID.replace("-", "")])
def test_kubernetes_by_the_pods_log(uid: str, places: Places, known: Containers) -> None:
    """Without that link, the pod is found by its UID in the cgroup; the container is not known."""
    (places.logs / "pods" / f"shop_web-7d4b_{uid}" / "nginx").mkdir(parents=True)
    (places.logs / "pods" / "shop_other_89abcdef-89ab-cdef-0123-456789abcdef").mkdir()
    cgroup = IN_POD.replace(UID.replace("-", "_").encode(), uid.replace("-", "_").encode())
    assert known.find(ID, cgroup) == Names(b"", b"shop/web-7d4b")
    assert known.find(ID, f"/kubepods/besteffort/pod{uid}/{ID.decode()}".encode()) == Names(b"", b"shop/web-7d4b")


def test_kubernetes_by_the_engines_name(places: Places, known: Containers) -> None:
    """Names from the kubelet in docker and CRI-O have all parts; a pause container has only its
    pod.
    """
    docker(places.docker[0], {"Name": "/k8s_nginx_web-0_shop_uid-1_0"})
    docker(places.docker[0], {"Name": "/k8s_POD_web-0_shop_uid-1_0"}, OTHER)
    assert known.find(ID, b"/kubepods/podx/" + ID) == Names(b"nginx", b"shop/web-0/nginx")
    assert known.find(OTHER, b"/kubepods/podx/" + OTHER).pod == b"shop/web-0"
    # A container with such a name, but outside of a pod, is in no pod.
    outside = Containers(places)
    assert outside.find(ID, b"/docker/" + ID) == Names(b"k8s_nginx_web-0_shop_uid-1_0")


@pytest.mark.parametrize("identifier", [b"", b"web", ID[1:], ID + b"0", ID.upper(), b"../" + ID[3:]])
def test_invalid_ids_are_not_looked_up(identifier: bytes, places: Places, known: Containers) -> None:
    """Only 64 hex digits become part of a path."""
    docker(places.docker[0], {"Name": "/web"})
    assert known.find(identifier, b"/docker/x") == NOTHING


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "7" * 5000,
        "null",
        "[]",
        '{"Name": 7}',
        '{"Name": ["/web"]}',
        '{"Name": ""}',
        '{"Name": "/"}',
        '{"Name": "\\ud800"}',
        json.dumps({"Name": "/" + "x" * (NAME_MAX + 1)}),
        '{"Name": "/web"}' + " " * (1 << 20),
    ],
    ids=range(13),
)
def test_files_that_make_no_sense(content: str, places: Places, known: Containers) -> None:
    """A file that is not JSON, too long, or has other content gives no name and no error."""
    docker(places.docker[0], content)
    storage(places.storage[0], content)
    storage(
        places.storage[0],
        [7, {"id": 7, "names": [7]}, {"id": ID.decode()}, {"names": ["a"]}],
        "vfs-containers/containers.json",
    )
    assert known.find(ID, b"/docker/" + ID) == NOTHING


def test_names_can_have_any_bytes(places: Places, known: Containers) -> None:
    """A name can have any bytes; the comment escapes them."""
    docker(places.docker[0], {"Name": "/a b=\x1b[31m\n\xe9"})
    assert known.find(ID, b"/docker/" + ID) == Names("a b=\x1b[31m\n\xe9".encode())


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_irregular_files_are_not_opened(kind: str, tmp_path: Path, places: Places, known: Containers) -> None:
    """A FIFO is not waited for, a link is not followed."""
    path = docker(places.docker[0], {"Name": "/web"})
    path.rename(tmp_path / "elsewhere")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    assert known.find(ID, b"/docker/" + ID) == NOTHING


def test_names_are_looked_up_again(places: Places, known: Containers, clock: Clock) -> None:
    """A late name is found after a second, a new one after ten; a container that has ended keeps
    its last name.
    """
    cgroup = b"/docker/" + ID
    found = [known.find(ID, cgroup).name]
    path = docker(places.docker[0], {"Name": "/web"})
    for seconds in (0.5, 0.6):
        clock.now += seconds
        found.append(known.find(ID, cgroup).name)
    docker(places.docker[0], {"Name": "/new"})
    for seconds in (9.0, 1.1):
        clock.now += seconds
        found.append(known.find(ID, cgroup).name)
    path.unlink()
    clock.now += 11
    found.append(known.find(ID, cgroup).name)
    assert found == [b"", b"", b"web", b"web", b"new", b"new"]


def test_a_list_is_read_when_it_has_changed(places: Places, known: Containers, clock: Clock) -> None:
    """A list of containers is read once, and again if the file has changed."""
    first, second = ([{"id": identifier.decode(), "names": ["web"]}] for identifier in (ID, OTHER))
    path = storage(places.storage[0], first)
    assert known.find(ID, b"/machine.slice/x") == Names(b"web")
    storage(places.storage[0], second)  # the same size and time
    clock.now += 11
    assert known.find(OTHER, b"/machine.slice/x") == NOTHING
    os.utime(path, (1_700_000_007, 1_700_000_007))
    clock.now += 11
    assert known.find(OTHER, b"/machine.slice/x") == Names(b"web")


def test_memory_is_bounded(known: Containers) -> None:
    """At most 1024 containers are cached."""
    for number in range(containers.REMEMBERED + 7):
        known.find(b"%064x" % number, b"/docker/x")
    assert len(known._known) == containers.REMEMBERED


def test_time_is_bounded(places: Places) -> None:
    """Lookups take half a second, and then a tenth of the time, however many containers there are
    and however slow the disk is.
    """
    count = 307
    for number in range(count):
        docker(places.docker[0], {"Name": "/web"}, b"%064x" % number)
    step_s, steps = 0.3, iter(range(10_000))
    slow = Containers(places, lambda: next(steps) * step_s)  # a lookup takes as long as a read of the clock
    found = [slow.find(b"%064x" % number, b"/docker/x").name for number in range(count)]
    took_s = found.count(b"web") * step_s
    assert 0 < took_s <= containers.AHEAD_S + step_s + next(steps) * step_s / 10


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_names_of_logs(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """For any files among the logs, names are bytes without a NUL, or empty."""
    root = tmp_path_factory.mktemp("logs")
    for directory in ("containers", "pods"):
        (root / directory).mkdir()
    (root / "containers" / f"{name}_ns_c-{ID.decode()}.log").touch()
    (root / "pods" / f"{name}_{UID}").mkdir()
    found = Containers(Places((), (), root, root / "none")).find(ID, IN_POD)
    assert b"\0" not in found.pod
    assert found.name in {b"", b"c"}


def test_a_process_has_its_containers_names(tmp_path: Path, places: Places, known: Containers) -> None:
    """The record of a process has the names of its container; a process outside of containers has
    none.
    """
    docker(places.docker[0], {"Name": "/web"})
    proc = Proc(tmp_path)
    proc.add(7, cgroup=b"0::/system.slice/docker-%b.scope\n" % ID)
    proc.add(9)
    processes = Processes(proc=proc.path, users=proc.users, containers=known)
    inside, outside = (processes.find(tgid, tgid, 5900 * TICK, b"chronyd") for tgid in (7, 9))
    assert inside is not None
    assert outside is not None
    assert (inside.names, outside.names) == (Names(b"web"), NOTHING)


class HungPath(type(Path())):  # type: ignore[misc]
    """A path on a disk that does not respond until the test says so."""

    disk = threading.Event()

    def stat(self, **_: object) -> os.stat_result:
        """Wait for the disk."""
        self.disk.wait()
        raise FileNotFoundError


@pytest.mark.late_thread
def test_a_disk_that_hangs(places: Places, clock: Clock) -> None:
    """The disk of an engine that does not respond is waited for once, and shortly; later its names are found."""
    docker(places.docker[0], {"Name": "/web"}, OTHER)
    known = Containers(replace(places, logs=HungPath("/hung")), clock)
    begun = time.monotonic()
    for _ in range(101):
        assert known.find(ID, IN_POD) == NOTHING
        assert known.find(OTHER, b"/docker/x") == NOTHING
        clock.now += 2
    assert time.monotonic() - begun < 2
    HungPath.disk.set()

    def found() -> bool:
        clock.now += 2
        return known.find(OTHER, b"/docker/x") == Names(b"web")

    until(found, "the disk responds")
