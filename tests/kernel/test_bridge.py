"""bridge on a pretend host, judged by `ip`, `bridge` and `nft`: attachments and their results."""

from __future__ import annotations

from typing import Any

import pytest

from tests.machine import Json, Machine

V4 = {"subnet": "10.9.0.0/24"}
V6 = {"subnet": "fd00:9::/64"}
DNS_OF_IPAM = {"nameservers": ["10.9.0.53"], "search": ["ipam.example"]}


def ipam(machine: Machine, *subnets: Json, **keys: Any) -> Json:
    """Return an `ipam` section with one range set per subnet."""
    ranges = [[subnet] for subnet in subnets]
    return {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges, **keys}


@pytest.mark.both_edges
def test_add_and_del(machine: Machine) -> None:
    """An attachment has what the result says, and DEL leaves the bridge alone."""
    container = machine.container()
    config = machine.network(ipMasq=True)

    result = machine.ok("bridge", "ADD", config, container)

    assert machine.addresses(container, "eth0") == ["10.9.0.2/24"]
    assert machine.addresses(machine.host, "br0") == ["10.9.0.1/24"]
    assert [i["name"] for i in result["interfaces"]][::2] == ["br0", "eth0"]
    assert list(machine.masqueraded()) == ["10.9.0.2"]
    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)

    machine.ok("bridge", "DEL", config, container)
    machine.ok("bridge", "DEL", config, container)

    assert [link["ifname"] for link in machine.ip(machine.host, "link")] == ["lo", "br0"]
    assert machine.masqueraded() == {}
    assert machine.nft() == []


@pytest.mark.parametrize("mtu", [None, 1400])
def test_result_says_what_the_kernel_has(machine: Machine, mtu: int | None) -> None:
    """Names, MACs, MTUs and addresses of the result are those that `ip` shows."""
    container = machine.container()

    result = machine.ok("bridge", "ADD", machine.network(mtu=mtu), container)

    for entry in result["interfaces"]:
        link = machine.link(entry.get("sandbox", machine.host), entry["name"])
        assert link is not None
        assert (entry["mac"], entry["mtu"]) == (link["address"], link["mtu"])
    assert [entry.get("sandbox") for entry in result["interfaces"]] == [None, None, container]
    assert [entry["mtu"] for entry in result["interfaces"]] == [mtu or 1500] * 3
    assert result["ips"] == [{"interface": 2, "address": "10.9.0.2/24", "gateway": "10.9.0.1"}]


def test_result_has_the_mac_of_a_bridge_that_follows_its_ports(machine: Machine) -> None:
    """The MAC of a bridge that others made is given as it is after the port joined."""
    machine.do(machine.host, "ip link add br0 type bridge")
    container = machine.container()

    result = machine.ok("bridge", "ADD", machine.network(isGateway=False), container)

    link = machine.link(machine.host, "br0")
    assert link is not None
    assert result["interfaces"][0]["mac"] == link["address"]


def test_gateway_keeps_its_mac_while_ports_come_and_go(machine: Machine) -> None:
    """A bridge made by others gets a lasting MAC together with its gateway address."""
    machine.do(machine.host, "ip link add br0 type bridge")
    first = machine.ok("bridge", "ADD", machine.network(), machine.container())
    low = "ip link add low address 02:00:00:00:00:01 master br0 type veth peer name other"

    # A bridge that follows its ports takes on the lowest MAC.
    machine.do(machine.host, low)

    link = machine.link(machine.host, "br0")
    assert link is not None
    assert link["address"] == first["interfaces"][0]["mac"]


def test_bridge_that_lost_its_ports_serves_again(machine: Machine) -> None:
    """The first ADD to a bridge whose MAC went with its last port succeeds at once."""
    machine.do(
        machine.host,
        "ip link add br0 type bridge",
        "ip link add port master br0 type veth peer name other",
        "ip link delete port",
    )

    machine.ok("bridge", "ADD", machine.network(), machine.container())

    assert machine.addresses(machine.host, "br0") == ["10.9.0.1/24"]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_result_of_0_1_and_0_2(machine: Machine, version: str) -> None:
    """The oldest layouts have one address of each family, with its routes."""
    config = machine.network(
        cniVersion=version,
        isDefaultGateway=True,
        ipam=ipam(machine, V4, V6, routes=[{"dst": "172.16.0.0/12", "gw": "10.9.0.7"}]),
    )

    result = machine.ok("bridge", "ADD", config, machine.container())

    assert result == {
        "cniVersion": version,
        "ip4": {
            "ip": "10.9.0.2/24",
            "gateway": "10.9.0.1",
            "routes": [
                {"dst": "172.16.0.0/12", "gw": "10.9.0.7"},
                {"dst": "0.0.0.0/0", "gw": "10.9.0.1"},
            ],
        },
        "ip6": {
            "ip": "fd00:9::2/64",
            "gateway": "fd00:9::1",
            "routes": [{"dst": "::/0", "gw": "fd00:9::1"}],
        },
        "dns": {},
    }


@pytest.mark.both_edges
@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_result_with_lists(machine: Machine, version: str) -> None:
    """From 0.3.0 on there are lists; `version` in ips ends with 0.4.0, `mtu` begins with 1.1.0."""
    container = machine.container()
    config = machine.network(cniVersion=version, ipam=ipam(machine, V4, V6))

    result = machine.ok("bridge", "ADD", config, container)

    macs = [entry.pop("mac") for entry in result["interfaces"]]
    port = machine.ports()[0]
    mtu = {"mtu": 1500} if version == "1.1.0" else {}
    families = ({"version": "4"}, {"version": "6"}) if version < "1" else ({}, {})
    ips = [
        {"interface": 2, "address": "10.9.0.2/24", "gateway": "10.9.0.1"},
        {"interface": 2, "address": "fd00:9::2/64", "gateway": "fd00:9::1"},
    ]
    assert all(macs)
    assert result == {
        "cniVersion": version,
        "interfaces": [
            {"name": "br0", **mtu},
            {"name": port, **mtu},
            {"name": "eth0", "sandbox": container, **mtu},
        ],
        "ips": [ip | family for ip, family in zip(ips, families, strict=True)],
        **({"dns": {}} if version < "1" else {}),
    }


@pytest.mark.parametrize("version", ["", "0.1.0", "0.2.0"])
def test_a_result_that_cannot_be_printed_leaves_nothing(machine: Machine, version: str) -> None:
    """An L2 attachment has no result before 0.3.0, and such an ADD is taken back."""
    container = machine.container()
    before = machine.snapshot(container)
    config = machine.network(cniVersion=version or None, ipam=None)

    error = machine.refused("bridge", "ADD", config, container)

    assert error["code"] == 1
    assert "no valid IP addresses" in error["msg"]
    machine.do(machine.host, "ip link delete br0")
    assert machine.snapshot(container) == before


@pytest.mark.parametrize(
    ("dns", "expected"),
    [
        pytest.param(None, DNS_OF_IPAM, id="absent"),
        pytest.param({}, DNS_OF_IPAM, id="empty"),
        pytest.param({"domain": ""}, DNS_OF_IPAM, id="empty-domain"),
        pytest.param({"nameservers": ["1.1.1.1"]}, {"nameservers": ["1.1.1.1"]}, id="nameservers"),
        pytest.param({"search": ["a.example"]}, {"search": ["a.example"]}, id="search"),
        pytest.param({"options": ["ndots:2"]}, {"options": ["ndots:2"]}, id="options"),
        pytest.param({"domain": "b.example"}, {"domain": "b.example"}, id="domain"),
        pytest.param({"nameservers": []}, None, id="empty-list-erases"),
    ],
)
def test_dns(machine: Machine, tmp_path: Any, dns: Json | None, expected: Json | None) -> None:
    """`dns` with any list or a domain replaces what IPAM says as a whole."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 10.9.0.53\nsearch ipam.example\n")
    config = machine.network(dns=dns, ipam=ipam(machine, V4, resolvConf=str(resolv)))

    result = machine.ok("bridge", "ADD", config, machine.container())

    assert result.get("dns") == expected


def test_dns_of_an_l2_network(machine: Machine) -> None:
    """`dns` is passed on without IPAM as well."""
    config = machine.network(ipam=None, dns={"domain": "a.example"})

    result = machine.ok("bridge", "ADD", config, machine.container())

    assert result["dns"] == {"domain": "a.example"}
    assert "ips" not in result


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0"])
def test_result_is_that_of_the_reference(machine: Machine, version: str) -> None:
    """Where the reference's binary prints a result, ours prints the same but for random names."""
    config = machine.network(
        cniVersion=version,
        isDefaultGateway=True,
        ipMasq=True,
        ipMasqBackend="nftables",
        ipam=ipam(machine, V4, V6, routes=[{"dst": "10.0.0.0/8", "mtu": 1400, "scope": 0}]),
    )
    outcomes = []

    for containerid, add in (("c1", machine.ok), ("c2", machine.reference)):
        result = add("bridge", "ADD", config, machine.container(), containerid=containerid)
        for entry in result["interfaces"]:
            entry["mac"] = len(entry["mac"])
            entry["name"] = entry["name"].rstrip("0123456789abcdef")
            entry["sandbox"] = "sandbox" in entry
        for ip in result["ips"]:
            ip["address"] = ip["address"].replace("2/", "N/").replace("3/", "N/")
        outcomes.append(result)

    assert outcomes[0] == outcomes[1]
