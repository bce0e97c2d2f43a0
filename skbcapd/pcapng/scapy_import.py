"""Imports the pcapng writer of scapy without what it does not need.

`import scapy.utils` loads the manufacturers of all network cards (`scapy.data`, 20 MiB of memory),
of which it takes three numbers, and the library `cryptography` (6 MiB) to see whether there is one.

The rule not to break: this process may import scapy's dissectors later (`output.text`), which need
the real `scapy.data`. So both are replaced only while `scapy.utils` is imported.

Source: `from scapy.data import MTU, DLT_EN10MB, DLT_RAW` in scapy/utils.py, and
`isCryptographyValid` in scapy/config.py; the same in scapy 2.5, 2.6 and 2.8.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import cast

_NUMBERS = {"MTU": 0xFFFF, "DLT_EN10MB": 1, "DLT_RAW": 12}  # defaults of functions that skbcapd does not use


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Within this, an import of `scapy.utils` loads neither scapy.data nor cryptography.

    Raises:
        ImportError: from an import within it; a scapy that needs more can be imported after it.
    """
    data = ModuleType("scapy.data")
    vars(data).update(_NUMBERS)
    # None: the import raises ImportError, as if it were not installed
    replaced = {"scapy.data": data, "cryptography": cast("ModuleType", None)}
    added = {name: module for name, module in replaced.items() if name not in sys.modules}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)
