"""Mode wireguard: all packets between pods of different nodes are encrypted."""

from __future__ import annotations

import socket
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2.netlink.rtnl import RTM_DELNEIGH, RTM_NEWNEIGH

from agent.cluster import Member
from agent.network.settings import WIREGUARD
from tests.agent.nodes import Lan, Node
from tests.agent.wire import Wire, kinds
from tests.waits import wait_until

DEVICE = "pycni-wg"


@pytest.mark.full_kernel
@pytest.mark.emulated_machine
def test_pods_by_tunnel(lan: Lan, tmp_path: Path) -> None:
    """Keys are made on the nodes; without a key no packet leaves; a node's tunnel goes with it."""
    a = lan.node("a", 1, mode=WIREGUARD)
    b = lan.node("b", 2, network=2, mode=WIREGUARD)

    first = [a.apply(b.member), b.apply(a.member)]
    before = a.routes()
    here, _ = a.pod(), b.pod()
    assert not lan.machine.ping(here, "10.244.2.10")
    keyed = [
        replace(one.member, public_key=x.public_key) for one, x in zip((a, b), first, strict=True)
    ]
    second = [a.apply(keyed[1], own=keyed[0]), b.apply(keyed[0], own=keyed[1])]

    assert [one.problems for one in first] == [
        ("no WireGuard tunnel to node 'b': it has not announced its key yet",),
        ("no WireGuard tunnel to node 'a': it has not announced its key yet",),
    ]
    assert before == {"10.244.2.0/24": "unreachable", "fd00:10:244:2::/64": "unreachable lo"}
    assert [(one.mtu, one.problems) for one in second] == [(1440, ())] * 2
    assert [one.public_key for one in second] == [one.public_key for one in first]
    wire = Wire(lan.router, "port1-1")
    for address, size in (("10.244.2.10", 1412), ("fd00:10:244:2::10", 1392)):
        assert lan.machine.ping(here, address, "-Mdo", f"-s{size}")
        assert lan.machine.ping(a.netns, address)
    assert set(kinds(wire.packets())) == {(socket.IPPROTO_UDP, 51820)}

    _stays(a, *keyed)
    _is_private(tmp_path / "a" / "wireguard.key", first[0].public_key)
    _comes_back(lan, a, here, *keyed)
    assert a.apply(own=keyed[0]).problems == ()
    assert a.routes() == {}
    assert a.remove() == ()
    assert DEVICE not in a.command("ip", "-br", "link")
    assert not (tmp_path / "a" / "wireguard.key").exists()


def _stays(a: Node, own: Member, other: Member) -> None:
    """Another agent changes nothing, and keeps the key."""
    a.restart()
    seen = a.changes()
    applied = a.apply(other, own=own)
    assert (applied.problems, applied.public_key) == ((), own.public_key)
    # The kernel tells by itself how it goes on with neighbours on the uplink.
    assert {*seen()} <= {RTM_NEWNEIGH, RTM_DELNEIGH}


def _is_private(file: Path, public_key: str) -> None:
    """The file is for root alone, and holds another key than the announced one."""
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert len(b64decode(file.read_text())) == 32
    assert file.read_text().strip() != public_key


def _comes_back(lan: Lan, a: Node, pod: str, own: Member, other: Member) -> None:
    """The device is deleted; an event wakes, and the tunnel is there again."""
    with a.listening() as reasons:
        a.do(f"ip link del {DEVICE}")
        wait_until(lambda: reasons, "no event of the deletion")
        assert a.apply(other, own=own).problems == ()
    assert lan.machine.ping(pod, "10.244.2.10")
