"""Runs the transcripts of a page, each command in a world of its own, and compares what they say.

tests/in-sandbox python -m tests.pages docs/operators/no-address-left.md
tests/in-sandbox python -m tests.pages --write docs/operators/no-address-left.md

The page begins its world by a comment, `<!-- scene: NAME -->`, with one of SCENES; further comments
`<!-- then: NAME -->` have one of EVENTS happen. In blocks of `console` each line after "# " is run
by a shell; what follows must be what it prints, but for what no two runs have in common: see MASKS.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from socket import gethostname
from typing import Any

from tests.machine import CNI_BIN, REFERENCE_BIN, ROOT, TOOLS, Json
from tests.waits import wait_until

CONF_DIR, STATE, NETWORKS = (
    Path("/etc/cni/net.d"),
    Path("/run/pycni"),
    Path("/var/lib/cni/networks"),
)
OPT = "/opt/cni"
NODE, BIN = "worker-1", f"{OPT}/bin"  # what pages call this machine, and our directory
BLOCK = re.compile(
    r"^<!-- (?P<kind>scene|then): (?P<name>.+?) -->$|^```console\n(?P<text>.*?)^```$", re.M | re.S
)
MASKS = (
    (re.compile(r"\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b"), "MAC"),
    (re.compile(r"\bveth[0-9a-f]{8}\b"), "VETH"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"\d{8}T\d{6}Z"), "TIME"),
    (re.compile(r"fe80::[0-9a-f:]+"), "LINKLOCAL"),
    (re.compile(r"[\d.]+ k?B in \d+ packets"), "BYTES"),
    (re.compile(r"[\d.]+ k?B\b"), "BYTES"),
    (re.compile(r"rtt [\d.]+ ms"), "RTT"),
    (re.compile(r"(?<=:)[3-6]\d{4}\b"), "PORT"),  # one that the kernel has chosen
    (re.compile(r"\S+ \(PID \d+\)"), "PROCESS"),
    (re.compile(r"\b\d+ of at most \d+ on the node"), "LIMIT"),
    (re.compile(r"\b\d+ tcp\b|(?<=192\.0\.2\.2: )\d+"), "CONNECTIONS"),
    (re.compile(r"\b(cubic|bbr|reno) cwnd \d+"), "CWND"),
    (re.compile(r"\b(reachable|delay|stale|probe)\b"), "NEIGHBOUR"),
    (re.compile(r"\b\d+ (files|values?)\b"), r"N \1"),
    (re.compile(r"^counters that are not zero\n(  .*\n)*", re.M), ""),
    # What doctor says of the machine itself.
    (
        re.compile(
            r"(^  (ok|warning|error) +(runtimes|containerd|CRI-O|podman): .*\n(   .*\n)*)+", re.M
        ),
        "R",
    ),
    (re.compile(r"^  ok +(net.bridge|net.ipv4.conf).*\n(   .*\n)*", re.M), ""),
    (re.compile(r"udev:\s(there\sis\sno\spolicy|MACAddressPolicy=\w+)"), "udev:"),
    (re.compile(r"module\s+'\w+'\s+is\s[^;]*"), "MODULE"),
    (re.compile(r"\d+\s+MiB\s+free(,\s+\d+\s+inodes)?"), "ROOM"),
    (re.compile(r"^\d+ ok", re.M), "N ok"),
    # How long the steps of a call have taken, and which of them are so near that they are one.
    (re.compile(r"^ +(ADD|DEL) +(\S+) at TIME, [\d.]+ ms", re.M), r"\1 \2"),
    (re.compile(r"(^ +[a-z]+ +[#.]{40} +[\d.]+ ms\n)+", re.M), "STEPS"),
    (re.compile(r"\s+"), " "),
)


class World:
    """A node, and a runtime that calls the plugins as the specification says."""

    def __init__(self, tmp: Path) -> None:
        self._tmp = tmp
        self._results: dict[str, Json] = {}
        self._servers: list[subprocess.Popen[bytes]] = []
        shim = tmp / "pycni"
        # In a sandbox no PID namespace is the first one.
        shim.write_text(f'#!/bin/sh\nexec {CNI_BIN}/pycni "$@" ${{1:+$(case $1 in reclaim|repair) '
                        "echo --any-netns;; esac)}\n")  # fmt: skip
        shim.chmod(0o755)
        self.environ = {
            **os.environ,
            "PATH": f"{tmp}:{TOOLS}/bin:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "CNI_PATH": str(CNI_BIN),
        }
        for name in ("COLUMNS", "TERM"):
            self.environ.pop(name, None)

    def sh(self, line: str) -> str:
        """Return what a command line prints; it must succeed."""
        done = self._shell(line)
        assert done.returncode == 0, f"{line}: {done.stdout}"
        return done.stdout

    def _shell(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._tmp,
            env=self.environ,
            timeout=60,
            check=False,
        )

    def answer(self, line: str) -> str:
        """Return what a page shows of a command line."""
        text = self._shell(line).stdout
        archive = "pycni-support-"
        text = text.replace(f"{archive}{gethostname()}-", f"{archive}{NODE}-")
        for one, other in ((str(CNI_BIN), BIN), (gethostname(), NODE), (str(self._tmp), "/root")):
            text = re.sub(rf"(?<![\w-]){re.escape(one)}(?![\w-])", other, text)
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())

    def node(self) -> None:
        """Give the node an uplink, with a host behind it, and a long memory of connections."""
        timeout = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close")
        timeout.write_text("600")  # seconds, in place of 10: commands take long on a busy machine
        self.sh(
            "ip netns add outside && ip link add eth0 type veth peer name eth0 netns outside"
            " && ip addr add 192.0.2.1/24 dev eth0 && ip link set eth0 up"
            " && ip -n outside addr add 192.0.2.2/24 dev eth0 && ip -n outside link set eth0 up"
            " && ip route add default via 192.0.2.2"
        )

    def network(self, **keys: Any) -> None:
        """Write the list of the node's network, mynet."""
        ipam: Json = {
            "type": "host-local",
            "ranges": [[{"subnet": keys.pop("subnet", "10.22.0.0/16")}]],
        }
        ipam |= {"routes": [{"dst": "0.0.0.0/0"}]}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, **keys}
        plugins = [
            {**bridge, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        text = json.dumps({"cniVersion": "1.0.0", "name": "mynet", "plugins": plugins}, indent=2)
        CONF_DIR.mkdir(parents=True, exist_ok=True)
        (CONF_DIR / "10-mynet.conflist").write_text(text)

    def file(self, name: str, *plugins: Json) -> None:
        """Write a list of plugins into the working directory."""
        network = name.partition("-")[2].partition(".")[0]
        config = {"cniVersion": "1.0.0", "name": network, "plugins": plugins}
        (self._tmp / name).write_text(json.dumps(config, indent=2))

    def add(self, pod: str, port: int = 0, command: str = "ADD", directory: str = "") -> str:
        """Attach the sandbox of a pod as a runtime does; return the error, "" for none."""
        containerid = sha256(pod.encode()).hexdigest()
        if command == "ADD" and not Path(f"/run/netns/{pod}").exists():
            self.sh(f"ip netns add {pod} && ip -n {pod} link set lo up")
        conflist = json.loads((CONF_DIR / "10-mynet.conflist").read_text())
        result = None if command == "ADD" else self._results.get(pod)
        plugins = conflist["plugins"]
        for plugin in plugins if command == "ADD" else reversed(plugins):
            config = {"cniVersion": conflist["cniVersion"], "name": conflist["name"], **plugin}
            if config["type"] == "portmap":
                mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
                config["runtimeConfig"] = {"portMappings": [mapping] if port else []}
            if result:
                config["prevResult"] = result
            done = subprocess.run(
                [f"{directory or CNI_BIN}/{config['type']}"],
                input=json.dumps(config),
                capture_output=True,
                text=True,
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "CNI_COMMAND": command,
                    "CNI_CONTAINERID": containerid,
                    "CNI_NETNS": f"/run/netns/{pod}" if Path(f"/run/netns/{pod}").exists() else "",
                    "CNI_IFNAME": "eth0",
                    "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}",
                    "CNI_PATH": directory or str(CNI_BIN),
                },
                check=False,
            )
            if done.returncode:
                return done.stdout
            if command == "ADD":
                result = self._results[pod] = json.loads(done.stdout)
        return ""

    def serve(self, pod: str, address: str = "0.0.0.0") -> None:
        """Have a program in a pod answer on port 80."""
        script = (
            "import socket\n"
            f"s = socket.create_server(({address!r}, 80))\n"
            "print(flush=True)\n"
            "while True: s.accept()[0].sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nhello\\n')"
        )
        words = ["ip", "netns", "exec", pod, sys.executable, "-c", script]
        server = subprocess.Popen(words, stdout=subprocess.PIPE)
        self._servers.append(server)
        assert server.stdout
        assert server.stdout.readline(), f"no program listens in {pod}"

    def stop(self) -> None:
        """End all programs in pods."""
        while self._servers:
            process = self._servers.pop()
            process.kill()
            process.communicate()

    def end(self, pod: str) -> None:
        """End a pod as a crash of the runtime does: its namespace goes, no DEL comes."""
        self.sh(f"ip netns delete {pod}")
        wait_until(lambda: "10.22" not in self.sh("ip neigh; true"), "the kernel keeps neighbours")


def pass_time(_world: World) -> None:
    """Have a minute and more pass for records, leases and what was noted."""
    seconds = 100
    files = [*STATE.rglob("*"), *NETWORKS.rglob("*")]
    for path in (one for one in files if one.is_file()):
        if path.parent.name == "attachments":
            facts: Json = {}
            for line in path.read_text().splitlines():
                facts |= json.loads(line)
            if facts.get("gone_since"):
                line = json.dumps({"gone_since": facts["gone_since"] - seconds})
                path.write_text(f"{path.read_text()}{line}\n")
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def shop(world: World) -> None:
    """Two pods: web has a host port and a server, db has not."""
    world.node()
    world.network()
    for pod, port in (("web", 8080), ("db", 0)):
        error = world.add(pod, port)
        assert not error, error
    world.serve("web")


def counted(world: World) -> None:
    """The same, a second later: `pycni metrics` counts all calls."""
    shop(world)
    last = 'plugin="portmap",code="0"} 2'
    wait_until(lambda: last in world.sh("pycni metrics"), "calls do not count", pause=0.2)


def small(world: World) -> None:
    """A network with room for five pods, all of them taken, three by pods that are gone."""
    world.node()
    world.network(subnet="10.22.0.0/29")
    for number in range(5):
        error = world.add(f"job-{number}")
        assert not error, error
    for number in range(3):
        world.end(f"job-{number}")
    pass_time(world)


def mixed(world: World) -> None:
    """Pods web, db and one of the Go plugins; db is gone, and no DEL came."""
    shop(world)
    error = world.add("old", directory=str(REFERENCE_BIN))
    assert not error, error
    world.end("db")
    pass_time(world)


def meddle(world: World) -> None:
    """Take away firewall, forwarding and the gateway's address."""
    world.sh(
        "nft flush ruleset; sysctl -qw net.ipv4.ip_forward=0; ip addr del 10.22.0.1/16 dev cni0"
    )


def reboot(world: World) -> None:
    """Restart the node: memory is gone, files stay."""
    world.stop()
    for pod in ("web", "db"):
        world.end(pod)
    world.sh("nft flush ruleset; ip link delete cni0; rm -rf /run/pycni")
    for path in NETWORKS.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 10**8,) * 2)


def listen_on_loopback(world: World) -> None:
    """Replace the program in pod web by one that only the pod itself reaches."""
    world.stop()
    world.serve("web", "127.0.0.1")


def by_go(world: World) -> None:
    """A pod that the Go plugins have attached."""
    world.node()
    world.network()
    error = world.add("web", 8080, directory=str(REFERENCE_BIN))
    assert not error, error


def beside_go(world: World) -> None:
    """A pod of this suite on the same network."""
    error = world.add("db")
    assert not error, error


def delete_of_go(world: World) -> None:
    """DEL of the Go plugins' pod by this suite."""
    error = world.add("web", 8080, "DEL")
    assert not error, error


def delete_by_go(world: World) -> None:
    """DEL of this suite's pod by the Go plugins."""
    error = world.add("db", 0, "DEL", str(REFERENCE_BIN))
    assert not error, error
    world.end("db")


def guarded(world: World) -> None:
    """The same, plugins where runtimes look, and a firewall that drops what is forwarded."""
    shop(world)
    world.sh(f"mkdir -p {OPT} && mount -t tmpfs tmpfs {OPT} && ln -s {CNI_BIN} {BIN}")
    world.sh("nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward"
             " priority 0; policy drop; }'")  # fmt: skip


def files(world: World) -> None:
    """Two files in the working directory, one of them with two mistakes."""
    world.node()
    ipam: Json = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]}
    ipam["routes"] = [{"dst": "0.0.0.0/0"}]
    bridge: Json = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True}
    world.file("10-web.conflist", {**bridge, "ipam": ipam})
    wrong = [[{"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}]]
    wrong_bridge = {"type": "bridge", "isGatway": True, "ipam": {**ipam, "ranges": wrong}}
    world.file("20-wrong.conflist", wrong_bridge)


def secret(world: World) -> None:
    """Write a password into the node's configuration, under a key that no plugin has."""
    path = CONF_DIR / "10-mynet.conflist"
    config = json.loads(path.read_text())
    config["plugins"][0]["etcd"] = {"user": "node", "password": "correct horse"}
    path.write_text(json.dumps(config, indent=2))


SCENES = {
    "shop": shop,
    "counted": counted,
    "mixed": mixed,
    "small": small,
    "go": by_go,
    "guarded": guarded,
    "files": files,
}


def published(world: World) -> None:
    """A pod with a host port on the node's network."""
    world.network()
    error = world.add("web", 8080)
    assert not error, error


EVENTS = {
    "a pod with a host port": published,
    "a minute passes": pass_time,
    "the node restarts": reboot,
    "others meddle": meddle,
    "a password in the configuration": secret,
    "the program listens on loopback alone": listen_on_loopback,
    "pods of both": beside_go,
    "the pod of the Go plugins goes": delete_of_go,
    "the Go plugins delete the other pod": delete_by_go,
}


def transcript(world: World, text: str) -> Iterator[str]:
    """Yield the lines of a block as they come out now."""
    lines = text.splitlines()
    commands: list[str] = []
    for line in lines:
        if line.startswith("# "):
            commands.append(line[2:])
        elif commands and commands[-1].endswith("\\"):
            commands[-1] += f"\n{line}"
    for command in commands:
        yield f"# {command}\n"
        yield world.answer(command)


def masked(text: str) -> str:
    """Return a text without what changes from run to run."""
    for pattern, word in MASKS:
        text = pattern.sub(word, text)
    return text.strip()


def played(page: str, world: World) -> str:
    """Return a page with its transcripts as they come out now."""

    def play(found: re.Match[str]) -> str:
        if found["kind"]:
            {**SCENES, **EVENTS}[found["name"]](world)
            return found[0]
        return f"```console\n{''.join(transcript(world, found['text']))}```"

    return BLOCK.sub(play, page)


def main(words: list[str]) -> int:
    """Play a page; with --write, write it anew."""
    write, path = "--write" in words, ROOT / words[-1]
    tmp = Path("/run/page")
    tmp.mkdir()
    page = path.read_text()
    world = World(tmp)
    try:
        now = played(page, world)
    finally:
        world.stop()
    if write:
        path.write_text(now)
        return 0
    different = [
        (old[0], new[0])
        for old, new in zip(BLOCK.finditer(page), BLOCK.finditer(now), strict=True)
        if masked(old[0]) != masked(new[0])
    ]
    for old, new in different:
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "page", "now", lineterm="")
        print("\n".join(lines))
        print(f"compared: {masked(old)}\n     now: {masked(new)}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
