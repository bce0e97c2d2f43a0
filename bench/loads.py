"""What is sent, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from bench.wire import ADDRESS


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of traffic.

    Args:
        name: as the tables have it.
        senders: arguments of bench/send, for each process that sends.
        packets: that will be sent; 0 where the kernel decides (TCP), or none are.
        seconds: how long to look, for a load without senders.
        segmentation: whether the device takes large TCP frames.
        devices: how many more devices it needs.
    """

    name: str
    senders: tuple[tuple[str, ...], ...]
    packets: int = 0
    seconds: float = 0
    segmentation: bool = True
    devices: int = 0


def loads(scale: float) -> list[Load]:
    """All loads; `scale` 1 sends 1,000,000 small datagrams unpaced, and all else in proportion."""

    def udp(size: int, count: float, rate: int = 0) -> tuple[str, ...]:
        return "udp", ADDRESS, str(size), str(int(count * scale)), str(rate)

    def one(name: str, size: int, count: float, rate: int = 0) -> Load:
        return Load(name, (udp(size, count, rate),), int(count * scale))

    return [
        one("UDP 64 B unpaced", 64, 1_000_000),
        one("UDP 1400 B unpaced", 1400, 333_333),
        one("UDP 64 B, 1k/s", 64, 3_000, 1_000),
        one("UDP 64 B, 20k/s", 64, 60_000, 20_000),
        one("UDP 64 B, 100k/s", 64, 300_000, 100_000),
        Load("UDP 64 B unpaced, two senders", (udp(64, 500_000),) * 2, 2 * int(500_000 * scale)),
        Load("TCP bulk, GSO", (("tcp", ADDRESS, str(int(2_000 * scale))),)),
        Load("TCP bulk, no GSO", (("tcp", ADDRESS, str(int(400 * scale))),), segmentation=False),
        Load("1,000 processes/s", (("fork", ADDRESS, str(int(3_000 * scale)), "1000"),), int(3_000 * scale)),
        Load("idle", (), seconds=5 * scale),
    ]


def growth(scale: float) -> list[tuple[str, int, Load]]:
    """What should not cost more as it grows: (kind, how many, load)."""
    count = int(300_000 * scale)
    threads = [
        ("labels", number, Load(f"{number} labels", (("threads", ADDRESS, str(count), str(number)),), count))
        for number in (1, 100, 10_000)
    ]
    devices = [
        ("devices", number, Load(f"{number} devices", (("spread", str(count), str(number)),), count, devices=number))
        for number in (1, 50, 500)
    ]
    return [*threads, *devices]
