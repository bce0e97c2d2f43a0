"""The composition root: makes a capture from settings, and runs it to its end.

Only this module connects the packages: the loaded program, the capture, its output, and what a
running capture needs (event loop, report, endpoints, reload).
"""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from skbcapd import standard_streams
from skbcapd.attribution import sockets
from skbcapd.attribution.namespaces import Namespaces
from skbcapd.attribution.processes import sees_host
from skbcapd.capture.above import Above
from skbcapd.capture.capture import FINAL_DRAIN_S, Capture, Machine
from skbcapd.capture.drops import drops_of
from skbcapd.capture.interfaces import Selection
from skbcapd.capture.plan import compile_filters, plan_for
from skbcapd.capture.reload import Reload
from skbcapd.config.settings import Settings
from skbcapd.daemon.command import Command
from skbcapd.daemon.dumps import Dumps
from skbcapd.daemon.endpoints import Endpoints
from skbcapd.daemon.log import LOG
from skbcapd.daemon.loop import Service
from skbcapd.daemon.report import Report, print_descendants, print_drops, print_link_types, print_totals
from skbcapd.daemon.statistics import Statistics, in_force
from skbcapd.daemon.viewers import Viewers
from skbcapd.daemon.warnings import warnings_for
from skbcapd.errors import FileError
from skbcapd.fleet import child
from skbcapd.kernel import program as kernel
from skbcapd.output import block_writer, directory
from skbcapd.output.compressor import Compressor
from skbcapd.output.interface import Output
from skbcapd.output.key_log import KeyLogs
from skbcapd.output.pcapng_output import PcapngOutput
from skbcapd.output.pipe import STALL_S, PipeTarget
from skbcapd.output.retention import Keep
from skbcapd.output.ring import Recorder
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.triggers import Limits

_LOG = logging.getLogger(__name__)

Files: TypeAlias = RotatingOutput | Recorder
Target: TypeAlias = block_writer.CaptureFile | PipeTarget | Files
"""The destination of the bytes of an output; closed at the end."""


def size_limit(size: int) -> int:
    """The size of a file at which the next one begins: `files.size`, or less if the process may not write
    so much to a file. At the limit itself, packets would be dropped for a second.
    """
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    most = allowed // 8 * 7  # the rest is for statistics
    if allowed == resource.RLIM_INFINITY or 0 < size <= most:
        return size
    _LOG.warning(
        "the process may write %d bytes to a file; the next file begins after %d. LimitFSIZE= of the unit, `ulimit -f`",
        allowed,
        most,
    )
    return most


def files(settings: Settings, key_logs: KeyLogs | None = None) -> Files:
    """The output for the settings of files.

    Args:
        settings: all of them.
        key_logs: of the setting `secrets`.

    Raises:
        FileError: files.directory cannot be used.
    """
    wanted = settings.files
    keep = Keep(wanted.keep_size, wanted.keep_number, wanted.keep_age, wanted.keep_free)
    mode, owner = int(wanted.permissions, 8), block_writer.owner_ids(wanted.owner)
    place = directory.CaptureDirectory(Path(wanted.directory), wanted.name, keep, mode, owner)
    index = child.command() if wanted.index else ()
    compressor = Compressor(wanted.compress, index, is_seekable=wanted.seekable)
    if wanted.mode == "ring":
        limits = Limits(size_limit(wanted.size))
        dumps = RotatingOutput(place, limits, settings.encode, compressor, on_demand=True, key_logs=key_logs)
        return Recorder(dumps, wanted.ring, wanted.ring_time, settings.encode)
    limits = Limits(size_limit(wanted.size), wanted.every, wanted.packets)
    return RotatingOutput(place, limits, settings.encode, compressor, wanted.flush, key_logs=key_logs)


@dataclass(frozen=True, slots=True)
class Run:
    """One capture, from its start to its end.

    Args:
        settings: settings at the start.
        program: loaded.
        output: takes the packets.
        target: destination of the output; closed at the end.
        duration_s: stop after so many seconds; None: never.
        count: stop after so many packets; 0: never.
        load: reads the settings again on SIGHUP; None: they never change.
        live: report to the service manager, the journal or a terminal.
        quiet: print and log errors and drops only.
        command: begins with the capture, which ends after it; None: no command.
    """

    settings: Settings
    program: kernel.Program
    output: Output
    target: Target
    duration_s: float | None = None
    count: int = 0
    load: Callable[[], Settings] | None = None
    live: bool = False
    quiet: bool = False
    command: Command | None = None


def serve(run: Run) -> int:
    """Run a capture to its end; returns the exit code.

    Raises:
        KernelError: the capture cannot start.
        FileError: the output cannot be written.
    """
    settings, target = run.settings, run.target
    standard_streams.limit_patience()
    for line in warnings_for(settings):
        _LOG.warning("%s", line)
    capture = _make_capture(run)
    to_files = target if isinstance(target, RotatingOutput | Recorder) else None
    report = Report(capture, to_files) if run.live and to_files else None
    reload = _make_reload(capture, settings, run.load, report) if run.load else None
    endpoints = _make_endpoints(capture, to_files, settings, reload) if to_files and reload else None
    above = _make_above(capture, settings)
    ticks = [*_ticks(capture, to_files, above, reload), *(one.tick for one in (report, endpoints) if one)]
    pipe = target if isinstance(target, PipeTarget) else None
    server = endpoints.server if endpoints else None
    service = Service(
        capture,
        run.duration_s,
        pipe.descriptor if pipe else None,
        _all(ticks),
        _actions(capture, to_files),
        reload,
        server,
        STALL_S if pipe else FINAL_DRAIN_S,
        run.command,
        above.fileno(),
    )

    def stopped() -> None:
        if report:
            report.stopped()
        else:
            print_totals(capture.totals(), quiet=run.quiet)
            print_drops(drops_of(capture.program, capture.interfaces))
        if run.command and run.command.has_ended:
            print_descendants(capture.descent.running(run.command.pid))
        _say_link_types(run, capture)

    try:
        with contextlib.ExitStack() as stack:
            stack.callback(target.close)
            for one in (endpoints, report, above):
                if one:
                    stack.callback(one.close)
            try:
                service.run(lambda: _report_start(run, report, above))
            except OSError as error:
                raise FileError(f"{target.path}: {error.strerror}; the capture ends") from None
    except FileError:
        stopped()
        raise
    stopped()
    return 0


def _say_link_types(run: Run, capture: Capture) -> None:
    """Tell people, not the journal, that files have several link types."""
    if run.quiet or LOG.is_journal:
        return
    if isinstance(run.target, RotatingOutput | Recorder):
        print_link_types(capture.interfaces.link_types, Path(run.settings.files.directory))
    elif isinstance(run.target, block_writer.CaptureFile):
        print_link_types(capture.interfaces.link_types, run.target.path)


def _ticks(
    capture: Capture, output: Files | None, above: Above, reload: Reload | None
) -> Iterator[Callable[[int], bool]]:
    """What is to be called from time to time; see Service."""
    yield lambda _seconds: capture.interfaces.reconsider()
    yield lambda _seconds: above.tick(is_reloading=bool(reload and reload.child))
    if output is not None:
        yield lambda _seconds: output.tick(capture.statistics)


def _all(calls: Sequence[Callable[[int], bool]]) -> Callable[[int], bool]:
    """Makes all of these in one call, in their order; whether one of them has returned true."""
    return lambda seconds: any([each(seconds) for each in calls])  # noqa: C419  each is called


def _make_endpoints(capture: Capture, output: Files, settings: Settings, reload: Reload) -> Endpoints:
    """The statistics of a running capture."""
    statistics = Statistics(
        capture, output, lambda: in_force(settings, reload.settings), log_dropped=lambda: LOG.dropped
    )
    dumps = Dumps(output.orders if isinstance(output, Recorder) else None)
    return Endpoints(settings, statistics, dumps, Viewers(capture))


def _make_capture(run: Run) -> Capture:
    settings, target = run.settings, run.target
    filters = compile_filters(settings)
    return Capture(
        run.program,
        run.output,
        Selection(settings.interfaces, settings.exclude, settings.namespaces),
        plan_for(settings, filters),
        Machine(sockets.Holders().find, sockets.all_holders, sockets.flows, Namespaces().describe),
        limit=run.count,
        ask_for_dump=target.ask if isinstance(target, Recorder) else lambda _why, _after_s: None,
    )


def _make_above(capture: Capture, settings: Settings) -> Above:
    above = Above(capture.program.taps, capture.interfaces, is_wanted="in" in settings.directions)
    above.start()
    return above


def _make_reload(capture: Capture, settings: Settings, load: Callable[[], Settings], report: Report | None) -> Reload:
    return Reload(capture, settings, load, report.reloading if report else None)


def _actions(capture: Capture, output: Files | None) -> dict[int, Callable[[], None]]:
    """The actions on signals."""
    if isinstance(output, RotatingOutput):
        return {
            signal.SIGUSR1: lambda: output.end_file(capture.statistics, "SIGUSR1"),
            signal.SIGUSR2: lambda: _LOG.warning(
                "SIGUSR2 ignored: files.mode is not ring, so there is nothing to dump"
            ),
        }
    if isinstance(output, Recorder):
        return {
            signal.SIGUSR1: lambda: _LOG.warning("SIGUSR1 ignored: files.mode is ring, so there is no file to rotate"),
            signal.SIGUSR2: lambda: output.dump(capture.statistics),
        }
    return {}


def _report_start(run: Run, report: Report | None, above: Above) -> None:
    settings = run.settings
    above.started()
    hooks = ", ".join(str(hook) for hook in run.program.hooks)
    where = f", writing {run.target.path}" if isinstance(run.output, PcapngOutput | RotatingOutput | Recorder) else ""
    text = f"capturing on {', '.join(settings.interfaces)} ({hooks}), {settings.snaplen} bytes per frame{where}"
    if not sees_host():
        _LOG.warning(
            "in a PID namespace: packets have names of processes, but nothing that only /proc shows (users, command "
            "lines, sockets that are older than the capture); in a container, --pid=host gives all"
        )
    if report:
        report.started(text)
    elif not run.quiet:
        print(text, file=sys.stderr, flush=True)
    if run.command:
        run.command.start()
