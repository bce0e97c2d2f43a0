"""Frames that several tests send, write or search."""

from __future__ import annotations

# The 90 bytes that chronyd sent in the question that started this project, as Wireshark showed
# them: Ethernet, IPv4 192.168.178.24 > 192.168.178.1, UDP 51207 > 123, NTP. Its first NUL is at
# offset 13, inside the EtherType.
NTP_FRAME = bytes.fromhex(
    "3431c4b06a8b3c7c3f2023bd08004500"
    "004c839340004011d1a2c0a8b218c0a8"
    "b201c807007b0038e5b4230006200000"
    "00000000000000000000000000000000"
    "00000000000000000000000000000000"
    "000038bc1713124a4cc0"
)
