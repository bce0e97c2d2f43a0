"""The result of libpcap for a frame, to compare our packet filters with.

An expression, a link type and a frame go in; out comes what `tcpdump -r` would say. Shares no code
with the package, nor with scapy's binding.

Source: pcap_compile(3PCAP), pcap_offline_filter(3PCAP).
"""

from __future__ import annotations

import ctypes
import struct

_LIB = ctypes.CDLL("libpcap.so.0.8")
_LIB.pcap_open_dead.restype = ctypes.c_void_p
_LIB.pcap_open_dead.argtypes = [ctypes.c_int, ctypes.c_int]
_LIB.pcap_compile.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32]
_LIB.pcap_offline_filter.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]

# LINKTYPE_* -> the DLT_* of this system.
_DLT = {1: 1, 101: 12}
_NETMASK = 0  # as in tcpdump without a known netmask


class _Program(ctypes.Structure):
    _fields_ = (("bf_len", ctypes.c_uint), ("bf_insns", ctypes.c_void_p))


class Judge:
    """One expression, compiled for one link type; `compiles`: whether libpcap accepts it."""

    def __init__(self, expression: str, link_type: int) -> None:
        self._program = _Program()
        handle = _LIB.pcap_open_dead(_DLT[link_type], 1 << 18)
        self.compiles = not _LIB.pcap_compile(handle, ctypes.byref(self._program), expression.encode(), 1, _NETMASK)
        _LIB.pcap_close(ctypes.c_void_p(handle))

    def takes(self, frame: bytes, wire_len: int) -> bool:
        """Whether a frame matches, of which the first bytes were captured. An expression that does
        not compile matches none.
        """
        header = struct.pack("@qqII", 0, 0, len(frame), wire_len)
        return self.compiles and _LIB.pcap_offline_filter(ctypes.byref(self._program), header, frame) != 0
