"""An operation that needs a capability is refused without it, and needs no other one."""

from __future__ import annotations

import errno
import sys
from typing import NamedTuple

import pytest

from tests.dataplane.wiring import IFNAME, command

# Prints the errno of one attempt, 0 when it succeeds. -I and -S: no more than Python itself.
SCRIPT = """
import fcntl, socket, struct
from socket import *
try:
    {attempt}
    print(0)
except OSError as error:
    print(error.errno)
"""
ALL, NONE = "+all", "-all"


class Attempt(NamedTuple):
    """Something that the kernel allows with a capability, and how it is refused."""

    capability: str
    code: str
    error: int


ATTEMPTS = {
    "port 80": Attempt("net_bind_service", "socket().bind(('', 80))", errno.EACCES),
    "port 80, IPv6": Attempt("net_bind_service", "socket(AF_INET6).bind(('', 80))", errno.EACCES),
    "port 53, UDP": Attempt(
        "net_bind_service", "socket(AF_INET, SOCK_DGRAM).bind(('', 53))", errno.EACCES
    ),
    "raw socket": Attempt("net_raw", "socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)", errno.EPERM),
    "raw socket, IPv6": Attempt(
        "net_raw", "socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6)", errno.EPERM
    ),
    "packet socket": Attempt("net_raw", "socket(AF_PACKET, SOCK_RAW)", errno.EPERM),
    "interface": Attempt(  # SIOCSIFTXQLEN, linux/sockios.h
        "net_admin",
        f"fcntl.ioctl(socket(), 0x8943, struct.pack('16si20x', b'{IFNAME}', 1000))",
        errno.EPERM,
    ),
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_capability(namespaces: list[str], attempt: Attempt) -> None:
    """Root with this capability alone succeeds; with all but this one it is refused."""
    container, name = namespaces[0], attempt.capability

    assert error_with(container, f"{NONE},+{name}", attempt.code) == 0
    assert error_with(container, f"{ALL},-{name}", attempt.code) == attempt.error


def test_unprivileged_ports(namespaces: list[str]) -> None:
    """Ports from 1024 on need none; a container may lower that for itself and for nobody else."""
    own, *others = namespaces
    name = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    low, high = "socket().bind(('', 80))", "socket().bind(('', 1024))"
    assert {error_with(netns, NONE, high) for netns in namespaces} == {0}
    command(own, "sh", "-c", f"echo 80 >{name}")
    try:
        assert error_with(own, NONE, low) == 0
        assert {error_with(netns, NONE, low) for netns in others} == {errno.EACCES}
    finally:
        command(own, "sh", "-c", f"echo 1024 >{name}")


def error_with(netns: str, capabilities: str, code: str) -> int:
    """Return the errno of an attempt by root with these capabilities, as setpriv has them."""
    script = SCRIPT.format(attempt=code)
    words = ["setpriv", "--bounding-set", capabilities, sys.executable, "-ISc", script]
    return int(command(netns, *words))
