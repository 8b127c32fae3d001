"""Containerd with our plugins before the judge that its makers use: critest of cri-tools."""

from __future__ import annotations

import json

import pytest

from tests.kubernetes.upstream import report
from tests.kubernetes.upstream.images import PROGRAMS
from tests.kubernetes.world import CONTAINERD_2
from tests.runtimes import image
from tests.runtimes.chains import Chain, Use
from tests.runtimes.containerd import SOCKET, Containerd
from tests.runtimes.node import RuntimeNode

CRITEST = PROGRAMS / "critest"
WEB = "localhost/web:1"
# All else of critest is about images and containers, not about a pod's network.
FOCUS = ("Networking", "PodSandbox", "Idempotence")
# There is no NRI here. containerd 1.6 refuses to stop what it does not know; newer ones do not.
LEFT_OUT = ("NRI", "should not return an error if not found")

pytestmark = pytest.mark.skipif(
    not CRITEST.exists(), reason=f"{CRITEST} is not there: deploy/prerequisites.sh --upstream"
)


@pytest.fixture(params=["1.6", "2.4"])
def containerd(request: pytest.FixtureRequest, node: RuntimeNode, outside: str) -> Containerd:
    """Each of both releases, without any network so far."""
    if request.param == "1.6":
        return Containerd(node)
    if not (CONTAINERD_2 / "packages").exists():
        pytest.skip(f"{CONTAINERD_2} is not there: deploy/prerequisites.sh --kubernetes")
    return Containerd(node, CONTAINERD_2)


def test_critest(node: RuntimeNode, containerd: Containerd, use: Use, chain: Chain) -> None:
    """Names, ports of pods and of the node, lives of pods; and nothing is left."""
    image.write(node.path("/run/web.tar"), {WEB: ("httpd", "-f", "-h", "/www")})
    containerd.ok("--namespace", "k8s.io", "image", "import", "/run/web.tar")
    images = {"defaultTestContainerImage": image.NAME, "webServerTestImage": WEB}
    node.path("/run/images.json").write_text(json.dumps(images))  # JSON is YAML
    nothing_left = use(chain)

    done = node.run(
        *(str(CRITEST), f"-runtime-endpoint=unix://{SOCKET}", "-test-images-file=/run/images.json"),
        *(f"-ginkgo.focus={pattern}" for pattern in FOCUS),
        *(f"-ginkgo.skip={pattern}" for pattern in LEFT_OUT),
        "-ginkgo.json-report=/run/report.json",
    )

    told = node.path("/run/report.json")
    assert told.exists(), done.stdout + done.stderr
    report.judge(report.outcomes(told))
    nothing_left()
