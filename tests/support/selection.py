"""Selectors and filters of the commands that read files, each with the display filter of tshark that finds the same
packets in the capture of tests/support/traffic.py.
"""

from __future__ import annotations

from datetime import UTC, datetime

from tests.support.traffic import BEGIN_NS, COUNT, STEP_NS


def is_of(field: str, value: str) -> str:
    """A display filter for a field of the comment."""
    return f'frame.comment matches "(^| ){field}={value}( |$)"'


IN, OUT = "frame.packet_flags_direction == 1", "frame.packet_flags_direction == 2"
HALF_NS = BEGIN_NS + COUNT // 2 * STEP_NS
HALF = datetime.fromtimestamp(HALF_NS // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{HALF_NS % 10**9:09}Z"


def port(low: int, high: int) -> str:
    """A display filter for ports; packets quoted in others are not in the capture."""
    return " || ".join(
        f"({each} >= {low} && {each} <= {high})"
        for each in ("tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport")
    )


def peer(network: str, version: str = "ip") -> str:
    """A display filter for the other side."""
    source, destination = f"{version}.src == {network}", f"{version}.dst == {network}"
    unknown = "frame.packet_flags_direction == 0"
    return f"({OUT} && {destination}) || ({IN} && {source}) || ({unknown} && ({source} || {destination}))"


SELECTORS: dict[str, tuple[list[str], str]] = {
    "all": ([], "frame"),
    "comm": (["--comm", "curl"], is_of("comm", "curl")),
    "glob": (["--comm", "curl*"], is_of("comm", "curl(ew)?")),
    "expression": (["--comm", "/^cur|ngi/"], is_of("comm", "(curl|curlew|nginx)")),
    "two": (["--comm", "curl", "--comm", "nginx"], is_of("comm", "(curl|nginx)")),
    "process": (["--process", "dig"], is_of("process", "dig")),
    "process is comm": (["--process", "nginx"], is_of("comm", "nginx")),
    "thread": (["--process", "isc-net-0000"], "frame.len < 0"),
    "unit": (["--unit", "ssh.*"], is_of("unit", "ssh.service")),
    "user": (["--user", "root", "--user", "me"], is_of("user", "(root|me)")),
    "container": (["--container", "web"], is_of("container", "web")),
    "pod": (["--pod", "prod/*"], is_of("pod", "prod/web/nginx")),
    "tgid": (["--tgid", "7", "--pid", "4294967"], is_of("tgid", "(7|4294967)")),
    "peer": (["--peer", "10.0.1.2"], peer("10.0.1.2")),
    "network": (["--peer", "10.0.0.0/16"], peer("10.0.0.0/16")),
    "two peers": (
        ["--peer", "10.0.2.0/24", "--peer", "fd00::/49"],
        f"({peer('10.0.2.0/24')}) || ({peer('fd00::/49', 'ipv6')})",
    ),
    "IPv6": (["--peer", "fd00:0:0:1::2"], peer("fd00:0:0:1::2", "ipv6")),
    "port": (["--port", "443"], port(443, 443)),
    "ports": (["--port", "8000-8010", "--port", "53"], f"{port(8000, 8010)} || {port(53, 53)}"),
    "interface": (["--interface", "wg*"], 'frame.interface_name == "wg0"'),
    "in": (["--direction", "in"], IN),
    "out": (["--direction", "out"], OUT),
    "from": (["--from", HALF], f"frame.number > {COUNT // 2}"),
    "to": (["--to", f"@{HALF_NS // 10**9}.{HALF_NS % 10**9:09}"], f"frame.number <= {COUNT // 2}"),
    "span": (
        ["--from", "2021-05-31T14:00:00.25", "--to", "2021-05-31T14:00:00.5"],
        f"frame.time_epoch >= {BEGIN_NS // 10**9}.25 && frame.time_epoch < {BEGIN_NS // 10**9}.5",
    ),
    "several": (
        ["--comm", "curl", "--port", "443", "--direction", "out"],
        f"{is_of('comm', 'curl')} && {OUT} && ({port(443, 443)})",
    ),
}
FILTERS = {
    "tcp port 443": "tcp.port == 443 && !vlan",
    "udp": "(udp && !vlan && !ipv6.hopopts) || ipv6.fraghdr.nxt == 17",  # libpcap reads no other extension headers
    "host 10.0.2.2 and not tcp": "ip.addr == 10.0.2.2 && !tcp && !vlan",
    "arp or icmp or icmp6": "arp || icmp || icmpv6",
    "vlan 7 and udp": "vlan.id == 7 && udp",
    "ip6 and greater 80": "ipv6 && frame.len >= 80 && !vlan",
    "len <= 60": "frame.len <= 60",
}
