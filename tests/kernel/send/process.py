"""Processes that a sender makes: always waited for, and a failure of one is the sender's own.

A function goes in; it runs in a child, which ends without going back into the code that forked it.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec

P = ParamSpec("P")


def fork(run: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> int:
    """Run a function in a child, which then ends; give the child's id."""
    child = os.fork()
    if not child:
        run_and_exit(run, *args, **kwargs)
    return child


def run_and_exit(run: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> NoReturn:
    """Run a function, then end this process at once: 0 if it went well."""
    code = 1
    try:
        run(*args, **kwargs)
        code = 0
    except BaseException:  # noqa: BLE001 - shown, and told by the exit code
        traceback.print_exc()
    finally:
        os._exit(code)


def wait_until_renamed(child: int, before: str) -> None:
    """Wait until a child has another name than its parent, for a minute at most."""
    end = time.monotonic() + 60
    while Path(f"/proc/{child}/comm").read_text() == f"{before}\n" and time.monotonic() < end:
        time.sleep(0.001)


def wait_for(child: int) -> None:
    """Wait for a child's end.

    Raises:
        ChildProcessError: it failed.
    """
    _, status = os.waitpid(child, 0)
    if status:
        raise ChildProcessError(f"child {child} ended with {status:#x}")
