"""A node: namespaces with containerd, kubelet and kube-proxy, joined to the world's bridge."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.kubernetes.combination import Combination
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.daemons import Daemon
from tests.kubernetes.world import (
    ADDRESS4,
    ADDRESS6,
    BRIDGE,
    DNS4,
    PODS4,
    PODS6,
    PROGRAMS,
    SYSTEM_PATH,
    World,
    run,
)
from tests.machine import ROOT, Json
from tests.runtimes.sandbox import RUNTIMES, joining, make_group, move_to_leaf, remove_group
from tests.waits import wait_until

CONFLISTS = "/etc/cni/net.d"
BIN = "/opt/cni/bin"
MTU = 1500  # of the network between the nodes
Done = subprocess.CompletedProcess[str]

_KUBELET = """\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
crashLoopBackOff: { maxContainerRestartPeriod: 2s } # tests kill the agent several times
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication:
  anonymous: { enabled: false }
  webhook: { enabled: true }
  x509: { clientCAFile: CA }
authorization: { mode: Webhook }
clusterDNS: [DNS]
clusterDomain: cluster.local
resolvConf: ""
maxPods: 253 # as many as a range of 24 bits has addresses, less the gateway's
evictionHard:
  memory.available: 1Mi
  nodefs.available: 0%
  nodefs.inodesFree: 0%
  imagefs.available: 0%
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
shutdownGracePeriod: 0s
"""
# conntrack: its limit is one for the whole machine.
_PROXY = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: MODE
clusterCIDR: "PODS"
hostnameOverride: NAME
clientConnection: { kubeconfig: /etc/kubernetes/kube-proxy.conf }
conntrack: { maxPerCore: 0, min: 0 }
"""


class Node:
    """A node of the cluster. `number` gives its address on the bridge, and may change at a boot."""

    def __init__(
        self, name: str, number: int, world: World, plane: ControlPlane, combination: Combination
    ) -> None:
        """Boot it and start its daemons, without a network for pods."""
        self.name, self.number = name, number
        self.world, self.plane, self.combination = world, plane, combination
        self.folder, self.logs = world.files / name, plane.logs / name
        self.folder.mkdir()
        self.logs.mkdir(parents=True, exist_ok=True)
        self.daemons: dict[str, Daemon] = {}
        self._group = f"pycni-{name}-{uuid.uuid4().hex[:12]}"
        self.images: list[Path] = []
        plane.certify_node(name, self.folder)
        self._boot()

    @property
    def addresses(self) -> tuple[str, str]:
        """Its addresses on the network between the nodes."""
        return f"172.30.0.{10 + self.number}", f"fd00:30::{10 + self.number}"

    # --- life ---

    def _boot(self) -> None:
        """Make its namespaces and join them to the bridge."""
        self._groups = [
            make_group(hierarchy, mountpoint, self._group)
            for hierarchy, mountpoint in self.world.groups.items()
        ]
        kinds = ("net", "mount", "pid", "ipc", "uts", "cgroup")
        unshare = ["unshare", *(f"--{kind}" for kind in kinds)]
        unshare += ["--fork", "--kill-child", "--mount-proc", "--"]
        program = [sys.executable, "-m", "tests.kubernetes.boot", self.name]
        program.append(str(self.folder / "disk"))
        with (self.logs / "boot.log").open("ab") as log:
            self._holder = subprocess.Popen(
                joining(self._groups, *unshare, *program),
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
            )
        assert self._holder.stdout is not None
        with self._holder.stdout as output:
            ready = output.readline()
        assert ready == b"ready\n", (self.logs / "boot.log").read_text()
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self.pid = int(children.read_text().split()[0])
        self._leaves = [Path(move_to_leaf(group)) for group in self._groups]
        self._join_bridge()

    def _join_bridge(self) -> None:
        port = f"port-{self.name}"
        # That of the boot before goes a moment after its namespace.
        subprocess.run(["ip", "link", "delete", port], capture_output=True, check=False)
        peer = ("peer", "name", "eth0", "netns", str(self.pid))
        run("ip", "link", "add", port, "type", "veth", *peer)
        run("ip", "link", "set", port, "master", BRIDGE, "up")
        four, six = self.addresses
        script = f"""
            ip link set lo up
            echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
            ip link set eth0 up
            ip address add {four}/24 dev eth0
            ip address add {six}/64 dev eth0 nodad
            ip route add default via {ADDRESS4}
            ip -6 route add default via {ADDRESS6}
            """
        self.command("sh", "-ec", script)
        reachable = ("ping", "-n", "-c", "1", "-W", "5", ADDRESS6)
        wait_until(lambda: self.run(*reachable).returncode == 0, f"{self.name} reaches the world")

    def start(self) -> None:
        """Start containerd, kubelet and kube-proxy."""
        etc = self.path("/etc/kubernetes")
        for source in (self.folder / "kubelet.conf", Path(self.plane.conf("kube-proxy"))):
            (etc / source.name).write_bytes(source.read_bytes())
        self.start_containerd()
        for image in self.images:
            self.load(image)
        self._write("kubelet.yaml", _KUBELET, CA=str(self.plane.pki / "ca.crt"), DNS=DNS4)
        mode, pods = self.combination.proxy, f"{PODS4},{PODS6}"
        self._write("kube-proxy.yaml", _PROXY, MODE=mode, PODS=pods, NAME=self.name)
        self._daemon("kubelet", *self._kubelet())
        self._daemon("kube-proxy", "--config", "/etc/kubernetes/kube-proxy.yaml")

    def _kubelet(self) -> list[str]:
        return [
            *("--config", "/etc/kubernetes/kubelet.yaml"),
            *("--kubeconfig", "/etc/kubernetes/kubelet.conf"),
            *("--hostname-override", self.name, "--node-ip", ",".join(self.addresses)),
        ]

    def await_other_proxy(self, before: int) -> None:
        """Wait until kube-proxy has ended, as it does when its Node is deleted, and runs again."""
        proxy = self.daemons["kube-proxy"]
        wait_until(lambda: proxy.ended > before, "kube-proxy goes on without its Node")

    def start_containerd(self) -> None:
        """Start containerd and wait until it answers."""
        self.path("/etc/kubernetes/containerd.toml").write_text(self.combination.containerd_config)
        self._daemon("containerd", "--config", "/etc/kubernetes/containerd.toml")
        wait_until(lambda: self.run("ctr", "version").returncode == 0, "containerd does not answer")

    def _daemon(self, program: str, *words: str) -> None:
        if program in self.daemons and self.daemons[program].is_running():
            return
        command, log = self.entered(program, *words), self.logs / f"{program}.log"
        self.daemons[program] = Daemon(command, log, self.environ, is_kept=True)

    def _write(self, name: str, text: str, **values: str) -> None:
        """Write a file of settings, with values in place of words in capitals."""
        for word, value in values.items():
            text = re.sub(rf"\b{word}\b", value, text)
        self.path(f"/etc/kubernetes/{name}").write_text(text)

    def shut_down(self) -> None:
        """End all of its processes and namespaces at once, as a loss of power does."""
        self._holder.kill()
        self._holder.wait()
        for daemon in self.daemons.values():
            daemon.kill()
        self.daemons.clear()
        for group in self._groups:
            remove_group(group)

    def boot(self, number: int) -> None:
        """Boot again from the same disk, with the address of this number."""
        self.number = number
        self._boot()
        self.start()

    def reboot(self) -> None:
        """Lose power and boot again."""
        self.shut_down()
        self.boot(self.number)

    def load(self, archive: Path) -> None:
        """Have containerd unpack an archive of images."""
        self.command("ctr", "--namespace", "k8s.io", "image", "import", str(archive))

    def configured(self, version: str, plugins: Sequence[Json], name: str = "10-test") -> None:
        """Write a list of plugins, as an agent does: by a rename within the directory."""
        text = json.dumps({"cniVersion": version, "name": "test", "plugins": list(plugins)})
        self.write_list(f"{name}.conflist", text)

    def write_list(self, name: str, text: str) -> None:
        """Put a file into the directory of networks by a rename."""
        new = self.path(f"{CONFLISTS}/.{name}")
        new.write_text(text)
        new.rename(new.with_name(name))

    # --- commands and files ---

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its programs."""
        folders = [self.combination.containerd, PROGRAMS]
        path = ":".join([*(str(folder) for folder in folders if folder), SYSTEM_PATH])
        return {"PATH": path, "HOME": "/run/home", "TMPDIR": "/run/tmp"}

    @property
    def netns(self) -> str:
        """Where its network namespace is to be found from here."""
        return f"/proc/{self.pid}/ns/net"

    def namespaces(self) -> list[str]:
        """Return the names of all network namespaces that the runtime has made."""
        return sorted(path.name for path in self.path("/run/netns").iterdir())

    def path(self, name: str) -> Path:
        """Return where a file of the node is to be found from here."""
        return Path(f"/proc/{self.pid}/root{name}")

    def entered(self, *words: str | Path, netns: str = "") -> list[str]:
        """Return the command line that runs a command on it, or in the network of a pod."""
        enter: list[str | Path] = ["nsenter", "--target", str(self.pid), "--all", "--"]
        if netns:
            enter = ["nsenter", f"--net={netns}", "--"]
        return joining(self._leaves, *enter, *words)

    def run(
        self, *words: str | Path, stdin: str = "", netns: str = "", seconds: float = 60
    ) -> Done:
        """Run a command on the node, or in the network of one of its pods."""
        return subprocess.run(
            self.entered(*words, netns=netns),
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environ,
            timeout=seconds,
            check=False,
        )

    def command(self, *words: str | Path, stdin: str = "", netns: str = "") -> str:
        """Return what a command prints; it must succeed."""
        done = self.run(*words, stdin=stdin, netns=netns)
        assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}{done.stdout}"
        return done.stdout

    def ip(self, *words: str, netns: str = "") -> list[Json]:
        """Return what `ip -j -d` says on the node, or in a pod."""
        text = self.command("ip", "-j", "-d", *words, netns=netns)
        return [entry for entry in json.loads(text or "[]") if entry]


def missing() -> str:
    """Return why there cannot be nodes here, "" where there can be."""
    if not (RUNTIMES / "packages").exists():
        return f"{RUNTIMES} is not there: run deploy/prerequisites.sh --kubernetes"
    return ""
