"""Metrics, checked with the parser of Prometheus."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import skbcapd
from skbcapd.daemon.metrics import EVERY_S, Metrics, Textfile
from skbcapd.durations import Durations
from tests.support import faults
from tests.support.deadline import until
from tests.support.rig import Scene, stamped
from tests.support.writer import upcall

ROOT = Path(skbcapd.__file__).parent.parent


def samples(text: bytes) -> dict[str, float]:
    """Each sample by its name and labels."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_the_metrics_are_the_facts() -> None:
    """Prometheus reads the numbers of status, and each packet that was seen is in exactly one other
    number.
    """
    scene = Scene()
    scene.rig.drain(upcall(b"1"), *[stamped(1058)] * 22)
    scene.rig.program.count(1, filtered=7, duplicate=5, full=3, contended=2, start=11)
    scene.output.lost = 1
    scene.log_dropped = 7
    scene.look()
    found = samples(Metrics(scene.statistics.snapshot).text())
    assert found["skbcapd_packets_seen_total"] == 51
    assert {name: value for name, value in found.items() if name.startswith("skbcapd_packets_dropped_total")} == {
        "skbcapd_packets_dropped_total{cause=full}": 3,
        "skbcapd_packets_dropped_total{cause=contended}": 2,
        "skbcapd_packets_dropped_total{cause=start}": 11,
        "skbcapd_packets_dropped_total{cause=output}": 1,
    }
    assert found["skbcapd_packets_total{outcome=written}"] == 22
    parts = (
        "skbcapd_packets_total{",
        "skbcapd_packets_dropped_total{",
        "skbcapd_packets_pending",
        "skbcapd_packets_in_",
    )
    assert sum(value for name, value in found.items() if name.startswith(parts)) == 51
    assert found["skbcapd_packets_missed_total"] == 3
    assert found["skbcapd_upcalls_total"] == 1
    assert found["skbcapd_buffer_size_bytes"] == scene.rig.program.geometry.size
    assert found["skbcapd_buffer_peak_bytes"] == len(upcall(b"1")) + 22 * len(stamped(1058))
    assert found["skbcapd_log_lines_dropped_total"] == 7
    assert found[f"skbcapd_build_info{{version={skbcapd.__version__}}}"] == 1


def test_two_files_have_no_series_in_common() -> None:
    """Each series of a file has the label of the capture; all else is the same as without it."""
    facts = Scene().statistics.snapshot
    metrics = Metrics(facts)
    plain = samples(metrics.text())
    found = {name: samples(Metrics(facts, capture=name).text()) for name in ("eth0", "eth1")}
    assert not found["eth0"].keys() & found["eth1"].keys()
    for name, here in found.items():
        assert all(f"capture={name}" in series for series in here)
        assert list(here.values()) == list(plain.values())
    assert samples(metrics.text()) == plain


def test_the_page_names_every_metric() -> None:
    """docs/monitoring.md has all metrics, and no others."""
    text = Metrics(Scene().everything, top=1).text()
    found = {re.sub(r"(_seconds)_(bucket|count|sum)$", r"\1", name.partition("{")[0]) for name in samples(text)}
    assert set(re.findall(r"`(skbcapd_\w+)[`{]", (ROOT / "docs/monitoring.md").read_text())) == found


def test_no_name_of_a_process_is_a_label() -> None:
    """The text has as many lines after 1009 processes as before."""
    scene = Scene()
    metrics = Metrics(scene.statistics.snapshot)
    before = metrics.text().count(b"\n")
    scene.rig.drain(*(stamped(tgid) for tgid in range(1, 1010)))
    scene.look()
    assert metrics.text().count(b"\n") == before


def test_the_busiest_names_are_labels_on_request() -> None:
    """With metrics.top, the shares of so many names are there, also of a name that would end a label or a line."""
    scene = Scene()
    for tgid, comm, size in ((7, b"busy", 60), (8, b'a"} 1\nb', 30), (9, b"idle", 10)):
        scene.rig.drain(stamped(tgid, comm, size))
    scene.look()
    found = samples(Metrics(scene.statistics.snapshot, top=2).text())
    assert {name: value for name, value in found.items() if "busiest" in name} == {
        "skbcapd_busiest_ratio{by=process,name=busy}": 0.6,
        'skbcapd_busiest_ratio{by=process,name=a"} 1\\x0ab}': 0.3,
    }
    assert not any("busiest" in name for name in samples(Metrics(scene.statistics.snapshot).text()))


def test_the_busiest_interfaces_are_labels_on_request() -> None:
    """Interfaces of one name in one namespace are one series; only so many are there."""
    rows = [
        {"slot": 1, "name": "veth7", "namespace": "", "packets": 3, "bytes": 300, "dropped": 1},
        {"slot": 2, "name": "eth0", "namespace": "web", "packets": 5, "bytes": 900, "dropped": 0},
        {"slot": 3, "name": "veth7", "namespace": "", "packets": 4, "bytes": 400, "dropped": 2},
        {"slot": 4, "name": "lo", "namespace": "", "packets": 2, "bytes": 9, "dropped": 0},
    ]
    facts = dict(Scene().statistics.snapshot()) | {"by_interface": rows}
    found = samples(Metrics(lambda: facts, top=2).text())
    assert {name.removeprefix("skbcapd_"): value for name, value in found.items() if "skbcapd_interface_" in name} == {
        "interface_packets_total{interface=veth7,netns=}": 7,
        "interface_packets_total{interface=eth0,netns=web}": 5,
        "interface_bytes_total{interface=veth7,netns=}": 700,
        "interface_bytes_total{interface=eth0,netns=web}": 900,
        "interface_dropped_total{interface=veth7,netns=}": 3,
        "interface_dropped_total{interface=eth0,netns=web}": 0,
    }
    assert not any("skbcapd_interface_" in name for name in samples(Metrics(lambda: facts).text()))


def test_durations_are_histograms() -> None:
    """Each bound has the number of durations that do not exceed it, as Prometheus wants them."""
    scene = Scene()
    durations = Durations()
    for seconds in (0.001, 0.002, 0.2, 60.0):
        durations.add(seconds)
    scene.output.durations = {"rotation": durations, "flush": Durations()}
    found = samples(Metrics(scene.statistics.snapshot).text())
    name = "skbcapd_rotation_duration_seconds"
    bounds = ("0.001", "0.003", "0.1", "0.3", "10.0", "+Inf")
    assert [found[f"{name}_bucket{{le={bound}}}"] for bound in bounds] == [1, 2, 2, 3, 3, 4]
    assert (found[f"{name}_count"], found[f"{name}_sum"]) == (4, 60.203)
    assert found["skbcapd_flush_duration_seconds_count"] == 0


def test_without_the_library() -> None:
    """Metrics without prometheus_client give an error with a hint; without metrics it is not
    needed.
    """
    program = (
        "import sys; sys.modules['prometheus_client'] = None; sys.argv[0] = 'skbcapd'\n"
        "from skbcapd.__main__ import main; sys.exit(main())"
    )

    def check(*settings: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", program, "check", "--config", "etc/skbcapd.yaml", *settings]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    for setting in ("metrics.listen=[::1]:9479", "metrics.textfile=/x/skbcapd.prom"):
        done = check("--set", setting)
        assert done.returncode == 2
        assert "prometheus_client is not installed\n  (hint) apt install python3-prometheus-client" in done.stderr
    assert check().returncode == 0


def test_the_file_is_always_complete(tmp_path: Path) -> None:
    """The file is replaced atomically, readable for everybody; at the end it is deleted."""
    path = tmp_path / "skbcapd.prom"
    textfile = Textfile(str(path))
    textfile.tick(lambda: b"first\n")
    until(path.exists, "the file is there")
    with path.open("rb") as reader:
        for _ in range(EVERY_S - 1):
            textfile.tick(lambda: b"too early\n")
        until(lambda: not textfile._worker.waiting, "it is written")
        textfile.tick(lambda: b"second\n")
        until(lambda: path.read_bytes() == b"second\n", "it is written again")
        assert reader.read() == b"first\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]
    textfile.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["", ".part"])
@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_existing_files_are_not_followed(
    kind: str, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A FIFO is not waited for and not replaced; a symbolic link is not followed."""
    path, target = tmp_path / "skbcapd.prom", tmp_path / "target"
    target.write_text("theirs")
    there = tmp_path / f"skbcapd.prom{ending}"
    if kind == "fifo":
        os.mkfifo(there)
    else:
        there.symlink_to(target)
    textfile = Textfile(str(path))
    for _ in range(EVERY_S):
        textfile.tick(lambda: b"x\n")
        until(lambda: not textfile._worker.waiting, "it has tried")
    stays = kind == "fifo" and not ending
    if kind == "fifo":
        now = caplog.messages[0].partition(": ")[2] if caplog.messages else "replaced by a file"
        faults.compare("a FIFO as metrics.textfile, or its .part", 1, f"{ending or 'itself'}: {now}")
    said = [f"{path}: not a regular file; expected one, or none; the metrics are not written to it"]
    assert caplog.messages == (said if stays else [])
    assert path.is_fifo() == stays
    assert stays or (path.read_bytes() == b"x\n" and not path.is_symlink())
    assert target.read_text() == "theirs"
    textfile.close()
    assert path.exists() == stays


def test_a_file_that_cannot_be_written_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An error is logged once, and writing is tried again."""
    path = tmp_path / "there" / "skbcapd.prom"
    textfile = Textfile(str(path))
    for _ in range(3 * EVERY_S):
        textfile.tick(lambda: b"x\n")
        until(lambda: not textfile._worker.waiting, "it has tried")
    assert caplog.messages == [f"{path}: No such file or directory; the metrics are not written to it"]
    path.parent.mkdir()
    for _ in range(EVERY_S):
        textfile.tick(lambda: b"x\n")
    until(path.exists, "the file is there")
    textfile.close()
