"""The command line: arguments in, exit code out.

Each subcommand is one function, `_capture`, `_run`, `_check`, `doctor.command`; argparse finds it, `command` calls it.

The rule: while packets are captured, people's words (start, totals, errors) go to stderr, so that `capture -w -` keeps
stdout for packets.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from skbcapd import __version__
from skbcapd.analysis import split, top
from skbcapd.attribution import sockets
from skbcapd.attribution.namespaces import Namespaces
from skbcapd.attribution.processes import Processes
from skbcapd.capture.capture import ANY, Capture, Totals
from skbcapd.capture.reload import Reload
from skbcapd.capture.rules import Rules, doubts, filters_of
from skbcapd.cli import doctor, extcap, status
from skbcapd.config import parser as config
from skbcapd.config.settings import Settings, reference, schema
from skbcapd.daemon import metrics
from skbcapd.daemon.log import Event, Log, journal, printable
from skbcapd.daemon.loop import Service
from skbcapd.daemon.notify import Notifier
from skbcapd.daemon.server import Doors
from skbcapd.daemon.statistics import Sight, in_force
from skbcapd.errors import FileError, KernelError, UsageError
from skbcapd.filter import packet_filter
from skbcapd.kernel import program as kernel
from skbcapd.kernel.abi import CAPTURE_MAX, Geometry
from skbcapd.output import block_writer, directory
from skbcapd.output.compressor import Compressor
from skbcapd.output.directory import Keep
from skbcapd.output.interface import Output
from skbcapd.output.pcapng_output import PcapngOutput
from skbcapd.output.ring import Recorder
from skbcapd.output.rotation import Limits, RotatingOutput

SYSTEM_CONFIG = Path("/etc/skbcapd.yaml")
LOG = Log(send=journal())  # one for the process, as stderr is


def command(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: as after the program's name.

    Returns:
        The exit code.

    Raises:
        SkbcapdError: anything that people should read; its exit_code says how to end.
    """
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skbcapd", description="Capture whole frames with the process that sent them."
    )
    parser.add_argument("--version", action="version", version=f"skbcapd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--version", action="version", version=f"skbcapd {__version__}")
        sub.set_defaults(run=run)
        return sub

    capture = add("capture", _capture, "Capture ad hoc: print packets, or write them to a pcapng file.")
    capture.add_argument("-i", dest="interfaces", metavar="NAME", action="append", help="device, repeatable; any: all")
    capture.add_argument("-w", dest="file", metavar="FILE", help="write pcapng to FILE; - for standard output")
    capture.add_argument(
        "-c", dest="count", metavar="COUNT", type=_positive, default=0, help="stop after COUNT packets"
    )
    capture.add_argument("-s", dest="snaplen", metavar="BYTES", help="keep at most BYTES of each frame")
    capture.add_argument(
        "filter", metavar="FILTER", nargs="*", help="packets to capture, as for tcpdump: tcp port 443 and not host ::1"
    )
    run = add("run", _run, "Run as a service in the foreground.")
    check = add("check", _check, "Check a config file and do nothing else.")
    manual = add("config", _config, "Print the reference config file, or its JSON Schema.")
    manual.add_argument("--schema", action="store_true", help="the JSON Schema, for editors")
    dump = add(
        "dump", _dump, "Have the daemon of files.directory write the packets that it keeps in memory (mode: ring)."
    )
    for sub in (capture, run):
        sub.add_argument("--duration", metavar="SECONDS", type=_seconds, help="stop after SECONDS")
    ask = add("status", _status, "Ask the daemon that listens at control.socket how it goes.")
    ask.add_argument("--json", action="store_true", help="all that it tells, as a line of JSON")
    ask.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    for sub in (run, check, dump, ask):
        sub.add_argument("--config", metavar="FILE", type=Path, help=f"default {SYSTEM_CONFIG}")
    for sub in (capture, run, check, dump, ask):
        sub.add_argument(
            "--set", dest="sets", metavar="KEY=VALUE", action="append", default=[], help="override a setting"
        )
    add("doctor", doctor.command, "Tell what this kernel offers and what stands in the way of a capture.")
    busy = add("top", top.command, "Who sent and received what: the packets of capture files, process by process.")
    busy.add_argument("files", metavar="FILE", type=Path, nargs="+", help="pcapng, also packed by gzip or zstd")
    form = busy.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all that is known, as JSON")
    form.add_argument("--csv", action="store_true", help="a line for each process, for a spreadsheet")
    parts = add("split", split.command, "Write the packets of each process, name or unit into a file of its own.")
    parts.add_argument("file", metavar="FILE", type=Path, help="pcapng, also packed by gzip or zstd")
    parts.add_argument("--by", choices=split.KEYS, required=True, help="what the packets of one file have in common")
    parts.add_argument(
        "-d", "--directory", metavar="DIR", type=Path, default=Path(), help="where the files go, default here"
    )
    extcap.add_arguments(add("extcap", _extcap, "Answer Wireshark, which finds its capture programs in this way."))
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of packets")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return value


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    overrides = {}
    for text in options.sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected KEY=VALUE", "for example --set buffer.size=128MiB")
        overrides[key] = value
    return overrides


def _config_path(options: argparse.Namespace) -> Path:
    """The config file asked for, else the system's, else the one beside the code."""
    if options.config is not None:
        return Path(options.config)
    beside = Path(__file__).parents[1] / "etc" / "skbcapd.yaml"
    beside = beside if beside.exists() else Path(__file__).parents[2] / "etc" / "skbcapd.yaml"
    return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() else beside


def _say(line: str) -> None:
    LOG.write(Event.WARNING, line)


def _doubts(settings: Settings) -> Iterator[str]:
    """What the settings name and is not there, or is not as people may think: said, and no error."""
    names = [name for _, name in socket.if_nameindex()]  # /sys may show another network namespace's
    if settings.namespaces in {(), ("self",)}:
        for name in _missing(settings.interfaces, names):
            yield f"interfaces: no device {name} is there now; it is captured when it appears"
        for name, kind in upper_devices(settings.interfaces):
            yield f"{name} is a {kind} device: what arrives on it is captured on the device below only"
    yield from doubts(settings.rules, names)


def _missing(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """Devices that are asked for by name, and are not there."""
    return [name for name in wanted if name not in {ANY, *names} and not set(name) & set("*?[")]


def upper_devices(names: Sequence[str], sys_: Path = Path("/sys")) -> list[tuple[str, str]]:
    """Those devices that frames reach from the one below without passing a hook again, and what they are.

    Args:
        names: of devices.
        sys_: where sysfs is.

    Source: RX_HANDLER_ANOTHER and vlan_do_receive in __netif_receive_skb_core, net/core/dev.c.
    """
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            kind = re.search(r"^DEVTYPE=(\w+)$", (sys_ / "class/net" / name / "uevent").read_text(), re.MULTILINE)
            if kind and kind[1] in {"vlan", "bond", "team", "macvlan", "ipvlan"}:
                found.append((name, kind[1]))
    return found


def _load(settings: Settings) -> kernel.Program:
    hooks = kernel.choose_hooks(settings.attach, settings.directions, settings.transmit)
    doctor.refuse_hopeless()
    expressions = filters_of(settings.filter, settings.rules)
    filters = packet_filter.source(expressions, CAPTURE_MAX) if expressions else None
    geometry = Geometry.for_buffer(settings.buffer.size)
    # scapy takes a tenth of a second.
    return kernel.load(
        geometry,
        hooks,
        settings.attach,
        settings.transmit,
        filters,
        lambda: importlib.import_module("skbcapd.pcapng.writer"),
    )


def _capture(options: argparse.Namespace) -> int:
    overrides = _overrides(options)
    if options.interfaces:
        overrides["interfaces"] = ",".join(options.interfaces)
    if options.snaplen:
        overrides["snaplen"] = options.snaplen
    if options.filter:
        overrides["filter"] = " ".join(options.filter)
    settings = config.default_settings(overrides)
    missing = _missing(settings.interfaces, [name for _, name in socket.if_nameindex()])
    if missing and not settings.namespaces:
        raise UsageError(f"no device {missing[0]} in this network namespace", "`ip -brief link` lists them; any is all")
    program = _load(settings)
    with contextlib.closing(program):
        target: block_writer.CaptureFile | block_writer.StandardOutput
        output: Output
        if options.file is None:
            from skbcapd.output.text import TextOutput  # noqa: PLC0415  its dissectors are not needed for a file

            target = block_writer.StandardOutput()
            output = TextOutput(target.text)
        elif options.file == "-":
            target = block_writer.StandardOutput()
            output = PcapngOutput(target.stream, settings.encode)
        else:
            target = block_writer.CaptureFile(Path(options.file), part=False)
            output = PcapngOutput(target.stream, settings.encode, target.stream.hurry)
        return _serve(settings, program, output, target, options.duration, options.count)


def _extcap(options: argparse.Namespace) -> int:
    if not options.capture:
        config.default_settings(extcap.overrides(options))
        print(extcap.answer(options, [name for _, name in socket.if_nameindex()]), end="")
        return 0
    # First of all, because Wireshark waits until both ends are open, also for our complaint.
    with extcap.open_fifo(options) as fifo:
        settings = config.default_settings(extcap.overrides(options))
        program = _load(settings)
        with contextlib.closing(program):
            target = block_writer.StandardOutput(fifo.fileno())
            output = PcapngOutput(target.stream, settings.encode)
            return _serve(settings, program, output, target, None, quiet=True)


def _run(options: argparse.Namespace) -> int:
    def load() -> Settings:
        return config.load(_config_path(options), _overrides(options))

    settings = load()
    LOG.level = settings.log.level
    _need_libraries(settings)
    program = _load(settings)
    with contextlib.closing(program):
        output = _rotating(settings)
        return _serve(settings, program, output, output, options.duration, load=load, live=True)


def _need_libraries(settings: Settings) -> None:
    """Refuse settings that take what is not installed."""
    if not settings.metrics.listen == settings.metrics.textfile == "none":
        metrics.need_library()


def _status(options: argparse.Namespace) -> int:
    path = config.load(_config_path(options), _overrides(options)).control.socket
    if path == "none":
        raise UsageError("control.socket is none: there is nowhere to ask", "set it, for the daemon too")
    return status.show(path, as_json=options.json, watch=options.watch)


def _dump(options: argparse.Namespace) -> int:
    wanted = config.load(_config_path(options), _overrides(options)).files
    if wanted.mode != "ring":
        raise UsageError("files.mode is files: all packets are in files already", "only mode: ring has what to dump")
    print(directory.ask_for_dump(Path(wanted.directory)))
    return 0


def _rotating(settings: Settings) -> RotatingOutput | Recorder:
    """Files by the settings' rules."""
    wanted = settings.files
    keep = Keep(wanted.keep_size, wanted.keep_number, wanted.keep_age, wanted.keep_free)
    mode, owner = int(wanted.permissions, 8), block_writer.owner_ids(wanted.owner)
    place = directory.CaptureDirectory(Path(wanted.directory), wanted.name, keep, mode, owner, _say)
    compressor = None if wanted.compress == "none" else Compressor(wanted.compress, _say)
    if wanted.mode == "ring":
        dumps = RotatingOutput(place, Limits(wanted.size), settings.encode, compressor, say=_say, on_demand=True)
        return Recorder(dumps, wanted.ring, settings.encode, _say)
    limits = Limits(wanted.size, wanted.every, wanted.packets)
    return RotatingOutput(place, limits, settings.encode, compressor, wanted.flush, _say)


def _chosen(settings: Settings, first_filter: int = 1) -> dict[str, Any]:
    """What a capture makes of settings that may change while it runs."""
    wants_cmdline = "cmdline" in settings.comment or any(rule.cmdline for rule in settings.rules)
    processes = Processes(cmdline=wants_cmdline)
    return {
        "snaplen": settings.snaplen,
        "fill": settings.checksums == "fill",
        "dedup": settings.dedup == "first",
        "comment": settings.comment,
        "process_blocks": settings.process_blocks,
        "processes": processes,
        "filter": settings.filter,
        "rules": Rules(settings.rules, first_filter, processes.parent),
    }


def _serve(
    settings: Settings,
    program: kernel.Program,
    output: Output,
    target: block_writer.CaptureFile | block_writer.StandardOutput | RotatingOutput | Recorder,
    duration_s: float | None,
    count: int = 0,
    load: Callable[[], Settings] | None = None,
    *,
    live: bool = False,
    quiet: bool = False,
) -> int:
    """Run a capture to its end.

    `load` reads the settings anew on SIGHUP; `live` keeps a line up to date; `quiet` says only what went wrong.
    """
    for doubt in _doubts(settings):
        _say(doubt)
    capture = Capture(
        program,
        output,
        settings.interfaces,
        exclude=settings.exclude,
        namespaces=settings.namespaces,
        limit=count,
        warn=_say,
        describe_namespace=Namespaces().describe,
        find_holders=sockets.Holders().find,
        list_holders=sockets.all_holders,
        list_flows=sockets.flows,
        ask_for_dump=target.ask if isinstance(target, Recorder) else lambda _why: None,
        **_chosen(settings),
    )
    output_fd = target.descriptor if isinstance(target, block_writer.StandardOutput) else None
    rotating = target if isinstance(target, RotatingOutput | Recorder) else None
    report = _Report(capture, rotating) if live and rotating else None
    tell = report.reloading if report else None
    answers = (lambda line: LOG.write(Event.RELOADED, line)), tell, (lambda line: LOG.write(Event.NOT_RELOADED, line))
    reload = Reload(capture, settings, load, _chosen, *answers) if load else None
    doors = _open_doors(capture, rotating, settings, reload) if rotating and reload else None

    def tick() -> None:
        for one in (rotating, report, doors):
            if one:
                one.tick()

    server = doors.server if doors else None
    service = Service(capture, duration_s, output_fd, tick, _actions(capture, rotating), reload, server)
    hooks = ", ".join(str(hook) for hook in program.hooks)
    where = f", writing {target.path}" if isinstance(output, PcapngOutput | RotatingOutput | Recorder) else ""

    def started() -> None:
        names = ", ".join(settings.interfaces)
        text = f"capturing on {names} ({hooks}), {settings.snaplen} bytes per frame{where}"
        if report:
            report.started(text)
        elif not quiet:
            print(text, file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        stack.callback(target.close)
        for close in ([doors.close] if doors else []) + ([report.end] if report else []):
            stack.callback(close)
        try:
            service.run(started)
        except OSError as error:
            raise FileError(f"{target.path}: {error.strerror}; the capture ends") from None
    _tell_totals(capture.totals(), report, quiet=quiet)
    return 0


def _actions(capture: Capture, output: RotatingOutput | Recorder | None) -> dict[int, Callable[[], None]]:
    """What signals make an output do; it gets what it needs of the capture for that."""
    if isinstance(output, RotatingOutput):
        output.statistics, output.renumber = capture.statistics, capture.renumber
        return {
            signal.SIGUSR1: output.rotate,
            signal.SIGUSR2: lambda: _say("SIGUSR2: nothing to dump, as files.mode is not ring"),
        }
    if isinstance(output, Recorder):
        output.statistics = capture.statistics
        return {
            signal.SIGUSR1: lambda: _say("SIGUSR1: no file to end, as files.mode is ring"),
            signal.SIGUSR2: output.dump,
        }
    return {}


def _open_doors(capture: Capture, output: RotatingOutput | Recorder, settings: Settings, reload: Reload) -> Doors:
    """What can be asked of a running capture."""
    return Doors(settings, Sight(capture, output, lambda: in_force(settings, reload.settings)), _say)


def _tell_totals(totals: Totals, report: _Report | None, *, quiet: bool) -> None:
    if LOG.is_journal and report:
        report.stopped()
    else:
        _print_totals(totals, quiet=quiet)


def _print_totals(totals: Totals, *, quiet: bool = False) -> None:
    """As tcpdump does, and one line for each other way not to be written; `quiet`: the kernel's losses only."""
    kernel_counters = totals.kernel
    losses = [
        (kernel_counters.full + kernel_counters.contended, "dropped by kernel", not quiet),
        (kernel_counters.start, "without a usable start of frame", False),
        (totals.missed, "missed while the kernel program was already running", False),
        (kernel_counters.seen - kernel_counters.outcomes, "seen, and not accounted for", False),
    ]
    others = [
        (totals.unasked, "forgotten, as nobody asked for a dump", False),
        (totals.lost, "lost by the output", False),  # such as those that came when its reader had gone
        (totals.filtered, "filtered", False),
        (totals.duplicates, "seen before, on another device", False),
    ]
    for packets, what, always in losses if quiet else [(totals.written, "captured", True), *losses, *others]:
        if packets or always:
            print(f"{packets} packets {what}", file=sys.stderr)


class _Report:
    """How a capture goes: for the service manager and the journal, or a line for people.

    The line is kept up to date on a terminal, and printed now and then elsewhere.
    """

    _SECONDS_BETWEEN_LINES = 10
    _SECONDS_BETWEEN_STATES = 5  # reading the counters costs a system call for each device

    def __init__(self, capture: Capture, output: RotatingOutput | Recorder) -> None:
        self._capture = capture
        self._output = output
        self._notifier = Notifier()
        self._is_served = LOG.is_journal or self._notifier.is_listening
        self._terminal = sys.stderr.isatty()
        self._ticks = 0
        self._dropped = 0

    def started(self, text: str) -> None:
        """The hooks are attached and the self-test is over.

        Raises:
            KernelError: a service manager waits for us, and the self-test has failed.
        """
        if self._notifier.is_listening and not self._capture.is_proven:
            raise KernelError(
                "the self-test failed: a frame of known bytes was not captured whole; the service is not ready",
                "`skbcapd doctor` tells what this kernel offers; `skbcapd capture` captures what can be had",
            )
        LOG.write(Event.STARTED, text, file=self._output.path)
        self._notifier.status(self._state())
        self._notifier.ready()

    def reloading(self, is_going_on: bool) -> None:  # noqa: FBT001  a callback's argument
        """The settings are read anew, or that is over."""
        (self._notifier.reloading if is_going_on else self._notifier.ready)()

    def tick(self) -> None:
        """Called once a second."""
        self._ticks += 1
        self._notifier.feed(Path(self._output.path))
        LOG.tick()
        if self._is_served:
            if self._ticks % self._SECONDS_BETWEEN_STATES == 0:
                self._notifier.status(self._state())
        elif self._terminal or self._ticks % self._SECONDS_BETWEEN_LINES == 0:
            self._print()

    def end(self) -> None:
        """Leave the line behind."""
        if self._terminal and self._ticks and not self._is_served:
            print(file=sys.stderr)
        LOG.close()

    def stopped(self) -> None:
        """The totals, for the journal."""
        totals = self._capture.totals()
        dropped = totals.kernel.lost + totals.missed + totals.lost
        text = f"stopped: {totals.written} packets captured, {dropped} dropped"
        LOG.write(Event.STOPPED, text, file=self._output.path, packets=totals.written, dropped=dropped)

    def _state(self) -> str:
        """Packets, drops, file; a rise of the drops is a message of its own."""
        totals = self._capture.totals()
        dropped = totals.kernel.lost + totals.missed + totals.lost
        if self._is_served and dropped > self._dropped:
            text = f"{dropped - self._dropped} packets dropped, {dropped} since the start"
            LOG.write(Event.DROPPED, text, file=self._output.path, packets=totals.written, dropped=dropped)
        self._dropped = dropped
        return f"{totals.written} packets, {dropped} dropped, {totals.processes} processes, {self._output.path}"

    def _print(self) -> None:
        text = printable(self._state())
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # a serial console says 0
            print(f"\r\x1b[K{text[: width - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def _config(options: argparse.Namespace) -> int:
    print(schema() if options.schema else reference(), end="")
    return 0


def _check(options: argparse.Namespace) -> int:
    path = _config_path(options)
    settings = config.load(path, _overrides(options))
    for doubt in _doubts(settings):
        _say(doubt)
    _need_libraries(settings)
    print(f"{path}: no problems", file=sys.stderr)
    return 0
