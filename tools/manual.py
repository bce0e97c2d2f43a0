"""Writes what is generated from the code: reference config, its schema, man pages, completion, tables of fields.

`make generate` runs it.

In: `settings.ROWS`, `fields.TABLE`, the parser of `cli`, man/*.in. Out: etc/, man/skbcapd.8, man/skbcapd.yaml.5,
completions/skbcapd, and the fields of a comment in wireshark/skbcapd.lua and docs/format.md.

The rule: texts of keys and options are in the code. Other text is in man/*.in, which have one line, COMMANDS or KEYS,
for the generated part. tests/package compares the tree with the output of this module.

Source: mdoc(7); "Programmable Completion" in bash(1).
"""

from __future__ import annotations

import argparse
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from skbcapd import __version__
from skbcapd.attribution.fields import TABLE
from skbcapd.cli import main
from skbcapd.config.kinds import ListOf, Word
from skbcapd.config.reference import reference, schema
from skbcapd.config.settings import ROWS, Via

ROOT = Path(__file__).resolve().parent.parent

# What a word after an option or command is, by its metavar; completion offers these.
_FILES = {"FILE": "-f", "DIR": "-d"}
_DEVICE = "-i"


def texts() -> dict[str, str]:
    """Everything that is generated.

    Returns:
        Path, relative to the tree, to its text.
    """
    return {
        "etc/skbcapd.yaml": reference(),
        "etc/skbcapd.schema.json": schema(),
        "man/skbcapd.8": _page("skbcapd.8.in", "COMMANDS", _commands()),
        "man/skbcapd.yaml.5": _page("skbcapd.yaml.5.in", "KEYS", _keys()),
        "completions/skbcapd": _completion(),
        "wireshark/skbcapd.lua": _between("wireshark/skbcapd.lua", _lua_fields()),
        "docs/format.md": _between("docs/format.md", _format_fields()),
    }


def _between(path: str, lines: Iterator[str]) -> str:
    """A file with other lines between the one that has FIELDS: and the one that has END."""
    text = (ROOT / path).read_text()
    found = re.fullmatch(r"(.*?FIELDS:[^\n]*\n).*?((?:--|<!--) END.*)", text, re.DOTALL)
    if not found:
        raise ValueError(f"{path} has no place for the fields of a comment")
    return found[1] + "".join(line + "\n" for line in lines) + found[2]


def _lua_fields() -> Iterator[str]:
    """The fields of a comment, for Wireshark; packets without a process have `via`, too."""
    yield "local fields = {"
    for field in TABLE:
        kind, base = ("uint32", "DEC") if field.is_number else ("string", "base.ASCII")
        yield f'    {field.name} = ProtoField.{kind}("skbcapd.{field.name}", "{field.title}", {base}),'
    yield '    via = ProtoField.string("skbcapd.via", "Found by", base.ASCII, "How the process was found"),'
    yield "}"
    yield f"local NUMBERS = {{ {', '.join(f'{field.name} = true' for field in TABLE if field.is_number)} }}"


def _format_fields() -> Iterator[str]:
    """The table of keys in docs/format.md."""
    yield "| key | value |"
    yield "|-|-|"
    for field in TABLE:
        yield f"| `{field.name}` | {field.in_comment} |"
    words = ", ".join(f"`{word}`" for word in get_args(Via)[1:])
    yield f"| `via` | how the process was found, unless it was running: {words} ([attribution](attribution.md)) |"
    yield "| `cut` | names of the values that were cut, separated by commas |"


def _page(template: str, place: str, lines: Iterator[str]) -> str:
    text = (ROOT / "man" / template).read_text()
    return text.replace("VERSION", __version__).replace(f"\n{place}\n", "\n" + "\n".join(lines) + "\n")


def _roff(text: str) -> str:
    """Text as roff: nothing in it is taken for a macro. Each sentence ends its line."""
    lines = [line for part in re.split(r"(?<=\w[.?]) ", text) for line in textwrap.wrap(part, 72)]
    return re.sub(r"^(?=[.'])", r"\\&", _escaped("\n".join(lines)), flags=re.MULTILINE)


def _word(text: str) -> str:
    """One argument of a macro, and never a macro itself."""
    return f'"{_escaped(text)}"' if " " in text else f"\\&{_escaped(text)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def _commands() -> Iterator[str]:
    for name, parser in main.commands().items():
        yield f".It Xo\n.Nm skbcapd {name}"
        for action in _arguments(parser):
            yield f".{_synopsis(action)}"
        yield f".Xc\n{_roff(parser.description or '')}"
        described = [action for action in _arguments(parser) if action.help]
        if described:
            yield ".Bl -tag -width indent -compact"
            for action in described:
                yield f".It {_form(action)}"
                yield _roff(_help(action))
            yield ".El"


def _synopsis(action: argparse.Action) -> str:
    form = _form(action)
    is_optional = action.nargs == "*" if not action.option_strings else not action.required
    if is_optional:
        form = f"Op {form}"
    repeats = isinstance(action, argparse._AppendAction) or action.nargs in {"+", "*"}
    return f"{form} Ns No \\&..." if repeats else form


def _form(action: argparse.Action) -> str:
    names = " , ".join(f"Fl {_word(option[1:])}" for option in action.option_strings)
    value = _value(action)
    choices = _word(value).replace("|", "|\\:")  # a line may be broken there
    return f"{names} Ar {choices}".strip() if value else names


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    return str(action.metavar or action.dest)


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%")
    begin = text if re.match(r"[a-z-]+[:.]", text) else text[:1].upper() + text[1:]  # a value or a file name stays
    return begin + ("" if text.endswith(("?", "...")) else ".")


def _keys() -> Iterator[str]:
    for key, row in ROWS.items():
        default = f"[{row.default}]" if isinstance(row.kind, ListOf) else row.default
        yield f".It Ic {_word(key)}"
        yield from _listed(row.doc.split("\n"))
        yield f".Pp\nDefault\n.Ql {_word(default)} ;\n{_roff(row.kind.expected)}."


def _listed(lines: list[str]) -> Iterator[str]:
    """Paragraphs, and lists of what begins with two spaces: `  word: meaning`, or `  meaning`."""
    for is_list, group in itertools.groupby(lines, lambda line: line.startswith("  ")):
        if is_list:
            yield ".Bl -tag -width indent -compact"
        for line in group:
            name, colon, meaning = line.strip().partition(": ") if is_list else ("", "", line)
            if colon:
                yield f".It Ic {_word(name)}"
            yield _roff(meaning or name)
        if is_list:
            yield ".El"


def _arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """All arguments with a help text, without those that every command has."""
    return [
        action
        for action in parser._actions
        if action.dest not in {"help", "version"} and action.help is not argparse.SUPPRESS
    ]


def _completion() -> str:
    parsers = main.commands()
    commands = "".join(f"    {name}) options={_quoted(_options(parser))} ;;\n" for name, parser in parsers.items())
    values = "".join(f"    {pattern}) {offer} ;;\n" for pattern, offer in _values())
    names = _quoted([*parsers, "--help", "--version"])
    keys = _quoted([f"{key}=" for key in ROWS])
    words = "".join(
        f"    {key}) words={_quoted(words)} ;;\n" for key, row in ROWS.items() if (words := _choices(row.kind))
    )
    return _BASH.format(names=names, commands=commands, values=values, keys=keys, words=words)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    shown = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
    return [option for action in shown for option in action.option_strings]


def _values() -> Iterator[tuple[str, str]]:
    """For each option that takes a value: command and option as a pattern, and what is offered."""
    for name, parser in main.commands().items():
        for action in _arguments(parser):
            for option in action.option_strings if action.nargs != 0 else []:
                if action.choices is not None:
                    offer = f"_skbcapd_offer -W {_quoted([str(choice) for choice in action.choices])}"
                elif action.metavar in _FILES:
                    offer = f"_skbcapd_offer {_FILES[str(action.metavar)]}"
                elif option == _DEVICE:
                    offer = '_skbcapd_offer -W "any $(command ls /sys/class/net)"'
                elif action.metavar == "KEY=VALUE":
                    offer = "_skbcapd_setting"
                else:
                    offer = ":"
                yield f'"{name} {option}"', offer


def _choices(kind: object) -> list[str]:
    if isinstance(kind, ListOf):
        kind = kind.item
    return list(kind.words) if isinstance(kind, Word) else []


def _quoted(words: list[str]) -> str:
    return f"'{' '.join(words)}'"


_BASH = """\
# Completion of skbcapd for bash. Written by tools/manual.py from the program's own options: do not edit.

_skbcapd_offer() {{
    mapfile -t COMPREPLY < <(compgen "$@" -- "$word")
}}

# A setting: its key, then its value. bash takes = for a word of its own.
_skbcapd_setting() {{
    local words=
    case $1 in
{words}    esac
    if [[ $1 ]]; then
        _skbcapd_offer -W "$words"
    else
        _skbcapd_offer -W {keys}
        compopt -o nospace
    fi
}}

_skbcapd() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} name=${{COMP_WORDS[1]}} options=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _skbcapd_offer -W {names}
        return
    fi
    if [[ $word == = ]]; then
        word=
        _skbcapd_setting "$before"
        return
    fi
    if [[ $before == = ]]; then
        _skbcapd_setting "${{COMP_WORDS[COMP_CWORD - 2]}}"
        return
    fi
    case "$name $before" in
{values}    *)
        case $name in
{commands}        esac
        if [[ $word == -* ]]; then
            _skbcapd_offer -W "$options"
        else
            _skbcapd_offer -f
        fi
        ;;
    esac
}}

complete -o filenames -F _skbcapd skbcapd
"""


if __name__ == "__main__":
    for path, text in texts().items():
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_text(text)
