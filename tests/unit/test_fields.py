"""The table of comment fields, and everything that is generated from it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import skbcapd
from skbcapd.attribution.containers import Names
from skbcapd.attribution.fields import CUTTABLE, FIELDS, GROUPS, TABLE, Dropped, Field, comment_fields, needs_process
from skbcapd.attribution.processes import Process, User
from skbcapd.capture.rules import Rules, Subject, Verdict
from skbcapd.config.parser import default_settings
from skbcapd.config.reference import schema
from skbcapd.config.settings import ROWS, RULE_KEYS
from skbcapd.pcapng.comment import comment, fit
from skbcapd.pcapng.reader import Stamp, _read_comment

ROOT = Path(skbcapd.__file__).parent.parent
ID = "0123456789abcdef" * 4
USER = User(7, 8, 59_000_000_000, b"isc-net-0000", b"dig")
PROCESS = Process(
    tgid=7,
    start=59_000_000_000,
    comm=b"dig",
    ppid=1,
    uid=101,
    user=b"bob",
    exe=b"/usr/bin/dig",
    cmdline=b"dig\0example.org\0",
    cgroup=f"/system.slice/docker-{ID}.scope".encode(),
    gid=102,
    names=Names(b"web", b"shop/web-0/nginx"),
    status=b"Name:\tdig\nNStgid:\t7\t3\t1\nNSpid:\t7\t3\t1\nNSpgid:\t7\n",
)
DROPPED = Dropped(b"NETFILTER_DROP", b"nf_hook_slow")
ALL: dict[str, bytes | int] = {
    "comm": b"isc-net-0000",
    "pid": 8,
    "tgid": 7,
    "process": b"dig",
    "ppid": 1,
    "uid": 101,
    "user": b"bob",
    "gid": 102,
    "exe": b"/usr/bin/dig",
    "cmdline": b"dig example.org",
    "cgroup": f"/system.slice/docker-{ID}.scope".encode(),
    "unit": f"docker-{ID}.scope".encode(),
    "container": b"web",
    "pod": b"shop/web-0/nginx",
    "ns_pid": 1,
    "drop": b"NETFILTER_DROP",
    "at": b"nf_hook_slow",
}


def test_every_field_has_a_value() -> None:
    """For a dropped packet of a completely known process, each field has its value, in the requested order."""
    assert dict(comment_fields(FIELDS, (USER, PROCESS), dropped=DROPPED)) == ALL
    assert comment_fields(["uid", "none", "comm"], (USER, PROCESS)) == [("uid", 101), ("comm", b"isc-net-0000")]


def test_unknown_values_are_left_out() -> None:
    """Fields of an unknown process are left out, and fields from /proc without a record."""
    nobody = User(0, 0, 0, b"", b"")
    assert comment_fields(FIELDS, (nobody, None)) == []
    assert comment_fields(FIELDS, (nobody, None), dropped=Dropped(b"NO_SOCKET")) == [("drop", b"NO_SOCKET")]
    assert dict(comment_fields(FIELDS, (USER, None))).keys() == {"comm", "pid", "tgid", "process"}
    bare = Process(7, 0, b"dig", None, None, b"", b"", b"", b"")
    assert dict(comment_fields(FIELDS, (USER, bare))).keys() == {"comm", "pid", "tgid", "process"}


@pytest.mark.parametrize(
    ("names", "process", "expected"),
    [
        (("comm", "process"), b"dig", {"comm": b"isc-net-0000", "process": b"dig"}),
        (("comm", "process"), b"isc-net-0000", {"comm": b"isc-net-0000"}),
        (("process",), b"isc-net-0000", {"process": b"isc-net-0000"}),
        (("comm", "process"), b"", {"comm": b"isc-net-0000"}),
    ],
)
def test_the_process_stands_where_it_differs(
    names: tuple[str, ...], process: bytes, expected: dict[str, bytes]
) -> None:
    """The process name is left out if it equals the name of the thread in the comment, or is not
    known.
    """
    assert dict(comment_fields(names, (replace(USER, process=process), None))) == expected


def test_a_rule_sees_a_name_that_the_comment_leaves_out() -> None:
    """The comment leaves out the name of a process if the thread has the same. A rule matches it all the same, so only
    the description of the comment says that it is left out.
    """
    main = replace(USER, comm=b"dig")
    assert dict(comment_fields(("comm", "process"), (main, None))) == {"comm": b"dig"}
    rules = Rules(default_settings({"rules": "[{process: dig, action: drop}]"}).rules)
    assert rules.decide(Subject(b"eth0", 1, "out", "current", main, PROCESS)) == Verdict(keeps=False)
    described = json.loads(schema())["properties"]
    assert "left out" not in described["rules"]["items"]["properties"]["process"]["description"]
    assert "left out if it equals comm" in described["comment"]["description"]


def test_containers_have_names_or_ids() -> None:
    """A container has its name, otherwise the first twelve digits of its id; a rule can match both."""
    unnamed = replace(PROCESS, names=Names())
    assert dict(comment_fields(["container", "pod"], (USER, unnamed))) == {"container": ID[:12].encode()}
    for text, process, matches in (
        ("web", PROCESS, True),
        (ID, PROCESS, True),
        (ID[:12], PROCESS, True),
        ("web", unnamed, False),
        (ID[:12], unnamed, True),
        (ID[:11], PROCESS, False),
    ):
        rules = Rules(default_settings({"rules": f"[{{container: '{text}', action: drop}}]"}).rules)
        assert (rules.decide(Subject(b"eth0", 1, "out", "current", USER, process)) == Verdict(keeps=False)) == matches


@pytest.mark.parametrize(
    ("status", "number"),
    [
        (b"NSpid:\t7\n", 7),
        (b"NSpid:\t7\t3\n", 3),
        (b"NSpid:\t7\t3", None),  # cut
        (b"NSpid:\t\n", None),
        (b"NSpid:\t7\t-3\n", None),
        (b"XNSpid:\t7\n", None),
        (b"", None),
    ],
)
def test_the_number_in_its_namespace(status: bytes, number: int | None) -> None:
    """The process id in its own PID namespace is the last complete number in /proc."""
    assert FIELDS["ns_pid"].value(USER, replace(PROCESS, status=status)) == number


@pytest.mark.parametrize("field", TABLE, ids=lambda field: field.name)
def test_a_row_is_all_that_a_field_needs(field: Field) -> None:
    """Each row is in the setting, the rules, the schema, the man page, the fields of Wireshark, and
    format.md.
    """
    assert re.fullmatch(r"[a-z_]+", field.name)
    assert [field.of_thread, field.of_process, field.of_drop].count(None) == 2
    assert default_settings({"comment": field.name}).comment == (field.name,)
    assert (field.name in default_settings().comment) == field.is_default
    assert f"\n  {field.name}: {field.in_comment}\n" in ROWS["comment"].doc
    assert RULE_KEYS[field.name].doc == field.doc
    described = json.loads(schema())["properties"]
    assert field.name in described["comment"]["items"]["enum"]
    assert described["rules"]["items"]["properties"][field.name]["description"].startswith(field.doc)
    manual = re.sub(r"\\([-&])", lambda found: found[1].strip("&"), (ROOT / "man/skbcapd.yaml.5").read_text())
    assert f".It Ic {field.name} {field.in_comment} ." in manual.replace("\n", " ")
    kind = "uint32" if field.is_number else "string"
    lua = (ROOT / "wireshark/skbcapd.lua").read_text()
    assert f'{field.name} = ProtoField.{kind}("skbcapd.{field.name}", "{field.title}"' in lua
    assert (f"{field.name} = true" in lua) == field.is_number
    assert f"| `{field.name}` | {field.in_comment} |" in (ROOT / "docs/format.md").read_text()
    assert needs_process([field.name]) == (field.of_process is not None)


@pytest.mark.parametrize("field", TABLE, ids=lambda field: field.name)
def test_a_rule_may_ask_for_each_field(field: Field) -> None:
    """A rule on a field matches its value, and no other."""
    value = ALL[field.name]
    text = str(value) if isinstance(value, int) else value.decode()
    subject = Subject(b"eth0", 1, "out", "current", USER, PROCESS, dropped=DROPPED)
    number = field.most if value == field.least else field.least
    for wanted, matches in ((text, True), (str(number) if field.is_number else "other", False)):
        rules = Rules(default_settings({"rules": f"[{{{field.name}: '{wanted}', action: drop}}]"}).rules)
        assert rules.needs_process == (field.of_process is not None)
        assert (rules.decide(subject) == Verdict(keeps=False)) == matches


@pytest.mark.parametrize("name", CUTTABLE)
def test_cuttable_fields_are_cut(name: str) -> None:
    """The end of a value that does not fit into the label is cut, and `cut` names it."""
    assert fit([("comm", b"a"), (name, b"x" * 900)])[-1] == ("cut", name)


@pytest.mark.parametrize("name", GROUPS)
def test_packets_can_be_grouped(name: str) -> None:
    """The reader finds each field by which packets can be grouped."""
    text = comment([(name, ALL[name])]).encode()
    found = _read_comment(text)
    assert isinstance(found, Stamp)
    assert found.value(name) == ALL[name]
