"""The Ansible role, run on a copy of this system: its changes are in memory, and systemd does not run there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import skbcapd

ROOT = Path(skbcapd.__file__).parent.parent
ROLE = ROOT / "contrib/ansible"
INDEX = "skbcapd-web1-20261128T100000.000Z-000007.pcapng.index.csv.gz"
# A copy of / with the checkout; without rclone, which the role installs.
MOUNT = """
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount --rbind /proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p ".$2" site
mount --bind "$2" ".$2"
cp "$3" site
cp --remove-destination /etc/resolv.conf etc/resolv.conf
chroot . dpkg --purge skbcapd
chroot . dpkg --remove --force-depends rclone
echo ready
exec cat
"""
TARGET = '/srv/a "b" $c\\d'
SETTINGS = {
    "skbcapd_settings": {"interfaces": ["lo"], "files": {"index": True, "keep_size": "1GiB"}},
    "skbcapd_ship_remote": "fleet:",
    "skbcapd_ship_options": "--host web1",
    "skbcapd_ship_environment": {"RCLONE_CONFIG_FLEET_TYPE": "alias", "RCLONE_CONFIG_FLEET_REMOTE": TARGET},
}

pytestmark = pytest.mark.timeout(30 * 60)  # as for a clean Debian: it installs packages


class System:
    """A copy of this system.

    Args:
        pid: of a process that sees it.
        root: its /, for that process.
    """

    def __init__(self, pid: int, root: Path) -> None:
        self._root = root
        self._words = ["nsenter", f"--target={pid}", "--mount", "chroot", str(root)]

    def run(self, *words: str, code: int = 0, more: dict[str, str] | None = None) -> str:
        """Run a command that ends; its output.

        Raises:
            AssertionError: it had another exit code.
        """
        # No paths or settings of the environment of the tests.
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        environment |= {"SYSTEMD_OFFLINE": "1", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", **(more or {})}
        done = subprocess.run(
            [*self._words, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=20 * 60,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def play(self, settings: dict[str, Any], code: int = 0, first: str = "Check that there is one package") -> set[str]:
        """Run the playbook from a task on; the names of the tasks that changed something, or failed."""
        package = "{{ lookup('fileglob', '/site/*.deb') }}"
        given = json.dumps({"skbcapd_package": package, **settings})
        command = ["ansible-playbook", "--inventory=localhost,", "--connection=local", f"--extra-vars={given}"]
        command += [f"--start-at-task=skbcapd : {first}"]
        said = self.run(*command, str(ROLE / "site.yml"), code=code)
        parts = re.split(r"^(?:TASK|RUNNING HANDLER) \[skbcapd : ", said, flags=re.MULTILINE)[1:]
        changed = {part.partition("]")[0] for part in parts if re.search(r"^(changed|fatal): ", part, re.MULTILINE)}
        counted = re.search(r"changed=(\d+) .*failed=(\d+)", said)
        assert counted
        assert sum(int(number) for number in counted.groups()) == len(changed), said
        return changed


@contextmanager
def copied(deb: Path) -> Iterator[System]:
    """A copy of this system."""
    with tempfile.TemporaryDirectory(prefix="skbcapd-ansible-") as place:
        command = ["unshare", "--mount", "sh", "-ec", MOUNT, "sh", place, str(ROOT), str(deb)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as holder:
            assert holder.stdout
            said: list[str] = []
            while not said or said[-1] not in {"ready\n", ""}:
                said.append(holder.stdout.readline())
            assert said[-1] == "ready\n", "".join(said)
            yield System(holder.pid, Path(place, "root"))
            assert holder.stdin
            holder.stdin.close()


def test_ansible_lint_finds_nothing() -> None:
    """The role and the playbook are what the profile for production asks for."""
    command = ["ansible-lint", "--offline", "--strict", "--nocolor", "--profile=production", "."]
    done = subprocess.run(command, cwd=ROLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["", "dist/skbcapd_1_amd64.deb,dist/skbcapd_2_amd64.deb"])
def test_not_one_package(package: str, tmp_path: Path) -> None:
    """Without a package, or with several, the first task says what to do."""
    command = ["ansible-playbook", "--inventory=localhost,", "--connection=local"]
    command += [f"--extra-vars={json.dumps({'skbcapd_package': package})}", str(ROLE / "site.yml")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "expected the path of one Debian package: run make deb, delete older packages from dist" in done.stdout
    assert "TASK [skbcapd : Copy the package]" not in done.stdout


def test_the_role(deb: Path) -> None:
    """The first run installs, configures, and enables service and timer; a second one changes nothing; the timer's
    command copies an index. Settings that are wrong stop the run before they are written. Without a remote the timer
    is off.
    """
    wants = "/etc/systemd/system/{}.target.wants/skbcapd{}"
    service, timer = wants.format("multi-user", ".service"), wants.format("timers", "-ship.timer")
    with copied(deb) as system:
        everything = {"Copy the package", "Install the package", "Write the settings", "Enable the service"}
        shipping = {"Install rclone", "Write where to ship", "Enable the timer"}
        assert system.play(SETTINGS) >= everything | shipping
        assert system.play(SETTINGS) == set()
        system.run("test", "-L", service, "-a", "-L", timer)
        assert system.run("stat", "-c", "%a %U", "/etc/skbcapd-ship.conf", "/etc/skbcapd.yaml").split() == [
            *("600", "root", "644", "root")
        ]
        system.run("skbcapd", "check")
        assert "keep_size: 1GiB" in system.run("cat", "/etc/skbcapd.yaml")
        system.run("sh", "-ec", f"mkdir -p /var/log/skbcapd; echo index >/var/log/skbcapd/{INDEX}")
        words = shlex.split(system.run("cat", "/etc/skbcapd-ship.conf"), comments=True)
        given = dict(word.split("=", 1) for word in words)
        arguments = [*given["SHIP_OPTIONS"].split(), given["SHIP_DIRECTORY"], given["SHIP_REMOTE"]]
        system.run("skbcapd", "ship", *arguments, more=given)
        assert system.run("cat", f"{TARGET}/index/raw/host=web1/date=2026-11-28/{INDEX}") == "index\n"
        wrong = {**SETTINGS, "skbcapd_settings": {"interface": ["lo"]}}
        assert system.play(wrong, code=2, first="Write the settings") == {"Write the settings"}
        system.run("skbcapd", "check")
        assert system.play({**SETTINGS, "skbcapd_ship_remote": ""}, first="Enable the service") == {"Ship nothing"}
        system.run("test", "-L", service, "-a", "!", "-e", timer)
