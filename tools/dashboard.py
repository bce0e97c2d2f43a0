"""Writes the dashboard for Grafana to stdout: contrib/grafana/skbcapd.json.

In: the panels below. Out: JSON, made by the types of grafana-foundation-sdk, which nothing else needs:

    pip install 'grafana-foundation-sdk==1769699379!11.6.0'
    python -m tools.dashboard > contrib/grafana/skbcapd.json

The rule not to break: a query uses only metrics that docs/monitoring.md has; tests/package/test_contrib.py compares
them with those of the daemon, and promtool parses each query.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WHERE = '{instance=~"$instance"}'
_WIDTH, _HEIGHT = 12, 8  # of a panel, in units of Grafana: two in a row of 24


class Panel(NamedTuple):
    """One panel.

    Args:
        title: its title.
        description: what to do if it looks wrong.
        unit: as Grafana names it.
        queries: each with its legend.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[tuple[str, str]]


def _rate(metric: str, by: str = "") -> str:
    """Increase per second by host and daemon, and by a label."""
    return f"sum by (instance, capture{', ' + by if by else ''}) (rate({metric}{_WHERE}[$__rate_interval]))"


def _busiest(by: str) -> str:
    """Bytes per second of the busiest values of a field, by host."""
    share = f'skbcapd_busiest_ratio{{instance=~"$instance", by="{by}"}}'
    return f"{share} * on (instance, capture) group_left () {_rate('skbcapd_wire_bytes_total')}"


def _quantile(name: str) -> str:
    """The duration that 99 % of the work did not exceed, by host."""
    return f"histogram_quantile(0.99, {_rate(f'skbcapd_{name}_duration_seconds_bucket', 'le')})"


PANELS = (
    Panel(
        "Packets by outcome",
        "What became of the packets that reached the kernel program.",
        "pps",
        [(_rate("skbcapd_packets_total", "outcome"), "{{instance}} {{capture}} {{outcome}}")],
    ),
    Panel(
        "Dropped packets by cause",
        "Should be empty. full: increase buffer.size, or use a faster disk. output: the disk is full or defective.",
        "pps",
        [
            (_rate("skbcapd_packets_dropped_total", "cause"), "{{instance}} {{capture}} {{cause}}"),
            (_rate("skbcapd_packets_missed_total"), "{{instance}} {{capture}} missed"),
        ],
    ),
    Panel(
        "Packets that the kernel dropped, by reason",
        "Only with the setting drops. In docs/drops.md: what each reason means, and how to find the process.",
        "pps",
        [(_rate("skbcapd_network_drops_total", "reason"), "{{instance}} {{capture}} {{reason}}")],
    ),
    Panel(
        "Packets of the busiest interfaces",
        "Only with metrics.top.",
        "pps",
        [
            (
                _rate("skbcapd_interface_packets_total", "interface, netns"),
                "{{instance}} {{capture}} {{netns}} {{interface}}",
            )
        ],
    ),
    Panel(
        "Bytes of the busiest interfaces",
        "On the wire. Only with metrics.top.",
        "Bps",
        [
            (
                _rate("skbcapd_interface_bytes_total", "interface, netns"),
                "{{instance}} {{capture}} {{netns}} {{interface}}",
            )
        ],
    ),
    Panel(
        "Bytes on the wire",
        "Of captured packets, whatever snaplen and payload are.",
        "Bps",
        [(_rate("skbcapd_wire_bytes_total"), "{{instance}} {{capture}}")],
    ),
    *(
        Panel(
            f"Busiest {title}",
            "Bytes per second on the wire, estimated from samples. Only with metrics.top, and this field in comment.",
            "Bps",
            [
                (_busiest(by), "{{instance}} {{capture}} {{name}}"),
            ],
        )
        for by, title in (("unit", "units"), ("user", "users"))
    ),
    Panel(
        "Shared memory in use",
        "The most that waited in the last minute, as a part of buffer.size. Near 100 %, packets are dropped.",
        "percentunit",
        [(f"skbcapd_buffer_peak_bytes{_WHERE} / skbcapd_buffer_size_bytes{_WHERE}", "{{instance}} {{capture}}")],
    ),
    Panel(
        "Flight recorder: age of the oldest packet",
        "How far memory reaches (files.mode: ring).",
        "s",
        [(f"time() - skbcapd_ring_oldest_timestamp_seconds{_WHERE}", "{{instance}} {{capture}}")],
    ),
    Panel(
        "Flight recorder: memory in use",
        "As a part of files.ring.",
        "percentunit",
        [(f"skbcapd_ring_used_bytes{_WHERE} / skbcapd_ring_size_bytes{_WHERE}", "{{instance}} {{capture}}")],
    ),
    Panel(
        "Files deleted by retention",
        "Bytes per second (files.keep_size, keep_number, keep_age, keep_free).",
        "Bps",
        [(_rate("skbcapd_files_deleted_bytes_total"), "{{instance}} {{capture}}")],
    ),
    Panel(
        "Number of files, and files without a complete index",
        "The second one should stay 0: see the log.",
        "short",
        [
            (f"skbcapd_files{_WHERE}", "{{instance}} {{capture}}"),
            (f"skbcapd_index_errors_total{_WHERE}", "{{instance}} {{capture}} index errors"),
        ],
    ),
    Panel(
        "Size of the files",
        "Of all finished files. It stays at files.keep_size when that is reached.",
        "bytes",
        [(f"skbcapd_files_bytes{_WHERE}", "{{instance}} {{capture}}")],
    ),
    Panel(
        "Free space",
        "On the disk of the files. Below files.keep_free, older files are deleted, then packets are dropped.",
        "bytes",
        [(f"skbcapd_disk_free_bytes{_WHERE}", "{{instance}} {{capture}}")],
    ),
    Panel(
        "Rotation and fdatasync, 99th percentile",
        "Slow: the disk does not keep up, and packets wait in the shared memory.",
        "s",
        [
            (_quantile("rotation"), "{{instance}} {{capture}} rotation"),
            (_quantile("flush"), "{{instance}} {{capture}} fdatasync"),
        ],
    ),
    Panel(
        "Work in Python",
        "Packets that Python processed one by one, and new labels. Many: processes or connections change quickly.",
        "ops",
        [
            (_rate("skbcapd_upcalls_total"), "{{instance}} {{capture}} upcalls"),
            (_rate("skbcapd_labels_made_total"), "{{instance}} {{capture}} labels"),
        ],
    ),
    Panel(
        "Processes and interfaces",
        "Processes that were seen since the start, and interfaces.",
        "short",
        [
            (f"skbcapd_processes_seen_total{_WHERE}", "{{instance}} {{capture}} processes"),
            (f"skbcapd_interfaces{_WHERE}", "{{instance}} {{capture}} interfaces"),
        ],
    ),
    Panel(
        "Time since the start",
        "A saw: the service restarts again and again.",
        "s",
        [(f"time() - skbcapd_start_time_seconds{_WHERE}", "{{instance}} {{capture}}")],
    ),
)


def _built(panel: Panel) -> timeseries.Panel:
    built = timeseries.Panel().title(panel.title).description(panel.description).unit(panel.unit).min(0)
    for name, (expression, legend) in zip(string.ascii_uppercase, panel.queries, strict=False):
        built.with_target(prometheus.Dataquery().ref_id(name).expr(expression).legend_format(legend))
    return built.datasource(_SOURCE).span(_WIDTH).height(_HEIGHT)


def text() -> str:
    """The dashboard as JSON."""
    instances = dashboard.QueryVariable("instance").label("Host").datasource(_SOURCE)
    instances = instances.query("label_values(skbcapd_build_info, instance)")
    instances = instances.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(multi=True).include_all(include_all=True)
    made = (
        dashboard.Dashboard("skbcapd")
        .uid("skbcapd")
        .tags(["skbcapd"])
        .description("Packet captures with process names: packets, drops, memory, files.")
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(instances)
    )
    for panel in PANELS:
        made.with_panel(_built(panel))
    return f"{JSONEncoder(sort_keys=True, indent=2).encode(made.build())}\n"


if __name__ == "__main__":
    sys.stdout.write(text())
