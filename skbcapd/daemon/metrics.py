"""The statistics of a running capture as Prometheus metrics: an HTTP page, and a file for
node_exporter.

In: a snapshot from `statistics`. Out: text in the format of Prometheus.

The rule: no label has values that others choose, such as names of processes, unless `metrics.top`
asks for them: each value is a new time series that stays forever. In a file, each metric has the
label `capture`: node_exporter reads the files of several daemons, and accepts no two equal series.
prometheus_client is imported only if the settings need it.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and .../writing_exporters/.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skbcapd.config import settings
from skbcapd.errors import UsageError
from skbcapd.worker import Worker

_LOG = logging.getLogger(__name__)
EVERY_S = 15  # between two writes of the file: the usual scrape interval of Prometheus


def check_library(wanted: settings.Metrics) -> None:
    """Check that prometheus_client is installed, if the settings need it.

    Raises:
        UsageError: it is not installed.
    """
    if not wanted.listen == wanted.textfile == "none":
        _need_library()


def _need_library() -> None:
    if importlib.util.find_spec("prometheus_client") is None:
        raise UsageError(
            "metrics are enabled, but the Python module prometheus_client is not installed",
            "apt install python3-prometheus-client, or set metrics.listen and metrics.textfile to none",
        )


class Metrics:
    """Formats a snapshot as text.

    Args:
        snapshot: returns the current one.
        capture: value of the label `capture` of each metric; empty: no such label.
        top: number of names of each kind in the shares of the busiest; 0: none.

    Raises:
        UsageError: prometheus_client is not installed.
    """

    def __init__(self, snapshot: Callable[[], Mapping[str, Any]], capture: str = "", top: int = 0) -> None:
        _need_library()
        import prometheus_client  # noqa: PLC0415  see above
        from prometheus_client import core  # noqa: PLC0415

        self.content_type = prometheus_client.CONTENT_TYPE_LATEST
        self._snapshot = snapshot
        self._capture, self._top = capture, top
        self._core = core
        self._generate = prometheus_client.generate_latest
        self._registry = prometheus_client.CollectorRegistry(auto_describe=False)
        collector: Any = self  # anything with `collect` is one
        self._registry.register(collector)

    def text(self) -> bytes:
        """All metrics."""
        return bytes(self._generate(self._registry))

    def describe(self) -> list[object]:
        """Nothing, so that nothing is collected when this is registered."""
        return []

    def collect(self) -> Iterator[object]:
        """The metrics; called by prometheus_client."""
        for family in self._families():
            for sample in family.samples:
                if self._capture:
                    sample.labels["capture"] = self._capture
            yield family

    def _families(self) -> Iterator[Any]:
        found = self._snapshot()
        counter, gauge = self._core.CounterMetricFamily, self._core.GaugeMetricFamily
        packets = found["packets"]
        yield counter("skbcapd_packets_seen", "Packets that reached the kernel program.", packets["seen"])
        ended = counter(
            "skbcapd_packets", "Packets by outcome; see also _dropped, _in_memory and _pending.", labels=["outcome"]
        )
        outcomes = ("written", "filtered", "other_interfaces", "unattributed", "duplicates", "limited", "self_test")
        for outcome in outcomes:
            ended.add_metric([outcome], packets[outcome])
        yield ended
        causes = counter("skbcapd_packets_dropped", "Dropped packets by cause.", labels=["cause"])
        for cause, count in found["dropped"].items():
            causes.add_metric([cause], count)
        yield causes
        yield gauge("skbcapd_packets_pending", "Packets that are not yet written.", packets["pending"])
        yield gauge("skbcapd_packets_in_memory", "Packets that were not dumped (mode: ring).", packets["in_memory"])
        yield counter(
            "skbcapd_packets_missed", "Packets for which the kernel did not run the program.", found["missed"]
        )
        yield counter(
            "skbcapd_wire_bytes",
            "Bytes on the wire of the captured packets.",
            found["wire_bytes"],
        )
        yield counter("skbcapd_upcalls", "Packets that Python processed one by one.", found["upcalls"])
        yield gauge("skbcapd_buffer_size_bytes", "Size of the shared memory (buffer.size).", found["buffer_size"])
        yield gauge(
            "skbcapd_buffer_peak_bytes",
            "Largest number of bytes that waited in the shared memory in the last minute.",
            found["buffer_peak"],
        )
        yield counter("skbcapd_processes_seen", "Processes that sent or received packets.", found["processes"]["count"])
        yield counter("skbcapd_labels_made", "Labels that were made for the kernel program.", found["labels"])
        yield gauge("skbcapd_interfaces", "Interfaces that were seen, also excluded ones.", found["interfaces"])
        yield counter("skbcapd_log_lines_dropped", "Log lines that could not be written.", found["log"]["dropped"])
        yield from self._files(found["files"])
        yield from self._durations(found["durations"])
        yield from self._busiest(found["processes"])
        yield from self._interfaces(found["by_interface"])
        yield from self._memory(found["memory"])
        yield from self._network_drops(found["network_drops"])
        yield gauge(
            "skbcapd_start_time_seconds", "Start time of the capture, in seconds since 1970 UTC.", found["start_s"]
        )
        version = gauge("skbcapd_build_info", "Always 1; the version is a label.", labels=["version"])
        version.add_metric([found["version"]], 1)
        yield version

    def _network_drops(self, drops: Mapping[str, Any] | None) -> Iterator[Any]:
        """The metrics of packets that the kernel drops; none if they are not counted. The kernel chooses the
        reasons, of which there are about a hundred.
        """
        if drops is None:
            return
        counter = self._core.CounterMetricFamily
        reasons = counter(
            "skbcapd_network_drops",
            "Packets that the kernel dropped on the captured interfaces; loss=no: nobody has lost them.",
            labels=["reason", "loss"],
        )
        for one in drops["by_reason"]:
            reasons.add_metric([one["reason"], "yes" if one["loss"] else "no"], one["packets"])
        yield reasons
        unlisted = "Dropped packets, on any interface, that are in no reason: the list was full."
        missed = "Dropped packets, on any interface, for which the kernel did not run the program."
        yield counter("skbcapd_network_drops_unlisted", unlisted, drops["unlisted"])
        yield counter("skbcapd_network_drops_missed", missed, drops["missed"])

    def _files(self, files: Mapping[str, Any]) -> Iterator[Any]:
        """The metrics of finished files and their disk."""
        counter, gauge = self._core.CounterMetricFamily, self._core.GaugeMetricFamily
        yield gauge("skbcapd_files", "Finished files.", files["number"])
        yield gauge("skbcapd_files_bytes", "Size of all finished files.", files["size"])
        if files["disk_size"]:
            yield gauge("skbcapd_disk_free_bytes", "Free space on the disk of the files.", files["disk_free"])
            yield gauge("skbcapd_disk_size_bytes", "Size of the file system of the files.", files["disk_size"])
        yield counter("skbcapd_files_deleted", "Files that retention deleted.", files["deleted_files"])
        yield counter(
            "skbcapd_files_deleted_bytes", "Size of the files that retention deleted.", files["deleted_bytes"]
        )
        yield counter("skbcapd_indexes", "Indexes that were written (files.index).", files["indexes"])
        yield counter(
            "skbcapd_index_errors", "Files without an index, or with one that ends early.", files["index_errors"]
        )

    def _durations(self, durations: Mapping[str, Any]) -> Iterator[Any]:
        """The histograms."""
        described = {
            "rotation": "Time from the end of a file until the next one exists.",
            "flush": "Time of each fdatasync (files.flush).",
        }
        for name, facts in durations.items():
            buckets = [(str(bound), count) for bound, count in facts["buckets"]]
            yield self._core.HistogramMetricFamily(
                f"skbcapd_{name}_duration_seconds",
                described[name],
                buckets=[*buckets, ("+Inf", facts["count"])],
                sum_value=facts["sum_s"],
            )

    def _busiest(self, processes: Mapping[str, Any]) -> Iterator[Any]:
        """The shares of the busiest; none without metrics.top."""
        if not self._top:
            return
        shares = self._core.GaugeMetricFamily(
            "skbcapd_busiest_ratio",
            "Part of the sampled bytes of the last 30 to 60 seconds (metrics.top).",
            labels=["by", "name"],
        )
        for by, rows in processes["groups"].items():
            for row in rows[: self._top]:
                shares.add_metric([by, row["name"]], row["bytes"] / processes["sampled_bytes"])
        yield shares

    def _interfaces(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        """The counters of the busiest interfaces; none without metrics.top. Interfaces of one name in one network
        namespace, one after the other, are one series.
        """
        if not self._top:
            return
        sums: dict[tuple[str, str], list[int]] = {}
        for row in rows:
            one = sums.setdefault((row["name"], row["namespace"]), [0, 0, 0])
            for place, kind in enumerate(("packets", "bytes", "dropped")):
                one[place] += row[kind]
        busiest = sorted(sums.items(), key=lambda item: -item[1][0])[: self._top]
        described = ("Captured packets", "Bytes on the wire of captured packets", "Dropped packets")
        for place, (kind, text) in enumerate(zip(("packets", "bytes", "dropped"), described, strict=True)):
            counter = self._core.CounterMetricFamily(
                f"skbcapd_interface_{kind}",
                f"{text} of the busiest interfaces (metrics.top).",
                labels=["interface", "netns"],
            )
            for names, counts in busiest:
                counter.add_metric(names, counts[place])
            yield counter

    def _memory(self, memory: Mapping[str, Any] | None) -> Iterator[Any]:
        """The metrics of the ring buffer; without one, there are none."""
        if memory is None:
            return
        counter, gauge = self._core.CounterMetricFamily, self._core.GaugeMetricFamily
        yield gauge("skbcapd_ring_used_bytes", "Bytes of the ring buffer that are in use.", memory["used"])
        yield gauge("skbcapd_ring_size_bytes", "Size of the ring buffer (files.ring).", memory["size"])
        yield gauge(
            "skbcapd_ring_seconds", "Time from the oldest to the newest packet in the ring buffer.", memory["seconds"]
        )
        if memory["first_s"]:
            yield gauge(
                "skbcapd_ring_oldest_timestamp_seconds",
                "Time of the oldest packet in the ring buffer, in seconds since 1970 UTC.",
                memory["first_s"],
            )
        yield counter("skbcapd_ring_filled_bytes", "Bytes that were written to the ring buffer.", memory["filled"])
        discarded = counter(
            "skbcapd_ring_discarded_bytes",
            "Bytes that were discarded because of files.ring (size) or files.ring_time (time).",
            labels=["bound"],
        )
        for bound, size in memory["discarded"].items():
            discarded.add_metric([bound], size)
        yield discarded


class Textfile:
    """A file with the metrics for the textfile collector of node_exporter; always complete.

    Args:
        path: path of the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._seconds, self._next_s = 0, 0
        self._error = self._logged_error = ""
        self._has_written = False
        self._worker = Worker("textfile")

    def tick(self, text: Callable[[], bytes], seconds: int = 1) -> None:
        """Called after so many seconds: start to write if it is time and the last write is over. A thread
        writes, because disks can be slow.
        """
        if self._error != self._logged_error:
            self._logged_error = self._error
            if self._error:
                _LOG.warning("%s: %s; the metrics are not written to it", self._path, self._error)
        if self._seconds >= self._next_s and not self._worker.waiting and self._worker.start():
            self._next_s = self._seconds + EVERY_S
            written = text()
            self._worker.do(lambda: self._write(written))
        self._seconds += seconds

    def close(self) -> None:
        """Delete the file: otherwise node_exporter would continue to export the last values."""
        self._worker.do(self._delete)
        self._worker.wait(1.0)

    def _delete(self) -> None:
        with contextlib.suppress(OSError):
            if self._has_written:
                Path(self._path).unlink()

    def _write(self, text: bytes) -> None:
        part = f"{self._path}.part"  # node_exporter reads *.prom only
        try:
            _expect_regular(self._path)
            # Create a new file: an existing link or FIFO is not opened.
            with contextlib.suppress(FileNotFoundError):
                Path(part).unlink()
            how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(part, how, 0o644), "wb") as file:  # noqa: PTH123  so that flags and mode can be given
                os.fchmod(file.fileno(), 0o644)  # for the user of node_exporter, independently of the umask
                file.write(text)
            Path(part).replace(self._path)
        except OSError as error:
            self._error = error.strerror or "error"
        else:
            self._error = ""
            self._has_written = True


def _expect_regular(path: str) -> None:
    """Raise an error if there is a FIFO or a device. A symbolic link is replaced, not followed."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
        raise OSError(0, "not a regular file; expected one, or none")
