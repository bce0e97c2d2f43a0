"""Names of kernel functions in the symbol table."""

from __future__ import annotations

from pathlib import Path

import pytest

from skbcapd.errors import KernelError
from skbcapd.kernel.program import kernel_symbol

SYMBOLS = """\
0000000000000000 t __netif_receive_skb_core.constprop.0
0000000000000000 T __dev_queue_xmit
0000000000000000 t __dev_queue_xmit.cold
0000000000000000 r __kstrtab___dev_queue_xmit_list
"""


def test_symbols(tmp_path: Path) -> None:
    """A function is found by its name, also if it only exists with a suffix of the compiler."""
    table = tmp_path / "kallsyms"
    table.write_text(SYMBOLS)
    assert kernel_symbol("__dev_queue_xmit", table) == "__dev_queue_xmit"
    assert kernel_symbol("__netif_receive_skb_core", table) == "__netif_receive_skb_core.constprop.0"
    with pytest.raises(KernelError, match="no function __dev_queue_xmit_list"):
        kernel_symbol("__dev_queue_xmit_list", table)


def test_a_hidden_table(tmp_path: Path) -> None:
    """If the table cannot be read, the hint names the setting of systemd that hides it."""
    with pytest.raises(KernelError, match=r"kallsyms: .*; expected the names(.|\n)*ProtectKernelTunables=no"):
        kernel_symbol("__dev_queue_xmit", tmp_path / "kallsyms")
