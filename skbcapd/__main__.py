"""`python -m skbcapd` and the skbcapd command: the only place that turns an error into an exit code."""

from __future__ import annotations

import errno
import logging
import sys

from skbcapd import standard_streams
from skbcapd.cli.main import command
from skbcapd.errors import FileError, SkbcapdError
from skbcapd.events import Event

_LOG = logging.getLogger("skbcapd")


def main() -> int:
    """Run the command line; 0 clean, 1 failed, 2 bad usage or config."""
    standard_streams.install()
    code = _run()
    try:
        standard_streams.finish()
    except FileError as error:
        _fail(error)
        return code or error.exit_code
    return code


def _run() -> int:
    try:
        return command(sys.argv[1:])
    except SystemExit as end:  # argparse has said what there is to say
        return end.code if isinstance(end.code, int) else 1
    except SkbcapdError as error:
        if isinstance(error, FileError):
            standard_streams.discard()
        _fail(error)
        return error.exit_code
    except MemoryError:
        _fail(SkbcapdError("out of memory", "MemoryMax= of the unit, ulimit -v, or the machine is at its limit"))
    except OSError as error:
        _fail(_unexpected(error))
    except KeyboardInterrupt:
        print("skbcapd: interrupted", file=sys.stderr)
    return 1


def _fail(error: SkbcapdError) -> None:
    """The last message, which keeps its lines."""
    _LOG.error("%s", error, extra=Event.FAILED.extra())


def _unexpected(error: OSError) -> SkbcapdError:
    """What the system refuses where nobody has expected it: descriptors and memory may end anywhere."""
    place = f"{error.filename}: " if error.filename else ""
    hint = "`ulimit -n` is the limit; 1024 is usual" if error.errno in {errno.EMFILE, errno.ENFILE} else ""
    return SkbcapdError(f"{place}{error.strerror or error}; expected the system to allow it", hint)


if __name__ == "__main__":
    sys.exit(main())
