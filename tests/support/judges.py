"""Independent readers of our files: tshark and capinfos; any output on stderr is an error.

If one is missing, the test fails (FileNotFoundError); it is never skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

# Printed for root with any file.
_ROOT = 'Running as user "root" and group "root". This could be dangerous.'


def judge(path: Path, *command: str, home: Path = Path("/nonexistent")) -> str:
    """Run a reader on a file, without settings of Wireshark; it must succeed and print nothing on
    stderr.

    Args:
        path: the capture file.
        command: the reader, such as `tshark`, and its arguments; the file is added.
        home: home directory with settings, plugins and profiles.

    Returns:
        Its output.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    file = ["-r", str(path)] if command[0] == "tshark" else [str(path)]
    done = subprocess.run([*command, *file], env=environment, capture_output=True, text=True, timeout=120, check=False)
    complaints = [line for line in done.stderr.splitlines() if line and line != _ROOT]
    assert (done.returncode, complaints) == (0, []), f"{command} on {path}"
    return done.stdout


def rows(path: Path, *fields: str, where: str = "", decode: str = "") -> list[list[str]]:
    """The fields that tshark reads of each packet, or of those that match a display filter.

    Args:
        path: the capture file.
        fields: tshark field names, such as `frame.comment`.
        where: display filter; empty for all packets.
        decode: which dissector tshark uses for what, such as `tcp.port==8443,tls`.

    Returns:
        One list per packet with the fields' texts in order.
    """
    columns = [part for field in fields for part in ("-e", field)]
    chosen = (["-Y", where] if where else []) + (["-d", decode] if decode else [])
    # As JSON, because later versions of tshark double a backslash in `-T fields`.
    packets = [
        packet["_source"]["layers"]
        for packet in json.loads(judge(path, "tshark", "-n", *chosen, "-T", "json", *columns))
    ]
    return [[",".join(packet.get(field, [])) for field in fields] for packet in packets]


def facts(path: Path) -> list[tuple[str, str]]:
    """The output of capinfos for a file, in order: `("Number of packets", "7")` and so on."""
    lines = judge(path, "capinfos", "-M").splitlines()
    parts = (line.partition("=" if line.startswith(" ") else ":") for line in lines)
    return [(name.strip(), value.strip()) for name, _, value in parts]
