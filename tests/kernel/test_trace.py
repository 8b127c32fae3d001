"""`pycni trace` on a pretend host, after real calls."""

from __future__ import annotations

import json
import ssl
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from commands import DONE, FAILED, FOUND, traces
from tests.kernel.test_commands import asked, config, pycni
from tests.resident import visiting
from tests.waits import wait_until

if TYPE_CHECKING:
    from tests.machine import Machine

PARENT = f"00-{'c' * 32}-{'d' * 16}-01"


def test_calls(machine: Machine) -> None:
    """ADD, a refused ADD, CHECK and DEL are there with their steps; VERSION is not."""
    conf, netns = config(machine), machine.container()
    machine.variables["TRACEPARENT"] = PARENT
    result = machine.ok("bridge", "ADD", conf, netns)
    machine.variables.clear()
    machine.ok("bridge", "CHECK", {**conf, "prevResult": result}, netns)
    machine.refused("bridge", "ADD", {**conf, "vlan": 5000}, netns, containerid="c2")
    machine.ok("bridge", "DEL", {**conf, "prevResult": result}, netns)
    machine.invoke("bridge", "VERSION", {})

    # The engine writes a line after its answer.
    wait_until(lambda: len(traces.calls(machine.state_dir)) == 4, "not all calls leave a line")
    calls = asked(machine, "trace")["calls"]

    assert [(one["verb"], one["code"]) for one in calls] == [
        ("ADD", 0),
        ("CHECK", 0),
        ("ADD", 7),
        ("DEL", 0),
    ]
    add, _, refused, _ = calls
    names = [one["name"] for one in add["steps"]]
    assert {"parse", "lock", "netlink", "nft", "lease"} <= {*names}
    assert (add["containerid"], add["ifname"], add["network"]) == ("c1", "eth0", machine.name)
    assert (add["traceparent"], refused["traceparent"]) == (PARENT, "")
    assert "vlan" in refused["msg"].lower()
    for one in calls:
        ends = [step["begin"] + step["microseconds"] for step in one["steps"]]
        assert all(0 <= end <= one["microseconds"] + 1 for end in ends)
    if machine.engine:
        assert {one["by"] for one in calls} == {"engine"}


@pytest.mark.without_engine("the commands know nothing of it")
def test_choices(machine: Machine) -> None:
    """Containers, the last ones, slow and failed ones; the text fits 80 columns."""
    conf = config(machine)
    for number in range(3):
        machine.ok("bridge", "ADD", conf, machine.container(), containerid=f"c{number}")
    machine.refused("bridge", "ADD", {**conf, "vlan": 5000}, machine.container(), containerid="bad")

    assert [one["containerid"] for one in asked(machine, "trace", "c1")["calls"]] == ["c1"]
    last = asked(machine, "trace", "--last", "2")["calls"]
    assert [one["containerid"] for one in last] == ["c2", "bad"]
    assert [one["code"] for one in asked(machine, "trace", "--failed")["calls"]] == [7]
    assert asked(machine, "trace", "--slow", "100000", status=FOUND)["calls"] == []
    text = pycni(machine, "trace", "c2")
    assert text.returncode == DONE
    lines = text.stdout.splitlines()
    assert lines[0] == "container c2"
    assert max(map(len, lines)) <= 80
    assert any(line.split()[0] == "netlink" and "#" in line for line in lines)
    assert pycni(machine, "trace", "nobody").returncode == FOUND


class Collector(BaseHTTPRequestHandler):
    """Takes what is sent to it."""

    got: ClassVar[list[tuple[str, Any]]] = []
    status = 200

    def do_POST(self) -> None:
        """Keep the body."""
        length = int(self.headers["Content-Length"])
        self.got.append((self.path, json.loads(self.rfile.read(length))))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


@pytest.mark.without_engine("the commands know nothing of it")
def test_export(machine: Machine, tmp_path: Path) -> None:
    """The same goes to a file, to stdout and to a collector; a refusal is told in a line."""
    machine.ok("bridge", "ADD", config(machine), machine.container())
    path = tmp_path / "spans.json"

    assert pycni(machine, "trace", "--otlp", str(path)).returncode == DONE
    printed = pycni(machine, "trace", "--otlp", "-").stdout
    with visiting(machine.host):
        server = HTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    Collector.got.clear()
    sent = pycni(machine, "trace", "--otlp", url)
    assert sent.returncode == DONE, sent.stderr
    Collector.status = 503
    refused = pycni(machine, "trace", "--otlp", f"{url}/other")
    Collector.status = 200
    server.shutdown()
    server.server_close()

    assert json.loads(path.read_text()) == json.loads(printed)
    assert Collector.got[0] == ("/v1/traces", json.loads(printed))
    assert Collector.got[1][0] == "/other"
    assert (refused.returncode, refused.stderr.count("\n")) == (FAILED, 1)
    assert "503" in refused.stderr
    for target in ("https://127.0.0.1:9", url):  # by now no process listens there
        done = pycni(machine, "trace", "--otlp", target)
        assert (done.returncode, done.stderr.count("\n")) == (FAILED, 1)


@pytest.mark.without_engine("the commands know nothing of it")
def test_export_by_tls(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector with a certificate gets the spans; one whose certificate is unknown does not."""
    machine.ok("bridge", "ADD", config(machine), machine.container())
    certificate, key = str(tmp_path / "c.pem"), str(tmp_path / "k.pem")
    line = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate}"
    line += " -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    machine.command(machine.host, *line.split())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with visiting(machine.host):
        server = HTTPServer(("127.0.0.1", 0), Collector)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}/v1/traces?tenant=a"
    Collector.got.clear()

    unknown = pycni(machine, "trace", "--otlp", url)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    known = pycni(machine, "trace", "--otlp", url)
    server.shutdown()
    server.server_close()

    assert (unknown.returncode, unknown.stderr.count("\n")) == (FAILED, 1)
    assert "certificate" in unknown.stderr
    assert known.returncode == DONE, known.stderr
    assert [path for path, _ in Collector.got] == ["/v1/traces?tenant=a"]
