"""Many hosts on one machine, from nothing: `make fleet`.

Captures of a synthetic fleet, their indexes, object storage (rclone serve s3), shipping (rclone), compaction, one
question by DuckDB and by Spark, the packets by both, and the judges: the truth of the generator, plain reading of all
files, and tshark. Prints seconds, files opened and bytes read for each step; ends with exit code 1 if a judge differs.

The rule: traffic is on the loopback interface only, and each process that was started is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from skbcapd.analysis.records import records
from skbcapd.analysis.selectors import Selection, Selectors, peer
from skbcapd.analysis.sources import Sources
from skbcapd.analysis.when import Span
from skbcapd.fleet import extraction, index_file, table
from skbcapd.fleet.compaction import compact
from skbcapd.fleet.intake import RAW
from skbcapd.fleet.questions import Questions
from skbcapd.fleet.storage import Storage
from tools import synthetic_fleet
from tools.synthetic_fleet import NEEDLE

ROOT = Path(__file__).parents[1]
BUCKET = "fleet"
_KEYS = {"AWS_ACCESS_KEY_ID": "fleet", "AWS_SECRET_ACCESS_KEY": "no-secret", "AWS_DEFAULT_REGION": "us-east-1"}
BEGIN_NS = synthetic_fleet.BEGIN_NS + 1800 * 10**9  # 10:00
END_NS = BEGIN_NS + 300 * 10**9  # 10:05
_SELECTORS = Selectors(peers=(peer(NEEDLE),), span=Span(BEGIN_NS, END_NS))
_READY_S = 60
_FIELDS = ("frame.time_epoch", "frame.len", "ip.src", "ip.dst", "frame.comment")


class Steps:
    """Prints a line for each step."""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[dict[str, object]]:
        """Measure a step; it may add what it has opened and read."""
        more: dict[str, object] = {}
        begin = time.monotonic()
        yield more
        seconds = time.monotonic() - begin
        print(f"{name:34} {seconds:8.2f} s   {', '.join(f'{key} {value}' for key, value in more.items())}", flush=True)


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[Mapping[str, str]]:
    """Object storage on a directory, whose directories are buckets.

    Returns:
        Variables of the environment for its clients.
    """
    rclone = Path(sys.executable).with_name("rclone")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key = f"{_KEYS['AWS_ACCESS_KEY_ID']},{_KEYS['AWS_SECRET_ACCESS_KEY']}"
    command = [str(rclone), "serve", "s3", str(directory), "--addr", f"127.0.0.1:{port}", "--auth-key", key]
    command += ["--log-level", "ERROR"]
    with subprocess.Popen([*command, "--config", os.devnull], stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + _READY_S
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("rclone serve s3 does not listen")
                time.sleep(0.05)
            yield {**_KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        finally:
            server.terminate()


def ship(source: Path, target: str, variables: Mapping[str, str]) -> None:
    """Copy a directory to object storage with rclone, as a host does."""
    remote = (
        f":s3,provider=Rclone,env_auth=true,force_path_style=true,endpoint='{variables['AWS_ENDPOINT_URL']}':{target}"
    )
    command = [str(Path(sys.executable).with_name("rclone")), "copy", "--config", os.devnull, str(source), remote]
    subprocess.run(
        [*command, "--transfers", "8", "--checksum", "--no-traverse"], env={**os.environ, **variables}, check=True
    )


def index(capture: Path) -> int:
    """Write the index of a capture; its rows."""
    error = index_file.write(capture, capture.parts[-3].removeprefix("host="))
    if error is not None:
        raise error
    with gzip.open(index_file.path_of(capture)) as lines:
        return sum(1 for _ in lines) - 1


def judged(path: Path, expression: str = "") -> Counter[str]:
    """The packets that tshark sees."""
    command = ["tshark", "-r", str(path), "-T", "fields", *(word for field in _FIELDS for word in ("-e", field))]
    done = subprocess.run(
        [*command, *(["-Y", expression] if expression else [])], capture_output=True, text=True, check=True
    )
    return Counter(done.stdout.splitlines())


def _whole(captures: Path, into: Path) -> None:
    """All captures in one file: sections of pcapng follow each other."""
    with into.open("wb") as file:
        for path in sorted(captures.rglob("*.pcapng")):
            file.write(path.read_bytes())


def _by_duckdb(steps: Steps, base: str, place: Path) -> tuple[Path, set[tuple[str, str, int]]]:
    """The answer, and the packets, from object storage."""
    storage = Storage(base)
    with steps.step("question, DuckDB over S3") as more, Questions(storage, _SELECTORS) as questions:
        columns, lines = questions.answer()
        more |= {"files": len(questions.parts), "lines": len(lines), "of rows": sum(p.rows for p in questions.parts)}
        rows = questions.rows()
    at = [columns.index(name) for name in ("host_name", "process_name", "process_pid")]
    captures = extraction.Captures(f"{base}/{extraction.CAPTURES}")
    out = place / "duckdb.pcapng"
    with steps.step("packets, ranges over S3") as more:
        said, wrong = extraction.extract(rows, captures, Selection(_SELECTORS), out)
        counts = captures.counts
        share = f"{100 * counts.bytes / max(captures.size, 1):.1f} % of {captures.size} of these files"
        more |= {"ranges": counts.opened, "bytes": f"{counts.bytes} ({share})"}
    if wrong or counts.bytes > 0.08 * captures.size:
        raise SystemExit(f"extraction: {said} {wrong}; expected at most 8 % of the bytes")
    return out, {(line[at[0]], line[at[1]], line[at[2]]) for line in lines}


def _by_local(steps: Steps, base: Path) -> None:
    """The time of the question alone, from a disk, after a first one."""
    for name in ("question, DuckDB on disk", "again"):
        with steps.step(name) as more, Questions(Storage(str(base)), _SELECTORS) as questions:
            _, lines = questions.answer()
            more |= {"files": len(questions.parts), "lines": len(lines)}


def _by_spark(steps: Steps, base: Path, captures: str, place: Path) -> tuple[Path, set[tuple[str, str, int]]]:
    """The same by Spark: the table from the directory of the object storage, packets over S3."""
    from contrib.fleet import spark  # noqa: PLC0415  takes a second to import

    os.environ["PYTHONPATH"] = str(ROOT)
    with steps.step("Spark starts"):
        session = spark.session("local[2]")
        session.range(1).count()
    with steps.step("question, Spark, first"):
        spark.answer(spark.rows(session, str(base), NEEDLE, _SELECTORS.span))
    with steps.step("question, Spark, again") as more:
        found = spark.rows(session, str(base), NEEDLE, _SELECTORS.span)
        lines = spark.answer(found)
        more |= {"files": len(found.inputFiles()), "lines": len(lines)}
    out = place / "spark"
    out.mkdir()
    with steps.step("packets, Spark applyInPandas, S3") as more:
        for made in spark.packets(found, captures, _SELECTORS).collect():
            (out / f"{made.host_name}-{made.file}").write_bytes(made.pcapng)
        merged = place / "spark.pcapng"
        subprocess.run(["mergecap", "-w", str(merged), *map(str, sorted(out.iterdir()))], check=True)
        more["files"] = len(list(out.iterdir()))
    session.stop()
    return merged, {(line["host_name"], line["process_name"], line["process_pid"]) for line in lines}


def run(place: Path, hosts: int, files: int, packets: int) -> None:
    """All steps.

    Raises:
        SystemExit: a judge differs.
    """
    steps, source, store = Steps(), place / "hosts", place / "store"
    with steps.step(f"{hosts} hosts x {files} files") as more:
        truth = synthetic_fleet.make(source, hosts, files, packets)
        captures = sorted((source / "captures").rglob("*.pcapng"))
        size = sum(path.stat().st_size for path in captures)
        more |= {"files": len(captures), "bytes": size, "packets": hosts * files * packets}
    with steps.step("indexes on the hosts") as more, multiprocessing.get_context("spawn").Pool(2) as pool:
        rows = sum(pool.imap_unordered(index, captures, 20))
        made = 0
        for path in captures:
            written = index_file.path_of(path)
            target = source / RAW / path.parent.relative_to(source / "captures") / written.name
            target.parent.mkdir(parents=True, exist_ok=True)
            made += written.replace(target).stat().st_size
        more |= {
            "files": len(captures),
            "bytes read": size,
            "bytes": f"{made} ({100 * made / size:.2f} %)",
            "rows": rows,
        }
    (store / BUCKET).mkdir(parents=True)
    with s3_server(store) as variables:
        os.environ.update(variables)
        base = f"s3://{BUCKET}"
        with steps.step("shipping by rclone") as more:
            ship(source, BUCKET, variables)
            more |= {"files": 2 * len(captures), "bytes": size + made}
        with steps.step("compaction over S3") as more:
            storage = Storage(base)
            report = compact(storage)
            more |= {"files": storage.counts.opened, "bytes": storage.counts.bytes, "rows": report.rows}
            more |= {"written": f"{report.parts} parts, {report.bytes} bytes"}
        if report.wrong or report.rows != rows or sum(part.rows for part in table.parts(storage)) != rows:
            raise SystemExit(f"compaction: {report}; expected {rows} rows")
        duck, duck_says = _by_duckdb(steps, base, place)
        _by_local(steps, store / BUCKET)
        sparks, spark_says = _by_spark(steps, store / BUCKET, f"{base}/{extraction.CAPTURES}", place)
    _judge(steps, place, source / "captures", (duck, sparks))
    wanted = [seen for seen in truth if BEGIN_NS <= seen.time_ns < END_NS]
    with steps.step("judge: the generator") as more:
        answers = {(seen.host, seen.process, seen.tgid) for seen in wanted}
        count = sum(judged(duck).values())
        more |= {"packets": len(wanted), "processes": len(answers)}
    # A row is as long as its granule, so an answer may also have processes just outside of the time.
    every = {(seen.host, seen.process, seen.tgid) for seen in truth}
    if not answers <= duck_says <= every or spark_says != duck_says or count != len(wanted) or not wanted:
        raise SystemExit("the answers differ from the truth")
    print(f"the same {count} packets by DuckDB, Spark, plain reading, tshark and the generator")


def _judge(steps: Steps, place: Path, captures: Path, found: tuple[Path, ...]) -> None:
    """Compare with plain reading of all captures, and with tshark on all captures."""
    plain = place / "plain.pcapng"
    with steps.step("judge: plain reading of all files"):
        paths = sorted(captures.rglob("*.pcapng"))
        sources = Sources(paths, Selection(_SELECTORS))
        extraction.write(records(sources.packets()), plain)
    with steps.step("judge: tshark on all files") as more:
        whole = place / "whole.pcapng"
        _whole(captures, whole)
        seconds = (f"{each // 10**9}.{each % 10**9:09}" for each in (BEGIN_NS, END_NS))
        expression = "ip.addr == {} && frame.time_epoch >= {} && frame.time_epoch < {}".format(NEEDLE, *seconds)
        wanted = judged(whole, expression)
        more |= {"bytes": whole.stat().st_size, "packets": sum(wanted.values())}
        whole.unlink()
    for path in (plain, *found):
        missing, more_ = wanted - judged(path), judged(path) - wanted
        if missing or more_:
            raise SystemExit(f"{path.name}: {sum(missing.values())} packets missing, {sum(more_.values())} more")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--packets", type=int, default=400)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="skbcapd-fleet-"))
    begin = time.monotonic()
    try:
        run(place, options.hosts, options.files, options.packets)
    finally:
        shutil.rmtree(place)
    print(f"all: {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
