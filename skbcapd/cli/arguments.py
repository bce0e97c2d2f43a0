"""Arguments that several commands have, and the settings that follow from them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from skbcapd.config import parser as config
from skbcapd.config.settings import Settings
from skbcapd.errors import UsageError

SYSTEM_CONFIG = Path("/etc/skbcapd.yaml")


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
