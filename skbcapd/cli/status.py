"""`skbcapd status`: how the daemon goes, as lines for people or as JSON.

In: the path of a control socket. Out: what the daemon tells, once or every second.

The rules not to break: whoever listens at the socket is a stranger to this terminal: at most ANSWER_MAX bytes are read
of it, within PATIENCE_S, and shown as printable text only.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from skbcapd.config.settings import ROWS
from skbcapd.daemon.log import printable
from skbcapd.errors import FileError
from skbcapd.output.block_writer import StandardOutput

ANSWER_MAX = 4 << 20  # bytes: a thousand rules do not fill it
PATIENCE_S = 5.0
_EVERY_S = 1.0
_CLEAR = "\x1b[H\x1b[J"
_LOSSES = {
    "full": "no room in shared memory",
    "contended": "no place in shared memory in time",
    "start": "no usable start of frame",
    "output": "the disk did not take them",
}


def show(path: str, *, as_json: bool = False, watch: bool = False) -> int:
    """Print what the daemon tells.

    Args:
        path: of its control socket.
        as_json: as it comes, a line each time.
        watch: again every second, until the user or the daemon ends it.

    Raises:
        FileError: nobody answers, or with something else.
    """
    output = StandardOutput()
    is_screen = watch and not as_json and output.text.isatty()
    before: Mapping[str, Any] | None = None
    try:
        while True:
            facts = ask(path)
            text = [json.dumps(facts) + "\n"] if as_json else lines(path, facts, before)
            output.text.writelines([_CLEAR, *text] if is_screen else text)
            output.text.flush()
            if not watch:
                return 0
            before = facts
            time.sleep(_EVERY_S)
    except (BrokenPipeError, KeyboardInterrupt):
        return 0
    finally:
        output.close()


def ask(path: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
    """What the daemon tells.

    Args:
        path: of its control socket.
        patience_s: seconds that it may take.

    Raises:
        FileError: nobody answers, or with something else.
    """
    end = time.monotonic() + patience_s
    data = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(patience_s)
        try:
            sock.connect(path)
            sock.sendall(b"status\n")
            while len(data) <= ANSWER_MAX and (more := sock.recv(1 << 16)):
                data += more
                sock.settimeout(max(0.001, end - time.monotonic()))
        except TimeoutError:
            raise FileError(
                f"{path}: no answer within {patience_s:.0f} s; expected one from the daemon",
                "systemctl status skbcapd, journalctl -u skbcapd",
            ) from None
        except OSError as error:
            raise FileError(
                f"{path}: {error.strerror or error}; expected a daemon that listens there",
                "is it running, and are you its user, in its group, or root? "
                "another one is asked by --config FILE or --set control.socket=PATH",
            ) from None
    try:
        facts = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise FileError(f"{path}: answered by {len(data)} bytes of something else; expected skbcapd")
    return facts


def lines(path: str, facts: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[str]:
    """What is told, for people; nothing in it can harm a terminal.

    Args:
        path: of the control socket.
        facts: what the daemon tells.
        before: what it told a second ago.

    Raises:
        FileError: that is not what a daemon of this version tells.
    """
    try:
        return [printable(line) + "\n" for line in _lines(facts, before)]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise FileError(f"{path}: answered by another version; expected one like this", "see its --json") from None


def _lines(facts: Mapping[str, Any], before: Mapping[str, Any] | None) -> Iterator[str]:
    """What people want to know first comes first."""
    packets, lost, processes, files = facts["packets"], facts["lost"], facts["processes"], facts["files"]
    minutes, seconds = divmod(int(facts["uptime_s"]), 60)
    yield f"skbcapd {facts['version']}, process {facts['pid']}, up {minutes // 60}:{minutes % 60:02}:{seconds:02}"
    yield f"file      {files['path']} (mode: {files['mode']})"
    if files["deleted_files"]:
        yield f"deleted   {files['deleted_files']} files, {files['deleted_bytes']} bytes"
    yield f"hooks     {', '.join(facts['hooks'])}"
    yield f"learning  {', '.join(facts['learning'])}"
    yield f"met       {facts['devices']} devices, {processes['count']} processes, {facts['labels']} labels"
    yield ""
    for name, count in packets.items():
        yield f"{name.replace('_', ' '):>12} {_number(count)}{_rate(name, packets, before)}"
    for cause, count in lost.items():
        yield f"{'lost':>12} {_number(count)}  {_LOSSES.get(cause, cause)}"
    if facts["missed"]:
        yield f"{'missed':>12} {_number(facts['missed'])}  never shown to the program by the kernel"
    yield ""
    looked_at, busiest = int(processes["looked_at"]), processes["busiest"]
    yield f"busiest of {looked_at} packets in {processes['seconds']} s"
    yield f"{'TGID':>12} {'PACKETS':>14} {'BYTES':>14}  NAME"
    for one in busiest:
        tgid = "-" if one["tgid"] is None else one["tgid"]
        yield f"{tgid:>12} {_number(one['packets'])} {_number(one['bytes'])}  {one['name'] or '-'}"
    changed = {key: value for key, value in facts["settings"].items() if not _is_default(key, value)}
    yield ""
    yield "settings in force, where not the default"
    for key, value in changed.items():
        yield f"  {key}: {json.dumps(value)}"


def _number(value: object) -> str:
    return f"{int(str(value)):>14,}"


def _rate(name: str, packets: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    if before is None or name not in {"seen", "written"}:
        return ""
    return f"  {int(packets[name]) - int(before['packets'][name]):+,}"


def _is_default(key: str, value: object) -> bool:
    row = ROWS.get(key)
    default = row.kind.parse(row.default) if row else None
    return value == (list(default) if isinstance(default, tuple) else default)
