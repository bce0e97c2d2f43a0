"""Runs inside the virtual machine, under systemd: installs skbcapd, starts the service, and treats
it badly.

In: the directory for answers. Out: one line of JSON, what systemd and the journal said at each
step; the capture files, copied to that directory.

The rule: nothing is judged here (test_service.py does), and nothing waits without an end.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import scapy

from skbcapd.clocks import ClockSteps

UNIT, OTHER_UNIT = "skbcapd.service", "skbcapd@metered.service"
LOGS, OTHER_LOGS = Path("/var/log/skbcapd"), Path("/var/log/skbcapd-metered")
KEPT = Path("/var/cache/skbcapd")
UNITS = Path("/etc/systemd/system")
CONFIG, OTHER_CONFIG = Path("/etc/skbcapd.yaml"), Path("/etc/skbcapd-metered.yaml")
KPROBES = Path("/sys/kernel/debug/kprobes/list")
PORT, FULL_PORT, METRICS_PORT, TLS_PORT = 1009, 1021, 9479, 4433
KEYS = Path("/run/tls-keys/app.log")
LIMIT_S = 240.0  # for any step: the compiler takes half a minute under emulation
FLOOD = (
    "import socket\ns = socket.socket(type=socket.SOCK_DGRAM)\nwhile True: s.sendto(bytes(1009), ('127.0.0.1', 1013))"
)

# Only the times differ from those of the unit, except TimeoutStopSec.
SLOW = "[Service]\nTimeoutStartSec=240\nWatchdogSec=20\nRestartSec=1\n"
KPROBE = "[Service]\nProtectKernelTunables=no\n"
GROUP = "[Service]\nSupplementaryGroups=adm\n"
METERED = f"files: {{keep_free: 0}}\nmetrics: {{listen: '127.0.0.1:{METRICS_PORT}'}}\n"
AT_FIRST = f"files: {{keep_free: 0}}\nsecrets: [{KEYS}]\n"
GOOD = f"files: {{keep_free: 0, owner: ':adm'}}\nsnaplen: 131072\nattach: kprobe\nsecrets: [{KEYS}]\n"
BAD = "snapplen: 96\n"


def output(*command: str) -> str:
    """The output of a command."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    return done.stdout + done.stderr


def show(name: str) -> str:
    """A property of the unit."""
    return output("systemctl", "show", "--value", f"--property={name}", UNIT).strip()


def state(unit: str = UNIT) -> dict[str, str]:
    """The output of systemd for a unit."""
    names = ("ActiveState", "Result", "NRestarts", "StatusText", "MainPID")
    lines = output("systemctl", "show", *(f"--property={name}" for name in names), unit).splitlines()
    return dict(line.split("=", 1) for line in lines)


def running() -> str:
    """The main process id; without one the trial cannot continue."""
    if show("ActiveState") != "active":
        sys.exit(output("journalctl", "--no-pager", "--quiet", f"--unit={UNIT}"))
    return show("MainPID")


def journal() -> list[dict[str, str]]:
    """The log entries of the unit."""
    lines = output("journalctl", "--output=json", "--no-pager", f"--unit={UNIT}").splitlines()
    return [json.loads(line) for line in lines]


def tell(step: str) -> None:
    """A line for readers of a trial that did not end."""
    print(f"{time.monotonic():.0f} s: {step}", file=sys.stderr, flush=True)


def until(condition: Callable[[], object]) -> bool:
    """Wait for a condition; returns whether it is true."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def said(text: str) -> bool:
    """Wait for a message in the journal; returns whether it was logged."""
    return until(lambda: any(text in entry["MESSAGE"] for entry in journal()))


def datagram(number: int) -> bytes:
    """1000 bytes."""
    return number.to_bytes(2, "big") * 500


def send(packets: int, port: int = PORT) -> None:
    """Datagrams from this process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(packets):
            sender.sendto(datagram(number), ("127.0.0.1", port))


def in_work() -> str:
    """The final name of the current file."""
    return (LOGS / "current.pcapng").readlink().name.removesuffix(".part")


def content() -> bytes:
    """The size of the current file; nothing while it is renamed."""
    try:
        return (LOGS / "current.pcapng").read_bytes()
    except FileNotFoundError:
        return b""


def deliver(packets: int) -> None:
    """Send datagrams, and wait until the current file has the last of them."""
    before = len(content())
    send(packets)
    until(lambda: datagram(packets - 1) in content()[before:])


def drop_in(name: str, text: str, unit: str = UNIT) -> None:
    """Add a drop-in to a unit."""
    place = UNITS / f"{unit}.d"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.conf").write_text(text)
    output("systemctl", "daemon-reload")


def probed() -> list[str]:
    """The kernel functions that have a kprobe, from the kernel."""
    if not KPROBES.exists():
        output("mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug")
    return re.findall(r" (\w+)[\w.]*\+0x", KPROBES.read_text())


def install() -> None:
    """As an administrator does it; the captures are on a small disk, and scapy is that of the
    tests.
    """
    place = Path("/usr/lib/python3/dist-packages/scapy")
    place.mkdir(exist_ok=True)
    output("mount", "--bind", str(Path(scapy.__file__).parent), str(place))
    LOGS.mkdir()
    shutil.rmtree(KEPT, ignore_errors=True)  # this machine's
    output("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(LOGS))
    subprocess.run(["make", "--silent", "install"], check=True, stdout=sys.stderr, timeout=LIMIT_S)
    # A new hour would begin a file.
    time.clock_settime(time.CLOCK_REALTIME, time.time() // 3600 * 3600 + 300)
    drop_in("slow", SLOW)
    CONFIG.write_text(AT_FIRST)


def reload(text: str, expected: str) -> dict[str, object]:
    """Another config file."""
    CONFIG.write_text(text)
    before = running()
    return {"printed": output("systemctl", "reload", UNIT), "said": said(expected), "before": before, **state()}


def fill_the_disk() -> dict[str, object]:
    """Captures have no space, then have it again."""
    filler = LOGS / "filler"
    with filler.open("wb") as file:
        disk = os.statvfs(LOGS)
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize)
    send(101, FULL_PORT)
    found: dict[str, object] = {"full": said("No space left on device"), **state()}
    filler.unlink()
    found["goes_on"] = said("writing again")
    deliver(109)
    return found


def kill(number: signal.Signals) -> dict[str, object]:
    """Send a signal to the main process; systemd starts another one."""
    before = running()
    os.kill(int(before), number)
    is_new = until(lambda: show("ActiveState") == "active" and show("MainPID") not in {before, "0"})
    return {"is_new": is_new, **state()}


def set_the_clock(by: float) -> bool:
    """Set the clock back or forward; a new file begins. Returns whether it has begun."""
    before = in_work()
    time.clock_settime(time.CLOCK_REALTIME, time.time() + by)
    is_new = until(lambda: in_work() != before)
    deliver(107)
    return is_new


def notices_steps() -> list[bool]:
    """Whether each step of the clock is noticed, and nothing else."""
    steps, noticed = ClockSteps(), []
    for by in (0.0, 60.0, 0.0, -60.0, 0.0):
        if by:
            time.clock_settime(time.CLOCK_REALTIME, time.time() + by)
        noticed.append(bool(select.select([steps], [], [], 1.0)[0]))
        if noticed[-1]:
            steps.take()
    steps.close()
    return noticed


def speak_tls() -> dict[str, object]:
    """A program whose key log is in the directory of docs/secrets.md: another user's, with the group of the service."""
    output("install", "-d", "-m", "2770", "-o", "nobody", "-g", "skbcapd", str(KEYS.parent))
    said = ""
    with tempfile.TemporaryDirectory() as pair:
        for version in ("TLSv1_2", "TLSv1_3"):
            words = f"--port {TLS_PORT} --path /{version} --pair {pair} --keys {KEYS}"
            program = f"umask 027; exec {sys.executable} -m tests.kernel.send.tls {version} {words}"
            said += output("sh", "-c", program)
    secrets = [line.split()[2].encode() for line in KEYS.read_text().splitlines() if not line.startswith("#")]
    is_there = until(lambda: all(secret in content() for secret in secrets))
    return {"printed": said, "keys": mode(KEYS), "is_there": is_there, "secrets": len(secrets)}


def metrics() -> str:
    """The metrics for Prometheus; the text of the error if the service does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=LIMIT_S) as page:
            return str(page.read().decode())
    except OSError as error:
        return str(error)


def start_another() -> dict[str, object]:
    """A second capture by the template unit, with metrics; then it is stopped."""
    OTHER_CONFIG.write_text(METERED)
    drop_in("slow", SLOW, OTHER_UNIT)
    before = running()
    found: dict[str, object] = {"printed": output("systemctl", "start", OTHER_UNIT), "running": state(OTHER_UNIT)}
    send(113)
    file = f"{OTHER_LOGS}/current.pcapng"
    until(lambda: Path(file).stat().st_size > 113_000)
    found |= {"metrics": metrics(), "of_the_first": {"before": before, **state()}}
    found |= {"stopped": output("systemctl", "stop", OTHER_UNIT), "after": state(OTHER_UNIT)}
    found["files"] = [mode(path) for path in OTHER_LOGS.glob("skbcapd-*.pcapng")]
    return found


def stop() -> dict[str, object]:
    """Under load."""
    with subprocess.Popen([sys.executable, "-c", FLOOD]) as flood:
        grown = until(lambda: len(content()) > 1 << 20)
        printed = output("systemctl", "stop", UNIT)
        flood.kill()
    return {"printed": printed, "grown": grown, **state()}


def read_as(*groups: str) -> str:
    """The first bytes of the current capture, read by nobody with these groups."""
    file = (LOGS / "current.pcapng").resolve()
    return output("setpriv", "--reuid=nobody", "--regid=nogroup", *groups, "od", "-An", "-tx1", "-N4", str(file))


def mode(path: Path) -> str:
    """Owner and mode of a file."""
    return f"{path.owner()}:{path.group()} {path.stat().st_mode & 0o7777:o}"


def run() -> dict[str, object]:
    """All steps."""
    tell("install")
    install()
    tell("start")
    found: dict[str, object] = {"first": Path("/proc/1/comm").read_text().strip(), "sender": os.getpid()}
    found["start"] = {"printed": output("systemctl", "start", UNIT), **state()}
    found["process"] = Path("/proc", running(), "status").read_text()
    tell("started")
    found["kprobes"] = probed()
    deliver(101)
    tell("speak TLS")
    found["tls"] = speak_tls()
    found["member"], found["stranger"] = read_as("--groups=skbcapd"), read_as("--clear-groups")
    tell("reload")
    found["good"] = reload(GOOD, "settings reloaded")
    found["bad"] = reload(BAD, "not reloaded")
    CONFIG.write_text(GOOD)
    tell("fill the disk")
    found["disk"] = fill_the_disk()
    tell("kill")
    drop_in("kprobe", KPROBE)
    found["killed"] = kill(signal.SIGKILL)
    found["more_kprobes"] = probed()
    deliver(103)
    drop_in("group", GROUP)
    tell("set the clock")
    found["clock"] = [set_the_clock(by) for by in (-5400, 90_000)]
    found["steps"] = notices_steps()
    tell("start another one")
    found["another"] = start_another()
    tell("stop the process")
    found["stuck"] = kill(signal.SIGSTOP)
    tell("stop the service")
    found["stop"] = stop()
    found["modes"] = {path.name: mode(path) for path in (LOGS, *LOGS.glob("skbcapd-*"))}
    found["kept"] = [mode(path) for path in KEPT.iterdir()]
    found["journal"] = journal()
    tell("end")
    return found


if __name__ == "__main__":
    result = run()
    shutil.copytree(LOGS, Path(sys.argv[1]) / "captures", ignore=shutil.ignore_patterns("current*"))
    print(json.dumps(result))
