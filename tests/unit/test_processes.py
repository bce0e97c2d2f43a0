"""Selectors of processes and the command of `capture`: what they mean as rules, and how a command starts and ends."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from skbcapd.cli import main, processes
from skbcapd.cli.main import parser
from skbcapd.config.parser import default_settings
from skbcapd.config.settings import Settings
from skbcapd.daemon import command
from skbcapd.daemon.command import LINGER_S, QUIET_S, Command, CommandError, caller, find
from skbcapd.errors import UsageError
from tests.support.deadline import until
from tests.support.proc import Proc

DROP = {"action": "drop"}


def chosen(*arguments: str, running: list[str] | None = None, proc: Path = Path("/proc"), rules: str = "") -> Settings:
    """The settings of a command line."""
    options = parser().parse_args(["capture", *arguments])
    options.command = running
    return processes.chosen(default_settings({"rules": rules} if rules else {}), options, proc)


def rules(settings: Settings) -> list[dict[str, Any]]:
    """The rules, with the text of patterns."""
    return [{key: getattr(value, "text", value) for key, value in rule.given.items()} for rule in settings.rules]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--comm worker", [{"comm": "worker"}]),
        ("--process nginx", [{"process": "nginx"}]),
        ("--process /^ngi/", [{"process": "/^ngi/"}]),
        ("--unit ssh.service", [{"unit": "ssh.service"}]),
        ("--user root", [{"user": "root"}]),
        ("--container web-*", [{"container": "web-*"}]),
        ("--pod prod/*", [{"pod": "prod/*"}]),
        (f"--pid {os.getpid()}", [{"tgid": os.getpid()}]),
        (f"--tgid {os.getpid()} --children", [{"tgid": os.getpid(), "children": True}]),
        (f"--pid {os.getpid()} --pid {os.getpid()}", [{"tgid": os.getpid()}]),
        ("--comm a --comm b", [{"comm": "a"}, {"comm": "b"}]),
        ("--comm a --user x --user y", [{"comm": "a", "user": "x"}, {"comm": "a", "user": "y"}]),
        ("--unit a --children", [{"unit": "a", "children": True}]),
    ],
)
def test_selectors_are_rules(arguments: str, expected: list[dict[str, Any]]) -> None:
    """Of one selector, one value must match; of different ones, all; the last rule drops the rest."""
    assert rules(chosen(*arguments.split())) == [*expected, DROP]


def test_without_selectors_there_are_no_rules() -> None:
    """The rules of --set stay; a command gets its rules when it has a process id."""
    assert rules(chosen("-i", "lo", rules="[{comm: x}]")) == [{"comm": "x"}]
    assert rules(chosen(running=["true"])) == []
    assert rules(processes.of_command(Settings(), 7)) == [{"tgid": 7, "children": True}, DROP]


@pytest.mark.parametrize(
    ("arguments", "running", "message"),
    [
        ("--children", None, "--children alone"),
        ("--children", ["true"], "beside a command"),
        ("--comm x", ["true"], "beside a command"),
        ("--pid 4194303", None, "--pid 4194303: no such process"),
        (" ".join(f"--comm {n} --user {n}" for n in range(32)), None, "more than 1000 combinations"),
    ],
)
def test_selectors_that_are_refused(arguments: str, running: list[str] | None, message: str) -> None:
    """What cannot be meant is a usage error."""
    with pytest.raises(UsageError, match=message):
        chosen(*arguments.split(), running=running)


def test_selectors_beside_rules_are_refused() -> None:
    """Selectors are rules, so there cannot be others."""
    with pytest.raises(UsageError, match="--set rules beside selectors"):
        chosen("--comm", "x", rules="[{comm: x}]")


def test_a_thread_is_no_process(tmp_path: Path) -> None:
    """The id of a thread is refused, with the id of its process."""
    proc = Proc(tmp_path)
    (proc.add(1059) / "status").write_bytes(b"Name:\tx\nTgid:\t1058\n")
    with pytest.raises(UsageError, match="thread of process 1058") as raised:
        chosen("--pid", "1059", proc=proc.path)
    assert raised.value.hint == "--pid 1058"


@pytest.mark.parametrize("arguments", ["--pid 7", "--pid x", "--pid 0", "--pid 4294967296"])
def test_ids_of_another_pid_namespace(arguments: str, tmp_path: Path) -> None:
    """In a container, process ids are others than those of the kernel; other texts are no ids."""
    namespace = tmp_path / "self/ns/pid"
    namespace.parent.mkdir(parents=True)
    namespace.touch()
    with pytest.raises((UsageError, SystemExit)) as raised:
        chosen(*arguments.split(), proc=tmp_path)
    assert isinstance(raised.value, SystemExit) or "PID namespace" in str(raised.value)
    with pytest.raises(UsageError, match="PID namespace"):
        chosen(running=["true"], proc=tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("capture -i lo", ("capture -i lo", None)),
        ("capture -i lo tcp -- curl -v -- x", ("capture -i lo tcp", "curl -v -- x")),
        ("extract a -- b", ("extract a -- b", None)),
    ],
)
def test_the_command_is_behind_the_dashes(words: str, expected: tuple[str, str | None]) -> None:
    """Everything after the first `--` of `capture` is the command, also options and `--`."""
    before, after = main.split_command(words.split())
    assert (" ".join(before), after and " ".join(after)) == expected


def test_no_command_after_the_dashes() -> None:
    """`--` alone is a usage error."""
    with pytest.raises(UsageError, match="nothing after --"):
        main.split_command(["capture", "--"])


def test_the_path_of_a_command(tmp_path: Path) -> None:
    """A command is found as by execvp(3): in the first directory that has an executable file."""
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second, first / "made"):
        directory.mkdir()
    (first / "tool").touch()
    (second / "tool").touch(0o755)
    (first / "plain").touch()
    path = f"{first}:{second}:{tmp_path}/missing"
    assert find("tool", path) == str(second / "tool")
    assert find(str(second / "tool"), "") == str(second / "tool")
    for word, code in (
        ("plain", errno.EACCES),
        ("made", errno.EACCES),
        ("none", errno.ENOENT),
        ("", errno.ENOENT),
        (str(first), errno.EACCES),
        (f"{first}/plain/x", errno.ENOENT),
    ):
        with pytest.raises(OSError, match=os.strerror(code)) as raised:
            find(word, path)
        assert raised.value.errno == code, word


@pytest.mark.parametrize(
    ("environment", "uid", "expected"),
    [
        ({}, 0, None),
        ({"SUDO_UID": "0", "SUDO_GID": "0"}, 0, None),
        ({"SUDO_UID": "65534", "SUDO_GID": "65533"}, 1000, None),
        ({"SUDO_UID": "65534", "SUDO_GID": "65533"}, 0, (65534, 65533)),
        ({"SUDO_UID": "4000001", "SUDO_GID": "7"}, 0, (4000001, 7)),
    ],
)
def test_the_user_of_a_command(environment: Mapping[str, str], uid: int, expected: tuple[int, int] | None) -> None:
    """Under sudo it is the user who called it, with groups and home directory; otherwise nothing changes."""
    found = caller(environment, uid)
    assert (found and (found.uid, found.gid)) == expected
    if found and found.uid == 65534:
        entry = pwd.getpwuid(65534)
        assert found.environment["HOME"] == entry.pw_dir
        assert found.environment["USER"] == found.environment["LOGNAME"] == entry.pw_name
        assert 65533 in found.groups
    elif found:
        assert (found.groups, found.environment) == ([7], {"HOME": "/"})


@pytest.mark.parametrize("environment", [{"SUDO_UID": "x", "SUDO_GID": "1"}, {"SUDO_UID": "1"}])
def test_wrong_variables_of_sudo(environment: Mapping[str, str]) -> None:
    """They are an error: the command must not run as root then."""
    with pytest.raises(UsageError, match="SUDO_UID"):
        caller(environment, 0)


def text(path: Path, content: str) -> str:
    """An executable file with this content."""
    path.write_text(content)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nosuch"], command.NOT_FOUND),
        (["/nosuch/x"], command.NOT_FOUND),
        (["/etc/passwd"], command.NOT_STARTED),
        (["/etc"], command.NOT_STARTED),
    ],
)
def test_a_command_that_cannot_be_found(words: list[str], code: int) -> None:
    """One message, and the exit codes of a shell, before anything is captured."""
    with pytest.raises(CommandError, match=rf"^{words[0]}: .*; expected a command after --") as raised:
        Command(words)
    assert raised.value.exit_code == code
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no zombie stays


def test_a_program_that_the_kernel_refuses(tmp_path: Path) -> None:
    """What can only fail when it is executed gives 126 and a message, too."""
    with Command([text(tmp_path / "broken", "#!/nosuch/interpreter\n")]) as run:
        run.start()
        with pytest.raises(CommandError, match="No such file") as raised:
            run.wait()
    assert raised.value.exit_code == command.NOT_FOUND


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [("exit 0", 0, ""), ("exit 29", 29, ""), ("exit 137", 137, ""), ("kill -9 $$", 137, "sh: ended by SIGKILL\n")],
)
def test_the_exit_code(script: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is that of the command; 128 + n after signal n, which is said."""
    with Command(["sh", "-c", script]) as run:
        run.start()
        until(lambda: os.waitid(os.P_PIDFD, run.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None, "its end")
        run.note_end(7.0)
        assert run.wait() == code
    assert capsys.readouterr().err == said


def test_a_command_waits_for_its_capture(tmp_path: Path) -> None:
    """Nothing runs before `start`; without it, never. A text without `#!` runs by the shell, with
    its output where it belongs, and signals as at the start of a program.
    """
    file, out = tmp_path / "ran", tmp_path / "out"
    script = text(tmp_path / "script", f"echo $1; grep SigIgn /proc/$$/status; touch {file}\n")
    with Command([script, "x"]):
        assert not file.exists()
    assert not file.exists()
    with out.open("wb") as stdout, Command([script, "x y"], stdout=stdout.fileno()) as run:
        run.start()
        assert run.wait() == 0
    said, ignored = out.read_text().splitlines()
    assert (said, file.exists()) == ("x y", True)
    assert not int(ignored.split()[1], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def test_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first signal is for the command; a second one ends the capture, and so does one after the
    end. Ctrl-C has reached the command already.
    """
    with Command(["sh", "-c", "trap : TERM INT HUP; while :; do sleep 0.01; done"]) as run:
        run.start()
        is_foreground = [True]
        monkeypatch.setattr(command, "_is_in_foreground", lambda: is_foreground[0])
        assert [run.pass_on(signal.SIGINT) for _ in range(3)] == [True] * 3
        is_foreground[0] = False
        assert run.pass_on(signal.SIGINT)
        assert not run.pass_on(signal.SIGTERM)
        os.kill(run.pid, signal.SIGKILL)
        run.note_end(0.0)
        assert not run.pass_on(signal.SIGTERM)


def test_the_last_packets_have_time() -> None:
    """After its end, the capture lasts until no packet has come for QUIET_S, and LINGER_S at most."""
    with Command(["true"]) as run:
        run.start()
        assert not run.is_over(float("inf"))
        run.note_end(100.0)
        assert not run.is_over(100.0 + QUIET_S - 0.01)
        assert run.is_over(100.0 + QUIET_S)
        run.note_packets(100.4)
        assert not run.is_over(100.4 + QUIET_S - 0.01)
        run.note_packets(100.0 + LINGER_S - 0.01)
        assert not run.is_over(100.0 + LINGER_S - 0.01)
        assert run.is_over(100.0 + LINGER_S)


def test_a_signal_while_it_waits() -> None:
    """If its capture has ended, SIGTERM still reaches the command."""
    script = (
        "import os, signal, sys, threading\n"
        "from skbcapd.daemon.command import Command\n"
        "with Command(['sh', '-c', 'echo $$; exec sleep 600']) as run:\n"
        "    run.start()\n"
        "    sys.exit(run.wait())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().strip().isdigit()
        assert b"continues (process" in process.stderr.readline()
        until(lambda: _catches(process.pid, signal.SIGTERM), "its handler")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text().split()
    return bool(int(status[status.index("SigCgt:") + 1], 16) >> number - 1 & 1)
