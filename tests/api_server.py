"""An API server that has Nodes and takes reports, and that fails as a test says.

A real one is in tests/kubernetes; this one answers what a real one seldom does, and has any number
of Nodes at once. As a program it serves on a port with TLS, until its input ends:

    python -m tests.api_server PORT NUMBER FOLDER

`FOLDER` gets what a pod has of its service account: ca.crt and token.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.machine import Json

NODES = "/api/v1/nodes"
_JSON = "application/json"
_RECORD = 1300  # bytes


def node(number: int, *, images: int = 50) -> Json:
    """Return a Node with all that a kubelet reports, of both families."""
    high, low = divmod(number + 1, 256)
    name = f"node-{number:05}"
    sizes = [
        {"names": [f"registry.example/team/program-{one}@sha256:{one:064x}"], "sizeBytes": one}
        for one in range(images)
    ]
    return {
        "metadata": {
            "name": name,
            "uid": f"00000000-0000-0000-0000-{number:012}",
            "resourceVersion": "1",
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:images": {}}}}],
        },
        "spec": {"podCIDRs": [f"10.{high}.{low}.0/24", f"fd00:10:{high:x}:{low:x}::/64"]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": f"172.16.{high}.{low}"},
                {"type": "InternalIP", "address": f"fd00:ac10::{number + 1:x}"},
                {"type": "Hostname", "address": name},
            ],
            "capacity": {"cpu": "64", "memory": "263950484Ki", "pods": "110"},
            "conditions": [
                {
                    "type": kind,
                    "status": "False",
                    "reason": f"KubeletHas{kind}",
                    "message": "x" * 60,
                }
                for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
            ],
            "images": sizes,
            "nodeInfo": {"containerRuntimeVersion": "containerd://2.4.2", "osImage": "Debian"},
        },
    }


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Answer a list or a watch, or fail."""
        self._serve(self._nodes)

    def do_POST(self) -> None:
        """Take an Event."""
        self._serve(self._take)

    def do_PATCH(self) -> None:
        """Take a change."""
        self._serve(self._take)

    def _serve(self, usual: Callable[[], None]) -> None:
        made = self.server.made
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        made.requests.append(f"{self.command} {self.path}")
        with suppress(ConnectionError, ssl.SSLError):
            if made.failures:
                made.failures.popleft()(self)
            else:
                usual()

    def _nodes(self) -> None:
        asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if asked.get("watch"):
            self.start_stream()
            seconds = float(asked.get("timeoutSeconds", 60))
            for event in self.server.made.events(int(asked["resourceVersion"]), seconds):
                self.chunk(event)
            self.chunk(b"")
            return
        first, size = int(asked.get("continue", 0)), int(asked.get("limit", 10**9))
        items, version = self.server.made.nodes, self.server.made.version()
        rest = str(first + size) if first + size < len(items) else ""
        found = {"metadata": {"resourceVersion": version, "continue": rest}}
        self.answer(200, {**found, "items": items[first : first + size]})

    def _take(self) -> None:
        body = json.loads(self.body)
        self.server.made.taken.append((self.path, body))
        self.answer(200, {"metadata": {"name": "taken"}, **body})

    def answer(self, status: int, body: Json | bytes, kind: str = _JSON) -> None:
        """Answer with a body; `kind` is its type, "" for none."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def start_stream(self) -> None:
        """Begin the answer to a watch."""
        self.send_response(200)
        self.send_header("Content-Type", _JSON)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        """Send a part of it, b"" for its end; in TLS by records as small as Go's after a pause."""
        text = f"{len(data):x}\r\n".encode() + data + b"\r\n"
        for at in range(0, len(text), _RECORD):
            self.wfile.write(text[at : at + _RECORD])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: the test has the requests."""


Failure = Callable[[Handler], None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    made: ApiServer


class ApiServer:
    """Serves Nodes; `failures` are answers of a test's own to the next requests."""

    def __init__(
        self, nodes: Sequence[Json], port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.nodes = list(nodes)
        self.failures: deque[Failure] = deque()
        self.requests: list[str] = []
        self.taken: list[tuple[str, Json]] = []
        self._news: list[bytes] = []  # lines of watches
        self._told = threading.Condition()
        self._era = 0  # of the watches that go on
        self._server = _Server(("127.0.0.1", port), Handler)
        self._server.made = self
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def version(self) -> str:
        """Return the version of all that was told up to now."""
        return str(len(self._news) + 1)

    def events(self, version: int, seconds: float) -> Iterator[bytes]:
        """Give the lines of a watch that begins behind a version, until none comes for so long."""
        number, era = version - 1, self._era
        while True:
            with self._told:
                if not self._told.wait_for(partial(self._has_news, number, era), seconds):
                    return
                if self._era != era:
                    return
                line = self._news[number]
            yield line
            number += 1

    def _has_news(self, number: int, era: int) -> bool:
        return len(self._news) > number or self._era != era

    def tell(self, kind: str, item: Json) -> None:
        """Have watches tell of an object."""
        if "metadata" in item:
            version = str(len(self._news) + 2)
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": version}}
        self.tell_raw(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    def tell_raw(self, line: bytes) -> None:
        """Have watches send a line, or what is none."""
        with self._told:
            self._news.append(line)
            self._told.notify_all()

    def end_watches(self) -> None:
        """End all watches that go on, as a server does after some minutes."""
        with self._told:
            self._era += 1
            self._told.notify_all()

    def kubeconfig(self, folder: Path) -> str:
        """Write a kubeconfig that leads here; return its path."""
        path = folder / "kubeconfig"
        cluster = {"server": f"http://127.0.0.1:{self.port}"}
        config = {
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(config))  # JSON is YAML
        return str(path)

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(nodes: Sequence[Json]) -> Iterator[ApiServer]:
    """Serve for as long as a test goes on."""
    made = ApiServer(nodes)
    try:
        yield made
    finally:
        made.close()


def certified(folder: Path, address: str = "127.0.0.1") -> ssl.SSLContext:
    """Write a certificate of an address as the service account's ca.crt, and a token."""
    key, certificate = folder / "key.pem", folder / "ca.crt"
    words = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=api"
    )
    more = ("-addext", f"subjectAltName=IP:{address}", "-keyout", key, "-out", certificate)
    subprocess.run(["openssl", *words.split(), *more], check=True, capture_output=True)
    (folder / "token").write_text("token")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def main(port: str, number: str, folder: str) -> None:
    """Serve so many Nodes; each line of the input has one Node's heartbeat told."""
    nodes = [node(one) for one in range(int(number))]
    made = ApiServer(nodes, int(port), certified(Path(folder)))
    print("ready", flush=True)  # noqa: T201
    with open(0) as lines:
        for count, _ in enumerate(lines):
            made.tell("MODIFIED", nodes[count % len(nodes)])
    made.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
