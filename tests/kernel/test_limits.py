"""A capture whose limits are too small reports it in one line, with the number."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT
from tests.kernel.namespace import Wire
from tests.support import faults
from tests.support.deadline import DEADLINE_S

MIB = 1 << 20
CGROUPS = Path("/sys/fs/cgroup")


def refused(wire: Wire, script: str, *arguments: str) -> str:
    """The message of a capture that is started by a shell script and must fail."""
    command = ["sh", "-c", f'{script} && exec "$@"', "sh", sys.executable, "-m", "skbcapd", "capture"]
    command += ["-i", wire.near.device, "--duration", "1", *arguments]
    done = wire.near.namespace.do(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False
    )
    assert done.returncode == 1, done.stderr
    assert not done.stdout
    assert 'File "' not in done.stderr
    assert [line.split(" ")[0] for line in done.stderr.splitlines()[-2:]] == ["skbcapd:", ""]
    return done.stderr


@pytest.mark.parametrize("number", [8, 20, 36])
def test_too_few_files(number: int, wire: Wire) -> None:
    """With `ulimit -n 20`, the message has the reason and the number, in one line and a hint."""
    said = refused(wire, f"ulimit -n {number}")
    faults.compare("ulimit -n 20", 1, f"{number}: one line and a hint")
    assert f"may open {number} files" in said
    assert "LimitNOFILE=" in said


def test_too_little_address_space(wire: Wire) -> None:
    """With `ulimit -v`, the message names memory or that limit, whatever fails first."""
    said = refused(wire, "ulimit -v 100000")
    assert any(words in said for words in ("no shared memory of 75890688 bytes", "out of memory", "`ulimit -v`"))


@contextlib.contextmanager
def cgroup(size: int) -> Iterator[Path]:
    """A control group with a memory limit, of the version of this machine."""
    version_2 = (CGROUPS / "cgroup.controllers").exists()
    place = CGROUPS / ("" if version_2 else "memory") / f"skbcapd-{uuid.uuid4().hex[:8]}"
    try:
        place.mkdir()
        (place / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(size))
    except OSError:
        pytest.skip("no control group with a memory limit can be made here")
    try:
        yield place
    finally:
        place.rmdir()


@pytest.mark.parametrize("size", [60 * MIB, 120 * MIB])
def test_too_little_memory(size: int, wire: Wire) -> None:
    """If the cgroup would kill the capture, it does not start, and reports the limit and the needed
    memory.
    """
    with cgroup(size) as place:
        said = refused(wire, f"echo $$ > {place}/cgroup.procs")
    assert f"the memory limit is {size // MIB} MiB ({place}/memory." in said
    assert "buffer.size of 72 MiB needs about" in said
