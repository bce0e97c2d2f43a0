"""The link type of the frames of an interface.

In: the ARPHRD_* type of the kernel. Out: the LINKTYPE_* of pcapng and Wireshark, or None.

The rule: no header is invented. An interface whose frames start with the network header is RAW. An
interface that is not in the table is not captured, and a warning is logged once.

The types are those of libpcap, with two differences. Where libpcap invents a "cooked" header (PPP,
TUNNEL6, IPGRE, IP6GRE), the frames are RAW here. Where libpcap changes or extends frames (CAN,
NETLINK), they are not captured.

Source: include/uapi/linux/if_arp.h; the registry of link types (LINKTYPE_*) that libpcap keeps;
map_arphrd_to_dlt in its pcap-linux.c.
"""

from __future__ import annotations

ETHERNET = 1
RAW = 101
CISCO_HDLC = 104
IEEE802_11 = 105
FRAME_RELAY = 107
IEEE802_11_PRISM = 119
IEEE802_11_RADIOTAP = 127
IEEE802_15_4_NOFCS = 230
VSOCK = 271
USER0 = 147  # reserved for private use: no program knows such frames

# Link types of other programs' files.
NULL = 0
PPP = 9
LOOP = 108
LINUX_SLL = 113
IPV4 = 228
IPV6 = 229
LINUX_SLL2 = 276
FOREIGN = (NULL, PPP, LOOP, LINUX_SLL, IPV4, IPV6, LINUX_SLL2)

_BY_ARPHRD = {
    1: ETHERNET,  # ETHER
    772: ETHERNET,  # LOOPBACK: the kernel gives it an Ethernet header of zeros
    15: RAW,  # DLCI
    256: RAW,  # SLIP and similar types
    257: RAW,
    258: RAW,
    259: RAW,
    264: RAW,  # ADAPT
    512: RAW,  # PPP: the driver adds the PPP header later
    513: CISCO_HDLC,
    518: RAW,  # RAWHDLC
    519: RAW,  # RAWIP
    770: FRAME_RELAY,
    801: IEEE802_11,
    802: IEEE802_11_PRISM,
    803: IEEE802_11_RADIOTAP,
    804: IEEE802_15_4_NOFCS,
    826: VSOCK,  # vsockmon
    65534: RAW,  # NONE: tun, wireguard
    768: RAW,  # TUNNEL: ipip
    769: RAW,  # TUNNEL6
    776: RAW,  # SIT
    778: RAW,  # IPGRE
    823: RAW,  # IP6GRE
}

_NAMES = {
    ETHERNET: "ethernet",
    RAW: "raw",
    CISCO_HDLC: "cisco-hdlc",
    IEEE802_11: "802.11",
    FRAME_RELAY: "frame-relay",
    IEEE802_11_PRISM: "802.11-prism",
    IEEE802_11_RADIOTAP: "802.11-radiotap",
    IEEE802_15_4_NOFCS: "802.15.4",
    VSOCK: "vsock",
    NULL: "null",
    PPP: "ppp",
    LOOP: "loop",
    LINUX_SLL: "linux-sll",
    IPV4: "ipv4",
    IPV6: "ipv6",
    LINUX_SLL2: "linux-sll2",
}


def name(link: int) -> str:
    """The name of a link type, its number if it has none."""
    return _NAMES.get(link, str(link))


LINK_TYPES = tuple(sorted(set(_BY_ARPHRD.values())))
"""All link types of interfaces."""


def device_types(link: int) -> list[int]:
    """The ARPHRD_* of all interface types with a link type."""
    return [arphrd for arphrd, found in _BY_ARPHRD.items() if found == link]


def link_type(arphrd: int) -> int | None:
    """The LINKTYPE_* of an interface type; None if skbcapd does not know it."""
    return _BY_ARPHRD.get(arphrd)
