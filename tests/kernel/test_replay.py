"""tcpreplay sends what `skbcapd extract` made for it: an AF_PACKET socket at the other end gets the same frames."""

from __future__ import annotations

import subprocess
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import rdpcap

from tests.kernel.namespace import Wire
from tests.kernel.reference import Reference
from tests.support import traffic
from tests.support.command import run
from tests.support.deadline import DEADLINE_S
from tests.support.strangers import packet, process, section

SMALL, LARGE = 23, 7


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A file with small frames, and with TCP and UDP frames that a network card would have cut."""
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    networks = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
    frames = [
        *[ether / network / UDP(sport=7, dport=8) / Raw(b"small") for network in networks] * SMALL,
        *[ether / network / TCP(sport=7, dport=8, flags="A") / Raw(bytes(9001)) for network in networks] * LARGE,
        ether / networks[0] / UDP(sport=7, dport=8) / Raw(bytes(4001)),
    ]
    opts = process(1058, "curl")
    blocks = [packet(bytes(frame), opts, time=traffic.BEGIN_NS + at) for at, frame in enumerate(frames)]
    path = tmp_path / "a.pcapng"
    path.write_bytes(section() + traffic.described("eth0", "network namespace of init") + b"".join(blocks))
    return path


def replay(wire: Wire, path: Path) -> str:
    """What tcpreplay says after it has sent a file at the near end."""
    command = ["tcpreplay", "--topspeed", "--intf1", wire.near.device, str(path)]
    done = wire.near.namespace.do(
        subprocess.run, command, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    return str(done.stdout + done.stderr)


def test_tcpreplay_sends_all_frames(wire: Wire, capture: Path, tmp_path: Path) -> None:
    """Each frame of the file arrives as it is in the file; none is larger than the wire takes."""
    out = tmp_path / "replay.pcap"
    words = ["--format", "pcap", "--segment", "1500", "--fill-checksums", "--sort"]
    assert run("extract", capture, "-w", out, *words)[0] == 0
    wanted = Counter(bytes(frame) for frame in rdpcap(str(out)))
    assert wanted.total() == 2 * SMALL + 2 * LARGE * 7 + 3
    with closing(Reference(wire.far.namespace, wire.far.device)) as reference:
        said = replay(wire, out)
        got: Counter[bytes] = Counter()
        reference.wait_for(lambda frame: got.update([frame.data]) is None and frame.data in wanted, wanted.total())
    assert got & wanted == wanted
    assert f"Successful packets:        {wanted.total()}\n" in said, said
    assert "Failed packets:            0\n" in said, said


def test_without_segment_tcpreplay_fails(wire: Wire, capture: Path, tmp_path: Path) -> None:
    """Larger frames cannot be sent, which tcpreplay says: the judge above can see a wrong file."""
    out = tmp_path / "large.pcap"
    assert run("extract", capture, "-w", out, "--format", "pcap")[0] == 0
    said = replay(wire, out)
    assert "Message too long" in said, said
