"""`python -m skbcapd` and the skbcapd command: the only place that turns an error into an exit code."""

from __future__ import annotations

import os
import sys

from skbcapd.cli.main import LOG, command
from skbcapd.errors import SkbcapdError


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Of the errors that nobody can catch, those of memory follow one that is said."""
    if not issubclass(found.exc_type, MemoryError):
        sys.__unraisablehook__(found)


def main() -> int:
    """Run the command line; 0 clean, 1 failed, 2 bad usage or config."""
    sys.unraisablehook = _unraisable
    try:
        return command(sys.argv[1:])
    except SkbcapdError as error:
        LOG.fail(str(error))
        return error.exit_code
    except MemoryError:
        os.write(2, b"skbcapd: out of memory\n")  # print would need some
        return 1
    except KeyboardInterrupt:
        print("skbcapd: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
