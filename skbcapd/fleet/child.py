"""The process that makes the index of a finished file for the daemon.

In: a capture file as standard input, its name, and a descriptor of the file as it is stored. Out: its index, to
standard output; an error is one line on stderr.

The rules: it opens no file: the daemon has opened them. Exit codes: 0 complete, PARTIAL: the file could not be read to
its end, and the index has what is before that; others: no index.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from skbcapd.errors import FileError
from skbcapd.fleet import index_file
from skbcapd.fleet.index import texts
from skbcapd.fleet.places import stored
from skbcapd.output.compressor import PARTIAL
from skbcapd.output.naming import COMPRESSED
from skbcapd.pcapng.source import STDIN
from skbcapd.text_safety import escaped_bytes

_PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from skbcapd.fleet import child; sys.exit(child.main())"


def command() -> list[str]:
    """The command; the name of the file and a descriptor are added.

    It imports nothing but the standard library and skbcapd, whatever the environment and the working directory.
    """
    return [sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(__file__).parents[2])]


def main() -> int:
    """Read standard input, write standard output; returns the exit code."""
    name, descriptor = sys.argv[1], int(sys.argv[2])
    try:
        with os.fdopen(1, "wb", closefd=False) as file:
            # The file that stdin is may be the uncompressed one: `name` says how it will be stored.
            places = stored(descriptor) if name.endswith(COMPRESSED) else None
            error = index_file.write_to(texts(STDIN, places=places, name=escaped_bytes(os.fsencode(name))), file)
    except FileError as problem:
        error = problem
        code = 1
    except OSError as problem:
        print(problem.strerror, file=sys.stderr)
        return 1
    else:
        code = PARTIAL if error else 0
    if error:
        print(error.message, file=sys.stderr)
    return code
