"""The changes that pycni makes in the kernel of a node during a test, by events of the kernel.

Of each transaction of nftables the kernel tells who has made it (NFT_MSG_NEWGEN); `nft monitor` of
Debian 12 shows wrong elements of sets with ranges, and then hangs. Of routes, devices and
neighbours `ip monitor` tells.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.kubernetes.node import Node
from tests.resident import start_in, visiting
from tests.waits import wait_until

TABLE = "pycni-agent"
PROTOCOL = 112  # of the agent's routes
# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES = 12, 270, 1, 7
_NEW_GENERATION, _PROGRAM = 10 << 8 | 15, 3  # NFT_MSG_NEWGEN, NFTA_GEN_PROC_NAME
_HEADER, _NFGENMSG, _ATTRIBUTE = struct.Struct("=LHHLL"), 4, struct.Struct("=HH")
_BUFFER_BYTES = 1 << 24  # as much as can come before it is read
_MONITOR = ("ip", "-o", "monitor", "link", "address", "route", "rule", "neigh")
_OF_PYCNI = re.compile(rf"proto {PROTOCOL}\b| dev pycni|^(Deleted )?\d+: pycni")
# Neighbours of the kernel, which also takes those of multicast groups away after a time (NOARP);
# the agent's are PERMANENT.
_LEARNED = re.compile(r" (REACHABLE|STALE|DELAY|PROBE|FAILED|INCOMPLETE|lladdr [\da-f:]+ NOARP)$")
_MARK = "203.0.113.77"  # of a route of the test's own: what came before it has been heard, too


@contextmanager
def changes(node: Node, folder: Path) -> Iterator[list[str]]:
    """Give the changes of pycni during the block, which are there after it; a log is in `folder`.

    A transaction of nftables is the name of its program.
    """
    found: list[str] = []
    log = folder / f"{node.name}.log"
    with ExitStack() as stack:
        with visiting(node.netns):
            transactions = stack.enter_context(_transactions())
        output = stack.enter_context(log.open("wb"))
        monitor = start_in(node.netns, *_MONITOR, stdout=output, stderr=subprocess.STDOUT)
        stack.callback(monitor.wait)
        stack.callback(monitor.kill)
        _await_mark(node, log)
        begun = len(log.read_text())
        yield found
        _await_mark(node, log)
        node.command("nft", "add", "table", "inet", "heard")
        node.command("nft", "delete", "table", "inet", "heard")
        programs = [*_programs(transactions)]
        assert programs.count("nft") >= 2, programs
        lines = [one.strip() for one in log.read_text()[begun:].splitlines()]
        found += [one for one in programs if one.startswith("pycni")]
        found += [one for one in lines if _OF_PYCNI.search(one) and not _LEARNED.search(one)]


def _transactions() -> socket.socket:
    """Return a socket that hears of each in this thread's network namespace."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    sock.setsockopt(socket.SOL_SOCKET, 33, _BUFFER_BYTES)  # SO_RCVBUFFORCE
    sock.bind((0, 0))  # what has no address hears nothing
    sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES)
    sock.settimeout(0)
    return sock


def _programs(transactions: socket.socket) -> Iterator[str]:
    """Yield the program of each transaction so far. Raises OSError where some were lost."""
    while True:
        try:
            data = transactions.recv(1 << 20)
        except BlockingIOError:
            return
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == _NEW_GENERATION:
                yield _program(data[_HEADER.size + _NFGENMSG : length])
            data = data[(length + 3) & ~3 :]


def _program(attributes: bytes) -> str:
    while attributes:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _PROGRAM:
            return attributes[_ATTRIBUTE.size : length].rstrip(b"\0").decode()
        attributes = attributes[(length + 3) & ~3 :]
    return ""


def _await_mark(node: Node, log: Path) -> None:
    """Have the monitor hear something, and wait until it has."""
    before = log.read_text().count(_MARK)

    def heard() -> bool:
        node.command("ip", "route", "add", "blackhole", _MARK)
        node.command("ip", "route", "delete", "blackhole", _MARK)
        return log.read_text().count(_MARK) > before

    wait_until(heard, lambda: f"ip monitor hears nothing: {log.read_text()}")


def made_by_agent(node: Node) -> str:
    """Return rules with their handles, routes and devices that the agent has made on a node.

    The kernel gives a new handle or index to what is made anew.
    """
    rules = node.command("nft", "--handle", "--stateless", "list", "table", "inet", TABLE)
    families = ("-4", "-6")
    routes = [node.command("ip", one, "route", "show", "proto", str(PROTOCOL)) for one in families]
    links = [f"{one['ifindex']} {one['ifname']}" for one in node.ip("link")]
    return "\n".join([rules, *routes, *(one for one in links if "pycni" in one)])
