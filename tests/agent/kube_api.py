"""Kubernetes' own API server with its etcd in a namespace, without the rest of a control plane.

It has the Nodes that a test makes, and gives agents the rights of the manifest.
"""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import yaml

from agent.nodes import PUBLIC_KEY
from tests.api_server import certified
from tests.kubernetes.api import NODES, Api
from tests.kubernetes.control_plane import required
from tests.kubernetes.world import PROGRAMS
from tests.machine import ROOT, Json
from tests.resident import start_in
from tests.waits import wait_until

PORT = 6443
ACCOUNT = ROOT / "deploy/kubernetes/base/account.yaml"
_ETCD = "http://127.0.0.1:2379"
_USER = "system:serviceaccount:kube-system:pycni"  # as the manifest's binding names the agents
_ADMIN = "a-token-with-all-rights"
_RBAC = "rbac.authorization.k8s.io/v1"


class KubeApi:
    """The server, and a client with all rights. `account` is what a pod of the agents has."""

    def __init__(self, netns: str, address: str, account: Path, seconds: float) -> None:
        """Start both in a namespace that has the address, and wait for so long at most."""
        assert not required(), required()
        self._netns, self.account = netns, account
        self._processes: list[subprocess.Popen[bytes]] = []
        certified(account, address)
        token = (account / "token").read_text()
        (account / "tokens.csv").write_text(
            f"{_ADMIN},admin,admin,system:masters\n{token},{_USER},{_USER},system:authenticated\n"
        )
        self._start("etcd", *self._etcd())
        self._start("kube-apiserver", *self._apiserver(address))
        authority = base64.b64encode((account / "ca.crt").read_bytes()).decode()
        cluster = {
            "server": f"https://{address}:{PORT}",
            "certificate-authority-data": authority,
        }
        config = {"clusters": [{"cluster": cluster}], "users": [{"user": {"token": _ADMIN}}]}
        self.api = Api(config, account, netns)
        wait_until(self._answers, self._log, seconds, pause=1.0)
        for body in yaml.safe_load_all(ACCOUNT.read_text()):
            if body["kind"] != "ServiceAccount":  # of the token's name; its object is not asked for
                self.api.create(f"/apis/{_RBAC}/{body['kind'].lower()}s", body)

    def _etcd(self) -> list[str]:
        return [
            *("--data-dir", str(self.account / "etcd"), "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", _ETCD, "--advertise-client-urls", _ETCD),
            *("--listen-peer-urls", "http://127.0.0.1:2380"),
        ]

    def _apiserver(self, address: str) -> list[str]:
        certificate, key = str(self.account / "ca.crt"), str(self.account / "key.pem")
        return [
            *("--etcd-servers", _ETCD, "--bind-address", address, "--secure-port", str(PORT)),
            *("--advertise-address", address, "--endpoint-reconciler-type", "none"),
            *("--service-cluster-ip-range", "10.96.0.0/24"),
            *("--tls-cert-file", certificate, "--tls-private-key-file", key),
            *("--token-auth-file", str(self.account / "tokens.csv")),
            *("--authorization-mode", "RBAC"),
            *("--service-account-issuer", "https://kubernetes.default.svc"),
            *("--service-account-key-file", certificate, "--service-account-signing-key-file", key),
            *("--enable-priority-and-fairness=false", "--profiling=false"),
        ]

    def _start(self, program: str, *words: str) -> None:
        with (self.account / f"{program}.log").open("ab") as log:
            process = start_in(
                *(self._netns, str(PROGRAMS / program), *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)

    def _answers(self) -> bool:
        assert all(one.poll() is None for one in self._processes), self._log()
        return self.api.answers()

    def _log(self) -> str:
        logs = [self.account / "etcd.log", self.account / "kube-apiserver.log"]
        return "no API server:\n" + "\n".join(one.read_text()[-3000:] for one in logs)

    # --- Nodes ---

    def add_node(self, name: str, addresses: tuple[str, ...], ranges: tuple[str, ...]) -> None:
        """Make a Node, as kubelet and controller manager do."""
        body: Json = {
            "metadata": {"name": name},
            "spec": {"podCIDR": ranges[0], "podCIDRs": list(ranges)},
            "status": {
                "addresses": [{"type": "InternalIP", "address": one} for one in addresses],
                "nodeInfo": {"containerRuntimeVersion": "containerd://2.4.2"},
            },
        }
        self.api.create(NODES, body)

    def delete_node(self, name: str) -> None:
        """Delete a Node."""
        self.api.delete(f"{NODES}/{name}")

    def keys(self) -> dict[str, str]:
        """Return the public keys that Nodes show, by name; none of a Node that shows none."""
        found = {}
        for item in self.api.list(NODES):
            key = item["metadata"].get("annotations", {}).get(PUBLIC_KEY)
            if key:
                found[item["metadata"]["name"]] = key
        return found

    def close(self) -> None:
        """End both."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
