"""Machine: a pretend host with containers, driven in this process and judged by `ip`, `nft`."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from cni_common.kernel.netns import CLONE_NEWNET, OWN, NetNS
from cni_common.node import spans
from cni_common.node.host import Host
from cni_common.serve.protocol import Reply, execute, respond
from cni_common.serve.worker import Settings
from plugins import load
from tests import snapshot
from tests.engines import BUILD, BUNDLE_STATUS, Engine, launcher_dir
from tests.resident import Resident, start_in
from tests.waits import longer_if_busy, wait_until

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".tools"
CNI_BIN = TOOLS / "cni"  # our executables, as they are during development
DIST = ROOT / "dist" / "bin"  # and as they are installed
REFERENCE_BIN = TOOLS / "reference"  # the Go plugins
CNITOOL = TOOLS / "bin" / "cnitool"

Json = dict[str, Any]
TRACES = (spans.FILE, spans.OLDER)

_NETNS_FD_MIN = 200
_IP, _NFT = ("ip", "-j", "-d"), ("nft", "-j")
_END_SECONDS = 60
_SETTLED_SECONDS = 5.0


class TestHost(Host):
    """A Host whose own namespace is the pretend one."""

    __test__ = False
    home: str

    @cached_property
    def netns(self) -> NetNS:
        """The pretend host's namespace."""
        return self.open_netns(self.home)


class Machine:
    """A host namespace, container namespaces, a state directory and an IPAM directory.

    Namespaces are held by descriptors alone: their paths are /proc/<this process>/fd/<number>.
    """

    def __init__(self, tmp: Path, name: str, *, by_engine: bool = False) -> None:
        """`by_engine`: `invoke` has an engine serve the request, through a launcher."""
        self.name = name  # unique among the tests; part of network names
        self.state_dir = str(tmp / "state")
        self.data_dir = str(tmp / "networks")
        self.log: list[str] = []
        self.variables: dict[str, str] = {}  # more of a plugin's environment
        self.workers = 4  # of an engine: of more requests at once, some would wait too long
        self.engine: Engine | None = None
        self._by_engine = by_engine
        self._starting = Lock()
        self._tmp = tmp
        self._fds: list[int] = []
        self.host = self.container()
        # In no container: a process there would make it, and its addresses, alive to other tests.
        self._ip = Resident(self.host, *_IP, "-batch", "-")
        self._nft = Resident(self.host, *_NFT, "-i")
        assert self._ip.ask("link set lo up\nlink"), "lo does not come up"

    # --- namespaces ---

    def container(self) -> str:
        """Return the path of a fresh network namespace."""
        low = _new_netns()
        # The next descriptor gets another number: it would stand at this one's path.
        fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _NETNS_FD_MIN)
        os.close(low)
        self._fds.append(fd)
        return f"/proc/{os.getpid()}/fd/{fd}"

    def move_to(self, netns: str) -> None:
        """Be a host in another namespace from now on."""
        self._ip.close()
        self.host = netns
        self._ip = Resident(netns, *_IP, "-batch", "-")

    def forget(self, netns: str) -> None:
        """Close a container's namespace; nothing else holds it, so the kernel removes it."""
        fd = int(netns.rpartition("/")[2])
        self._fds.remove(fd)
        os.close(fd)

    def end(self, netns: str) -> None:
        """Forget a container's namespace, and wait until the kernel has taken its pairs away."""
        pairs = [one for one in self.ip(netns, "link") if "link_netnsid" in one]
        expected = len(self.ports()) - len(pairs)
        self.forget(netns)
        deadline = time.monotonic() + _END_SECONDS
        while len(self.ports()) != expected:
            assert time.monotonic() < deadline, "the kernel keeps the pairs of a container"
            time.sleep(0.01)

    def close(self) -> None:
        """End the engine, and let go of every namespace."""
        for resident in (self._ip, self._nft):
            resident.close()
        try:
            if self.engine:
                self.engine.end()
        finally:
            for fd in self._fds:
                os.close(fd)
            self._fds.clear()

    def command(self, netns: str, *words: str, stdin: str = "") -> str:
        """Return what a command prints inside a namespace; it must succeed."""
        done = self.try_command(netns, *words, stdin=stdin)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout

    def do(self, netns: str, *lines: str) -> None:
        """Run commands, split at spaces, inside a namespace; each must succeed."""
        if all(re.match(r"ip [a-z]", line) and " del" not in line for line in lines):
            # By one process, which remembers names: none of them may become another's meanwhile.
            self.command(netns, "ip", "-batch", "-", stdin="\n".join(x[3:] for x in (*lines, "")))
            return
        for line in lines:
            self.command(netns, *line.split())

    def try_command(
        self,
        netns: str,
        *words: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside a namespace."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environ = None if env is None else dict(env)
        with start_in(netns, *words, env=environ, text=True, **pipes) as process:
            try:
                stdout, stderr = process.communicate(stdin, seconds)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    @contextmanager
    def process_in(self, netns: str) -> Iterator[None]:
        """Let a process live in a namespace, as a container's does."""
        process = start_in(netns, "sleep", "infinity")
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def outside(self) -> str:
        """Return a namespace behind the host that has a route to the host alone.

        It is 192.0.2.2 and 2001:db8::2, the host's interface "uplink" .1 and ::1.
        """
        outside = self.container()
        pair = f"uplink type veth peer name uplink netns {outside}"
        self.command(self.host, "ip", "link", "add", *pair.split())
        for netns, number in ((self.host, 1), (outside, 2)):
            self.without_detection(netns, "uplink")
            self.do(
                netns,
                "ip link set uplink up",
                f"ip addr add 192.0.2.{number}/24 dev uplink",
                f"ip addr add 2001:db8::{number}/64 dev uplink",
            )
        for netns in (self.host, outside):
            self.await_use(netns, "uplink")
        return outside

    def without_detection(self, netns: str, name: str) -> None:
        """Have no IPv6 address of an interface be looked for elsewhere before it is used.

        That goes for its link-local one, by which a host asks for neighbours when it forwards: it
        would be mute for up to two seconds after the interface came up.
        """
        path = f"/proc/sys/net/ipv6/conf/{name}/accept_dad"
        self.command(netns, "sh", "-c", f"echo 0 >{path}")

    def await_use(self, netns: str, name: str) -> None:
        """Wait until the kernel uses an IPv6 address of an interface, and its link-local one.

        It begins to in a work item, on a busy machine a second or more after the address was added,
        and what comes before is lost: packets, solicitations, and answers to its own.
        """
        words = ("ip", "-6", "route", "show", "table", "local", "type", "local", "dev", name)
        wait_until(
            lambda: len(self.command(netns, *words).splitlines()) == 2,
            f"the kernel does not use the addresses of {name}",
        )

    def ping(self, netns: str, address: str, *options: str) -> bool:
        """Tell whether an address answers one echo request within a second, or what that is."""
        words = ("ping", "-c1", f"-W{longer_if_busy(1):.2f}", *options, address)
        return self.try_command(netns, *words).returncode == 0

    # --- plugins ---

    def network(self, **keys: Any) -> Json:
        """Return a bridge configuration with host-local; `keys` are added or replace."""
        config: Json = {
            "cniVersion": "1.1.0",
            "name": self.name,
            "type": "bridge",
            "bridge": "br0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": self.data_dir,
                "ranges": [[{"subnet": "10.9.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        return {key: value for key, value in {**config, **keys}.items() if value is not None}

    def environ(self, command: str, netns: str = "", **attachment: str) -> dict[str, str]:
        """Return a plugin's environment: containerid, ifname, args and path by keyword."""
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": attachment.get("containerid", "c1"),
            "CNI_NETNS": netns,
            "CNI_IFNAME": attachment.get("ifname", "eth0"),
            "CNI_ARGS": attachment.get("args", ""),
            "CNI_PATH": attachment.get("path", str(CNI_BIN)),
            **self.variables,
        }

    def make_host(self, kind: type[TestHost] = TestHost) -> TestHost:
        """Return a Host that lives on this machine."""
        host = kind(
            load,
            str(CNI_BIN / "pycni"),
            self.log.append,
            execute=execute,
            state_dir=self.state_dir,
        )
        host.home = self.host
        return host

    def invoke(
        self,
        plugin: str,
        command: str,
        config: Mapping[str, Any],
        netns: str = "",
        *,
        host: TestHost | None = None,
        **attachment: str,
    ) -> Reply:
        """Run one command of a plugin, by the engine if there is one and no `host` is given.

        Otherwise in this process.
        """
        environ = self.environ(command, netns, **attachment)
        if self._by_engine and host is None:
            return self._hand_over(plugin, environ, json.dumps(config))
        with host or self.make_host() as given:
            return respond(plugin, environ, json.dumps(config).encode(), given)

    def start_engine(self, listener: socket.socket | None = None, **settings: Any) -> Engine:
        """Start an engine on this machine's host; workers, add_seconds, … by keyword.

        It serves on `listener`, as if systemd had made that, or on a socket of its own.
        """
        number = len(list(self._tmp.glob("engine-*.log")))
        keys = {"build": BUILD, "state_dir": self.state_dir, "workers": self.workers}
        chosen = Settings(**{**keys, **settings})
        self.engine = Engine(self.host, chosen, self._tmp / f"engine-{number}.log", listener)
        return self.engine

    def _hand_over(self, plugin: str, environ: Mapping[str, str], stdin: str) -> Reply:
        with self._starting:
            if self.engine is None:
                self.start_engine()
        ours = str(launcher_dir())
        environ = {**environ, "CNI_PATH": environ["CNI_PATH"].replace(str(CNI_BIN), ours)}
        done = self.try_command(self.host, f"{ours}/{plugin}", stdin=stdin, env=environ)
        assert done.returncode != BUNDLE_STATUS, "no engine has served the request"
        self.log += done.stderr.splitlines()
        return Reply(done.stdout.encode(), done.returncode)

    def ok(
        self,
        plugin: str,
        command: str,
        config: Mapping[str, Any],
        netns: str = "",
        *,
        host: TestHost | None = None,
        **attachment: str,
    ) -> Json:
        """Run a command that must succeed and return its result, {} where it has none."""
        reply = self.invoke(plugin, command, config, netns, host=host, **attachment)
        assert reply.exit_code == 0, reply.stdout.decode()
        return json.loads(reply.stdout) if reply.stdout else {}

    def refused(
        self,
        plugin: str,
        command: str,
        config: Mapping[str, Any],
        netns: str = "",
        *,
        host: TestHost | None = None,
        **attachment: str,
    ) -> Json:
        """Run a command that must fail, naming the network, and return the rest of its error."""
        reply = self.invoke(plugin, command, config, netns, host=host, **attachment)
        assert reply.exit_code == 1, reply.stdout.decode()
        return _without_network(error_of(reply.stdout), str(config.get("name")))

    def execute(
        self,
        program: Path,
        command: str,
        config: Mapping[str, Any],
        netns: str = "",
        **attachment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run an executable plugin, ours or the reference's, on this machine's host."""
        environ = self.environ(command, netns, **attachment)
        environ["CNI_PATH"] = attachment.get("path", str(program.parent))
        return self.try_command(self.host, str(program), stdin=json.dumps(config), env=environ)

    def reference(
        self, plugin: str, command: str, config: Json, netns: str = "", **attachment: str
    ) -> Json:
        """Run a command of a Go plugin, which must succeed, and return its result."""
        done = self.execute(REFERENCE_BIN / plugin, command, config, netns, **attachment)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout else {}

    # --- the judges ---

    def ip(self, netns: str, *words: str) -> list[Json]:
        """Return what `ip -j` says inside a namespace."""
        question, text = " ".join(words), None
        # A resident `ip` remembers the names of interfaces: none may be in a question.
        if netns == self.host and question in snapshot.LISTINGS:
            text = self._ip.ask(question)
        text = text or self.command(netns, *_IP, *words)
        return [entry for entry in json.loads(text or "[]") if entry]

    def link(self, netns: str, name: str) -> Json | None:
        """Return one interface as `ip -j -d link` sees it, None when there is none."""
        links = [link for link in self.ip(netns, "link") if link["ifname"] == name]
        return links[0] if links else None

    def addresses(self, netns: str, name: str) -> list[str]:
        """Return the addresses of an interface with their prefixes, link-local ones left out."""
        found = []
        for link in self.ip(netns, "addr"):
            if link["ifname"] == name:
                found += [
                    f"{info['local']}/{info['prefixlen']}"
                    for info in link["addr_info"]
                    if info["scope"] != "link"
                ]
        return found

    def nft(self) -> list[Json]:
        """Return the host's nftables ruleset, handles left out."""
        question = "list ruleset"
        text = self._nft.ask(question) or self.command(self.host, *_NFT, *question.split())
        listing = json.loads(text)["nftables"]
        return [snapshot.steady(entry) for entry in listing if "metainfo" not in entry]

    def masqueraded(self) -> dict[str, str]:
        """Return the address and comment of each element of our masquerade maps."""
        found = {}
        for entry in self.nft():
            if entry.get("map", {}).get("name", "").startswith("masquerade"):
                for key, _verdict in entry["map"].get("elem", ()):
                    element = key["elem"]
                    found[element["val"]] = element["comment"]
        return found

    def leases(self) -> list[str]:
        """Return the addresses that host-local has given out on this machine's network."""
        directory = Path(self.data_dir, self.name)
        names = os.listdir(directory) if directory.exists() else []
        return sorted(name for name in names if name[0] in "0123456789abcdef")

    def ports(self) -> list[str]:
        """Return the host's ends of veth pairs, bridges and the uplink left out."""
        return [
            link["ifname"]
            for link in self.ip(self.host, "link")
            if link.get("linkinfo", {}).get("info_kind") == "veth" and link["ifname"] != "uplink"
        ]

    def snapshot(self, *containers: str) -> Json:
        """Return everything that a plugin can change, comparable."""
        return {
            "nft": sorted(json.dumps(entry, sort_keys=True) for entry in self.nft()),
            "files": files_below(self.data_dir) | files_below(self.state_dir),
            **{netns: self._namespace(netns) for netns in (self.host, *containers)},
        }

    def _namespace(self, netns: str) -> Json:
        """Return what a namespace has, once the kernel has done what it does by itself."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        lines = self._listings(netns)
        while any(snapshot.pending(lines)) and time.monotonic() < deadline:
            time.sleep(0.01)
            lines = self._listings(netns)
        return snapshot.of_listings(lines)

    def _listings(self, netns: str) -> list[str]:
        if netns == self.host:
            answers = [self._ip.ask(question) for question in snapshot.LISTINGS]
            if None not in answers:
                return [answer or "" for answer in answers]
        batch = "\n".join([*snapshot.LISTINGS, ""])
        return self.command(netns, *_IP, "-batch", "-", stdin=batch).splitlines()


@contextmanager
def machine_at(tmp: Path, name: str, *, by_engine: bool = False) -> Iterator[Machine]:
    """Give a machine and clean it up."""
    machine = Machine(tmp, name, by_engine=by_engine)
    try:
        yield machine
    finally:
        machine.close()


def _without_network(error: Json, network: str) -> Json:
    """Return an error without the network's name at the end of its details, if it is there."""
    assert network in error["msg"] + error.get("details", ""), error
    details = error.get("details", "").removesuffix(f"network '{network}'").removesuffix("; ")
    return {key: text for key, text in {**error, "details": details}.items() if text != ""}


def error_of(stdout: bytes | str) -> Json:
    """Return the CNI error object that `stdout` consists of."""
    error: Json = json.loads(stdout)
    assert set(error) <= {"cniVersion", "code", "msg", "details"}, error
    assert isinstance(error["cniVersion"], str)
    assert type(error["code"]) is int
    assert error["msg"]
    assert "\n" not in error["msg"]
    return error


def files_below(directory: str) -> dict[str, str]:
    """Return the contents of all files below a directory, by path.

    Without host-local's indexes: caches, which stay as long as the lease directories do. Without
    the traces that calls leave.
    """
    root = Path(directory)
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")) if root.exists() else ():
        if path.is_file() and path.parent.name != "indexes" and path.name not in TRACES:
            found[str(path)] = path.read_bytes().decode("utf-8", "replace")
    return found


def addresses_of(result: Mapping[str, Any]) -> list[str]:
    """Return the addresses of a result, without their prefixes."""
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


def vlans_of(listing: str, port: str) -> list[tuple[int, frozenset[str]]]:
    """Return a port's VLANs and flags from what `bridge -j vlan show` says, ranges written out."""
    found = []
    for entry in next((e["vlans"] for e in json.loads(listing) if e["ifname"] == port), []):
        for vid in range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1):
            found.append((vid, frozenset(entry.get("flags", ()))))
    return found


def unique(words: Sequence[str]) -> bool:
    """Tell whether no word occurs twice."""
    return len(set(words)) == len(words)


def _new_netns() -> int:
    """Return a descriptor of a new namespace, made by a thread that ends with this call."""
    fds = []

    def make() -> None:
        if ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0:
            fds.append(os.open(OWN, os.O_RDONLY | os.O_CLOEXEC))

    thread = Thread(target=make)
    thread.start()
    thread.join()
    return fds[0]
