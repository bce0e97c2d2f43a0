"""Warnings about settings: things that do not exist on this system, or do not work as expected.

In: settings. Out: one line for each warning; none is an error. `check` and the start of a capture
log them.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from skbcapd.capture.interfaces import ANY
from skbcapd.capture.rules import doubts
from skbcapd.config.settings import Settings


def warnings_for(settings: Settings) -> Iterator[str]:
    """The doubts about settings, one line each."""
    names = [name for _, name in socket.if_nameindex()]  # /sys may show another network namespace's
    if settings.namespaces in {(), ("self",)}:
        for name in missing_interfaces(settings.interfaces, names):
            yield f"interfaces: no interface {name} is there now; it is captured when it appears"
        for name, kind in upper_interfaces(settings.interfaces):
            yield f"{name} is a {kind} interface: what arrives on it is captured on the interface below only"
    yield from doubts(settings.rules, names)


def missing_interfaces(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """Interfaces that are asked for by name, and are not there.

    Args:
        wanted: names and globs.
        names: of the interfaces there are.
    """
    return [name for name in wanted if name not in {ANY, *names} and not set(name) & set("*?[")]


def upper_interfaces(names: Sequence[str], sys_: Path = Path("/sys")) -> list[tuple[str, str]]:
    """Those interfaces that frames reach from the one below without passing a hook again, and what they are.

    Args:
        names: of interfaces.
        sys_: where sysfs is.

    Source: RX_HANDLER_ANOTHER and vlan_do_receive in __netif_receive_skb_core, net/core/dev.c.
    """
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            kind = re.search(r"^DEVTYPE=(\w+)$", (sys_ / "class/net" / name / "uevent").read_text(), re.MULTILINE)
            if kind and kind[1] in {"vlan", "bond", "team", "macvlan", "ipvlan"}:
                found.append((name, kind[1]))
    return found
