"""Rounds become tables, goals and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bench.loads import Variant
from bench.measure import Figures

Rows = Sequence[Figures]


def median(rows: Rows, figure: Callable[[Figures], float], *, tool: str, load: str) -> float | None:
    """The median of a figure over the rounds of one tool and load; None where there was no round."""
    values = [figure(row) for row in rows if (row.tool, row.load) == (tool, load)]
    return statistics.median(values) if values else None


def ratio(rows: Rows, figure: Callable[[Figures], float], *, load: str, of: str, to: str) -> float | None:
    """Median to median; None where one is missing or 0."""
    ours, theirs = (median(rows, figure, tool=tool, load=load) for tool in (of, to))
    return ours / theirs if ours is not None and theirs else None


def cpu_per_packet(row: Figures) -> float:
    """Microseconds of the capture process."""
    return row.cpu_s / row.packets * 1e6 if row.packets else 0.0


def rate(row: Figures) -> float:
    """Packets sent per second."""
    return row.sent / row.sending_s if row.sending_s else 0.0


def per_packet(value: float, row: Figures, unit: float = 1.0) -> float:
    """A figure of a round, for one packet."""
    return value / row.packets / unit if row.packets else 0.0


_COLUMNS: tuple[tuple[str, str, Callable[[Figures], float]], ...] = (
    ("captured/sent", "{:.5f}", lambda row: row.captured / row.sent if row.sent else 1.0),
    ("CPU us/packet", "{:.3f}", cpu_per_packet),
    ("user", "{:.3f}", lambda row: per_packet(row.user_s, row, 1e-6)),
    ("system", "{:.3f}", lambda row: per_packet(row.system_s, row, 1e-6)),
    ("machine us/packet", "{:.3f}", lambda row: per_packet(row.machine_s, row, 1e-6)),
    ("packets/s sent", "{:,.0f}", rate),
    ("file B/packet", "{:.0f}", lambda row: per_packet(row.file_bytes, row)),
    ("RSS MiB", "{:.0f}", lambda row: row.private_bytes / (1 << 20)),
    ("start s", "{:.2f}", lambda row: row.start_s),
)


def table(rows: Rows) -> str:
    """Medians of every load and tool, as Markdown; `of tcpdump's` is the ratio of CPU per packet."""
    names = ["load", "tool", "dropped", *(name for name, _, _ in _COLUMNS), "of tcpdump's CPU"]
    lines = ["| " + " | ".join(names) + " |", "|-" * len(names) + "|"]
    for load in dict.fromkeys(row.load for row in rows):
        for tool in dict.fromkeys(row.tool for row in rows if row.load == load):
            here = [row for row in rows if (row.load, row.tool) == (load, tool)]
            cells = [load, tool, str(max(row.dropped for row in here))]
            is_none = tool == "no capture"
            for name, form, figure in _COLUMNS:
                value = statistics.median(map(figure, here))
                cells.append("" if is_none and name != "packets/s sent" else form.format(value))
            share = ratio(rows, cpu_per_packet, load=load, of=tool, to="tcpdump")
            cells.append(f"{share:.2f}" if share is not None and not is_none else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be: at most, or at least, `limit`."""

    name: str
    limit: float
    value: float | None
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        """None where nothing was measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def variant_medians(variants: Sequence[tuple[Variant, Figures]]) -> list[tuple[str, str, float, float]]:
    """Kind, name, and per packet sent the medians: program and capture process together in us, the program in ns."""
    found: dict[tuple[str, str], list[Figures]] = {}
    for variant, row in variants:
        found.setdefault((variant.kind, variant.name), []).append(row)
    return [
        (
            *key,
            statistics.median((row.cpu_s + row.program_s) / row.sent * 1e6 for row in rows),
            statistics.median(row.program_s / row.sent * 1e9 for row in rows),
        )
        for key, rows in found.items()
    ]


def variant_table(variants: Sequence[tuple[Variant, Figures]]) -> str:
    """What changes about a capture and what that costs, as Markdown."""
    lines = ["| what | how | BPF ns/packet | BPF and capture process us/packet |", "|-|-|-|-|"]
    for kind, name, both_us, program_ns in variant_medians(variants):
        lines.append(f"| {kind} | {name} | {program_ns:.0f} | {both_us:.3f} |")
    return "\n".join(lines)


def goals(rows: Rows, programs: Rows, variants: Sequence[tuple[Variant, Figures]]) -> list[Goal]:
    """The goals that figures of this run can tell.

    Args:
        rows: of `measure`.
        programs: rounds in which the kernel counted the time of BPF programs.
        variants: each with its rounds.
    """
    us, them = "skbcapd", "tcpdump"

    def cpu(load: str) -> float | None:
        return ratio(rows, cpu_per_packet, load=load, of=us, to=them)

    def ours(load: str, figure: Callable[[Figures], float]) -> float | None:
        return median(rows, figure, tool=us, load=load)

    def cost(kind: str) -> dict[str, float]:
        return {name: value for found, name, value, _ in variant_medians(variants) if found == kind}

    def spread(kind: str) -> float | None:
        values = list(cost(kind).values())
        return values[-1] / values[0] if len(values) > 1 and values[0] else None

    filters = cost("filter")
    refused = filters["refuses all"] / filters["none"] if filters.get("none") else None
    unpaced, large, steady = "UDP 64 B unpaced", "UDP 1400 B unpaced", "UDP 64 B, 20k/s"
    lost = [row.sent - row.captured - row.dropped for row in rows if row.tool == us and row.load.startswith("UDP")]
    tcp_lost = [row.dropped for row in rows if row.tool == us and row.load == "TCP bulk, GSO"]
    return [
        Goal("CPU of tcpdump's, UDP 64 B unpaced", 0.8, cpu(unpaced)),
        Goal("CPU of tcpdump's, UDP 1400 B unpaced", 0.5, cpu(large)),
        Goal("CPU of tcpdump's, TCP bulk with GSO", 1.0, cpu("TCP bulk, GSO")),
        Goal("packets lost, TCP bulk with GSO", 0, max(tcp_lost, default=None)),
        Goal("CPU of tcpdump's, 20k packets/s", 1.5, cpu(steady)),
        Goal(
            "longest time without a growing file, 20k packets/s, s", 0.1, ours(steady, lambda row: row.longest_pause_s)
        ),
        Goal("share of a processor, idle", 0.001, ours("idle", lambda row: row.cpu_s / row.sending_s)),
        Goal(
            "sender's rate of that under tcpdump", 1.0, ratio(rows, rate, load=unpaced, of=us, to=them), at_least=True
        ),
        Goal(
            "BPF programs per 64 B packet, ns",
            400,
            median(programs, lambda row: per_packet(row.program_s, row, 1e-9), tool=us, load=unpaced),
        ),
        Goal("UDP packets neither captured nor counted as lost", 0, max(lost, default=None)),
        Goal("RSS beyond the buffer, MiB", 100, ours(unpaced, lambda row: row.private_bytes / (1 << 20))),
        Goal("start to capturing, s", 1.0, ours("idle", lambda row: row.start_s)),
        Goal("cost of 10,000 labels, of 1", 1.1, spread("labels")),
        Goal("cost of 500 devices, of 1", 1.1, spread("devices")),
        Goal("cost of 100 rules, of 1", 1.1, spread("rules")),
        Goal("cost of a packet that the filter refuses, of one that is copied", 1.0, refused),
        Goal("file bytes per 64 B packet", 190, ours(unpaced, lambda row: per_packet(row.file_bytes, row))),
    ]


def goal_table(found: Sequence[Goal]) -> str:
    """Goals beside figures, as Markdown."""
    lines = ["| figure | goal | measured | met |", "|-|-|-|-|"]
    for goal in found:
        bound = f"{'at least' if goal.at_least else 'at most'} {goal.limit:g}"
        value = "" if goal.value is None else f"{goal.value:.4g}"
        lines.append(f"| {goal.name} | {bound} | {value} | {({True: 'yes', False: 'no', None: '-'})[goal.is_met]} |")
    return "\n".join(lines)


def plot(rows: Rows, caption: str) -> str:
    """CPU per packet of each tool and load as horizontal bars: an SVG, which needs no library."""
    colours = {"skbcapd": "#1b6ca8", "tcpdump": "#8a8a8a", "dumpcap": "#c9a227", "ptcpdump": "#a83232"}
    bars: list[tuple[str, str, float]] = []
    for load in dict.fromkeys(row.load for row in rows if row.load != "idle"):
        for tool in colours:
            value = median(rows, cpu_per_packet, tool=tool, load=load)
            if value is not None:
                bars.append((load, tool, value))
    most = max((value for _, _, value in bars), default=1.0) or 1.0
    height, parts, last = 30 + 18 * len(bars), [], ""
    for place, (load, tool, value) in enumerate(bars):
        y = 30 + 18 * place
        if load != last:
            parts.append(f'<text x="4" y="{y + 12}">{escape(load)}</text>')
        last = load
        width = 360 * value / most
        parts.append(f'<rect x="230" y="{y + 2}" width="{width:.1f}" height="14" fill="{colours[tool]}"/>')
        parts.append(f'<text x="{236 + width:.1f}" y="{y + 13}">{tool} {value:.2f}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" '
        f'font-size="12"><text x="4" y="16">CPU of the capture process, us per packet. {escape(caption)}</text>'
        f"{''.join(parts)}</svg>\n"
    )
