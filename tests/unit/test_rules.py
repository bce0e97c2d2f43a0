"""Process rules: which one decides, and the result for packets."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from skbcapd.attribution.fields import Dropped
from skbcapd.attribution.processes import Process, User
from skbcapd.capture.rules import DECIDE_S, Rules, Subject, Verdict, rule_warnings
from skbcapd.config.parser import default_settings
from skbcapd.config.pattern import TextPattern
from skbcapd.config.settings import Payload, Rule
from tests.support import faults
from tests.support.proc import Proc

CONTAINER = b"f" * 12 + b"0" * 52
SSHD = Process(
    tgid=1058,
    start=59_000_000_000,
    comm=b"sshd",
    ppid=1,
    uid=107,
    user=b"sshd",
    exe=b"/usr/sbin/sshd",
    cmdline=b"sshd:\0listener\0",
    cgroup=b"/system.slice/ssh.service",
    gid=65534,
)
DOCKER = replace(SSHD, cgroup=b"/system.slice/docker-" + CONTAINER + b".scope")
WORKER = User(1058, 1059, 59_000_000_000, b"worker", b"sshd")
SUBJECT = Subject(b"eth0", 4026531840, "out", "current", WORKER, SSHD)
NOBODY = replace(SUBJECT, user=User(0, 0, 0, b"", b""), process=None)
KEPT, DROPPED = Verdict(), Verdict(keeps=False)


def rules(text: str, **arguments: object) -> Rules:
    """Rules as in --set."""
    return Rules(default_settings({"rules": text, "files.mode": "ring"}).rules, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ("comm: worker", True),
        ("comm: work", False),
        ("comm: 'w*r'", True),
        ("comm: /ork/", True),
        ("comm: /^ork/", False),
        ("comm: sshd", False),  # the thread has another name
        ("process: sshd", True),
        ("process: worker", False),
        ("process: 's*'", True),
        ("ppid: 1", True),
        ("ppid: 2", False),
        ("pid: 1059", True),
        ("pid: 1058", False),
        ("tgid: 1058", True),
        ("exe: /usr/sbin/sshd", True),
        ("exe: sshd", False),
        ("exe: '*/sshd'", True),
        ("cmdline: 'sshd: *'", True),
        ("cmdline: /listener$/", True),
        ("uid: 107", True),
        ("uid: 0", False),
        ("user: sshd", True),
        ("user: root", False),
        ("gid: 65534", True),
        ("cgroup: /system.slice/*", True),
        ("unit: ssh.service", True),
        ("unit: xssh.service", False),
        ("unit: sh.service", False),
        ("container: '*'", False),
        ("netns: 4026531840", True),
        ("netns: 4026531841", False),
        ("netns: blue", False),
        ("interface: eth*", True),
        ("interface: eth", False),
        ("direction: out", True),
        ("direction: in", False),
        ("via: current", True),
        ("via: socket", False),
        ("comm: worker, uid: 107, direction: out", True),
        ("comm: worker, uid: 0, direction: out", False),
    ],
)
def test_all_conditions_must_hold(conditions: str, *, matches: bool) -> None:
    """A rule decides if all its conditions are true: globs on the complete text, regular
    expressions on any part.
    """
    verdict = rules(f"[{{{conditions}, action: drop}}]").decide(SUBJECT)
    assert verdict == Verdict(keeps=not matches)


def test_containers_are_known_by_long_and_short_ids() -> None:
    """A container matches by its complete id or by the first twelve digits."""
    subject = replace(SUBJECT, process=DOCKER)
    for pattern in (CONTAINER.decode(), "f" * 12, "f*"):
        assert rules(f"[{{container: {pattern}, action: drop}}]").decide(subject) == DROPPED
    assert rules("[{container: 0*, action: drop}]").decide(subject) == KEPT


@pytest.mark.parametrize("conditions", ["user: '*'", "uid: 0", "exe: '*'", "unit: '*'", "cmdline: '*'", "cgroup: /^/"])
def test_conditions_on_unknown_values_are_false(conditions: str) -> None:
    """A condition on an unknown value is false."""
    unknown = replace(SSHD, uid=None, user=b"", exe=b"", cmdline=b"", cgroup=b"")
    found = rules(f"[{{{conditions}, action: drop}}]")
    assert found.decide(replace(SUBJECT, process=None)) == KEPT
    assert found.decide(replace(SUBJECT, process=unknown)) == KEPT
    assert found.decide(NOBODY) == KEPT


def test_the_first_match_decides() -> None:
    """Rules are evaluated in order; snaplen, payload and filter are those of the first match, or the
    general ones.
    """
    found = rules(
        "[{unit: ssh.service, direction: in, snaplen: 96, payload: none}, {comm: worker, filter: port 5432}, "
        "{action: drop}]"
    )
    assert found.filters == {1: "port 5432"}
    assert found.most == 96
    assert found.decide(SUBJECT) == Verdict(filter=1)
    assert found.decide(replace(SUBJECT, direction="in")) == Verdict(snaplen=96, payload="none")
    assert found.decide(replace(SUBJECT, user=replace(WORKER, comm=b"other"))) == DROPPED
    assert Rules().decide(SUBJECT) == KEPT
    assert rules("[{action: dump, filter: port 1}]").decide(SUBJECT) == Verdict(filter=1, dump=1)


OTHER = replace(SSHD, tgid=1060, exe=b"/usr/sbin/other")
OF_OTHER = replace(SUBJECT, user=replace(WORKER, tgid=1060, comm=b"other", process=b"other"), process=OTHER)


@pytest.mark.parametrize(
    ("conditions", "subject", "payload"),
    [
        ("process: sshd", OF_OTHER, None),
        # Nothing is known about the process.
        ("process: sshd", replace(NOBODY, via="unknown"), "none"),
        ("process: sshd", replace(NOBODY, via="forwarded"), "none"),
        ("process: sshd", replace(NOBODY, via="kernel"), None),
        ("unit: ssh.service, children: true", replace(NOBODY, via="unknown"), "none"),
        ("process: sshd, direction: in", replace(NOBODY, via="unknown"), None),
        ("interface: eth1", replace(NOBODY, via="unknown"), None),
        # Only what the kernel program knows is known.
        ("unit: ssh.service", replace(SUBJECT, process=None), "none"),
        ("unit: ssh.service, process: sshd", replace(SUBJECT, process=None), "none"),
        ("unit: ssh.service, process: nginx", replace(SUBJECT, process=None), None),
        ("process: nginx", replace(SUBJECT, process=None), None),
        ("process: nginx, children: true", replace(SUBJECT, process=None), "none"),
        ("unit: nginx.service", SUBJECT, None),
        # One of several.
        ("process: sshd", replace(NOBODY, via="group", group=[(WORKER, SSHD), OF_OTHER.candidates[0]]), "none"),
        ("process: nginx", replace(NOBODY, via="group", group=[(WORKER, SSHD), OF_OTHER.candidates[0]]), None),
        ("process: sshd", replace(NOBODY, via="group"), "none"),
    ],
)
def test_payload_of_an_unknown_process_may_be_that_of_a_rule(
    conditions: str, subject: Subject, payload: Payload | None
) -> None:
    """A rule with `payload: none` also cuts payload of packets that may belong to its process, whichever
    rule keeps them.
    """
    rule = f"{{{conditions}, payload: none}}"
    assert rules(f"[{rule}]").decide(subject) == Verdict(payload=payload)
    kept = Verdict(snaplen=96, payload=payload or "all")
    assert rules(f"[{rule}, {{payload: all, snaplen: 96}}]").decide(subject) == kept
    assert not rules(f"[{rule}, {{action: drop}}]").decide(subject).keeps


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ("comm: worker", True),
        ("process: sshd", True),
        ("user: sshd", True),
        ("unit: ssh.service", True),
        ("exe: /usr/sbin/sshd", False),
        ("exe: '/usr/sbin/*'", True),
        ("tgid: 1058", False),
        ("pid: 1059", False),
        ("tgid: 1058, direction: out", False),
        ("direction: out", True),
    ],
)
def test_a_condition_is_true_for_all_candidates(conditions: str, *, matches: bool) -> None:
    """For a packet with several candidates, a condition is true if it is true for all of them."""
    users = replace(WORKER, tid=0), replace(WORKER, tgid=1060, tid=0)
    group = replace(NOBODY, via="group", group=[(users[0], SSHD), (users[1], OTHER)])

    assert (rules(f"[{{{conditions}, action: drop}}]").decide(group) == DROPPED) == matches


def test_ancestors_count_with_children() -> None:
    """With `children` the conditions can be true for the process or for one ancestor: all for the
    same one.
    """
    shell = replace(SSHD, tgid=500, comm=b"bash", exe=b"/bin/bash", uid=0)
    parents = {1058: shell, 500: None}

    def verdict(text: str) -> Verdict:
        return rules(text, parent=lambda process: parents[process.tgid]).decide(SUBJECT)

    assert verdict("[{comm: bash, action: drop}]") == KEPT
    assert verdict("[{comm: bash, children: true, action: drop}]") == DROPPED
    assert verdict("[{tgid: 500, exe: /bin/bash, children: true, action: drop}]") == DROPPED
    assert verdict("[{tgid: 500, uid: 107, children: true, action: drop}]") == KEPT
    assert verdict("[{comm: worker, children: true, action: drop}]") == DROPPED


def test_a_rule_on_drops_needs_no_process() -> None:
    """A condition on the drop is true for dropped packets with such a reason, also if no process is known; it is
    false for packets that were not dropped. A rule can have conditions on both.
    """
    nobody = replace(NOBODY, via="unknown")
    filtered = Dropped(b"NETFILTER_DROP", b"nf_hook_slow")
    only = rules("[{drop: NETFILTER_*}, {action: drop}]")
    both = rules("[{drop: NETFILTER_*, comm: worker}, {action: drop}]")
    for subject, dropped, kept in (
        (SUBJECT, filtered, (True, True)),
        (nobody, filtered, (True, False)),
        (SUBJECT, Dropped(b"NO_SOCKET"), (False, False)),
        (SUBJECT, None, (False, False)),
    ):
        found = replace(subject, dropped=dropped)
        assert (only.decide(found).keeps, both.decide(found).keeps) == kept
    assert not only.needs_process
    hidden = replace(nobody, dropped=Dropped(b"NETFILTER_DROP"))
    assert rules("[{at: '*', action: drop}]").decide(hidden).keeps


def test_a_loop_of_ancestors_ends() -> None:
    """A process that is its own ancestor, for example because ids are reused, is no endless loop."""
    found = rules("[{comm: init, children: true, action: drop}]", parent=lambda process: process)
    assert found.decide(SUBJECT) == KEPT


def test_namespaces_have_names(tmp_path: Path) -> None:
    """A network namespace also matches by its current name in /run/netns."""
    found = rules("[{netns: blue, action: drop}]", named=tmp_path)
    assert found.decide(SUBJECT) == KEPT
    (tmp_path / "blue").touch()
    inode = (tmp_path / "blue").stat().st_ino
    assert found.decide(replace(SUBJECT, netns=inode)) == DROPPED


def test_processes_are_read_only_if_a_rule_needs_them() -> None:
    """Values from the kernel program need no /proc."""
    assert not rules("[{comm: a}, {pid: 1}, {interface: lo, via: flow}]").needs_process
    assert rules("[{unit: a}]").needs_process
    assert rules("[{comm: a, children: true}]").needs_process


def test_a_command_line_cannot_delay_a_decision(caplog: pytest.LogCaptureFixture) -> None:
    """An expression that backtracks too long is stopped: its condition is false, which is logged
    once.
    """
    evil = replace(SSHD, cmdline=b"a" * 4000 + b"\0")
    patterns = (r"/(?=(a+)+b)a/", r"/^(?=(a+)+c)a/")
    texts = [f"{{cmdline: '{pattern}', children: true, action: drop}}" for pattern in patterns]
    found = rules(f"[{', '.join(texts)}, {{uid: 107, snaplen: 96}}]", parent=lambda process: process)
    subject = replace(SUBJECT, process=evil)
    begin = time.thread_time()
    for _ in range(101):
        assert found.decide(subject) == Verdict(snaplen=96)
    # 50 ms each until a tenth of the time is used, then 1 ms.
    took = time.thread_time() - begin
    faults.compare("an expression that backtracks", 101, f"{took:.2f} s for all")
    assert took < 101 * DECIDE_S / 2
    assert [line.partition(": ")[0] for line in caplog.messages] == ["rules[1].cmdline", "rules[2].cmdline"]
    assert "takes too long" in caplog.messages[0]
    assert found.decide(SUBJECT) == Verdict(snaplen=96)


def test_other_processes_are_still_matched() -> None:
    """While the command line of another process uses up the time, expressions still match other
    processes.
    """
    found = rules(r"[{cmdline: '/(?=(a+)+b)a|listener/', action: drop}]")
    evil = replace(SUBJECT, process=replace(SSHD, cmdline=b"a" * 4000))
    for _ in range(13):
        assert found.decide(evil) == KEPT
        assert found.decide(SUBJECT) == DROPPED


def test_a_rule_on_a_name_without_threads_is_reported(tmp_path: Path) -> None:
    """A rule on a name that only main threads have, while other threads send, is reported with the
    right key.
    """
    proc = Proc(tmp_path)
    for tgid, names in ((7, [b"web\n", b"worker-1\n"]), (8, [b"plain\n", b"plain\n"]), (9, [b"esc\x1b\n", b"x\n"])):
        for tid, name in enumerate(names, tgid * 10):
            thread = proc.path / str(tgid) / "task" / str(tid)
            thread.mkdir(parents=True)
            (thread / "comm").write_bytes(name)
        (proc.path / str(tgid) / "comm").write_bytes(names[0])
    texts = ["comm: web", "comm: plain", "comm: dig", "comm: 'd*'", "comm: '*'", "process: dig"]
    texts += ["comm: esc*", "comm: /eb$/", "comm: web, process: a"]
    chosen = default_settings({"rules": "[" + ", ".join(f"{{{text}}}" for text in texts) + "]"})
    text = "gives its threads other names, such as"
    expected = {1: ("web", "worker-1"), 3: ("dig", "isc-net-0000"), 4: ("delv", "isc-net-0000")}
    expected |= {7: (r"esc\x1b", "x"), 8: ("web", "worker-1")}
    assert list(rule_warnings(chosen.rules, [], [], proc.path)) == [
        f"rules[{number}].comm: {name} {text} {thread}; the key process means all threads of {name}"
        for number, (name, thread) in expected.items()
    ]


def test_missing_names_are_reported(tmp_path: Path) -> None:
    """A rule with a missing user, unit or interface is reported, and stays."""
    (tmp_path / "ssh.service").touch()
    texts = ("user: nosuchuser", "user: root", "unit: ssh.*", "unit: nosuch.service", "interface: wg*", "interface: l*")
    chosen = default_settings({"rules": "[" + ", ".join(f"{{{text}}}" for text in texts) + "]"}).rules
    assert list(rule_warnings(chosen, ["lo"], [str(tmp_path)])) == [
        "rules[1].user: no such user is known on this machine",
        "rules[4].unit: systemd has no such unit now",
        "rules[5].interface: there is no such interface now",
    ]


def test_an_option_is_named_as_it_was_written(caplog: pytest.LogCaptureFixture) -> None:
    """Warnings about a selector of the command line name the option and its value, not a rule."""
    chosen = [
        Rule({"comm": TextPattern("dig"), "user": TextPattern("nosuchuser")}, is_option=True),
        Rule({"unit": TextPattern("nosuch.service")}, is_option=True),
        Rule(action="drop"),
    ]
    assert list(rule_warnings(chosen, ["lo"], [], Path("/nonexistent"))) == [
        "--user nosuchuser: no such user is known on this machine",
        "--comm dig: dig gives its threads other names, such as isc-net-0000; --process means all threads of dig",
        "--unit nosuch.service: systemd has no such unit now",
    ]
    slow = Rules([Rule({"cmdline": TextPattern("/(?=(a+)+b)a/")}, is_option=True)])
    slow.decide(replace(SUBJECT, process=replace(SSHD, cmdline=b"a" * 4000)))
    assert caplog.messages[0].startswith("--cmdline /(?=(a+)+b)a/: the regular expression")


@pytest.mark.parametrize(
    ("text", "subject", "is_unattributed"),
    [
        ("[{comm: x}, {action: drop}]", NOBODY, True),
        ("[{comm: x}, {action: drop}]", SUBJECT, False),
        ("[{comm: x}, {action: drop}]", replace(SUBJECT, group=[(WORKER, SSHD), (WORKER, SSHD)]), True),
        ("[{comm: x}, {action: drop}]", replace(SUBJECT, process=None), False),  # all conditions are known
        ("[{unit: x}, {action: drop}]", replace(SUBJECT, process=None), True),
        ("[{comm: x}, {interface: eth0, action: drop}]", NOBODY, False),  # dropped for its interface
        ("[{drop: NETFILTER_*}, {action: drop}]", NOBODY, False),  # no rule is about a process
        ("[{comm: x, interface: eth1}, {action: drop}]", NOBODY, False),  # none on this interface is
        ("[{drop: X}, {comm: x}, {action: drop}]", NOBODY, True),
    ],
)
def test_what_may_be_of_a_wanted_process(text: str, subject: Subject, is_unattributed: bool) -> None:  # noqa: FBT001
    """A packet that only the last rule drops, and whose process is not known, is unattributed if a rule asks for it."""
    assert rules(text).decide(subject) == Verdict(keeps=False, is_unattributed=is_unattributed)
