"""Real servers: nginx with a master and workers, unbound with threads, dnsmasq.

Programs that this machine does not have are taken from Debian's packages, which are unpacked in a cache, not installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.kernel.scenarios.tcp import UNACCEPTED
from tests.kernel.stage import Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support.blocks import Label
from tests.support.cache import user_cache
from tests.support.deadline import DEADLINE_S, until

PACKAGES = {"nginx": "nginx", "unbound": "unbound", "dnsmasq": "dnsmasq-base"}
SENDS, WORKERS = 23, 3
WEB_PORT, NAME_PORT = 40_487, 40_493
SYSTEM_PATH = "/usr/sbin:/usr/bin"
LIBRARIES = "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"
NGINX = """
daemon off; master_process on; worker_processes {workers}; pid {directory}/nginx.pid; error_log stderr; user root;
events {{ }}
http {{
 access_log off;
 client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
 uwsgi_temp_path {directory}; scgi_temp_path {directory};
 server {{ listen {port} {more}; location / {{ return 200 "here"; }} }}
}}
"""
UNBOUND = """
server:
 interface: 0.0.0.0@{port}
 num-threads: {workers}
 so-reuseport: yes
 access-control: 0.0.0.0/0 allow
 do-daemonize: no
 use-syslog: no
 chroot: ""
 directory: "{directory}"
 username: ""
 pidfile: "{directory}/unbound.pid"
 local-data: "here.test. A 192.0.2.1"
"""
QUERY = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\x04here\x04test\x00" + struct.pack("!HH", 1, 1)


def cache() -> Path:
    """Where programs are that are not installed."""
    return user_cache() / "servers"


def program(name: str) -> str:
    """The path of a server; fetched first where needed.

    Raises:
        CalledProcessError: apt cannot fetch it.
    """
    path = f"{SYSTEM_PATH}:{cache()}/usr/sbin"
    found = shutil.which(name, path=path)
    if not found:
        archives = cache() / "archives"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        apt = ["apt-get", "-qq", "-y", "--no-install-recommends", "--download-only", "install", PACKAGES[name]]
        subprocess.run([*apt, "-o", f"Dir::Cache::archives={archives}"], check=True, capture_output=True)
        for archive in archives.glob("*.deb"):
            subprocess.run(["dpkg", "-x", archive, cache()], check=True, capture_output=True)
        found = shutil.which(name, path=path)
    assert found, f"{name} is in no package"
    return found


@contextlib.contextmanager
def running(stage: Stage, name: str, *words: str) -> Iterator[int]:
    """Run a server at the near end; gives its process id."""
    libraries = ":".join(str(cache() / directory) for directory in LIBRARIES)
    process = stage.near.do(
        subprocess.Popen,
        [program(name), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def children(pid: int) -> list[int]:
    """The children of a process."""
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def comm_of(pid: int) -> str:
    """The name of a process."""
    return Path(f"/proc/{pid}/comm").read_text().removesuffix("\n")


def nginx(more: str) -> Callable[[Stage], Judge]:
    """Each connection belongs to one of the workers, never to the master, which has the listener open, too."""

    def play(stage: Stage) -> Judge:
        file = stage.directory / "nginx.conf"
        file.write_text(NGINX.format(workers=WORKERS, directory=stage.directory, port=WEB_PORT, more=more))
        with running(stage, "nginx", "-c", str(file)) as master:
            until(lambda: len(children(master)) == WORKERS, "nginx has its workers")
            until(lambda: is_answered(stage), "nginx answers")
            workers = [Label(comm_of(pid), pid, pid) for pid in children(master)]
            for number in range(SENDS):
                request(stage, b"/%d" % number)
                if number in {*range(WORKERS), SENDS - 1}:
                    stage.wait_until_written(b"/%d" % number)  # /proc has been asked

        def right(frame: Frame) -> Right:
            return [Label("nginx", 0, 0), *workers] if WEB_PORT in frame.ports else None

        return right

    return play


def request(stage: Stage, path: bytes = b"/") -> None:
    """Ask nginx from the far end, until it closes the connection."""
    with connect(stage.far, stage.wire.near.ipv4, WEB_PORT) as connection:
        connection.sendall(b"GET %s HTTP/1.0\r\n\r\n" % path)
        while connection.recv(2048):
            pass


def is_answered(stage: Stage) -> bool:
    """Whether nginx listens."""
    with contextlib.suppress(ConnectionRefusedError):
        request(stage)
        return True
    return False


def asks(stage: Stage, pid: int) -> Judge:
    """Ask a name server; its packets belong to the process, whatever its thread."""

    def query(asking: socket.socket) -> bool:
        asking.sendto(QUERY, (stage.wire.near.ipv4, NAME_PORT))
        with contextlib.suppress(TimeoutError):
            return bool(asking.recv(2048))
        return False

    with udp_socket(stage.far) as first:
        first.settimeout(0.1)
        until(lambda: query(first), "the name server answers")
        unheard = first.getsockname()[1]
    comm = comm_of(pid)
    for _ in range(SENDS):
        with udp_socket(stage.far) as asking:
            asking.sendto(QUERY, (stage.wire.near.ipv4, NAME_PORT))
            asking.recv(2048)

    def right(frame: Frame) -> Right:
        return OfProcess(comm, pid) if NAME_PORT in frame.ports and unheard not in frame.ports else None

    return right


class OfProcess(list[Label]):
    """Any thread of a process; its threads can have the name of the process only."""

    def __init__(self, comm: str, pid: int) -> None:
        super().__init__()
        self._comm, self._pid = comm, pid

    def __contains__(self, label: object) -> bool:
        return isinstance(label, Label) and (label.comm, label.tgid) == (self._comm, self._pid)

    def __iter__(self) -> Iterator[Label]:
        return iter((Label(self._comm, self._pid, 0),))


def unbound(stage: Stage) -> Judge:
    """A name server whose threads share the port."""
    file = stage.directory / "unbound.conf"
    file.write_text(UNBOUND.format(workers=WORKERS, directory=stage.directory, port=NAME_PORT))
    with running(stage, "unbound", "-d", "-c", str(file)) as pid:
        return asks(stage, pid)


def dnsmasq(stage: Stage) -> Judge:
    """A name server that answers from its own table."""
    words = ("--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=")
    with running(stage, "dnsmasq", *words, f"--port={NAME_PORT}", "--address=/here.test/192.0.2.1") as pid:
        return asks(stage, pid)


SCENARIOS = [
    Scenario("nginx, a master and its workers", nginx(""), SENDS * 8, SENDS * UNACCEPTED),
    Scenario("nginx, a master and its workers, reuseport", nginx("reuseport"), SENDS * 8, SENDS * 6),
    Scenario("unbound, threads with one port", unbound, SENDS * 2, SENDS),
    Scenario("dnsmasq", dnsmasq, SENDS * 2),
]
