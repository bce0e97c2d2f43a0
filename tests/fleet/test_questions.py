"""Questions and extraction: the same packets as plain reading of all files gives, and as tshark sees them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skbcapd.fleet.compaction import compact
from skbcapd.fleet.intake import RAW
from skbcapd.fleet.storage import Storage
from tests.fleet.fleet import ROOT, make, run, ship
from tests.support import stored_files
from tests.support.deadline import DEADLINE_S, until
from tests.support.strangers import interface, options, packet, process, section, udp
from tools import fleet_rows
from tools.fleet_trial import judged
from tools.synthetic_fleet import NEEDLE, Seen

SELECTORS = {
    "peer": ["--peer", NEEDLE],
    "time": ["--peer", NEEDLE, "--from", "2026-11-27T09:43:00Z", "--to", "2026-11-27T09:47:00.5Z"],
    "network": ["--peer", "12.0.0.0/7", "--peer", "100.64.0.0/11"],
    "one of 256": ["--peer", "1.2.3.0/29"],
    "process": ["--process", "p*", "--peer", "1.0.0.0/8"],
    "expression": ["--comm", "/^(java|curl)$/", "--port", "443"],
    "user, unit": ["--user", "www-*", "--unit", "40.service"],
    "tgid, direction": ["--direction", "in", "--peer", NEEDLE],
    "ports": ["--port", "5000-7000", "--interface", "eth*", "--to", "2026-11-27T09:31:00Z"],
    "none": ["--peer", "8.8.8.8"],
    "six": ["--peer", "2001:db8::/32"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen]]:
    """A compacted fleet, and the truth."""
    made = tmp_path_factory.mktemp("fleet")
    truth = make(made)
    compact(Storage(str(made)))
    return made, truth


def test_the_needle(base: tuple[Path, list[Seen]], tmp_path: Path) -> None:
    """Who talked to an address, as the truth says: processes, numbers of packets, and the packets themselves."""
    place, truth = base
    lines = [json.loads(line) for line in run("query", place, "--peer", NEEDLE, "--format", "json").stdout.splitlines()]
    assert {(line["host_name"], line["process_name"], line["process_pid"]) for line in lines} == {
        (seen.host, seen.process, seen.tgid) for seen in truth
    }
    assert sum(line["packets_out"] + line["packets_in"] for line in lines) == len(truth) > 0
    out = tmp_path / "out.pcapng"
    said = run("extract", place, "--peer", NEEDLE, "-w", out).stderr
    assert judged(out) == [tuple(seen) for seen in truth]
    read, of = (int(word) for word in said.partition("ranges, ")[2].split()[:3:2])
    assert read <= 0.08 * of


def test_compressed_captures(tmp_path: Path) -> None:
    """Of captures in each kind of compression, the same packets are found; of those with files.seekable, only a part is
    read; a torn one is one line, and loses what is behind the tear only.
    """
    truth = make(tmp_path, 15, 4001, kinds=stored_files.KINDS)
    compact(Storage(str(tmp_path)))
    out = tmp_path / "out.pcapng"
    run("extract", tmp_path, "--peer", NEEDLE, "-w", out)
    assert judged(out) == [tuple(seen) for seen in truth]
    stored = {path.name: path for path in (tmp_path / "captures").rglob("skbcapd-*") if path.suffix == ".zst"}
    rows = [
        json.loads(line) for line in run("query", tmp_path, "--names", "rows", "--format", "json").stdout.splitlines()
    ]
    ends = {(row["file"], row["offset"], row["length"]) for row in rows if row["file"] in stored}
    assert any(offset and length for _, offset, length in ends)
    host = truth[-1].host  # its last file is the only one with the address
    torn = max((tmp_path / "captures" / f"host={host}").rglob("skbcapd-*"))
    torn.write_bytes(torn.read_bytes()[:200])
    said = run("extract", tmp_path, "--peer", NEEDLE, "-w", out, code=1).stderr
    assert said.count(str(torn)) == 1
    assert judged(out) == [tuple(seen) for seen in truth if seen.host != host]


@pytest.mark.parametrize("name", SELECTORS)
def test_the_same_packets_as_extract(name: str, base: tuple[Path, list[Seen]], tmp_path: Path) -> None:
    """`fleet extract` finds the packets that `extract` finds in all files."""
    place, _ = base
    fleet, plain = tmp_path / "fleet.pcapng", tmp_path / "plain.pcapng"
    run("extract", place, *SELECTORS[name], "-w", fleet)
    files = sorted((place / "captures").rglob("*.pcapng"))
    command = [sys.executable, "-m", "skbcapd", "extract", *map(str, files), "-w", str(plain), *SELECTORS[name]]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    wanted = [(time, process, tgid) for time, _, process, tgid in judged(plain)]
    assert [(time, process, tgid) for time, _, process, tgid in judged(fleet)] == wanted
    assert bool(wanted) == (name not in {"none", "six"})


def test_hosts(base: tuple[Path, list[Seen]]) -> None:
    """--host selects hosts."""
    place, _ = base
    lines = list(csv.DictReader(io.StringIO(run("query", place, "--host", "web-0000[3-5]", "--format", "csv").stdout)))
    assert {line["host_name"] for line in lines} == {"web-00003", "web-00004", "web-00005"}


@pytest.mark.parametrize("names", ["rows", "ecs", "ocsf", "zeek"])
def test_names_of_other_schemas(names: str, base: tuple[Path, list[Seen]]) -> None:
    """The rows with the names of another schema have the same sums."""
    place, truth = base
    lines = [
        json.loads(line)
        for line in run("query", place, "--peer", NEEDLE, "--names", names, "--format", "json").stdout.splitlines()
    ]
    counters = {
        "rows": ("packets_out", "packets_in"),
        "ecs": ("network.packets",),
        "ocsf": ("traffic.packets",),
        "zeek": ("orig_pkts", "resp_pkts"),
    }[names]
    assert sum(line[counter] for line in lines for counter in counters) == len(truth)


def test_a_missing_capture(base: tuple[Path, list[Seen]], tmp_path: Path) -> None:
    """A capture that is gone is one line; the packets of the others are written."""
    place, truth = base
    host = truth[0].host
    gone = [path for path in (place / "captures" / f"host={host}").rglob("*.pcapng") if path.name.endswith("2.pcapng")]
    moved = [path.rename(tmp_path / path.name) for path in gone]
    try:
        said = run("extract", place, "--peer", NEEDLE, "-w", tmp_path / "out.pcapng", code=1).stderr
    finally:
        for path, now in zip(gone, moved, strict=True):
            now.rename(path)
    assert said.count("packets are missing") == 1
    assert judged(tmp_path / "out.pcapng") == [tuple(seen) for seen in truth if seen.host != host]


@pytest.mark.parametrize("peer", ["192.0.2.1", "192.0.2.0/29"])
def test_packets_without_a_direction(peer: str, tmp_path: Path) -> None:
    """Without a direction, a peer is searched on both sides, and no row is counted twice."""
    ends = [("192.0.2.1", "10.0.0.2"), ("10.0.0.2", "192.0.2.1"), ("192.0.2.1", "192.0.2.2")]
    packets = [packet(udp(*each), process(7, "relay", 0)) * (number + 2) for number, each in enumerate(ends)]
    packets.append(packet(udp("192.0.2.1", "10.0.0.3"), process(7, "relay", 2)) * 11)
    path = tmp_path / "captures/host=a/date=2026-11-27/skbcapd-a-20261127T100000.000Z-000000.pcapng"
    path.parent.mkdir(parents=True)
    path.write_bytes(section() + interface(opts=options((9, b"\x09"))) + b"".join(packets))
    ship(tmp_path, path)
    compact(Storage(str(tmp_path)))
    said = run("query", tmp_path, "--peer", peer, "--names", "rows", "--format", "json").stdout
    found = [json.loads(line) for line in said.splitlines()]
    assert sorted(row["packets_unknown"] for row in found) == [2, 3, 4]


def test_no_table(tmp_path: Path) -> None:
    """Without a table, an answer is empty."""
    assert not run("query", tmp_path, "--peer", NEEDLE).stdout
    run("extract", tmp_path, "-w", tmp_path / "out.pcapng")
    assert judged(tmp_path / "out.pcapng") == []


def test_errors(base: tuple[Path, list[Seen]], tmp_path: Path) -> None:
    """What cannot be asked or reached is one line."""
    place, _ = base
    assert "--captures" in run("extract", place, "-w", tmp_path / "o", "--captures", "{x}", code=2).stderr
    assert "unrecognized arguments: --dropped" in run("query", place, "--dropped", "*", code=2).stderr
    assert "expected" in run("query", "nothing://x", code=1).stderr
    (tmp_path / "index/day/manifest").mkdir(parents=True)
    (tmp_path / "index/day/manifest/2026-11-27.json").write_text("{}")
    assert "manifest" in run("query", tmp_path, code=1).stderr


def test_a_table_of_many_rows(tmp_path: Path) -> None:
    """The table that tools/fleet_rows.py makes to measure questions has what they ask for, and only that."""
    storage = Storage(str(tmp_path))
    fleet_rows.make(storage, tmp_path, 240_000)
    some, none, more = (fleet_rows.ask(storage, words, times=1)[0] for words in fleet_rows.QUESTIONS)
    assert none == 0
    assert some < more


def test_a_name_that_no_host_writes(tmp_path: Path) -> None:
    """A name in other letters than an index has, of a host that is not trusted, does not stop a question."""
    make(tmp_path, 2)
    path = min((tmp_path / RAW).rglob("*.index.csv.gz"))
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(text.replace("www-data", "\N{EURO SIGN}").encode()))
    compact(Storage(str(tmp_path)))
    found = run("query", tmp_path, "--user", "*", "--format", "json").stdout
    assert {json.loads(line)["user_name"] for line in found.splitlines()} == {"www-data", "\N{EURO SIGN}"}


def test_an_interrupted_query(base: tuple[Path, list[Seen]]) -> None:
    """Ctrl-C while DuckDB runs a query ends the command as any other: one line, exit code 1."""
    program = (
        "import signal, sys\n"
        "from skbcapd.__main__ import main\n"
        "from skbcapd.fleet.questions import Questions\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "def answer(self, names):\n"
        "    print('asks', flush=True)\n"
        "    return self._engine.ask('SELECT hash(range) FROM range(1000000000000)', ())\n"
        "Questions.answer = answer\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "fleet", "query", str(base[0])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        assert asking.stdout
        assert asking.stdout.readline() == "asks\n"

        def busy() -> int:
            """Processor time of the query, in ticks."""
            return int(Path(f"/proc/{asking.pid}/stat").read_text().rpartition(")")[2].split()[11])

        before = busy()
        until(lambda: busy() > before + 20, "a query that runs")
        asking.send_signal(signal.SIGINT)
        said = asking.communicate(timeout=DEADLINE_S)
    assert (asking.returncode, *said) == (1, "", "skbcapd: interrupted\n")
