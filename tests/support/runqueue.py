"""How long a process was ready to run, but had no processor: the load of the machine, not a fault of
the program. A test with a time limit leaves it out.
"""

from __future__ import annotations

from pathlib import Path


def waited_s(pid: int | str) -> float:
    """Seconds that the main thread of a process has waited for a processor since it began.

    0 if the process has ended, or if the kernel does not count this.

    Source: Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
