"""Names of network namespaces, from a /run/netns and /proc in which files stand for namespaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from skbcapd.attribution.namespaces import REMEMBERED, Namespaces

CONTAINER = "3f2a" * 16


class Machine:
    """A /run/netns and a /proc in a directory; a namespace is a file there, with its inode number."""

    def __init__(self, root: Path) -> None:
        self.run, self.proc, self._root = root / "netns", root / "proc", root
        self.run.mkdir()
        self.proc.mkdir()

    def namespace(self, *names: str) -> Path:
        """Add a namespace; names are those of `ip netns`."""
        made = self._root / f"namespace {len(list(self._root.iterdir()))}"
        made.touch()
        for name in names:
            (self.run / name).hardlink_to(made)
        return made

    def process(self, tgid: int, namespace: Path, start: int = 7, cgroup: str = "0::/\n") -> None:
        """Add a process in a namespace."""
        directory = self.proc / str(tgid)
        (directory / "ns").mkdir(parents=True)
        (directory / "ns/net").hardlink_to(namespace)
        fields = " ".join(["S", *["0"] * 18, str(start), "0"])
        (directory / "stat").write_text(f"{tgid} (a) b) {fields}\n")
        (directory / "cgroup").write_text(cgroup)

    def describe(self, namespace: Path) -> str:
        """Its description, without the number."""
        inode = namespace.stat().st_ino
        return Namespaces(self.run, self.proc).describe(1, inode).replace(str(inode), "NUMBER")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without namespaces."""
    return Machine(tmp_path)


def test_a_named_namespace_has_its_name(machine: Machine) -> None:
    """The name of `ip netns` is used first."""
    machine.namespace("other")
    web = machine.namespace("web")
    machine.process(1, web)
    assert machine.describe(web) == "network namespace web"


def test_a_name_can_have_any_bytes(machine: Machine) -> None:
    """Control characters of a name are escaped: they could move the cursor of a terminal."""
    assert machine.describe(machine.namespace("a\x1b[31m")) == "network namespace a\\x1b[31m"


def test_the_namespace_of_init(machine: Machine) -> None:
    """The namespace of process 1 is described as that of init."""
    host = machine.namespace()
    machine.process(1, host, start=0)
    machine.process(40, host)
    assert machine.describe(host) == "network namespace of init"


@pytest.mark.parametrize(
    ("cgroup", "said"),
    [
        (f"0::/system.slice/docker-{CONTAINER}.scope\n", "of container 3f2a3f2a3f2a"),
        (f"0::/kubepods/pod1/{CONTAINER}\n", "of container 3f2a3f2a3f2a"),
        (f"12:cpu:/\n0::/machine.slice/libpod-{CONTAINER}.scope/container\n", "of container 3f2a3f2a3f2a"),
        ("0::/machine.slice/machine-web.scope\n", "of container web"),
        ("0::/user.slice\n", "NUMBER"),
        ("", "NUMBER"),
    ],
)
def test_the_namespace_of_a_container(machine: Machine, cgroup: str, said: str) -> None:
    """A container is recognized by the cgroup of the oldest process in the namespace, not by that
    of a later one.
    """
    inside = machine.namespace()
    machine.process(900, inside, start=80, cgroup=cgroup)
    machine.process(70, inside, start=81, cgroup=f"0::/docker-{'0' * 64}.scope")
    assert machine.describe(inside) == f"network namespace {said}"


def test_nothing_is_known(machine: Machine) -> None:
    """A namespace without a name and a process has its number, also without /proc."""
    alone = machine.namespace()
    machine.process(70, machine.namespace())
    (machine.proc / "71/ns").mkdir(parents=True)
    assert machine.describe(alone) == "network namespace NUMBER"
    assert Namespaces(Path("/nonexistent"), Path("/nonexistent")).describe(1, 4026532281) == (
        "network namespace 4026532281"
    )


def test_it_is_looked_up_once(machine: Machine) -> None:
    """A description is cached by the cookie of the namespace; of many namespaces the oldest is
    evicted.
    """
    namespaces = Namespaces(machine.run, machine.proc)
    web = machine.namespace("web")
    inode = web.stat().st_ino
    assert namespaces.describe(1, inode) == "network namespace web"
    (machine.run / "web").unlink()
    assert namespaces.describe(1, inode) == "network namespace web"
    for cookie in range(2, REMEMBERED + 2):
        namespaces.describe(cookie, inode)
    assert namespaces.describe(1, inode) == f"network namespace {inode}"


def test_many_namespaces_do_not_delay_packets(machine: Machine) -> None:
    """Lookups of processes take at most half a second and a tenth of the time; `ip netns` names are
    always found.
    """
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.1  # each lookup takes so long
        return now

    there, named_one = machine.namespace(), machine.namespace("web")
    machine.process(1, there)
    web = there.stat().st_ino
    namespaces = Namespaces(machine.run, machine.proc, clock)
    found = [namespaces.describe(cookie, web) for cookie in range(1, 1010)]
    named = found.count("network namespace of init")
    assert 6 < named < 1009 // 7
    assert set(found) == {"network namespace of init", f"network namespace {web}"}
    now += 100.0
    assert namespaces.describe(1009, web) == "network namespace of init"
    assert namespaces.describe(5000, named_one.stat().st_ino) == "network namespace web"
