"""`make fleet`: a fleet on this machine, from nothing to the packets of one question, over object storage.

In: numbers of hosts, files and packets. Out: a line for each step: seconds, files opened, bytes read (of the files of
this machine, or through the server), and whether the result is the truth. Exit code 1 if one is not.

The rules: each step is a command or a function that the commands call. tshark is the judge: it reads what was
extracted, and the generator says what it must have.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.cli import selecting
from skbcapd.fleet import extraction, index_file, ship, table
from skbcapd.fleet.engines import Answer, DuckDB
from skbcapd.fleet.questions import Questions, span_us
from skbcapd.fleet.storage import Storage
from tools import synthetic_fleet
from tools.object_storage import Bucket, serving
from tools.synthetic_fleet import BEGIN_NS, FILE_S, NEEDLE, Seen

ROOT = Path(__file__).parents[1]
URL = "s3://captures"
_AT_ONCE = 4  # hosts that are made, indexed or shipped at the same time


class Trial:
    """Runs steps and prints a line for each.

    Args:
        bucket: the server.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._begin_s = time.monotonic()
        self.wrong = 0
        print(f"{'step':<58}{'seconds':>9}{'files opened':>14}{'MB read':>10}", flush=True)

    def line(self, name: str, seconds: float, opened: int, size: int) -> None:
        """Print a line."""
        print(f"{name:<58}{seconds:>9.3f}{opened:>14,}{size / 1e6:>10.2f}", flush=True)

    @contextmanager
    def step(self, name: str, opened: int | None = None, size: int = 0) -> Iterator[None]:
        """Measure a step: what goes through the server, unless what it opens and reads is given."""
        self._bucket.traffic()
        begin_s = time.monotonic()
        yield
        seconds = time.monotonic() - begin_s
        seen = self._bucket.traffic()
        self.line(name, seconds, *((len(seen.read), seen.read.total()) if opened is None else (opened, size)))

    def expect(self, what: str, *, is_right: bool) -> None:
        """Print whether a result is right."""
        self.wrong += not is_right
        print(f"    {'right' if is_right else 'WRONG'}: {what}", flush=True)

    def end(self) -> int:
        """Print the last line; the exit code."""
        print(f"{time.monotonic() - self._begin_s:.0f} seconds in all; {self.wrong} results are wrong")
        return int(self.wrong > 0)


def command(*words: str | Path) -> str:
    """Run skbcapd; its output."""
    whole = [sys.executable, "-m", "skbcapd", *map(str, words)]
    done = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout + done.stderr


def judged(path: Path) -> list[Seen]:
    """All packets of a file, as tshark reads them."""
    fields = ["frame.time_epoch", "frame.interface_name", "frame.comment"]
    whole = ["tshark", "-r", str(path), "-T", "fields", *(word for field in fields for word in ("-e", field))]
    found = []
    for line in subprocess.run(whole, capture_output=True, text=True, check=True).stdout.splitlines():
        stamp, interface, comment = line.split("\t")
        seconds, fraction = stamp.split(".")
        process = comment.partition("comm=")[2].partition(" pid=")[0].strip('"')
        tgid = comment.partition("tgid=")[2].partition(" ")[0]
        found.append(Seen(int(seconds) * 10**9 + int(fraction), interface.partition(": ")[0], process, int(tgid)))
    return found


def each(function: Callable[[Path], int], hosts: Sequence[Path]) -> int:
    """Call a function for all hosts, some at the same time; the sum."""
    with ProcessPoolExecutor(_AT_ONCE) as pool:
        return sum(pool.map(function, hosts, chunksize=1))


def index_host(host: Path) -> int:
    """Write the indexes of a host, as `skbcapd index` does; their bytes."""
    size = 0
    for capture in sorted(host.glob("*.pcapng")):
        error = index_file.write(capture, host.name)
        if error:
            raise error
        size += index_file.path_of(capture).stat().st_size
    return size


def ship_host(host: Path) -> int:
    """Send the indexes and captures of a host, as `skbcapd ship --captures` does."""
    ship.ship(host, "fleet:captures", host.name, captures=True)
    return 1


def selected(words: Sequence[str]) -> Selectors:
    """Selectors of a command line."""
    parser = argparse.ArgumentParser()
    selecting.add_all(parser.add_argument_group())
    return selecting.selectors_of(parser.parse_args(words))


def asked(url: str, words: Sequence[str], times: int) -> tuple[float, list[tuple[str, str, int]]]:
    """The least seconds of a question to a table, and the host, process and process id of each line."""
    chosen = selected(words)
    seconds = []
    for _ in range(times):
        begin_s = time.monotonic()
        storage = Storage(url)
        with Questions(DuckDB(storage, table.parts(storage, *span_us(chosen))), chosen) as questions:
            answer = questions.answer()
        seconds.append(time.monotonic() - begin_s)
    return min(seconds), processes_of(answer)


def processes_of(answer: Answer) -> list[tuple[str, str, int]]:
    """The host, process and process id of each line of an answer."""
    columns, lines = answer
    host, process, tgid = (columns.index(name) for name in ("host_name", "process_name", "process_pid"))
    return sorted({(line[host], line[process], line[tgid]) for line in lines})


def selectors(files: int) -> tuple[list[str], int, int]:
    """Five minutes in which the needle is seen: as options, and as times in nanoseconds."""
    begin_ns = BEGIN_NS + (files - 1) // 3 * 3 * FILE_S * 10**9 - (FILE_S - 30) * 10**9
    end_ns = begin_ns + 300 * 10**9
    words = ["--peer", NEEDLE]
    for option, at_ns in (("--from", begin_ns), ("--to", end_ns)):
        words += [option, f"{datetime.fromtimestamp(at_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"]
    return words, begin_ns, end_ns


def run(place: Path, hosts: int, files: int, packets: int) -> int:
    """All steps; the exit code."""
    local = place / "hosts"
    with serving(place / "s3") as bucket:
        environment = bucket.environment()
        os.environ.clear()
        os.environ.update(environment)
        trial = Trial(bucket)
        with trial.step(f"generate {hosts} hosts x {files} captures x {packets} packets", 0):
            truth = synthetic_fleet.make(local, hosts, files, packets)
        captures = sorted(local.rglob("*.pcapng"))
        size = sum(path.stat().st_size for path in captures)
        print(f"    {size / 1e6:.0f} MB; {len(truth)} packets of {NEEDLE}")
        places = arrange(local, captures)
        with trial.step("index all captures", len(captures), size):
            indexed = each(index_host, places)
        print(f"    {indexed / 1e6:.1f} MB: {100 * indexed / size:.2f} % of the captures")
        with trial.step("ship indexes and captures (rclone, S3)", 2 * len(captures), size + indexed):
            each(ship_host, places)
        with trial.step("compact (S3)"):
            print("   ", command("fleet", "compact", URL).strip())
        words, begin_ns, end_ns = selectors(files)
        wanted = [seen for seen in truth if begin_ns <= seen.time_ns < end_ns]
        ask(trial, words, wanted, place / "s3/captures")
        ask_spark(trial, words, wanted, place / "s3/captures")
        plain = place / "plain.pcapng"
        with trial.step("extract by reading all files", len(captures), size):
            command("extract", *places, "-w", plain, *words)
        trial.expect(
            f"{len(wanted)} packets", is_right=[seen[::2] for seen in judged(plain)] == [seen[::2] for seen in wanted]
        )
        return trial.end()


def arrange(local: Path, captures: Sequence[Path]) -> list[Path]:
    """A directory of captures for each host, as on a host."""
    places: list[Path] = []
    for capture in captures:
        host = local / capture.parts[-3].removeprefix("host=")
        host.mkdir(exist_ok=True)
        capture.rename(host / capture.name)
        if host not in places[-1:]:
            places.append(host)
    return places


def ask(trial: Trial, words: Sequence[str], wanted: Sequence[Seen], table_: Path) -> None:
    """The question and the extraction by DuckDB."""
    processes = sorted({(seen.host, seen.process, seen.tgid) for seen in wanted})
    print(f"    the question: {' '.join(words)}")
    with trial.step("query by DuckDB (S3), the whole command"):
        command("fleet", "query", URL, *words)
    with trial.step("query by DuckDB (S3), once started"):
        _, found = asked(URL, words, 1)
    trial.expect(f"{len(processes)} processes", is_right=found == processes)
    seconds, found = asked(str(table_), words, 11)
    parts = table.parts(Storage(str(table_)), *span_us(selected(words)))
    trial.line("the least of 11 queries, table in a directory", seconds, len(parts), sum(part.bytes for part in parts))
    trial.expect(f"{len(processes)} processes", is_right=found == processes)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "found.pcapng"
        with trial.step("extract by DuckDB (S3)"):
            said = command("fleet", "extract", URL, *words, "-w", out)
        print("   ", said.splitlines()[-1])
        trial.expect(f"{len(wanted)} packets, as tshark reads them", is_right=judged(out) == wanted)


def ask_spark(trial: Trial, words: Sequence[str], wanted: Sequence[Seen], table_: Path) -> None:
    """The question and the extraction by Spark. PyPI's has no file system for S3: it reads the table in the directory
    of the server; captures are read over S3.
    """
    os.environ["PYTHONPATH"] = str(ROOT)  # for its workers
    found = importlib.util.spec_from_file_location("contrib_spark", ROOT / "contrib/spark/fleet.py")
    job = importlib.util.module_from_spec(found)  # type: ignore[arg-type]
    found.loader.exec_module(job)  # type: ignore[union-attr]
    selectors = selected(words)
    processes = sorted({(seen.host, seen.process, seen.tgid) for seen in wanted})
    with trial.step("start Spark (local[2])"):
        spark = job.session("local[2]")
        spark.sparkContext.setLogLevel("ERROR")
    try:
        for turn in ("the first one", "again", "and again"):
            with trial.step(f"query by Spark, {turn}; manifests over S3"):
                engine = job.engine(spark, Storage(URL), selectors, str(table_))
                with Questions(engine, selectors) as questions:
                    lines = questions.answer()
            trial.expect(f"{len(processes)} processes", is_right=processes_of(lines) == processes)
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "found.pcapng"
            with trial.step("extract by Spark (captures over S3)"), Questions(engine, selectors) as questions:
                template = f"{URL}/{extraction.CAPTURES}"
                said, wrong = job.extract(engine, questions, template, Selection(selectors), out)
            print(*(f"    {line}" for line in (said[-1], *wrong)), sep="\n")
            trial.expect(f"{len(wanted)} packets, as tshark reads them", is_right=judged(out) == list(wanted))
    finally:
        spark.stop()


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make fleet")
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--packets", type=int, default=503)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skbcapd-fleet-") as place:
        return run(Path(place), options.hosts, options.files, options.packets)


if __name__ == "__main__":
    sys.exit(main())
