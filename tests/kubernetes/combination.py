"""Two combinations of runtime, CNI version and proxy: an older cluster's, and a current one's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests import scope
from tests.kubernetes.world import CONTAINERD_2

METRICS_PORT = 1338  # of containerd, on 127.0.0.1 of a node
_PAUSE = "localhost/test:1"
# restrict_oom_score_adj: to lower it takes CAP_SYS_RESOURCE, which root in a sandbox may lack.
_METRICS = f"""\
[metrics]
  address = "127.0.0.1:{METRICS_PORT}"
"""
_CONTAINERD_1 = f"""\
version = 2
{_METRICS}\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{_PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""
_CONTAINERD_2 = f"""\
version = 3
{_METRICS}\
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{_PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
"""


@dataclass(frozen=True)
class Combination:
    """The differences between the clusters of the tests."""

    name: str
    containerd: Path | None  # folder of its programs; None: those of Debian
    containerd_config: str
    cni_version: str  # the newest that the runtime knows: from 1.1.0 on it calls STATUS
    proxy: str  # mode of kube-proxy


COMBINATIONS = {
    "debian": Combination("debian", None, _CONTAINERD_1, "1.0.0", "iptables"),
    "current": Combination("current", CONTAINERD_2, _CONTAINERD_2, "1.1.0", "nftables"),
}


def chosen() -> list[str]:
    """Return the combinations of this run: one, by the day, or in the long form both."""
    return list(COMBINATIONS) if scope.ALL else sorted(scope.one_in(2, list(COMBINATIONS)))
