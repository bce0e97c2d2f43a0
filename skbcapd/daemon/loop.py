"""The event loop of a capture: signals, deadlines, polling for packets, status.

In: a Capture. Out: the capture has ended, in order.

The rule: no turn of the loop takes longer than a second, whatever a disk, a name server or the
compiler does: slow work is done by a child process or a thread. While packets arrive, the loop
drains as often as the output needs it, and when a part of the buffer is full. It drains PROMPT_S
after a packet without a label, or after the first packet for a reader: the kernel program wakes it.
The other work is done in ticks, which are QUIET_S apart while nothing goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from types import FrameType

from skbcapd.capture.capture import FINAL_DRAIN_S, Capture
from skbcapd.capture.reload import Reload
from skbcapd.child import is_readable
from skbcapd.clocks import ClockSteps
from skbcapd.daemon.command import PASSED_ON, Command
from skbcapd.daemon.loading import HELD_BACK
from skbcapd.daemon.server import Server
from skbcapd.kernel import abi
from skbcapd.output.interface import FILE_S, PROMPT_S

BUSY_S = 0.01  # interval of polling a busy output
TICK_S = 1.0  # between two ticks while something goes on
QUIET_S = FILE_S  # otherwise
ACT_DRAINS = 4  # at most, before the action of a signal
ACT_S = 0.25  # the shortest time between two actions of signals


class Service:
    """Runs one capture until a signal, a deadline, a limit, or until the reader of its output ends.

    Args:
        capture: the capture, not started yet.
        duration_s: stop after so many seconds; None: never.
        output_fd: descriptor of an output with a reader; None: a file.
        tick: called after so many seconds, rounded; returns whether something goes on that needs it each second.
        actions: actions on other signals, by number.
        reload: started by SIGHUP; None: SIGHUP ends the capture.
        server: called when its descriptor is readable; None: no endpoints.
        final_drain_s: time for the packets in the segments at the end.
        command: the capture ends after it; None: there is none.
        changes: a descriptor that is readable when `tick` has something to do; -1: there is none.
    """

    def __init__(
        self,
        capture: Capture,
        duration_s: float | None = None,
        output_fd: int | None = None,
        tick: Callable[[int], bool] = lambda _seconds: False,
        actions: Mapping[int, Callable[[], None]] | None = None,
        reload: Reload | None = None,
        server: Server | None = None,
        final_drain_s: float = FINAL_DRAIN_S,
        command: Command | None = None,
        changes: int = -1,
    ) -> None:
        self.capture = capture
        self._changes = changes
        self._duration_s = duration_s
        self._tick = tick
        self._actions = actions or {}
        self._asked: list[int] = []  # numbers of signals, each once
        self._act_at = 0.0
        self._reload = reload
        self._server = server
        self._final_drain_s = final_drain_s
        self._command = command
        self._stopping = self._wants_reload = False
        self._last_tick, self._next_tick = 0.0, float("inf")
        self._patience_s = TICK_S  # how long packets wait: the longer, the longer they have arrived without a pause
        self._clock_steps = ClockSteps()
        self._epoll = select.epoll()
        self._signals, self._wake = socket.socketpair()
        for end in (self._signals, self._wake):
            end.setblocking(False)  # noqa: FBT003  the name of the method says what is false
        capture.segments.returned = lambda: _ring(self._wake)
        self._output_fd = output_fd
        for number in (*(PASSED_ON if command else (signal.SIGINT, signal.SIGTERM)), *self._actions):
            signal.signal(number, self._on_signal)
        if reload is not None:
            signal.signal(signal.SIGHUP, self._on_signal)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    def run(self, started: Callable[[], None]) -> None:
        """Start, run and stop the capture.

        Args:
            started: called when packets are captured.

        Raises:
            KernelError: the capture cannot start.
            OSError: the output fails.
        """
        broken = True
        try:
            self.capture.start()
            self._watch()
            started()
            self._loop()
            broken = False
        except BrokenPipeError:
            pass  # the reader has ended: the remaining packets are dropped
        finally:
            if self._reload is not None:
                self._reload.close()
            with contextlib.suppress(BrokenPipeError):
                self._stop(broken=broken)
            self._ignore_signals()
            signal.set_wakeup_fd(-1)
            for end in (self._epoll, self._signals, self._wake, self._clock_steps):
                end.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in self._actions:
            self._hold_back(number)
            if number not in self._asked:  # it may have arrived again before it was blocked
                self._asked.append(number)
        elif self._command is not None:
            self._stopping = not self._command.pass_on(number)
        elif number == signal.SIGHUP:
            self._hold_back(number)
            self._wants_reload = True
        else:
            self._stopping = True

    @staticmethod
    def _hold_back(number: int) -> None:
        """Block a signal until it is obeyed: very many signals must not use all of the time."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})

    def _ignore_signals(self) -> None:
        """The capture is over: Python resets handlers at its end, and then a late signal would be the exit code."""
        numbers = {signal.SIGINT, signal.SIGTERM, *self._actions, *([signal.SIGHUP] if self._reload else [])}
        # Python has no handler for a signal that arrives while it is removed.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked - HELD_BACK)

    def _watch(self) -> None:
        self._epoll.register(self._signals, select.EPOLLIN)
        self._epoll.register(self.capture.program.wakeup_fd, select.EPOLLIN)
        for each in (self._server, self._command, self._clock_steps):
            if each is not None and each.fileno() >= 0:
                self._epoll.register(each, select.EPOLLIN)
        if self._changes >= 0:
            self._epoll.register(self._changes, select.EPOLLIN | select.EPOLLET)  # `tick` may take them later
        if self._output_fd is not None:
            try:
                self._epoll.register(self._output_fd, 0)  # errors and hang-ups are always reported
            except PermissionError:
                self._output_fd = None  # a regular file has no reader

    def _loop(self) -> None:
        capture = self.capture
        now = time.monotonic()
        end = now + self._duration_s if self._duration_s is not None else float("inf")
        self._last_tick, self._next_tick = now, now + TICK_S
        drains = 0  # since an action is due
        while not (self._stopping or capture.is_full or now >= end or (self._command and self._command.is_over(now))):
            if self._reload is not None:
                self._continue_reload(self._reload)
            drains = drains + 1 if self._asked and now >= self._act_at else 0
            moved = capture.drain()
            # A dump or a file has the packets from before the signal, unless draining them takes too long.
            if drains and (drains >= ACT_DRAINS or not capture.has_more):
                self._act()
                drains = 0
            if capture.output.needs_renumbering:
                capture.renumber()
            now = time.monotonic()
            if moved and self._command is not None:
                self._command.note_packets(now)
            self._tick_if_due(now)
            if capture.has_more:
                if self._server is not None:
                    self._server.serve()  # the loop does not wait if it has too much to do
                continue
            self._pause(min(end, self._act_at) if self._asked else end, moved)
        if self._asked:  # a signal for a dump or a new file, and then the end: it still applies
            capture.drain()
            self._act()

    def _pause(self, end: float, moved: int) -> None:
        """Wait until it is time for the next drain.

        Args:
            end: the latest time.
            moved: bytes of packets that the last drain found.
        """
        capture, pause = self.capture, PROMPT_S
        if self._command is not None and self._command.has_ended:
            end = min(end, time.monotonic() + PROMPT_S)
        if self._reload is not None and self._reload.child is not None:
            end = min(end, time.monotonic() + TICK_S)
        if capture.output.has_pending_work or (capture.has_buffered and capture.output.is_busy):
            pause = BUSY_S
        elif (latency_s := capture.latency_s) > PROMPT_S or not moved:
            if not moved:
                self._patience_s = TICK_S
            wait_s = min(latency_s, self._patience_s) if moved else QUIET_S
            latest = min(self._next_tick, end, time.monotonic() + wait_s)
            if capture.request_wakeup(abi.Sleep.UNTIL_UPCALL if moved else abi.Sleep.UNTIL_PACKET):
                if not self._wait(latest) and moved:
                    self._patience_s = 2 * wait_s
                if not capture.cancel_wakeup() or capture.segments.is_scarce:
                    return
                # More packets follow, and sockets without a known user can get one.
        if self._wait(min(time.monotonic() + pause, end)):
            capture.cancel_wakeup()

    def _stop(self, *, broken: bool) -> None:
        """Detach, write the packets in the segments, for `final_drain_s` at most, and end."""
        capture = self.capture
        capture.detach()
        try:
            deadline = time.monotonic() + self._final_drain_s
            while not broken and not capture.is_complete and time.monotonic() < deadline:
                moved = capture.drain()
                self._tick_if_due(time.monotonic())
                if not moved:
                    time.sleep(BUSY_S)  # for the output, or for a program on another processor
        except OSError:
            broken = True
            raise
        finally:
            capture.finish(broken=broken)

    def _tick_if_due(self, now: float) -> None:
        if now >= self._next_tick:
            seconds, self._last_tick = max(1, round(now - self._last_tick)), now
            self.capture.program.set_clock()
            self._next_tick = now + (TICK_S if self._tick(seconds) else QUIET_S)

    def _act(self) -> None:
        """Do the actions of the signals that have arrived."""
        asked, self._asked = self._asked, []
        if asked:
            self._act_at = time.monotonic() + ACT_S
        for number in asked:
            self._actions[number]()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})

    def _continue_reload(self, reload: Reload) -> None:
        """Start a reload, or finish it when its child is done; never waits."""
        if self._wants_reload:
            self._wants_reload = False
            reload.begin()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        if reload.child is not None and is_readable(reload.child):
            reload.finish()

    def _wait(self, until: float) -> bool:
        """Wait for a wakeup, a signal or the end of the output, with a timeout; returns whether it was a wakeup."""
        called = False
        found = self._epoll.poll(max(0.0, until - time.monotonic()))
        if found:  # something has begun: the next tick looks how it goes on
            self._next_tick = min(self._next_tick, time.monotonic() + TICK_S)
        for descriptor, _ in found:
            if descriptor == self._output_fd:
                raise BrokenPipeError
            if descriptor == self._signals.fileno():
                os.read(descriptor, 4096)
            if self._server is not None and descriptor == self._server.fileno():
                self._server.serve()
            if self._command is not None and descriptor == self._command.fileno():
                self._epoll.unregister(descriptor)
                self._command.note_end(time.monotonic())
            if descriptor == self._clock_steps.fileno():
                self._clock_steps.take()
                self.capture.program.set_clock()
            if descriptor == self.capture.program.wakeup_fd:
                self.capture.program.take_wakeups()
                called = True
        return called


def _ring(wake: socket.socket) -> None:
    """Wake the loop, from any thread, as a signal does."""
    with contextlib.suppress(OSError):  # it is closed, or full of wakeups that are not read yet
        wake.send(b"\0")
