"""BPF programs that decide where a received packet goes, as other software on a machine has them.

In: a namespace or an interface. Out: a program that is attached until its descriptor is closed. skbcapd has no part in
this: the programs are written here by hand, and loaded by bpf(2).

Source: include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_BPF, _PIDFD_OPEN, _PIDFD_GETFD = {"x86_64": 321, "aarch64": 280}[platform.machine()], 434, 438
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _LINK_CREATE = 0, 2, 5, 28
_PROG_ATTACH = 8
_SOCKMAP, _SCHED_CLS, _XDP, _CGROUP_SKB, _SK_MSG, _SK_LOOKUP = 15, 3, 6, 8, 16, 30
_ATTACH_SK_MSG, _ATTACH_SK_LOOKUP, _ATTACH_XDP = 7, 36, 37
_ATTACH_TCX_INGRESS, _ATTACH_TCX_EGRESS = 46, 47
_XDP_FLAGS_SKB_MODE = 2
_ETHERNET_BYTES = 14
_LOCAL_PORT = 60  # in struct bpf_sk_lookup
_LIBC = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = int(_LIBC.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _bpf(command: int, attributes: bytes) -> int:
    attributes = attributes.ljust(128, b"\0")
    return _call(_BPF, command, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes))


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)


def _load(kind: int, attach: int, *instructions: bytes) -> int:
    program = ctypes.create_string_buffer(b"".join(instructions))
    license_of = ctypes.create_string_buffer(b"GPL")
    head = struct.pack("<IIQQ", kind, len(program) // 8, ctypes.addressof(program), ctypes.addressof(license_of))
    return _bpf(_PROG_LOAD, head + bytes(44) + struct.pack("<I", attach))


def _socket_map(stack: contextlib.ExitStack) -> int:
    """A map for one socket."""
    made = _bpf(_MAP_CREATE, struct.pack("<IIII", _SOCKMAP, 4, 8, 1))
    stack.callback(os.close, made)
    return made


def _enter(sockets: int, pid: int, descriptor: int) -> None:
    """Put the socket of a process into a map."""
    with contextlib.ExitStack() as stack:
        pidfd = _call(_PIDFD_OPEN, pid, 0)
        stack.callback(os.close, pidfd)
        number = _call(_PIDFD_GETFD, pidfd, descriptor, 0)
        stack.callback(os.close, number)
        key, value = (ctypes.create_string_buffer(struct.pack("<Q", given)) for given in (0, number))
        _bpf(_MAP_UPDATE, struct.pack("<I4xQQQ", sockets, ctypes.addressof(key), ctypes.addressof(value), 0))


@contextlib.contextmanager
def steered(namespace: Path, port: int, pid: int, descriptor: int) -> Iterator[None]:
    """Give what comes to a port of a namespace to one socket, whatever its port: an sk_lookup program.

    Args:
        namespace: its file.
        port: of TCP and UDP.
        pid: process that has the socket.
        descriptor: of the socket, there.
    """
    with contextlib.ExitStack() as stack:
        sockets = _socket_map(stack)
        _enter(sockets, pid, descriptor)
        program = _load(
            _SK_LOOKUP,
            _ATTACH_SK_LOOKUP,
            _instruction(0xBF, 6, 1),  # r6 = the context
            _instruction(0x61, 3, 6, _LOCAL_PORT),
            _instruction(0x55, 3, 0, 14, port),  # another port: out
            _instruction(0x62, 10, 0, -4, 0),
            _instruction(0xBF, 2, 10),
            _instruction(0x07, 2, 0, 0, -4),
            _instruction(0x18, 1, 1, 0, sockets),
            _instruction(0),
            _instruction(0x85, value=1),  # bpf_map_lookup_elem
            _instruction(0x15, 0, 0, 7, 0),  # none: out
            _instruction(0xBF, 7, 0),
            _instruction(0xBF, 1, 6),
            _instruction(0xBF, 2, 0),
            _instruction(0xB7, 3),
            _instruction(0x85, value=124),  # bpf_sk_assign
            _instruction(0xBF, 1, 7),
            _instruction(0x85, value=86),  # bpf_sk_release
            _instruction(0xB7, 0, 0, 0, 1),  # SK_PASS
            _instruction(0x95),
        )
        stack.callback(os.close, program)
        with namespace.open("rb") as there:
            link = _bpf(_LINK_CREATE, struct.pack("<III", program, there.fileno(), _ATTACH_SK_LOOKUP))
        stack.callback(os.close, link)
        yield


@contextlib.contextmanager
def _attached(program: int, ifindex: int, place: int, flags: int = 0) -> Iterator[None]:
    """Attach a program to an interface; closes both."""
    try:
        link = _bpf(_LINK_CREATE, struct.pack("<IIII", program, ifindex, place, flags))
        yield
        os.close(link)
    finally:
        os.close(program)


@contextlib.contextmanager
def dropped(ifindex: int) -> Iterator[None]:
    """Drop all that an interface of the calling thread's namespace receives: a generic XDP program."""
    program = _load(_XDP, _ATTACH_XDP, _instruction(0xB7, 0, 0, 0, 1), _instruction(0x95))  # XDP_DROP
    with _attached(program, ifindex, _ATTACH_XDP, _XDP_FLAGS_SKB_MODE):
        yield


@contextlib.contextmanager
def refused(group: Path, *, sent: bool) -> Iterator[None]:
    """Refuse all that the sockets of a control group send, or receive: a cgroup_skb program.

    Args:
        group: its directory, of cgroup version 2.
        sent: whether what is sent; otherwise, what is received.
    """
    with contextlib.ExitStack() as stack:
        program = _load(_CGROUP_SKB, int(sent), _instruction(0xB7), _instruction(0x95))  # r0 = 0: refused
        stack.callback(os.close, program)
        directory = os.open(group, os.O_RDONLY)
        stack.callback(os.close, directory)
        link = _bpf(_LINK_CREATE, struct.pack("<IIII", program, directory, int(sent), 0))
        stack.callback(os.close, link)
        yield


@contextlib.contextmanager
def redirected(source: tuple[int, int], target: tuple[int, int]) -> Iterator[None]:
    """Send what is written to one TCP socket on another one: an sk_msg program, as proxies of service meshes have.

    Args:
        source: process and descriptor of the socket that is written to.
        target: those of the socket that sends.
    """
    with contextlib.ExitStack() as stack:
        sources, targets = _socket_map(stack), _socket_map(stack)
        program = _load(
            _SK_MSG,
            _ATTACH_SK_MSG,
            _instruction(0x18, 2, 1, 0, targets),
            _instruction(0),
            _instruction(0xB7, 3),
            _instruction(0xB7, 4),  # to be sent, not received
            _instruction(0x85, value=60),  # bpf_msg_redirect_map
            _instruction(0x95),
        )
        stack.callback(os.close, program)
        _bpf(_PROG_ATTACH, struct.pack("<IIII", sources, program, _ATTACH_SK_MSG, 0))
        _enter(targets, *target)
        _enter(sources, *source)
        yield


@contextlib.contextmanager
def tagged(ifindex: int, vlan: int) -> Iterator[None]:
    """Tag all that an interface of the calling thread's namespace sends with a VLAN: a tc program (Linux 6.6)."""
    program = _load(
        _SCHED_CLS,
        0,
        _instruction(0xB7, 2, 0, 0, 0x0081),  # 802.1Q
        _instruction(0xB7, 3, 0, 0, vlan),
        _instruction(0x85, value=18),  # bpf_skb_vlan_push
        _instruction(0xB7, 0),
        _instruction(0x95),
    )
    with _attached(program, ifindex, _ATTACH_TCX_EGRESS):
        yield


@contextlib.contextmanager
def handed_to_peer(ifindex: int, address: str, to: int) -> Iterator[None]:
    """Give what an interface receives for an IPv4 address to the peer of a veth interface, in its namespace, as
    Cilium does: a tc program (Linux 6.6) with bpf_redirect_peer.

    Args:
        ifindex: of the interface that receives, in the calling thread's namespace.
        address: the destination.
        to: the veth interface there.
    """
    number = struct.unpack("!i", socket.inet_aton(address))[0]
    program = _load(
        _SCHED_CLS,
        0,
        _instruction(0xBF, 6, 1),
        _instruction(0x20, value=_ETHERNET_BYTES + 16),  # r0 = the destination
        _instruction(0x56, 0, 0, 4, number),  # another one: out
        _instruction(0xB7, 1, 0, 0, to),
        _instruction(0xB7, 2),
        _instruction(0x85, value=155),  # bpf_redirect_peer
        _instruction(0x95),
        _instruction(0xB7, 0, 0, 0, -1),  # TCX_NEXT
        _instruction(0x95),
    )
    with _attached(program, ifindex, _ATTACH_TCX_INGRESS):
        yield
