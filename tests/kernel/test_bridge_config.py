"""bridge: every key with its validation, before and after the kernel has been changed."""

from __future__ import annotations

import errno

import pytest

from tests.faults.inprocess import Fault, faulty
from tests.machine import Json, Machine

MAC = "02:11:22:33:44:55"
OTHER, THIRD = "02:aa:bb:cc:dd:ee", "02:00:00:00:00:77"
IGNORED = "IgnoreUnknown=1;"


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"bridge": ""}, '"bridge"'),
        ({"bridge": "b" * 16}, '"bridge" is too long'),
        ({"bridge": "a/b"}, '"bridge"'),
        ({"bridge": "a b"}, '"bridge"'),
        ({"bridge": ".."}, '"bridge"'),
        ({"bridge": 5}, '"bridge"'),
        ({"isGateway": "true"}, '"isGateway"'),
        ({"isDefaultGateway": 1}, '"isDefaultGateway"'),
        ({"forceAddress": "no"}, '"forceAddress"'),
        ({"ipMasq": 0}, '"ipMasq"'),
        ({"ipMasq": True, "ipMasqBackend": "ufw"}, '"ipMasqBackend"'),
        ({"ipMasqBackend": ""}, '"ipMasqBackend"'),
        ({"mtu": -5}, '"mtu" is -5'),
        ({"mtu": 67}, '"mtu" is 67'),
        ({"mtu": 65536}, '"mtu" is 65536'),
        ({"mtu": "1400"}, '"mtu"'),
        ({"mtu": 1400.0}, '"mtu"'),
        ({"mtu": True}, '"mtu"'),
        ({"hairpinMode": "on"}, '"hairpinMode"'),
        ({"promiscMode": 1}, '"promiscMode"'),
        ({"hairpinMode": True, "promiscMode": True}, "promiscuous mode at the same time"),
        ({"vlan": -1}, "invalid VLAN ID -1"),
        ({"vlan": 4095}, "invalid VLAN ID 4095"),
        ({"vlan": "5"}, '"vlan"'),
        ({"vlanTrunk": {}}, '"vlanTrunk"'),
        ({"vlanTrunk": [None]}, '"vlanTrunk[0]"'),
        ({"vlanTrunk": [{"id": "5"}]}, '"vlanTrunk[0].id"'),
        ({"vlanTrunk": [{}, {"minID": 1}]}, "vlanTrunk[1]: maxID is missing"),
        ({"vlanTrunk": [{"maxID": 5}]}, "vlanTrunk[0]: minID is missing"),
        ({"vlanTrunk": [{"minID": 0, "maxID": 5}]}, "incorrect trunk minID parameter"),
        ({"vlanTrunk": [{"minID": 1, "maxID": 4095}]}, "incorrect trunk maxID parameter"),
        ({"vlanTrunk": [{"minID": 6, "maxID": 5}]}, "minID 6 is greater than maxID 5"),
        ({"vlanTrunk": [{"id": 0}]}, "incorrect trunk id parameter"),
        ({"vlanTrunk": [{"id": 4095}]}, "incorrect trunk id parameter"),
        ({"preserveDefaultVlan": "x"}, '"preserveDefaultVlan"'),
        ({"macspoofchk": 1}, '"macspoofchk"'),
        ({"enabledad": "x"}, '"enabledad"'),
        ({"disableContainerInterface": "x"}, '"disableContainerInterface"'),
        ({"disableContainerInterface": True}, "cannot use IPAM when"),
        ({"portIsolation": "x"}, '"portIsolation"'),
        ({"ipam": "host-local"}, '"ipam"'),
        ({"ipam": {"type": 5}}, '"ipam.type"'),
        ({"dns": "1.1.1.1"}, '"dns"'),
        ({"dns": {"nameservers": "1.1.1.1"}}, '"dns.nameservers"'),
        ({"dns": {"search": [5]}}, '"dns.search[0]"'),
        ({"args": "mac"}, '"args"'),
        ({"args": {"cni": {"mac": 5}}}, '"args.cni.mac"'),
        ({"args": {"cni": {"mac": "zz"}}}, "MAC"),
        ({"runtimeConfig": []}, '"runtimeConfig"'),
        ({"runtimeConfig": {"mac": 5}}, '"runtimeConfig.mac"'),
        ({"runtimeConfig": {"mac": "02:11:22:33:44"}}, "MAC"),
        ({"runtimeConfig": {"mac": "02:11:22:33:44:55:66:77"}}, "MAC"),
        ({"runtimeConfig": {"mac": "01:11:22:33:44:55"}}, "group address"),
        ({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}, "zero"),
        ({"capabilities": {"mac": "yes"}}, '"capabilities.mac"'),
        ({"bridge": "br-of-12-chr", "vlan": 4000}, "gateway interface"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_before_anything_is_made(
    arena: Machine, keys: Json, named: str
) -> None:
    """The error has code 7 and names the key; not even the bridge is made."""
    container = arena.container()
    before = arena.snapshot(container)

    error = arena.refused("bridge", "ADD", arena.network(**keys), container)

    assert error["code"] == 7
    assert named in error["msg"] + error.get("details", "")
    assert arena.snapshot(container) == before


def test_ipv6_needs_1280_bytes(machine: Machine) -> None:
    """An MTU below IPv6's least is refused when IPAM gives an IPv6 address, which is given back."""
    container = machine.container()
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "subnet": "fd00:9::/64"}

    error = machine.refused("bridge", "ADD", machine.network(mtu=1279, ipam=ipam), container)

    assert error["code"] == 7
    assert "1280" in error["msg"]
    assert machine.leases() == []
    assert machine.ports() == []


@pytest.mark.parametrize("value", [None, {}, {"type": ""}, {"type": None}], ids=str)
def test_l2_only(machine: Machine, value: Json | None) -> None:
    """Without a type of IPAM the interface is up and has no address; gateway keys do not count."""
    container = machine.container()
    config = machine.network(ipam=value, isDefaultGateway=True, ipMasq=True)

    result = machine.ok("bridge", "ADD", config, container)

    link = machine.link(container, "eth0")
    assert link is not None
    assert "UP" in link["flags"]
    assert machine.addresses(container, "eth0") == []
    assert machine.addresses(machine.host, "br0") == []
    assert set(result) == {"cniVersion", "interfaces"}
    assert machine.masqueraded() == {}


def test_disable_container_interface(machine: Machine) -> None:
    """The container's end stays down, the host's end is in the bridge."""
    container = machine.container()
    config = machine.network(ipam=None, disableContainerInterface=True)

    result = machine.ok("bridge", "ADD", config, container)

    link = machine.link(container, "eth0")
    assert link is not None
    assert "UP" not in link["flags"]
    port = machine.link(machine.host, machine.ports()[0])
    assert port is not None
    assert port["master"] == "br0"
    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)


@pytest.mark.parametrize(
    ("key", "flag", "value"),
    [
        ("hairpinMode", "hairpin", True),
        ("portIsolation", "isolated", True),
        (None, "hairpin", False),
        (None, "isolated", False),
    ],
    ids=str,
)
def test_port_flags(machine: Machine, key: str | None, flag: str, value: bool) -> None:
    """The port has the flags that are configured, and no other."""
    config = machine.network(**({key: True} if key else {}))

    machine.ok("bridge", "ADD", config, machine.container())

    port = machine.link(machine.host, machine.ports()[0])
    assert port is not None
    assert port["linkinfo"]["info_slave_data"][flag] is value


def test_promisc_mode(machine: Machine) -> None:
    """The bridge is promiscuous, a second ADD leaves it so, and one without does not clear it."""
    for number, value in enumerate((True, True, False)):
        config = machine.network(promiscMode=value)
        machine.ok("bridge", "ADD", config, machine.container(), containerid=f"c{number}")

        bridge = machine.link(machine.host, "br0")
        assert bridge is not None
        assert "PROMISC" in bridge["flags"]


def test_default_bridge(machine: Machine) -> None:
    """Without a name the bridge is cni0."""
    machine.ok("bridge", "ADD", machine.network(bridge=None), machine.container())

    assert machine.addresses(machine.host, "cni0") == ["10.9.0.1/24"]


def test_something_else_of_the_bridge_s_name_is_left_as_it_is(machine: Machine) -> None:
    """An interface that is not a bridge is refused, and does not become promiscuous."""
    machine.do(machine.host, "ip link add br0 type veth peer name other")
    container = machine.container()
    before = machine.snapshot(container)

    error = machine.refused("bridge", "ADD", machine.network(promiscMode=True), container)

    assert error["code"] == 7
    assert "'br0' already exists but is not a bridge" in error["msg"]
    assert machine.snapshot(container) == before


@pytest.mark.parametrize(
    "keys",
    [{"vlan": 5}, {"vlanTrunk": [{"minID": 2, "maxID": 4}]}, {"vlanTrunk": []}],
    ids=str,
)
def test_vlans_on_a_kernel_without_them(machine: Machine, keys: Json) -> None:
    """A kernel that cannot separate VLANs is told by one clear error, and nothing is left."""
    container = machine.container()
    before = machine.snapshot(container)
    probe = "ip link add probe type bridge vlan_filtering 1"
    can_filter = machine.try_command(machine.container(), *probe.split()).returncode == 0
    refusal = Fault(
        at=1 if can_filter else 0,
        code=errno.EOPNOTSUPP,
        only=lambda what: what.startswith("create bridge"),
    )

    with faulty(machine, refusal) as host:
        error = machine.refused("bridge", "ADD", machine.network(**keys), container, host=host)

    assert error["code"] == 7
    assert "'br0': this kernel has no VLAN filtering" in error["msg"]
    assert machine.snapshot(container) == before


@pytest.mark.parametrize("keys", [{"vlan": 5}, {"vlanTrunk": [{"id": 5}]}], ids=str)
def test_vlans_on_a_bridge_that_does_not_filter_them(machine: Machine, keys: Json) -> None:
    """A bridge whose ports would not be separated is refused, with the command that mends it."""
    machine.do(machine.host, "ip link add br0 type bridge")
    container = machine.container()
    before = machine.snapshot(container)

    error = machine.refused("bridge", "ADD", machine.network(**keys), container)

    assert error["code"] == 7
    assert "ip link set br0 type bridge vlan_filtering 1" in error["msg"]
    assert machine.snapshot(container) == before


@pytest.mark.parametrize(
    ("keys", "args", "expected"),
    [
        ({"args": {"cni": {"mac": MAC}}}, "", MAC),
        ({"runtimeConfig": {"mac": MAC}}, "", MAC),
        ({}, f"{IGNORED}MAC={MAC}", MAC),
        ({}, f"MAC={MAC.upper().replace(':', '-')}", MAC),
        ({"args": {"cni": {"mac": MAC}}}, f"MAC={OTHER}", MAC),
        ({"args": {"cni": {"mac": OTHER}}, "runtimeConfig": {"mac": MAC}}, "", MAC),
        (
            {"args": {"cni": {"mac": OTHER}}, "runtimeConfig": {"mac": MAC}},
            f"MAC={THIRD}",
            MAC,
        ),
        ({"runtimeConfig": {"mac": ""}, "args": {"cni": {"mac": ""}}}, f"MAC={MAC}", MAC),
    ],
    ids=["args", "runtime", "CNI_ARGS", "dashes", "args-wins", "runtime-wins", "all", "empty"],
)
def test_mac(machine: Machine, keys: Json, args: str, expected: str) -> None:
    """runtimeConfig.mac beats args.cni.mac, which beats CNI_ARGS; the interface is born with it."""
    container = machine.container()

    result = machine.ok("bridge", "ADD", machine.network(**keys), container, args=args)

    link = machine.link(container, "eth0")
    assert link is not None
    assert link["address"] == result["interfaces"][2]["mac"] == expected


def test_random_macs(machine: Machine) -> None:
    """Without a MAC both ends and the bridge get local unicast ones that differ."""
    macs = []

    for number in range(3):
        config = machine.network()
        result = machine.ok("bridge", "ADD", config, machine.container(), containerid=f"c{number}")
        macs += [entry["mac"] for entry in result["interfaces"][1:]]

    macs.append(result["interfaces"][0]["mac"])
    assert len(set(macs)) == 7
    assert {int(mac[:2], 16) & 3 for mac in macs} == {2}


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ("MAC", 4),
        (f"MAC={MAC};", 4),
        ("MAC=a=b", 4),
        ("POD=1", 4),
        ("IgnoreUnknown=maybe", 4),
        ("MAC=zz", 7),
        ("mac=02:11:22:33:44:55", 4),
    ],
)
def test_cni_args_are_checked(arena: Machine, args: str, code: int) -> None:
    """Malformed pairs, unknown keys and wrong MACs are refused before anything is made."""
    container = arena.container()
    before = arena.snapshot(container)

    error = arena.refused("bridge", "ADD", arena.network(), container, args=args)

    assert error["code"] == code
    assert arena.snapshot(container) == before


@pytest.mark.both_edges
@pytest.mark.parametrize(
    "args", ["IP=10.9.0.7", f"MAC={MAC};IP=10.9.0.7", f"{IGNORED}X=1;IP=10.9.0.7"]
)
def test_cni_args_of_the_ipam_plugin_do_not_stop_bridge(machine: Machine, args: str) -> None:
    """The keys of both plugins may stand in CNI_ARGS at once, and both are heeded."""
    container = machine.container()

    result = machine.ok("bridge", "ADD", machine.network(), container, args=args)

    assert result["ips"][0]["address"] == "10.9.0.7/24"
    if "MAC" in args:
        assert result["interfaces"][2]["mac"] == MAC


@pytest.mark.both_edges
def test_bad_cni_args_do_not_stop_del(machine: Machine) -> None:
    """DEL goes on with a CNI_ARGS that ADD would refuse."""
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(), container)

    machine.ok("bridge", "DEL", machine.network(), container, args="A=b=c")

    assert machine.leases() == []
    assert machine.ports() == []


def test_keys_are_matched_as_go_does(machine: Machine) -> None:
    """Keys count in any case, null is absence and unknown keys are ignored."""
    container = machine.container()
    config = machine.network(bridge=None, isGateway=None)
    config |= {"BRIDGE": "br7", "ISGATEWAY": True, "mtu": None, "surprise": {"a": [1]}}

    machine.ok("bridge", "ADD", config, container)

    assert machine.addresses(machine.host, "br7") == ["10.9.0.1/24"]


def test_a_bridge_name_with_a_nul_makes_nothing(machine: Machine) -> None:
    """The kernel would make a bridge of the name before the NUL."""
    error = machine.refused("bridge", "ADD", machine.network(bridge="ab\0cd"), machine.container())

    assert error["code"] == 7
    assert "contains a NUL" in error["msg"]
    assert machine.try_command(machine.host, "ip", "link", "show", "ab").returncode != 0
    machine.ok("bridge", "DEL", machine.network(bridge="ab\0cd"), machine.container())
