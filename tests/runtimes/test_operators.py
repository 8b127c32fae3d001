"""The operators' view of containers that containerd has made."""

from __future__ import annotations

import json

from tests.e2e.node import Done
from tests.machine import DIST, Json
from tests.runtimes import image
from tests.runtimes.chains import Chain, Use
from tests.runtimes.containerd import RUN, Containerd
from tests.runtimes.cri import Kubelet, Port
from tests.runtimes.node import RuntimeNode, eventually


def pycni(node: RuntimeNode, *words: str) -> Done:
    """Run a command for operators; a node sees all of its processes, with any first one."""
    return node.run(DIST / "pycni", *words, "--json", "--any-netns")


def test_pod(node: RuntimeNode, kubelet: Kubelet, use: Use, chain: Chain) -> None:
    """A pod's addresses are known by its name, and nothing of it is amiss, nor left in the end."""
    use(chain)
    pod = kubelet.run("web", Port(8080))

    leases: list[Json] = json.loads(pycni(node, "leases").stdout)["leases"]
    audit = pycni(node, "audit")

    assert sorted(lease["address"] for lease in leases) == sorted(kubelet.addresses(pod))
    assert {(lease["containerid"], lease["pod"]) for lease in leases} == {(pod, "default/web")}
    assert (audit.returncode, json.loads(audit.stdout)["findings"]) == (0, [])
    kubelet.end(pod)
    assert json.loads(pycni(node, "leases").stdout)["leases"] == []
    assert pycni(node, "audit").returncode == 0


def test_detached(node: RuntimeNode, containerd: Containerd, chain: Chain) -> None:
    """ctr calls no DEL for a detached container; the audit has nothing against it until it ends."""
    chain.configure(node)
    words = [word for word in RUN if word != "--rm"]
    containerd.ok(*words, "--detach", "--null-io", image.NAME, "c1", "/pause")
    alive = pycni(node, "audit")

    containerd.ok("task", "kill", "--signal", "KILL", "c1")
    eventually(lambda: containerd.ctr("task", "rm", "c1").returncode == 0, "the task ends")
    containerd.ok("container", "rm", "c1")
    dead = pycni(node, "audit")

    assert alive.returncode == 0, alive.stdout
    assert dead.returncode == 1
    findings: list[Json] = json.loads(dead.stdout)["findings"]
    assert {finding["containerid"] for finding in findings} == {"default-c1"}
    assert {"record", "lease"} <= {finding["kind"] for finding in findings}
