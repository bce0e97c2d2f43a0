"""The order of the packages, checked with their imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import skbcapd

PACKAGE = Path(skbcapd.__file__).parent

# Imports go from a package to those below it, never up.
ORDER = (
    "__main__",
    "cli",
    "daemon",
    "analysis",
    "capture",
    "output",
    "kernel",
    "config",
    "filter",
    "frames",
    "pcapng",
    "attribution",
    "worker",
    "standard_streams",
    "lru",
    "child",
    "clocks",
    "errors",
    "events",
    "text_safety",
)

# Third-party libraries, and the modules that may import them.
LIBRARIES = {
    "bcc": {"kernel.compiler"},
    "systemd": {"daemon.log"},
    "scapy": {"filter.packet_filter", "pcapng.writer", "output.text"},
    "yaml": {"config.parser"},
    "regex": {"config.pattern"},
    "prometheus_client": {"daemon.metrics"},
}


def _module(path: Path) -> str:
    """The module name of a file below skbcapd; the package for `__init__`."""
    return ".".join(part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__")


MODULES = {_module(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


def imports(module: str) -> Iterator[str]:
    """All modules that a module imports, anywhere in the file; `skbcapd.x.y` also for `from
    skbcapd.x import y`.
    """
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            name = str(node.module)
            names = [f"{name}.{alias.name}" for alias in node.names if alias.name != "__version__"]
            inner = [each for each in names if each.removeprefix("skbcapd.") in MODULES]
            yield from inner or ([] if name == "skbcapd" else [name])


def _ours(module: str) -> set[str]:
    """The modules of skbcapd that a module imports, without the prefix `skbcapd.`."""
    return {name.removeprefix("skbcapd.") for name in imports(module) if name.split(".")[0] == "skbcapd"}


def test_the_order_names_every_package() -> None:
    """Each package, and each module without a package, is in the order, and each entry exists."""
    assert sorted(ORDER) == sorted({module.split(".")[0] for module in MODULES})
    assert "import " not in (PACKAGE / "__init__.py").read_text()


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_down(package: str) -> None:
    """A package imports only itself and the packages below it."""
    below = set(ORDER[ORDER.index(package) :])
    upward = {
        f"{module} -> {name}"
        for module in MODULES
        if module.split(".")[0] == package
        for name in _ours(module)
        if name.split(".")[0] not in below
    }
    assert not upward


def test_no_circle() -> None:
    """No module imports itself through others, in a package or between packages."""
    TopologicalSorter({module: _ours(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_libraries_stay_in_their_modules(module: str) -> None:
    """A module imports the standard library, and only the other libraries that it is allowed to."""
    foreign = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"skbcapd"}
    assert foreign <= {name for name, modules in LIBRARIES.items() if module in modules}


def test_the_command_line_is_light() -> None:
    """The start of the command imports neither the dissectors of scapy nor the compiler: both take
    very long.
    """
    program = "import sys, skbcapd.__main__; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "skbcapd.cli.main" in loaded
    assert not [name for name in loaded if name.startswith(("bcc", "scapy.layers", "scapy.all", "skbcapd.output.text"))]
