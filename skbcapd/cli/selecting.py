"""Arguments of the commands that read capture files: files, selectors and a filter.

In: the command line. Out: paths and a selection.

The rule: files and the words of a FILTER are in one list. The existing files at its beginning are
the files, all other words are the filter. So a filter needs no quotes, as in tcpdump.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from skbcapd.analysis import selectors, when
from skbcapd.analysis.privacy import DROPPABLE
from skbcapd.analysis.selectors import OF_DROPS, TEXTS, Selection, Selectors
from skbcapd.attribution.fields import FIELDS
from skbcapd.config.pattern import TextPattern
from skbcapd.errors import FileError
from skbcapd.text_safety import escaped

_Value = TypeVar("_Value")
_MTU_MIN, _MTU_MAX = 576, 65535  # RFC 791: what all hosts must accept; what an IPv4 packet can have
_FILE_ENDINGS = (".pcapng", ".pcap", ".cap", ".gz", ".zst", ".part")


def add_changes(command: argparse.ArgumentParser) -> None:
    """Add what is changed in packets that are written."""
    command.add_argument(
        "--payload",
        choices=("all", "none"),
        default="all",
        help="none: cut each frame after its last known header (transport layer, otherwise network layer)",
    )
    command.add_argument(
        "--segment",
        metavar="MTU",
        type=_mtu,
        default=0,
        help="cut frames with IP packets larger than MTU bytes into frames as on the wire, with checksums",
    )
    command.add_argument(
        "--fill-checksums",
        action="store_true",
        help="compute the TCP and UDP checksums that were left to the network card",
    )
    command.add_argument("--sort", action="store_true", help="sort packets by time")
    command.add_argument(
        "--drop",
        metavar="FIELD,...",
        action="extend",
        default=[],
        type=_fields,
        help="remove these fields from the comments, for example cmdline,exe,user; can be repeated",
    )


def _mtu(text: str) -> int:
    if not text.isdecimal() or not _MTU_MIN <= int(text) <= _MTU_MAX:
        raise argparse.ArgumentTypeError(f"found {escaped(text)!r}; expected {_MTU_MIN} to {_MTU_MAX}")
    return int(text)


def _fields(text: str) -> list[str]:
    names = text.split(",")
    wrong = [name for name in names if name not in DROPPABLE]
    if wrong:
        raise argparse.ArgumentTypeError(f"found {escaped(wrong[0])!r}; expected one of {', '.join(DROPPABLE)}")
    return names


def add(command: argparse.ArgumentParser, *, needs_files: bool = True) -> None:
    """Add files and selectors to a command.

    Args:
        command: the command.
        needs_files: as for `parse`.
    """
    command.add_argument(
        "words",
        metavar="FILE",
        nargs="+" if needs_files else "*",
        help="capture file, also compressed with gzip or zstd; a directory: all its captures. The words after the "
        "last file are a packet filter as in tcpdump",
    )
    group = command.add_argument_group(
        "selectors", "Each can be repeated: one must match. Of different ones, all must."
    )
    add_all(group)
    add_drops(group)


def add_all(group: argparse._ArgumentGroup) -> None:
    """Add all selectors but those of dropped packets, which an index does not have."""
    add_processes(group)
    add_packets(group)
    _add(
        group, ["--interface"], "interfaces", "NAME", "name of the interface; a glob, or /regular expression/", _pattern
    )
    _add(group, ["--direction"], "directions", "", "direction of the packet", str, choices=("in", "out"))


def add_host(group: argparse._ArgumentGroup) -> None:
    """Add the selector of hosts."""
    _add(group, ["--host"], "hosts", "NAME", "name of the host; a glob, or /regular expression/", _pattern)


def add_packets(group: argparse._ArgumentGroup) -> None:
    """Add the selectors of packets that `capture -r` has, too."""
    _add(
        group,
        ["--peer"],
        "peers",
        "ADDRESS",
        "IP address or network (10.0.0.0/8) of the other side",
        _checked(selectors.peer, "an address or a network such as 10.0.0.0/8"),
    )
    _add(
        group,
        ["--port"],
        "ports",
        "PORT",
        "port of either side, or FIRST-LAST",
        _checked(selectors.port, "a port from 0 to 65535, or FIRST-LAST"),
    )
    group.add_argument(
        "--from",
        dest="begin",
        metavar="TIME",
        help="packets from TIME on: 2026-11-28T10:00, 10:00, '3h ago', @SECONDS; local time, or with a zone: ...Z",
    )
    group.add_argument("--to", dest="end", metavar="TIME", help="packets before TIME")


def add_drops(group: argparse._ArgumentGroup) -> None:
    """Add the selectors of dropped packets."""
    what = ("the kernel has dropped for this reason (NETFILTER_DROP)", "this function of the kernel has dropped")
    for name, metavar, meaning in zip(OF_DROPS.values(), ("REASON", "FUNCTION"), what, strict=True):
        _add(group, [f"--{name}"], _dest(name), metavar, f"packets that {meaning}; a glob, or /.../", _pattern)


def add_processes(group: argparse._ArgumentGroup) -> None:
    """Add the selectors of processes, which `capture` has, too."""
    for name in TEXTS:
        meaning = re.split("[,;]", FIELDS[name].doc)[0]
        _add(group, [f"--{name}"], name, "NAME", f"{meaning}; a glob, or /regular expression/", _pattern)
    _add(
        group,
        ["--tgid", "--pid"],
        "tgids",
        "ID",
        "process id (tgid), which ps calls PID",
        _checked(selectors.tgid, "a process id"),
    )


def _dest(option: str) -> str:
    return option.replace("-", "_")


def _add(
    group: argparse._ArgumentGroup,
    names: list[str],
    dest: str,
    metavar: str,
    text: str,
    kind: Callable[[str], object],
    choices: Sequence[str] | None = None,
) -> None:
    """Add one selector."""
    if choices:
        group.add_argument(*names, dest=dest, action="append", default=[], help=text, choices=choices)
    else:
        group.add_argument(*names, dest=dest, action="append", default=[], help=text, metavar=metavar, type=kind)


def _checked(parse: Callable[[str], _Value], expected: str) -> Callable[[str], _Value]:
    """A type of argparse whose error says what was expected."""

    def checked(text: str) -> _Value:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {escaped(text)!r}; expected {expected}") from None

    return checked


def _pattern(text: str) -> object:
    try:
        return selectors.pattern(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"found {escaped(text)!r} ({error}); expected a glob, or /regular expression/"
        ) from None


def parse(options: argparse.Namespace, *, needs_files: bool = True) -> tuple[list[Path], Selection]:
    """The files and the selection of a command line.

    Args:
        options: with the arguments of `add`.
        needs_files: whether there must be a file; otherwise all words can be a filter.

    Raises:
        UsageError: a time or the filter is none.
        FileError: there is no file.
    """
    is_filter = not needs_files and not _begins_with_file(options.words)
    files, expression = ([], " ".join(options.words)) if is_filter else split_words(options.words)
    return files, selection(options, expression, options.interfaces, options.directions)


def selection(
    options: argparse.Namespace, expression: str, interfaces: Sequence[TextPattern], directions: Sequence[str]
) -> Selection:
    """The selection of a command line.

    Args:
        options: with the selectors of `add_all`.
        expression: packet filter; empty: none.
        interfaces: patterns of names.
        directions: `in`, `out`.

    Raises:
        UsageError: a time or the filter is none.
    """
    return Selection(replace(selectors_of(options, interfaces, directions), expression=expression))


def selectors_of(
    options: argparse.Namespace,
    interfaces: Sequence[TextPattern] | None = None,
    directions: Sequence[str] | None = None,
) -> Selectors:
    """The selectors of a command line, without a filter.

    Args:
        options: with the selectors of `add_all`.
        interfaces: other patterns of names than those of --interface.
        directions: others than those of --direction.

    Raises:
        UsageError: a time is none.
    """
    dests = {name: name for name in TEXTS} | {name: _dest(option) for name, option in OF_DROPS.items()}
    return Selectors(
        texts={name: found for name, dest in dests.items() if (found := getattr(options, dest, None))},
        tgids=frozenset(options.tgids),
        peers=options.peers,
        ports=options.ports,
        interfaces=options.interfaces if interfaces is None else interfaces,
        directions=frozenset(map(selectors.direction, options.directions if directions is None else directions)),
        span=when.span(options.begin, options.end, time.time_ns()),
    )


def split_words(words: Sequence[str]) -> tuple[list[Path], str]:
    """The files, and the filter after them.

    Raises:
        FileError: the first word is no file, or a later one can only be meant as a file.
    """
    count = next((at for at, word in enumerate(words) if word != "-" and not os.path.lexists(word)), len(words))
    missing = next((word for word in words[count:] if count == 0 or word.endswith(_FILE_ENDINGS)), None)
    if missing is not None:
        raise FileError(f"{escaped(missing)}: No such file or directory; expected a capture file")
    return [Path(word) for word in words[:count]], " ".join(words[count:])


def _begins_with_file(words: Sequence[str]) -> bool:
    """Whether the first word is a file, or can only be meant as one; no filter has a slash in its first word."""
    first = next(iter(words), "")
    return first == "-" or "/" in first or first.endswith(_FILE_ENDINGS) or os.path.lexists(first)


def leading_files(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files at the beginning of `words`, recognized by their endings, and the words after them: a filter.

    Raises:
        FileError: there is no such file.
    """
    count = next((at for at, word in enumerate(words) if not word.endswith(_FILE_ENDINGS)), len(words))
    missing = next((word for word in words[:count] if not os.path.lexists(word)), None)
    if missing is not None:
        raise FileError(f"{escaped(missing)}: No such file or directory; expected a capture file")
    return [Path(word) for word in words[:count]], [*words[count:]]
