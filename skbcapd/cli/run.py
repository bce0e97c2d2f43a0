"""`skbcapd run`: the service, in the foreground."""

from __future__ import annotations

import argparse
import contextlib

from skbcapd.cli import arguments
from skbcapd.config.settings import Settings
from skbcapd.daemon import loading, metrics
from skbcapd.daemon.log import LOG


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    arguments.add_duration(command)
    arguments.add_config(command)
    arguments.add_sets(command)


def run(options: argparse.Namespace) -> int:
    """Capture into files until a signal or --duration ends it."""
    loading.hold_back_signals()

    def load() -> Settings:
        return arguments.settings(options)

    settings = load()
    LOG.level = settings.log.level
    metrics.check_library(settings.metrics)
    program = loading.load_program(settings)
    from skbcapd.daemon import app  # noqa: PLC0415  imported while the program was loaded
    from skbcapd.output.key_log import KeyLogs  # noqa: PLC0415  the same

    with contextlib.closing(program), KeyLogs(settings.secrets) as key_logs:
        output = app.files(settings, key_logs)
        return app.serve(app.Run(settings, program, output, output, duration_s=options.duration, load=load, live=True))
