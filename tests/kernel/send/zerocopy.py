"""The kernel's word that it no longer needs the pages of a MSG_ZEROCOPY send.

A socket goes in; the function returns when the kernel has completed all sends up to a number. Only then may the
pages change. Source: Documentation/networking/msg_zerocopy.rst.
"""

from __future__ import annotations

import select
import socket
import struct

SO_ZEROCOPY = 60  # include/uapi/asm-generic/socket.h
MSG_ZEROCOPY = 0x4000000
SO_EE_ORIGIN_ZEROCOPY = 5  # include/uapi/linux/errqueue.h
SOCK_EXTENDED_ERR = struct.Struct("=IBBBBII")
COMPLETION_TIMEOUT_S = 600  # a guard only: the test that started us gives up long before


def wait_for_completions(sender: socket.socket, last: int) -> None:
    """Return when the sends up to number `last`, counted from 0, have been completed.

    Raises:
        TimeoutError: a completion did not come.
    """
    poll = select.poll()
    poll.register(sender, 0)  # POLLERR comes unasked
    completed = -1
    while completed < last:
        if not poll.poll(COMPLETION_TIMEOUT_S * 1000):
            raise TimeoutError(f"send {completed + 1} was not completed")
        _, ancillary, _, _ = sender.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        for _, _, value in ancillary:
            _, origin, _, _, _, _, high = SOCK_EXTENDED_ERR.unpack_from(value)
            if origin == SO_EE_ORIGIN_ZEROCOPY:
                completed = max(completed, high)
