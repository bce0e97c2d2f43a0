"""scapy's pcapng writer, imported without its databases."""

from __future__ import annotations

import subprocess
import sys


def printed(program: str) -> str:
    """What a program prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_writer_needs_neither_database_nor_cryptography() -> None:
    """The pcapng writer is scapy's, and neither scapy.data nor cryptography is loaded for it."""
    assert (
        printed(
            "import sys; from skbcapd.pcapng.writer import PcapngWriter\n"
            "import scapy.utils; print(issubclass(PcapngWriter, scapy.utils.RawPcapNgWriter))\n"
            "print([name for name in sys.modules if name.startswith(('scapy.data', 'cryptography'))])"
        )
        == "True\n[]\n"
    )


def test_dissectors_get_the_real_database() -> None:
    """A later import of scapy's dissectors has all names of protocols and ports."""
    assert (
        printed(
            "import skbcapd.pcapng.writer\n"
            "from scapy.layers.inet import IP, TCP; from scapy.layers.l2 import Ether\n"
            "import scapy.data; print(scapy.data.ETHER_TYPES[0x806], (Ether() / IP() / TCP(dport=80)).summary())"
        )
        == "ARP Ether / IP / TCP 127.0.0.1:ftp_data > 127.0.0.1:http S\n"
    )


def test_an_import_that_needs_more_fails_and_works_afterwards() -> None:
    """If a version of scapy needs more of scapy.data, its import fails within `small`, and works after it."""
    assert (
        printed(
            "from skbcapd.pcapng.scapy_import import small\n"
            "try:\n    with small():\n        from scapy.data import ETHER_TYPES\n"
            "except ImportError:\n    from scapy.data import ETHER_TYPES\n    print(ETHER_TYPES[0x806])"
        )
        == "ARP\n"
    )


def test_what_is_loaded_stays() -> None:
    """If scapy.data is loaded already, it is neither replaced nor removed."""
    assert (
        printed(
            "import scapy.data; before = scapy.data\n"
            "from skbcapd.pcapng.scapy_import import small\n"
            "import sys\n"
            "with small():\n    print(sys.modules['scapy.data'] is before)\n"
            "print(sys.modules['scapy.data'] is before)"
        )
        == "True\nTrue\n"
    )
