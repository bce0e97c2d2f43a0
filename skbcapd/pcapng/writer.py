"""The pcapng writer of scapy, extended by the blocks and options of skbcapd.

In: packets, interfaces, counters, complete blocks. Out: pcapng blocks, in the order of the calls,
to a sink of the caller. No file is opened or closed here, no clock is read.

The rule not to break: each block is built by `build_block` of scapy. An Enhanced Packet Block has
the same bytes as that of the kernel program for the same packet.

The methods `_write_block_*` of the base class are not used: they take microseconds as float, write
the section length 0 (2.5) and few options, and differ between 2.5, 2.6 and 2.8. `build_block` is
the same in all three. Only `scapy.utils` is imported: `scapy.all` takes seconds, and searches for
libpcap.
"""

from __future__ import annotations

import struct
from typing import IO, cast

from skbcapd.attribution.processes import Process
from skbcapd.pcapng.blocks import (
    BYTE_ORDER_MAGIC,
    CUSTOM,
    IF_DESCRIPTION,
    IF_FILTER,
    IF_MACADDR,
    IF_NAME,
    IF_OS,
    IF_SPEED,
    IF_TSRESOL,
    INTERFACE,
    ISB_ENDTIME,
    ISB_FILTERACCEPT,
    ISB_IFDROP,
    ISB_IFRECV,
    ISB_OSDROP,
    ISB_STARTTIME,
    ISB_USRDELIV,
    OPT_COMMENT,
    OPT_ENDOFOPT,
    PACKET,
    SECTION,
    SHB_HARDWARE,
    SHB_OS,
    SHB_USERAPPL,
    STATISTICS,
    section_body,
)
from skbcapd.pcapng.comment import option
from skbcapd.pcapng.interface import Interface, Sink
from skbcapd.pcapng.scapy_import import small
from skbcapd.text_safety import escaped

try:
    with small():
        from scapy.utils import RawPcapNgWriter
except ImportError:
    from scapy.utils import RawPcapNgWriter

_WIRESHARK, _PROCESS_INFORMATION = 32622, 3  # private enterprise number, type of entry
# Options of that entry.
_NAME, _PROGRAM, _COMMAND_LINE, _PARENT, _USER_ID, _USER, _START = 2, 3, 4, 5, 6, 7, 9


class PcapngWriter(RawPcapNgWriter):
    """Writes sections, interfaces, packets, statistics and complete blocks to a sink.

    Little endian; times are whole nanoseconds.

    The sink belongs to the caller: `close` (and the end of a `with` block) flushes it, and does not
    close it. `write(packet)` of the base class must not be used: it has no interface, time or
    options.

    Args:
        sink: a binary file, opened; see `Sink`.
    """

    def __init__(self, sink: Sink) -> None:
        # `__init__` of the base class would open a file; its other attributes are set here.
        self.f = cast("IO[bytes]", sink)
        self.filename = str(getattr(sink, "name", ""))
        self.endian = "<"
        self.endian_magic = struct.pack("<I", BYTE_ORDER_MAGIC)
        self.tsresol = 10**9
        self.header_present = True  # otherwise the base class writes a section and an interface
        self._os = ""
        self._interfaces = 0

    def write_section(self, hardware: str, os: str, application: str, comment: str | None = None) -> None:
        """Begin a section: interface ids start at 0 again.

        Args:
            hardware: the machine, such as `x86_64`; empty: left out, as for the others.
            os: system and kernel release; repeated in each interface block.
            application: skbcapd and its version.
            comment: a comment for the section.

        Raises:
            ValueError: a text is longer than 65535 bytes.

        Source: draft-ietf-opsawg-pcapng section 4.1; section length -1 is "not specified".
        """
        self._os, self._interfaces = os, 0
        texts = ((OPT_COMMENT, comment), (SHB_HARDWARE, hardware), (SHB_OS, os), (SHB_USERAPPL, application))
        self._write_block(SECTION, section_body(), {code: _utf8(text) for code, text in texts if text})

    def write_interface(self, interface: Interface) -> int:
        """Describe an interface of this section, before its first packet.

        Args:
            interface: the interface. Bytes of its name that are not UTF-8 are escaped, because
                pcapng requires UTF-8.

        Returns:
            Its id: 0, 1, 2, ... in the order of the calls.

        Raises:
            ValueError: a text is longer than 65535 bytes.

        Source: draft-ietf-opsawg-pcapng section 4.2.
        """
        options = {IF_NAME: interface.name.decode("utf-8", "backslashreplace").encode()}
        if interface.description:
            options[IF_DESCRIPTION] = _utf8(interface.description)
        if interface.mac is not None:
            options[IF_MACADDR] = interface.mac
        if interface.speed_bps is not None:
            options[IF_SPEED] = struct.pack("<Q", interface.speed_bps)
        options[IF_TSRESOL] = b"\x09"  # units of 10^-9 s
        if interface.filter is not None:
            options[IF_FILTER] = b"\x00" + _utf8(interface.filter)  # 0: a string in pcap-filter syntax follows
        if self._os:
            options[IF_OS] = _utf8(self._os)
        self._write_block(INTERFACE, struct.pack("<HHI", interface.link_type, 0, interface.snaplen), options)
        self._interfaces += 1
        return self._interfaces - 1

    def write_packet(
        self, interface_id: int, time_ns: int, frame: bytes | memoryview, original_len: int, options: bytes
    ) -> None:
        """Write one packet.

        Args:
            interface_id: id from `write_interface`.
            time_ns: nanoseconds since 1970 UTC, u64.
            frame: the captured bytes, from the link-layer header on.
            original_len: original length of the frame; at least `len(frame)`.
            options: from `comment.packet_options`; may be empty.

        Source: draft-ietf-opsawg-pcapng section 4.3.
        """
        body = struct.pack("<I", interface_id) + _time(time_ns) + struct.pack("<II", len(frame), original_len)
        self.f.write(self.build_block(struct.pack("<I", PACKET), body + bytes(frame), options))

    def write_process(self, process: Process, boot_ns: int) -> None:
        """Write a process block, before the first packet whose option 8 has this process.

        A Custom Block of Wireshark; other readers skip it.

        Args:
            process: its record; texts are written as UTF-8, and characters that are not printable
                are escaped.
            boot_ns: boot time of the machine, nanoseconds since 1970 UTC.

        Source: wiretap/pcapng-wireshark-custom.c of Wireshark (in no release yet), which follows
        https://github.com/IETF-OPSAWG-WG/draft-ietf-opsawg-pcap/pull/209; custom blocks are in
        section 4.9 of draft-ietf-opsawg-pcapng.
        """
        texts = {
            _NAME: _escaped_utf8(process.comm),
            _PROGRAM: _escaped_utf8(process.exe),
            _COMMAND_LINE: process.cmdline.removesuffix(b"\0"),
        }
        numbers = {_PARENT: process.ppid, _USER_ID: process.uid}
        options = {code: text for code, text in texts.items() if text}
        options |= {code: struct.pack("<I", number) for code, number in numbers.items() if number is not None}
        if process.user:
            options[_USER] = _escaped_utf8(process.user)
        if process.start:
            options[_START] = struct.pack("<Q", boot_ns + process.start)
        entry = struct.pack("<I", process.tgid) + _options(options)
        self._write_block(CUSTOM, struct.pack("<III", _WIRESHARK, _PROCESS_INFORMATION, len(entry)) + entry, {})

    def write_statistics(
        self,
        interface_id: int,
        time_ns: int,
        start_ns: int | None = None,
        end_ns: int | None = None,
        received: int | None = None,
        dropped: int | None = None,
        filter_accepted: int | None = None,
        os_dropped: int | None = None,
        delivered: int | None = None,
    ) -> None:
        """Write the counters of an interface; None: left out.

        Args:
            interface_id: id from `write_interface`.
            time_ns: time when the counters were read, nanoseconds since 1970 UTC, as the next two.
            start_ns: start of the file (isb_starttime).
            end_ns: end of the file (isb_endtime).
            received: packets seen on the interface (isb_ifrecv).
            dropped: packets that the interface dropped (isb_ifdrop).
            filter_accepted: packets that filter and rules accepted (isb_filteraccept).
            os_dropped: packets that the capture dropped after that (isb_osdrop).
            delivered: packets that the kernel program delivered (isb_usrdeliv).

        Source: draft-ietf-opsawg-pcapng section 4.6.
        """
        times = {ISB_STARTTIME: start_ns, ISB_ENDTIME: end_ns}
        counts = {
            ISB_IFRECV: received,
            ISB_IFDROP: dropped,
            ISB_FILTERACCEPT: filter_accepted,
            ISB_OSDROP: os_dropped,
            ISB_USRDELIV: delivered,
        }
        options = {code: _time(time) for code, time in times.items() if time is not None}
        options |= {code: struct.pack("<Q", count) for code, count in counts.items() if count is not None}
        self._write_block(STATISTICS, struct.pack("<I", interface_id) + _time(time_ns), options)

    def write_blocks(self, view: bytes | memoryview) -> None:
        """Write complete blocks unchanged, such as those of the kernel program.

        Args:
            view: one or more complete blocks.
        """
        self.f.write(view)

    def close(self) -> None:
        """Flush the sink; the caller closes it."""
        self.flush()

    def _write_block(self, block_type: int, body: bytes, options: dict[int, bytes]) -> None:
        """Write a block; its options by code, in order, and opt_endofopt if there is any option."""
        self.f.write(self.build_block(struct.pack("<I", block_type), body, _options(options)))


def _options(options: dict[int, bytes]) -> bytes:
    raw = b"".join(option(code, value) for code, value in options.items())
    return raw + option(OPT_ENDOFOPT, b"") if raw else b""


def _time(time_ns: int) -> bytes:
    """The two words of a time: the upper one first, in both byte orders."""
    return struct.pack("<II", time_ns >> 32, time_ns & 0xFFFFFFFF)


def _utf8(text: str) -> bytes:
    """Encode text that can have surrogates (os.uname and paths have them): pcapng requires UTF-8."""
    return text.encode("utf-8", "replace")


def _escaped_utf8(text: bytes) -> bytes:
    """A text that a process chose, as printable UTF-8."""
    return escaped(text.decode("utf-8", "backslashreplace")).encode()
