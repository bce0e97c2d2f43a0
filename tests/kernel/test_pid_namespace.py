"""A capture in namespaces of its own, as in a container without --pid=host: PID, IPC, UTS, cgroup, mount."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

from tests.kernel.capture import Capture, read
from tests.kernel.namespace import Wire

COUNT = 23
THROUGH = ("unshare", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--mount-proc", "--")


def test_processes_have_the_numbers_of_the_kernel(wire: Wire, tmp_path: Path) -> None:
    """Packets name their process by its number outside, and frames in pages are complete; one line
    says how to get the rest.
    """
    file, payload = tmp_path / "inside.pcapng", bytes(range(250)) * 200
    near, far = wire.near.namespace, wire.far.namespace
    arguments = ("-i", wire.near.device, "-w", str(file), "-c", str(COUNT), "udp and src port 1013")
    with (
        closing(Capture(near, *arguments, through=THROUGH, comment="comm,pid,tgid,exe,ppid")) as capture,
        closing(near.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as sender,
        closing(far.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as receiver,
    ):
        receiver.bind((wire.far.ipv4, 0))
        sender.bind((wire.near.ipv4, 1013))
        sender.setsockopt(socket.IPPROTO_UDP, 103, 1400)  # UDP_SEGMENT: one large frame
        for _ in range(COUNT):
            sender.sendto(payload, receiver.getsockname())
        ended = capture.wait()

    found = read(file)
    assert (ended.exit_code, len(found)) == (0, COUNT)
    assert {packet.label.tgid for packet in found if packet.label} == {os.getpid()}
    assert all(packet.label for packet in found)
    assert all(packet.data.endswith(payload) for packet in found)
    assert not any("exe=" in packet.comment or "ppid=" in packet.comment for packet in found)
    assert ended.stderr.count("--pid=host") == 1
