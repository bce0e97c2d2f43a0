"""Each recipe of docs/recipes.md that reads files, as it is there; tshark and capinfos see what it made."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.support.command import ROOT
from tests.support.judges import facts, rows
from tests.support.recipes import recipes, shape, task
from tests.support.strangers import comment, interface, options, packet, process, section

DIRECTORY = "/var/log/skbcapd"
IN, OUT = 1, 2
TOKEN = b"GET /?token=4711 HTTP/1.1\r\n\r\n"
NIGHT, LOOKUPS, WEB, COPIED, FORWARDED = 5, 3, 7, 2, 11


def file(frames: list[tuple[Packet, bytes, int]], begin: datetime) -> bytes:
    """A capture file; each frame has options and the number of its interface: eth0 or wg0."""
    names = [(1, b"eth0"), (101, b"wg0")]
    head = [interface(link_type=link, opts=options((2, name), (9, b"\x09"))) for link, name in names]
    begin_ns = int(begin.timestamp()) * 10**9
    blocks = [
        packet(bytes(frame), opts, number=number, time=begin_ns + at * 1_000_003)
        for at, (frame, opts, number) in enumerate(frames)
    ]
    return b"".join([section(), *head, *blocks])


def sent(payload: Packet) -> Packet:
    """An Ethernet frame."""
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / payload


def night_before(now: datetime) -> datetime:
    """Half an hour after the last 22:00, or less if that is not over."""
    evening = now.replace(hour=22, minute=0, second=0, microsecond=0)
    evening -= timedelta(days=evening > now)
    return evening + min(timedelta(minutes=30), (now - evening) / 2)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three rotated files: of last night, compressed; of the last hour; of the last minutes."""
    now = datetime.now(UTC)
    night = night_before(now)
    ours = IP(src="10.0.0.1", dst="10.9.9.9") / TCP(sport=40000, dport=443, flags="PA")
    curl = process(1058, "curl", OUT, " unit=backup.service")
    of_night = [(sent(ours / TOKEN), curl, 0)] * NIGHT
    more = " unit=nginx.service user=www-data cmdline=nginx"
    nginx = process(77, "nginx", IN, more)
    theirs = IP(src="203.0.113.7", dst="10.0.0.1") / TCP(sport=50000, dport=80, flags="PA") / Raw(TOKEN)
    dig = process(99, "isc-net-0000", OUT, " process=dig")
    query = IP(src="10.0.0.1", dst="10.0.0.53") / UDP(sport=5353, dport=53) / DNS(qd=DNSQR(qname="db.bank.example"))
    rsync = process(88, "rsync", OUT)
    large = IP(src="10.0.0.1", dst="192.0.2.1") / TCP(sport=40001, dport=873, flags="A") / Raw(bytes(4000))
    forwarded = comment(b"via=forwarded", (2, OUT.to_bytes(4, "little")))
    inner = IP(src="172.16.0.9", dst="198.51.100.3") / UDP(sport=9, dport=9) / Raw(b"inner")
    of_hour = [
        *[(sent(theirs), nginx, 0)] * WEB,
        *[(sent(query), dig, 0)] * LOOKUPS,
        *[(inner, forwarded, 1)] * FORWARDED,
        *[(sent(large), rsync, 0)] * COPIED,
    ]
    place = tmp_path / "captures"
    place.mkdir()
    for number, (begin, frames) in enumerate(((night, of_night), (now - timedelta(minutes=10), of_hour)), 1):
        name = f"skbcapd-host-{begin:%Y%m%dT%H%M%S}.000Z-{number:06}.pcapng"
        if number == 1:
            (place / f"{name}.gz").write_bytes(gzip.compress(file(frames, begin)))
        else:
            (place / name).write_bytes(file(frames, begin))
    return place


def count(path: Path, where: str = "") -> int:
    """Packets that match a display filter."""
    return len(rows(path, "frame.number", where=where))


def made(place: Path, name: str) -> Path:
    """The file that a recipe has written."""
    return place / name


def has_hour(place: Path, out: str) -> None:
    """The packets of the last hour, and, if it is not just after 22:00, none of last night."""
    now = datetime.now(UTC)
    is_night = now - night_before(now) < timedelta(minutes=70)
    says("rsync", "nginx", without="" if is_night else "curl")(place, out)


def has_night(place: Path, _out: str) -> None:
    """The packets of last night, and no others."""
    assert count(made(place, "night.pcapng")) == count(made(place, "night.pcapng"), "ip.dst == 10.9.9.9") == NIGHT


def is_for_a_colleague(place: Path, _out: str) -> None:
    """Neither payload nor names of users."""
    path = made(place, "unit.pcapng")
    assert count(path, 'frame.comment contains "unit=nginx.service"') == count(path) == WEB
    assert not re.search(b"token|cmdline|www-data", path.read_bytes())


def is_for_replay(place: Path, _out: str) -> None:
    """No frame is larger than the wire takes."""
    path = made(place, "replay.pcap")
    assert count(path) == NIGHT + WEB + LOOKUPS + COPIED * 3
    assert max(int(length) for [length] in rows(path, "frame.len")) <= 1514
    assert dict(facts(path))["File encapsulation"] == "ether"


def is_for_an_ids(place: Path, _out: str) -> None:
    """All packets are there."""
    assert count(made(place, "ids.pcapng")) == NIGHT + WEB + LOOKUPS + COPIED + FORWARDED


def has_files(folder: str, *counts: int) -> Callable[[Path, str], None]:
    """A folder has files with so many packets."""

    def check(place: Path, _out: str) -> None:
        assert sorted(count(path) for path in (place / folder).iterdir()) == sorted(counts)

    return check


def says(*patterns: str, without: str = "") -> Callable[[Path, str], None]:
    """The output has these lines, in this order."""

    def check(_place: Path, out: str) -> None:
        assert re.search("(?s)" + ".*".join(patterns), out), out
        assert not without or without not in out

    return check


def has_sheet(place: Path, _out: str) -> None:
    """A line for each process."""
    lines = made(place, "top.csv").read_text().splitlines()
    assert sum(name in line for line in lines for name in ("curl", "nginx", "dig", "rsync")) == 4


EXPECTED: dict[str, Callable[[Path, str], None]] = {
    "Which processes communicated with a host last night?": says(r"\bcurl +5\b", without="nginx"),
    "Write these packets to one file": has_night,
    "Who used the network most in the last hour?": has_hour,
    "Which hosts outside 10.0.0.0/8 have the most traffic, and with which processes?": says(
        r"192\.0\.2\.1\b.*rsync", r"203\.0\.113\.7\b.*nginx", without="10.9.9.9"
    ),
    "How many packets did nginx receive in the last hour?": says(rf"^{WEB}\n$"),
    "Which process looks up which names?": says(*[r"process=dig\S*\tdb\.bank\.example\n"] * LOOKUPS),
    "How many packets have no known process, and why?": says(rf"via=forwarded.*\b{FORWARDED}\b"),
    "The traffic of each process in a spreadsheet": has_sheet,
    "Packets of another machine, without copying its files": says(*[r"10\.9\.9\.9"] * NIGHT, without="203.0.113.7"),
    "A file for a colleague: one unit, without payload and command lines": is_for_a_colleague,
    "One file for each process": has_files("by-process", NIGHT, WEB, LOOKUPS, COPIED, FORWARDED),
    "One file for each interface, or for each link type": has_files(
        "by-link-type", NIGHT + WEB + LOOKUPS + COPIED, FORWARDED
    ),
    "A file for tcpreplay, with frames as on the wire": is_for_replay,
    "A file for Suricata or Zeek, which ignore packets with wrong checksums": is_for_an_ids,
}
ALL = recipes("Answers from capture files") | recipes("Files for others")


def test_all_recipes_are_tried() -> None:
    """The page has no recipe without a test, and the other way round."""
    assert ALL.keys() == EXPECTED.keys()


def play(commands: list[str], directory: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Run commands; they must succeed."""
    program = f"{shlex.quote(sys.executable)} -m skbcapd"
    script = "set -e -o pipefail\n" + "\n".join(
        re.sub(r"\bskbcapd (?=top|extract|split)", f"{program} ", line.removeprefix("ssh host ")) for line in commands
    )
    done = subprocess.run(
        ["bash", "-c", script.replace(DIRECTORY, shlex.quote(str(directory)))],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TZ": "UTC"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("title", ALL)
def test_a_recipe(title: str, directory: Path, tmp_path: Path) -> None:
    """It does what its title says."""
    EXPECTED[title](tmp_path, play(ALL[title], directory, tmp_path).stdout)


@pytest.mark.parametrize(
    "title", ["Who talks to 10.9.9.9:443 at night?", "A file for a colleague: one unit, no secrets"]
)
def test_a_task_with_its_output(title: str, directory: Path, tmp_path: Path) -> None:
    """The commands of docs/tasks.md print what is there."""
    commands, expected = task(title)
    done = [play([command], directory, tmp_path) for command in commands]
    said = "".join(one.stdout + one.stderr for one in done)
    said = re.sub(r"Running as user .*\n", "", said)  # tshark, as root
    assert shape(said) == shape(expected)
    is_for_a_colleague(tmp_path, "") if "unit" in title else has_night(tmp_path, "")
