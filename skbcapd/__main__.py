"""`python -m skbcapd` and the command skbcapd: only this module turns an error into an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys

from skbcapd import standard_streams
from skbcapd.cli.main import command
from skbcapd.errors import FileError, SkbcapdError
from skbcapd.events import Event

_LOG = logging.getLogger("skbcapd")
_OUT_OF_MEMORY = (
    b"skbcapd: out of memory\n  (hint) check MemoryMax= of the unit, `ulimit -v`, and the free memory of this system\n"
)


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Of errors in `__del__` and the like, ignore those of memory: the error itself is reported."""
    if not issubclass(found.exc_type, MemoryError):
        sys.__unraisablehook__(found)


def main() -> int:
    """Run the command line; 0 clean, 1 failed, 2 bad usage or config."""
    sys.unraisablehook = _unraisable
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
    except SystemExit as end:  # argparse has printed its message
        return end.code if isinstance(end.code, int) else 1
    except SkbcapdError as error:
        if isinstance(error, FileError):
            standard_streams.discard()
        _fail(error)
        return error.exit_code
    except MemoryError:
        os.write(2, _OUT_OF_MEMORY)  # logging would need memory
    except OSError as error:
        _fail(_unexpected(error))
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        _fail(SkbcapdError(f"{error}: the process may start no more", "raise TasksMax= of the unit or `ulimit -u`"))
    except KeyboardInterrupt:
        print("skbcapd: interrupted", file=sys.stderr)
    return 1


def _fail(error: SkbcapdError) -> None:
    """Log the last message, with its line breaks."""
    _LOG.error("%s", error, extra=Event.FAILED.extra())


def _unexpected(error: OSError) -> SkbcapdError:
    """An error of the system that can happen anywhere, for example too many open files."""
    place = f"{error.filename}: " if error.filename else ""
    hint = (
        "increase the limit of open files (`ulimit -n`, LimitNOFILE= in a unit); 1024 is usual"
        if error.errno in {errno.EMFILE, errno.ENFILE}
        else ""
    )
    return SkbcapdError(f"{place}{error.strerror or error}; unexpected error of the system", hint)


if __name__ == "__main__":
    sys.exit(main())
