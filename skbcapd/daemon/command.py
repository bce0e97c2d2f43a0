"""A command whose packets are captured: it waits for the capture, then runs.

In: words of a command line. Out: its process, which exists before the capture begins, so rules can
name it; and its exit code.

The rules not to break: the command runs as the user who called, not as root because of sudo; it has
the terminal of the caller, in the same process group, so that Ctrl-C reaches it; and it does not
begin if the capture does not. The capture ends after the command, when its last packets (such as
the acknowledgement of a FIN) have had time to arrive.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
import signal
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

from skbcapd.errors import SkbcapdError, UsageError
from skbcapd.text_safety import escaped

QUIET_S = 0.5  # after its end, the capture ends when no packet has come for so long,
LINGER_S = 3.0  # and at the latest after this time
NOT_FOUND, NOT_STARTED, BY_SIGNAL = 127, 126, 128  # exit codes as in sh(1)
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_READY = b"."


class CommandError(SkbcapdError):
    """A command that cannot be started; the exit code says why, as in a shell."""

    def __init__(self, word: str, code: int) -> None:
        super().__init__(
            f"{escaped(word)}: {os.strerror(code)}; expected a command after --",
            "commands and pipes of a shell need one: -- sh -c '...'" if code == errno.ENOENT else "",
        )
        self.exit_code = NOT_FOUND if code == errno.ENOENT else NOT_STARTED


@dataclass(frozen=True, slots=True)
class Caller:
    """The user that a command runs as.

    Args:
        uid: user id.
        gid: group id.
        groups: all group ids.
        environment: variables that differ from those of this process.
    """

    uid: int
    gid: int
    groups: Sequence[int]
    environment: Mapping[str, str]


def caller(environment: Mapping[str, str], uid: int) -> Caller | None:
    """The user who called sudo; None: this process has the right user already.

    Args:
        environment: of this process.
        uid: its effective user id.

    Raises:
        UsageError: the variables of sudo are wrong.
    """
    if uid != 0 or "SUDO_UID" not in environment:
        return None
    try:
        wanted, group = int(environment["SUDO_UID"]), int(environment["SUDO_GID"])
    except (KeyError, ValueError):
        raise UsageError("SUDO_UID and SUDO_GID: expected the numbers that sudo sets") from None
    if wanted == 0:
        return None
    try:
        entry = pwd.getpwuid(wanted)
    except KeyError:  # a user of a directory service that does not answer
        return Caller(wanted, group, [group], {"HOME": "/"})
    named = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name, "SHELL": entry.pw_shell}
    return Caller(wanted, group, os.getgrouplist(entry.pw_name, group), named)


class Command:
    """A command, from before its capture to after its end. Use it as a context manager: at the end
    of the context, a command that has not been started never is.

    Args:
        words: its name and arguments.
        stdout: the descriptor that becomes its standard output.

    Raises:
        CommandError: it cannot be started.
        OSError: the system has no process or descriptor left for it.
    """

    def __init__(self, words: Sequence[str], stdout: int = 1) -> None:
        self._word = words[0]
        user = caller(os.environ, os.geteuid())
        with contextlib.ExitStack() as stack:
            pipes = (*os.pipe(), *os.pipe())
            for descriptor in pipes:
                stack.callback(os.close, descriptor)
            gate, self._gate, self._report, report = pipes
            self.pid = os.fork()
            stack.pop_all()
        if self.pid == 0:
            os.close(self._gate)
            _run(words, user, stdout, gate, report)
        os.close(gate)
        os.close(report)
        self._pidfd = os.pidfd_open(self.pid)
        self._code: int | None = None
        self._ended = self._last_packet = float("-inf")
        self._asked = 0  # signals that were passed on
        self._has_started = False
        if (said := os.read(self._report, 16)) != _READY:
            self.close()
            raise CommandError(self._word, int(said or b"0") or errno.EIO)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._has_started and not self.has_ended:  # the capture has failed; the terminal is the command's
            self.wait()
        self.close()

    def close(self) -> None:
        """Release its descriptors; without `start` before, the command never begins."""
        for descriptor in (self._gate, self._report, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        if not self._has_started:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._has_started = True
        self._gate = self._report = self._pidfd = -1

    def start(self) -> None:
        """Let it begin: its packets are captured now."""
        with contextlib.suppress(BrokenPipeError):  # a signal has ended it before
            os.write(self._gate, b"1")
        os.close(self._gate)
        self._gate = -1
        self._has_started = True
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # Ctrl-\ is for the command

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._pidfd

    @property
    def has_ended(self) -> bool:
        """Whether `note_end` was called."""
        return self._code is not None

    def note_end(self, now: float) -> None:
        """It has ended, at a monotonic time."""
        _, status = os.waitpid(self.pid, 0)
        self._code = os.waitstatus_to_exitcode(status)
        self._ended = self._last_packet = now

    def note_packets(self, now: float) -> None:
        """Packets were captured."""
        self._last_packet = now

    def is_over(self, now: float) -> bool:
        """Whether it has ended, and its last packets have had their time."""
        return self.has_ended and now >= min(self._ended + LINGER_S, self._last_packet + QUIET_S)

    def pass_on(self, number: int) -> bool:
        """Pass a signal on to the command, unless it has got it from the terminal.

        Returns:
            Whether the capture continues: it waits for the end of the command. A second signal ends
            the capture, and so does one after the end of the command.
        """
        if self.has_ended:
            return False
        if number == signal.SIGINT and _is_in_foreground():
            return True
        with contextlib.suppress(ProcessLookupError, PermissionError):  # a set-user-ID program
            signal.pidfd_send_signal(self._pidfd, number)
        self._asked += 1
        return self._asked == 1

    def wait(self) -> int:
        """Wait until it ends, if the capture has ended before.

        Returns:
            Its exit code; 128 + n after signal n.

        Raises:
            CommandError: it was found, but could not be executed.
        """
        if not self.has_ended:
            print(f"the capture has ended; {escaped(self._word)} continues (process {self.pid})", file=sys.stderr)
            for number in PASSED_ON:
                signal.signal(number, self._on_signal)
            self.note_end(0.0)
        if said := os.read(self._report, 16):
            raise CommandError(self._word, int(said))
        if self._code is None or self._code >= 0:
            return self._code or 0
        ended_by = -self._code
        name = next((each.name for each in signal.Signals if each == ended_by), f"signal {ended_by}")
        print(f"{escaped(self._word)}: ended by {name}", file=sys.stderr)
        return BY_SIGNAL + ended_by

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.pass_on(number)


def _is_in_foreground() -> bool:
    """Whether Ctrl-C on the terminal sends SIGINT to this process, and so to the command."""
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False


def _run(words: Sequence[str], user: Caller | None, stdout: int, gate: int, report: int) -> NoReturn:
    """The child: wait until the capture begins, and become the command."""
    try:
        ctypes.CDLL(None).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        environment = dict(os.environ)
        if user is not None:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            environment |= user.environment
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        if stdout != 1:
            os.dup2(stdout, 1)
        path = find(words[0], environment.get("PATH", os.defpath))
        os.write(report, _READY)
        if os.read(gate, 1):
            _execute(path, words, environment)
        os._exit(0)
    except OSError as error:
        os.write(report, b"%d" % (error.errno or errno.EIO))
    except BaseException:  # noqa: BLE001, S110  KeyboardInterrupt: the caller has got it, too
        pass
    os._exit(NOT_STARTED)


def _execute(path: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Execute a program; a text without `#!` by the shell, as execvp(3)."""
    try:
        os.execve(path, [*words], environment)  # noqa: S606  the user's own command
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        os.execve("/bin/sh", ["sh", path, *words[1:]], environment)  # noqa: S606


def find(word: str, path: str) -> str:
    """The path of a command.

    Args:
        word: its name; with a slash: its path.
        path: directories, as in $PATH.

    Raises:
        OSError: ENOENT: it is not found; EACCES: only a file that cannot be executed.
    """
    candidates = [word] if "/" in word else [str(Path(each or ".", word)) for each in path.split(":")]
    code = errno.ENOENT
    for candidate in candidates if word else ():
        try:
            is_file = stat.S_ISREG(Path(candidate).stat().st_mode)
        except OSError as error:
            code = code if error.errno in {errno.ENOENT, errno.ENOTDIR} else error.errno or code
            continue
        if is_file and os.access(candidate, os.X_OK):
            return candidate
        code = errno.EACCES
    raise OSError(code, os.strerror(code))
