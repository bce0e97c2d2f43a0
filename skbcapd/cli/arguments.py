"""Arguments that several commands have, and the settings that follow from them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from skbcapd import __version__
from skbcapd.config import parser as config
from skbcapd.config.settings import Settings
from skbcapd.errors import UsageError

SYSTEM_CONFIG = Path("/etc/skbcapd.yaml")


class Run(Protocol):
    """Runs a command; returns the exit code."""

    def __call__(self, options: argparse.Namespace, /) -> int: ...  # noqa: D102 - the class says it


class MixedParser(argparse.ArgumentParser):
    """Takes options also between words that belong together: `extract FILE -w OUT tcp port 443`."""

    _is_inside = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # noqa: D102  overloads
        if self._is_inside:
            return super().parse_known_args(args, namespace)
        self._is_inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False


class Commands:
    """The commands of the parser, in the order of the help.

    Args:
        commands: the parser of commands.
    """

    def __init__(self, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        self._commands = commands

    def add(self, name: str, run: Run, text: str) -> argparse.ArgumentParser:
        """Add a command with its help text."""
        command = self._commands.add_parser(name, help=text, description=text)
        command.add_argument("--version", action="version", version=f"skbcapd {__version__}")
        command.set_defaults(run=run)
        return command


def add_config(command: argparse.ArgumentParser) -> None:
    """Add --config."""
    command.add_argument("--config", metavar="FILE", type=Path, help=f"config file; default: {SYSTEM_CONFIG}")


def add_sets(command: argparse.ArgumentParser) -> None:
    """Add --set."""
    command.add_argument(
        "--set",
        dest="sets",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a setting; can be repeated",
    )


def add_duration(command: argparse.ArgumentParser) -> None:
    """Add --duration."""
    command.add_argument("--duration", metavar="SECONDS", type=_seconds, help="stop after SECONDS")


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """The settings given by --set.

    Raises:
        UsageError: an argument has no value.
    """
    found = {}
    for text in options.sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected KEY=VALUE", "for example: --set buffer.size=128MiB")
        found[key] = value
    return found


def config_path(options: argparse.Namespace) -> Path:
    """The given config file, otherwise that of the system, otherwise the one of the source tree."""
    if options.config is not None:
        return Path(options.config)
    beside = Path(__file__).parents[1] / "etc" / "skbcapd.yaml"
    beside = beside if beside.exists() else Path(__file__).parents[2] / "etc" / "skbcapd.yaml"
    return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() else beside


def settings(options: argparse.Namespace, keys: Collection[str] | None = None) -> Settings:
    """The settings of the config file, with those of --set.

    Raises:
        ConfigError: the file is wrong.
        UsageError: a --set is wrong.
    """
    return config.load(config_path(options), overrides(options), keys)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value
