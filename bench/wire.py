"""The test network: two network namespaces connected by a veth pair, without neighbor discovery."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator

NEAR, FAR, CONTAINER = (f"skbcapd-bench-{os.getpid()}-{end}" for end in "abc")
OUR_ADDRESS, ADDRESS = "10.91.7.1", "10.91.7.2"
DEVICE = "bench0"
ENTER_NEAR, ENTER_FAR = (["ip", "netns", "exec", name] for name in (NEAR, FAR))


def ip(*words: str) -> None:
    """Run a command."""
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def wire() -> Iterator[None]:
    """Create both namespaces, and delete them at the end."""
    for name in (NEAR, FAR):
        ip("netns", "add", name)
    try:
        ip("-n", NEAR, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", FAR)
        for name, address in ((NEAR, OUR_ADDRESS), (FAR, ADDRESS)):
            ip("netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
            ip("-n", name, "link", "set", DEVICE, "up")
        link = json.loads(subprocess.check_output(["ip", "-j", "-n", FAR, "link", "show", DEVICE]))
        ip("-n", NEAR, "neigh", "replace", ADDRESS, "lladdr", link[0]["address"], "dev", DEVICE)
        yield
    finally:
        for name in (NEAR, FAR):
            ip("netns", "del", name)


def set_segmentation(*, on: bool) -> None:
    """Allow large TCP frames on the interface, or only frames of its MTU."""
    for name in (NEAR, FAR):
        ip("-n", name, "link", "set", DEVICE, "gso_max_segs", "65535" if on else "1")


def packets_out() -> int:
    """Packets that the sender's interface got, by its own counter, drops included: they were captured before."""
    found = json.loads(subprocess.check_output(["ip", "-j", "-s", "-n", NEAR, "link", "show", DEVICE]))
    counted = found[0]["stats64"]["tx"]
    return int(counted["packets"]) + int(counted["dropped"])


@contextlib.contextmanager
def many_devices(count: int) -> Iterator[None]:
    """Create interfaces 10.92.0.1, 10.92.1.1, ... (250 for each second byte) in the near namespace, with peers."""

    def batch(lines: list[str]) -> None:
        subprocess.run(["ip", "-n", NEAR, "-batch", "-"], input="\n".join(lines), text=True, check=True)

    batch(
        [
            line.format(name=f"many{number}", second=92 + number // 250, third=number % 250)
            for number in range(count)
            for line in (
                "link add {name} group 7 arp off type veth peer name p{name} group 7 arp off",
                "addr add 10.{second}.{third}.1/24 dev {name}",
                "link set p{name} up",
                "link set {name} up",
            )
        ]
    )
    try:
        yield
    finally:
        batch(["link del group 7"])


@contextlib.contextmanager
def container() -> Iterator[None]:
    """Make the near namespace that of a host with a container: a bridge, a pair to one more namespace, masquerade.

    Nothing is sent there, and nothing is forwarded.
    """
    rules = f'''table ip nat {{
 chain post {{
  type nat hook postrouting priority 100
  oifname "{DEVICE}" ip saddr 10.93.7.0/24 masquerade
 }}
}}'''
    ip("netns", "add", CONTAINER)
    try:
        ip("-n", NEAR, "link", "add", "bench1", "type", "bridge")
        ip("-n", NEAR, "link", "add", "bench2", "master", "bench1", "type", "veth", "peer", "eth0", "netns", CONTAINER)
        for device in ("bench1", "bench2"):
            ip("-n", NEAR, "link", "set", device, "up")
        ip("-n", CONTAINER, "link", "set", "eth0", "up")
        ip("-n", NEAR, "addr", "add", "10.93.7.1/24", "dev", "bench1")
        ip("netns", "exec", NEAR, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        subprocess.run([*ENTER_NEAR, "nft", "-f", "-"], input=rules, text=True, check=True)
        yield
    finally:
        subprocess.run([*ENTER_NEAR, "nft", "delete", "table", "ip", "nat"], check=False)
        ip("netns", "exec", NEAR, "sysctl", "-qw", "net.ipv4.ip_forward=0")
        ip("-n", NEAR, "link", "del", "bench1")
        ip("netns", "del", CONTAINER)
