"""Independent readers of what we write: tshark and capinfos, with any word on stderr taken as a complaint.

They are the judges, so a missing one fails the test (FileNotFoundError); it never skips it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

# Said to root about any file; not about ours.
_ROOT = 'Running as user "root" and group "root". This could be dangerous.'


def judge(path: Path, *command: str, home: Path = Path("/nonexistent")) -> str:
    """Run a reader on a file with nobody's Wireshark settings; assert that it is silent and content.

    Args:
        path: the capture file.
        command: the reader, such as `tshark`, and its arguments; the file is added.
        home: whose settings, plugins and profiles it sees.

    Returns:
        What it printed.
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


def rows(path: Path, *fields: str, where: str = "") -> list[list[str]]:
    """What tshark reads of each packet, or of those a display filter finds.

    Args:
        path: the capture file.
        fields: tshark field names, such as `frame.comment`.
        where: display filter; empty for all packets.

    Returns:
        One list per packet with the fields' texts in order.
    """
    columns = [part for field in fields for part in ("-e", field)]
    chosen = ["-Y", where] if where else []
    # As JSON, because later versions of tshark double a backslash in `-T fields`.
    packets = [
        packet["_source"]["layers"]
        for packet in json.loads(judge(path, "tshark", "-n", *chosen, "-T", "json", *columns))
    ]
    return [[",".join(packet.get(field, [])) for field in fields] for packet in packets]


def facts(path: Path) -> list[tuple[str, str]]:
    """What capinfos says of a file, in order: `("Number of packets", "7")` and so on."""
    lines = judge(path, "capinfos", "-M").splitlines()
    parts = (line.partition("=" if line.startswith(" ") else ":") for line in lines)
    return [(name.strip(), value.strip()) for name, _, value in parts]
