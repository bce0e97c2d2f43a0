"""Sends without send(2) on a socket: `python -m tests.kernel.send.links WAY --to ADDRESS --port N --count N`.

The ways: a frame of our own (AF_PACKET), io_uring (in the system call, by a worker, by a polling thread), packets
written to a tun device. What is sent is signed.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

from tests.kernel.send.datagrams import internet_checksum
from tests.kernel.send.identity import SIGNED_MAGIC, Identity, become, report, signature
from tests.kernel.send.process import fork, wait_for

ETH_P_802_EX1 = 0x88B5  # for local experiments

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

# include/uapi/linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI = 0x0001, 0x0002, 0x0100, 0x1000
ETH_P_IP, ETH_P_ARP, ETHERNET_BYTES = b"\x08\x00", b"\x08\x06", 14

# include/uapi/linux/io_uring.h; the numbers of the system calls are the same on x86-64 and arm64
IO_URING_SETUP, IO_URING_ENTER = 425, 426
SETUP_SQPOLL = 1 << 1
ENTER_GETEVENTS, ENTER_SQ_WAKEUP = 1, 2
OFF_SQ_RING, OFF_SQES = 0, 0x10000000
OP_SEND = 26
IOSQE_ASYNC = 1 << 4
ENTRIES = 8
SQE = struct.Struct("=BBHiQQIIQ24x")
# include/uapi/linux/aio_abi.h; io_setup, io_submit, io_getevents
AIO_CALLS = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4)}
IOCB = struct.Struct("=QIIHhIQQqQII")
IOCB_CMD_PWRITE = 1
# x86: push rbx; mov eax, edi; mov ebx, esi; xchg ecx, edx; int 0x80; pop rbx; ret
INT_80 = bytes.fromhex("53 89f8 89f3 87d1 cd80 5b c3")
CODE_SIZE = len(INT_80)
MAP_32BIT = 0x40
COMPAT_WRITE, COMPAT_GETPID, COMPAT_SOCKETCALL, SYS_SEND = 4, 20, 102, 9
CQE_BYTES = 16


def packet(args: argparse.Namespace) -> Identity:
    """Frames of an EtherType of our own."""
    who = become("packet")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((args.device, 0))
        for number in range(args.count):
            sender.send(b"\x02skb02\x02skb03" + ETH_P_802_EX1.to_bytes(2, "big") + signature(number))
    return who


class Ring:
    """An io_uring, one request at a time.

    Raises:
        OSError: as the kernel says.
    """

    def __init__(self, flags: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        parameters = (ctypes.c_uint32 * 30)()
        parameters[2], parameters[4] = flags, 1000  # sq_thread_idle, ms
        self.fd = self._call(IO_URING_SETUP, ENTRIES, parameters)
        # struct io_sqring_offsets from word 10, struct io_cqring_offsets from word 20
        self._sq_tail, self._sq_array = parameters[11], parameters[16]
        self._cq_head, self._cq_tail = parameters[20], parameters[21]
        self._cqes, entries = parameters[25], parameters[1]
        size = max(self._sq_array + 4 * ENTRIES, self._cqes + entries * CQE_BYTES)
        self._ring = mmap.mmap(self.fd, size, offset=OFF_SQ_RING)  # both rings: IORING_FEAT_SINGLE_MMAP, since 5.4
        self._sqes = mmap.mmap(self.fd, ENTRIES * SQE.size, offset=OFF_SQES)
        self._polls = flags & SETUP_SQPOLL

    def send(self, sender: socket.socket, data: bytes, flags: int) -> None:
        """Send, and wait for the completion."""
        buffer = ctypes.create_string_buffer(data, len(data))
        (tail,) = struct.unpack_from("=I", self._ring, self._sq_tail)
        slot = tail % ENTRIES
        SQE.pack_into(
            *(self._sqes, slot * SQE.size, OP_SEND, flags, 0, sender.fileno(), 0, ctypes.addressof(buffer)),
            *(len(data), 0, tail),
        )
        struct.pack_into("=I", self._ring, self._sq_array + 4 * slot, slot)
        struct.pack_into("=I", self._ring, self._sq_tail, tail + 1)
        wake = ENTER_SQ_WAKEUP if self._polls else 0
        self._call(IO_URING_ENTER, self.fd, 0 if self._polls else 1, 1, ENTER_GETEVENTS | wake, None, 0)
        (head,) = struct.unpack_from("=I", self._ring, self._cq_head)
        (result,) = struct.unpack_from("=i", self._ring, self._cqes + (head % (2 * ENTRIES)) * CQE_BYTES + 8)
        struct.pack_into("=I", self._ring, self._cq_head, head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def _call(self, number: int, *arguments: object) -> int:
        result = int(self._libc.syscall(number, *arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result


def _uring(args: argparse.Namespace, setup: int, flags: int) -> Identity:
    who = become("uring")
    ring = Ring(setup)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if args.stream else socket.SOCK_DGRAM) as sender:
        sender.connect((args.to, args.port))
        for number in range(args.count):
            ring.send(sender, signature(number), flags)
    return who


def uring(args: argparse.Namespace) -> Identity:
    """Requests done in io_uring_enter(2) itself."""
    return _uring(args, 0, 0)


def uring_worker(args: argparse.Namespace) -> Identity:
    """Requests handed to a worker, a thread that the kernel has made for this process."""
    return _uring(args, 0, IOSQE_ASYNC)


def uring_poll(args: argparse.Namespace) -> Identity:
    """Requests taken by a thread that the kernel has made to look for them."""
    return _uring(args, SETUP_SQPOLL, 0)


def aio(args: argparse.Namespace) -> Identity:
    """Writes handed over by io_submit(2)."""
    who = become("aio")
    libc = ctypes.CDLL(None, use_errno=True)
    setup, submit, events = AIO_CALLS[os.uname().machine]
    context = ctypes.c_ulong(0)

    def call(number: int, *arguments: object) -> None:
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    call(setup, ENTRIES, ctypes.byref(context))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if args.stream else socket.SOCK_DGRAM) as sender:
        sender.connect((args.to, args.port))
        for number in range(args.count):
            data = ctypes.create_string_buffer(signature(number))
            where = ctypes.addressof(data)
            request = ctypes.create_string_buffer(
                IOCB.pack(0, 0, 0, IOCB_CMD_PWRITE, 0, sender.fileno(), where, len(data) - 1, 0, 0, 0, 0)
            )
            requests = (ctypes.c_void_p * 1)(ctypes.addressof(request))
            call(submit, context, ctypes.c_long(1), requests)
            call(events, context, ctypes.c_long(1), ctypes.c_long(1), ctypes.create_string_buffer(32), None)
    return who


def compat(args: argparse.Namespace) -> Identity:
    """Sends by 32-bit system calls, each second one through socketcall(2); as any other where there are none."""
    who = become("compat")
    below = mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT, mmap.PROT_READ | mmap.PROT_WRITE | 4)
    below[:CODE_SIZE] = INT_80
    start = ctypes.addressof(ctypes.c_char.from_buffer(below))
    call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int] * 4)(start)
    at = start + 4096
    has_calls = not run_safely(lambda: call(COMPAT_GETPID, 0, 0, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if args.stream else socket.SOCK_DGRAM) as sender:
        sender.connect((args.to, args.port))
        for number in range(args.count):
            data = signature(number)
            below[4096 : 4096 + len(data)] = data
            arguments = struct.pack("=4I", sender.fileno(), at, len(data), 0)
            below[4096 + 1024 : 4096 + 1024 + len(arguments)] = arguments
            if not has_calls:
                sender.send(data)
            elif number % 2:
                call(COMPAT_SOCKETCALL, SYS_SEND, at + 1024, 0)
            else:
                call(COMPAT_WRITE, sender.fileno(), at, len(data))
    return who


def run_safely(run: Callable[[], object]) -> bool:
    """Whether a function kills the process that runs it."""
    try:
        wait_for(fork(run))
    except ChildProcessError:
        return True
    return False


def _ip(protocol: int, source: str, destination: str, body: bytes) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + ends
    return header[:10] + struct.pack("!H", internet_checksum(header)) + header[12:] + body


def _udp(source: str, destination: str, port: int, data: bytes) -> bytes:
    """A UDP packet without a checksum, which IPv4 allows."""
    return _ip(socket.IPPROTO_UDP, source, destination, struct.pack("!HHHH", 9, port, 8 + len(data), 0) + data)


def tcp_segment(
    ends: tuple[str, str], ports: tuple[int, int], numbers: tuple[int, int], flags: int, data: bytes = b""
) -> bytes:
    """An IP packet with a segment; of each pair, the source is first, or the sequence number."""
    segment = struct.pack("!HHIIBBHHH", *ports, *numbers, 5 << 4, flags, 1 << 13, 0, 0) + data
    addresses = socket.inet_aton(ends[0]) + socket.inet_aton(ends[1])
    checksum = internet_checksum(addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment)) + segment)
    return _ip(socket.IPPROTO_TCP, *ends, segment[:16] + struct.pack("!H", checksum) + segment[18:])


def _tcp(source: str, destination: str, port: int, numbers: tuple[int, int], flags: int) -> bytes:
    return tcp_segment((source, destination), (9, port), numbers, flags)


def _open_tun(args: argparse.Namespace, flags: int = IFF_TUN) -> int:
    """Take the other end of a tun device: what is written comes in by it, what leaves by it is read."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", args.device.encode(), flags | IFF_NO_PI))
    return tun


def tun_forwards(args: argparse.Namespace) -> Identity:
    """Signed packets to the far end: this host forwards them, in the very system call that writes them."""
    who = become("tun")
    tun = _open_tun(args)
    for number in range(args.count):
        os.write(tun, _udp(args.source, args.to, args.port, signature(number)))
    return who


def tun_asks(args: argparse.Namespace) -> Identity:
    """A connection to a server here, a SYN and a datagram to closed ports and an echo request, again and again.

    The kernel handles each packet within write(2): the server's SYN-ACK and data, the reset and the replies leave while
    this process is the one that runs.
    """
    who = become("tun")
    tun = _open_tun(args)
    for number in range(args.count):
        os.write(tun, _tcp(args.source, args.to, args.port + 1, (number, 0), SYN))
        os.write(tun, _udp(args.source, args.to, args.port + 1, b"nobody there"))
        message = struct.pack("!BBHHH", 8, 0, 0, 1, number)
        checked = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
        os.write(tun, _ip(socket.IPPROTO_ICMP, args.source, args.to, checked))
        _download(tun, args, number)
    return who


def tun_queues(args: argparse.Namespace) -> Identity:
    """A VPN with two queues, and a thread for each: it answers each datagram by the other queue."""
    who = become("vpn")
    queues = [_open_tun(args, IFF_TUN | IFF_MULTI_QUEUE) for _ in range(2)]
    left = threading.Semaphore(0)

    def answer(number: int) -> None:
        become(f"queue-{number}")
        while True:
            data = os.read(queues[number], 2048)
            if data[9] != socket.IPPROTO_UDP:
                continue
            ports = data[22:24] + data[20:22]
            os.write(queues[1 - number], data[:12] + data[16:20] + data[12:16] + ports + data[24:])
            left.release()

    for number in range(len(queues)):
        threading.Thread(target=answer, args=(number,), daemon=True).start()
    report(who)
    for _ in range(args.count):
        left.acquire()
    return who


def guest(args: argparse.Namespace) -> Identity:
    """A virtual machine behind a tap: it sends signed datagrams in frames of its own, and waits for an answer each."""
    who = become("guest")
    tap = _open_tun(args, IFF_TAP)
    _wait_for_bridge(tap, args)
    addresses = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in (args.to_mac, args.source_mac))
    for number in range(args.count):
        os.write(tap, addresses + ETH_P_IP + _udp(args.source, args.to, args.port, signature(number)))
        while True:
            frame = os.read(tap, 2048)
            packet = frame[ETHERNET_BYTES:]
            if frame[12:14] == ETH_P_IP and packet[9] == socket.IPPROTO_UDP and SIGNED_MAGIC in packet:
                break
    return who


def _wait_for_bridge(tap: int, args: argparse.Namespace) -> None:
    """Ask by ARP for the host's address until it answers: a bridge forwards nothing of a port that has just come up."""
    source, hosts = bytes.fromhex(args.source_mac.replace(":", "")), socket.inet_aton(args.host)
    request = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, source, socket.inet_aton(args.source), bytes(6), hosts)
    answer = b""
    while answer[12:22] != ETH_P_ARP + request[:6] + b"\0\2":
        os.write(tap, b"\xff" * 6 + source + ETH_P_ARP + request)
        answer = os.read(tap, 2048) if select.select([tap], [], [], 0.05)[0] else b""


def _download(tun: int, args: argparse.Namespace, sequence: int) -> None:
    """Connect, acknowledge what the server sends until its FIN, and reset the connection."""
    os.write(tun, _tcp(args.source, args.to, args.port, (sequence, 0), SYN))
    expected = None
    while True:
        data = os.read(tun, 2048)
        segment = data[20:]
        if data[9] != socket.IPPROTO_TCP or int.from_bytes(segment[:2], "big") != args.port:
            continue
        (at,) = struct.unpack_from("!I", segment, 4)
        flags = segment[13]
        if flags & SYN:
            expected = at
        if at != expected:
            continue
        expected += len(segment) - (segment[12] >> 4) * 4 + bool(flags & (SYN | FIN))
        os.write(tun, _tcp(args.source, args.to, args.port, (sequence + 1, expected), ACK))
        if flags & FIN:
            os.write(tun, _tcp(args.source, args.to, args.port, (sequence + 1, expected), RST | ACK))
            return


def main() -> None:
    """Act as the arguments say, and say who did."""
    ways: dict[str, Callable[[argparse.Namespace], Identity]] = {
        way.__name__: way
        for way in (
            *(packet, uring, uring_worker, uring_poll, aio, compat),
            *(tun_forwards, tun_asks, tun_queues, guest),
        )
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--device", default="")
    parser.add_argument("--source", default="")
    parser.add_argument("--source-mac", default="")
    parser.add_argument("--to-mac", default="")
    parser.add_argument("--to", default="")
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, default=9)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--stream", action="store_true")
    args = parser.parse_args()
    report(ways[args.way](args))


if __name__ == "__main__":
    main()
