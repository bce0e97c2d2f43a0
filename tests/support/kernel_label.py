"""bpf/label.h as a library: the labels that the kernel program makes, without a kernel."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

from skbcapd.kernel import abi, compiler
from skbcapd.pcapng.comment import OPTIONS_MAX

_SOURCE = Path(__file__).with_suffix(".c")
_SIZES = {
    "SEGMENT_SIZE": abi.SEGMENT_SIZE,
    "SEGMENT_COUNT": 4,
    "SLACK": abi.SLACK,
    "UPCALLS_LISTED": abi.UPCALLS_LISTED,
    "OPTIONS_MAX": OPTIONS_MAX,
    "GROUP_MAX": abi.GROUP_MAX,
    "COUNTERS": len(abi.COUNTERS),
    "LABELLED_WORDS": abi.TGIDS // 64,
}


class KernelLabels:
    """Makes labels with the code of the kernel program.

    Args:
        directory: for the library.
    """

    def __init__(self, directory: Path) -> None:
        library = directory / "label.so"
        sizes = [f"-D{name}={value}" for name, value in _SIZES.items()]
        flags = ["-O2", "-w", "-fno-strict-aliasing", "-shared", "-fPIC", f"-I{compiler.SOURCES}", *sizes]
        subprocess.run(["cc", *flags, "-o", str(library), str(_SOURCE)], check=True)
        self._library = ctypes.CDLL(str(library))
        self._library.labels_made.restype = ctypes.c_uint64

    def make(self, control: memoryview, call: abi.Upcall, device: bytes | None) -> bytes | None:
        """The label for a packet; None if Python has to make it.

        Args:
            control: struct control.
            call: key and names of the packet.
            device: what the program knows about its interface; None: nothing.
        """
        key = abi.KEY.pack(*call[: len(abi.Key._fields)])
        user = abi.USER.pack(call.tgid, call.tid, call.start, call.comm, call.process)
        label = ctypes.create_string_buffer(abi.LABEL.size)
        is_made = self._library.make(bytes(control), key + user + call.device.ljust(16, b"\0"), device, label)
        return label.raw if is_made else None

    @property
    def count(self) -> int:
        """Number of labels that were made."""
        return int(self._library.labels_made())

    def is_labelled(self, tgid: int) -> bool:
        """Whether a process was noted as one with a label."""
        return bool(self._library.is_labelled(tgid))
