"""The control plane: etcd, API server, controller manager and scheduler as processes of the world.

kubeadm makes certificates and kubeconfigs, so authentication, RBAC and the authorization of nodes
are those of a real cluster.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.kubernetes.api import Api
from tests.kubernetes.daemons import Daemon
from tests.kubernetes.world import (
    ADDRESS4,
    ADDRESS6,
    PODS4,
    PODS6,
    PROGRAMS,
    SERVICES4,
    SERVICES6,
    SYSTEM_PATH,
    World,
    run,
)
from tests.waits import wait_until

ETCD = "http://127.0.0.1:2379"
GRACE = "20s"  # without a word of its kubelet, after which a node counts as not ready
_KUBEADM = f"""\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{ advertiseAddress: {ADDRESS4}, bindPort: 6443 }}
nodeRegistration: {{ name: world, criSocket: unix:///run/none.sock }}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: VERSION
certificatesDir: PKI
controlPlaneEndpoint: {ADDRESS4}:6443
networking: {{ serviceSubnet: "{SERVICES4},{SERVICES6}", podSubnet: "{PODS4},{PODS6}" }}
apiServer: {{ certSANs: [localhost, 127.0.0.1, "{ADDRESS6}"] }}
"""


class ControlPlane:
    """The four programs, and a client with all rights."""

    def __init__(self, world: World, logs: Path, programs: Path = PROGRAMS) -> None:
        """Start them and wait until they serve; their logs go to `logs`."""
        self.folder, self.logs, self._programs = world.files / "control-plane", logs, programs
        self.folder.mkdir()
        self.logs.mkdir(parents=True, exist_ok=True)
        self.pki = self.folder / "pki"
        self.daemons: dict[str, Daemon] = {}
        self._certify()
        self._start("etcd", *self._etcd())
        self._start("kube-apiserver", *self._apiserver())
        self.api = Api(self.kubeconfig("super-admin"), self.folder)
        wait_until(self.api.answers, "the API server does not answer")
        self._start("kube-controller-manager", *self._controller_manager())
        self._start(
            "kube-scheduler", "--kubeconfig", self.conf("scheduler"), "--leader-elect=false"
        )
        self._allow_calls_of_kubelets()
        accounts = "/api/v1/namespaces/default/serviceaccounts"
        self.api.wait(accounts, lambda found: "default" in found, "the first service account")

    # --- programs ---

    def conf(self, name: str) -> str:
        """Return the path of a kubeconfig that kubeadm has made."""
        return str(self.folder / f"{name}.conf")

    def kubeconfig(self, name: str) -> dict[str, Any]:
        """Return its content."""
        text = self.kubectl("config", "view", "--raw", "-o", "json", kubeconfig=self.conf(name))
        found: dict[str, Any] = json.loads(text)
        return found

    def kubectl(
        self, *words: str, stdin: str = "", kubeconfig: str = "", seconds: float = 60
    ) -> str:
        """Run kubectl, which must succeed, and return what it prints."""
        config = kubeconfig or self.conf("super-admin")
        program = self._programs / "kubectl"
        return run(program, "--kubeconfig", config, *words, stdin=stdin, seconds=seconds)

    def _kubeadm(self, *words: str) -> str:
        settings = str(self.folder / "kubeadm.yaml")
        return run(self._programs / "kubeadm", *words, "--config", settings, seconds=120)

    def _certify(self) -> None:
        version = run(self._programs / "kubeadm", "version", "-o", "short").strip()
        text = _KUBEADM.replace("VERSION", version).replace("PKI", str(self.pki))
        (self.folder / "kubeadm.yaml").write_text(text)
        self._kubeadm("init", "phase", "certs", "all")
        folder = str(self.folder)
        self._kubeadm("init", "phase", "kubeconfig", "all", "--kubeconfig-dir", folder)
        proxy = self._kubeadm("kubeconfig", "user", "--client-name", "system:kube-proxy")
        Path(self.conf("kube-proxy")).write_text(proxy)

    def certify_node(self, name: str, folder: Path) -> None:
        """Write the kubeconfig of a node's kubelet into `folder`."""
        phase = ("init", "phase", "kubeconfig", "kubelet")
        self._kubeadm(*phase, "--node-name", name, "--kubeconfig-dir", str(folder))

    def addon(self, name: str) -> list[dict[str, Any]]:
        """Return the objects that kubeadm has for an addon."""
        text = self._kubeadm("init", "phase", "addon", name, "--print-manifest")
        create = ("create", "--dry-run=client", "-o", "json", "-f", "-")
        # kubectl prints one object after the other.
        told = self.kubectl(*create, stdin=text).strip()
        found: list[dict[str, Any]] = []
        while told:
            item, end = json.JSONDecoder().raw_decode(told)
            found += item["items"] if item["kind"] == "List" else [item]
            told = told[end:].strip()
        return found

    def _start(self, program: str, *words: str) -> None:
        environ = {"PATH": SYSTEM_PATH, "HOME": str(self.folder)}
        command = [str(self._programs / program), *words]
        log = self.logs / f"{program}.log"
        self.daemons[program] = Daemon(command, log, environ, is_kept=True)

    def _etcd(self) -> list[str]:
        return [
            *("--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", ETCD, "--advertise-client-urls", ETCD),
            *("--listen-peer-urls", "http://127.0.0.1:2380"),
        ]

    def _apiserver(self) -> list[str]:
        pki = self.pki
        return [
            *("--etcd-servers", ETCD, "--advertise-address", ADDRESS4, "--secure-port", "6443"),
            *("--service-cluster-ip-range", f"{SERVICES4},{SERVICES6}", "--allow-privileged"),
            *("--authorization-mode", "Node,RBAC"),
            *("--enable-admission-plugins", "NodeRestriction"),
            *("--client-ca-file", f"{pki}/ca.crt"),
            *("--tls-cert-file", f"{pki}/apiserver.crt"),
            *("--tls-private-key-file", f"{pki}/apiserver.key"),
            *("--kubelet-client-certificate", f"{pki}/apiserver-kubelet-client.crt"),
            *("--kubelet-client-key", f"{pki}/apiserver-kubelet-client.key"),
            *("--kubelet-preferred-address-types", "InternalIP"),
            *("--service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
            *("--service-account-key-file", f"{pki}/sa.pub"),
            *("--service-account-signing-key-file", f"{pki}/sa.key"),
        ]

    def _controller_manager(self) -> list[str]:
        pki = self.pki
        return [
            *("--kubeconfig", self.conf("controller-manager"), "--leader-elect=false"),
            *("--use-service-account-credentials", "--root-ca-file", f"{pki}/ca.crt"),
            *("--service-account-private-key-file", f"{pki}/sa.key"),
            *("--cluster-signing-cert-file", f"{pki}/ca.crt"),
            *("--cluster-signing-key-file", f"{pki}/ca.key"),
            *("--allocate-node-cidrs", "--cluster-cidr", f"{PODS4},{PODS6}"),
            *("--service-cluster-ip-range", f"{SERVICES4},{SERVICES6}"),
            *("--node-monitor-grace-period", GRACE),
        ]

    def _allow_calls_of_kubelets(self) -> None:
        """Let the API server call kubelets, for logs and exec: `kubeadm init` does it later."""
        group = "rbac.authorization.k8s.io"
        body = {
            "metadata": {"name": "tests:kubelets"},
            "roleRef": {
                "apiGroup": group,
                "kind": "ClusterRole",
                "name": "system:kubelet-api-admin",
            },
            "subjects": [
                {"apiGroup": group, "kind": "User", "name": "kube-apiserver-kubelet-client"}
            ],
        }
        path = f"/apis/{group}/v1/clusterrolebindings"

        def bound() -> bool:  # RBAC's own roles come moments after the server answers
            done = self.api.find(f"{path}/tests:kubelets") or self.api.create(path, body)
            return bool(done)

        wait_until(bound, "the binding of the API server's rights")

    # --- failures ---

    def stop_api(self) -> None:
        """Take the API server away."""
        self.daemons["kube-apiserver"].stop()

    def start_api(self) -> None:
        """Bring it back, and wait until it answers."""
        self.daemons["kube-apiserver"].start()
        wait_until(self.api.answers, "the API server does not come back")

    def close(self) -> None:
        """End all of it."""
        for daemon in reversed(self.daemons.values()):
            daemon.kill()


def required(programs: Path = PROGRAMS) -> str:
    """Return why there cannot be a cluster here, "" where there can be one."""
    if os.geteuid():
        return "needs root: namespaces, cgroups and mounts of its own"
    if not (programs / "complete").exists():
        return f"{programs} is not there: run deploy/prerequisites.sh --kubernetes"
    return ""
