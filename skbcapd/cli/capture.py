"""`skbcapd capture`: capture now, and print lines or write one file."""

from __future__ import annotations

import argparse
import contextlib
import socket
from pathlib import Path

from skbcapd.cli import arguments, processes
from skbcapd.config import parser as config
from skbcapd.config.settings import Settings
from skbcapd.daemon import app
from skbcapd.daemon.command import Command
from skbcapd.daemon.warnings import missing_interfaces
from skbcapd.errors import UsageError
from skbcapd.kernel.abi import CAPTURE_MAX
from skbcapd.output.block_writer import CaptureFile
from skbcapd.output.interface import Output
from skbcapd.output.key_log import KeyLogs
from skbcapd.output.pcapng_output import FileOutput
from skbcapd.output.pipe import PipeTarget, count_lines
from skbcapd.worker import Worker

_PLACES = {
    "interfaces": "-i",
    "snaplen": "-s",
    "payload": "--payload",
    "filter": "FILTER",
}  # options of the command that set these settings


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "-i",
        dest="interfaces",
        metavar="NAME",
        action="append",
        help="interface or glob; can be repeated; any: all interfaces",
    )
    command.add_argument("-w", dest="file", metavar="FILE", help="write pcapng to FILE; -: standard output")
    command.add_argument(
        "-c", dest="count", metavar="COUNT", type=_positive, default=0, help="stop after COUNT packets"
    )
    command.add_argument(
        "-s",
        dest="snaplen",
        metavar="BYTES",
        help=f"keep at most BYTES of each frame; 0: complete frames ({CAPTURE_MAX})",
    )
    command.add_argument(
        "--payload",
        choices=("all", "none"),
        help="none: cut each frame after its transport header, otherwise after its network header",
    )
    command.add_argument(
        "filter",
        metavar="FILTER",
        nargs="*",
        help="packet filter as in tcpdump, for example: tcp port 443 and not host ::1",
    )
    processes.add(command)
    arguments.add_duration(command)
    arguments.add_sets(command)


def run(options: argparse.Namespace) -> int:
    """Capture until a signal, --duration, -c or the end of the command ends it."""
    own = {}
    if options.interfaces:
        own["interfaces"] = ",".join(options.interfaces)
    if options.snaplen is not None:
        own["snaplen"] = str(CAPTURE_MAX) if options.snaplen == "0" else options.snaplen
    if options.payload is not None:
        own["payload"] = options.payload
    if options.filter:
        own["filter"] = " ".join(options.filter)
    settings = config.default_settings(
        arguments.overrides(options) | own, {key: place for key, place in _PLACES.items() if key in own}
    )
    missing = missing_interfaces(settings.interfaces, [name for _, name in socket.if_nameindex()])
    if missing and not settings.namespaces:
        raise UsageError(
            f"no interface {missing[0]} in this network namespace",
            "`ip -brief link` lists them; any: all",
        )
    settings = processes.chosen(settings, options)
    if options.command is None:
        return _capture(settings, options)
    # Packets on standard output must not be mixed with the output of the command.
    with Command(options.command, stdout=1 if options.file not in {None, "-"} else 2) as command:
        _capture(processes.of_command(settings, command.pid), options, command)
        return command.wait()


def _capture(settings: Settings, options: argparse.Namespace, command: Command | None = None) -> int:
    program = app.load_program(settings)
    with contextlib.closing(program), KeyLogs(settings.secrets) as key_logs:
        output, target = _output(options.file, settings.encode, key_logs)
        return app.serve(
            app.Run(
                *(settings, program, output, target),
                duration_s=options.duration,
                count=options.count,
                command=command,
            )
        )


def _output(file: str | None, encode: str, key_logs: KeyLogs) -> tuple[Output, CaptureFile | PipeTarget]:
    """The destination of packets: lines on a terminal, or pcapng to standard output or to a file."""
    if file is None:
        from skbcapd.output.text import TextOutput  # noqa: PLC0415  its dissectors are not needed for a file

        target = PipeTarget(count=count_lines)
        return TextOutput(target.stream), target
    if file == "-":
        target = PipeTarget()
        return FileOutput(target, encode, key_logs), target
    written = CaptureFile(Path(file), part=False, jobs=Worker("writer"))
    return FileOutput(written, encode, key_logs), written


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of packets")
    return int(text)
