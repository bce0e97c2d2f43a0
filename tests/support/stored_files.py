"""Capture files as they can be stored."""

from __future__ import annotations

import subprocess
from pathlib import Path

from skbcapd.output import pack

KINDS = ("plain", "gzip", "zstd", "gzip members", "zstd members")
"""What `store` makes; `members`: as files.seekable."""
_ENDINGS = {"plain": "", "gzip": ".gz", "zstd": ".zst"}


def store(path: Path, kind: str) -> Path:
    """Store a capture file in another way, beside it; returns the path."""
    tool = kind.partition(" ")[0]
    if tool == "plain":
        return path
    target = path.with_name(path.name + _ENDINGS[tool])
    command = pack.command(tool) if kind.endswith("members") else [tool, "-q", "-c"]
    with path.open("rb") as source, target.open("wb") as file:
        subprocess.run(command, stdin=source, stdout=file, check=True)
    return target


def unpacked(path: Path, offset: int, length: int) -> bytes:
    """Bytes of a stored file, decompressed by a program if it is compressed; length 0: to the end."""
    raw = path.read_bytes()[offset : offset + length if length else None]
    tool = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    return subprocess.run([tool, "-dcq"], input=raw, capture_output=True, check=True).stdout if tool else raw
