"""`skbcapd status`: the status of the running daemon, as lines for people or as JSON.

In: the path of a control socket. Out: the answer of the daemon, once or every second.

The rule not to break: the process that listens on the socket is not trusted. At most ANSWER_MAX
bytes of its answer are read, within PATIENCE_S, and they are escaped before they reach the
terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from skbcapd.cli import arguments
from skbcapd.config.settings import ROWS
from skbcapd.errors import FileError, UsageError
from skbcapd.output.block_writer import StandardOutput
from skbcapd.text_safety import escaped

ANSWER_MAX = 4 << 20  # bytes: a thousand rules need less
PATIENCE_S = 5.0
_EVERY_S = 1.0
_INTERFACES = 20  # with rates, the busiest
_DROPS = 20  # network drops, those with most packets
_MISSED = "the kernel did not run the program"
_AGAIN_S = 0.05  # until the next try to connect
_CLEAR = "\x1b[H\x1b[J"
_CAUSES = {
    "full": "the shared memory was full",
    "contended": "too many processors wrote at the same time",
    "start": "the start of the frame is unknown",
    "output": "the file could not be written",
}


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("--json", action="store_true", help="print everything as one line of JSON")
    command.add_argument("--watch", action="store_true", help="repeat every second, with rates, until Ctrl-C")
    arguments.add_config(command)
    arguments.add_sets(command)


def run(options: argparse.Namespace) -> int:
    """Print the status of the daemon with these settings."""
    path = arguments.settings(options, {"control.socket"}).control.socket
    if path == "none":
        raise UsageError(
            "control.socket is none; expected the path of the daemon's socket", "set it for the daemon, too"
        )
    return show(path, as_json=options.json, watch=options.watch)


def show(path: str, *, as_json: bool = False, watch: bool = False) -> int:
    """Print the status of the daemon.

    Args:
        path: path of its control socket.
        as_json: print JSON as received, one line each time.
        watch: repeat every second, until the user or the daemon ends.

    Raises:
        FileError: there is no answer, or it is not from skbcapd.
    """
    output = StandardOutput()
    is_screen = watch and not as_json and output.text.isatty()
    before: Mapping[str, Any] | None = None
    try:
        while True:
            snapshot = ask(path)
            text = [json.dumps(snapshot) + "\n"] if as_json else lines(path, snapshot, before)
            output.text.writelines([_CLEAR, *text] if is_screen else text)
            output.text.flush()
            if not watch:
                return 0
            before = snapshot
            time.sleep(_EVERY_S)
    except (BrokenPipeError, KeyboardInterrupt):
        return 0
    finally:
        output.close()


def ask(path: str, patience_s: float = PATIENCE_S, request: str = "status") -> dict[str, Any]:
    """Ask the daemon for its status, or something else.

    Args:
        path: path of its control socket.
        patience_s: timeout in seconds.
        request: the line to send.

    Raises:
        FileError: there is no answer, or it is not from skbcapd.
    """
    end = time.monotonic() + patience_s
    data = b""
    with reach(path, request, patience_s) as sock:
        try:
            while len(data) <= ANSWER_MAX and (more := sock.recv(1 << 16)):
                data += more
                sock.settimeout(max(0.001, end - time.monotonic()))
        except OSError as error:
            raise no_answer(path, error, patience_s) from None
    try:
        snapshot = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        snapshot = None
    if not isinstance(snapshot, dict):
        raise FileError(f"{path}: {len(data)} bytes that are not an answer of skbcapd; expected JSON")
    return snapshot


def reach(path: str, request: str, patience_s: float = PATIENCE_S) -> socket.socket:
    """Send a request to the daemon; returns the connection, which has a timeout.

    Args:
        path: path of its control socket.
        request: the line to send.
        patience_s: timeout in seconds.

    Raises:
        FileError: it cannot be reached.
    """
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(patience_s)
    try:
        _connect(sock, path, time.monotonic() + patience_s)
        sock.sendall(request.encode("ascii") + b"\n")
    except OSError as error:
        sock.close()
        raise no_answer(path, error, patience_s) from None
    return sock


def no_answer(path: str, error: OSError, patience_s: float = PATIENCE_S) -> FileError:
    """The error to raise if the daemon cannot be reached, or does not answer."""
    if isinstance(error, TimeoutError):
        return FileError(
            f"{path}: no answer within {patience_s:.0f} s; expected an answer of the daemon",
            "systemctl status skbcapd; journalctl -u skbcapd",
        )
    return FileError(
        f"{path}: {error.strerror or error}; expected a daemon that listens there",
        "check that it runs, and that you are root, its user, or a member of its group; "
        "for another daemon, use --config FILE or --set control.socket=PATH",
    )


def _connect(sock: socket.socket, path: str, end: float) -> None:
    """Connect to a socket, also if its queue is full until then.

    Raises:
        TimeoutError: its queue is still full at `end`, a monotonic time.
    """
    while True:
        with contextlib.suppress(BlockingIOError):
            return sock.connect(path)
        if time.monotonic() >= end:
            raise TimeoutError
        time.sleep(_AGAIN_S)


def lines(path: str, snapshot: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[str]:
    """The status as lines, escaped.

    Args:
        path: path of the control socket.
        snapshot: the answer of the daemon.
        before: its answer one second ago.

    Raises:
        FileError: the answer is from another version.
    """
    try:
        return [escaped(line) + "\n" for line in _lines(snapshot, before)]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
        raise FileError(f"{path}: answer of another version; expected the same version", "try --json") from None


def _lines(snapshot: Mapping[str, Any], before: Mapping[str, Any] | None) -> Iterator[str]:
    """The lines, the most important numbers first."""
    packets, processes, files = snapshot["packets"], snapshot["processes"], snapshot["files"]
    yield f"skbcapd {snapshot['version']}, process {snapshot['pid']}, up {_duration(snapshot['uptime_s'])}"
    yield f"file      {files['path']} (mode: {files['mode']})"
    if files["deleted_files"]:
        yield f"deleted   {files['deleted_files']} files, {files['deleted_bytes']} bytes"
    if files["index_errors"]:
        yield f"indexes   {files['indexes']} written, {files['index_errors']} files without a complete one"
    size, peak = int(snapshot["buffer_size"]), int(snapshot["buffer_peak"])
    yield f"buffer    {size >> 20} MiB, at most {100 * peak / size:.0f} % full in the last minute"
    yield from _memory(snapshot["memory"])
    yield f"hooks     {', '.join(snapshot['hooks'])}"
    yield f"sockets   {', '.join(snapshot['socket_hooks'])}"
    yield f"seen      {snapshot['interfaces']} interfaces, {processes['count']} processes, {snapshot['labels']} labels"
    yield ""
    passed_s = _passed_s(snapshot, before)
    for name, count in packets.items():
        rate = ""
        if before is not None and passed_s and name in {"seen", "written"}:
            rate = f"  {(int(count) - int(before['packets'][name])) / passed_s:,.0f}/s"
        yield f"{name.replace('_', ' '):>16} {_number(count)}{rate}"
    for cause, count in snapshot["dropped"].items():
        yield f"{'dropped':>16} {_number(count)}  {_CAUSES.get(cause, cause)}"
    if snapshot["missed"]:
        yield f"{'missed':>16} {_number(snapshot['missed'])}  {_MISSED}"
    if snapshot["log"]["dropped"]:
        yield f"{'log':>16} {_number(snapshot['log']['dropped'])}  lines could not be written"
    if before is not None and passed_s:
        yield from _interface_rates(snapshot["by_interface"], before["by_interface"], passed_s)
    yield from _network_drops(snapshot["network_drops"])
    yield ""
    sampled, busiest = int(processes["sampled"]), processes["busiest"]
    yield f"busiest processes ({sampled} packets sampled in {processes['seconds']} s)"
    yield f"{'TGID':>16} {'PACKETS':>14} {'BYTES':>14}  NAME"
    for one in busiest:
        tgid = "-" if one["tgid"] is None else one["tgid"]
        yield f"{tgid:>16} {_number(one['packets'])} {_number(one['bytes'])}  {one['name'] or '-'}"
    changed = {key: value for key, value in snapshot["settings"].items() if not _is_default(key, value)}
    yield ""
    yield "settings that differ from their defaults"
    for key, value in changed.items():
        yield f"  {key}: {json.dumps(value)}"


def _memory(memory: Mapping[str, Any] | None) -> Iterator[str]:
    """The lines about the ring buffer: what it holds, how fast it fills, and the dump."""
    if memory is None:
        return
    text = f"{int(memory['used']):,} of {int(memory['size']):,} bytes"
    if memory["first"]:
        text += f", from {memory['first']} to {memory['last']} ({_duration(memory['seconds'])})"
    yield f"memory    {text}"
    text = f"{float(memory['rate']):,.0f} bytes/s"
    if memory["holds_s"] is not None:
        text += f"; at this rate, files.ring holds {_duration(memory['holds_s'])}"
    if memory["time_s"]:
        text += f"; files.ring_time: {_duration(memory['time_s'])}"
    if memory["bound"]:
        text += f"; discarded because of {memory['bound']}"
    yield f"fills     {text}"
    if dump := memory["dump"]:
        left = f", for {float(dump['left_s']):.0f} s more" if dump["state"] == "capturing" else ""
        yield f"dump      {dump['state']}{left}, {int(dump['packets']):,} packets (trigger: {dump['trigger']})"


def _network_drops(drops: Mapping[str, Any] | None) -> Iterator[str]:
    """The lines about packets that the kernel drops: a sum, then by reason, interface and process."""
    if drops is None:
        return
    yield ""
    yield f"{'network drops':>16} {_number(drops['lost'])}  {int(drops['no_loss']):,} more drops were no loss"
    for key, what in (("unlisted", "on any interface: the list was full"), ("missed", _MISSED)):
        if drops[key]:
            yield f"{key:>16} {_number(drops[key])}  {what}"
    rows = drops["rows"][:_DROPS]
    if rows:
        yield f"{'PACKETS':>16} {'TGID':>10} {'DIRECTION':>9}  {'REASON':<24} {'INTERFACE':<15}  NAME"
    for row in rows:
        reason = row["reason"] if row["loss"] else f"{row['reason']} (no loss)"
        where, name = row["interface"] or "-", "(other processes)" if row["others"] else row["name"] or "-"
        count, tgid = f"{int(row['packets']):,}", row["tgid"] or "-"
        yield f"{count:>16} {tgid:>10} {row['direction']:>9}  {reason:<24} {where:<15}  {name}"


def _duration(seconds: object) -> str:
    """A duration as hours, minutes and seconds."""
    whole = int(float(str(seconds)))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _number(value: object) -> str:
    return f"{int(str(value)):>14,}"


def _passed_s(snapshot: Mapping[str, Any], before: Mapping[str, Any] | None) -> float:
    """Seconds between two answers of one daemon; 0 if they are the same, or of two daemons."""
    if before is None or (snapshot["pid"], snapshot["start_s"]) != (before["pid"], before["start_s"]):
        return 0.0
    return max(0.0, float(snapshot["monotonic_s"]) - float(before["monotonic_s"]))


def _interface_rates(now: Iterable[Any], before: Iterable[Any], passed_s: float) -> Iterator[str]:
    """Packets, bytes and drops per second of the busiest interfaces, since the last answer."""
    earlier = {one["slot"]: one for one in before}
    keys = ("bytes", "packets", "dropped")
    rates = []
    for one in now:
        then = earlier.get(one["slot"], dict.fromkeys(keys, 0))
        rates.append(([(int(one[key]) - int(then[key])) / passed_s for key in keys], one))
    rates.sort(key=lambda pair: pair[0], reverse=True)
    yield ""
    yield f"{'PACKETS/S':>16} {'BYTES/S':>14} {'DROPS/S':>14}  INTERFACE"
    for (size, packets, dropped), one in rates[:_INTERFACES]:
        where = f" ({one['namespace']})" if one["namespace"] else ""
        yield f"{packets:>16,.0f} {size:>14,.0f} {dropped:>14,.0f}  {one['name']}{where}"


def _is_default(key: str, value: object) -> bool:
    row = ROWS.get(key)
    default = row.kind.parse(row.default) if row else None
    return value == (list(default) if isinstance(default, tuple) else default)
