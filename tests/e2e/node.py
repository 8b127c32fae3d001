"""Node: a pretend host as a runtime sees one, with network, files below /run and processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.machine import CNITOOL, DIST, ROOT, Json, files_below, vlans_of

# The outside world: one host on the node's only uplink, which has no route to any container.
NODE4, OUTSIDE4 = "192.0.2.1", "192.0.2.2"
NODE6, OUTSIDE6 = "2001:db8::1", "2001:db8::2"
# Where runtimes and plugins keep files; the second is where kind has its leases.
STATES = ("/var/lib/cni", "/run/cni-ipam-state", "/run/pycni")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What host-local keeps for a network, not for an attachment: lock, cursors, index; and the lock on
# namespaces.
STAYS = re.compile(
    r".*/lock|/run/pycni/netns\.lock|.*/last_reserved_ip\.\d+|/run/pycni/indexes/[0-9a-f]+-[0-9a-f]+"
)

_COUNTED = re.compile(r'"packets": \d+, "bytes": \d+')

Done = subprocess.CompletedProcess[str]


class Node:
    """A pretend host made by tests/in-sandbox, which ends with all that was started in it."""

    def __init__(self, bin_dir: Path) -> None:
        assert (bin_dir / "bridge").exists(), f"{bin_dir} lacks plugins: deploy/prerequisites.sh"
        self.bin_dir = bin_dir
        self._engine: subprocess.Popen[bytes] | None = None
        self._holder = subprocess.Popen(
            self.sandbox(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._enter = self.enter(self._holder.stdout.readline())

    def sandbox(self) -> list[str | Path]:
        """Return the command that is the node: it prints a line once it is, and ends with stdin."""
        return [ROOT / "tests" / "in-sandbox", "bash", "-c", "echo ready; read -r _ || true"]

    def enter(self, line: bytes) -> list[str]:
        """Return what runs a command on the node whose command has printed this line."""
        assert line == b"ready\n"
        self.pid = self._holder.pid
        return ["nsenter", *self.namespaces("net", "mount", "pid"), "--"]

    def namespaces(self, *kinds: str) -> list[str]:
        """Return nsenter's options for namespaces of the node."""
        files = {"mount": "mnt", "pid": "pid_for_children"}
        return [f"--{kind}=/proc/{self.pid}/ns/{files.get(kind, kind)}" for kind in kinds]

    def start_engine(
        self, *options: str, wrap: Callable[..., Sequence[str | Path]] = lambda *words: words
    ) -> None:
        """Start an engine and wait until it serves; it ends with the node, or with the next one.

        `wrap` returns the command line that runs one inside of something else.
        """
        old = self._engine
        log = self.path("/run/engine.log")
        with log.open("wb") as stderr:
            self._engine = subprocess.Popen(
                [*self._enter, *wrap(DIST / "pycni", "engine", *options)],
                stderr=stderr,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + 60  # an emulated machine starts it slowly
        while b"wait for requests" not in log.read_bytes():
            assert self._engine.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the engine does not start"
            time.sleep(0.005)
        if old:
            old.wait()

    def close(self) -> None:
        """End the node."""
        for stream in (self._holder.stdin, self._holder.stdout):
            assert stream is not None
            stream.close()
        self._holder.wait()
        if self._engine:
            self._engine.wait()

    def path(self, name: str) -> Path:
        """Return where a file of the node is to be found from here."""
        return Path(f"/proc/{self.pid}/root{name}")

    def netns(self, path: str = "") -> str:
        """Return where a namespace of the node, or its own, is to be found from here."""
        return str(self.path(path)) if path else f"/proc/{self.pid}/ns/net"

    # --- commands ---

    def run(
        self,
        *words: str | Path,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        netns: str = "",
        seconds: float = 60,
    ) -> Done:
        """Run a command on the node, or inside one of its containers."""
        return subprocess.run(
            self.entered(*words, netns=netns),
            input=stdin,
            capture_output=True,
            text=True,
            env={"PATH": PATH, **(env or {})},
            timeout=seconds,
            check=False,
        )

    def entered(self, *words: str | Path, netns: str = "") -> list[str]:
        """Return the command line that runs a command on the node, or inside a container."""
        enter = ["nsenter", f"--net={netns}", "--"] if netns else []
        return [*self._enter, *enter, *map(str, words)]

    def command(self, *words: str, netns: str = "") -> str:
        """Return what a command prints; it must succeed."""
        done = self.run(*words, netns=netns)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout

    # --- containers and the world ---

    def container(self, name: str = "c1") -> str:
        """Return the path of a new network namespace."""
        self.command("ip", "netns", "add", name)
        return f"/run/netns/{name}"

    def delete_container(self, name: str) -> None:
        """Delete a network namespace, and wait until the kernel has taken its veth pairs away."""
        inside = self._pairs(f"/run/netns/{name}")
        outside = self._pairs("")
        gone = {outside[peer][0] for _, peer in inside.values() if peer in outside}
        self.command("ip", "netns", "delete", name)
        for _ in range(1000):
            if not gone & set(self.links("")):
                return
            time.sleep(0.01)
        raise AssertionError(f"the namespace {name} does not go away")

    def _pairs(self, netns: str) -> dict[int, tuple[str, int]]:
        """Return name and the other end's index of each veth interface, by its index."""
        links = self.ip(netns, "link", "show", "type", "veth")
        return {one["ifindex"]: (one["ifname"], one.get("link_index", 0)) for one in links}

    def process(self) -> int:
        """Return the process id, on the node, of a container that is nothing but a process."""
        start = "unshare --net sleep 300 </dev/null >/dev/null 2>&1 & echo $!"
        pid = int(self.command("sh", "-c", start))
        own = self.command("readlink", "/proc/self/ns/net")
        for _ in range(1000):
            if self.command("readlink", f"/proc/{pid}/ns/net") != own:
                return pid
        raise AssertionError("unshare did not make a namespace")

    def kill(self, pid: int) -> None:
        """End a process of the node, and wait until its namespace cannot be opened any more."""
        self.command("kill", "-KILL", str(pid))
        for _ in range(1000):
            if self.run("test", "-e", f"/proc/{pid}/ns/net").returncode:
                return
            time.sleep(0.01)
        raise AssertionError(f"process {pid} does not end")

    def outside(self) -> str:
        """Return the namespace of a new host outside, reached over the node's uplink."""
        script = f"""
            ip netns add outside
            ip link add up0 type veth peer name ext0 netns outside
            echo 0 >/proc/sys/net/ipv6/conf/up0/accept_dad
            ip netns exec outside sh -c 'echo 0 >/proc/sys/net/ipv6/conf/ext0/accept_dad'
            ip address add {NODE4}/24 dev up0
            ip address add {NODE6}/64 dev up0 nodad
            ip -n outside address add {OUTSIDE4}/24 dev ext0
            ip -n outside address add {OUTSIDE6}/64 dev ext0 nodad
            ip link set up0 up
            ip -n outside link set ext0 up
            # The kernel uses IPv6 addresses some time after they were added: tests/machine.py.
            for turn in $(seq 1000); do
                used=$({{
                    ip -6 route show table local type local dev up0
                    ip -n outside -6 route show table local type local dev ext0
                }} | wc -l)
                [ $used -ne 4 ] || exit 0
                sleep 0.01
            done
            exit 1
            """
        self.command("sh", "-ec", script)
        return "/run/netns/outside"

    def reaches(self, netns: str, address: str) -> bool:
        """Tell whether `address` answers a ping from a container, or, with "", from the node."""
        # As patient as an emulated machine needs: an answer ends the wait.
        done = self.run("ping", "-n", "-c", "1", "-W", "20", address, netns=netns)
        return done.returncode == 0

    def is_cut_off(self, netns: str, address: str) -> bool:
        """Tell whether no ping is answered; waits less, since nobody answers within moments."""
        done = self.run("ping", "-n", "-c", "2", "-i", "0.1", "-W", "0.3", address, netns=netns)
        return done.returncode != 0

    # --- plugins ---

    def configure(self, *configs: Mapping[str, Any]) -> None:
        """Make these lists, or single plugins, the node's only networks."""
        directory = self.path("/etc/cni/net.d")
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.iterdir():
            old.unlink()
        for number, config in enumerate(configs):
            suffix = "conflist" if "plugins" in config else "conf"
            # By a rename, as containerd watches the directory, and might read half of a file.
            new = directory / "new"
            new.write_text(json.dumps(config))
            new.rename(directory / f"{number:02}.{suffix}")

    def cnitool(self, command: str, network: str, netns: str, **environ: str) -> Done:
        """Run cnitool: CAP_ARGS, CNI_ARGS, CNI_IFNAME, NETCONFPATH by keyword."""
        env = {"CNI_PATH": str(self.bin_dir), "NETCONFPATH": "/etc/cni/net.d", **environ}
        return self.run(CNITOOL, command, network, netns, env=env)

    def ok(self, command: str, network: str, netns: str, **environ: str) -> Json:
        """Run cnitool, which must succeed, and return the result, {} where it has none."""
        done = self.cnitool(command, network, netns, **environ)
        assert done.returncode == 0, done.stderr
        result: Json = json.loads(done.stdout or "{}")
        return result

    def refused(self, command: str, network: str, netns: str, **environ: str) -> str:
        """Run cnitool, which must fail, and return what it says."""
        done = self.cnitool(command, network, netns, **environ)
        assert done.returncode == 1, f"{command} of {network} succeeded: {done.stdout}"
        return done.stderr

    def execute(
        self,
        plugin: str,
        command: str,
        config: Mapping[str, Any] | str,
        netns: str = "",
        *,
        env: Mapping[str, str] | None = None,
        **attachment: str,
    ) -> Done:
        """Run a plugin as a runtime does; bin_dir, path, containerid, ifname, args by keyword.

        `env` replaces variables.
        """
        bin_dir = attachment.get("bin_dir", str(self.bin_dir))
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": attachment.get("containerid", "c1"),
            "CNI_NETNS": netns,
            "CNI_IFNAME": attachment.get("ifname", "eth0"),
            "CNI_ARGS": attachment.get("args", ""),
            "CNI_PATH": attachment.get("path", bin_dir),
            **(env or {}),
        }
        stdin = config if isinstance(config, str) else json.dumps(config)
        return self.run(f"{bin_dir}/{plugin}", stdin=stdin, env=environ)

    # --- the judges ---

    def ip(self, netns: str, *words: str) -> list[Json]:
        """Return what `ip -j -d` says on the node ("") or inside a container."""
        text = self.command("ip", "-j", "-d", *words, netns=netns)
        return [entry for entry in json.loads(text or "[]") if entry]

    def link(self, netns: str, name: str) -> Json | None:
        """Return one interface, None when there is none."""
        return next((link for link in self.ip(netns, "link") if link["ifname"] == name), None)

    def links(self, netns: str) -> list[str]:
        """Return the names of all interfaces."""
        return [link["ifname"] for link in self.ip(netns, "link")]

    def addresses(self, netns: str, name: str) -> list[str]:
        """Return the addresses of an interface with their prefixes, link-local ones left out."""
        found = self.ip(netns, "addr", "show", "dev", name)
        infos = [info for link in found for info in link["addr_info"] if info["scope"] != "link"]
        return [f"{info['local']}/{info['prefixlen']}" for info in infos]

    def vlans(self, port: str) -> list[tuple[int, frozenset[str]]]:
        """Return the VLANs of a bridge port of the node and their flags."""
        return vlans_of(self.command("bridge", "-j", "vlan", "show"), port)

    def files(self) -> dict[str, str]:
        """Return the files that runtimes and plugins have written, by name; not the engine's."""
        found = {}
        for state in STATES:
            root = str(self.path(state))
            for name, content in files_below(root).items():
                found[state + name.removeprefix(root)] = content
        for name in ("lock", "log", "on-demand"):
            found.pop(f"/run/pycni/engine.{name}", None)
        return found

    def firewall(self) -> list[str]:
        """Return every rule, set, chain and table, less what iptables makes once and for all.

        Without the packets that they have counted.
        """
        listing = json.loads(self.command("nft", "-j", "list", "ruleset"))["nftables"]
        found = []
        for entry in listing:
            ((kind, thing),) = entry.items()
            # `table ip nat` and its POSTROUTING stay, as the kernel's built-in chains did.
            built_in = thing.get("family") in ("ip", "ip6") and (kind == "table" or "hook" in thing)
            if kind != "metainfo" and not built_in:
                found.append(_COUNTED.sub("", f"{kind} {json.dumps(thing)}"))
        return found

    def traces(self, *bridges: str) -> dict[str, Any]:
        """Return what attachments have left on the node; `bridges`, cursors, indexes may stay."""
        kept = ("lo", "up0", *bridges)
        files = [name for name in self.files() if not STAYS.fullmatch(name)]
        found = {
            "links": [name for name in self.links("") if name not in kept],
            "firewall": self.firewall(),
            "files": files,
        }
        return {what: names for what, names in found.items() if names}


@contextmanager
def node_with(bin_dir: Path) -> Iterator[Node]:
    """Give a node whose CNI_PATH is `bin_dir`, and end it.

    It has an engine where `bin_dir` holds our launchers and nothing that they could start.
    """
    node = Node(bin_dir)
    try:
        if (bin_dir / "pycni").exists() and not (bin_dir / ".pycni").exists():
            node.start_engine()
        yield node
    finally:
        node.close()


def addresses_in(result: Json) -> list[str]:
    """Return the addresses of a result of any version, without their prefixes."""
    entries = result.get("ips") or [result[key] for key in ("ip4", "ip6") if key in result]
    return [(entry.get("address") or entry["ip"]).partition("/")[0] for entry in entries]


def network(
    version: str, subnets: Sequence[str], *, name: str = "net1", **keys: Any
) -> dict[str, Any]:
    """Return a list with one bridge, a gateway, masquerading and default routes."""
    versions = {6 if ":" in subnet else 4 for subnet in subnets}
    routes = [{"dst": "0.0.0.0/0" if version == 4 else "::/0"} for version in sorted(versions)]
    bridge: Json = {
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
            "routes": routes,
        },
        **keys,
    }
    return {"cniVersion": version, "name": name, "plugins": [bridge]}


def single(config: Json) -> Json:
    """Return what a runtime gives the only plugin of a list."""
    return {"cniVersion": config["cniVersion"], "name": config["name"], **config["plugins"][0]}


def pid_path(pid: int) -> str:
    """Return the namespace of a process as docker's users name it."""
    return os.path.join("/proc", str(pid), "ns", "net")
