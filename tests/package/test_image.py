"""The container image: two builds are equal, and it captures as docs/containers.md starts it."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import tarfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import skbcapd
from tests.kernel.capture import read
from tests.kernel.namespace import Wire
from tests.package.podman import IMAGE, ROOT, Podman, await_line, build, namespaces
from tests.support.blocks import Packet

COUNT = 23
PORT = 1013
COMPRESSED_MAX = 120_000_000  # bytes


def parts(archive: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config of an image."""

    def read_blob(tar: tarfile.TarFile, digest: str) -> dict[str, Any]:
        file = tar.extractfile(f"./blobs/{digest.replace(':', '/')}")
        assert file is not None
        return dict(json.load(file))

    with tarfile.open(archive) as tar:
        index = tar.extractfile("./index.json")
        assert index is not None
        [entry] = json.load(index)["manifests"]
        assert entry["annotations"] == {"org.opencontainers.image.ref.name": IMAGE}
        manifest = read_blob(tar, entry["digest"])
        return manifest, read_blob(tar, manifest["config"]["digest"])


def documented(page: Path) -> list[str]:
    """The words of `podman run` on a page."""
    [found] = re.findall(r"^    sudo podman run -d ((?:.*\\\n)*.*)", page.read_text(), re.MULTILINE)
    return shlex.split(found.replace("\\\n", " "))


def options(captures: Path) -> list[str]:
    """The options of the documentation, with directories of the test; the cache stays from test to
    test.
    """
    *words, image = documented(ROOT / "docs/containers.md")
    assert image == IMAGE
    text = " ".join(word for word in words if word not in ("--name", "skbcapd"))
    replaced = text.replace("-v /var/log/skbcapd:", f"-v {captures}:")
    assert replaced != text
    return replaced.split()


def sent(host: Wire) -> None:
    """Sends the datagrams that the capture waits for."""
    near, far = host.near.namespace, host.far.namespace
    with (
        closing(far.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as receiver,
        closing(near.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as sender,
    ):
        receiver.bind((host.far.ipv4, 0))
        sender.bind((host.near.ipv4, PORT))
        for number in range(COUNT):
            sender.sendto(b"image %d" % number, receiver.getsockname())


def captured(
    engine: Podman, host: Wire, captures: Path, more: Sequence[str], alike: set[str]
) -> tuple[list[Packet], str]:
    """What a container captures of this process, and what it says. The kinds of namespaces are those
    it has in common with the host.
    """
    words = ["capture", "-i", host.near.device, "-w", "/var/log/skbcapd/a.pcapng", "-c", str(COUNT)]
    words += ["--set", "comment=comm,pid,tgid,exe,user", f"udp and src port {PORT}"]
    run = [*options(captures), *more, "--name=tried"]
    with engine.start(host.near.namespace, run, words) as process:
        said = await_line(process, "capturing on")
        [pid] = engine.do("inspect", "--format={{.State.Pid}}", "tried").split()
        here, inside = host.near.namespace.do(namespaces, "thread-self"), namespaces(pid)
        assert {kind for kind in here if here[kind] == inside[kind]} == alike
        sent(host)
        assert process.stderr is not None
        said += process.stderr.read()
        assert process.wait() == 0, said
    return read(captures / "a.pcapng"), said


def test_two_builds_are_equal(image: tuple[Path, str], tmp_path: Path) -> None:
    """A second build has the same digest."""
    archive, digest = build(tmp_path)
    archive.unlink()
    assert digest == image[1]


def test_labels_and_sizes(image: tuple[Path, str]) -> None:
    """Annotations and labels are those of OCI; the image starts the service, and is as small as its
    compiler allows.
    """
    manifest, config = parts(image[0])
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in manifest["annotations"].items()}
    assert manifest["annotations"] == config["config"]["Labels"]
    assert (labels["version"], labels["licenses"]) == (skbcapd.__version__, "GPL-2.0-only")
    assert (config["config"]["Entrypoint"], config["config"]["Cmd"]) == (["/usr/bin/skbcapd"], ["run"])
    assert config["created"] == labels["created"]
    assert sum(layer["size"] for layer in manifest["layers"]) < COMPRESSED_MAX


@pytest.mark.parametrize("user", [[], ["--user=65532:65532"]], ids=["root", "not root"])
def test_it_captures(engine: Podman, host: Wire, user: list[str]) -> None:
    """As documented, and as a user that is not root: packets have name, number and program of their
    process. Mounts, IPC and host name are those of the container.
    """
    captures = engine.volume("as-root" if not user else "as-another-user")
    found, said = captured(engine, host, captures, user, {"cgroup", "net", "pid", "user"})
    own = Path("/proc/self/exe").readlink()
    assert [packet.data[-len(b"image %d" % at) :] for at, packet in enumerate(found)] == [
        b"image %d" % at for at in range(COUNT)
    ]
    assert {packet.label.tgid for packet in found if packet.label} == {os.getpid()}
    assert all({f"exe={own}", "user=root"} <= set(packet.comment.split()) for packet in found)
    assert "--pid=host" not in said


def test_without_the_processes_of_the_host(engine: Podman, host: Wire) -> None:
    """In a PID and a cgroup namespace of its own, packets have name and number of their process on
    the host, and one line says how to get the rest.
    """
    found, said = captured(
        engine, host, engine.volume("private"), ["--pid=private", "--cgroupns=private"], {"net", "user"}
    )
    assert len(found) == COUNT
    assert {(packet.label.comm, packet.label.tgid) for packet in found if packet.label} == {
        (Path("/proc/thread-self/comm").read_text().strip(), os.getpid())
    }
    assert not any("exe=" in packet.comment or "user=" in packet.comment for packet in found)
    assert said.count("--pid=host") == 1


def test_the_service_answers(engine: Podman, host: Wire) -> None:
    """The image's own command writes files, `skbcapd status` in the container succeeds while it
    captures, and SIGTERM ends it.
    """
    captures = engine.volume("service")
    run = [*options(captures), "--name=service"]
    with engine.start(host.near.namespace, run, ["run", "--set", "namespaces=self"]) as process:
        await_line(process, "capturing on")
        assert "written" in engine.do("exec", "service", "skbcapd", "status")
        engine.do("stop", "service")
        assert process.wait() == 0
    assert list(captures.glob("*.pcapng"))
