"""stdin, stdout and stderr, in any state: closed, on a full disk, or without a reader.

In: the process as it was started. Out: a `sys.stdout` that fails with a FileError, a `sys.stderr`
that never fails.

The rules not to break:

- Descriptors 0, 1 and 2 are opened first. Otherwise a capture file could get number 1, and output
  would be written into it.
- What cannot be written to stderr is dropped and counted: a capture is more important than a
  message. An error of stdout is an error of the command. A reader of stdout that has ended is no
  error.
- While a capture runs, a write to stderr waits at most PATIENCE_S: a stopped reader must not stop
  the capture.

Source: write(2), poll(2); a write to a descriptor that is open for reading only fails with EBADF,
like a closed one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import time

from skbcapd.errors import FileError

PATIENCE_S = 0.1
_COLUMNS = 80
_CHUNK = 4096  # PIPE_BUF: if poll reports a pipe as writable, it accepts so much without waiting


def install() -> None:
    """Open descriptors that are closed, and replace the streams; called before anything else."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    stdout = io.BufferedWriter(_Stdout(1, "w", closefd=False))
    sys.stdout = io.TextIOWrapper(stdout, encoding, "backslashreplace", line_buffering=os.isatty(1))
    sys.stderr = io.TextIOWrapper(_STDERR, encoding, "backslashreplace", line_buffering=True)


def limit_patience() -> None:
    """From now on, do not wait long for the reader of stderr."""
    _STDERR.is_patient = False


def dropped() -> int:
    """Lines that could not be written to stderr."""
    return _STDERR.dropped


def width(descriptor: int = 2) -> int:
    """Columns of the terminal at a descriptor; 80 if unknown: a serial console, or it is closed."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(descriptor).columns or _COLUMNS
    return _COLUMNS


def finish() -> None:
    """Write the buffered output to stdout.

    Raises:
        FileError: it cannot be written; it is discarded.
    """
    try:
        sys.stdout.flush()
    except FileError:
        discard()
        raise


def discard() -> None:
    """Write no more to stdout after an error; otherwise Python tries again at exit, and prints the
    error.
    """
    if isinstance(raw := getattr(getattr(sys.stdout, "buffer", None), "raw", None), _Stdout):
        raw.is_discarding = True
        sys.stdout.flush()


def is_discarding() -> bool:
    """Whether nobody reads stdout any more, so that no more needs to be made."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Stdout) and raw.is_discarding


class _Stdout(io.FileIO):
    """Standard output: an error becomes a FileError; a reader that has ended is no error."""

    is_discarding = False

    def write(self, data: object, /) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        done = 0
        while done < len(view) and not self.is_discarding:
            try:
                done += os.write(1, view[done:])
            except BlockingIOError:  # another process has set O_NONBLOCK on the shared file
                select.select([], [1], [])
            except BrokenPipeError:
                self.is_discarding = True
            except OSError as error:
                reason = "it is closed" if error.errno == errno.EBADF else error.strerror
                raise FileError(
                    f"standard output: {reason}; expected to write the output to it", "redirect it: > FILE"
                ) from None
        return len(view)


class _Stderr(io.RawIOBase):
    """Standard error: what cannot be written is dropped and counted."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        self.is_patient = True
        self._is_stalled = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return os.isatty(2)

    def write(self, data: object, /) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        done = 0
        with contextlib.suppress(OSError):
            while done < len(view) and self._can_write():
                done += os.write(2, view[done : done + _CHUNK])
        self.dropped += bytes(view[done:]).count(b"\n")
        return len(view)

    def _can_write(self) -> bool:
        """Wait until something can be written; while a capture runs, only once, and not long."""
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if self.is_patient:
            return bool(poll.poll())
        patience_s = 0.0 if self._is_stalled else PATIENCE_S
        begun = time.monotonic()
        self._is_stalled = not poll.poll(patience_s * 1000) and time.monotonic() - begun >= patience_s
        return not self._is_stalled


_STDERR = _Stderr()


def _open_null(descriptor: int) -> None:
    """Open /dev/null for reading at a closed descriptor: a write to it still fails."""
    try:
        found = os.open(os.devnull, os.O_RDONLY)
    except OSError:  # without /dev, use a pipe without another end
        found, other = os.pipe()
        if other != descriptor:
            os.close(other)
    if found != descriptor:
        os.dup2(found, descriptor)
        os.close(found)
    os.set_inheritable(descriptor, True)  # noqa: FBT003  the name of the function says what is true
