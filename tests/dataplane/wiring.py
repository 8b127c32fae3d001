"""Wires: from a container over a network that our plugins made, and a plain pair beside them."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cni_common.kernel.netns import NetNS
from tests.e2e.node import NODE4, NODE6, OUTSIDE4, OUTSIDE6, Node, addresses_in, network, node_with
from tests.machine import Machine
from tests.scope import ALL

IFNAME = "eth0"  # of every client, and of every server but the one outside
JUMBO_MTU = 9000
SECONDS = 15  # for what must come; what comes ends the wait
EDGES = ("one-shot", "engine") if ALL else ("one-shot",)  # who attaches: on the wire they are one
PLAIN = "plain"  # two namespaces with a veth pair between them, made by ip: the control

_OUTSIDE = {4: (OUTSIDE4, NODE4), 6: (OUTSIDE6, NODE6)}
_PLAIN = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

T = TypeVar("T")


@dataclass(frozen=True)
class Wire:
    """From a client to a server. Both are paths of network namespaces."""

    client: str
    server: str
    address: str  # the server's
    seen_as: str  # the client's, as the server sees it

    @property
    def version(self) -> int:
        """Of IP."""
        return 6 if ":" in self.address else 4

    def client_socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Return a socket of the client."""
        return self._socket(self.client, kind)

    def server_socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Return a socket of the server, not bound yet."""
        return self._socket(self.server, kind)

    def listener(self, backlog: int = 16) -> socket.socket:
        """Return a socket of the server that listens on a port of the kernel's choice."""
        listener = self.server_socket()
        listener.bind((self.address, 0))
        listener.listen(backlog)
        return listener

    @contextmanager
    def datagrams(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Give UDP sockets of client and server, the client's connected to the server's."""
        with (
            self.server_socket(socket.SOCK_DGRAM) as server,
            self.client_socket(socket.SOCK_DGRAM) as client,
        ):
            server.bind((self.address, 0))
            client.connect(server.getsockname())
            yield client, server

    @contextmanager
    def connection(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Give both ends of a TCP connection: the client's, the server's."""
        with self.listener() as listener, self.client_socket() as client:
            client.connect(listener.getsockname())
            server = listener.accept()[0]
            with server:
                yield client, bounded(server)

    def _socket(self, netns: str, kind: socket.SocketKind) -> socket.socket:
        return bounded(inside(netns, lambda: socket.socket(_FAMILIES[self.version], kind)))


class Wiring:
    """A node with three networks of containers and a host outside, attached by our executables."""

    def __init__(self, node: Node) -> None:
        self.node = node
        node.outside()
        subnets = ["10.81.0.0/24", "fd00:81::/64"]
        jumbo = ["10.82.0.0/24", "fd00:82::/64"]
        node.configure(
            {"cniVersion": "1.1.0", "name": "lo", "plugins": [{"type": "loopback"}]},
            network("1.1.0", subnets),
            network("1.1.0", jumbo, name="jumbo", bridge="br1", mtu=JUMBO_MTU),
        )
        self._addresses: dict[str, list[str]] = {}
        for name in ("c1", "c2", "jumbo1", "jumbo2"):
            netns = node.container(name)
            node.ok("add", "lo", netns, CNI_IFNAME="lo")
            result = node.ok("add", "jumbo" if "jumbo" in name else "net1", netns)
            self._addresses[name] = addresses_in(result)

    def netns(self, name: str) -> str:
        """Return the path of a container: c1, c2, jumbo1, jumbo2, or outside."""
        return self.node.netns(f"/run/netns/{name}")

    def wire(self, peer: str, version: int, client: str = "c1") -> Wire:
        """Return the wire from a container to a neighbour, or to "outside"."""
        own, netns = self._address(client, version), self.netns(client)
        if peer == "outside":
            address, node = _OUTSIDE[version]
            return Wire(netns, self.netns(peer), address, seen_as=node)
        return Wire(netns, self.netns(peer), self._address(peer, version), seen_as=own)

    def _address(self, name: str, version: int) -> str:
        return self._addresses[name][0 if version == 4 else 1]


class Wirings:
    """Each wiring, made when it is first asked for, and ended with all others."""

    def __init__(self, bin_dirs: dict[str, Path], directory: Path) -> None:
        self._bin_dirs = bin_dirs
        self._directory = directory
        self._stack = ExitStack()
        self._made: dict[str, Wiring] = {}
        self._pair: list[str] = []

    def close(self) -> None:
        """End all that was made."""
        self._stack.close()

    def of(self, edge: str) -> Wiring:
        """Return the wiring that was made one-shot, or by the engine."""
        if edge not in self._made:
            node = self._stack.enter_context(node_with(self._bin_dirs[edge]))
            self._made[edge] = Wiring(node)
        return self._made[edge]

    def namespaces(self, kind: str) -> list[str]:
        """Return two containers of one network, then their node; of the plain pair its ends."""
        if kind != PLAIN:
            wiring = self.of(kind)
            return [wiring.netns("c1"), wiring.netns("c2"), wiring.node.netns()]
        if not self._pair:
            machine = Machine(self._directory, PLAIN)
            self._stack.callback(machine.close)
            self._pair = _plain_pair(machine)
        return self._pair

    def wire(self, name: str) -> Wire:
        """Return a wire by its name in WIRES."""
        kind, *peer, family = name.split()
        version = int(family.removeprefix("ipv"))
        if peer:
            return self.of(kind).wire(peer[0], version)
        own, other = _PLAIN[version]
        client, server = self.namespaces(kind)
        return Wire(client, server, address=other, seen_as=own)


WIRES = (
    *(f"{PLAIN} ipv{version}" for version in (4, 6)),
    *(f"{edge} {peer} ipv{n}" for edge in EDGES for peer in ("c2", "outside") for n in (4, 6)),
)


def _plain_pair(machine: Machine) -> list[str]:
    first, second = machine.container(), machine.container()
    pair = f"ip link add {IFNAME} type veth peer name {IFNAME} netns {second}"
    machine.do(first, pair)
    for place, netns in enumerate((first, second)):
        machine.without_detection(netns, IFNAME)
        machine.do(
            netns,
            "ip link set lo up",
            f"ip address add {_PLAIN[4][place]}/24 dev {IFNAME}",
            f"ip address add {_PLAIN[6][place]}/64 dev {IFNAME}",
            f"ip link set {IFNAME} up",
        )
    for netns in (first, second):
        machine.await_use(netns, IFNAME)
    return [first, second]


# --- what is done inside of a namespace ---


def inside(netns: str, function: Callable[[], T]) -> T:
    """Return what `function` returns, called in a thread inside of a namespace."""
    handle = NetNS(netns)
    try:
        return handle.run(function)
    finally:
        handle.close()


def run_in(netns: str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command inside of a namespace."""
    return subprocess.run(
        ["nsenter", f"--net={netns}", "--", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def command(netns: str, *words: str, stdin: str = "") -> str:
    """Return what a command prints inside of a namespace; it must succeed."""
    done = run_in(netns, *words, stdin=stdin)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}{done.stdout}"
    return done.stdout


def proc_net(netns: str, name: str) -> str:
    """Return a file of a namespace's /proc/net."""
    return inside(netns, Path("/proc/thread-self/net", name).read_text)


@contextmanager
def firewall(netns: str, rule: str) -> Iterator[None]:
    """Have a rule of nft for what comes into a namespace."""
    chain = "type filter hook input priority 0; policy accept;"
    table = f"table inet dataplane {{ chain input {{ {chain} {rule}; }}; }}\n"
    command(netns, "nft", "-f", "-", stdin=table)
    try:
        yield
    finally:
        command(netns, "nft", "delete", "table", "inet", "dataplane")


def bounded(sock: socket.socket) -> socket.socket:
    """Let no call on a socket wait longer than SECONDS, those that Python does not make either."""
    sock.settimeout(None)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", SECONDS, 0))
    return sock


def error_of(function: Callable[[], object]) -> int:
    """Return the number of the error with which a call fails, 0 when it succeeds."""
    try:
        function()
    except OSError as error:
        return error.errno or 0
    return 0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, which it must."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.005)
