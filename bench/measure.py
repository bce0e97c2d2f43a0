"""One round of one tool with one load: start, send, drain, stop; and what it cost."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.loads import Load
from bench.tools import Tool
from bench.wire import ADDRESS, ENTER_FAR, ENTER_NEAR, container, many_devices, packets_out, set_segmentation
from skbcapd.kernel import syscall
from skbcapd.kernel.btf import Btf

TICKS = os.sysconf("SC_CLK_TCK")
NO_CAPTURE = "no capture"
_NOTHING = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])  # r0 = 0; exit
_SETTLED_S = 1.3  # a file that has grown, and then has not for this time, has all packets until now


@dataclass(frozen=True, slots=True)
class Figures:
    """One tool, one load, one round. Times in s, memory in bytes; values of a capture are 0 without a capture.

    Args:
        sent: packets counted by the sender; for TCP by the interface, which counts a large frame once, as captures do.
        sent_bytes: payload of TCP; 0 for other loads.
        cpu_s: of the capture process, by its CPU clock.
        user_s, system_s: the same from /proc, in steps of 10 ms.
        machine_s: time that processors were busy, with all processes.
        program_s: of all BPF programs of the process, measured by the kernel, which takes time itself. If a load has
            parts, each counts as the fastest one: a machine that is busy with other work makes the others slower.
        program_runs: number of their runs.
        counting_s: cost of this measurement for each run.
        private_bytes: resident, without buffers shared with the kernel.
    """

    tool: str
    load: str
    sent: int
    sending_s: float
    sent_bytes: int = 0
    captured: int = 0
    dropped: int = 0
    cpu_s: float = 0
    user_s: float = 0
    system_s: float = 0
    machine_s: float = 0
    program_s: float = 0
    program_runs: int = 0
    counting_s: float = 0
    file_bytes: int = 0
    private_bytes: int = 0
    start_s: float = 0
    longest_pause_s: float = 0

    @property
    def packets(self) -> int:
        """The number of packets for values per packet."""
        return self.captured or self.sent


def cpu_time(pid: int) -> float:
    """CPU time in s of all threads of a process, by its CPU clock: /proc counts in steps of 10 ms.

    Source: clock_getcpuclockid(3).
    """
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def process_times(stat: str) -> tuple[float, float]:
    """User and system time in s, from the text of /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def busy_time(stat: str) -> float:
    """Time in s that processors were not idle, from the text of /proc/stat, without stolen time."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def program_times(pid: int) -> tuple[float, int]:
    """Time in s and runs of the BPF programs of a process, while kernel.bpf_stats_enabled is set."""
    programs = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            text = path.read_text()
            if "run_time_ns" in text:
                programs[number("prog_id", text)] = number("run_time_ns", text), number("run_cnt", text)
    return sum(time_ns for time_ns, _ in programs.values()) / 1e9, sum(runs for _, runs in programs.values())


def number(name: str, text: str) -> int:
    """The number after a name."""
    found = re.search(rf"{name}:?\s+(\d+)", text)
    if found is None:
        raise ValueError(f"no {name} in {text!r}")
    return int(found[1])


def private_memory(smaps: str) -> int:
    """Resident bytes without the buffers shared with the kernel (maps of BPF, rings of packet sockets).

    Args:
        smaps: the text of /proc/PID/smaps.
    """
    total, is_buffer = 0, False
    for line in smaps.splitlines():
        if re.match(r"[0-9a-f]+-", line):
            is_buffer = re.search(r" (anon_inode:bpf-map|socket:\[\d+\])$", line) is not None
        elif line.startswith("Rss:") and not is_buffer:
            total += int(line.split()[1]) * 1024
    return total


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: it stays false.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a capture tool did not get ready")
        time.sleep(0.01)


@contextlib.contextmanager
def statistics(*, on: bool) -> Iterator[None]:
    """Switch the kernel's statistics of BPF programs on or off, and restore the setting at the end."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    switch.write_text("1" if on else "0")
    try:
        yield
    finally:
        switch.write_text(before)


class _Growth(threading.Thread):
    """Watches a growing file, and measures its longest pause."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.longest_s = 0.0
        self._path, self._over = path, threading.Event()

    def run(self) -> None:
        """Check every 5 ms; pauses count from the first growth to the end of the load."""
        size, last = self._path.stat().st_size, 0.0
        while not self._over.wait(0.005):
            now = time.monotonic()
            if self._path.stat().st_size != size:
                size = self._path.stat().st_size
                self.longest_s = max(self.longest_s, now - last if last else 0.0)
                last = now

    def stop(self) -> float:
        """The longest pause in s."""
        self._over.set()
        self.join()
        return self.longest_s


def _start_senders(load: Load, sender: Path) -> list[subprocess.Popen[str]]:
    started = []
    for place, arguments in enumerate(load.senders):
        pin = ["taskset", "-c", str(place)] if len(load.senders) > 1 else []
        command = [*ENTER_NEAR, *pin, str(sender), *arguments]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for process in started:
        if _line(process) != "ready\n":
            raise RuntimeError(f"a sender of {load.name} did not start")
    return started


def _line(sender: subprocess.Popen[str]) -> str:
    """The next line of a sender."""
    if sender.stdout is None or not select.select([sender.stdout], [], [], 300)[0]:
        raise TimeoutError("a sender did not end")
    return sender.stdout.readline()


def _send(
    load: Load, senders: list[subprocess.Popen[str]], after_part: Callable[[], None] = lambda: None
) -> tuple[int, float]:
    """Make all send; returns how many datagrams failed, and the time of the slowest sender in each part."""
    failed, sending_s = 0, 0.0
    for _ in range(load.parts if senders else 0):
        for process in senders:
            print("go", file=process.stdin, flush=True)
        results = [_line(process).split() for process in senders]
        failed += sum(int(number) for number, _ in results)
        sending_s += max(float(taken) for _, taken in results)
        after_part()
    for process in senders:
        process.communicate(timeout=300)
    time.sleep(load.seconds)
    return failed, sending_s or load.seconds


@contextlib.contextmanager
def sink(sender: Path) -> Iterator[None]:
    """A receiver for the load."""
    process = subprocess.Popen([*ENTER_FAR, str(sender), "sink", ADDRESS], stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError("the sink did not start")
        yield
    finally:
        process.kill()
        process.wait()


def measure(tool: Tool | None, load: Load, sender: Path, directory: Path, *, count_programs: bool = False) -> Figures:
    """One round.

    Args:
        tool: None for the load alone.
        load: what is sent.
        sender: bench/send.c, compiled.
        directory: for the capture file.
        count_programs: make the kernel measure BPF programs, which slows down each of them.

    Raises:
        RuntimeError: the tool ended before it captured.
        TimeoutError: it did not start to capture.
    """
    with contextlib.ExitStack() as stack:
        set_segmentation(on=load.segmentation)
        if load.devices:
            stack.enter_context(many_devices(load.devices))
        if load.is_beside_container:
            stack.enter_context(container())
        stack.enter_context(sink(sender))
        if tool is None:
            before = packets_out()
            failed, sending_s = _send(load, _start_senders(load, sender))
            sent = load.packets - failed if load.packets else packets_out() - before
            return Figures(NO_CAPTURE, load.name, sent, sending_s, load.sent_bytes)
        stack.enter_context(statistics(on=count_programs))
        return _under_capture(tool, load, sender, directory)


def counting_time(load: Load, sender: Path) -> float:
    """Time in s that the kernel measures for a BPF program that does nothing, run for each packet of a load."""
    type_id = Btf.load().tracepoint("net_dev_queue")
    if type_id is None:
        raise RuntimeError("this kernel has no tracepoint net_dev_queue")
    descriptors = [syscall.load_program("nothing", _NOTHING, "tracepoint", type_id)]
    try:
        descriptors.append(syscall.attach_tracepoint(descriptors[0]))
        with statistics(on=True), sink(sender):
            _send(load, _start_senders(load, sender))
        time_s, runs = program_times(os.getpid())
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return time_s / runs


def _under_capture(tool: Tool, load: Load, sender: Path, directory: Path) -> Figures:
    place, log = directory / "capture", directory / "log"
    target = place / "current.pcapng" if tool.is_series else place
    command = tool.command(place, any_device=bool(load.devices))
    with log.open("w") as words:
        begun = time.monotonic()
        process = subprocess.Popen([*ENTER_NEAR, *command], stderr=words, stdout=words)
        try:
            wait_for(lambda: _is_ready(tool, process, log))
            start_s = time.monotonic() - begun
            out, senders = packets_out(), _start_senders(load, sender)
            _wait_until_written(target, _SETTLED_S)
            stat, machine, programs = Path(f"/proc/{process.pid}/stat"), Path("/proc/stat"), program_times(process.pid)
            busy, before, growth = busy_time(machine.read_text()), process_times(stat.read_text()), _Growth(target)
            cpu = cpu_time(process.pid)
            growth.start()
            parts = [programs[0]]
            failed, sending_s = _send(load, senders, lambda: parts.append(program_times(process.pid)[0]))
            pause = growth.stop()
            _wait_until_written(target, tool.quiet_s)
            after, machine_s = process_times(stat.read_text()), busy_time(machine.read_text()) - busy
            cpu_s, out = cpu_time(process.pid) - cpu, packets_out() - out
            program_runs = program_times(process.pid)[1] - programs[1]
            private = private_memory(Path(f"/proc/{process.pid}/smaps").read_text())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    captured, dropped = tool.totals(log.read_text())
    size = target.stat().st_size
    shutil.rmtree(place) if tool.is_series else place.unlink()
    return Figures(
        tool=tool.name,
        load=load.name,
        sent=load.packets - failed if load.packets else out if load.senders else 0,
        sending_s=sending_s,
        sent_bytes=load.sent_bytes,
        captured=captured,
        dropped=dropped,
        cpu_s=cpu_s,
        user_s=after[0] - before[0],
        system_s=after[1] - before[1],
        machine_s=machine_s,
        program_s=load.parts * min((end - begin for begin, end in pairwise(parts)), default=0.0),
        program_runs=program_runs,
        file_bytes=size,
        private_bytes=private,
        start_s=start_s,
        longest_pause_s=pause,
    )


def _is_ready(tool: Tool, process: subprocess.Popen[bytes], log: Path) -> bool:
    words = log.read_text()
    if process.poll() is not None:
        raise RuntimeError(f"{tool.name} ended before it captured: {words[-300:]!r}")
    return tool.ready.search(words) is not None


def _wait_until_written(path: Path, quiet_s: float) -> None:
    """Wait until a file has grown and settled, or has not grown for `quiet_s`."""
    last = size = path.stat().st_size
    since = time.monotonic()
    while time.monotonic() - since < (_SETTLED_S if last > size else quiet_s):
        time.sleep(0.05)
        if (now := path.stat().st_size) != last:
            last, since = now, time.monotonic()
