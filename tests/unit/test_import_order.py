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
    "events",
    "text_safety",
    "standard_streams",
    "attribution.budget",
    "pcapng.link_type",
    "filter.packet_filter",
    "config.kinds",
    "config.settings",
    "config.reference",
    "config.parser",
    "kernel.btf",
    "kernel.abi",
    "kernel.syscall",
    "kernel.marker",
    "kernel.compiler",
    "kernel.loader",
    "kernel.program",
    "kernel.segments",
    "kernel.requirements",
    "attribution.processes",
    "attribution.namespaces",
    "capture.rules",
    "attribution.sockets",
    "pcapng.comment",
    "pcapng.interface",
    "pcapng.writer",
    "capture.checksum",
    "capture.resolver",
    "capture.capture",
    "capture.reload",
    "output.block_writer",
    "output.directory",
    "output.compressor",
    "output.rotation",
    "output.ring",
    "output.text",
    "analysis.progress",
    "pcapng.reader",
    "analysis.account",
    "analysis.top",
    "analysis.split",
    "daemon.log",
    "daemon.notify",
    "daemon.warnings",
    "daemon.statistics",
    "daemon.metrics",
    "daemon.server",
    "daemon.endpoints",
    "daemon.report",
    "daemon.loop",
    "daemon.app",
    "cli.arguments",
    "cli.capture",
    "cli.run",
    "cli.check",
    "cli.config",
    "cli.dump",
    "cli.status",
    "cli.doctor",
    "cli.top",
    "cli.split",
    "cli.extcap",
    "cli.main",
    "__main__",
)

# What is no part of Python, and the rooms that may know of it.
LIBRARIES = {
    "bcc": {"kernel.compiler"},
    "systemd": {"daemon.log", "daemon.notify"},
    "scapy": {"filter.packet_filter", "pcapng.writer", "output.text"},
    "yaml": {"config.parser"},
    "prometheus_client": {"daemon.metrics"},
}


PACKAGES = {"skbcapd", *(f"skbcapd.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py"))}


def imports(room: str) -> Iterator[str]:
    """Every module that a room imports, wherever in the file; `skbcapd.x` also for `from skbcapd import x`."""
    for node in ast.walk(ast.parse((PACKAGE / f"{room.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} has a relative import"
            if node.module in PACKAGES:
                yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__")
            else:
                yield str(node.module)


def test_the_order_names_every_room() -> None:
    """Every module of the package has its place in the order, and every place a module."""
    assert sorted(ORDER) == sorted(
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.stem != "__init__"
    )
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
    assert "skbcapd.cli.main" in loaded
    assert not [name for name in loaded if name.startswith(("bcc", "scapy.layers", "scapy.all", "skbcapd.output.text"))]
