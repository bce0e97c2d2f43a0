"""The extcap protocol of Wireshark: skbcapd as an entry in its list of interfaces.

In: the calls that Wireshark makes of each program in its extcap directory. Out: the answers, line
by line; for `--capture`, the settings of the capture and the FIFO that it is written to.

The rules not to break: each option is a row of `settings`, which has its name, default and
description. A capture without errors prints nothing: Wireshark shows every line on stderr as an
error.

Source: doc/extcap.adoc of Wireshark ("The Extcap Interface" in its Developer's Guide);
extcap_parser.c there: a brace cannot be escaped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, get_args

from skbcapd import __version__
from skbcapd.analysis.selectors import TEXTS
from skbcapd.attribution.fields import FIELDS
from skbcapd.cli import processes
from skbcapd.config import parser as config
from skbcapd.config.settings import ROWS, Payload, Settings, Transmit
from skbcapd.daemon import app, loading
from skbcapd.errors import FileError, KernelError, UsageError
from skbcapd.kernel import requirements
from skbcapd.output.pcapng_output import FileOutput
from skbcapd.output.pipe import PipeTarget
from skbcapd.pcapng.link_type import ETHERNET
from skbcapd.text_safety import escaped_bytes

INTERFACE = "skbcapd"
HELP = "wireshark.md"

# Settings in the dialog of Wireshark: label, and kind of input.
_OPTIONS: dict[str, tuple[str, str]] = {
    "interfaces": ("Interfaces (none: all)", "multicheck"),
    "namespaces": ("Network namespaces", "string"),
    "directions": ("Directions", "selector"),
    "transmit": ("Where to capture sent packets", "selector"),
    "snaplen": ("Maximum bytes per frame", "unsigned"),
    "payload": ("Payload", "selector"),
    "buffer.size": ("Buffer size", "string"),
}


_GROUP = "{group=Processes}"  # a page of the dialog


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    call = command.add_mutually_exclusive_group()
    for name, text in (
        ("interfaces", "list the interfaces"),
        ("dlts", "list the link types of an interface"),
        ("config", "list the options of an interface"),
    ):
        call.add_argument(f"--extcap-{name}", action="store_true", help=text)
    call.add_argument("--capture", action="store_true", help="capture")
    command.add_argument("--extcap-version", metavar="VERSION", help="version of Wireshark")
    command.add_argument("--extcap-interface", metavar="NAME", help=f"name of the interface: {INTERFACE}")
    command.add_argument(
        "--extcap-capture-filter", metavar="FILTER", help="capture filter; without --capture, only check it"
    )
    command.add_argument("--fifo", metavar="FILE", type=Path, help="FIFO to write the packets to")
    for key, (text, _) in _OPTIONS.items():
        command.add_argument(_argument(key), dest=key, metavar="VALUE", help=f"setting {key}: {text}")
    processes.add_selectors(command)


def run(options: argparse.Namespace) -> int:
    """Answer one call."""
    if not options.capture:
        _settings(options)
        print(answer(options, [name for _, name in socket.if_nameindex()]), end="")
        return 0
    # First, because Wireshark waits until both ends of the FIFO are open, also for error messages.
    with open_fifo(options) as fifo:
        settings = _settings(options)
        if not requirements.is_permitted():
            raise KernelError("an ordinary user cannot capture; Wireshark should not run as root", _as_root(options))
        program = loading.load_program(settings)
        with contextlib.closing(program):
            target = PipeTarget(fifo.fileno())
            output = FileOutput(target, settings.encode)
            return app.serve(app.Run(settings, program, output, target, quiet=True))


def _as_root(options: argparse.Namespace) -> str:
    """A command line that does the same with sudo."""
    words = ["sudo", "skbcapd", "capture"]
    for name in TEXTS:
        words += [word for pattern in getattr(options, name) for word in (f"--{name}", pattern.text)]
    words += [word for tgid in options.tgids for word in ("--pid", str(tgid))]
    words += ["--children"] if options.children else []
    for key, value in overrides(options).items():
        if key == "interfaces":
            words += [word for name in value.split(",") for word in ("-i", name)]
        elif key != "filter" and value != ROWS[key].default.replace(", ", ","):
            words += ["--set", f"{key}={value}"]
    words += ["-w", "-", *(options.extcap_capture_filter or "").split()]
    return shlex.join(words) + " | wireshark -k -i -"


def _settings(options: argparse.Namespace) -> Settings:
    places = {key: _argument(key) for key in _OPTIONS} | {"filter": "--extcap-capture-filter"}
    return processes.chosen(config.default_settings(overrides(options), places), options)


def answer(options: argparse.Namespace, interfaces: Sequence[str]) -> str:
    """Answer a call that does not capture.

    Args:
        options: parsed arguments.
        interfaces: names of interfaces.

    Returns:
        Lines for stdout.

    Raises:
        UsageError: this is not a call of the protocol, or it names another interface.
    """
    if options.extcap_interfaces:
        return (
            f"extcap {{version={__version__}}}{_help()}{{display=skbcapd}}\n"
            f"interface {{value={INTERFACE}}}{{display=Packets with process names}}\n"
        )
    _expect_interface(options)
    if options.extcap_dlts:
        # The protocol allows one link type only; the capture has the link type of each interface.
        return f"dlt {{number={ETHERNET}}}{{name=EN10MB}}{{display=As each interface}}\n"
    if options.extcap_config:
        return "".join(f"{line}\n" for line in _config(interfaces))
    if options.extcap_capture_filter is not None:
        return ""  # Wireshark shows any output as an error of the filter, which is correct
    raise UsageError("not a call of the extcap protocol", "only Wireshark uses this command; use skbcapd capture")


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """The settings of a call, by key."""
    chosen = {key: getattr(options, key) for key in _OPTIONS if getattr(options, key) is not None}
    if options.extcap_capture_filter:
        chosen["filter"] = options.extcap_capture_filter
    return chosen


def open_fifo(options: argparse.Namespace) -> BinaryIO:
    """Open the FIFO of a capture.

    Raises:
        UsageError: the call names another interface, or no FIFO.
        FileError: it cannot be opened.
    """
    _expect_interface(options)
    if options.fifo is None:
        raise UsageError("--capture has no --fifo; expected the FIFO to write to")
    try:
        return open(os.open(options.fifo, os.O_WRONLY | os.O_CLOEXEC), "wb", buffering=0)  # noqa: PTH123  it is not made if it is missing
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        path = escaped_bytes(os.fsencode(options.fifo))
        raise FileError(f"{path}: {getattr(error, 'strerror', error)}; expected a FIFO that Wireshark reads") from None


def _help() -> str:
    """The page that Wireshark opens for the help of the interface; nothing if it is not installed."""
    here = Path(__file__).resolve().parents[1]
    # A clone; `make install`; the Debian package.
    places = [here.parent / "docs", *(parent / "share/doc/skbcapd" for parent in here.parents[2:4])]
    page = next((place / HELP for place in places if (place / HELP).is_file()), None)
    return f"{{help={page.as_uri()}}}" if page and page.is_absolute() else ""


def _expect_interface(options: argparse.Namespace) -> None:
    if options.extcap_interface != INTERFACE:
        found = "no interface" if options.extcap_interface is None else f"interface {options.extcap_interface!r}"
        raise UsageError(f"extcap: {found}; expected --extcap-interface {INTERFACE}")


def _argument(key: str) -> str:
    return "--" + key.replace(".", "-")


def _config(interfaces: Sequence[str]) -> Iterator[str]:
    choices = {
        "interfaces": [name for name in interfaces if name.isprintable() and not set(name) & set("{}")],
        "directions": ["out,in", "out", "in"],
        "transmit": list(get_args(Transmit)),
        "payload": list(get_args(Payload)),
    }
    for number, (key, (display, kind)) in enumerate(_OPTIONS.items()):
        row = ROWS[key]
        default = row.default.replace(", ", ",")
        extra = f"{{default={default}}}" if default and kind != "multicheck" else ""
        yield (
            f"arg {{number={number}}}{{call={_argument(key)}}}{{display={display}}}{{type={kind}}}"
            f"{extra}{{tooltip={row.doc}}}"
        )
        for choice in choices.get(key, []):
            chosen = "true" if choice == default else "false"
            yield f"value {{arg={number}}}{{value={choice}}}{{display={choice}}}{{default={chosen}}}"
    for number, (name, display, doc) in enumerate(_selectors(), len(_OPTIONS)):
        yield f"arg {{number={number}}}{{call=--{name}}}{{display={display}}}{{type=string}}{{tooltip={doc}}}{_GROUP}"
    yield (
        f"arg {{number={len(_OPTIONS) + len(TEXTS) + 1}}}{{call=--children}}{{display=And their descendants}}"
        f"{{type=boolflag}}{{default=false}}{{tooltip=Keep also packets of the processes that they start.}}{_GROUP}"
    )


def _selectors() -> Iterator[tuple[str, str, str]]:
    """Option, label and description of each selector of processes."""
    for name in TEXTS:
        yield name, FIELDS[name].title, "A glob (curl*), or a regular expression (/^curl/). Keep only matching packets."
    yield "pid", "Process id", "Keep only packets of this process."
