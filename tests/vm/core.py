"""The core of the kernel tests, for machines and kernels that do not run all of them: frames identical to
those of an AF_PACKET socket (linear, paged, sendfile, GSO), processes in the main cases, and doctor.

In: how to attach, how to start Python and skbcapd. Out: a command for a virtual machine, and the check
of what it printed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.vm import boot

_SCENARIOS = (
    *("UDP first packet of a socket", "UDP one-packet processes", "received UDP, bound socket"),
    *("TCP SYN, FIN", "TCP SYN-ACK, an accepted connection", "TCP bulk upload", "shared with a forked child"),
    *("splice over TCP", "TCP closed while data are left"),  # by numbers of system calls
    *("one process id used again and again", "forwarded by routing"),
)
_ATTRIBUTION = "tests/kernel/test_attribution.py"
_TESTS = (
    "tests/kernel/test_frames.py",
    f"{_ATTRIBUTION}::test_nothing_is_dropped",
    f"{_ATTRIBUTION}::test_the_kernel_shows_what_conntrack_has_translated",
    *(f"'{_ATTRIBUTION}::test_no_packet_names_a_wrong_process[{name}]'" for name in _SCENARIOS),
)
_PYTEST = "-m pytest -q --color=no --durations=5 -p no:cacheprovider --no-skips --timeout=0 -m vm"


@dataclass(frozen=True, slots=True)
class Report:
    """What the machine printed.

    Args:
        release: of its kernel.
        version: of its kernel, and the architecture: `uname -vm`.
        findings: of doctor, by title: status and text.
    """

    release: str
    version: str
    findings: dict[str, tuple[str, str]]


def command(attach: str, slowness: int, python: str, skbcapd: str) -> str:
    """Shell commands that run the tests, and doctor at the same time: each compiles the kernel program.

    Args:
        attach: the setting.
        slowness: the kernel tests stretch their own deadlines by it.
        python: starts Python, in the checkout.
        skbcapd: starts skbcapd.
    """
    return f"""
echo '@ kernel' $(uname -r) $(uname -vm)
(
    {skbcapd} doctor >/run/doctor 2>&1
    echo '@ doctor' $? >>/run/doctor
) &
SKBCAPD_ATTACH={attach} SKBCAPD_SLOWNESS={slowness} {python} {_PYTEST} {" ".join(_TESTS)}
echo '@ tests' $?
wait
cat /run/doctor
"""


def check(result: boot.VmResult, title: str, reports: dict[str, str]) -> Report:
    """Checks that the tests passed, none skipped, and that doctor found nothing that prevents a capture.

    Raises:
        pytest.fail.Exception: it is not so.
    """
    run = re.search(
        r"^@ kernel (\S+) ([^\n]*)\n(.*)^@ tests (\d+)\n(.*)^@ doctor (\d+)$", result.output, re.MULTILINE | re.DOTALL
    )
    if not run:
        pytest.fail(f"the run inside did not end\n{result.report()}", pytrace=False)
    release, version, printed, status, found, unfit = run.groups()
    title = f"{title}, kernel {release}, {result.seconds:.0f} s"
    reports[title] = printed
    if status != "0":
        pytest.fail(f"pytest inside exited {status}; what it printed stands below under '{title}'", pytrace=False)
    assert unfit == "0", found
    words = [re.split(r"  +", line, maxsplit=2) for line in found.splitlines()]
    findings = {title: (status, text.strip()) for status, title, text in (row for row in words if len(row) == 3)}
    assert findings["paged frames"] == ("ok", "can be read"), found
    assert findings["system calls"] == ("ok", "distinguished from softirqs"), found
    return Report(release, version, findings)
