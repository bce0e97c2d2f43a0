"""The loader process: messages when it fails."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from skbcapd.errors import KernelError
from skbcapd.kernel import compiler, loader
from skbcapd.kernel.loader import Hook, Loader

MEASURE = Hook("tracepoint", "net_dev_queue", "on_measure")


def test_every_hook_has_its_function() -> None:
    """The functions of hooks are in the source, and the text of a hook is its name in the kernel."""
    from skbcapd.kernel.program import _PLACES  # noqa: PLC0415  the table that names them

    hooks = [hook for place in _PLACES.values() for hook in place if hook] + [MEASURE]
    for hook in hooks:
        assert re.search(rf"^int {hook.function}\(void \*ctx\)", compiler.source(), re.MULTILINE)
    assert str(MEASURE) == "tracepoint net_dev_queue"


def ended(complaints: str) -> Loader:
    """The parent's end of a child that wrote this and ended."""

    def work(_channel: socket.socket) -> None:
        with open(2, "wb", closefd=False) as stderr:
            stderr.write(complaints.encode())
        os._exit(1)

    return Loader(work)


@pytest.mark.parametrize(
    ("complaints", "message", "hint"),
    [
        ("ModuleNotFoundError: No module named 'bcc'\n", "bcc is not installed", "python3-bpfcc"),
        ("bpf: Failed to load program: Operation not permitted\n", "operation not permitted", "run as root"),
        ("a\n\n b\nc\nd\ne\nf\ng \n", "could not be loaded: b | c | d | e | f | g", "skbcapd doctor"),
        (
            'Traceback (most recent call last):\n  File "x.py", line 7, in f\n    g(1)\n    ^^^^\nValueError: odd\n',
            "could not be loaded: ValueError: odd",
            "skbcapd doctor",
        ),
        ("OSError: [Errno 24] Too many open files: '/proc'\n", "the process may open no more files", "LimitNOFILE="),
        ("OSError: libclang.so: failed to map segment from shared object\n", "out of memory", "MemoryMax="),
        ("RuntimeError: can't start new thread\n", "no more threads", "TasksMax="),
        ("", "the loader process exited without an error message", "skbcapd doctor"),
        ("\udcff".encode("utf-8", "surrogatepass").decode("latin-1"), "could not be loaded: ", "skbcapd doctor"),
        ("long " * 1000, "could not be loaded: ", "skbcapd doctor"),
    ],
)
@pytest.mark.parametrize("step", ["receive", "attach"])
def test_the_message_of_a_failed_child(step: str, complaints: str, message: str, hint: str) -> None:
    """A child that ends without a result gives one line of its last output, of limited length, and
    a remedy.
    """
    with closing(ended(complaints)) as child, pytest.raises(KernelError) as raised:
        getattr(child, step)()
    assert message in raised.value.message
    assert hint in raised.value.hint
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 1600


def test_a_program_that_cannot_be_compiled() -> None:
    """The errors of the compiler are in the message, in one line, and not on the terminal."""
    program = (
        "from skbcapd import errors\nfrom skbcapd.kernel import loader\n"
        "hook = loader.Hook('tracepoint', 'net_dev_queue', 'on_measure')\n"
        "child = loader.start(['segments'], {}, [], hook)\n"
        "try:\n    child.receive()\nexcept errors.KernelError as error:\n    print(error.message)\n"
        "child.close()\n"
    )
    root = Path(loader.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"the kernel program could not be loaded: .*Failed to compile BPF module.*\n", done.stdout)
