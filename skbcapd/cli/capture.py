"""`skbcapd capture`: capture now, and print lines or write files; with -r, print the packets of files."""

from __future__ import annotations

import argparse
import os
import socket

from skbcapd.cli import arguments, processes, selecting, tcpdump
from skbcapd.config import parser as config
from skbcapd.config.settings import Settings
from skbcapd.daemon import loading
from skbcapd.daemon.command import Command, caller
from skbcapd.daemon.warnings import missing_interfaces
from skbcapd.errors import UsageError
from skbcapd.kernel.abi import CAPTURE_MAX

# options of the command that set these settings
_PLACES = {
    "interfaces": "-i",
    "directions": "-Q",
    "snaplen": "-s",
    "payload": "--payload",
    "drops": "--drops",
    "filter": "FILTER",
    "buffer.size": "-B",
    "files.directory": "-w",
    "files.name": "-w",
    "files.size": "-C",
    "files.every": "-G",
    "files.keep_number": "-W",
}
# selectors that only -r has: attribute, option, what to use instead
_OF_FILES = (
    ("peers", "--peer", "FILTER: net ADDRESS"),
    ("ports", "--port", "FILTER: port PORT"),
    ("begin", "--from", ""),
    ("end", "--to", "--duration SECONDS"),
    ("dropped", "--dropped", "--set rules=..."),
    ("dropped_at", "--dropped-at", "--set rules=..."),
)


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "-i",
        "--interface",
        dest="interfaces",
        metavar="NAME",
        action="append",
        help="interface or glob; can be repeated; any: all interfaces",
    )
    command.add_argument(
        "-Q", "--direction", dest="direction", choices=("in", "out", "inout"), help="only received or only sent packets"
    )
    command.add_argument(
        "-r",
        dest="read",
        metavar="FILE",
        action="append",
        help="print the packets of FILE, or of a directory's captures, instead of a capture; -: standard input; "
        "more files may follow",
    )
    command.add_argument("-w", dest="file", metavar="FILE", help="write pcapng to FILE; -: standard output")
    command.add_argument(
        "-c", dest="count", metavar="COUNT", type=_positive, default=0, help="stop after COUNT packets"
    )
    command.add_argument(
        "-s",
        "--snapshot-length",
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
        "--drops",
        choices=("none", "count", "capture"),
        help="count: count the packets that the kernel drops, by reason, interface and process; capture: write them "
        "to the file, too",
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
    tcpdump.add(command)
    group = command.add_argument_group("selectors of -r", "As in extract.")
    selecting.add_packets(group)
    selecting.add_drops(group)


def run(options: argparse.Namespace) -> int:
    """Capture until a signal, --duration, -c or the end of the command ends it; or print the packets of files."""
    tcpdump.check(options)
    if options.lists:
        from skbcapd.cli import interfaces  # noqa: PLC0415  only -D needs it

        for line in interfaces.lines():
            print(line)
        return 0
    if options.read:
        from skbcapd.cli import reading  # noqa: PLC0415  a capture reads no files

        return reading.run(options)
    return _run(options)


def _settings(options: argparse.Namespace) -> Settings:
    """The settings of a capture."""
    own = tcpdump.settings(options)
    if options.interfaces:
        own["interfaces"] = ",".join(options.interfaces)
    if options.direction:
        own["directions"] = "out, in" if options.direction == "inout" else options.direction
    if options.snaplen is not None:
        own["snaplen"] = str(CAPTURE_MAX) if options.snaplen == "0" else options.snaplen
    if options.payload is not None:
        own["payload"] = options.payload
    if options.drops is not None:
        own["drops"] = options.drops
    if options.filter or options.filter_file:
        own["filter"] = tcpdump.expression(options, options.filter)
    if tcpdump.is_series(options):
        own |= tcpdump.series(options)
    user = caller(os.environ, os.geteuid())
    default = {"files.owner": f"{user.uid}:{user.gid}"} if user else {}  # files belong to who called sudo
    return config.default_settings(
        default | arguments.overrides(options) | own, {key: place for key, place in _PLACES.items() if key in own}
    )


def _run(options: argparse.Namespace) -> int:
    _refuse_selectors(options)
    settings = _settings(options)
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


def _refuse_selectors(options: argparse.Namespace) -> None:
    """Raise an error if a selector is given that only -r has."""
    for dest, name, hint in _OF_FILES:
        if getattr(options, dest):
            raise UsageError(f"{name}: found no -r; expected -r FILE with it", hint)


def _capture(settings: Settings, options: argparse.Namespace, command: Command | None = None) -> int:
    program = loading.load_program(settings)
    from skbcapd.cli import writing  # noqa: PLC0415  what it needs was imported while the program was loaded

    return writing.capture(program, settings, options, command)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of packets")
    return int(text)
