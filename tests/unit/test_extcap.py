"""The extcap protocol of Wireshark: the answer to each call, and errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import skbcapd
from skbcapd.config.settings import ROWS

ROOT = Path(skbcapd.__file__).parent.parent
PROGRAM = ROOT / "wireshark" / "extcap" / "skbcapd"
SCRIPTS = Path(sys.executable).parent
SENTENCE = re.compile(r"(extcap|interface|dlt|arg|value) ((?:\{[a-z]+=[^{}]*\})+)")


def call(*arguments: str | Path) -> tuple[int, list[tuple[str, dict[str, str]]], str]:
    """Run the extcap program as Wireshark does; returns exit code, lines and stderr."""
    environment = os.environ | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    done = subprocess.run(
        [PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    sentences = []
    for line in done.stdout.splitlines():
        found = SENTENCE.fullmatch(line)
        assert found, line
        sentences.append((found[1], dict(re.findall(r"\{([a-z]+)=([^{}]*)\}", found[2]))))
    return done.returncode, sentences, done.stderr


def test_the_program_is_a_script_that_the_path_completes() -> None:
    """The file for Wireshark's directory is executable and has no path of this machine."""
    assert os.access(PROGRAM, os.X_OK)
    assert str(ROOT) not in PROGRAM.read_text()
    assert shutil.which("skbcapd", path=str(SCRIPTS))


def test_interfaces() -> None:
    """The list has one interface, and the version."""
    code, sentences, err = call("--extcap-interfaces", "--extcap-version=4.0")
    assert (code, err) == (0, "")
    assert [kind for kind, _ in sentences] == ["extcap", "interface"]
    assert sentences[0][1]["version"] == skbcapd.__version__
    assert sentences[1][1]["value"] == "skbcapd"
    page = Path(unquote(urlsplit(sentences[0][1]["help"]).path))
    assert page == ROOT / "docs" / "wireshark.md"
    assert page.is_file()


def test_link_types() -> None:
    """The interface has one link type; a capture has those of its interfaces."""
    code, sentences, err = call("--extcap-interface", "skbcapd", "--extcap-dlts")
    assert (code, err, len(sentences)) == (0, "", 1)
    assert (sentences[0][0], sentences[0][1]["number"], sentences[0][1]["name"]) == ("dlt", "1", "EN10MB")


def test_options_are_settings() -> None:
    """Each option is a setting, with its default and its words; interfaces are those of this
    machine.
    """
    code, sentences, err = call("--extcap-interface", "skbcapd", "--extcap-config")
    assert (code, err) == (0, "")
    arguments = [parts for kind, parts in sentences if kind == "arg" and "group" not in parts]
    keys = [parts["call"].removeprefix("--").replace("-", ".") for parts in arguments]
    assert keys == ["interfaces", "namespaces", "directions", "transmit", "snaplen", "payload", "buffer.size"]
    assert [parts["number"] for parts in arguments] == ["0", "1", "2", "3", "4", "5", "6"]
    for key, parts in zip(keys, arguments, strict=True):
        assert parts["tooltip"] == ROWS[key].doc
        if key not in {"interfaces", "namespaces"}:  # none chosen: all
            assert parts["default"] == ROWS[key].default.replace(" ", "")
    values = [(parts["arg"], parts["value"], parts["default"]) for kind, parts in sentences if kind == "value"]
    assert {("0", "lo", "false"), ("2", "out,in", "true"), ("2", "in", "false"), ("3", "driver", "false")} <= set(
        values
    )
    assert sum(default == "true" for _, _, default in values) == 3


def test_selectors_are_those_of_capture() -> None:
    """The dialog has a page with the selectors of processes; each is an option that `capture` has, too."""
    code, sentences, err = call("--extcap-interface", "skbcapd", "--extcap-config")
    assert (code, err) == (0, "")
    found = {parts["call"]: parts["type"] for kind, parts in sentences if kind == "arg" and "group" in parts}
    names = ("comm", "process", "user", "unit", "container", "pod", "pid")
    assert found == {f"--{name}": "string" for name in names} | {"--children": "boolflag"}
    help_text = subprocess.run(
        [sys.executable, "-m", "skbcapd", "capture", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(option in help_text for option in found)
    numbers = [int(parts["number"]) for kind, parts in sentences if kind == "arg"]
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extcap-interface", "skbcapd", "--extcap-config", "--process", "/(/"], "expected a glob"),
        (["--extcap-interface", "skbcapd", "--extcap-config", "--children"], "--children alone"),
        ([], "extcap: no interface; expected --extcap-interface skbcapd"),
        (["--extcap-dlts"], "extcap: no interface"),
        (["--extcap-config", "--extcap-interface", "eth0"], "extcap: interface 'eth0'"),
        (["--extcap-interface", "skbcapd"], "not a call of the extcap protocol"),
        (["--capture"], "extcap: no interface"),
        (["--capture", "--extcap-interface", "skbcapd"], "--capture has no --fifo"),
        (["--extcap-interface", "skbcapd", "--extcap-config", "--snaplen", "1"], "snaplen: found"),
        (["--extcap-interfaces", "--capture"], "not allowed with argument"),
        (["--extcap-nonsense"], "unrecognized arguments"),
    ],
)
def test_wrong_calls(arguments: list[str], message: str) -> None:
    """A wrong call gives exit code 2 and one line, without a traceback."""
    code, sentences, err = call(*arguments)
    assert (code, sentences) == (2, [])
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("path", ["/nonexistent/fifo", "/", "\x1b[31m"])
def test_a_fifo_that_is_none(path: str) -> None:
    """A FIFO that cannot be opened is named, as printable ASCII, and is not created."""
    code, _, err = call("--capture", "--extcap-interface", "skbcapd", "--fifo", path)
    assert code == 1
    assert re.fullmatch(r"skbcapd: [ -~]+; expected a FIFO that Wireshark reads\n", err)
    assert not Path(path).is_file()


def test_an_ordinary_user_is_told_the_command(tmp_path: Path) -> None:
    """Without the capabilities, the error has the command that captures the same with sudo; the shell reads it as it is
    meant.
    """
    fifo = tmp_path / "fifo"
    fifo.touch()
    chosen = ["--interfaces", "eth0,wg*", "--snaplen", "96", "--transmit", "queue", "--namespaces", "web"]
    chosen += ["--process", "a b", "--children"]
    done = subprocess.run(
        [
            *(["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []),
            *(sys.executable, "-m", "skbcapd", "extcap", "--capture", "--extcap-interface", "skbcapd"),
            *("--fifo", str(fifo), *chosen, "--extcap-capture-filter", "tcp port 443"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    first, hint = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert first == "skbcapd: an ordinary user cannot capture; Wireshark should not run as root"
    selected = "--process 'a b' --children -i eth0 -i 'wg*' --set namespaces=web --set snaplen=96"
    command = f"sudo skbcapd capture {selected} -w - tcp port 443"
    assert hint.strip() == f"(hint) {command} | wireshark -k -i -"
