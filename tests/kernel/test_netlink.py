"""Whose answers netlink believes."""

from __future__ import annotations

import socket
import struct

import pytest

from cni_common.kernel.netns import NetNS
from tests.machine import Machine

pytestmark = pytest.mark.without_engine(reason="calls functions of this process")

RTM_NEWLINK, NLMSG_ERROR = 16, 2


def test_only_the_kernel_answers(machine: Machine) -> None:
    """What another socket sends to ours, as a container with CAP_NET_ADMIN can, is no answer."""
    netns = NetNS(machine.host)
    channel = netns.netlink.channel
    port = channel.sock.getsockname()[0]
    other = netns.run(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    attribute = struct.pack("=HH8s", 12, 3, b"forged")
    for number in range(1, 20):
        body = struct.pack("=BxHiII", 0, 0, 99, 0, 0) + attribute
        forged = struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, 0, number, port) + body
        done = struct.pack("=IHHIIi", 36, NLMSG_ERROR, 0, number, port, 0) + bytes(16)
        other.sendto(forged, (port, 0))
        other.sendto(done, (port, 0))

    link = netns.netlink.link("lo")

    other.close()
    netns.close()
    assert link is not None
    assert link.name == "lo"
