"""Names of the kernel's functions: right, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from skbcapd.kernel.symbols import Symbols

CORE = """\
ffffffff81000000 T _stext
ffffffff81000100 T ip_rcv
ffffffff81000200 t nf_hook_slow.part.0
ffffffff81000200 T nf_alias
ffffffff81000300 t tcp_drop
ffffffff81000400 T _etext
ffffffff82000000 D jiffies
"""
MODULE = "ffffffffc0001000 t nft_do_chain\t[nf_tables]\nffffffffc0001100 t nft_next\t[nf_tables]\n"
BPF = "ffffffffc0000f00 t bpf_prog_abcd\t[bpf]\n"


class Kernel:
    """Files in /proc, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.kallsyms, self.modules, self.now = directory / "kallsyms", directory / "modules", 100.0
        self.load(0xFFFFFFFFC0001000)

    def load(self, *addresses: int, more: str = MODULE) -> None:
        """Load a module, at these addresses."""
        self.modules.write_text("".join(f"nf_tables 4096 1 - Live {address:#x}\n" for address in addresses))
        self.kallsyms.write_text(CORE + BPF + more)

    def symbols(self) -> Symbols:
        """As a capture reads them."""
        return Symbols(self.kallsyms, self.modules, lambda: self.now)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel with one module."""
    return Kernel(tmp_path)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0xFFFFFFFF81000101, b"ip_rcv"),
        (0xFFFFFFFF81000200, b"ip_rcv"),  # the call was its last instruction
        (0xFFFFFFFF81000201, b"nf_hook_slow"),  # without the suffix; the first of two names
        (0xFFFFFFFF81000350, b"tcp_drop"),
        (0xFFFFFFFF80000000, b""),
        (0, b""),
        (0xFFFFFFFFC0001050, b"nft_do_chain"),
    ],
)
def test_a_return_address_is_in_the_function_that_calls(kernel: Kernel, address: int, name: bytes) -> None:
    """The function of an address, in the kernel itself and in a module; none for an address before the first."""
    assert kernel.symbols().function(address) == name


def test_functions_of_modules_are_those_that_are_loaded_now(kernel: Kernel) -> None:
    """If other modules are loaded, the table is read again, once a second at most; the kernel itself stays the same."""
    symbols = kernel.symbols()
    assert symbols.function(0xFFFFFFFFC0001050) == b"nft_do_chain"
    kernel.load(0xFFFFFFFFC0009000, more="ffffffffc0009000 t other\t[other]\n")
    assert symbols.function(0xFFFFFFFFC0009050) == b""  # behind the modules of the table
    kernel.now += 1
    assert symbols.function(0xFFFFFFFFC0009050) == b"other"
    assert symbols.function(0xFFFFFFFFC0001050) == b""
    kernel.modules.unlink()
    kernel.now += 1
    assert symbols.function(0xFFFFFFFFC0009050) == b""
    assert symbols.function(0xFFFFFFFF81000101) == b"ip_rcv"


def test_a_slow_table_is_read_again_once_the_limit_allows(kernel: Kernel) -> None:
    """Reading at the start does not count to the limit; after the next time, it has to wait, and functions of modules
    have no names. Those of the kernel itself stay.
    """

    def clock() -> float:
        kernel.now += 3  # seconds between two looks at the clock, as on an emulated machine
        return kernel.now

    symbols = Symbols(kernel.kallsyms, kernel.modules, clock)
    kernel.load(0xFFFFFFFFC0009000, more="ffffffffc0009000 t other\t[other]\n")
    assert symbols.function(0xFFFFFFFFC0009050) == b"other"
    kernel.load(0xFFFFFFFFC0001000)
    assert symbols.function(0xFFFFFFFFC0001050) == b""
    assert symbols.function(0xFFFFFFFF81000101) == b"ip_rcv"
    kernel.now += 30
    assert symbols.function(0xFFFFFFFFC0001050) == b"nft_do_chain"


def test_hidden_symbols_have_no_names(kernel: Kernel) -> None:
    """Where the kernel shows zeros, or no file at all, no function has a name."""
    kernel.kallsyms.write_text("".join("0" * 16 + line[16:] + "\n" for line in CORE.splitlines()))
    assert kernel.symbols().function(0xFFFFFFFF81000101) == b""
    kernel.kallsyms.unlink()
    assert kernel.symbols().function(0xFFFFFFFF81000101) == b""


def test_this_kernel_has_names() -> None:
    """The table of the running kernel is read."""
    lines = Path("/proc/kallsyms").read_text().splitlines()
    address = next(int(line.split()[0], 16) for line in lines if line.split()[2] == "ip_rcv")
    assert Symbols().function(address + 1) == (b"ip_rcv" if address else b"")
