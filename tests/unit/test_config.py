"""The config reader: the reference file compared with the defaults, tables of right and wrong
files, and random input.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from skbcapd.config import parser
from skbcapd.config.kinds import DURATION, ListOf, Quantity
from skbcapd.config.parser import default_settings, load
from skbcapd.config.reference import reference, schema
from skbcapd.config.settings import ROWS, RULE_KEYS, Buffer, Files, Log, Records, Settings
from skbcapd.errors import ConfigError
from tests.support import faults

REFERENCE = Path(__file__).parents[2] / "etc" / "skbcapd.yaml"
SCHEMA = REFERENCE.with_name("skbcapd.schema.json")
MIB = 1 << 20

# The documented defaults, written a second time.
DEFAULTS = Settings(
    interfaces=("any",),
    directions=("out", "in"),
    transmit="queue",
    snaplen=262144,
    payload="all",
    encode="kernel",
    attach="auto",
    buffer=Buffer(size=64 * MIB),
    files=Files(directory="/var/log/skbcapd"),
    log=Log(level="info"),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory for the config files of this module's tests."""
    return tmp_path_factory.mktemp("config") / "skbcapd.yaml"


def shown(value: object) -> str:
    """The id of a row in a table of tests."""
    return ascii(value)[:40] if isinstance(value, str | bytes) else ""


def problems(path: Path, content: str | bytes, **overrides: str) -> list[str]:
    """Load a file with `content`; returns the messages, with F as the name of the file."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        load(path, overrides)
    except ConfigError as error:
        return [str(problem).replace(str(path), "F") for problem in error.problems]
    return []


# The reference file.


def test_defaults_are_those_promised() -> None:
    """Without a file, with the reference file and with an empty mapping, each setting has its
    documented default.
    """
    assert default_settings() == Settings() == load(REFERENCE) == DEFAULTS


def test_reference_file_matches_the_table_of_settings() -> None:
    """etc/skbcapd.yaml has exactly the text of `reference`."""
    assert REFERENCE.read_text(encoding="utf-8") == reference()


def test_reference_file_is_a_manual() -> None:
    """The reference file has each key once, with its default, after a comment with its meaning and
    range.
    """
    text = REFERENCE.read_text(encoding="utf-8")
    flat: dict[str, Any] = {}
    for name, value in yaml.safe_load(text).items():
        flat |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    assert list(flat) == list(ROWS)
    for key, row in ROWS.items():
        default = row.default.split(", ") if isinstance(row.kind, ListOf) else row.default
        default = [] if isinstance(row.kind, Records | ListOf) and not row.default else default
        assert flat[key] == default or str(flat[key]) == default or yaml.safe_load(row.default) is flat[key]
        comments = re.findall(rf"((?:^ *#.*\n)+) *{key.rpartition('.')[2]}: ", text, re.MULTILINE)
        texts = [" ".join(re.sub(r"^ *# ", "", comment, flags=re.MULTILINE).split()) for comment in comments]
        meaning = " ".join(row.doc.split())
        assert len([words for words in texts if meaning in words and row.kind.expected in words]) == 1


# The schema, judged by the jsonschema library.


def test_schema_matches_the_table_of_settings() -> None:
    """etc/skbcapd.schema.json has exactly the text of `schema`, and is a valid schema."""
    assert SCHEMA.read_text(encoding="utf-8") == schema()
    jsonschema.Draft7Validator.check_schema(json.loads(schema()))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (reference(), True),
        ("{}", True),
        ("buffer:", True),
        ("buffer: {size: 8192KiB}", True),
        ("snaplen: 64", True),
        ("interfaces: [eth0, 5]", True),
        ("rules: [{comm: 'a*', action: keep}, {uid: 0, children: true, filter: port 22, snaplen: 96}]", True),
        ("payload: none\nrules: [{process: nginx, payload: all}]", True),
        ("payload: headers", False),
        ("snaplenn: 64", False),
        ("buffer: {sise: 8MiB}", False),
        ("buffer: {size: 64MB}", False),
        ("snaplen: 63", False),
        ("snaplen: [64]", False),
        ("transmit: drivr", False),
        ("directions: []", False),
        ("directions: [in, in]", False),
        ("interfaces: eth0", False),
        ("process_blocks: 1", False),
        ("rules: [{}]", False),
        ("rules: [{com: a}]", False),
        ("rules: [{action: no}]", False),
        ("rules: {comm: a}", False),
    ],
)
def test_schema_and_reader_agree(path: Path, text: str, *, right: bool) -> None:
    """The schema and the reader accept the same files."""
    found = not list(jsonschema.Draft7Validator(json.loads(schema())).iter_errors(yaml.safe_load(text)))
    assert found is right
    assert (not problems(path, text)) is right


# Right values.


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("interfaces: [eth0, wg0]", "interfaces", ("eth0", "wg0")),
        ("interfaces:\n- eth0\n- br-0.100@x\n", "interfaces", ("eth0", "br-0.100@x")),
        ("interfaces: [on, 1, 'null', 0x10, 2026-11-23]", "interfaces", ("on", "1", "null", "0x10", "2026-11-23")),
        ("interfaces: [größe89012345]", "interfaces", ("größe89012345",)),
        ("interfaces: ['eth*', 'wg?']", "interfaces", ("eth*", "wg?")),
        ("exclude: [lo, docker*]", "exclude", ("lo", "docker*")),
        ("exclude: []", "exclude", ()),
        ("directions: [in]", "directions", ("in",)),
        ("directions:\n  - in\n  - out", "directions", ("in", "out")),
        ("transmit: driver", "transmit", "driver"),
        ("snaplen: 64", "snaplen", 64),
        ("snaplen: '96'", "snaplen", 96),
        ("encode: scapy", "encode", "scapy"),
        ("attach: kprobe", "attach", "kprobe"),
        ('"attach" : "tracepoint"  # why', "attach", "tracepoint"),
        ("buffer: {size: 4MiB}", "buffer", {"size": 4 * MIB}),
        ("buffer:\n  size: 4GiB", "buffer", {"size": 4096 * MIB}),
        ("buffer:\n  size: 4194305", "buffer", {"size": 4 * MIB + 1}),
        ("buffer:\n  size: 8192KiB", "buffer", {"size": 8 * MIB}),
        ("buffer:\n  # size: 8192KiB", "buffer", {"size": 64 * MIB}),
        ("files: {directory: ./captures}", "files", {"directory": "./captures"}),
        ("files: {directory: /srv/a b, }", "files", {"directory": "/srv/a b"}),
        ("log: {level: debug}", "log", {"level": "debug"}),
        ("\ufeff---\r\nsnaplen: 100\r\n...\r\n", "snaplen", 100),
        ("{}", "snaplen", 262144),
        ('{"snaplen": 100}', "snaplen", 100),
    ],
    ids=shown,
)
def test_right_value_is_accepted(path: Path, text: str, setting: str, value: object) -> None:
    """A value changes its own setting only, in all spellings of YAML and for all types of YAML."""
    path.write_bytes(text.encode())
    expected = dataclasses.asdict(DEFAULTS)
    expected[setting] = expected[setting] | value if isinstance(value, dict) else value
    assert dataclasses.asdict(load(path)) == expected


NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/:"), min_size=1, max_size=15).filter(
    lambda name: len(name.encode()) <= 15 and name not in {".", "..", "any"}
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "interfaces": st.just(["any"]) | st.lists(NAMES, min_size=1, max_size=5, unique=True),
        "directions": st.sampled_from([["out", "in"], ["in", "out"], ["in"], ["out"]]),
        "transmit": st.sampled_from(["queue", "driver"]),
        "snaplen": st.integers(64, 262144),
        "buffer": st.fixed_dictionaries({}, optional={"size": st.integers(4 * MIB, 4096 * MIB)}),
        "files": st.fixed_dictionaries({"directory": st.from_regex(r"[ -}][ -~]{0,50}", fullmatch=True)}),
    },
)


@given(content=FILES, flow=st.booleans())
def test_settings_of_another_program_are_read(path: Path, *, content: dict[str, Any], flow: bool) -> None:
    """Settings written by PyYAML, in both of its styles, are read back equal."""
    path.write_text(yaml.safe_dump(content or {}, default_flow_style=flow, allow_unicode=True), encoding="utf-8")
    loaded = dataclasses.asdict(load(path))
    for key, value in content.items():
        assert loaded[key] == (loaded[key] | value if isinstance(value, dict) else type(loaded[key])(value))


# Wrong values.

EMPTY = "F: found no key, expected at least one (hint: a file of {} asks for every default)"
FLOW = "(hint: while parsing a flow sequence that starts on line 1)"
FLOW_2 = "(hint: while parsing a flow sequence that starts on line 2)"
MAPPING = "(hint: while parsing a flow mapping that starts on line 2)"
QUOTED = "(hint: while scanning a quoted scalar that starts on line 1)"
LONG = "x" * 256
BELOW = "found an unknown key (hint: did you mean {}, on a line below {}:?)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # Keys.
        ("snapln: 96", "F:1: snapln: found an unknown key (hint: did you mean snaplen?)"),
        ("SnapLen: 96", "F:1: SnapLen: found an unknown key (hint: did you mean snaplen?)"),
        ("zzz: 96", "F:1: zzz: found an unknown key"),
        ("\n\nbufer: {size: 4MiB}", "F:3: bufer: found an unknown key (hint: did you mean buffer?)"),
        ("buffer:\n  siz: 4MiB", "F:2: buffer.siz: " + BELOW.format("size", "buffer")),
        ("buffer.size: 4MiB", "F:1: buffer.size: " + BELOW.format("size", "buffer")),
        ("directory: /x", "F:1: directory: " + BELOW.format("directory", "files")),
        ("snaplen: 96\nsnaplen: 97", "F:2: snaplen: found a second time, expected once (hint: first on line 1)"),
        ("log: {level: info}\n'log':\n", "F:2: log: found a second time, expected once (hint: first on line 1)"),
        ("buffer: 4MiB", 'F:1: buffer: found "4MiB", expected keys below it'),
        ("log: [level]", "F:1: log: found a list, expected keys below it"),
        ("? [a]\n: b", "F:1: found a list, expected the name of a key"),
        ("log: {{}: b}", "F:1: log: found keys, expected the name of a key"),
        ("<<: {snaplen: 96}", "F:1: <<: found an unknown key"),
        # Lists.
        ("interfaces: []", "F:1: interfaces: found an empty list, expected at least one entry"),
        ("interfaces: [eth0, any]", "F:1: interfaces: found any beside other entries, expected it alone"),
        ("interfaces: [eth0, lo, eth0]", "F:1: interfaces: found eth0 more than once, expected it once"),
        ("directions: []", "F:1: directions: found an empty list, expected at least one entry"),
        ("directions: [in, in]", "F:1: directions: found in more than once, expected it once"),
        ("directions: [on]", 'F:1: directions: found "on", expected one of out, in'),
        ("directions:\n- inn", 'F:2: directions: found "inn", expected one of out, in (hint: did you mean in?)'),
        # No settings at all.
        ("", EMPTY),
        ("# snaplen: 96\n\n", EMPTY),
        ("---\n", EMPTY),
        ("hello", 'F:1: found "hello", expected keys (hint: as in snaplen: 262144)'),
        ("snaplen 96", 'F:1: found "snaplen 96", expected keys (hint: as in snaplen: 262144)'),
        ("\n- snaplen", "F:2: found a list, expected keys (hint: as in snaplen: 262144)"),
        # Not YAML.
        ("log:\n\tlevel: info\n", "F:2: found a tab, expected spaces"),
        ("log:\n\ta: b\nc:\n  \td: e\n", "F:2: found a tab, expected spaces\nF:4: found a tab, expected spaces"),
        ("snaplen:\t@96", "F:1: found a tab, expected spaces"),
        ("directions: [in\nsnaplen: 96", "F:2: not YAML: expected ',' or ']', but got ':' " + FLOW),
        ("snaplen: 96\ndirections: [in\n", "F:2: not YAML: expected ',' or ']', but got '<stream end>' " + FLOW_2),
        ("directions: [in\n\n\n", "F:1: not YAML: expected ',' or ']', but got '<stream end>' " + FLOW),
        ('filter: "tcp\n', "F:1: not YAML: found unexpected end of stream " + QUOTED),
        ("rules:\n- {comm: a\n\n# c\n", "F:4: not YAML: expected ',' or '}', but got '<stream end>' " + MAPPING),
        ("a: b: c", "F:1: not YAML: mapping values are not allowed here"),
        ("{}\n---\n{}", "F:2: not YAML: expected a single document in the stream, but found another document"),
        ("snaplen: 96\nb: @x", "F:2: not YAML: found character '@' that cannot start any token"),
        (r'a: "\UFFFFFFFF"', "F:1: not YAML: found a number that is too large"),
        ("%YAML 1." + "1" * 5000 + "\n---\n", "F:1: not YAML: found a number that is too large"),
        # Names that are too long for file systems.
        (
            f"files:\n  directory: /a/{LONG}/b",
            (
                f'F:2: files.directory: found "/a/{LONG[:57]}..." (a file name of 256 bytes; file systems allow 255), '
                "expected a path (~ is not expanded)"
            ),
        ),
        (
            "files:\n  name: '" + "x" * 150 + "{host}{time}-{number}.pcapng'",
            (
                f'F:2: files.name: found "{LONG[:60]}..." (a file name of 276 bytes; file systems allow 255), '
                "expected a file name with {time} and {number}, optionally {host}, that ends in .pcapng"
            ),
        ),
        (
            f"metrics:\n  textfile: /{'x' * 246}.prom",
            (
                f'F:2: metrics.textfile: found "/{LONG[:59]}..." (a file name of 256 bytes; file systems allow 255), '
                "expected none, or a path that ends in .prom"
            ),
        ),
        # More than settings need.
        ("log: &a {level: info}", "F:1: found an anchor or alias (& or *), expected the value itself"),
        ("\nlog: *a", "F:2: found an anchor or alias (& or *), expected the value itself"),
        ("log: !!python/object/apply:os.abort []", "F:1: found a tag (!), expected the value alone"),
        ("log: !<x> {}", "F:1: found a tag (!), expected the value alone"),
        ("log: ! {}", "F:1: found a tag (!), expected the value alone"),
        ("a: " + "[" * 16, "F:1: found more than 16 levels, expected lists and keys less deep"),
        ("log: [" + "\n1," * 20_000, "F:19999: found more than 20000 keys and values, expected a config file"),
        # Not text.
        ("snaplen: 96\n\0", 'F:2: found the character "\\x00", expected text'),
        ("a: 1\n\nb: \x1b[31m", 'F:3: found the character "\\x1b", expected text'),
        (b"a: 1\nb: \xff\n", "F:2: found the byte 0xff, expected text in UTF-8"),
        (b"\x7fELF\x02\x01\x01\0", 'F:1: found the character "\\x7f", expected text'),
        ("snaplen: 96".encode("utf-16"), "F:1: found the byte 0xff, expected text in UTF-8"),
    ],
    ids=shown,
)
def test_wrong_file_gets_its_message(path: Path, text: str | bytes, message: str) -> None:
    """Each mistake gives one line: file, line, key, what was found, what was expected, and a hint."""
    found = problems(path, text)
    if text == "snaplen: 96\ndirections: [in\n":
        faults.compare("an unclosed [ on the last line", 1, f"reported on line {found[0].split(':')[1]} of 2")
    if f"{LONG}/b" in str(text):
        faults.compare("check: a name too long for a file system", 1, found[0].partition(" (")[2].partition(")")[0])
    assert found == message.split("\n")


SNAPLEN = ("snaplen:", "a whole number of bytes from 64 to 262144", "the default is 262144")
SIZE = ("buffer:\n  size:", "a size from 4MiB to 4GiB (units: KiB, MiB, GiB)", "the default is 64MiB")
MEANT = (*SIZE[:2], "did you mean 64MiB?")
EVERY = ("files:\n  every:", "0 for never, or a duration from 1s to 366d (units: s, m, h, d)", "did you mean 2m?")
NEVER = (*EVERY[:2], "the default is 1h")
DEVICE = ("interfaces:\n-", "an interface name or glob (1 to 15 bytes, no space, / or :)", "")
DEVICES = ("interfaces:", f"a list, each entry {DEVICE[1]}", "the default is [any]")
DIRECTORY = ("files:\n  directory:", "a path (~ is not expanded)", "the default is /var/log/skbcapd")
TRANSMIT = ("transmit:", "one of queue, driver", "the default is queue")
LEVEL = ("log:\n  level:", "one of debug, info, warning, error", "the default is info")


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        *(
            (SNAPLEN, text, f'"{text}"')
            for text in ["63", "262145", "-5", "9.5", "1e3", "0x40", "0100", "1_000", "64B", "1KiB", "all", "٩٩"]
        ),
        (SNAPLEN, "9" * 5000, f'"{"9" * 60}..."'),
        *((SIZE, text, f'"{text}"') for text in ["64TB", "1.5GiB", "-5", "4095KiB", "5GiB", "MiB"]),
        (SIZE, "4194303", '"4194303"'),
        *((MEANT, text, f'"{text}"') for text in ["64MB", "64mib", "64M", "64m", "64 MiB", "64Mib"]),
        *((EVERY, text, f'"{text}"') for text in ["2min", "2 minutes", "2M"]),
        *((NEVER, text, f'"{text}"') for text in ["500ms", "2w", "999d", "m", "0min"]),
        (SIZE, "", "nothing"),
        (SIZE, "[64MiB]", "a list"),
        *((DEVICE, text, f'"{text}"') for text in ["a234567890123456", "größe8901234567", "a/b", "eth0:1", ".", ".."]),
        (DEVICE, "a b", '"a b"'),
        (DEVICE, '""', '""'),
        (DEVICE, "", "nothing"),
        (DEVICE, "[eth0]", "a list"),
        (DEVICE, r'"\e[31m\r\0"', r'"\x1b[31m\r\x00"'),
        (DEVICE, r'"\ud800"', r'"\ud800"'),
        (DEVICE, r'"\u202e"', r'"\u202e"'),
        (DEVICES, "eth0", '"eth0"'),
        (DEVICES, "{eth0: }", "keys"),
        (DEVICES, "", "nothing"),
        (DIRECTORY, "", "nothing"),
        (DIRECTORY, '""', '""'),
        (DIRECTORY, "~", "nothing"),
        (DIRECTORY, "~/captures", '"~/captures"'),
        (DIRECTORY, r'"/a\0b"', r'"/a\x00b"'),
        (DIRECTORY, r'"/a\nb"', r'"/a\nb"'),
        (DIRECTORY, "/" + "x" * 4095, f'"/{"x" * 59}..."'),
        (TRANSMIT, "5", '"5"'),
        (TRANSMIT, "on", '"on"'),
        (TRANSMIT, "", "nothing"),
        (TRANSMIT, "''", '""'),
        (TRANSMIT, "null", "nothing"),
        (TRANSMIT, "[queue]", "a list"),
        (LEVEL, "{info: 1}", "keys"),
    ],
    ids=shown,
)
def test_wrong_value_gets_its_message(path: Path, key: tuple[str, str, str], value: str, found: str) -> None:
    """A wrong type, range or spelling gives what was found, what was expected, and the default."""
    spelled, expected, hint = key
    (message,) = problems(path, f"# x\n{spelled} {value}\n")
    line = 1 + len(spelled.splitlines())
    assert message.startswith(f"F:{line}: ")
    assert message.endswith(f": found {found}, expected {expected}" + (f" (hint: {hint})" if hint else ""))


def test_a_wrong_filter_gets_libpcaps_message(path: Path) -> None:
    """A wrong packet filter gives the message of libpcap."""
    what = "expected a packet filter in the syntax of tcpdump"
    assert problems(path, "filter: tcp prot 443", filter="port x") == [
        f'F:1: filter: found "tcp prot 443" (can\'t parse filter expression: syntax error), {what}',
        f"--set: filter: found \"port x\" (unknown port 'x'), {what}",
    ]
    path.write_text("filter: tcp port 443 and not host 10.0.0.1")
    assert load(path).filter == "tcp port 443 and not host 10.0.0.1"
    assert load(path, {"filter": ""}).filter == ""


RULES = """\
rules:
- {comm: /(/, exe: "", uid: -1}
- {commm: a, action: dorp}
- {comm: c, action: drop, payload: none}
- {direction: out, children: true}
- {filter: tcp prot, pid: [1]}
- {action: keep}
- comm: a
  comm: b
- a
- {}
"""


def test_all_problems_of_rules_are_reported(path: Path) -> None:
    """Each wrong rule is reported with its line and number, all at once."""
    assert [re.split(", expected| .hint", line)[0] for line in problems(path, RULES, rules="[{comm: a}")] == [
        'F:2: rules[1].comm: found "/(/" (bad regular expression: missing ), unterminated subpattern at position 0)',
        'F:2: rules[1].exe: found ""',
        'F:2: rules[1].uid: found "-1"',
        "F:3: rules[2].commm: found an unknown key",
        'F:3: rules[2].action: found "dorp"',
        "F:4: rules[3]: found drop beside snaplen, payload or filter",
        "F:5: rules[4]: found children without a condition on a process",
        'F:6: rules[5].filter: found "tcp prot" (can\'t parse filter expression: syntax error)',
        "F:6: rules[5].pid: found a list",
        "F:8: rules: found a rule that is never reached",
        "F:9: rules[7].comm: found a second time",
        'F:10: rules[8]: found "a"',
        "F:11: rules[9]: found keys",
        "--set: rules: not YAML: expected ',' or ']', but got '<stream end>'",
    ]
    assert problems(path, "rules: {comm: a}") == [
        "F:1: rules: found keys, expected a list of rules, for example [{comm: chronyd, action: keep}, {action: drop}]"
    ]


def test_a_dump_needs_a_ring(path: Path) -> None:
    """A rule with `dump` is an error if files.mode is not ring, wherever the mode comes from."""
    text = "rules:\n- {comm: a}\n- {comm: nc, action: dump}\n"
    line = "found dump while files.mode is files, expected keep or drop (hint: or files.mode: ring)"
    assert problems(path, text) == [f"F:3: rules[2].action: {line}"]
    assert problems(path, "files: {mode: files}", rules="[{action: dump}]") == [f"--set: rules[1].action: {line}"]
    assert load(path, {"files.mode": "ring", "rules": "[{action: dump}]"}).rules[0].action == "dump"


def test_rules_are_read_as_they_stand(path: Path) -> None:
    """Rules keep their order; missing keys are None; rules of the command line replace those of the
    file.
    """
    path.write_text(
        "rules:\n- {unit: ssh.service, snaplen: 96}\n- {user: postgres, filter: port 5432}\n- {action: drop}\n"
    )
    first, second, third = load(path).rules
    assert (first.snaplen, first.filter, first.action, first.conditions) == (96, None, None, {"unit"})
    assert (second.filter, second.conditions) == ("port 5432", {"user"})
    assert (third.action, third.conditions) == ("drop", set())
    assert load(path, {"rules": "[{pid: 5}]"}).rules[0].fields == {"pid": 5}
    assert load(path, {"rules": "[]"}).rules == ()


def test_nearest_word_is_suggested(path: Path) -> None:
    """A misspelled word gives the most similar word."""
    expected = 'F:1: transmit: found "Drivr", expected one of queue, driver (hint: did you mean driver?)'
    assert problems(path, "transmit: Drivr") == [expected]


def test_all_problems_are_reported_at_once(path: Path) -> None:
    """Problems of keys, values, list entries, syntax and overrides are reported together, those of
    the file by line.
    """
    text = "log: {level: loud}\ninterfaces:\n- lo\n- a/b\nsnaplen: 1\nsnaplen: 2\nsise: 5\nfiles: [\nbuffer: 4MiB\n"
    assert [re.split(", expected| .hint", line)[0] for line in problems(path, text, snaplen="x", nosuch="y")] == [
        'F:1: log.level: found "loud"',
        'F:4: interfaces: found "a/b"',
        'F:5: snaplen: found "1"',
        "F:6: snaplen: found a second time",
        'F:6: snaplen: found "2"',
        "F:7: sise: found an unknown key",
        "F:9: not YAML: expected ',' or ']', but got '<stream end>'",
        '--set: snaplen: found "x"',
        "--set: nosuch: found an unknown key",
    ]


def test_many_problems_are_cut_short(path: Path) -> None:
    """A file with very many mistakes gives 100 of them, and a line that there are more."""
    found = problems(path, "".join(f"key{number}: x\n" for number in range(5000)))
    assert len(found) == 101
    assert found[-2:] == ["F:100: key99: found an unknown key", "F: more problems than these"]


def test_long_values_and_keys_are_cut(path: Path) -> None:
    """A message quotes at most 60 characters of a key or a value."""
    assert problems(path, f"? {'k' * 5000}\n: x\ntransmit: {'v' * 5000}\n") == [
        f"F:1: {'k' * 60}...: found an unknown key",
        f'F:3: transmit: found "{"v" * 60}...", expected one of queue, driver (hint: the default is queue)',
    ]


# Files that cannot be read.


def test_file_larger_than_a_config_file_is_refused(path: Path) -> None:
    """A file of 1 MiB is read; a larger one is an error."""
    refused = ["F: found more than 1048576 bytes, expected a config file"]
    text = "snaplen: 96 #".ljust(MIB, "x")
    assert problems(path, text) == []
    assert problems(path, text + "x") == refused
    assert problems(path, random.Random(6).randbytes(10_000_000)) == refused


def test_alias_bomb_is_refused_at_the_first_alias(path: Path) -> None:
    """An alias is an error, so a billion entries are never built."""
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert problems(path, bomb) == ["F:1: found an anchor or alias (& or *), expected the value itself"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch.yaml", "cannot be read: No such file or directory"),
        ("nosuch/x.yaml", "cannot be read: No such file or directory"),
        ("directory", "cannot be read: Is a directory"),
        ("fifo", "found a device, pipe or socket, expected a file"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("unreadable", "cannot be read: Input/output error"),
        ("a\0b", "cannot be read: no file can have this name"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
    ids=shown,
)
def test_unreadable_file_is_reported(tmp_path: Path, name: str, message: str) -> None:
    """What is not a file, or cannot be read, is one problem without a line; nothing is waited for."""
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "unreadable").symlink_to("/proc/self/mem")  # a regular file that cannot be read, also by root
    with pytest.raises(ConfigError) as caught:
        load(f"{tmp_path}/{name}")
    (problem,) = caught.value.problems
    assert (problem.line, problem.key, problem.message) == (0, "", message)


def test_file_without_permission_is_reported(path: Path) -> None:
    """A file without permission is one problem; root can read it."""
    path.write_text("snaplen: 96")
    path.chmod(0)
    try:
        if os.access(path, os.R_OK):
            assert load(path).snaplen == 96
        else:
            with pytest.raises(ConfigError, match=r"cannot be read: Permission denied$"):
                load(path)
    finally:
        path.chmod(0o600)


def test_path_is_printed_without_its_control_characters(tmp_path: Path) -> None:
    """Control characters in the name of a file are escaped in messages."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "a\x1b[31m\n\udcff")
    assert str(caught.value) == f"{tmp_path}/a\\x1b[31m\\n\\udcff: cannot be read: No such file or directory"


# Overrides.


def test_overrides_are_stronger_than_the_file(path: Path) -> None:
    """An override replaces the value of the file or the default; lists are written with commas."""
    path.write_text("snaplen: 96\nbuffer: {size: 8MiB}\nfiles: {directory: /srv}\n")
    overrides = {"files.directory": "./captures", "interfaces": "eth0, lo", "directions": "in", "buffer.size": "1GiB"}
    changed = dataclasses.replace(
        DEFAULTS, interfaces=("eth0", "lo"), directions=("in",), buffer=Buffer(1 << 30), files=Files("./captures")
    )
    assert load(path, overrides) == dataclasses.replace(changed, snaplen=96)
    assert default_settings(overrides) == changed


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("snaplen", "1", 'snaplen: found "1", expected a whole number of bytes from 64 to 262144'),
        ("snaplen", "", 'snaplen: found "", expected a whole number of bytes from 64 to 262144'),
        ("log.level", "null", 'log.level: found "null", expected one of debug, info, warning, error'),
        ("interfaces", "lo,,lo", 'interfaces: found "", expected an interface name'),
        ("interfaces", "any,lo", "interfaces: found any beside other entries, expected it alone"),
        ("files.directory", "a\x1b[31m", 'files.directory: found "a\\x1b[31m", expected a path'),
        ("size", "4MiB", "size: found an unknown key (hint: did you mean files.size?)"),
        ("buffer", "4MiB", "buffer: found an unknown key (hint: did you mean buffer.size?)"),
        ("\n", "4MiB", "\\n: found an unknown key"),
    ],
    ids=shown,
)
def test_wrong_override_gets_its_message(key: str, text: str, message: str) -> None:
    """An override is checked like a value of the file; its place is --set."""
    with pytest.raises(ConfigError) as caught:
        default_settings({key: text})
    assert str(caught.value.problems[0]).startswith(f"--set: {message}")


def test_override_does_not_hide_an_error_in_the_file(path: Path) -> None:
    """A wrong value is reported even if an override replaces it."""
    assert len(problems(path, "snaplen: 1", snaplen="96")) == 1


# Kinds that no key uses yet.


def test_duration_has_a_unit() -> None:
    """A duration is a whole number of seconds, minutes, hours or days within its range."""
    kind = Quantity("a duration", "1s", "24h", DURATION)
    assert [kind.parse(text) for text in ("1s", "10s", "5m", "1h", "24h")] == [1, 10, 300, 3600, 86400]
    for text in ("0s", "25h", "10", "5 m", "2d", "-1s", "1.5h", "", "s"):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            kind.parse(text)
    assert kind.expected == "a duration from 1s to 24h (units: s, m, h, d)"


# Random input.

SYNTAX = "\n|\n|\n  |\n  |\n- | - |: |: |, |[|]|{|}|---\n|...\n|<<|? |&a |*a|!|!<|!!str |%YAML 1.1\n|%TAG ! x\n"
SCALARS = '\'|"|\\|>-\n|>2\n|"\\U|"\\x|#|@|`|~|=|0x|1e9|4MiB|-1|2026-11-23|on|null|é|\ufeff|\u2028|\x85|\t|\r'
ATOMS = [
    *(part for key in ROWS for part in (key, key.rpartition(".")[2] + ": ", key.partition(".")[0] + ":\n  ")),
    *(word for row in ROWS.values() for word in row.default.split(", ")),
    *(f"{{{key}: " for key in RULE_KEYS),
    *("rules: [", "rules:\n- ", "}, {", "/(a+)+/", "/[[a]/", "/a{9999999999}/", "tcp port 80", "not"),
    *SYNTAX.split("|"),
    *SCALARS.split("|"),
    *("|", "9" * 5000, "x" * 1100),
]
YAML_LIKE = st.lists(st.sampled_from(ATOMS), max_size=40).map(lambda parts: "".join(parts).encode())
JUNK = st.binary() | st.text(st.characters()).map(lambda text: text.encode("utf-8", "surrogatepass"))


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """The reference file with one to five changes."""
    text = REFERENCE.read_bytes()
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 20))
        text = (
            text[:start] + draw(YAML_LIKE | st.binary(max_size=4) | st.sampled_from(ATOMS).map(str.encode)) + text[end:]
        )
    return text


def assert_sound(loaded: Settings) -> None:
    """Properties that the other modules rely on."""
    assert loaded.interfaces == ("any",) or "any" not in loaded.interfaces
    for values in (loaded.interfaces, loaded.directions):
        assert len(set(values)) == len(values) > 0
    assert all(0 < len(os.fsencode(name)) < 16 and not set(name) & set("/: \0") for name in loaded.interfaces)
    assert set(loaded.directions) <= {"in", "out"}
    assert 64 <= loaded.snaplen <= 262144
    assert 4 * MIB <= loaded.buffer.size <= 4096 * MIB
    assert 0 < len(os.fsencode(loaded.files.directory)) < 4096
    assert "\0" not in loaded.files.directory
    assert loaded.transmit in {"queue", "driver"}
    assert loaded.attach in {"auto", "kprobe", "tracepoint"}


def assert_readable(error: ConfigError, content: bytes) -> None:
    """Each problem is one line of printable text, of limited length, about a line of the file."""
    last = 1 + len(re.findall("\r\n|[\r\n\x85\u2028\u2029]", content.decode(errors="replace")))
    assert 0 < len(error.problems) <= parser.MAX_PROBLEMS + 1
    for problem in error.problems:
        assert 0 <= problem.line <= last
        assert problem.message
        text = str(problem)
        assert text.isprintable()
        assert len(text) < 1500


@pytest.mark.fuzz
@given(content=JUNK | YAML_LIKE | mutants())
@example(content=b"a: !\n")
@example(content=b'"\\')
@example(content=b"\xef\xbb\xbf\xef\xbb\xbf")
def test_any_file_gives_settings_or_readable_problems(path: Path, content: bytes) -> None:
    """Any bytes, random, similar to YAML or almost right, give valid settings or readable problems."""
    path.write_bytes(content)
    try:
        assert_sound(load(path))
    except ConfigError as error:
        assert_readable(error, content)


@pytest.mark.fuzz
@given(overrides=st.dictionaries(st.sampled_from([*ROWS]) | st.text(), st.sampled_from(ATOMS) | st.text(), max_size=5))
def test_any_override_gives_settings_or_readable_problems(overrides: dict[str, str]) -> None:
    """Any overrides give valid settings or readable problems."""
    try:
        assert_sound(default_settings(overrides))
    except ConfigError as error:
        assert_readable(error, b"")
