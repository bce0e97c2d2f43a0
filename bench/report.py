"""Makes tables, goals and a plot from the rounds of a benchmark."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bench.loads import Variant
from bench.measure import NO_CAPTURE, Figures

Rows = Sequence[Figures]

# Colors of the tools, in the order of tables and bars.
_COLOURS = {"skbcapd": "#1b6ca8", "tcpdump": "#8a8a8a", "dumpcap": "#c9a227", "ptcpdump": "#a83232"}


def _values(rows: Rows, figure: Callable[[Figures], float], *, tool: str, load: str) -> list[float]:
    return [figure(row) for row in rows if (row.tool, row.load) == (tool, load)]


def median(rows: Rows, figure: Callable[[Figures], float], *, tool: str, load: str) -> float | None:
    """The median of a value over the rounds of one tool and load; None without rounds."""
    values = _values(rows, figure, tool=tool, load=load)
    return statistics.median(values) if values else None


def ratio(rows: Rows, figure: Callable[[Figures], float], *, load: str, of: str, to: str) -> float | None:
    """The median of the ratios of the rounds (in a round, tools run one after another); None if one is missing or 0."""
    return median_ratio(*(_values(rows, figure, tool=tool, load=load) for tool in (of, to)))


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The median of the ratios of two values of each round; None without rounds."""
    found = [one / other for one, other in zip(ours, theirs, strict=False) if other]
    return statistics.median(found) if found else None


def cpu_per_packet(row: Figures) -> float:
    """Microseconds of the capture process."""
    return row.cpu_s / row.packets * 1e6 if row.packets else 0.0


def rate(row: Figures) -> float:
    """The rate of the sender per second: bytes of payload for TCP, otherwise packets."""
    return (row.sent_bytes or row.sent) / row.sending_s


def per_packet(value: float, row: Figures, unit: float = 1.0) -> float:
    """A value of a round, per packet."""
    return value / row.packets / unit if row.packets else 0.0


def _rate_cell(rows: Rows) -> str:
    value = statistics.median(map(rate, rows))
    return f"{value / (1 << 20):,.0f} MiB/s" if rows[0].sent_bytes else f"{value:,.0f}/s"


def _range_cell(rows: Rows) -> str:
    values = [cpu_per_packet(row) for row in rows]
    return f"{min(values):.3f} to {max(values):.3f}"


def _middle(form: str, figure: Callable[[Figures], float]) -> Callable[[Rows], str]:
    return lambda rows: form.format(statistics.median(map(figure, rows)))


# Title of a column, and its cell for the rounds of one tool and load.
_OF_PACKETS: tuple[tuple[str, Callable[[Rows], str]], ...] = (
    ("captured/sent", _middle("{:.5f}", lambda row: row.captured / row.sent)),
    ("CPU us/packet", _middle("{:.3f}", cpu_per_packet)),
    ("min to max", _range_cell),
    ("user", _middle("{:.2f}", lambda row: per_packet(row.user_s, row, 1e-6))),
    ("system", _middle("{:.2f}", lambda row: per_packet(row.system_s, row, 1e-6))),
    ("machine us/packet", _middle("{:.2f}", lambda row: per_packet(row.machine_s, row, 1e-6))),
    ("file B/packet", _middle("{:.0f}", lambda row: per_packet(row.file_bytes, row))),
)
_OF_CAPTURES: tuple[tuple[str, Callable[[Rows], str]], ...] = (
    ("dropped, worst round", lambda rows: f"{max(row.dropped for row in rows):,}"),
    ("CPU, % of one processor", _middle("{:.2f}", lambda row: row.cpu_s / row.sending_s * 100)),
    ("RSS MiB", _middle("{:.0f}", lambda row: row.private_bytes / (1 << 20))),
    ("start s", _middle("{:.2f}", lambda row: row.start_s)),
)


def _lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        ["| " + " | ".join(titles) + " |", "|-" * len(titles) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    )


def _groups(rows: Rows) -> list[tuple[str, str, Rows]]:
    """Load, tool, rounds."""
    found: dict[tuple[str, str], list[Figures]] = {}
    for load in dict.fromkeys(row.load for row in rows):
        for tool in (*_COLOURS, NO_CAPTURE):
            found[load, tool] = [row for row in rows if (row.load, row.tool) == (load, tool)]
    return [(*key, here) for key, here in found.items() if here]


def packet_table(rows: Rows) -> str:
    """The cost of a packet for each load and tool, as Markdown: medians."""
    found = []
    for load, tool, here in _groups(rows):
        if tool == NO_CAPTURE or not here[0].sent:
            continue
        share = ratio(rows, cpu_per_packet, load=load, of=tool, to="tcpdump")
        cells = [cell(here) for _, cell in _OF_PACKETS]
        found.append([load, tool, *cells, "" if share is None else f"{share:.2f}"])
    return _lines(["load", "tool", *(title for title, _ in _OF_PACKETS), "CPU relative to tcpdump"], found)


def capture_table(rows: Rows) -> str:
    """The rate of the sender, and values that are not per packet, for each load and tool, as Markdown: medians."""
    found = []
    for load, tool, here in _groups(rows):
        cells = [""] * len(_OF_CAPTURES) if tool == NO_CAPTURE else [cell(here) for _, cell in _OF_CAPTURES]
        share = ratio(rows, rate, load=load, of=tool, to=NO_CAPTURE)
        found.append(
            [
                *(load, tool, _rate_cell(here) if here[0].sent else "", "" if share is None else f"{share:.2f}"),
                *cells,
            ]
        )
    return _lines(
        ["load", "tool", "sending rate", "relative to no capture", *(title for title, _ in _OF_CAPTURES)], found
    )


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal for a value: at most, or at least, `limit`."""

    name: str
    limit: float
    value: float | None
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        """None if nothing was measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Cost:
    """For a variant, per sent packet: medians of the BPF programs in ns, of the capture process and of both in us."""

    program_ns: float
    process_us: float
    both_us: float


def _both_us(row: Figures) -> float:
    return (row.cpu_s + row.program_s) / row.sent * 1e6


def _rounds(variants: Sequence[tuple[Variant, Figures]]) -> dict[tuple[str, str], list[Figures]]:
    found: dict[tuple[str, str], list[Figures]] = {}
    for variant, row in variants:
        found.setdefault((variant.kind, variant.name), []).append(row)
    return found


def costs(variants: Sequence[tuple[Variant, Figures]]) -> dict[tuple[str, str], Cost]:
    """The cost of each variant, by its kind and name, in the given order."""
    return {
        key: Cost(
            statistics.median(row.program_s / row.sent * 1e9 for row in rows),
            statistics.median(row.cpu_s / row.sent * 1e6 for row in rows),
            statistics.median(map(_both_us, rows)),
        )
        for key, rows in _rounds(variants).items()
    }


def variant_table(variants: Sequence[tuple[Variant, Figures]]) -> str:
    """The variants and their costs, as Markdown."""
    return _lines(
        ["variant", "value", "BPF ns/packet", "capture process us/packet", "total us/packet"],
        [
            [kind, name, f"{cost.program_ns:.0f}", f"{cost.process_us:.3f}", f"{cost.both_us:.3f}"]
            for (kind, name), cost in costs(variants).items()
        ],
    )


def goals(rows: Rows, programs: Rows, variants: Sequence[tuple[Variant, Figures]]) -> list[Goal]:
    """The goals for which this run has values.

    Args:
        rows: of `measure`.
        programs: rounds in which the kernel counted the time of BPF programs.
        variants: each with its rounds.
    """
    us, them = "skbcapd", "tcpdump"
    unpaced, large, steady = "UDP 64 B unpaced", "UDP 1400 B unpaced", "UDP 64 B, 20k/s"

    def cpu(load: str) -> float | None:
        return ratio(rows, cpu_per_packet, load=load, of=us, to=them)

    def ours(load: str, figure: Callable[[Figures], float]) -> float | None:
        return median(rows, figure, tool=us, load=load)

    def bpf_ns(corrected: int) -> float | None:
        def time(row: Figures) -> float:
            return per_packet(row.program_s - corrected * row.program_runs * row.counting_s, row, 1e-9)

        return median(programs, time, tool=us, load=unpaced)

    datagrams = [row for row in rows if row.tool == us and row.sent and not row.sent_bytes]
    missing = [abs(row.sent - row.captured - row.dropped) for row in datagrams]
    tcp_lost = [row.dropped for row in rows if row.tool == us and row.load == "TCP bulk, GSO"]
    return [
        Goal("CPU relative to tcpdump, 1,000 new processes/s", 3, cpu("1,000 processes/s")),
        Goal("CPU relative to tcpdump, 1,000 packets/s", 2, cpu("UDP 64 B, 1k/s")),
        Goal("CPU relative to tcpdump, 20,000 packets/s", 0.8, cpu(steady)),
        Goal("CPU relative to tcpdump, UDP 64 B unpaced", 0.35, cpu(unpaced)),
        Goal("CPU relative to tcpdump, UDP 64 B unpaced, two senders", 0.4, cpu(f"{unpaced}, two senders")),
        Goal("CPU relative to tcpdump, UDP 1400 B unpaced", 0.35, cpu(large)),
        Goal("CPU relative to tcpdump, TCP bulk with GSO", 0.25, cpu("TCP bulk, GSO")),
        Goal("packets dropped, TCP bulk with GSO", 0, max(tcp_lost, default=None)),
        Goal("longest pause between writes, 20k packets/s, s", 1.1, ours(steady, lambda row: row.longest_pause_s)),
        Goal("CPU usage when idle, of one processor", 0.001, ours("idle", lambda row: row.cpu_s / row.sending_s)),
        Goal(
            "sending rate relative to no capture",
            0.93,
            ratio(rows, rate, load=unpaced, of=us, to=NO_CAPTURE),
            at_least=True,
        ),
        Goal("BPF time per 64 B packet, with the kernel's measurement, ns", 400, bpf_ns(0)),
        Goal("BPF time per 64 B packet, without the measurement, ns", 300, bpf_ns(1)),
        Goal("packets neither captured nor counted as dropped, UDP", 0, max(missing, default=None)),
        Goal("RSS without the buffer, MiB", 45, ours(unpaced, lambda row: row.private_bytes / (1 << 20))),
        Goal("time from start to capture, program cached, s", 0.3, ours("idle", lambda row: row.start_s)),
        *_cost_goals(variants),
        Goal("file bytes per 64 B packet", 190, ours(unpaced, lambda row: per_packet(row.file_bytes, row))),
    ]


def _cost_goals(variants: Sequence[tuple[Variant, Figures]]) -> list[Goal]:
    """What more of something, or a filter, costs."""

    def cost(kind: str) -> dict[str, list[float]]:
        return {name: list(map(_both_us, here)) for (found, name), here in _rounds(variants).items() if found == kind}

    def growth(kind: str) -> float | None:
        first, *others = list(cost(kind).values()) or [[]]
        return max((found for one in others if (found := median_ratio(one, first)) is not None), default=None)

    filters = cost("filter")
    refused = median_ratio(filters.get("rejects all", []), filters.get("none", []))
    return [
        Goal("cost of 100 or 10,000 labels, relative to 1", 1.1, growth("labels")),
        Goal("cost of 50 or 500 interfaces, relative to 1", 1.2, growth("interfaces")),
        Goal("cost of 10 or 100 rules, relative to 1", 1.1, growth("rules")),
        Goal("cost of a rejected packet, relative to a copied one", 1.0, refused),
    ]


def goal_table(found: Sequence[Goal]) -> str:
    """Each goal with the measured value, as Markdown."""
    return _lines(
        ["figure", "goal", "measured", "met"],
        [
            [
                goal.name,
                f"{'at least' if goal.at_least else 'at most'} {goal.limit:g}",
                "" if goal.value is None else f"{goal.value:.4g}",
                {True: "yes", False: "no", None: "-"}[goal.is_met],
            ]
            for goal in found
        ],
    )


def document(rows: Rows, programs: Rows, variants: Sequence[tuple[Variant, Figures]], where: str) -> str:
    """All tables as Markdown, each with the place that its figures are from."""
    tables = [
        ("Goals", goal_table(goals(rows, programs, variants))),
        ("Cost per packet", packet_table(rows)),
        ("Sending rate, drops, memory and start", capture_table(rows)),
        ("Variants of skbcapd", variant_table(variants)),
    ]
    return "\n\n".join(f"**{title}** ({where})\n\n{text}" for title, text in tables if text.count("\n") > 1) + "\n"


_BEGIN, _END = "<!-- a run: begin -->\n", "<!-- a run: end -->\n"


def insert(page: str, tables: str) -> str:
    """Replace the tables between the two marks of a page by those of a run.

    Raises:
        ValueError: a mark is missing, or there is more than one.
    """
    if page.count(_BEGIN) != 1 or page.count(_END) != 1:
        raise ValueError(f"the page has not one {_BEGIN.strip()} and one {_END.strip()}")
    return f"{page.partition(_BEGIN)[0]}{_BEGIN}\n{tables}\n{_END}{page.partition(_END)[2]}"


def plot(rows: Rows, where: str) -> str:
    """CPU per packet of each load and tool, relative to tcpdump, as bars: an SVG, which needs no library."""
    bars = [
        (load, tool, share, statistics.median(map(cpu_per_packet, here)))
        for load, tool, here in _groups(rows)
        if tool in _COLOURS
        and here[0].sent
        and (share := ratio(rows, cpu_per_packet, load=load, of=tool, to="tcpdump")) is not None
    ]
    most = max((share for _, _, share, _ in bars), default=1.0) or 1.0
    title, *captions = ["CPU of the capture process per packet, relative to tcpdump", *textwrap.wrap(where, 130)]
    top = 26 + 14 * len(captions)
    height, last = top + 20 + 18 * len(bars), ""
    parts = [
        f'<text x="4" y="{32 + 14 * line}" font-size="10">{escape(text)}</text>' for line, text in enumerate(captions)
    ]
    for place, (load, tool, share, cpu_us) in enumerate(bars):
        y = top + 18 * place
        if load != last:
            parts.append(f'<text x="4" y="{y + 13}">{escape(load)}</text>')
        last = load
        width = 360 * share / most
        parts.append(f'<rect x="230" y="{y + 2}" width="{width:.1f}" height="14" fill="{_COLOURS[tool]}"/>')
        parts.append(f'<text x="{236 + width:.1f}" y="{y + 13}">{tool} {share:.2f} ({cpu_us:.2f} us)</text>')
    at = 230 + 360 / most
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="780" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="780" height="{height}" fill="white"/><text x="4" y="16">{title}</text>'
        f'{"".join(parts)}<path d="M{at:.1f} {top}V{height - 16}" stroke="black" stroke-dasharray="2 3"/></svg>\n'
    )
