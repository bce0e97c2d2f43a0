"""Which link type the frames of a device have.

In: the kernel's ARPHRD_* type of a device. Out: the LINKTYPE_* that pcapng and Wireshark know, or None.

The rule: no header is ever made up. A device whose frames start with the network header is RAW; a device that is not in
the table is not captured, and said so once.

Source: include/uapi/linux/if_arp.h; the registry of link types (LINKTYPE_*) that libpcap keeps;
map_arphrd_to_dlt in its pcap-linux.c.
"""

from __future__ import annotations

ETHERNET = 1
RAW = 101

_BY_ARPHRD = {
    1: ETHERNET,  # ETHER
    772: ETHERNET,  # LOOPBACK: the kernel gives it an Ethernet header of zeros
    512: RAW,  # PPP: the PPP header is put in front by the driver, below this point
    519: RAW,  # RAWIP
    65534: RAW,  # NONE: tun, wireguard
    768: RAW,  # TUNNEL: ipip
    769: RAW,  # TUNNEL6
    776: RAW,  # SIT
    778: RAW,  # IPGRE
    823: RAW,  # IP6GRE
}

LINK_TYPES = tuple(sorted(set(_BY_ARPHRD.values())))
"""Every link type that a device may have."""


def device_types(link: int) -> list[int]:
    """The ARPHRD_* of all devices of a link type."""
    return [arphrd for arphrd, found in _BY_ARPHRD.items() if found == link]


def link_type(arphrd: int) -> int | None:
    """The LINKTYPE_* of a device type; None for one whose frames skbcapd does not know how to describe."""
    return _BY_ARPHRD.get(arphrd)
