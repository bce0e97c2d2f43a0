"""The kernel tests marked `vm`, on other kernels: once as kprobe and once as raw tracepoint in one boot of each.

Each kernel boots on this machine's root file system (boot.py), and pytest runs there as it does here. A run inside
counts only if tests ran and all passed: --no-skips makes a skip a failure, and no test at all is pytest's exit code 5.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.vm import boot, kernels

# A kernel that is asked for by name is tried in all three ways. `make test` leaves out what the running kernel tries,
# and with `auto`, whose frames come by the same tracepoints, the many devices.
IS_ASKED_FOR = bool(os.environ.get("SKBCAPD_VM_KERNELS"))
ATTACH = ("kprobe", "auto", "tracepoint") if IS_ASKED_FOR else ("kprobe", "auto")
LEFT_OUT = {} if IS_ASKED_FOR else {"auto": "--ignore=tests/kernel/test_scenes.py --ignore=tests/kernel/test_driver.py"}
DEADLINE_S = 40 * 60  # per kernel
pytestmark = pytest.mark.timeout(0)  # the deadline is enough
SLOWNESS = 15  # of an emulated machine: the kernel tests stretch their own deadlines by it
PYTEST = ".venv/bin/python -m pytest tests/kernel -m vm -q --durations=20 -p no:cacheprovider --no-skips --timeout=0"


@pytest.fixture(scope="module")
def machine(kernel_name: str) -> boot.VmResult:
    """One boot of the kernel with all runs in it."""
    runs = [
        f"echo '@ {attach}'; SKBCAPD_ATTACH={attach} SKBCAPD_SLOWNESS={SLOWNESS} {PYTEST} {LEFT_OUT.get(attach, '')}; "
        f"echo '@ {attach}' $?"
        for attach in ATTACH
    ]
    return boot.run_in_vm(kernels.fetch(kernel_name), "\n".join(["echo '@ kernel' $(uname -r)", *runs]), DEADLINE_S)


@pytest.mark.parametrize("attach", ATTACH)
def test_kernel(machine: boot.VmResult, kernel_name: str, attach: str, reports: dict[str, str]) -> None:
    """The kernel tests marked vm pass on this kernel with this way of attaching, none skipped."""
    release = re.search(r"^@ kernel (\S+)$", machine.output, re.MULTILINE)
    run = re.search(rf"^@ {attach}\n(.*)^@ {attach} (\d+)$", machine.output, re.MULTILINE | re.DOTALL)
    if not release or not run:
        pytest.fail(f"kernel {kernel_name}: the run inside did not end\n{machine.report()}", pytrace=False)
    title = f"kernel {release[1]}, {attach}"
    reports[title] = run[1]
    if run[2] != "0":
        pytest.fail(f"pytest inside exited {run[2]}; what it printed stands below under '{title}'", pytrace=False)
