"""Reads the config file: YAML in, one frozen `Settings` out, or all problems at once.

`settings` defines the keys. This module reads and checks them; each problem has its line.

The rule not to break: the file is read with the rights of the daemon, also while a capture runs. So
no input may lead to anything but settings or a `ConfigError`. Values are read as text (numbers,
dates and `on` of YAML do not apply). Anchors, aliases and tags are errors. Size and depth are
limited. Quotations from the file in messages are escaped and cut.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import difflib
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import yaml

from skbcapd.config.kinds import Kind, ListOf, Quantity, ReasonError, Word
from skbcapd.config.settings import ROWS, RULE_KEYS, SECTIONS, Records, Row, Rule, Settings
from skbcapd.errors import ConfigError, Problem
from skbcapd.text_safety import escaped

__all__ = ["Settings", "default_settings", "load"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 16  # nested lists and keys; the settings need 3
MAX_NODES = 20_000  # keys, lists and values; the YAML reader takes a second for them
MAX_PROBLEMS = 100  # more is not useful to anybody
_SHOWN_CHARS = 60  # of a value or key, in a message
_NULL = "tag:yaml.org,2002:null"


def load(
    path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None, keys: Collection[str] | None = None
) -> Settings:
    """Read a config file.

    Args:
        path: the file: regular, UTF-8, at most MAX_BYTES.
        overrides: dotted key -> value, as text; they override the file. Lists are written with
            commas.
        keys: read only these keys of the file, for commands that need few of them: a filter can
            take long to compile, and other keys may be wrong. None: all.

    Returns:
        The settings; keys that are missing in the file have their defaults.

    Raises:
        ConfigError: the file cannot be read or is wrong, or an override is wrong; with all problems
            (at most MAX_PROBLEMS), those of the file by line, then those of the overrides.

    Source: etc/skbcapd.yaml.
    """
    check = _Check(escaped(os.fspath(path)), keys=keys)
    check.file(path)
    return _settle(check, overrides)


def default_settings(overrides: Mapping[str, str] | None = None, places: Mapping[str, str] | None = None) -> Settings:
    """The settings without a file.

    Args:
        overrides: as for `load`.
        places: key -> the option of the command line that it comes from, for messages; default:
            --set.

    Returns:
        The defaults, changed by the overrides.

    Raises:
        ConfigError: an override is wrong.
    """
    return _settle(_Check(""), overrides, places)


def _settle(check: _Check, overrides: Mapping[str, str] | None, places: Mapping[str, str] | None = None) -> Settings:
    sets = _Check("--set", has_lines=False)
    for key, text in (overrides or {}).items():
        sets.place = (places or {}).get(key, "--set")
        sets.override(key, text)
    if (check.values | sets.values).get("files.mode", "files") == "files":
        (sets if "rules" in sets.values else check).miss_ring()
    if problems := sorted(check.problems, key=lambda problem: problem.line) + sets.problems:
        raise ConfigError(problems)
    settings = Settings()
    for key, value in (check.values | sets.values).items():
        section, _, name = key.rpartition(".")
        change = {name: value}
        if section:
            change = {section: replace(getattr(settings, section), **change)}
        settings = replace(settings, **change)
    return settings


class _RefusedError(yaml.MarkedYAMLError):
    """YAML that settings do not need, and attacks use."""


class _Loader(yaml.SafeLoader):
    """Composes nodes, never objects, and a limited number of them."""

    nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.nodes += 1
        self.depth += 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self._refuse(event, "an anchor or alias (& or *), expected the value itself")
        if event.tag is not None:
            self._refuse(event, "a tag (!), expected the value alone")
        if self.depth > MAX_DEPTH:
            self._refuse(event, f"more than {MAX_DEPTH} levels, expected lists and keys less deep")
        if self.nodes > MAX_NODES:
            self._refuse(event, f"more than {MAX_NODES} keys and values, expected a config file")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refuse(self, event: yaml.Event, what: str) -> NoReturn:
        mark: Any = event.start_mark  # the stub also has the marks of libyaml, which only its own loaders create
        raise _RefusedError(problem=f"found {what}", problem_mark=mark)


class _Check:
    """Collects the values and problems of one place: a file, or the command line."""

    def __init__(self, place: str, *, has_lines: bool = True, keys: Collection[str] | None = None) -> None:
        self.place = place
        self.keys = keys
        self.has_lines = has_lines
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.dumps: list[tuple[int, str]] = []  # lines and keys of rules with action: dump

    def problem(self, line: int, key: str, message: str, hint: str = "") -> None:
        if len(self.problems) == MAX_PROBLEMS:
            raise ConfigError([*self.problems, Problem(self.place, 0, "", "more problems than these")])
        self.problems.append(Problem(self.place, line if self.has_lines else 0, _shown(key), message, hint))

    def file(self, path: str | os.PathLike[str]) -> None:
        """Check a file; a device or FIFO is not opened for reading."""
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                data = (regular and file.read(MAX_BYTES + 1)) or b""
        except (OSError, ValueError) as error:
            # for example a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else "no file can have this name"
            return self.problem(0, "", f"cannot be read: {reason}")
        if not regular:
            return self.problem(0, "", "found a device, pipe or socket, expected a file")
        if len(data) > MAX_BYTES:
            return self.problem(0, "", f"found more than {MAX_BYTES} bytes, expected a config file")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            return self.problem(line, "", f"found the byte 0x{data[error.start]:02x}, expected text in UTF-8")
        return self.document(text)

    def document(self, text: str) -> None:
        """Check YAML text; after a syntax error, also the text before the top-level key that has
        it.
        """
        if match := _Loader.NON_PRINTABLE.search(text):
            line = text.count("\n", 0, match.start()) + 1
            return self.problem(line, "", f'found the character "{escaped(match[0])}", expected text')
        try:
            root = _compose(text)
        except yaml.MarkedYAMLError as error:
            start = self.syntax(text, error)
            with contextlib.suppress(yaml.MarkedYAMLError):
                root = _compose(text[:start])
                if isinstance(root, yaml.MappingNode):
                    self.mapping(root)
            return None
        if isinstance(root, yaml.MappingNode):
            return self.mapping(root)
        if root is None or root.tag == _NULL:
            return self.problem(0, "", "found no key, expected at least one", "a file of {} asks for every default")
        return self.problem(_line(root), "", f"found {_found(root)}, expected keys", "as in snaplen: 262144")

    def syntax(self, text: str, error: yaml.MarkedYAMLError) -> int:
        """Report text that is not YAML, with each line that is indented with tabs; returns the line
        of its top-level key.
        """
        mark = error.problem_mark
        index, line = (mark.index, mark.line + 1) if mark else (0, 0)
        line = min(line, len(text.rstrip("\n").split("\n")))  # the end of the text is after its last line
        if text[index : index + 1] == "\t":
            tabs = {number for number, at in enumerate(text.split("\n"), 1) if at.lstrip(" ").startswith("\t")}
            for number in sorted(tabs | {line}):
                self.problem(number, "", "found a tab, expected spaces")
        else:
            self.problem(line, "", *_explain(error))
        marks = [at.index for at in (error.context_mark, mark) if at]
        keys = [match.start() for match in re.finditer(r"^[^\s#-]", text, re.MULTILINE)]
        return next((keys[at] for index in marks if (at := bisect.bisect(keys, index) - 1) > 0), 0)

    def mapping(self, node: yaml.MappingNode, prefix: str = "") -> None:
        """Check the keys of one level and their values."""
        lines: dict[str, int] = {}
        for name, value in node.value:
            line = _line(name)
            if not isinstance(name, yaml.ScalarNode):
                self.problem(line, prefix.rstrip("."), f"found {_found(name)}, expected the name of a key")
                continue
            key = prefix + name.value
            if key in lines:
                self.problem(line, key, "found a second time, expected once", f"first on line {lines[key]}")
            lines.setdefault(key, line)
            if self.keys is not None and key not in self.keys and key not in SECTIONS:
                continue
            if "." in name.value or key not in ROWS.keys() | SECTIONS:
                self.unknown(line, key)
            elif key in ROWS:
                self.value(key, value)
            elif isinstance(value, yaml.MappingNode):
                self.mapping(value, key + ".")
            elif value.tag != _NULL:  # all keys of the section can be commented out
                self.problem(_line(value), key, f"found {_found(value)}, expected keys below it")

    def override(self, key: str, text: str) -> None:
        """Check one `--set KEY=VALUE`."""
        if key not in ROWS:
            self.unknown(0, key)
        elif isinstance(ROWS[key].kind, Records):
            self.records(key, text)
        elif isinstance(kind := ROWS[key].kind, ListOf):
            items = kind.split(text) if text or not kind.may_be_empty else []
            self.value(key, yaml.SequenceNode("", [yaml.ScalarNode("", item) for item in items]))
        else:
            self.value(key, yaml.ScalarNode("", text))

    def records(self, key: str, text: str) -> None:
        """Check a list of rules on the command line, written as in the file."""
        if match := _Loader.NON_PRINTABLE.search(text):
            return self.problem(0, key, f'found the character "{escaped(match[0])}", expected text')
        try:
            node = _compose(text) or yaml.ScalarNode(_NULL, "")
        except yaml.MarkedYAMLError as error:
            return self.problem(0, key, *_explain(error))
        return self.value(key, node)

    def unknown(self, line: int, key: str) -> None:
        """Report an unknown key, with the most similar one; without a line it comes from the
        command line.
        """
        known = {name.rpartition(".")[2]: name for name in ROWS} | {name: name for name in ROWS}
        if line and "." not in key:
            known |= {section: section for section in SECTIONS}
        near = known.get(_nearest(key, known), "")
        section, _, name = near.rpartition(".")
        hint = f"{name}, on a line below {section}:" if line and section else near
        self.problem(line, key, "found an unknown key", f"did you mean {hint}?" if hint else "")

    def value(self, key: str, node: yaml.Node) -> None:
        """Check the value of a known key."""
        row = ROWS[key]
        if isinstance(row.kind, Records):
            self.values[key] = self.rules(key, node, row)
            return
        if not isinstance(row.kind, ListOf):
            default = row.default or '""'
            self.values[key] = self.item(key, node, row.kind, f"the default is {default}")
            return
        if not isinstance(node, yaml.SequenceNode):
            hint = f"the default is [{row.default}]"
            self.problem(_line(node), key, f"found {_found(node)}, expected {row.kind.expected}", hint)
            return
        items = self.values[key] = tuple(self.item(key, item, row.kind.item) for item in node.value)
        often = [item for item, times in collections.Counter(items).items() if item and times > 1]
        if not items and not row.kind.may_be_empty:
            self.problem(_line(node), key, "found an empty list, expected at least one entry")
        elif often:
            self.problem(_line(node), key, f"found {often[0]} more than once, expected it once")
        elif row.kind.alone in items and len(items) > 1:
            self.problem(_line(node), key, f"found {row.kind.alone} beside other entries, expected it alone")

    def rules(self, key: str, node: yaml.Node, row: Row) -> tuple[Rule, ...]:
        """Check a list of rules."""
        if not isinstance(node, yaml.SequenceNode):
            self.problem(_line(node), key, f"found {_found(node)}, expected {row.kind.expected}")
            return ()
        found = [self.rule(f"{key}[{number}]", each) for number, each in enumerate(node.value, 1)]
        for rule, each, following in zip(found, node.value, node.value[1:], strict=False):
            if rule and not rule.conditions:
                self.problem(
                    _line(following),
                    key,
                    "found a rule that is never reached",
                    f"the one on line {_line(each)} is for all",
                )
        return tuple(rule for rule in found if rule)

    def rule(self, key: str, node: yaml.Node) -> Rule | None:
        """Check one rule; None, and a problem, if it is wrong."""
        if not isinstance(node, yaml.MappingNode) or not node.value:
            self.problem(_line(node), key, f"found {_found(node)}, expected keys such as comm and action")
            return None
        rows, values, before = RULE_KEYS, {}, len(self.problems)
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.value not in rows:
                near = isinstance(name, yaml.ScalarNode) and _nearest(name.value, rows)
                text = f"{key}.{name.value}" if isinstance(name, yaml.ScalarNode) else key
                self.problem(_line(name), text, "found an unknown key", f"did you mean {near}?" if near else "")
            elif name.value in values:
                self.problem(_line(name), f"{key}.{name.value}", "found a second time, expected once")
            else:
                values[name.value] = self.item(f"{key}.{name.value}", value, rows[name.value].kind)
        if len(self.problems) > before:
            return None
        rule = Rule.of(values)
        if rule.contradiction:
            self.problem(_line(node), key, rule.contradiction)
        if rule.action == "dump":
            self.dumps.append((_line(node), f"{key}.action"))
        return rule

    def miss_ring(self) -> None:
        """Report rules with action: dump if there is no ring buffer."""
        for line, key in self.dumps:
            self.problem(
                line, key, "found dump while files.mode is files, expected keep or drop", "or files.mode: ring"
            )

    def item(self, key: str, node: yaml.Node, kind: Kind, hint: str = "") -> Any:
        """Check one value, or one entry of a list; None, and a problem, if it is wrong."""
        if isinstance(node, yaml.ScalarNode) and node.tag != _NULL:
            try:
                return kind.parse(node.value)
            except ReasonError as error:
                found = f"found {_found(node)} ({_shown(str(error), 200)})"
                self.problem(_line(node), key, f"{found}, expected {kind.expected}")
                return None
            except ValueError:
                pass
            near = _nearest(node.value, kind.words) if isinstance(kind, Word) else ""
            near = kind.near(node.value) if isinstance(kind, Quantity) else near
            hint = f"did you mean {near}?" if near else hint
        self.problem(_line(node), key, f"found {_found(node)}, expected {kind.expected}", hint)
        return None


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    # the scanner converts digits to numbers and characters without a check
    except (ValueError, OverflowError) as error:
        raise yaml.MarkedYAMLError(
            problem="found a number that is too large", problem_mark=loader.get_mark()
        ) from error


def _explain(error: yaml.MarkedYAMLError) -> tuple[str, str]:
    problem, context = _shown(error.problem or "", 100), _shown(error.context or "", 100)
    if isinstance(error, _RefusedError):
        return problem, ""
    if problem.startswith("but "):
        return f"not YAML: {context}, {problem}", ""
    hint = f"{context} that starts on line {error.context_mark.line + 1}" if context and error.context_mark else ""
    return f"not YAML: {problem}", hint


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark else 0


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "nothing" if node.tag == _NULL else f'"{_shown(node.value)}"'
    return "a list" if isinstance(node, yaml.SequenceNode) else "keys"


def _nearest(text: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(text[:_SHOWN_CHARS].lower(), known, 1)), "")


def _shown(text: str, chars: int = _SHOWN_CHARS) -> str:
    return escaped(text[:chars]) + ("..." if len(text) > chars else "")
