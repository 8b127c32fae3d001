"""Calls that both the Go reference plugins and ours refuse, and with which error codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.e2e.cases import DEFAULT4, NET4, NET6, bridge, routed
from tests.machine import Json

CRASH = 2  # exit status of a Go panic
HOST_LOCAL = bridge(NET4)
BRIDGE_BESIDE = "ip link add br0 type bridge; ip link set br0 up"


@dataclass(frozen=True)
class Case:
    """A call that both refuse: with which codes, and what both say.

    `theirs` is what the reference says where it has no words in common with ours.
    """

    reference: int
    ours: int
    says: str
    config: Json | str = field(default_factory=lambda: routed(NET4))
    plugin: str = "bridge"
    command: str = "ADD"
    env: dict[str, str] = field(default_factory=dict)
    args: str = ""
    prepare: str = ""
    add_before: bool = False
    theirs: str = ""


def leases(ipam: Json, **keys: Any) -> Json:
    """Return a configuration of host-local alone."""
    return bridge(ipam=ipam, **keys)


def ranges(*ranges: Json) -> Json:
    """Return a configuration of host-local with one range set."""
    return leases({"ranges": [list(ranges)]})


LENT: Json = {"cniVersion": "1.0.0", "name": "net1", "type": "host-device"}
TAP: Json = {"cniVersion": "1.0.0", "name": "net1", "type": "tap"}
NO_VARIABLES = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "")
ALL_NAMES = "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]"
CASES = {
    # the protocol: codes are the same
    "no-name": Case(7, 7, "missing network name", {"cniVersion": "1.0.0", "type": "bridge"}),
    "bad-name": Case(7, 7, "network name", routed(NET4, name="a/b")),
    "name-is-a-number": Case(6, 6, "name", '{"cniVersion":"1.0.0","name":5}'),
    "no-variables": Case(4, 4, ALL_NAMES, env=NO_VARIABLES),
    "no-netns": Case(4, 4, "[CNI_NETNS]", env={"CNI_NETNS": ""}),
    "bad-containerid": Case(4, 4, "CONTAINERID", env={"CNI_CONTAINERID": "a b"}),
    "long-ifname": Case(4, 4, "too long", env={"CNI_IFNAME": "x" * 16}),
    "slash-in-ifname": Case(4, 4, "/", env={"CNI_IFNAME": "a/b"}),
    "unknown-command": Case(4, 4, "unknown CNI_COMMAND: FOO", command="FOO"),
    "not-json": Case(6, 6, "", "{"),
    "array": Case(6, 6, "", "[]"),
    "not-a-number": Case(6, 6, "", '{"cniVersion":"1.0.0","name":"n","mtu":NaN}'),
    "trailing-data": Case(6, 6, "", '{"cniVersion":"1.0.0","name":"n"} x'),
    "newer-version": Case(1, 1, "incompatible CNI versions", routed(NET4, version="9.9.9")),
    "early-check": Case(
        1, 1, "config version does not allow CHECK", routed(NET4, version="0.3.1"), command="CHECK"
    ),
    "early-status": Case(
        1,
        1,
        "config version does not allow STATUS",
        routed(NET4, version="1.0.0"),
        command="STATUS",
    ),
    "early-gc": Case(
        1, 1, "config version does not allow GC", routed(NET4, version="1.0.0"), command="GC"
    ),
    "late-check": Case(
        1, 1, "plugin version does not allow CHECK", routed(NET4, version="9.0.0"), command="CHECK"
    ),
    # the container
    "netns-is-missing": Case(999, 8, "netns", env={"CNI_NETNS": "/run/netns/none"}),
    "netns-is-a-file": Case(999, 8, "", env={"CNI_NETNS": "/run/file"}, prepare="touch /run/file"),
    "ifname-exists": Case(
        999, 4, "already exists", prepare="ip -n c1 link add eth0 type veth peer name eth9"
    ),
    "attached-already": Case(999, 4, "already exists", add_before=True),
    "pair-without-value": Case(999, 4, "invalid pair", args="A"),
    "unknown-argument": Case(999, 4, "COLOUR", args="COLOUR=red"),
    "strange-boolean": Case(999, 4, "", args="IgnoreUnknown=maybe"),
    # bridge
    "mtu-is-a-string": Case(999, 7, "mtu", routed(NET4, mtu="1400")),
    "boolean-is-a-string": Case(999, 7, "isGateway", bridge(NET4, isGateway="true")),
    "hairpin-and-promiscuous": Case(
        999,
        7,
        "cannot set hairpin mode and promiscuous mode at the same time",
        routed(NET4, hairpinMode=True, promiscMode=True),
    ),
    "ipam-and-interface-down": Case(
        999,
        7,
        "cannot use IPAM when DisableContainerInterface flag is set",
        bridge(NET4, disableContainerInterface=True),
    ),
    "vlan": Case(999, 7, "invalid VLAN ID 5000 (must be between 0 and 4094)", bridge(vlan=5000)),
    "trunk-without-max": Case(999, 7, "maxID", bridge(vlanTrunk=[{"minID": 5}])),
    "trunk-id": Case(999, 7, "incorrect trunk id parameter", bridge(vlanTrunk=[{"id": 5000}])),
    "trunk-is-null": Case(CRASH, 7, "vlanTrunk", bridge(vlanTrunk=[None])),
    "backend": Case(
        999,
        7,
        "ipMasqBackend",
        routed(NET4, ipMasq=True, ipMasqBackend="pf"),
        theirs="ipmasq backend",
    ),
    "mac-is-no-mac": Case(999, 7, "MAC", bridge(runtimeConfig={"mac": "zz"})),
    "mac-is-a-group": Case(
        999, 7, "MAC", bridge(runtimeConfig={"mac": "01:00:5e:00:00:01"}), theirs="cannot assign"
    ),
    "bridge-name": Case(999, 7, "bridge", routed(NET4, bridge="b" * 16)),
    "not-a-bridge": Case(
        999, 7, "already exists but is not a bridge", prepare="ip link add br0 type veth"
    ),
    "other-address": Case(
        999,
        7,
        "already has an IP address different from",
        prepare=f"{BRIDGE_BESIDE}; ip addr add 10.99.0.1/24 dev br0",
    ),
    "no-ipam-plugin": Case(
        999, 50, 'failed to find plugin "nobody" in path [', bridge(ipam={"type": "nobody"})
    ),
    "ipam-plugin-is-a-path": Case(999, 7, "invalid plugin name", bridge(ipam={"type": "a/b"})),
    "layer2-in-0.2.0": Case(
        999, 1, "cannot convert: no valid IP addresses", bridge(version="0.2.0")
    ),
    "check-without-result": Case(
        999, 7, "Required prevResult missing", command="CHECK", add_before=True
    ),
    "check-of-other-family": Case(
        999,
        7,
        "cniVersion",
        routed(NET4, prevResult={"cniVersion": "0.4.0"}),
        command="CHECK",
        add_before=True,
    ),
    # host-local
    "no-ipam-key": Case(999, 7, "IPAM config missing 'ipam' key", bridge(), plugin="host-local"),
    "no-ranges": Case(
        999, 7, "no IP ranges specified", leases({"routes": []}), plugin="host-local"
    ),
    "too-small": Case(999, 7, "too small", ranges({"subnet": "10.9.0.0/31"}), plugin="host-local"),
    "host-bits": Case(999, 7, "", ranges({"subnet": "10.9.0.7/24"}), plugin="host-local"),
    "empty-set": Case(999, 7, "empty range set", leases({"ranges": [[]]}), plugin="host-local"),
    "mixed-families": Case(
        999,
        7,
        "mixed address families",
        ranges({"subnet": NET4}, {"subnet": NET6}),
        plugin="host-local",
    ),
    "overlap": Case(
        999, 7, "overlap", ranges({"subnet": NET4}, {"subnet": "10.81.0.0/25"}), plugin="host-local"
    ),
    "overlapping-sets": Case(
        999,
        7,
        "range set 0 overlaps with 1",
        leases({"ranges": [[{"subnet": NET4}], [{"subnet": NET4}]]}),
        plugin="host-local",
    ),
    "start-outside": Case(
        999,
        7,
        "RangeStart",
        ranges({"subnet": NET4, "rangeStart": "10.9.9.9"}),
        plugin="host-local",
    ),
    "two-sets-in-0.2.0": Case(
        999,
        7,
        "does not support more than",
        bridge(NET4, "10.82.0.0/24", version="0.2.0"),
        plugin="host-local",
    ),
    # static
    "static-no-ipam": Case(999, 7, "IPAM config missing 'ipam' key", bridge(), plugin="static"),
    "static-no-prefix": Case(
        999,
        7,
        "CIDR notation",
        leases({"type": "static", "addresses": [{"address": "10.5.0.5"}]}),
        plugin="static",
    ),
    "static-no-prefix-in-args": Case(
        999, 4, "10.5.0.5", leases({"type": "static"}), plugin="static", args="IP=10.5.0.5"
    ),
    "static-gateway-in-args": Case(
        999, 4, "10.5", leases({"type": "static"}), plugin="static", args="GATEWAY=10.5"
    ),
    "static-unknown-args": Case(
        999, 4, "", leases({"type": "static"}), plugin="static", args="FOO=1"
    ),
    "static-two-in-0.2.0": Case(
        999,
        7,
        "does not support more than",
        leases({"type": "static"}, args={"cni": {"ips": ["10.5.0.5/24", "10.5.0.6/24"]}})
        | {"cniVersion": "0.2.0"},
        plugin="static",
    ),
    "static-check-without-result": Case(
        999,
        7,
        "Required prevResult missing",
        leases({"type": "static"}),
        plugin="static",
        command="CHECK",
    ),
    "no-resolv-conf": Case(
        999, 7, "/none", leases({"subnet": NET4, "resolvConf": "/none"}), plugin="host-local"
    ),
    "exhausted": Case(
        999,
        999,
        "failed to allocate for range 0: no IP addresses available in range set: "
        "10.81.0.1-10.81.0.2",
        ranges({"subnet": NET4, "rangeEnd": "10.81.0.2"}),
        plugin="host-local",
        prepare="mkdir -p /var/lib/cni/networks/net1;"
        " printf 'x\\r\\neth0' >/var/lib/cni/networks/net1/10.81.0.2",
    ),
    "duplicate": Case(
        999,
        999,
        "10.81.0.2 has been allocated to c1, duplicate allocation is not allowed",
        HOST_LOCAL,
        plugin="host-local",
        add_before=True,
    ),
    "requested-is-taken": Case(
        999,
        999,
        "requested IP address 10.81.0.2 is not available in range set",
        HOST_LOCAL,
        plugin="host-local",
        args="IP=10.81.0.2",
        prepare="mkdir -p /var/lib/cni/networks/net1;"
        " printf 'x\\r\\neth0' >/var/lib/cni/networks/net1/10.81.0.2",
    ),
    "requested-is-gateway": Case(
        999,
        999,
        "requested ip 10.81.0.1 is subnet's gateway",
        HOST_LOCAL,
        plugin="host-local",
        args="IP=10.81.0.1",
    ),
    "requested-is-elsewhere": Case(
        999,
        999,
        "failed to allocate all requested IPs: 10.9.0.1",
        HOST_LOCAL,
        plugin="host-local",
        args="IP=10.9.0.1",
    ),
    "requested-is-null": Case(
        CRASH, 7, "ips", bridge(NET4, runtimeConfig={"ips": [None]}), plugin="host-local"
    ),
    "nothing-to-check": Case(
        999,
        999,
        "host-local: Failed to find address added by container c1",
        HOST_LOCAL,
        plugin="host-local",
        command="CHECK",
    ),
    "default-twice": Case(
        999,
        999,
        "file exists",
        bridge(NET4, ipam={"routes": [DEFAULT4, DEFAULT4]}, isGateway=True),
    ),
    # host-device, tap
    "host-device-nothing": Case(
        999, 7, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"', LENT, "host-device"
    ),
    "host-device-absent": Case(
        999, 50, "nic7", LENT | {"device": "nic7"}, "host-device", theirs="Link not found"
    ),
    "host-device-mac": Case(999, 7, "hwaddr", LENT | {"hwaddr": "x"}, "host-device", theirs="MAC"),
    "host-device-kernelpath": Case(
        999,
        7,
        "must be absolute and begin with /sys/devices/",
        LENT | {"kernelpath": "/x"},
        "host-device",
    ),
    "host-device-pci": Case(
        999,
        50,
        "0000:ff:1f.7",
        LENT | {"pciBusID": "0000:ff:1f.7"},
        "host-device",
        theirs="error with host device",
    ),
    "host-device-id": Case(
        999, 50, "none", LENT | {"runtimeConfig": {"deviceID": "none"}}, "host-device"
    ),
    "host-device-check": Case(
        999,
        7,
        "prevResult",
        LENT | {"device": "lo"},
        "host-device",
        "CHECK",
    ),
    "tap-mtu": Case(999, 7, "mtu", TAP | {"mtu": "1"}, "tap"),
    "tap-owner": Case(999, 7, "owner", TAP | {"owner": -1}, "tap"),
    "tap-context": Case(
        999, 50, "selinux", TAP | {"selinuxContext": "a:b:c:d"}, "tap", theirs="label"
    ),
    # loopback
    "foreign-address": Case(
        999,
        999,
        "",
        {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"},
        plugin="loopback",
        prepare="ip -n c1 address add 10.1.1.1/32 dev lo",
    ),
}
