"""Kubernetes' own end-to-end tests: which of them judge a cluster here, and how they are run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.kubernetes.cluster import NAMES
from tests.kubernetes.upstream.images import PROGRAMS, REGISTRY
from tests.kubernetes.upstream.report import Outcome, outcomes
from tests.kubernetes.world import PROGRAMS as KUBERNETES
from tests.kubernetes.world import SYSTEM_PATH, run

# Tests mostly wait: for pods, for kube-proxy, for the time that a client keeps its server.
SIDE_BY_SIDE = 8
# All kinds of registries are one.
_REGISTRIES = (
    *("promoterE2eRegistry", "buildImageRegistry", "gcEtcdRegistry", "gcRegistry"),
    *("sigStorageRegistry", "dockerLibraryRegistry", "privateRegistry", "cloudProviderGcpRegistry"),
)
_PODS = r"\[sig-network\] Networking Granular Checks: Pods"
# The tests that are run, by a name of ours: patterns of the tests' names.
GROUPS = {
    "pods": _PODS,
    "services-granular": r"\[sig-network\] Networking Granular Checks: Services",
    "services": r"\[sig-network\] (Services|Service endpoints|Endpoint|API Server)",
    "dns": r"\[sig-network\] DNS",
    "dual-stack": r"\[sig-network\].*Feature:IPv6DualStack",
    "network": r"\[sig-network\] (HostPort|NoSNAT|Conntrack|Connectivity|Proxy|Networking should)",
    "lifecycle": r"\[sig-node\] (Pods|PreStop|Container Life|InitContainer|Ephemeral|Probing)",
}
SHORT = ("pods",)  # in the short form
# The tests that are left out, and why. docs/kubernetes.md has the reasons, too.
LEFT_OUT: dict[str, str] = {
    r"SCTPConnectivity": "the kernel may lack SCTP",
    r"OffByDefault": "needs a part of Kubernetes that is switched off by default",
    r"Feature:(Networking|PerformanceDNS)": "needs the internet, or measures",
    r"Feature:LoadBalancer": "needs the load balancer of a cloud",
    r"\[Provider:": "is for a cloud",
    r"\[Disruptive\]": "restarts programs that are pods elsewhere",
    r"cap back-off at MaxContainerBackOff": (
        "looks at a pause of five minutes, and kubelets of the lab wait two seconds"
    ),
    r"DNS configMap nameserver": "has the cluster's DNS ask others, while other tests need it",
}


def registries(folder: Path) -> Path:
    """Write where the tests find their images, and return the file."""
    path = folder / "registries.json"  # JSON is YAML
    path.write_text(json.dumps(dict.fromkeys(_REGISTRIES, REGISTRY)))
    return path


def image_names(folder: Path) -> list[str]:
    """Return the names of all images that the tests may ask for.

    NoSNAT has its image's name before the tests are told a registry: so the others count, too.
    """
    program, told = PROGRAMS / "e2e.test", f"-kube-test-repo-list={registries(folder)}"
    listed = [run(program, "-list-images", told), run(program, "-list-images")]
    return sorted({name for text in listed for name in text.split() if "/" in name})


def run_group(group: str, kubeconfig: str, folder: Path, seconds: float) -> list[Outcome]:
    """Run a group of tests; `folder` gets report and log. Raises AssertionError without report."""
    folder.mkdir(parents=True, exist_ok=True)
    report, log = folder / f"{group}.json", folder / f"{group}.log"
    report.unlink(missing_ok=True)
    command = [
        *(str(PROGRAMS / "ginkgo"), "run", f"--procs={SIDE_BY_SIDE}", "--no-color", "-v"),
        *(f"--focus={GROUPS[group]}", *(f"--skip={pattern}" for pattern in LEFT_OUT)),
        *("--output-dir", str(folder), "--json-report", report.name),
        *(f"--timeout={seconds:.0f}s", str(PROGRAMS / "e2e.test"), "--"),
        *(f"--kubeconfig={kubeconfig}", f"--kubectl-path={KUBERNETES / 'kubectl'}"),
        *(f"--kube-test-repo-list={registries(folder)}", "--provider=skeleton"),
        f"--num-nodes={len(NAMES)}",  # which one of several processes would find out alone
        *("--e2e-output-dir", str(folder), "--disable-log-dump"),
    ]
    environ = {"PATH": SYSTEM_PATH, "HOME": str(folder), "TMPDIR": str(folder)}
    with log.open("w") as output:
        subprocess.run(command, stdout=output, stderr=output, env=environ, cwd=folder, check=False)
    assert report.exists(), log.read_text(errors="replace")[-4000:]
    return outcomes(report)
