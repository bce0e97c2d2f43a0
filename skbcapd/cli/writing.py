"""Where the packets of `skbcapd capture` go: lines on a terminal, pcapng, or a series of files.

The rule: this module is imported when the program is loaded, because most of skbcapd is imported meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from skbcapd.cli import tcpdump
from skbcapd.config.settings import Settings
from skbcapd.daemon import app
from skbcapd.daemon.command import Command
from skbcapd.kernel.program import Program
from skbcapd.output.block_writer import CaptureFile, owner_ids
from skbcapd.output.interface import PROMPT_S, Output
from skbcapd.output.key_log import KeyLogs
from skbcapd.output.pcapng_output import FileOutput
from skbcapd.output.pipe import PipeTarget, count_lines
from skbcapd.text_safety import escaped
from skbcapd.worker import Worker


def capture(program: Program, settings: Settings, options: argparse.Namespace, command: Command | None) -> int:
    """Run a capture to its end; returns the exit code.

    Args:
        program: loaded; it is closed at the end.
        settings: those of the capture.
        options: options of the command.
        command: the command whose packets are captured; None: there is none.
    """
    with contextlib.closing(program), KeyLogs(settings.secrets) as key_logs:
        output, target = _output(options, settings, key_logs)
        if options.is_prompt:
            output.latency_s = PROMPT_S
        return app.serve(
            app.Run(
                *(settings, program, output, target),
                duration_s=options.duration,
                count=options.count,
                command=command,
            )
        )


def _output(options: argparse.Namespace, settings: Settings, key_logs: KeyLogs) -> tuple[Output, app.Target]:
    """The destination of packets: lines on a terminal, or pcapng to standard output, to a file, or to a series."""
    file, encode = options.file, settings.encode
    if tcpdump.is_series(options):
        files = app.files(settings, key_logs)
        return files, files
    if file is None:
        from skbcapd.frames.line import Lines  # noqa: PLC0415  a file needs no lines
        from skbcapd.output.text import TextOutput  # noqa: PLC0415  the same

        target = PipeTarget(count=count_lines)
        return TextOutput(target.stream, Lines(tcpdump.form(options))), target
    if file == "-":
        target = PipeTarget()
        return FileOutput(target, encode, key_logs), target
    if Path(file).suffix in {".pcap", ".cap"}:
        print(
            f"{escaped(file)} will be pcapng; for the older format: "
            f"skbcapd extract {escaped(file)} -w OUT --format pcap",
            file=sys.stderr,
        )
    owner = owner_ids(settings.files.owner)
    written = CaptureFile(Path(file), part=False, jobs=Worker("writer"), owner=owner)
    return FileOutput(written, encode, key_logs), written
