"""Runs a command while 100 MB/s of TCP pass the loopback interface, to show that other traffic
disturbs no test.

    python -m tests.support.beside_stream COMMAND...

Exits with the code of the command, and prints how much was sent.
"""

from __future__ import annotations

import multiprocessing
import socket
import subprocess
import sys
import time

BYTES_PER_S = 100_000_000
CHUNK = bytes(64 << 10)


def drain(listener: socket.socket) -> None:
    """Accept one connection and read everything."""
    connection, _ = listener.accept()
    buffer = bytearray(1 << 20)
    while connection.recv_into(buffer):
        pass


def send(port: int, sent: multiprocessing.sharedctypes.Synchronized[int]) -> None:
    """Send at the rate, as long as the other end reads; lost time is not compensated."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        due = time.monotonic()
        while True:
            connection.sendall(CHUNK)
            sent.value += len(CHUNK)
            due = max(due + len(CHUNK) / BYTES_PER_S, time.monotonic() - 0.1)
            time.sleep(max(0.0, due - time.monotonic()))


def main(command: list[str]) -> int:
    """Run the command beside the stream."""
    listener = socket.create_server(("127.0.0.1", 0))
    sent = multiprocessing.Value("Q", lock=False)
    ends = [
        multiprocessing.Process(target=drain, args=(listener,), daemon=True),
        multiprocessing.Process(target=send, args=(listener.getsockname()[1], sent), daemon=True),
    ]
    for end in ends:
        end.start()
    begin = time.monotonic()
    try:
        return subprocess.call(command)
    finally:
        alive = all(end.is_alive() for end in ends)
        rate = sent.value / (time.monotonic() - begin) / 1e6
        print(f"stream on loopback: {sent.value / 1e9:.1f} GB, {rate:.0f} MB/s" + ("" if alive else "; it broke off"))
        for end in ends:
            end.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
