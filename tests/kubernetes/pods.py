"""Pods and Services: their objects, and pods as tests use them.

The containers of a pod only wait. Tests open sockets in the pod's network namespace instead: a
question and its answer take a millisecond, by any protocol, and each side sees the other's address.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.kubernetes.api import PODS, SERVICES, Api, is_ready
from tests.kubernetes.node import Node
from tests.machine import Json
from tests.runtimes import image
from tests.sockets import Server, answer, asks, open_socket, serving
from tests.waits import wait_until

READY_SECONDS = 120.0
GONE_SECONDS = 120.0
PORT = 8080  # on which a pod serves in tests
# 0 would take the pod from the API before the runtime has called DEL.
_GRACE_SECONDS = 1


def pod(name: str, node: str, *, labels: Mapping[str, str] = {}, **changes: Any) -> Json:
    """Return a pod for a node whose container waits; `ports`, `command` and others by keyword.

    `annotations` are the pod's, `spec` is merged into its spec.
    """
    container: Json = {
        "name": "main",
        "image": image.NAME,
        "imagePullPolicy": "Never",
        "command": list(changes.get("command", ("/pause",))),
        "ports": list(changes.get("ports", ())),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app": name, **labels},
            "annotations": dict(changes.get("annotations", {})),
        },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": _GRACE_SECONDS,
            "automountServiceAccountToken": False,
            "containers": [container],
            **changes.get("spec", {}),
        },
    }


def service(name: str, selector: Mapping[str, str], port: int = 80, **spec: Any) -> Json:
    """Return a Service of both families on a port, which leads to PORT of its pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": dict(selector),
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": port, "targetPort": PORT},
                {"name": "udp", "protocol": "UDP", "port": port, "targetPort": PORT},
            ],
            **spec,
        },
    }


@dataclass(frozen=True)
class Pod:
    """A pod that is Ready."""

    name: str
    uid: str
    node: Node
    addresses: tuple[str, ...]  # one for each family, in the order of the API
    netns: str  # as this process finds it

    def address(self, version: int) -> str:
        """Return its address of a family."""
        return next(one for one in self.addresses if (":" in one) == (version == 6))


def netns_of(uid: str) -> str:
    """Return where the network namespace of a pod is: that of any process in its cgroup."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"pod{uid}" in (entry / "cgroup").read_text():
                return str(entry / "ns" / "net")
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"no process of pod {uid}")


class Pods:
    """The pods and Services of a test; all of them go with it."""

    def __init__(self, api: Api, nodes: Mapping[str, Node]) -> None:
        self.api, self.nodes = api, nodes
        self._services: list[str] = []

    def create(self, *objects: Json) -> None:
        """Create pods and Services, without waiting."""
        for body in objects:
            kind = SERVICES if body["kind"] == "Service" else PODS
            self.api.create(kind, body)
            if kind == SERVICES:
                self._services.append(body["metadata"]["name"])

    def start(self, *objects: Json, seconds: float = READY_SECONDS) -> list[Pod]:
        """Create pods and return them when all are Ready."""
        self.create(*objects)
        return self.ready([body["metadata"]["name"] for body in objects], seconds)

    def ready(self, names: Sequence[str], seconds: float = READY_SECONDS) -> list[Pod]:
        """Wait until these pods are Ready, and return them."""
        found = self.wait_ready(names, seconds)
        return [self._pod(found[name]) for name in names]

    def wait_ready(self, names: Sequence[str], seconds: float = READY_SECONDS) -> dict[str, Json]:
        """Wait until these pods are Ready, and return all objects of pods by name."""

        def all_ready(found: Mapping[str, Json]) -> bool:
            return all(name in found and is_ready(found[name]) for name in names)

        what = f"pods {', '.join(names[:5])} are Ready"
        return self.api.wait(PODS, all_ready, what, seconds)

    def _pod(self, item: Json) -> Pod:
        meta, status = item["metadata"], item["status"]
        return Pod(
            name=meta["name"],
            uid=meta["uid"],
            node=self.nodes[item["spec"]["nodeName"]],
            addresses=tuple(entry["ip"] for entry in status["podIPs"]),
            netns=netns_of(meta["uid"]),
        )

    def delete(self, *names: str, seconds: float = GONE_SECONDS) -> None:
        """Delete pods and wait until they are gone."""
        for name in names:
            self.api.delete(f"{PODS}/{name}")
        self.gone(names, seconds)

    def gone(self, names: Iterable[str], seconds: float = GONE_SECONDS) -> None:
        """Wait until none of these pods is there."""
        wanted = set(names)
        self.api.wait(PODS, lambda found: not wanted & found.keys(), f"{wanted} are gone", seconds)

    def clear(self) -> None:
        """Delete all of the test's pods and Services."""
        for name in self._services:
            self.api.delete(f"{SERVICES}/{name}")
        self._services.clear()
        self.api.delete(PODS)
        self.api.wait(PODS, lambda found: not found, "all pods are gone", GONE_SECONDS)


# --- questions ---


def reaches(client: str, server: str, address: str, protocol: str = "tcp", port: int = PORT) -> str:
    """Ask from a namespace; return whom the server's namespace sees, "" when no answer comes.

    `address` and `port` are where the client turns to; the server waits on PORT.
    """
    wildcard = "::" if ":" in address else "0.0.0.0"
    with serving(server, protocol, PORT, [wildcard]) as (waiting,):
        return asks(client, waiting, address, port)


def reaches_soon(
    client: str, server: str, address: str, protocol: str = "tcp", port: int = PORT
) -> str:
    """Return the same as `reaches`, asking again as long as kube-proxy has not seen a Service."""
    seen = ""

    def answered() -> str:
        nonlocal seen
        seen = reaches(client, server, address, protocol, port)
        return seen

    wait_until(answered, f"{protocol} {address}:{port} never answers")
    return seen


class Choice(NamedTuple):
    """Which of several servers was asked, and whom it saw."""

    server: int
    client: str


def chooses(client: str, servers: Sequence[Server], address: str, port: int) -> Choice | None:
    """Ask from a namespace where several servers may answer, None when none does."""
    with open_socket(client, servers[0].protocol, address) as sock:
        try:
            sock.connect((address, port))
            sock.send(b"?")
            asked, _, _ = select.select([one.sock for one in servers], [], [], sock.gettimeout())
            if not asked:
                return None
            number = [one.sock for one in servers].index(asked[0])
            seen = answer(servers[number])
            return Choice(number, seen) if sock.recv(16) == b"!" else None
        except OSError:
            return None


@contextmanager
def served(namespaces: Sequence[str], protocol: str, version: int) -> Iterator[list[Server]]:
    """Serve on PORT of several namespaces."""
    wildcard = "0.0.0.0" if version == 4 else "::"
    servers = [Server(netns, protocol, PORT, wildcard) for netns in namespaces]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def elapsed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begun = time.monotonic()
    function()
    return time.monotonic() - begun
