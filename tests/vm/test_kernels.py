"""The kernel tests marked `vm`, on other kernels, as kprobe.

Each kernel boots on this machine's root file system (boot.py), and pytest runs there as it does here. A run inside
counts only if tests ran and all passed: --no-skips makes a skip a failure, and no test at all is pytest's exit code 5.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.vm import boot, kernels

# How the program is attached in each run, and which tests. A kernel that is asked for by name is tried in all three
# ways, and plays every scenario of attribution. `make test-all` leaves out tracepoints: the running kernel tries them
# all, and test_further.py and test_arm64.py try the core of them on 6.1, 6.12 and the newest kernel.
MARKED = "tests/kernel -m vm"
RUNS = {"kprobe": ("kprobe", MARKED)}
# Take minutes in an emulated machine, and test code that does not depend on the kernel (filters, rules, names, headers)
# or that was tried there by hand (drops): on the oldest kernel only, unless a kernel is asked for.
ONCE = ("above", "drops", "drops_further", "modules", "packet_filter", "payload", "process_fields", "rules", "snaplen")
IS_ASKED_FOR = bool(os.environ.get("SKBCAPD_VM_KERNELS"))
if IS_ASKED_FOR:
    RUNS = {attach: (attach, MARKED) for attach in ("kprobe", "auto", "tracepoint")}
    RUNS["kprobe, every scenario"] = ("kprobe", "tests/kernel/test_attribution.py")
DEADLINE_S = 60 * 60  # per kernel
pytestmark = pytest.mark.timeout(0)  # the deadline is enough
SLOWNESS = 5  # of an emulated machine: the kernel tests stretch their own deadlines by it
PYTEST = ".venv/bin/python -m pytest -q --durations=20 -p no:cacheprovider --no-skips --timeout=0"


@pytest.fixture(scope="module")
def machine(kernel_name: str) -> boot.VmResult:
    """One boot of the kernel with all runs in it."""
    is_whole = IS_ASKED_FOR or kernel_name == kernels.DEFAULT_NAMES[0]
    left_out = "" if is_whole else " ".join(f"--ignore=tests/kernel/test_{name}.py" for name in ONCE)
    runs = [
        f"echo '@ {name}'; SKBCAPD_ATTACH={attach} SKBCAPD_SLOWNESS={SLOWNESS} {PYTEST} {tests} {left_out}; "
        f"echo '@ {name}' $?"
        for name, (attach, tests) in RUNS.items()
    ]
    return boot.run_in_vm(kernels.fetch(kernel_name), "\n".join(["echo '@ kernel' $(uname -r)", *runs]), DEADLINE_S)


@pytest.mark.parametrize("name", RUNS)
def test_kernel(machine: boot.VmResult, kernel_name: str, name: str, reports: dict[str, str]) -> None:
    """The kernel tests of a run pass on this kernel, none skipped."""
    release = re.search(r"^@ kernel (\S+)$", machine.output, re.MULTILINE)
    run = re.search(rf"^@ {name}\n(.*)^@ {name} (\d+)$", machine.output, re.MULTILINE | re.DOTALL)
    if not release or not run:
        pytest.fail(f"kernel {kernel_name}: the run inside did not end\n{machine.report()}", pytrace=False)
    title = f"kernel {release[1]}, {name}"
    reports[title] = run[1]
    if run[2] != "0":
        pytest.fail(f"pytest inside exited {run[2]}; what it printed stands below under '{title}'", pytrace=False)
