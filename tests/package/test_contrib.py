"""The alerts for Prometheus and the dashboard for Grafana, checked with promtool and the SDK of Grafana."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import Sample
from prometheus_client.parser import text_string_to_metric_families

import skbcapd
from skbcapd.config.settings import ROWS
from skbcapd.daemon.metrics import Metrics
from tests.support.cache import user_cache
from tests.support.rig import Scene
from tests.vm import kernels

ROOT = Path(skbcapd.__file__).parent.parent
RULES = ROOT / "contrib/prometheus/skbcapd.rules.yaml"
DASHBOARD = ROOT / "contrib/grafana/skbcapd.json"
SERIES = Path(__file__).parent / "skbcapd.rules.test.yaml"


def fetch() -> Path:
    """Promtool out of Debian's package, fetched once and installed nowhere: that of Debian 12
    starts a server.

    Raises:
        subprocess.CalledProcessError: apt cannot fetch it.
    """
    place = user_cache() / "promtool"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as name:
            work = Path(name)
            apt = kernels.apt_state(work / "apt")
            with contextlib.suppress(subprocess.CalledProcessError):  # another source may still have the package
                kernels.run(["apt-get", *apt, "update"])
            try:
                tree = kernels.download(["promtool"], apt, work)
            except subprocess.CalledProcessError:  # Debian 12, Ubuntu 24.04: no separate package
                tree = kernels.download(["prometheus"], apt, work)
            (tree / "usr/bin/promtool").rename(place)
    return place


@pytest.fixture(scope="module")
def promtool() -> str:
    """The promtool of the machine, or a downloaded one; without it nothing is proven, so the test
    fails.
    """
    try:
        return shutil.which("promtool") or str(fetch())
    except subprocess.CalledProcessError as error:
        pytest.fail(f"there is no promtool, and apt could not fetch one: {error.stderr.strip()}")


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def said(*command: str | Path) -> tuple[int, str]:
    """Exit code and output of a program."""
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def test_prometheus_accepts_the_rules(promtool: str) -> None:
    """Promtool finds all alerts and no error."""
    code, text = said(promtool, "check", "rules", RULES)
    assert (code, f"SUCCESS: {len(rules())} rules found" in text) == (0, True), text


def test_alerts_fire_when_they_should_and_else_not(promtool: str) -> None:
    """With the given series, each alert fires when skbcapd.rules.test.yaml says, with its text, and
    at no other time.
    """
    code, text = said(promtool, "test", "rules", SERIES)
    assert (code, "SUCCESS" in text) == (0, True), text
    looks = [look for test in yaml.safe_load(SERIES.read_text())["tests"] for look in test["alert_rule_test"]]
    for fires in (True, False):
        assert {rule["alert"] for rule in rules()} == {
            look["alertname"] for look in looks if bool(look["exp_alerts"]) == fires
        }


def test_the_judge_sees_a_wrong_rule(promtool: str, tmp_path: Path) -> None:
    """With another number in any alert, promtool reports a difference."""
    text = SERIES.read_text()
    (tmp_path / SERIES.name).write_text(re.sub(r"rule_files: .*", f"rule_files: [{RULES.name}]", text))
    for right, wrong in (
        ("dropped_total[5m]) > 0", "dropped_total[5m]) > 1009"),
        ("missed_total[5m]) > 0", "missed_total[5m]) > 1009"),
        ("[1d]", "[2d]"),
        ("> 120", "> 60"),
        ("> 3", "> 2"),
    ):
        assert RULES.read_text().count(right) == 1
        (tmp_path / RULES.name).write_text(RULES.read_text().replace(right, wrong))
        code, text = said(promtool, "test", "rules", tmp_path / SERIES.name)
        assert (code, "FAILED" in text) == (1, True), wrong


def test_the_rules_name_existing_metrics() -> None:
    """Metrics, causes of drops and settings in the rules exist in skbcapd; each cause has its
    advice.
    """
    text = RULES.read_text()
    page = Metrics(Scene().statistics.snapshot).text().decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    assert set(re.findall(r"\bskbcapd_\w+", text)) <= {sample.name for sample in samples}
    assert set(re.findall(r'cause "(\w+)"', text)) == {
        sample.labels["cause"] for sample in samples if sample.name == "skbcapd_packets_dropped_total"
    }
    assert {"buffer.size", "files.keep_free"} <= set(re.findall(r"\b(?:buffer|files)\.\w+", text)) <= set(ROWS)


def test_every_alert_is_complete() -> None:
    """Each alert has a severity, a summary and a description, and is in docs/monitoring.md."""
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}
    page = (ROOT / "docs/monitoring.md").read_text()
    assert re.findall(r"^\| `(Skbcapd\w+)`", page, re.MULTILINE) == [rule["alert"] for rule in rules()]


@pytest.fixture(scope="module")
def sdk() -> Path:
    """A Python with the SDK of Grafana that tools/dashboard.py names, in the cache, installed once."""
    [wanted] = re.findall(r"grafana-foundation-sdk==[^'\s]+", (ROOT / "tools/dashboard.py").read_text())
    place: Path = user_cache() / wanted.replace("!", "-")
    if not (place / "bin/python").exists():
        with tempfile.TemporaryDirectory(dir=user_cache()) as name:
            kernels.run([sys.executable, "-m", "venv", f"{name}/sdk"])
            kernels.run([f"{name}/sdk/bin/python", "-m", "pip", "install", "-q", wanted])
            Path(name, "sdk").rename(place)
    return place / "bin/python"


def queries() -> list[str]:
    """All queries of the dashboard, with values for the variables of Grafana."""
    found = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m").replace("$instance", ".*") for query in found]


def test_the_dashboard_is_what_the_sdk_makes(sdk: Path) -> None:
    """The file is the output of tools/dashboard.py, and the types of the SDK read it without a loss."""
    done = subprocess.run([sdk, "-m", "tools.dashboard"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == DASHBOARD.read_text()
    program = (
        "import json, sys\n"
        "from grafana_foundation_sdk.cog.encoder import JSONEncoder\n"
        "from grafana_foundation_sdk.cog.plugins import register_default_plugins\n"
        "from grafana_foundation_sdk.models.dashboard import Dashboard\n"
        "register_default_plugins()\n"
        "print(JSONEncoder(sort_keys=True, indent=2).encode(Dashboard.from_json(json.load(sys.stdin))))"
    )
    read = subprocess.run([sdk, "-c", program], input=done.stdout, capture_output=True, text=True, check=True)
    # It writes the options of a kind of panel also if there are none.
    again = json.loads(read.stdout, object_hook=lambda one: {k: v for k, v in one.items() if (k, v) != ("custom", {})})
    assert again == json.loads(done.stdout)


def test_prometheus_accepts_the_queries(promtool: str, tmp_path: Path) -> None:
    """Promtool parses each query of the dashboard as a rule; with a wrong one it would not."""
    for more, expected in (([], 0), (["rate(skbcapd_packets_seen_total)"], 1)):
        found = [{"record": f"query:{number}", "expr": query} for number, query in enumerate([*queries(), *more])]
        (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": found}]}))
        code, text = said(promtool, "check", "rules", tmp_path / "queries.yaml")
        assert code == expected, text
        assert expected or f"SUCCESS: {len(found)} rules found" in text


def exported() -> list[Sample]:
    """A value of each metric that the daemon exports."""
    page = Metrics(Scene().everything, capture="eth0", top=1).text().decode()
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def test_each_query_finds_something(promtool: str, tmp_path: Path) -> None:
    """With what the daemon exports, each query of the dashboard has a result; promtool evaluates them."""
    series = []
    for sample in exported():
        labels = ", ".join(f'{name}="{value}"' for name, value in (sample.labels | {"instance": "web"}).items())
        series.append({"series": f"{sample.name}{{{labels}}}", "values": "1+1x20"})
    tests = [
        {"expr": f"count({query}) > bool 0", "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for query in queries()
    ]
    for found, code in ((series, 0), (series[:3], 1)):
        test = {"interval": "1m", "input_series": found, "promql_expr_test": tests}
        (tmp_path / "dashboard.yaml").write_text(yaml.safe_dump({"tests": [test]}))
        done = said(promtool, "test", "rules", tmp_path / "dashboard.yaml")
        assert done[0] == code, done[1]


def test_the_queries_name_existing_metrics() -> None:
    """Each metric of the dashboard is one that the daemon exports, with these labels."""
    samples = exported()
    named = {name for query in queries() for name in re.findall(r"\bskbcapd_\w+", query)}
    assert named <= {sample.name for sample in samples}
    labels = {
        label for query in queries() for words in re.findall(r"by \((.*?)\)", query) for label in words.split(", ")
    }
    assert labels - {"instance", ""} <= {label for sample in samples for label in sample.labels}
    assert len(named) >= 18
