"""A child process that works for skbcapd, while the parent waits or continues.

In: a function. Out: its process, a socket to it, and its output on stderr.

The rule: a child never runs longer than its parent, ends on SIGTERM at once, and ignores Ctrl-C,
which is for the parent. `close` kills it, even if it hangs in a library. Its end releases all
resources.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import IO, Protocol

_PR_SET_PDEATHSIG = 1
_CLOSE_S = 0.5
_DEFAULT = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def memory_file(name: str) -> IO[bytes]:
    """A file without a name in the file system, for what a child says: no disk can be full, and none is waited for."""
    return os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b", buffering=0)


class HasDescriptor(Protocol):
    """Has a file descriptor."""

    def fileno(self) -> int:
        """Returns it."""
        ...


def is_readable(source: int | HasDescriptor) -> bool:
    """Whether a message of a child, or its end, can be read; does not wait."""
    poll = select.poll()  # select(2) takes no descriptor above 1023
    poll.register(source, select.POLLIN)
    return bool(poll.poll(0))


class Child:
    """A running child; `close` ends it.

    Args:
        work: its function, called with its end of the socket; an exception is written to its
            stderr, and ends it with exit code 1.
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        nice: added to its nice value.

    Raises:
        OSError: the system has no process, descriptor or memory left for it.
    """

    def __init__(self, work: Callable[[socket.socket], None], kind: socket.SocketKind, nice: int = 0) -> None:
        with contextlib.ExitStack() as stack:
            self.channel, theirs = (stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, kind))
            self._stderr = stack.enter_context(memory_file("stderr"))
            parent = os.getpid()
            self._pid = os.fork()
            stack.pop_all()
        if self._pid == 0:
            try:
                self.channel.close()
                os.dup2(self._stderr.fileno(), 2)
                signal.set_wakeup_fd(-1)
                # Ctrl-C is sent to the whole process group; the parent decides
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                for number in _DEFAULT:
                    signal.signal(number, signal.SIG_DFL)
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(1)  # the parent has already ended
                # skbcapd.service allows no setpriority(2); the child works without it
                with contextlib.suppress(OSError):
                    os.nice(nice)
                work(theirs)
            except BaseException:  # noqa: BLE001  the child has no caller: everything becomes a line for the parent
                # Python may have no stderr, or another one
                os.write(2, traceback.format_exc().encode(errors="replace"))
                os._exit(1)
            os._exit(0)
        theirs.close()

    def fileno(self) -> int:
        """Readable when the child has a message, or has ended."""
        return self.channel.fileno()

    def stderr(self) -> str:
        """What it has written to stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def close(self) -> None:
        """End the child in any state, and reap it. A child that waits for a disk in the kernel ends
        later: it is not waited for.
        """
        self.channel.close()
        self._stderr.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        end = time.monotonic() + _CLOSE_S
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0) and time.monotonic() < end:
            time.sleep(0.001)
