"""`python -m skbcapd` and the skbcapd command: the only place that turns an error into an exit code."""

from __future__ import annotations

import sys

from skbcapd.cli.main import LOG, command
from skbcapd.errors import SkbcapdError


def main() -> int:
    """Run the command line; 0 clean, 1 failed, 2 bad usage or config."""
    try:
        return command(sys.argv[1:])
    except SkbcapdError as error:
        LOG.fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        print("skbcapd: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
