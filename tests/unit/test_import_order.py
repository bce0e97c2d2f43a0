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
from skbcapd.cli.main import COMMANDS
from tests.support.strangers import interface, section

PACKAGE = Path(skbcapd.__file__).parent

# Imports go from a package to those below it, never up.
ORDER = (
    "__main__",
    "cli",
    "daemon",
    "report",
    "fleet",
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
    "durations",
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
    "scapy": {"filter.packet_filter", "pcapng.writer"},
    "yaml": {"config.parser"},
    "regex": {"config.pattern"},
    "prometheus_client": {"daemon.metrics"},
    "duckdb": {"fleet.compaction", "fleet.engines"},
    "pyarrow": {"fleet.intake"},
    "fsspec": {"fleet.storage"},
}


# Commands that use the module of another one, or more than the common ones.
_USED = {
    "dump": ("status",),
    "capture": ("processes", "tcpdump", "writing"),
    "extcap": ("processes",),
    "top": ("status",),
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


def _loaded_by(arguments: str) -> list[str]:
    """The modules in the process of a command that has printed its help."""
    program = (
        "import atexit, sys; from skbcapd.__main__ import main; "
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr)); main()"
    )
    command = [sys.executable, "-c", program, *arguments.split()]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    return done.stderr.split()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_light(command: str) -> None:
    """The start of a command imports neither another command's module, nor the dissectors of scapy, nor the compiler:
    they take very long.
    """
    loaded = _loaded_by(f"{command} --help")
    allowed = {"skbcapd.cli", "skbcapd.cli.main", "skbcapd.cli.arguments", "skbcapd.cli.selecting"}
    allowed |= {f"skbcapd.cli.{name}" for name in (command, *_USED.get(command, ()))}
    assert f"skbcapd.cli.{command}" in loaded
    assert {name for name in loaded if name.startswith("skbcapd.cli")} <= allowed
    assert not [name for name in loaded if name.startswith(("bcc", "scapy.layers", "scapy.all", "skbcapd.output.text"))]


@pytest.mark.parametrize(
    "arguments", ["top --help", "top FILE", "extract --help", "split --help", "report --help", "index --help"]
)
def test_what_reads_files_needs_no_kernel_program(arguments: str, tmp_path: Path) -> None:
    """A command that reads captures does not import the package of the kernel program, which takes 14 ms."""
    file = tmp_path / "a.pcapng"
    file.write_bytes(section() + interface())
    loaded = _loaded_by(arguments.replace("FILE", str(file)))
    assert f"skbcapd.cli.{arguments.split(maxsplit=1)[0]}" in loaded
    assert not [name for name in loaded if name.startswith("skbcapd.kernel")]


def test_the_list_of_commands_needs_none() -> None:
    """`skbcapd --help` lists all commands, and imports none of them, nor a library."""
    loaded = _loaded_by("--help")
    assert "skbcapd.cli.main" in loaded
    assert {name for name in loaded if name.startswith("skbcapd.cli")} == {"skbcapd.cli", "skbcapd.cli.main"}
    assert not {name.split(".")[0] for name in loaded} & set(LIBRARIES)
