"""The tables of faults, printed at the end of a run: what was done, and what became of it.

Rows go in from any test, lines come out. What was before is told by those who found the faults; what is now is
measured by the test that adds the row.
"""

from __future__ import annotations

from collections import Counter

HEADER = ("fault", "tries", "packets flushed", "readable", "lost of those")
HEADER_BEFORE = ("fault", "tries", "before", "now")
BEFORE = {
    "free space reaches keep_free": "the newest or only file deleted, silently",
    "reload with hundreds of ports": "200 ports: 194,272 of 420,001 packets lost",
    "reload, name server silent": "438,153 packets lost",
    "check, name server silent": "90 s",
    "SIGTERM while 330 ports are compiled": "obeyed after 28.5 s",
    "a directory of 100,000 files": "96 % of a processor, packets lost",
    "a log that cannot be written": "the capture ended",
    "a standard descriptor closed, full or broken": "tracebacks",
    "a disk that hangs": "5 MiB/s: watchdog not fed for 71 s, status unanswered",
    "a disk that hangs whole": "the loop waited for it: to look whether the file is there, for a new directory",
    "SIGTERM while the disk hangs": "waited for the disk, packets in no count",
    "a reader that stalls": "the loop and signals waited for it",
    "status and dump, name server silent": "10 s and an error",
    "dump, free space below keep_free": "waited 30 s, without a reason",
    "ulimit -n 20": "a traceback in one line",
    "a FIFO as metrics.textfile, or its .part": "the capture waited for a reader",
    "check: a name too long for a file system": "no problem found",
    "check: an owner that does not exist": "no problem found",
    "doctor without /proc": "other findings, wrong hints",
    "a broken BTF": "no remedy",
    "a large file left by a crash": "35 GiB: the start read it for longer than systemd waits",
    "errors about -s and FILTER": "named --set",
    "-s 0": "refused",
    "split, files that exist": "File exists, without a hint",
    "top, all packets forwarded": "asked whether skbcapd wrote the files",
    "keep_size below one file": "even the newest file deleted, without a warning",
    "an unclosed [ on the last line": "reported on a line that is not there",
    "an expression that backtracks": "the capture hung",
    "a time namespace": "time stamps wrong by 12 days",
    "a symbolic link as NAME.gz.part": "its target overwritten as root",
    "FIFOs and devices with names of captures": "the start hung",
    "a reader's lock on the directory": "no start",
    "names of many bytes in a capture": "724 KB of zstd: 3.4 GB in top",
    "top, a read that fails": "traceback",
    "formulas as names in top --csv": "passed to the spreadsheet",
    "split on a full disk": "files that stopped the next try",
    "a full disk at the begin of a file": "an empty finished file, current.pcapng on it",
    "rotation inside a renumbering": "struct.error",
    "a namespace that does not exist": "captured nothing without a word",
    "parent directories, umask 0": "mode 777",
    "a memory limit too small": "killed without a word",
    "multicast looped back to its host": "an extra frame without its Ethernet header",
    "dedup: first, seen first elsewhere": "111 of 200 packets in no file",
    "filter: ip broadcast": "refused",
    "no process or thread left": "default settings: traceback within a second, the capture ended",
    "the terminal is closed": "the capture ended with the next status line",
    "a signal while it starts": "killed by SIGHUP, SIGUSR1 and SIGUSR2",
    "a storm of signals": "SIGUSR1: status unanswered, SIGTERM obeyed when it was over; exit codes -12, -1",
    "the service manager hangs": "the capture stopped for ever, SIGTERM not obeyed",
    "the disk of the compiler's cache hangs": "reload never done; SIGTERM not obeyed",
    "a process that delays who reads its command line": "the capture stopped as long as the process wanted",
    "a file system that does not respond": "SIGTERM not obeyed",
    "a directory that cannot be reached for a while": "a thread ended by a traceback; no packet was written any more",
    "thousands of files left by crashes": "no start: too many open files",
    "the oldest file cannot be deleted": "no limit held: no other file was deleted",
    "the clock is set forward by a year": "all files deleted by keep_age, silently",
    "a limit for the size of files": "packets dropped for a second at the end of each file",
    "all at once": "not tried",
}

_rows: list[tuple[str, ...]] = []
_compared: Counter[tuple[str, str]] = Counter()


def add(fault: str, tries: int, flushed: int, readable: int, lost: int) -> None:
    """Add a row.

    Args:
        fault: what was done.
        tries: how often.
        flushed: packets that the writer had handed to the kernel, or said that it had written.
        readable: packets in files afterwards, as an independent reader sees them; also such as were not flushed.
        lost: of the flushed ones, how many are not readable.
    """
    _rows.append((fault, *map(str, (tries, flushed, readable, lost))))


def compare(fault: str, tries: int, now: str) -> None:
    """Add a row to the table of before and now.

    Args:
        fault: what was done, a key of BEFORE.
        tries: how often.
        now: what was measured.
    """
    _compared[fault, now] += tries


def lines() -> list[str]:
    """The table as text; empty without rows."""
    return _aligned(HEADER, _rows)


def compared() -> list[str]:
    """The table of before and now as text, in the order of BEFORE; empty without rows."""
    rows = [(fault, str(tries), BEFORE[fault], now) for (fault, now), tries in _compared.items()]
    order = list(BEFORE)
    return _aligned(HEADER_BEFORE, sorted(rows, key=lambda row: order.index(row[0])))


def _aligned(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
