"""The process that compresses a finished file so that its granules can be decompressed alone.

In: a capture file as standard input, and `gzip` or `zstd`. Out: members of gzip or frames of zstd, one for each
granule, to standard output; an error is one line on stderr.

The rule not to break: `gzip -dc` or `zstd -dc` of the result is the file, whatever it holds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from skbcapd.child import memory_file
from skbcapd.pcapng.granules import granules
from skbcapd.pcapng.members import gzip_member

_PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from skbcapd.output import pack; sys.exit(pack.main())"


def command(kind: str) -> list[str]:
    """The command for gzip or zstd.

    It imports nothing but the standard library and skbcapd, whatever the environment and the working directory.
    """
    return [sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(__file__).parents[2]), kind]


def pack(source: BinaryIO, target: BinaryIO, kind: str) -> None:
    """Compress a file.

    Raises:
        OSError: a file cannot be read or written, or zstd cannot be started.
        CalledProcessError: zstd has failed.
    """
    target.writelines(_MEMBERS[kind](granule) for granule in granules(source))
    target.flush()


def main() -> int:
    """Read standard input, write standard output; returns the exit code."""
    try:
        with os.fdopen(0, "rb", closefd=False) as source, os.fdopen(1, "wb", closefd=False) as target:
            pack(source, target, sys.argv[1])
    except OSError as error:
        print(error.strerror, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 1  # zstd has said why
    return 0


def _zstd_frame(data: bytes) -> bytes:
    """A frame of zstd, with its size: the standard library of Debian's Python has no zstd."""
    with memory_file("granule") as file:
        file.write(data)
        file.seek(0)
        return subprocess.run(
            ["zstd", "-q", "-c", f"--stream-size={len(data)}"], stdin=file, stdout=subprocess.PIPE, check=True
        ).stdout


_MEMBERS: Mapping[str, Callable[[bytes], bytes]] = {"gzip": gzip_member, "zstd": _zstd_frame}
