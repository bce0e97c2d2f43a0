"""The frames that an AF_PACKET socket gets, to compare our captures with. In: an interface. Out:
its frames, in order, as tcpdump sees them. A VLAN tag that the kernel keeps beside the frame is put
back, as libpcap does. On transmit the socket's tap stands in `dev_hard_start_xmit`: veth has every
offload, so a frame is the same there as where it was queued, GSO frames whole. The socket buffers
everything and is read afterwards, so nothing of this process runs while frames flow. A reference
that lost a frame is none: its drop counter must be 0.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.kernel.namespace import Namespace
from tests.support.deadline import DEADLINE_S

# include/uapi/linux/if_packet.h, asm-generic/socket.h
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_AUXDATA = 8
SO_RCVBUFFORCE = 33
ETH_P_ALL = 3
ETH_P_8021Q = 0x8100
TP_STATUS_CSUMNOTREADY = 1 << 3
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_VLAN_TPID_VALID = 1 << 6
TP_STATUS_GSO_TCP = 1 << 8  # since Linux 6.2

LARGEST_FRAME = 1 << 20
BUFFER_BYTES = 512 << 20


@dataclass(frozen=True)
class Frame:
    """One frame from the socket: its bytes from the link layer on, and the metadata of the kernel."""

    data: bytes
    outgoing: bool
    packet_type: int
    checksum_ready: bool
    segmented: bool
    """Whether it is TCP with several segments. Not known before Linux 6.2."""


class Reference:
    """An AF_PACKET socket on one interface, which records from its creation on."""

    def __init__(self, namespace: Namespace, device: str) -> None:
        self._socket = namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.settimeout(DEADLINE_S)
        self._socket.bind((device, ETH_P_ALL))
        self._buffer = bytearray(LARGEST_FRAME)
        self.frames: list[Frame] = []

    def close(self) -> None:
        """Stop recording."""
        self._socket.close()

    def read_until(self, last: bytes) -> list[Frame]:
        """Give every frame up to one whose bytes are `last`, which is left out.

        Raises:
            TimeoutError: that frame did not come.
            AssertionError: the socket lost a frame, so it cannot judge.
        """
        frames = []
        while (frame := self._next()).data != last:
            frames.append(frame)
        self._check()
        return frames

    def collect(self) -> None:
        """Add to `frames` what has come until now.

        Raises:
            AssertionError: the socket lost a frame, so it cannot judge.
        """
        self._socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.frames.append(self._next())
        self._check()

    def _check(self) -> None:
        _, dropped = struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert dropped == 0, f"the AF_PACKET socket dropped {dropped} frames"

    def wait_for(self, accepts: Callable[[Frame], bool], times: int = 1) -> None:
        """Return when so many frames that `accepts` takes have come.

        Raises:
            TimeoutError: they did not come.
        """
        end = time.monotonic() + DEADLINE_S
        while times:
            if time.monotonic() > end:
                raise TimeoutError(f"{times} more frames did not come")
            times -= accepts(self._next())

    def _next(self) -> Frame:
        length, ancillary, flags, address = self._socket.recvmsg_into([self._buffer], socket.CMSG_SPACE(20))
        assert not flags & socket.MSG_TRUNC, f"a frame of more than {LARGEST_FRAME} bytes"
        data = bytes(memoryview(self._buffer)[:length])
        # struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid
        [auxiliary] = [value for level, kind, value in ancillary if (level, kind) == (SOL_PACKET, PACKET_AUXDATA)]
        status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", auxiliary)
        if status & TP_STATUS_VLAN_VALID:
            tpid = tpid if status & TP_STATUS_VLAN_TPID_VALID else ETH_P_8021Q
            data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
        packet_type = address[2]
        return Frame(
            data,
            outgoing=packet_type == socket.PACKET_OUTGOING,
            packet_type=packet_type,
            checksum_ready=not status & TP_STATUS_CSUMNOTREADY,
            segmented=bool(status & TP_STATUS_GSO_TCP),
        )
