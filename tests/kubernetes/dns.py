"""CoreDNS in a cluster: kubeadm's objects, run from a file of the node; and questions by hand."""

from __future__ import annotations

import json
import secrets
import socket
import struct
from collections.abc import Mapping

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.world import PROGRAMS
from tests.machine import Json
from tests.runtimes import image
from tests.sockets import open_socket

DEPLOYMENT = "/apis/apps/v1/namespaces/kube-system/deployments"
_PROGRAMS = "programs"
_TYPES = {4: 1, 6: 28}  # A, AAAA
# The nodes have no resolver to which questions could be forwarded.
_COREFILE = """\
.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa
    cache 5
}
"""


def deploy(cluster: Cluster) -> None:
    """Create kubeadm's objects of CoreDNS, and wait until it is available."""
    items = [_changed(item) for item in cluster.plane.addon("coredns")]
    objects = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    cluster.plane.kubectl("apply", "-f", "-", stdin=objects)
    cluster.api.wait(DEPLOYMENT, _is_available, "CoreDNS is available")


def remove(cluster: Cluster) -> None:
    """Take its pods away, as a drain of all nodes does; nothing happens where there are none."""
    words = ("delete", "deployment", "coredns", "--ignore-not-found")
    cluster.plane.kubectl("--namespace", "kube-system", *words)
    cluster.wait_torn_down()


def _changed(item: Json) -> Json:
    if item["kind"] == "ConfigMap":
        item["data"]["Corefile"] = _COREFILE
    if item["kind"] == "Deployment":
        _run_from_files(item)
    return item


def _is_available(found: Mapping[str, Json]) -> bool:
    return bool(found.get("coredns", {}).get("status", {}).get("availableReplicas"))


def _run_from_files(deployment: Json) -> None:
    """Have one pod run the node's program: an image of it would be 180 MB on each node."""
    deployment["spec"]["replicas"] = 1
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    container |= {
        "image": image.NAME,
        "imagePullPolicy": "Never",
        "command": [f"/{_PROGRAMS}/coredns"],
    }
    container["volumeMounts"].append({"name": _PROGRAMS, "mountPath": f"/{_PROGRAMS}"})
    source = {"path": str(PROGRAMS.resolve()), "type": "Directory"}
    spec["volumes"].append({"name": _PROGRAMS, "hostPath": source})


def resolve(netns: str, server: str, name: str, version: int) -> list[str]:
    """Ask a server from a namespace for the addresses of a name (RFC 1035, 4.1)."""
    number = secrets.randbelow(1 << 16)
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    question = labels + b"\0" + struct.pack(">HH", _TYPES[version], 1)
    with open_socket(netns, "udp", server) as sock:
        sock.connect((server, 53))
        sock.send(struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + question)
        answer = sock.recv(4096)
    found, _, _, answers, _, _ = struct.unpack_from(">6H", answer)
    assert found == number, "an answer to another question"
    return list(_addresses(answer[12 + len(question) :], answers))


def _addresses(data: bytes, count: int) -> list[str]:
    """Return the addresses in the records of an answer, whose names are pointers or whole."""
    found = []
    for _ in range(count):
        at = 2 if data[0] >= 0xC0 else data.index(0) + 1
        kind, _, _, length = struct.unpack_from(">HHIH", data, at)
        value, data = data[at + 10 : at + 10 + length], data[at + 10 + length :]
        if kind in _TYPES.values():
            found.append(socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, value))
    return found
