"""The loads: what is sent, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.wire import ADDRESS
from skbcapd.output.interface import FILE_S

_PARTS = 5  # of the load of a variant
_WITHOUT_GOAL = {"drops, all dropped", "attribution"}  # kinds of variants
PACED_S = int(3 * FILE_S)  # a file gets packets every FILE_S
HEADERS = 14 + 20 + 8  # sizes are those of frames, as in RFC 2544, but without the frame check sequence


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of traffic.

    Args:
        name: as in the tables.
        senders: arguments of bench/send, for each process that sends.
        packets: number to send; 0 if the kernel decides (TCP), or if nothing is sent.
        parts: equal parts in which they are sent, one after another.
        sent_bytes: payload; TCP only.
        seconds: how long to look, for a load without senders.
        segmentation: whether the device takes large TCP frames.
        devices: how many more devices it needs.
        is_beside_container: whether the sender's namespace is that of a host with a container.
        has_goal: whether a goal is about it: `--quick` sends no other.
        has_daemon: whether the daemon is measured, too.
    """

    name: str
    senders: tuple[tuple[str, ...], ...]
    packets: int = 0
    parts: int = 1
    sent_bytes: int = 0
    seconds: float = 0
    segmentation: bool = True
    devices: int = 0
    is_beside_container: bool = False
    has_goal: bool = False
    has_daemon: bool = False


def loads(scale: float) -> list[Load]:
    """All loads. With `scale` 1, 1,000,000 small datagrams are sent unpaced, and the other loads in proportion.

    A paced load with a goal lasts at least PACED_S, also with a smaller scale.
    """

    def udp(size: int, count: int, rate: int = 0) -> tuple[str, ...]:
        return "udp", ADDRESS, str(size - HEADERS), str(count), str(rate)

    def one(name: str, size: int, count: int, rate: int = 0, *, has_goal: bool = False) -> Load:
        sent = int(count * (max(scale, 1) if rate and has_goal else scale))
        return Load(name, (udp(size, sent, rate),), sent, has_goal=has_goal, has_daemon=rate == 1_000)

    def tcp(name: str, mebibytes: float, *, segmentation: bool) -> Load:
        count = max(1, int(mebibytes * scale))
        return Load(
            name,
            (("tcp", ADDRESS, str(count)),),
            sent_bytes=count << 20,
            segmentation=segmentation,
            has_goal=segmentation,
        )

    both, processes = int(500_000 * scale), int(PACED_S * 1_000 * max(scale, 1))
    return [
        one("UDP 64 B unpaced", 64, 1_000_000, has_goal=True),
        one("UDP 1400 B unpaced", 1400, 333_333, has_goal=True),
        one("UDP 64 B, 1k/s", 64, PACED_S * 1_000, 1_000, has_goal=True),
        one("UDP 64 B, 20k/s", 64, PACED_S * 20_000, 20_000, has_goal=True),
        one("UDP 64 B, 100k/s", 64, 300_000, 100_000),
        Load("UDP 64 B unpaced, two senders", (udp(64, both),) * 2, 2 * both, has_goal=True),
        tcp("TCP bulk, GSO", 2_000, segmentation=True),
        tcp("TCP bulk, no GSO", 100, segmentation=False),
        Load(
            "1,000 processes/s", (("fork", ADDRESS, str(processes), "1000"),), processes, has_goal=True, has_daemon=True
        ),
        Load("idle", (), seconds=PACED_S, has_goal=True, has_daemon=True),
    ]


@dataclass(frozen=True, slots=True)
class Variant:
    """One change of a capture, to measure its cost; skbcapd only.

    Args:
        kind: what changes.
        name: value of the change.
        load: what is sent.
        arguments: additional ones for `skbcapd capture`.
        module: what is run as `skbcapd`.
    """

    kind: str
    name: str
    load: Load
    arguments: tuple[str, ...] = ()
    module: str = "skbcapd"

    @property
    def has_goal(self) -> bool:
        """Whether a goal is about it."""
        return self.kind not in _WITHOUT_GOAL and not self.name.endswith("matches all")


def variants(scale: float) -> list[Variant]:
    """Variants whose cost should not grow with their number, and others whose cost is of interest.

    Each sender has sent packets before, so no measurement includes first packets, which have no label.
    """
    count = int(300_000 * scale)
    sent = _PARTS * count

    def plain(kind: str, name: str, threads: int = 1) -> Load:
        return Load(f"{kind}: {name}", (("threads", ADDRESS, str(count), str(threads)),), sent, _PARTS)

    def unread(name: str) -> Load:
        return plain("all dropped", name)  # nobody reads these datagrams: when the buffer is full, all are dropped

    def read(name: str) -> Load:
        mebibytes = max(1, int(100 * scale))
        sender = ("tcp", ADDRESS, str(mebibytes))
        return Load(f"none dropped: {name}", (sender,), sent_bytes=mebibytes << 20, segmentation=False)

    def rules(number: int) -> tuple[str, ...]:
        return "--set", f"rules=[{', '.join(f'{{comm: nobody{rule}}}' for rule in range(number))}]"

    many = " or ".join(f"udp port {port}" for port in (*range(1001, 1020), 9))
    filters = {"none": "", "simple, matches all": "udp", "20 terms, matches all": many, "rejects all": "not udp port 9"}
    return [
        *(Variant("labels", f"{number:,}", plain("labels", str(number), number)) for number in (1, 100, 10_000)),
        *(
            Variant(
                "interfaces",
                f"{number:,}",
                Load(f"{number} devices", (("spread", str(count), str(number)),), sent, _PARTS, devices=number),
            )
            for number in (1, 50, 500)
        ),
        *(
            Variant(
                "container on this host", name, replace(plain("container", name), is_beside_container=name == "one")
            )
            for name in ("none", "one")
        ),
        *(Variant("rules", f"{number:,}", plain("rules", str(number)), rules(number)) for number in (1, 10, 100)),
        *(Variant("drops, none dropped", name, read(name), ("--drops", name)) for name in ("none", "count")),
        *(Variant("drops, all dropped", name, unread(name), ("--drops", name)) for name in ("none", "count")),
        *(Variant("filter", name, plain("filter", name), (text,) if text else ()) for name, text in filters.items()),
        Variant("attribution", "with", plain("attribution", "with")),
        Variant("attribution", "without", plain("attribution", "without"), module="bench.anonymous"),
    ]
