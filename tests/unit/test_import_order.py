"""The rooms' order, read from the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import skbcapd

PACKAGE = Path(skbcapd.__file__).parent

# A packet walks through the rooms in this order, and no room looks back.
ORDER = (
    "errors",
    "budget",
    "link_type",
    "packet_filter",
    "settings",
    "config",
    "btf",
    "layout",
    "syscall",
    "marker",
    "compiler",
    "loader",
    "kernel",
    "segments",
    "process",
    "namespaces",
    "rules",
    "sockets",
    "label",
    "interface",
    "pcapng",
    "checksum",
    "resolver",
    "capture",
    "reload",
    "files",
    "directory",
    "compression",
    "rotation",
    "recorder",
    "text",
    "progress",
    "reader",
    "account",
    "top",
    "split",
    "extcap",
    "doctor",
    "sight",
    "metrics",
    "server",
    "service",
    "log",
    "notify",
    "status",
    "cli",
    "__main__",
)

# What is no part of Python, and the rooms that may know of it.
LIBRARIES = {
    "bcc": {"compiler"},
    "systemd": {"log", "notify"},
    "scapy": {"packet_filter", "pcapng", "text"},
    "yaml": {"config"},
    "prometheus_client": {"metrics"},
}


def imports(room: str) -> Iterator[str]:
    """Every module that a room imports, wherever in the file; `skbcapd.x` also for `from skbcapd import x`."""
    for node in ast.walk(ast.parse((PACKAGE / f"{room}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} has a relative import"
            if node.module == "skbcapd":
                yield from (f"skbcapd.{alias.name}" for alias in node.names if alias.name != "__version__")
            else:
                yield str(node.module)


def test_the_order_names_every_room() -> None:
    """Every module of the package has its place in the order, and every place a module."""
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    assert not list(imports("__init__"))


@pytest.mark.parametrize("room", ORDER)
def test_no_room_looks_back(room: str) -> None:
    """A room imports only rooms before it; so there is no cycle."""
    known = {f"skbcapd.{earlier}" for earlier in ORDER[: ORDER.index(room)]}
    assert {name for name in imports(room) if name.split(".")[0] == "skbcapd"} <= known


@pytest.mark.parametrize("room", ORDER)
def test_libraries_stay_in_their_rooms(room: str) -> None:
    """A room imports Python's own library, and of others those that are its business."""
    foreign = {name.split(".")[0] for name in imports(room)} - sys.stdlib_module_names - {"skbcapd"}
    assert foreign <= {name for name, rooms in LIBRARIES.items() if room in rooms}


def test_the_command_line_is_light() -> None:
    """Starting the command imports neither scapy's dissectors nor the compiler: both take longer than all the rest."""
    program = "import sys, skbcapd.__main__; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "skbcapd.cli" in loaded
    assert not [name for name in loaded if name.startswith(("bcc", "scapy.layers", "scapy.all", "skbcapd.text"))]
