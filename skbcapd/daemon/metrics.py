"""The facts of a running capture as Prometheus metrics: a page for its server, a file for node_exporter.

In: facts, as `sight` tells them. Out: text in Prometheus's format.

The rule: no metric has a label whose values are a stranger's to choose, such as a process's name: each value is a time
series for good. In a file each has the label `capture`: node_exporter reads the files of several daemons, and refuses
two equal series. prometheus_client is imported when it is asked for only, because only users of `metrics` need it.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and .../writing_exporters/.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from skbcapd.errors import UsageError

EVERY_S = 15  # between two writes of the file: Prometheus's usual interval


def need_library() -> None:
    """Refuse to go on without prometheus_client.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise UsageError(
            "metrics are on, and the Python module prometheus_client is not installed",
            "apt install python3-prometheus-client, or set metrics.listen and metrics.textfile to none",
        )


class Metrics:
    """Turns facts into text.

    Args:
        facts: gives them.
        capture: the value of the label of that name, which each metric gets; empty: none has it.

    Raises:
        UsageError: prometheus_client is not installed.
    """

    def __init__(self, facts: Callable[[], Mapping[str, Any]], capture: str = "") -> None:
        need_library()
        import prometheus_client  # noqa: PLC0415  see above
        from prometheus_client import core  # noqa: PLC0415

        self.content_type = prometheus_client.CONTENT_TYPE_LATEST
        self._facts = facts
        self._capture = capture
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
        facts = self._facts()
        counter, gauge = self._core.CounterMetricFamily, self._core.GaugeMetricFamily
        packets, lost = facts["packets"], facts["lost"]
        yield counter("skbcapd_packets_seen", "Packets that reached the kernel program.", packets["seen"])
        ended = counter(
            "skbcapd_packets", "Packets by what became of them; see also _lost and _pending.", labels=["outcome"]
        )
        for outcome in ("written", "filtered", "duplicates", "own"):
            ended.add_metric([outcome], packets[outcome])
        yield ended
        causes = counter("skbcapd_packets_lost", "Packets that were wanted and could not be had.", labels=["cause"])
        for cause, count in lost.items():
            causes.add_metric([cause], count)
        yield causes
        yield gauge("skbcapd_packets_pending", "Packets that are seen and not yet accounted for.", packets["pending"])
        yield gauge("skbcapd_packets_in_memory", "Packets kept, or forgotten, by mode: ring.", packets["in_memory"])
        yield counter("skbcapd_packets_missed", "Packets that the kernel did not show to the program.", facts["missed"])
        yield counter("skbcapd_processes_seen", "Processes that packets were given to.", facts["processes"]["count"])
        yield counter("skbcapd_labels_made", "Labels that were made.", facts["labels"])
        yield gauge("skbcapd_devices", "Devices that were met, also unwanted ones.", facts["devices"])
        deleted = facts["files"]
        yield counter("skbcapd_files_deleted", "Files deleted by retention.", deleted["deleted_files"])
        yield counter(
            "skbcapd_files_deleted_bytes", "Size of the files deleted by retention.", deleted["deleted_bytes"]
        )
        yield gauge("skbcapd_start_time_seconds", "When the capture began, since 1970 UTC.", facts["start_s"])
        version = gauge("skbcapd_build_info", "Always 1; the version is a label.", labels=["version"])
        version.add_metric([facts["version"]], 1)
        yield version


class Textfile:
    """A file with the metrics, for node_exporter's textfile collector: whole at any time.

    Args:
        path: of the file.
        say: takes one line for the log.
    """

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._ticks = 0
        self._error = self._told = ""
        self._thread: threading.Thread | None = None

    def tick(self, text: Callable[[], bytes]) -> None:
        """Once a second; begins to write if it is time and the last time is over. The disk may take long: a thread."""
        if self._error != self._told:
            self._told = self._error
            if self._error:
                self._say(f"{self._path}: {self._error}; metrics are not written there")
        if self._ticks % EVERY_S == 0 and not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._write, args=(text(),), daemon=True)
            self._thread.start()
        self._ticks += 1

    def close(self) -> None:
        """What no longer runs tells nothing: node_exporter would go on with the last values."""
        if self._thread:
            self._thread.join(1.0)
        with contextlib.suppress(OSError):
            Path(self._path).unlink()

    def _write(self, text: bytes) -> None:
        part = f"{self._path}.part"  # node_exporter reads *.prom only
        try:
            # A new file: whatever lies there, a link or a FIFO, is neither followed nor waited for.
            with contextlib.suppress(FileNotFoundError):
                Path(part).unlink()
            how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(part, how, 0o644), "wb") as file:  # noqa: PTH123  so that flags and mode can be given
                os.fchmod(file.fileno(), 0o644)  # for node_exporter's user, whatever the umask is
                file.write(text)
            Path(part).replace(self._path)
        except OSError as error:
            self._error = error.strerror or "error"
        else:
            self._error = ""
