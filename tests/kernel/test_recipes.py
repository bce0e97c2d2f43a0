"""Each recipe of docs/recipes.md that captures, as it is there, with names of this machine in it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import ATTACH, ROOT, Daemon, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.support.blocks import Packet
from tests.support.command import run
from tests.support.deadline import DEADLINE_S
from tests.support.recipes import recipes, shape, task

ALL = recipes("Captures now")
COUNT = 23
SERVICE = """
import contextlib, socket, sys, time
open("/proc/self/comm", "w").write("nginx")
sender = socket.socket(type=socket.SOCK_DGRAM)
sender.connect((sys.argv[1], int(sys.argv[2])))
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    with contextlib.suppress(PermissionError):  # a firewall
        sender.send(b"token=4711")
    time.sleep(0.01)
"""
FETCH = """
import socket, sys
sender = socket.socket(type=socket.SOCK_DGRAM)
sender.connect((sys.argv[1], int(sys.argv[2])))
for _ in range(23):
    sender.send(b"fetch")
"""
PYTHON = (sys.executable, "-E", "-s", "-S", "-c")


def is_command(found: list[Packet], service: int) -> None:
    """The packets of the command, and not those of the service."""
    assert sum(packet.data.endswith(b"fetch") for packet in found) == COUNT
    assert not any(f"tgid={service}" in packet.comment for packet in found)


def is_service(found: list[Packet], service: int) -> None:
    """The packets of the service."""
    assert len(found) == COUNT
    assert all(f"tgid={service}" in packet.comment for packet in found)
    assert all(packet.data.endswith(b"token=4711") for packet in found)


def is_headers(found: list[Packet], service: int) -> None:
    """The same, without payload."""
    assert len(found) == COUNT
    assert all(f"tgid={service}" in packet.comment for packet in found)
    assert {len(packet.data) for packet in found} == {42}
    assert {packet.original_len for packet in found} == {52}


FILES: dict[str, tuple[str, Callable[[list[Packet], int], None]]] = {
    "One command, from its first packet to its last": ("curl.pcapng", is_command),
    "One process and its children": ("web.pcapng", is_service),
    "Only headers of one service": ("headers.pcapng", is_headers),
    "Which packets does the kernel drop, why, and whose are they?": ("drops.pcapng", is_service),
}
SAYS = {
    "See packets as they come": rf"(?:.*→.*\n){{{COUNT}}}",
    "The last two minutes, after something went wrong": r"\S+\.pcapng\n",
    "Who eats the bandwidth now?": r"(?s).* packets/s, .*\bPROCESS .*SENT/S.*\bPEER .*RECEIVED/S.*",
    "Does the daemon capture, and has it lost packets?": r"(?s).*\bdropped\b.*",
    "Can this system capture, and is the config right?": r"(?s).*\bok\b.*",
}


@pytest.fixture
def service(wire: Wire) -> Iterator[int]:
    """A process named nginx that sends, for a limited time."""
    words = [*PYTHON, SERVICE, wire.far.ipv4, str(DISCARD_PORT), str(DEADLINE_S)]
    with closing(Sink(wire.far.namespace)), wire.near.namespace.do(subprocess.Popen, words) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def firewall(wire: Wire) -> Iterator[None]:
    """A rule that drops what the service sends."""

    def nft(rules: str) -> None:
        wire.near.namespace.do(subprocess.run, ["nft", rules], check=True, timeout=DEADLINE_S)

    chain = "add table ip t; add chain ip t c { type filter hook output priority 0; }"
    nft(f"{chain}; add rule ip t c udp dport {DISCARD_PORT} drop")
    yield
    nft("delete table ip t")


def play(title: str, wire: Wire, place: Path, service: int = 0) -> str:
    """Run the commands of a recipe in a directory of the near end; returns stdout."""
    on_device = [line.replace("skbcapd capture ", f"skbcapd capture -i {wire.near.device} ") for line in ALL[title]]
    return perform(on_device, wire, place, service).stdout


def perform(commands: list[str], wire: Wire, place: Path, service: int = 0) -> subprocess.CompletedProcess[str]:
    """Run commands in a directory of the near end; they must succeed."""
    fetch = shlex.join([*PYTHON, FETCH, wire.far.ipv4, str(DISCARD_PORT)])
    program = f"{shlex.quote(sys.executable)} -m skbcapd"
    own = f"--set attach={ATTACH} --set directions=out"
    script = "set -e -o pipefail\n" + "\n".join(commands).replace("-i eth0 ", f"-i {wire.near.device} ")
    script = script.replace("curl http://example.org/", fetch).replace("--pid 1234", f"--pid {service}")
    script = script.replace("/etc/skbcapd.yaml", str(ROOT / "etc/skbcapd.yaml"))
    ends = "" if " -- " in script else f" -c {COUNT}"
    script = re.sub(r"\bskbcapd capture ", f"{program} capture {own}{ends} ", script)
    script = re.sub(r"\bskbcapd (dump|status)", rf"{program} \1 --set control.socket={place}/control", script)
    script = re.sub(r"\bskbcapd top\b", f"{program} top -n 1 --set control.socket={place}/control", script)
    script = re.sub(r"\bskbcapd (doctor|check)", rf"{program} \1", script)
    done: subprocess.CompletedProcess[str] = wire.near.namespace.do(
        subprocess.run,
        ["bash", "-c", script],
        cwd=place,
        env={key: text for key, text in os.environ.items() if not key.startswith("SUDO_")} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_all_recipes_are_tried() -> None:
    """The page has no recipe without a test, and the other way round."""
    assert ALL.keys() == FILES.keys() | SAYS.keys()


@pytest.mark.parametrize("title", FILES)
def test_a_recipe_makes_its_file(title: str, wire: Wire, service: int, tmp_path: Path) -> None:
    """It captures what its title says."""
    name, check = FILES[title]
    play(title, wire, tmp_path, service)
    check(read(tmp_path / name), service)


def test_only_nginx_without_payload(wire: Wire, service: int, tmp_path: Path) -> None:
    """The capture of docs/tasks.md prints what is there, and no token is in the file."""
    (capture, search), expected = task("Only nginx, without payload")
    said = perform([capture], wire, tmp_path, service).stderr
    said = re.sub(r"\d+ packets on other interfaces\n", "", said)  # of the machine
    shown = re.sub(r"eth0 \(.*?\)", "eth0", expected).removesuffix("0\n")
    assert shape(re.sub(rf"{wire.near.device} \(.*?\)", "eth0", said)) == shape(shown)
    assert subprocess.run(search.split(), cwd=tmp_path, capture_output=True, check=False).stdout == b"0\n"
    is_headers(read(tmp_path / "nginx.pcapng"), service)


@pytest.mark.usefixtures("firewall")
def test_what_dropped_my_packets(wire: Wire, service: int, tmp_path: Path) -> None:
    """Both commands of docs/tasks.md print what is there, with the process whose packets a firewall drops."""
    commands, expected = task("What dropped my packets?")
    said = perform(commands[:1], wire, tmp_path, service).stderr
    found = run("top", "--drops", tmp_path / "drops.pcapng")[1].decode()

    def plain(text: str) -> str:
        text = re.sub(r"\d+ packets on other interfaces\n", "", text.replace(wire.near.device, "eth0"))
        text = text.replace(f"drops@{wire.near.namespace.name}", "drops@host")
        return shape(re.sub(r"eth0 \(.*?\)|\bnft?_\w+", "", text))

    assert plain(said + found) == plain(expected)
    assert found.splitlines()[1].split()[:7] == [
        str(COUNT),
        "874",
        "NETFILTER_DROP",
        "out",
        f"drops@{wire.near.namespace.name}",
        str(service),
        "nginx",
    ]


def test_who_eats_the_bandwidth_now(wire: Wire, service: int, tmp_path: Path) -> None:
    """The report of docs/tasks.md is what a running daemon gives, with the process that sends."""
    [command], expected = task("Who eats the bandwidth now?")
    own = {"control__socket": str(tmp_path / "control"), "directions": "out"}
    with closing(Daemon(wire.near, tmp_path / "captures", **own)):
        said = perform([command], wire, tmp_path).stdout

    def plain(text: str) -> list[str]:
        return [shape(re.sub(r"(?<=\d),(?=\d)", "", line)).strip() for line in text.splitlines()]

    assert plain(said) == plain(expected)
    assert said.splitlines()[-1].split()[:2] == [str(service), "nginx"]


def test_packets_are_shown_as_they_come(wire: Wire, service: int, tmp_path: Path) -> None:
    """Each packet is a line."""
    title = "See packets as they come"
    assert service
    assert re.fullmatch(SAYS[title], play(title, wire, tmp_path))


def test_recipes_for_a_daemon(wire: Wire, tmp_path: Path) -> None:
    """They answer, and the dump has the packets."""
    settings = {"control__socket": str(tmp_path / "control"), "files__mode": "ring", "files__keep_free": "0"}
    with (
        closing(Marker(wire.near.namespace, wire.near.device)) as marker,
        closing(Daemon(wire.near, tmp_path / "captures", **settings)) as daemon,
    ):
        for _ in range(COUNT):
            marker.send()
        said = {title: play(title, wire, tmp_path) for title in list(SAYS)[1:]}
        marker.send()
        [command], expected = task("The last 5 minutes, and 10 seconds after the event")
        done = perform([command.replace("10s", "1s")], wire, tmp_path)
        assert daemon.stop().exit_code == 0
    for title, text in said.items():
        assert re.fullmatch(SAYS[title], text), (title, text)
    printed = re.sub(r"\S+/skbcapd-\S+-000", "FILE-000", done.stderr + done.stdout)
    assert shape(printed) == shape(re.sub(r"\S+/skbcapd-\S+-000", "FILE-000", expected))
    dumped = Path(said["The last two minutes, after something went wrong"].strip())
    assert [packet.data for packet in read(dumped) if packet.direction == "out"] == marker.sent[:-1]
