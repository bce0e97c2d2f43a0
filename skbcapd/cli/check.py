"""`skbcapd check`: check a config file."""

from __future__ import annotations

import argparse
import logging
import sys

from skbcapd.cli import arguments
from skbcapd.daemon import metrics
from skbcapd.daemon.warnings import warnings_for
from skbcapd.output.block_writer import owner_ids

_LOG = logging.getLogger(__name__)


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    arguments.add_config(command)
    arguments.add_sets(command)


def run(options: argparse.Namespace) -> int:
    """Read the settings; log warnings."""
    settings = arguments.settings(options)
    owner_ids(settings.files.owner)
    for line in warnings_for(settings):
        _LOG.warning("%s", line)
    metrics.check_library(settings.metrics)
    print(f"{arguments.config_path(options)}: no problems", file=sys.stderr)
    return 0
