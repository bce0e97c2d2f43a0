"""Programs of Debian 13 that Debian 12 does not have, on what skbcapd captures and extracts: Suricata, argus.

`chroot` runs it inside a clean Debian 13. It is not collected elsewhere: there are no such programs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.capture import Capture
from tests.kernel.namespace import Namespace
from tests.support.command import ROOT, run
from tests.support.deadline import DEADLINE_S

HTTP_PORT, TLS_PORT = 8080, 8443
# A server and a client of HTTP, then of TLS, whose certificate is not encrypted in version 1.2.
BOTH = f"""
cd '{ROOT}'
{sys.executable} -c '
import http.server, threading, urllib.request
server = http.server.HTTPServer(("127.0.0.1", {HTTP_PORT}), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
urllib.request.urlopen("http://127.0.0.1:{HTTP_PORT}/README.md").read()
server.shutdown()
'
{sys.executable} -m tests.kernel.send.tls TLSv1_2 --port {TLS_PORT} --path / --pair "$1" --keys "$1/keys"
"""


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with both connections; the kernel computes no checksums on the loopback interface."""
    place = tmp_path_factory.mktemp("capture")
    file = place / "a.pcapng"
    with closing(Namespace()) as namespace:
        namespace.ip("link set lo up")
        words = ["sh", "-euc", BOTH, "sh", str(place)]
        with closing(Capture(namespace, "-i", "lo", "-w", str(file), running=words)) as made:
            ended = made.wait()
    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    return file


def events(path: Path, place: Path) -> dict[str, list[dict[str, Any]]]:
    """What Suricata reports of a file, by type of event."""
    place.mkdir()
    command = ["suricata", "-r", str(path), "-l", str(place), "-S", "/dev/null"]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (place / "eve.json").read_text().splitlines():
        event = json.loads(line)
        found.setdefault(event["event_type"], []).append(event)
    return found


@pytest.mark.parametrize("form", ["pcapng", "pcap"])
def test_suricata_sees_http_and_tls(form: str, capture: Path, tmp_path: Path) -> None:
    """With --fill-checksums, the request and the certificate are events of Suricata; without it, they are not."""
    whole, plain = tmp_path / f"whole.{form}", tmp_path / f"plain.{form}"
    words = ["--fill-checksums", "--sort", "--segment", "1500"]
    assert run("extract", capture, "-w", whole, "--format", form, *words)[0] == 0
    assert run("extract", capture, "-w", plain, "--format", form)[0] == 0
    found = events(whole, tmp_path / "whole")
    assert [event["http"]["url"] for event in found["http"]] == ["/README.md"]
    assert [event["tls"]["subject"] for event in found["tls"]] == ["CN=test"]
    assert not {"http", "tls"} & events(plain, tmp_path / "plain").keys()


def test_argus_sees_both_connections(capture: Path, tmp_path: Path) -> None:
    """Argus makes a flow of each connection."""
    file, flows = tmp_path / "a.pcap", tmp_path / "a.argus"
    assert run("extract", capture, "-w", file, "--format", "pcap", "--time", "us")[0] == 0
    subprocess.run(
        ["argus", "-X", "-r", str(file), "-w", str(flows)], check=True, capture_output=True, timeout=DEADLINE_S
    )
    command = ["ra", "-nr", str(flows), "-s", "proto", "dport", "-", "tcp"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout
    assert {f"tcp {port}" for port in (HTTP_PORT, TLS_PORT)} <= {" ".join(line.split()) for line in said.splitlines()}
