"""Makes tables, goals and a plot from the rounds of a benchmark."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bench.loads import Variant
from bench.measure import NO_CAPTURE, Figures
from bench.offline import Offline
from skbcapd.output.interface import FILE_S

Rows = Sequence[Figures]

# Colors of the tools, in the order of tables and bars.
_COLOURS = {
    "skbcapd": "#1b6ca8",
    "skbcapd run": "#7fb3d8",
    "tcpdump": "#8a8a8a",
    "dumpcap": "#c9a227",
    "ptcpdump": "#a83232",
}

_UNPACED, _STEADY = "UDP 64 B unpaced", "UDP 64 B, 20k/s"


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


# Titles of the figures without traffic, and the form of each.
_OF_FILES = (
    ("walk over the lengths of blocks in Python, MB per CPU second", "walk", "{:.0f}"),
    ("`top --json`, MB per CPU second", "top", "{:.0f}"),
    ("`extract --count`, MB per CPU second", "count", "{:.0f}"),
    ("`extract -w`, MB per CPU second", "extract", "{:.0f}"),
    ("start, program kept, s", "start_kept", "{:.2f}"),
    ("start, program not kept, s", "start_new", "{:.2f}"),
    ("1 GiB of a crashed file: longer start, s", "crashed", "{:.2f}"),
    ("best of 1, 2 and 4 direct writes at once, MB/s", "disk", "{:.0f}"),
)


def offline_table(offline: Sequence[Offline]) -> str:
    """The figures without traffic, as Markdown."""
    rows = []
    for title, name, form in _OF_FILES if offline else ():
        values = [getattr(one, name) for one in offline]
        spread = " to ".join(form.format(value) for value in (min(values), max(values)))
        rows.append([title, form.format(statistics.median(values)), spread])
    return _lines(["figure", "median", "min to max"], rows)


def dropped_beside(rows: Rows, offline: Sequence[Offline], load: str) -> int | None:
    """The most packets that skbcapd has dropped in the rounds in which the disk was faster than the sender; None
    without such a round.
    """
    ours = [row for row in rows if (row.tool, row.load) == ("skbcapd", load)]
    rounds = [row.dropped for row, one in zip(ours, offline, strict=False) if one.disk > rate(row) / 1e6]
    return max(rounds, default=None)


def goals(
    rows: Rows, programs: Rows, variants: Sequence[tuple[Variant, Figures]], offline: Sequence[Offline] = ()
) -> list[Goal]:
    """The goals for which this run has values.

    Args:
        rows: of `measure`.
        programs: rounds in which the kernel counted the time of BPF programs.
        variants: each with its rounds.
        offline: the rounds without traffic.
    """
    return [
        *_cpu_goals(rows),
        *_capture_goals(rows, programs, offline),
        *_offline_goals(offline),
        *_cost_goals(variants),
    ]


def _cpu_goals(rows: Rows) -> list[Goal]:
    """CPU time of the capture process, relative to tcpdump."""
    limits = {
        "1,000 processes/s": ("1,000 new processes/s", 3),
        "UDP 64 B, 1k/s": ("1,000 packets/s", 2),
        _STEADY: ("20,000 packets/s", 0.8),
        _UNPACED: (_UNPACED, 0.35),
        f"{_UNPACED}, two senders": (f"{_UNPACED}, two senders", 0.4),
        "UDP 1400 B unpaced": ("UDP 1400 B unpaced", 0.35),
        "TCP bulk, GSO": ("TCP bulk with GSO", 0.25),
    }
    return [
        Goal(
            f"CPU relative to tcpdump, {title}",
            limit,
            ratio(rows, cpu_per_packet, load=load, of="skbcapd", to="tcpdump"),
        )
        for load, (title, limit) in limits.items()
    ]


def _capture_goals(rows: Rows, programs: Rows, offline: Sequence[Offline]) -> list[Goal]:
    """Packets, sending rate, BPF programs, memory, size of the file."""
    us = "skbcapd"

    def ours(load: str, figure: Callable[[Figures], float]) -> float | None:
        return median(rows, figure, tool=us, load=load)

    datagrams = [row for row in rows if row.tool == us and row.sent and not row.sent_bytes]
    missing = [abs(row.sent - row.captured - row.dropped) for row in datagrams]
    return [
        Goal(
            "packets dropped, TCP bulk with GSO, where the disk is faster than the sender",
            0,
            dropped_beside(rows, offline, "TCP bulk, GSO"),
        ),
        Goal(
            "longest pause between writes, 20k packets/s, s",
            FILE_S + 0.1,
            ours(_STEADY, lambda row: row.longest_pause_s),
        ),
        Goal("CPU usage when idle, of one processor", 0.001, ours("idle", lambda row: row.cpu_s / row.sending_s)),
        Goal(
            "sending rate relative to no capture",
            0.93,
            ratio(rows, rate, load=_UNPACED, of=us, to=NO_CAPTURE),
            at_least=True,
        ),
        Goal("BPF time per 64 B packet, with the kernel's measurement, ns", 400, _bpf_ns(programs, 0)),
        Goal("BPF time per 64 B packet, without the measurement, ns", 300, _bpf_ns(programs, 1)),
        Goal("packets neither captured nor counted as dropped, UDP", 0, max(missing, default=None)),
        Goal("RSS without the buffer, MiB", 45, ours(_UNPACED, lambda row: row.private_bytes / (1 << 20))),
        Goal("file bytes per 64 B packet", 190, ours(_UNPACED, lambda row: per_packet(row.file_bytes, row))),
    ]


def _bpf_ns(programs: Rows, corrected: int) -> float | None:
    """Time of the BPF programs per packet; `corrected` is 1 without that of the measurement, else 0."""
    values = [
        per_packet(row.program_s - corrected * row.program_runs * row.counting_s, row, 1e-9)
        for row in programs
        if row.tool == "skbcapd"
    ]
    return statistics.median(values) if values else None


def _offline_goals(offline: Sequence[Offline]) -> list[Goal]:
    """Start, reading of captures, and what a crash has left."""

    def middle(name: str) -> float | None:
        return statistics.median(getattr(one, name) for one in offline) if offline else None

    return [
        Goal("time from start to capture, program kept, s", 0.3, middle("start_kept")),
        Goal("time from start to capture, program not kept, s", 1.0, middle("start_new")),
        Goal("longer start because of 1 GiB of a crashed file, s", 0.3, middle("crashed")),
        Goal("`top`, 64 B frames, MB per CPU second", 250, middle("top"), at_least=True),
        Goal("`extract --count`, 64 B frames, MB per CPU second", 350, middle("count"), at_least=True),
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
    beside = {
        name: [row.program_s / row.sent for row in here]
        for (kind, name), here in _rounds(variants).items()
        if kind == "container on this host"
    }
    masquerade = median_ratio(beside.get("one", []), beside.get("none", []))
    return [
        Goal("BPF time beside a container, relative to none", 1.03, masquerade),
        Goal("cost of 100 or 10,000 labels, relative to 1", 1.1, growth("labels")),
        Goal("cost of 50 or 500 interfaces, relative to 1", 1.2, growth("interfaces")),
        Goal("cost of 10 or 100 rules, relative to 1", 1.1, growth("rules")),
        Goal("cost of drops: count without drops, relative to none", 1.05, growth("drops, none dropped")),
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


def document(
    rows: Rows,
    programs: Rows,
    variants: Sequence[tuple[Variant, Figures]],
    offline: Sequence[Offline],
    where: str,
) -> str:
    """All tables as Markdown, each with the place that its figures are from."""
    tables = [
        ("Goals", goal_table(goals(rows, programs, variants, offline))),
        ("Cost per packet", packet_table(rows)),
        ("Sending rate, drops, memory and start", capture_table(rows)),
        ("Files, start and disk", offline_table(offline)),
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
