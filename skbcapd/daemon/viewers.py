"""The viewers of a running capture (`skbcapd top`): they get a copy of the blocks that are delivered.

In: ranges of complete blocks, and packets that Python has written; connections from the control
socket. Out: the stream of `pcapng.live` to each viewer.

The rules not to break: without a viewer, nothing here is called. With one, no code runs per packet of
a range: a range is passed to the socket as it is. Nothing waits for a viewer: while it has not read
the last range, further ones are left out, and their bytes are counted. Memory is bounded: the rest of
one range for each viewer. Only root and the user of the daemon may see packets.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import select
import socket
import time
from collections.abc import Callable
from functools import partial

from skbcapd import __version__
from skbcapd.capture.capture import Capture
from skbcapd.capture.interfaces import Interfaces
from skbcapd.kernel.segments import Packet
from skbcapd.output.pcapng_output import packet_options
from skbcapd.pcapng import live
from skbcapd.pcapng.blocks import BLOCK_MIN, PACKET, PACKET_HEAD
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.live import HEAD, INTERVAL_MAX, Mark
from skbcapd.pcapng.writer import PcapngWriter

VIEWERS_MAX = 4
_SEND_BUFFER = 4 << 20  # bytes; the kernel grants net.core.wmem_max at most
_EVENTS_MAX = 2 * VIEWERS_MAX


class _Viewer:
    """One connection: its interval, and what the socket has not taken yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._rest = memoryview(live.ACCEPTED)
        # Of the first interval: before it, packets can be old, because nobody watched.
        self._begin: float | None = None
        self._passed = self._left_out = 0
        # What the interval has: see Interfaces.numbering (None: no section yet), and number of interfaces.
        self._numbering: tuple[int, int] | None = None
        self._described = 0
        self._writes = False  # whether the epoll reports that the socket takes bytes
        sock.setblocking(False)  # noqa: FBT003  the name of the method says what is false
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def offer(self, blocks: bytes | memoryview, interfaces: Interfaces) -> None:
        """Send complete blocks, or leave them out.

        Raises:
            OSError: the viewer has ended.
        """
        if self._begin is None:
            return
        if self._rest or self._passed + len(blocks) > INTERVAL_MAX:
            self._left_out += len(blocks)
            return
        described = self._descriptions(interfaces)
        self._passed += len(blocks)
        self._send(HEAD.pack(live.BLOCKS, len(described) + len(blocks)) + described, blocks)

    def mark(self, now: float) -> None:
        """End an interval, unless the viewer has not read all of it.

        Raises:
            OSError: the viewer has ended.
        """
        if self._begin is None:
            self._begin = now
            return
        if self._rest:
            return
        mark = Mark(int((now - self._begin) * 1e9), self._passed, self._left_out)
        self._begin, self._passed, self._left_out, self._numbering = now, 0, 0, None
        self._send(mark.message(), b"")

    def send_rest(self) -> None:
        """Send what the socket takes now.

        Raises:
            OSError: the viewer has ended.
        """
        if self._rest:
            with contextlib.suppress(BlockingIOError):
                self._rest = self._rest[self.socket.send(self._rest) :]

    def wants(self) -> int | None:
        """The events to wait for; None: the same as before."""
        if bool(self._rest) == self._writes:
            return None
        self._writes = bool(self._rest)
        return select.EPOLLIN | (select.EPOLLOUT if self._writes else 0)

    def _send(self, head: bytes, blocks: bytes | memoryview) -> None:
        try:
            sent = self.socket.sendmsg([head, blocks])
        except BlockingIOError:
            sent = 0
        if sent < len(head) + len(blocks):
            self._rest = memoryview(head[sent:] + bytes(blocks[max(0, sent - len(head)) :]))

    def _descriptions(self, interfaces: Interfaces) -> bytes:
        """The section header and the interfaces that are missing in the interval."""
        now = interfaces.numbering
        if self._numbering == now:
            return b""
        sink = io.BytesIO()
        writer = PcapngWriter(sink)
        if self._numbering is None or self._numbering[0] != now[0]:
            writer.write_section(platform.machine(), platform.system(), f"skbcapd {__version__}")
            self._described = 0
        numbered = interfaces.numbered()
        for interface in numbered[self._described :]:
            writer.write_interface(interface)
        self._numbering, self._described = now, len(numbered)
        return sink.getvalue()


class Viewers:
    """All viewers; a Sampler while there is one.

    Args:
        capture: the running capture, which passes its packets here while there is a viewer.
        clock: seconds.
    """

    def __init__(self, capture: Capture, clock: Callable[[], float] = time.monotonic) -> None:
        self._capture, self._clock = capture, clock
        self._epoll = select.epoll()
        self._viewers: dict[int, _Viewer] = {}

    def fileno(self) -> int:
        """Readable if `serve` must be called."""
        return self._epoll.fileno()

    @property
    def is_watched(self) -> bool:
        """Whether there is a viewer."""
        return bool(self._viewers)

    def refusal(self, user: int) -> dict[str, str] | None:
        """Why a user gets no packets, as an answer for JSON; None: it gets them."""
        if user not in {0, os.geteuid()}:
            return {
                "error": "only root and the user of the daemon may see packets",
                "hint": "run this as its user or as root",
            }
        if len(self._viewers) >= VIEWERS_MAX:
            return {"error": f"{VIEWERS_MAX} viewers are connected; expected fewer", "hint": "end one of them"}
        return None

    def add(self, sock: socket.socket) -> None:
        """A client becomes a viewer; the socket is closed here."""
        viewer = self._viewers[sock.fileno()] = _Viewer(sock)
        self._epoll.register(sock, select.EPOLLIN)
        self._capture.show(self)
        self._do(viewer, viewer.send_rest)

    def serve(self) -> None:
        """Send more to the viewers that are ready; forget those that have ended."""
        for descriptor, events in self._epoll.poll(0, _EVENTS_MAX):
            viewer = self._viewers.get(descriptor)
            if viewer is None:
                continue
            if events & ~select.EPOLLOUT:  # it has nothing to send, so it has ended
                self._drop(viewer)
            else:
                self._do(viewer, viewer.send_rest)

    def tick(self) -> None:
        """Called once a second, after a drain: the interval ends."""
        for viewer in list(self._viewers.values()):
            self._do(viewer, partial(viewer.mark, self._clock()))

    def close(self) -> None:
        """End all connections."""
        for viewer in list(self._viewers.values()):
            self._drop(viewer)
        self._epoll.close()

    def sample_blocks(self, view: memoryview) -> None:
        """Pass complete blocks to all viewers."""
        for viewer in list(self._viewers.values()):
            self._do(viewer, partial(viewer.offer, view, self._capture.interfaces))

    def sample_packet(self, packet: Packet, interface_id: int, stamp: Label) -> None:
        """Pass a packet that Python has written to all viewers."""
        frame, options = bytes(packet.frame), packet_options(packet, stamp)
        padded = frame + bytes(-len(frame) & 3)
        size = BLOCK_MIN + len(padded) + len(options)
        head = PACKET_HEAD.pack(
            PACKET,
            size,
            interface_id,
            packet.time_ns >> 32,
            packet.time_ns & 0xFFFFFFFF,
            len(frame),
            packet.original_len,
        )
        self.sample_blocks(memoryview(head + padded + options + size.to_bytes(4, "little")))

    def _do(self, viewer: _Viewer, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError:
            self._drop(viewer)
            return
        if (events := viewer.wants()) is not None:
            self._epoll.modify(viewer.socket, events)

    def _drop(self, viewer: _Viewer) -> None:
        if self._viewers.pop(viewer.socket.fileno(), None) is None:
            return
        if not self.is_watched:
            self._capture.show(None)
        # As in `server`: a child that compiles filters can have the descriptor, too.
        self._epoll.unregister(viewer.socket)
        with contextlib.suppress(OSError):
            viewer.socket.shutdown(socket.SHUT_RDWR)
        viewer.socket.close()
