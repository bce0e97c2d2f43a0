"""Every kind of device and sk_buff against an AF_PACKET socket: one capture at the queue, one at
the driver.

A third one keeps only headers. All captures watch every interface of all the scenes' namespaces, and
one playing of the scenes serves them.
"""

from __future__ import annotations

import platform
import socket
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pytest
from _pytest.mark import ParameterSet

from tests.kernel import table
from tests.kernel.capture import Capture, Ended, read
from tests.kernel.comparison import CAN_HIDE, TRIES, difference
from tests.kernel.namespace import Namespace
from tests.kernel.reference import Frame
from tests.kernel.scene import COUNT, UNKNOWN, ObservationPoint, Stage, is_group_report
from tests.kernel.scenes import SCENES, Scene
from tests.kernel.send.identity import MAGIC, WHO
from tests.support.blocks import Packet
from tests.support.headers import header_end

CAPTURE_MAX = 262_144
MODES = {
    "queue": {"transmit": "queue"},
    "driver": {"transmit": "driver", "directions": "out", "attach": "auto"},  # has no kprobe
}
HEADERS = "headers"
CAPTURES = MODES | {HEADERS: {"payload": "none"}}
# PACKET_HOST and so on, and the reception types of epb_flags.
RECEPTION = {0: 1, 1: 3, 2: 2, 3: 4}
LONGEST_ON_A_WIRE = 9022  # a jumbo frame with two tags
CHECKSUM_NOT_READY, SEGMENTATION_OFFLOADED = 1 << 9, 1 << 11


@dataclass
class Played:
    """All scenes, seen by AF_PACKET sockets and by all captures of one or more runs."""

    points: list[ObservationPoint] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    packets: dict[str, list[Packet]] = field(default_factory=lambda: {mode: [] for mode in CAPTURES})
    ended: dict[str, list[Ended]] = field(default_factory=lambda: {mode: [] for mode in CAPTURES})

    def replace(self, scenes: list[Scene], later: Played) -> None:
        """Scenes have been played once more."""
        names = {scene.name for scene in scenes}
        self.points = [point for point in self.points if point.scene not in names] + later.points
        self.failures |= later.failures
        for mode in CAPTURES:
            self.packets[mode] += later.packets[mode]
            self.ended[mode] += later.ended[mode]

    def has_unseen(self, scene: Scene) -> bool:
        """Whether no BPF program can have seen a frame of the scene: a capture does not have it and has counted missed
        packets, or, if the kernel can hide a process (see Comparison.unseen), all captures lack the same frames.
        """
        lacking: dict[tuple[str, str], list[Counter[int]]] = {}
        for mode, ended in self.ended.items():
            if not (scene.at_queue or mode == "driver"):
                continue
            for name, _, theirs, ours in self.pairs(scene, mode):
                lacks = Counter(len(frame.data) for frame in theirs) - Counter(one.original_len for one in ours)
                if lacks and any(one.missed for one in ended):
                    return True
                point, direction, _ = name.rsplit(", ", 2)
                lacking.setdefault((point, direction), []).append(lacks)
        return CAN_HIDE and any(first and all(one == first for one in rest) for first, *rest in lacking.values())

    def pairs(self, scene: Scene, mode: str) -> Iterator[tuple[str, int, list[Frame], list[Packet]]]:
        """How many frames were expected, what the socket saw and what we wrote: by device and
        direction.
        """
        for point in self.points:
            for direction, expected in (("out", point.out), ("in", point.into)):
                if point.scene != scene.name or expected is None or (mode == "driver" and direction == "in"):
                    continue
                theirs = point.frames(outgoing=direction == "out")
                ours = [
                    packet
                    for packet in self.packets[mode]
                    if packet.direction == direction
                    and packet.interface == point.device
                    and packet.description == f"network namespace {point.namespace.name}"
                    and not is_group_report(packet.data)
                ]
                yield f"{point.name}, {direction}, {mode}", expected, theirs, ours


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Play the scenes that the tests of this run ask for, under all captures; once more those of which no BPF program
    has seen a frame: Linux 7.2 can preempt a bpf(2) call, and then kprobes miss all packets of another task.
    """
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    asked = [call.params.get("scene") for call in calls if call]
    chosen = unseen = [scene for scene in SCENES if scene in asked]
    result = Played()
    for _ in range(TRIES):
        result.replace(unseen, _play(unseen, tmp_path_factory))
        unseen = [scene for scene in chosen if result.has_unseen(scene)]
        if not unseen:
            break
        print(f"frames that the reference saw, but no BPF program: {', '.join(one.name for one in unseen)} again")
    for scene in chosen:
        if scene.name not in result.failures:
            for mode in MODES:
                _add_rows(result, scene, mode)
    return result


def _play(scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Play scenes under all captures."""
    files = {mode: tmp_path_factory.mktemp("scenes") / f"{mode}.pcapng" for mode in CAPTURES}
    result = Played()
    with ExitStack() as stack, ExitStack() as captures:
        namespace = Namespace()
        captures.callback(namespace.close)
        stages = [(scene, Stage(scene.name, stack)) for scene in scenes]
        theirs = ",".join(one.name for _, stage in stages for one in stage.namespaces)
        running = {}
        for mode, settings in CAPTURES.items():
            arguments = {"buffer.size": "256MiB", "namespaces": theirs, **settings}
            capture = Capture(namespace, "-i", "any", "-w", str(files[mode]), **arguments)
            running[mode] = captures.enter_context(closing(capture))
        for scene, stage in stages:
            try:
                scene.play(stage)
                stage.end()
            except Exception:  # noqa: BLE001 the other scenes have their tests, too
                result.failures[scene.name] = traceback.format_exc()
            result.points += stage.points
        result.ended = {mode: [capture.stop()] for mode, capture in running.items()}
        for point in result.points:
            point.reference.collect()
    result.packets = {mode: read(file) for mode, file in files.items()}
    return result


def _add_rows(result: Played, scene: Scene, mode: str) -> None:
    for name, expected, theirs, ours in result.pairs(scene, mode):
        identical = Counter(cut(frame) for frame in theirs) & Counter(packet.data for packet in ours)
        table.add_row(name, "" if expected < 0 else str(expected), len(theirs), len(ours), identical.total())


def is_untold(frame: bytes) -> bool:
    """Whether a frame is IPv4 with UDP or SCTP: the socket does not know their segments."""
    return frame[12:14] == b"\x08\x00" and frame[23] in (socket.IPPROTO_UDP, socket.IPPROTO_SCTP)


def cut(frame: Frame) -> bytes:
    """What we keep of a frame."""
    return frame.data[:CAPTURE_MAX]


def _case(scene: Scene, mode: str) -> ParameterSet:
    marks = [pytest.mark.devices(*scene.kinds), *([pytest.mark.vm] if scene.vm else [])]
    return pytest.param(scene, mode, id=f"{scene.name}, {mode}", marks=marks)


each_scene = pytest.mark.parametrize(
    ("scene", "mode"), [_case(scene, mode) for scene in SCENES for mode in MODES if scene.at_queue or mode == "driver"]
)


@each_scene
def test_frames_are_those_of_the_reference(played: Played, scene: Scene, mode: str) -> None:
    """At each interface we write the frames of an AF_PACKET socket: as many, the same bytes."""
    assert scene.name not in played.failures, played.failures[scene.name]
    for name, expected, theirs, ours in played.pairs(scene, mode):
        parting = difference(sorted(map(cut, theirs)), sorted(packet.data for packet in ours))
        assert not parting, f"{name}: {parting}"
        assert len(theirs) == expected or (theirs and expected == UNKNOWN), name
        assert sorted(len(frame.data) for frame in theirs) == sorted(packet.original_len for packet in ours), name


@pytest.mark.parametrize(("scene", "mode"), [_case(scene, HEADERS) for scene in SCENES if scene.at_queue])
def test_only_headers_are_kept(played: Played, scene: Scene, mode: str) -> None:
    """With `payload: none`, each frame ends after its headers: linear, paged or in a chain, tagged, in
    tunnels, and as large as the kernel makes them.
    """
    assert scene.name not in played.failures, played.failures[scene.name]
    for name, expected, theirs, packets in played.pairs(scene, mode):
        # A group report in a tunnel cannot be recognized in what is kept of it.
        lengths = {len(frame.data) for frame in theirs}
        ours = [packet for packet in packets if packet.original_len in lengths]
        link_types = {packet.link_type for packet in ours}
        assert len(link_types) == (1 if theirs else 0), name
        for link_type in link_types:
            kept = [frame.data[: header_end(frame.data, link_type)] for frame in theirs]
            parting = difference(sorted(kept), sorted(packet.data for packet in ours))
            assert not parting, f"{name}: {parting}"
        assert len(theirs) == expected or (theirs and expected == UNKNOWN), name
        assert sorted(len(frame.data) for frame in theirs) == sorted(packet.original_len for packet in ours), name


@each_scene
def test_reception_types_are_those_of_the_reference(played: Played, scene: Scene, mode: str) -> None:
    """A received frame is unicast, broadcast, multicast or for another host as the socket reports;
    a sent one has no type.
    """
    for name, _, theirs, ours in played.pairs(scene, mode):
        said = sorted((cut(frame), RECEPTION.get(frame.packet_type, 0)) for frame in theirs)
        assert said == sorted((packet.data, packet.flags >> 2 & 7) for packet in ours), name


@each_scene
def test_unfinished_checksums_are_those_of_the_reference(played: Played, scene: Scene, mode: str) -> None:
    """Bit 9 of the flags is set if the kernel reported to the socket that the checksum is not
    ready, and only then.
    """
    for name, _, theirs, ours in played.pairs(scene, mode):
        said = sorted((cut(frame), not frame.checksum_ready) for frame in theirs)
        assert said == sorted((packet.data, bool(packet.flags & CHECKSUM_NOT_READY)) for packet in ours), name


@each_scene
def test_large_frames_are_marked_as_such(played: Played, scene: Scene, mode: str) -> None:
    """Bit 11 of the flags stands on all frames that no wire carries.

    Of TCP, on those of which the kernel told the socket so (since Linux 6.2), and on no other.
    """
    told = tuple(map(int, platform.release().split(".")[:2])) >= (6, 2)
    for name, _, theirs, ours in played.pairs(scene, mode):
        if told:
            said = sorted((cut(frame), frame.segmented) for frame in theirs if not is_untold(frame.data))
            marks = [(one.data, bool(one.flags & SEGMENTATION_OFFLOADED)) for one in ours if not is_untold(one.data)]
            assert said == sorted(marks), name
        for packet in ours:
            assert packet.flags & SEGMENTATION_OFFLOADED or packet.original_len <= LONGEST_ON_A_WIRE, name


@pytest.mark.parametrize(
    ("scene", "mode"),
    [_case(scene, "queue") for scene in SCENES if scene.name in {"bridged", "vlan", "macvlan", "bond"}],
)
def test_a_datagram_has_one_identifier(played: Played, scene: Scene, mode: str) -> None:
    """What one datagram is on several stacked devices carries one epb_packetid, that no other
    datagram has.

    But for a tag within a tag: the kernel writes the inner one into the bytes, of a copy where a
    socket holds a clone.
    """
    seen: dict[bytes, set[int | None]] = {}
    copied: set[bytes] = set()
    for _, _, _, ours in played.pairs(scene, mode):
        for packet in ours:
            at = packet.data.index(MAGIC)
            datagram = packet.data[at : at + WHO.size]
            seen.setdefault(datagram, set()).add(packet.packet_id)
            if packet.interface == "both7":
                copied.add(datagram)
    seen = {datagram: identifiers for datagram, identifiers in seen.items() if datagram not in copied}
    assert len(seen) >= COUNT
    assert {len(identifiers) for identifiers in seen.values()} == {1}
    assert len(set.union(*seen.values()) - {None}) == len(seen)


@pytest.mark.vm
def test_nothing_is_dropped(played: Played) -> None:
    """All captures end with exit code 0 and drop no packet; the totals are the numbers of packets
    in the files.
    """
    for mode, runs in played.ended.items():
        for ended in runs:
            assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
        assert sum(ended.totals["captured"] for ended in runs) == len(played.packets[mode])
