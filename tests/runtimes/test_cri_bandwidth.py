"""The kubelet's annotations of bandwidth, which containerd hands on to the plugin of that name."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.node import NODE4
from tests.machine import Json
from tests.runtimes.chains import Chain, Use, with_plugin
from tests.runtimes.cri import Kubelet
from tests.runtimes.node import RuntimeNode
from tests.sockets import Server, open_socket, serving

BANDWIDTH: Json = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
INGRESS, EGRESS = 10_000_000, 20_000_000  # bit/s
ANNOTATIONS = {
    "kubernetes.io/ingress-bandwidth": "10M",
    "kubernetes.io/egress-bandwidth": "20M",
}
BITS = 20_000_000  # of one transfer
_PIECE = bytes(1 << 16)


def seconds_of_transfer(sender: str, server: Server, address: str) -> float:
    """Return how long it takes to send BITS from a namespace to a server."""

    def receive() -> int:
        connection, _ = server.sock.accept()
        with connection:
            connection.settimeout(30)
            return sum(iter(lambda: len(connection.recv(1 << 16)), 0))

    with ThreadPoolExecutor(1) as pool, open_socket(sender, "tcp", address) as client:
        received = pool.submit(receive)
        client.settimeout(30)
        client.connect((address, server.port))
        start = time.monotonic()
        for _ in range(BITS // 8 // len(_PIECE)):
            client.sendall(_PIECE)
        client.close()
        assert received.result(60) == BITS // 8 // len(_PIECE) * len(_PIECE)
        return time.monotonic() - start


def test_annotations(node: RuntimeNode, kubelet: Kubelet, use: Use, chain: Chain) -> None:
    """Both rates are the pod's, nothing passes faster, and nothing of them stays."""
    judge = use(with_plugin(chain, BANDWIDTH))
    pod = kubelet.run("slow", annotations=ANNOTATIONS)
    netns = node.netns(kubelet.netns(pod))
    address = kubelet.addresses(pod)[0]

    queues: list[Json] = json.loads(node.command("tc", "-j", "qdisc", "show"))
    with serving(netns, "tcp", 80, ["0.0.0.0"]) as (server,):
        into = seconds_of_transfer(node.netns(), server, address)
    with serving(node.netns(), "tcp", 80, ["0.0.0.0"]) as (server,):
        out = seconds_of_transfer(netns, server, NODE4)

    rates = {8 * one["options"]["rate"] for one in queues if one["kind"] == "tbf"}
    assert rates == {INGRESS, EGRESS}
    # A tenth for what passes at once.
    assert into > 0.9 * BITS / INGRESS
    assert out > 0.9 * BITS / EGRESS
    kubelet.end(pod)
    judge()
