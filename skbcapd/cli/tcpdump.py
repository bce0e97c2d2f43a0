"""The options of tcpdump that `skbcapd capture` has besides its own.

In: the command line of somebody who knows tcpdump. Out: the form of the lines, settings, and messages.

The rule: each option of tcpdump 4.99 is in docs/from-tcpdump.md, and does here what it does there; or it is accepted,
and one line says what to use; or it is an error that says what to use. Nothing is ignored silently, except what is
always so here (no names instead of addresses, no promiscuous mode).

Source: tcpdump(8), version 4.99.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skbcapd.errors import FileError, UsageError
from skbcapd.filter.packet_filter import EXPRESSION_MAX
from skbcapd.frames.summary import Form
from skbcapd.text_safety import escaped

_UNITS = {"": 10**6, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}  # of -C
_MIB = 1 << 20
_BUFFER_MIN = 4096  # KiB


@dataclass(frozen=True, slots=True)
class Other:
    """An option of tcpdump that has no effect here, or is none of skbcapd.

    Args:
        names: its names.
        value: metavar of its value; empty: it has none.
        says: what to use instead; empty: it is always so.
        is_refused: it ends the command; otherwise it is ignored, with this line.
    """

    names: tuple[str, ...]
    value: str = ""
    says: str = ""
    is_refused: bool = False

    @property
    def dest(self) -> str:
        """Its attribute of the parsed options."""
        return f"tcpdump {self.names[0]}"


OTHERS = (
    # always so
    Other(("-f",)),
    Other(("-K", "--dont-verify-checksums")),
    Other(("-n",)),
    Other(("-N",)),
    Other(("-O", "--no-optimize")),
    Other(("-p", "--no-promiscuous-mode")),
    Other(("--immediate-mode",)),
    # ignored
    Other(("-b",), "", "BGP is not printed; use tshark -V"),
    Other(("-H",), "", "802.11s is not printed; use tshark -V"),
    Other(("-j", "--time-stamp-type"), "TYPE", "times are always those at which the kernel program saw the packet"),
    Other(("-m",), "MODULE", "SNMP is not printed; use tshark -V"),
    Other(("-T",), "TYPE", "the lines do not show it; use tshark -d"),
    Other(("-u",), "", "NFS is not printed; use tshark -V"),
    Other(("-y", "--linktype"), "TYPE", "each interface has its own link type; skbcapd capture -D"),
    Other(
        ("-Z", "--relinquish-privileges"), "USER", "files belong to who runs it, or who called sudo; use files.owner"
    ),
    # refused
    Other(("-d",), "", "tcpdump -d FILTER prints the program of a filter", is_refused=True),
    Other(("-E",), "SECRET", "packets are not decrypted; open the file in Wireshark", is_refused=True),
    Other(("-I", "--monitor-mode"), "", "use iw dev NAME set type monitor before", is_refused=True),
    Other(
        ("-J", "--list-time-stamp-types"),
        "",
        "there is one: the time at which the kernel program saw the packet",
        is_refused=True,
    ),
    Other(("-L", "--list-data-link-types"), "", "use skbcapd capture -D", is_refused=True),
    Other(("-M",), "SECRET", "MD5 digests are not checked; use tshark", is_refused=True),
    Other(("-V",), "LIST", "use -r FILE..., or -r DIR", is_refused=True),
    Other(("-z",), "COMMAND", "use the setting files.compress, or wait for files without .part", is_refused=True),
    Other(("--count",), "", "use skbcapd extract FILE --count", is_refused=True),
)


_FORM = (
    (("-e",), "link", "print the link header"),
    (("-q",), "quiet", "print less of each packet"),
    (("-v",), "verbose", "print more of each packet: IP header, TCP options, and other names if the comment has them"),
    (("-S", "--absolute-tcp-sequence-numbers"), "absolute", "print TCP sequence numbers as they are in the packets"),
    (("-#", "--number"), "numbered", "print the number of each packet"),
    (
        ("-t",),
        "clock",
        "print no time; twice: seconds since 1970; 3 times: since the packet before; 4: with date; 5: since the first",
    ),
    (("-x",), "hexadecimal", "also print the bytes behind the link header; twice: all bytes"),
    (("-X",), "both", "as -x, with characters; twice: all bytes"),
    (("-A",), "text", "also print the bytes behind the link header as characters; twice: all bytes"),
)
"""Options of the printed lines: names, attribute, help; those that are repeated count."""


def add(command: argparse.ArgumentParser) -> None:
    """Add the options."""
    _add_lines(command.add_argument_group("printed lines", "As in tcpdump."))
    _add_files(command.add_argument_group("files", "As in tcpdump."))
    command.add_argument("-F", dest="filter_file", metavar="FILE", type=Path, help="read the filter from FILE")
    command.add_argument("-D", "--list-interfaces", dest="lists", action="store_true", help="list interfaces and exit")
    command.add_argument(
        "-B", "--buffer-size", dest="buffer", metavar="KIB", type=_number, help="set buffer.size, in KiB"
    )
    command.add_argument("--print", dest="prints", action="store_true", help=argparse.SUPPRESS)
    for other in OTHERS:
        if other.value:
            command.add_argument(*other.names, dest=other.dest, metavar=other.value, help=argparse.SUPPRESS)
        else:
            command.add_argument(*other.names, dest=other.dest, action="count", help=argparse.SUPPRESS)


def _add_lines(group: argparse._ArgumentGroup) -> None:
    for names, dest, text in _FORM:
        group.add_argument(*names, dest=dest, action="count", default=0, help=text)
    group.add_argument(
        "--time-stamp-precision", dest="precision", choices=("micro", "nano"), default="micro", help="digits of times"
    )
    for word in ("micro", "nano"):
        group.add_argument(
            f"--{word}", dest="precision", action="store_const", const=word, help=f"--time-stamp-precision {word}"
        )
    group.add_argument("-l", dest="line", action="store_true", help="write each line of -r immediately")


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-C",
        dest="size",
        metavar="SIZE",
        type=_size,
        help="with -w: begin a new file at SIZE million bytes; with k, m or g behind SIZE: KiB, MiB, GiB",
    )
    group.add_argument(
        "-G",
        dest="every",
        metavar="SECONDS",
        type=_number,
        help="with -w: begin a new file at each multiple of SECONDS since 1970 UTC",
    )
    group.add_argument(
        "-W", dest="keep", metavar="COUNT", type=_number, help="with -C: keep only the newest COUNT finished files"
    )
    group.add_argument(
        "-U",
        "--packet-buffered",
        dest="is_prompt",
        action="store_true",
        help="with -w: all packets are in the file within 90 ms, not only the first ones",
    )


def check(options: argparse.Namespace) -> None:
    """Say what is ignored.

    Raises:
        UsageError: an option that is refused, or that needs another one.
    """
    given = [other for other in OTHERS if getattr(options, other.dest)]
    for other in given:
        if other.is_refused:
            raise UsageError(f"{other.names[0]}: an option of tcpdump that skbcapd does not have", other.says)
    for other in given:
        if other.says:
            _say(f"{other.names[0]} is ignored: {other.says}")
    if options.prints and options.file:
        raise UsageError(
            "--print with -w: an option of tcpdump that skbcapd does not have",
            "skbcapd capture -w - | tee FILE | skbcapd capture -r -",
        )
    if options.verbose > 1:
        _say("-vv prints no more than -v; use tshark -V")
    for name, value in (("-C", options.size), ("-G", options.every), ("-W", options.keep)):
        if value and options.file in {None, "-"}:
            raise UsageError(f"{name}: found no file; expected -w FILE")
    if options.keep and not options.size:
        hint = f"--duration {options.keep * options.every} ends after {options.keep} files" if options.every else ""
        raise UsageError("-W: found no -C; expected -C SIZE, whose files it limits", hint)


def form(options: argparse.Namespace) -> Form:
    """What is printed of each packet."""
    dumps = (("both", options.both), ("hex", options.hexadecimal), ("text", options.text))
    dump = next((kind for kind, count in dumps if count), "")
    return Form(
        clock=min(options.clock, 5),
        digits=9 if options.precision == "nano" else 6,
        numbered=bool(options.numbered),
        link=bool(options.link),
        quiet=bool(options.quiet),
        verbose=bool(options.verbose),
        absolute=bool(options.absolute),
        dump=dump,
        dump_link=max(options.both, options.hexadecimal, options.text) > 1,
    )


def expression(options: argparse.Namespace, words: Sequence[str]) -> str:
    """The filter, from a file or from the command line.

    Raises:
        UsageError: it is in both.
        FileError: the file cannot be read.
    """
    path = options.filter_file
    if path is None:
        return " ".join(words)
    name = escaped(str(path))
    if words:
        raise UsageError(f"FILTER: found {escaped(' '.join(words))!r} beside -F {name}; expected one of them")
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(16 * EXPRESSION_MAX)
    except OSError as error:
        raise FileError(f"{name}: {error.strerror}; expected a file with a filter") from None
    return " ".join(re.sub("#[^\n]*", "", text).split())


def settings(options: argparse.Namespace) -> dict[str, str]:
    """The settings that these options set."""
    found = {}
    if options.buffer:
        if options.buffer < _BUFFER_MIN:
            _say(f"-B: {_BUFFER_MIN} KiB, the smallest buffer")
        found["buffer.size"] = f"{max(options.buffer, _BUFFER_MIN)}KiB"
    return found


def is_series(options: argparse.Namespace) -> bool:
    """Whether -w means a series of files."""
    return bool(options.size or options.every)


def series(options: argparse.Namespace) -> dict[str, str]:
    """The settings of a series of files: as tcpdump, it deletes nothing but with -W.

    Raises:
        UsageError: the name cannot be that of a series.
    """
    path = Path(options.file)
    name = re.sub(r"%.*%[A-Za-z]|%[A-Za-z]", "", path.name)  # strftime
    for ending in (".pcapng", ".pcap", ".cap"):
        name = name.removesuffix(ending)
    name = name.rstrip("-_. ") or "skbcapd"
    if {"{", "}"} & set(name):
        raise UsageError(f"-w: found {escaped(path.name)!r}; expected no braces in the name of a series")
    if "%" in path.name:
        _say(f"-w: the names are {escaped(name)}-TIME-NUMBER.pcapng, with the time in UTC")
    size = options.size or 0
    if 0 < size < _MIB:
        _say("-C: 1 MiB, the smallest file")
    return {
        "files.directory": str(path.parent),
        "files.name": f"{name}-{{time}}-{{number}}.pcapng",
        "files.size": str(max(size, _MIB) if size else 0),
        "files.every": f"{options.every}s" if options.every else "0",
        "files.keep_number": str(options.keep or 0),
        "files.keep_size": "0",
        "files.keep_free": "0",
    }


def _size(text: str) -> int:
    """A size of -C in bytes."""
    match = re.fullmatch(r"([0-9]{1,12})([kmgKMG]?)", text)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(
            f"found {escaped(text)!r}; expected millions of bytes, or a number with k, m or g"
        )
    return int(match[1]) * _UNITS[match[2].lower()]


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"found {escaped(text)!r}; expected a number of at least 1")
    return int(text)


def _say(text: str) -> None:
    print(f"skbcapd: {text}", file=sys.stderr)
