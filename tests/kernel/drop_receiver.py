"""A process with two UDP sockets, whose packets the kernel drops: the program, for `python -c`.

In: an address to bind to; empty: all of IPv4. Out: the two ports, the second of a socket with a small receive buffer;
then a line when it has received two datagrams on each.
"""

RECEIVER = """
import socket, sys, time
sockets = []
for size in (None, 2048):
    one = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
    if size:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    one.bind((sys.argv[1], 0))
    sockets.append(one)
print(*(one.getsockname()[1] for one in sockets), flush=True)
for one in sockets:
    one.recv(9)
    one.recv(9)  # called during the capture, so that its user is on record
print("received", flush=True)
time.sleep(300)
"""
