"""The package and `make install` in a clean Debian 12 and a clean Debian 13: each line of `chroot`
is a claim.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("chroot")
ROOT = SCRIPT.parents[2]
DEADLINE_S = 30 * 60  # it downloads about 400 MB

pytestmark = pytest.mark.timeout(DEADLINE_S + 60)


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_clean_debian(suite: str, tmp_path: Path) -> None:
    """The package installs, captures, and is removed and purged without a trace; so are the files
    of `make install`. In Debian 13, `make run` and `make deb` work, and the tests with its programs pass.
    """
    subprocess.run([str(ROOT / "tools/deb"), str(tmp_path)], check=True, capture_output=True)
    [package] = tmp_path.glob("*.deb")
    # Inside, nothing is kept where the tests keep it: not the cache, and no bytecode, which dpkg would not delete.
    ours = {"CACHE_DIRECTORY", "PYTHONPYCACHEPREFIX"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [str(SCRIPT), suite],
        env=environment | {"DEB": str(package), "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "ok    it captures" in done.stdout
    assert ("ok    make run captures, and who ran it can read the file" in done.stdout) == (suite == "trixie")
