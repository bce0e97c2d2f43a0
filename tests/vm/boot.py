"""Boots this machine's own root file system on another kernel, runs a command there, and brings back what it printed.

What enters: a kernel image (see kernels.py), a shell command, a deadline. What leaves: the command's exit code and
output, the console, the time taken. virtme-ng starts qemu without hardware virtualization (there may be none) and
shares / read-only over 9p. The guest then makes a root of its own: that share with a cache, under an overlay in
memory, so that a test may write anywhere and nothing changes on the host, not even under /lib/modules. The cache
matters: without it each page of each library crosses 9p each time a program starts; `import bcc` took 28 s, not 5.

The rule: the answer comes from files in a shared directory, never from qemu's exit code, and the machine is gone when
the function returns: all that it started is one process group, ended at the deadline.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SHARE = "/run/skbcapd-vm"  # where the guest sees the directory for script and answers
CONSOLE_TAIL = 4000

# virtme.initmount1 is the --rodir of run_in_vm: the host's root once more, to be mounted with a cache.
MAKE_ROOT = f"""set -e
umount /run/host
mount -t 9p -o ro,trans=virtio,version=9p2000.L,access=any,cache=loose,msize=512000 virtme.initmount1 /run/host
mkdir -p /run/upper /run/work /run/root
mount -t overlay -o xino=off,lowerdir=/run/host,upperdir=/run/upper,workdir=/run/work root /run/root
mkdir -p /run/root/lib/modules
for directory in dev proc run sys lib/modules; do mount --rbind /$directory /run/root/$directory; done
set +e
chroot /run/root sh {SHARE}/command >{SHARE}/output 2>&1 </dev/null
echo $? >{SHARE}/status.part
mv {SHARE}/status.part {SHARE}/status
"""

# The same root, made by the first process, which then becomes systemd: with its own units and those of the test, and
# nothing that this machine happens to have installed. virtme.initmount0 is the directory for script and answers.
# busybox: programs of the root without a cache take a second each to start. It finds itself by /proc.
BECOME_SYSTEMD = f"""#!/bin/busybox sh
/bin/mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/host /run/upper /run/work /run/root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,access=any,cache=loose,msize=512000 virtme.initmount1 /run/host
mount -t overlay -o xino=off,lowerdir=/run/host,upperdir=/run/upper,workdir=/run/work root /run/root
cd /run/root
mkdir -p lib/modules
mount --bind /run/host{{modules}} lib/modules
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev
mount -t tmpfs tmpfs run
mkdir .{SHARE} run/old
mount -t 9p -o rw,trans=virtio,version=9p2000.L,access=any virtme.initmount0 .{SHARE}
rm -rf .dockerenv etc/fstab etc/systemd/system/*.wants lib/systemd/system/*.wants lib/systemd/system-generators
mkdir -p etc/systemd/system/sysinit.target.wants
ln -s /lib/systemd/system/systemd-journald.service etc/systemd/system/sysinit.target.wants
cat >etc/systemd/system/skbcapd-vm.service <<END
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sh {SHARE}/command >{SHARE}/output 2>&1 </dev/null; echo \\$\\$? >{SHARE}/status'
ExecStopPost=/bin/systemctl poweroff --force --force
END
pivot_root . run/old
exec chroot . /lib/systemd/systemd --unit=skbcapd-vm.service </dev/console >/dev/console 2>&1
"""

# One thread emulates all processors. With a thread each, QEMU before 8.1 can keep the translation of bytes that another
# processor is changing (mended by its commit deba78709a, "accel/tcg: Always lock pages before translation"). Linux
# changes its own code, and ran into an int3 that was already gone: "Oops: int3" (multipath-tcp/mptcp_net-next
# issue 471). One thread takes 10 % longer.
ONE_THREAD = "-accel tcg,thread=single"

# Some file systems' finer points (O_DIRECT, say) want plain tmpfs, not an overlay: TMPDIR is one.
SET_UP = """export HOME=/root LANG=C.UTF-8 TMPDIR=/run/tmpdir
mkdir -p $TMPDIR /run/lock
mount -t bpf bpf /sys/fs/bpf
modprobe tun
cd {checkout} || exit
{command}
"""


@dataclass(frozen=True, slots=True)
class VmResult:
    """What a command did in the virtual machine; `returncode` is None if it never ended."""

    returncode: int | None
    output: str
    console: str
    seconds: float

    def report(self) -> str:
        """Returns everything a reader needs when the command failed."""
        state = "did not end: deadline, crash or no boot" if self.returncode is None else f"exited {self.returncode}"
        return f"{self.output}\n-- {state}, {self.seconds:.0f} s after start; console:\n{self.console[-CONSOLE_TAIL:]}"


def run_in_vm(
    kernel: Path,
    command: str,
    deadline_s: float,
    *,
    systemd: bool = False,
    keep: Path | None = None,
) -> VmResult:
    """Boots `kernel` on this machine's root file system and runs `command` in a shell there, as root, in the checkout.

    Args:
        kernel: an image, its modules in the same tree.
        command: shell commands; their standard input is empty.
        deadline_s: seconds from start to end, boot included.
        systemd: the first process is systemd, and the command one of its services.
        keep: where SHARE/captures, if the command made it, is copied.

    Returns:
        What happened, also when the deadline passed: then `returncode` is None, and the machine was ended.
    """
    programs = Path(sys.executable).parent
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="skbcapd-vm-") as name:
        share = Path(name)
        (share / "make-root").write_text(MAKE_ROOT)
        (share / "command").write_text(SET_UP.format(checkout=shlex.quote(str(CHECKOUT)), command=command))
        options = f"{ONE_THREAD} {_systemd_first(kernel, share)}" if systemd else ONE_THREAD
        printed = emulate(
            [
                *(str(programs / "vng"), "--run", str(kernel), "--disable-kvm", "--force-9p", "--user", "root"),
                *("--cpus", "2", "--memory", "2G", "--verbose", "--append", "loglevel=4"),
                *(f"--rwdir={SHARE}={share}", "--rodir=/run/host=/", f"--qemu-opts={options}"),
                *("--", f"sh {SHARE}/make-root"),
            ],
            deadline_s,
            {"TMPDIR": name, "PATH": f"{programs}:{os.environ['PATH']}"},  # vng runs parts of its own
        )
        status = _text(share / "status")
        if keep is not None and (share / "captures").is_dir():
            shutil.copytree(share / "captures", keep / "captures")
        return VmResult(
            returncode=int(status) if status else None,
            output=_text(share / "output"),
            console=printed,
            seconds=time.monotonic() - start,
        )


def emulate(command: list[str], deadline_s: float, environment: Mapping[str, str] | None = None) -> str:
    """What a machine has printed when it has ended, or was ended at the deadline.

    Args:
        command: starts the emulator, with its console as standard output.
        deadline_s: seconds until its process group is killed.
        environment: variables beside ours.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()  # returns when qemu, too, has let go of the pipe
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return printed


def _systemd_first(kernel: Path, share: Path) -> str:
    """Options for qemu that make systemd the first process."""
    init = share / "init"
    init.write_text(BECOME_SYSTEMD.format(modules=modules(kernel)))
    init.chmod(0o755)
    # qemu takes the last -append; virtme's own names its own first process.
    first = (
        f"console=ttyS0 loglevel=4 panic=-1 ro init={init} "
        "systemd.show_status=no systemd.journald.forward_to_console=yes"
    )
    return f"-append '{first}'"


def modules(kernel: Path) -> Path:
    """The directory with the kernel's modules: the image stands below it, or beside it in the same tree."""
    places = (parent / place for parent in kernel.parents for place in ("lib/modules", "usr/lib/modules"))
    return next(place for place in places if place.is_dir())


def _text(path: Path) -> str:
    return path.read_text(errors="backslashreplace") if path.exists() else ""
