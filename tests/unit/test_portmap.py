"""portmap's configuration: what it means, and what is refused before anything is done."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cni_common.spec import schema, wire
from cni_common.spec.errors import CNIError
from cni_common.spec.request import Request
from plugins.portmap import layout
from plugins.portmap.conf import SCHEMA, Conf
from tests.machine import Json

PREVIOUS: Json = {
    "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/c1"}],
    "ips": [
        {"interface": 0, "address": "10.1.0.1/24"},
        {"interface": 1, "address": "10.9.0.2/24"},
        {"interface": 1, "address": "10.9.0.3/24"},
        {"address": "fd00:9::2/64"},
    ],
}
PORT: Json = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


def request(*ports: Json, **keys: Any) -> Request:
    """Return an ADD with these ports, its configuration folded and checked."""
    config = {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "portmap",
        "runtimeConfig": {"portMappings": list(ports)},
        "prevResult": PREVIOUS,
        **keys,
    }
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/n", "CNI_PATH": "/p"}
    parsed = Request.parse({**environ, "CNI_IFNAME": "eth0"}, json.dumps(config).encode())
    folded = wire.fold(parsed.config, SCHEMA)
    schema.validate(folded, SCHEMA)
    return replace(parsed, config=folded)


def test_targets() -> None:
    """A port leads to the first address of each family that is the interface's, or nobody's."""
    conf = Conf.of(request(PORT))

    assert [str(cidr) for _, cidr in conf.targets()] == ["10.9.0.2/24", "fd00:9::2/64"]
    assert (conf.backend, conf.snat, conf.mark_bit) == ("nftables", True, 13)


@pytest.mark.parametrize(
    ("host_ip", "versions"),
    [("", [4, 6]), ("0.0.0.0", [4]), ("::", [6]), ("192.0.2.1", [4]), ("2001:db8::1", [6])],
)
def test_families(host_ip: str, versions: list[int]) -> None:
    """hostIP narrows a port to its family."""
    conf = Conf.of(request({**PORT, "hostIP": host_ip}))

    assert [cidr.version for _, cidr in conf.targets()] == versions


def test_the_same_port_twice() -> None:
    """A mapping that is repeated counts once."""
    assert len(Conf.of(request(PORT, PORT, {**PORT, "protocol": "udp"})).ports) == 2


@pytest.mark.parametrize(
    ("keys", "backend"),
    [
        ({}, "nftables"),
        ({"backend": "iptables"}, "iptables"),
        ({"externalSetMarkChain": "KUBE-MARK-MASQ"}, "iptables"),
        ({"backend": "nftables", "externalSetMarkChain": "KUBE-MARK-MASQ"}, "nftables"),
        ({"conditionsV4": ["!", "-s", "10.0.0.0/8"]}, "iptables"),
        ({"conditionsV6": ["-s", "fd00::/8"]}, "iptables"),
        ({"conditionsV4": ["ip", "saddr", "10.0.0.0/8"]}, "nftables"),
    ],
)
def test_backend(keys: Json, backend: str) -> None:
    """A configuration for iptables alone makes it the backend."""
    assert Conf.of(request(PORT, **keys)).backend == backend


REFUSED: list[tuple[Json, Json, str]] = [
    ({"hostPort": 0}, {}, "portMappings[0]: hostPort is 0, it must be 1 to 65535"),
    ({"hostPort": 65536}, {}, "hostPort is 65536"),
    ({"containerPort": -1}, {}, "containerPort is -1"),
    ({"protocol": "icmp"}, {}, 'protocol is "icmp", it must be "tcp", "udp" or "sctp"'),
    ({"hostIP": "localhost"}, {}, 'hostIP "localhost" is not an IP address'),
    ({"hostPort": "80"}, {}, "is not of type integer"),
    ({}, {"markMasqBit": 32}, '"markMasqBit" is 32, it must be 0 to 31'),
    ({}, {"markMasqBit": 1, "externalSetMarkChain": "X"}, "choose one of"),
    ({}, {"backend": "nft"}, "backend"),
    ({}, {"backend": "nftables", "conditionsV4": ["-s", "x"]}, "written for iptables"),
    ({}, {"backend": "iptables", "conditionsV6": ["ip6", "x"]}, "written for nftables"),
    ({}, {"conditionsV4": ["-s", "x"], "conditionsV6": ["ip6", "x"]}, "written for nftables"),
    ({}, {"conditionsV4": ["ip", "saddr 1.2.3.4; flush ruleset"]}, "cannot be in a rule"),
    ({}, {"conditionsV4": ["ip\nflush ruleset"]}, "cannot be in a rule"),
    ({}, {"externalSetMarkChain": "A\nCOMMIT"}, "cannot be the name of a chain"),
    ({}, {"prevResult": {"ips": [{"address": "x"}]}}, "prevResult"),
]


@pytest.mark.parametrize(("port", "keys", "expected"), REFUSED)
def test_refused(port: Json, keys: Json, expected: str) -> None:
    """A configuration that cannot be carried out is refused with 7, and the fault is named."""
    with pytest.raises(CNIError) as caught:
        Conf.of(request({**PORT, **port}, **keys))

    assert caught.value.code == 7
    assert expected in caught.value.msg


def test_two_container_ports() -> None:
    """One port of the node cannot lead to two of the container."""
    with pytest.raises(CNIError, match="mapped twice, to container ports 80 and 81"):
        Conf.of(request(PORT, {**PORT, "containerPort": 81}))


def test_leftover() -> None:
    """DEL makes do with what can be understood."""
    req = request(PORT, {**PORT, "hostPort": 0}, prevResult={"ips": [{"address": "x"}]})

    conf = Conf.of_leftover(req)

    assert [str(port) for port in conf.ports] == ["8080/tcp"]
    assert not conf.addresses


def test_keys() -> None:
    """Keys are those that the kernel makes of a packet: parts of four bytes, in network order."""
    conf = Conf.of(request({**PORT, "hostIP": "192.0.2.1"}))

    element = layout.elements(conf, "")[0]

    assert element.key == bytes([192, 0, 2, 1, 6, 0, 0, 0, 0x1F, 0x90, 0, 0])
    assert element.data == bytes([10, 9, 0, 2, 0, 80, 0, 0])
