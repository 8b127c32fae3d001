"""Configurations for both the Go reference plugins and ours, and what may differ between them.

Each difference has its row in docs/differences.md; its subject there is its name here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.machine import Json

NET4, NET6 = "10.81.0.0/24", "fd00:81::/64"
DEFAULT4, DEFAULT6 = {"dst": "0.0.0.0/0"}, {"dst": "::/0"}
MAC, OTHER_MAC = "02:00:00:00:81:01", "02:00:00:00:81:09"

# Subject in docs/differences.md: the lines that it explains, "what: theirs -> ours".
EVERYWHERE = {
    "Attachment records": r"ADD: files in /run/pycni(/attachments)?: absent -> there",
    "Router advertisements": r"ADD: c1 sysctl net/ipv6/conf/eth0/accept_ra: 1 -> 0",
    "Length of the transmit queue": r"ADD: host link (<veth>|br0\.\d+) txqlen: None -> 1000",
    "Chosen MAC addresses": r"\w+: host link (br0|<veth>) addr_assign_type: [01] -> 3",
    "Mode of the lock file": r"\w+: mode of /var/lib/cni/networks/\S+/lock: 750 -> 600",
    "Unsolicited neighbour advertisements": (
        r"ADD: c1 sysctl net/ipv6/conf/eth0/ndisc_notify: 0 -> 1"
    ),
    "No detection of duplicate addresses": (
        r"(ADD: c1|\w+: host) address \S+ [0-9a-f:]+/\d+\.nodad: absent -> true"
    ),
}
NEWEST_VERSION = {"MTU in results": r"ADD: reply\.interfaces\[\d\]\.mtu: absent -> \d+"}
SOMEWHERE = {
    "Default backend": (
        r"ADD: firewall ip6?tables-save: .+ -> absent"
        r"|ADD: firewall table inet pycni: absent -> there"
    ),
    "Layout of masquerading": (
        r"ADD: firewall table inet cni_plugins_masquerade: there -> absent"
        r"|ADD: firewall table inet pycni: absent -> there"
    ),
    "Layout of the MAC filter": (
        r"ADD: firewall table bridge nat: there -> absent"
        r"|ADD: firewall table bridge pycni: absent -> there"
    ),
    "Unused tables": (
        r"DEL: firewall table (inet cni_plugins_masquerade|bridge nat): there -> absent"
    ),
    "Order of iptables rules": (
        r"ADD: firewall iptables-save: .*-j MASQUERADE \| .*-j ACCEPT"
        r" -> .*-j ACCEPT \| .*-j ACCEPT \| .*-j MASQUERADE"
    ),
    "DEL of two addresses": (
        r"DEL: exit status: 1 -> 0|DEL: reply.*: (999|absent|\"running .*) -> .*"
    ),
    "MTU of routes": r"ADD: c1 route .*\.metrics\[0\]\.(mtu|advmss): absent -> \d+",
    "CHECK of routes": r"CHECK: exit status: 1 -> 0",
    "CHECK of L2 networks": r"CHECK: exit status: 1 -> 0",
    "GATEWAY of static": r"ADD: reply\.ips\[0\]\.gateway: absent -> \S+|ADD: order of keys.*",
    "Chains of firewall": r"DEL: firewall ip6?tables-save: .* -> absent",
    "Sysctls after DEL": r"DEL: c1 sysctl net/ipv4/conf/eth0/forwarding: 0 -> 1",
    "Routes of ptp": r"ADD: c1 address eth0 \S+\.noprefixroute: absent -> true",
    "Start of ptp": (
        r"ADD: c1 sysctl net/ipv6/conf/eth0/accept_dad: 1 -> 0"
        r"|ADD: c1 sysctl net/ipv4/conf/eth0/arp_notify: 0 -> 1"
    ),
    "Qdiscs after DEL": r"DEL: host link host0 qdisc: (tbf -> noqueue|ingress -> .*)",
    "Length of the ifb's queue": r"ADD: host link bwp[0-9a-f]{12} txqlen: None -> 1000",
    "MAC of the ifb": r"ADD: host link bwp[0-9a-f]{12} addr_assign_type: 1 -> 3",
    "Start of host-device": (
        r"ADD: c1 sysctl net/ipv4/conf/eth0/arp_notify: 0 -> 1"
        r"|ADD: c1 sysctl net/ipv6/conf/eth0/accept_dad: -1 -> 1"
    ),
    "Device after DEL": r"DEL: host (link|address|route|sysctl) .*",
    "Lock of sbr": r"DEL: files in /run/pycni: absent -> there",
    "DEL of sbr": r"DEL: c1 (route|rule) .*",
    "Routes of the other family": r"ADD: c1 route \w+ \w+ dst \S+:\S+ table \d+ .* -> absent",
    "Default route of a table": r"ADD: c1 route \w+ \w+ dst default table \d+ .* -> absent",
    "Frames of tap": (r"ADD: c1 link eth0 info_data\.(vnet_hdr: false -> true|pi: true -> false)"),
    "MTU and MAC of tap": (
        r"ADD: c1 (link eth0|sysctl net/ipv6/conf/eth0/) ?mtu: 1500 -> 1400"
        r"|ADD: reply\.interfaces\[0\]\.mtu: .*"
    ),
    "Start of tap": (
        r"ADD: c1 sysctl net/ipv[46]/conf/eth0/(accept_dad|arp_notify|accept_ra): .*"
        r"|ADD: c1 (route|address) .*"
    ),
    "Layout of loopback's results": r"ADD: (reply\.|order of keys).*",
}


@dataclass(frozen=True)
class Case:
    """An ADD, and the headings of what may and must differ beyond EVERYWHERE."""

    config: Json
    differs: tuple[str, ...] = ()
    plugin: str = "bridge"
    args: str = ""
    prepare: str = ""  # shell commands for the node
    ifname: str = "eth0"

    @property
    def rules(self) -> dict[str, str]:
        """The parts that may differ, by heading."""
        newest = NEWEST_VERSION if self.config.get("cniVersion") == "1.1.0" else {}
        return EVERYWHERE | newest | {heading: SOMEWHERE[heading] for heading in self.differs}


def bridge(*subnets: str, version: str = "1.1.0", ipam: Json | None = None, **keys: Any) -> Json:
    """Return a bridge with host-local; without subnets and ipam keys, an L2 one."""
    config: Json = {"cniVersion": version, "name": "net1", "type": "bridge", "bridge": "br0"}
    if subnets or ipam:
        ranges = {"ranges": [[{"subnet": subnet}] for subnet in subnets]} if subnets else {}
        config["ipam"] = {"type": "host-local", **ranges, **(ipam or {})}
    return {**config, **keys}


def routed(*subnets: str, version: str = "1.1.0", **keys: Any) -> Json:
    """Return what most networks are: a gateway and default routes."""
    routes = [
        d for d in (DEFAULT4, DEFAULT6) if any((":" in d["dst"]) == (":" in s) for s in subnets)
    ]
    return bridge(*subnets, version=version, ipam={"routes": routes}, isGateway=True, **keys)


def static(*addresses: str, **keys: Any) -> Json:
    """Return a bridge with the reference's static as IPAM plugin."""
    listed = [{"address": address} for address in addresses]
    return bridge(ipam={"type": "static", "addresses": listed}, **keys)


STATIC: Json = {
    "cniVersion": "1.1.0",
    "name": "net1",
    "type": "bridge",
    "ipam": {
        "type": "static",
        "addresses": [
            {"address": "10.5.0.5/24", "gateway": "10.5.0.1"},
            {"address": "10.5.1.5/24"},
            {"address": "fd05::5/64", "gateway": "fd05::1"},
        ],
        "routes": [DEFAULT4, {"dst": "192.0.2.0/24", "gw": "10.5.0.9", "mtu": 1400, "table": 9}],
        "dns": {"nameservers": ["10.5.0.53"], "domain": "a", "search": [], "options": ["o"]},
    },
}


def ptp(*subnets: str, version: str = "1.1.0", routes: tuple[Json, ...] = (), **keys: Any) -> Json:
    """Return a point-to-point network with host-local, and default routes unless told others."""
    config = routed(*subnets, version=version, type="ptp", **keys)
    del config["bridge"], config["isGateway"]
    config["ipam"]["routes"] = list(routes) or config["ipam"]["routes"]
    return config


MASTER = "ip link add up0 type veth peer name ext0; ip link set up0 up; ip link set ext0 up"


def macvlan(*subnets: str, version: str = "1.1.0", **keys: Any) -> Json:
    """Return a macvlan on `up0` with host-local; without subnets, an L2 one."""
    config = routed(*subnets, version=version, type="macvlan", master="up0", **keys)
    if not subnets:
        del config["ipam"]
    del config["bridge"], config["isGateway"]
    return config


NIC = (
    f"ip link add nic0 address {MAC} type ifb; ip link set nic0 up mtu 1400;"
    " ip addr add 192.0.2.1/24 dev nic0; ip route add 198.51.100.0/24 via 192.0.2.9"
)


def host_device(*subnets: str, version: str = "1.1.0", **keys: Any) -> Json:
    """Return a host-device of `nic0` with host-local; without subnets, an L2 one."""
    config = routed(*subnets, version=version, type="host-device", device="nic0", **keys)
    if not subnets:
        del config["ipam"]
    del config["bridge"], config["isGateway"]
    return config


def tap(*subnets: str, version: str = "1.1.0", **keys: Any) -> Json:
    """Return a tap with host-local; without subnets, an L2 one."""
    config = routed(*subnets, version=version, type="tap", **keys)
    if not subnets:
        del config["ipam"]
    config |= {"bridge": keys.get("bridge", "")}
    del config["isGateway"]
    return config


ETH0 = "ip -n c1 link add eth0 type veth peer name peer0"


def tuning(version: str = "1.1.0", **keys: Any) -> Json:
    """Return tuning, behind a plugin that has made eth0."""
    layouts = {"0.1.0": 1, "0.2.0": 1, "0.3.0": 2, "0.3.1": 2, "0.4.0": 2}
    ip = {"address": "10.5.0.5/24"} | ({"version": "4"} if version in layouts else {})
    previous: Json = {"cniVersion": version, "dns": {}}
    if layouts.get(version) == 1:
        previous["ip4"] = {"ip": "10.5.0.5/24"}
    else:
        own = {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/c1"}
        previous |= {"interfaces": [own], "ips": [{**ip, "interface": 0}]}
    return {
        "cniVersion": version,
        "name": "net1",
        "type": "tuning",
        "prevResult": previous,
        **keys,
    }


ROUTED = (
    f"{ETH0}; ip -n c1 link set peer0 up; ip -n c1 addr add 10.5.0.5/24 dev eth0;"
    " ip -n c1 addr add fd00:5::5/64 dev eth0 nodad; ip -n c1 link set eth0 up;"
    " ip -n c1 route add default via 10.5.0.1 metric 7; ip -n c1 route add default via fd00:5::1;"
    " ip -n c1 route add 192.0.2.0/24 via 10.5.0.9 mtu 1300; ip -n c1 rule add table 100"
)


def sbr(version: str = "1.1.0", *more: Json, **keys: Any) -> Json:
    """Return sbr, behind a plugin that has made eth0 and has given it addresses."""
    config = {**tuning(version), "type": "sbr", **keys}
    config["prevResult"].get("ips", []).extend(more)
    return config


PAIR = "ip link add host0 mtu 1400 type veth peer name eth0 netns c1; ip link set host0 up"


def bandwidth(version: str = "1.1.0", **keys: Any) -> Json:
    """Return bandwidth, behind a plugin that has made a pair."""
    previous = tuning(version)["prevResult"]
    previous["interfaces"].append({"name": "host0"})
    return {
        "cniVersion": version,
        "name": "net1",
        "type": "bandwidth",
        "prevResult": previous,
        **keys,
    }


BR0 = "ip link add br0 type bridge; ip link set br0 up"


def firewall(version: str = "1.1.0", *addresses: str, **keys: Any) -> Json:
    """Return firewall with the iptables backend, behind a bridge plugin."""
    mark = {"version": "4"} if version == "0.4.0" else {}
    previous = {
        "cniVersion": version,
        "interfaces": [
            {"name": "br0", "mac": "02:00:00:00:00:01"},
            {"name": "veth0", "mac": "02:00:00:00:00:02"},
            {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/c1"},
        ],
        "ips": [{**mark, "interface": 2, "address": one} for one in addresses or ("10.5.0.5/24",)],
        "dns": {},
    }
    return {
        "cniVersion": version,
        "name": "net1",
        "type": "firewall",
        "backend": "iptables",
        "prevResult": previous,
        **keys,
    }


def with_routes(*routes: Json, **keys: Any) -> Json:
    """Return a gateway with these routes."""
    return bridge(NET4, NET6, ipam={"routes": list(routes)}, isGateway=True, **keys)


MTU_OF_TAP = ("Frames of tap", "MTU and MAC of tap")
TAP = ("Frames of tap", "Start of tap")
POINT = ("Routes of ptp", "Start of ptp")
SOURCED = ("Lock of sbr", "DEL of sbr", "Routes of the other family")
IFB = ("Length of the ifb's queue", "MAC of the ifb")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CASES = {
    **{f"ipv4-{v}": Case(routed(NET4, version=v)) for v in VERSIONS},
    **{f"ipv6-{v}": Case(routed(NET6, version=v)) for v in ("0.2.0", "0.4.0", "1.1.0")},
    **{f"dual-{v}": Case(routed(NET4, NET6, version=v)) for v in VERSIONS},
    "no-version": Case({k: v for k, v in routed(NET4).items() if k != "cniVersion"}),
    "no-gateway": Case(bridge(NET4, NET6)),
    "default-gateway": Case(bridge(NET4, NET6, isDefaultGateway=True)),
    "default-gateway-0.2.0": Case(bridge(NET4, version="0.2.0", isDefaultGateway=True)),
    "gateway-chosen": Case(
        bridge(
            ipam={"ranges": [[{"subnet": NET4, "gateway": "10.81.0.254"}]], "routes": [DEFAULT4]},
            isGateway=True,
        )
    ),
    "subnet-of-old-form": Case(
        bridge(ipam={"subnet": NET4, "rangeStart": "10.81.0.9", "rangeEnd": "10.81.0.19"})
    ),
    "route-with-gw": Case(
        with_routes(
            {"dst": "192.168.1.0/24", "gw": "10.81.0.7"}, {"dst": "fd99::/64", "gw": "fd00:81::7"}
        )
    ),
    "route-with-metric": Case(with_routes({"dst": "192.168.1.0/24", "priority": 77})),
    "route-with-table": Case(
        with_routes({"dst": "192.168.1.0/24", "table": 1000}), differs=("CHECK of routes",)
    ),
    "route-on-link": Case(
        with_routes({"dst": "192.168.1.0/24", "gw": "0.0.0.0", "scope": 253}),
        differs=("CHECK of routes",),
    ),
    "route-with-mtu": Case(
        with_routes({"dst": "192.168.1.0/24", "mtu": 1300, "advmss": 1200}),
        differs=("MTU of routes",),
    ),
    "dns": Case(
        bridge(
            NET4,
            dns={"nameservers": ["10.0.0.1"], "domain": "a.b", "search": ["x"], "options": ["y"]},
        )
    ),
    "resolv-conf": Case(
        bridge(NET4, ipam={"resolvConf": "/run/resolv.conf"}),
        prepare="printf 'nameserver 10.0.0.1\\nsearch a b\\n#c\\noptions d\\n' >/run/resolv.conf",
    ),
    "resolv-conf-0.4.0": Case(
        bridge(NET4, version="0.4.0", ipam={"resolvConf": "/run/resolv.conf"}),
        prepare="printf 'nameserver 10.0.0.1\\ndomain d\\n' >/run/resolv.conf",
    ),
    "dns-empty-list": Case(
        bridge(NET4, ipam={"resolvConf": "/run/resolv.conf"}, dns={"nameservers": []}),
        prepare="echo nameserver 10.0.0.1 >/run/resolv.conf",
    ),
    "mtu": Case(routed(NET4, mtu=1400)),
    "mac-by-capability": Case(
        routed(NET4, runtimeConfig={"mac": MAC}, args={"cni": {"mac": "02:00:00:00:81:02"}})
    ),
    "mac-by-args": Case(routed(NET4, args={"cni": {"mac": MAC}})),
    "mac-by-cni-args": Case(routed(NET4), args=f"IgnoreUnknown=1;MAC={MAC}"),
    "ip-by-cni-args": Case(routed(NET4), args="IgnoreUnknown=1;IP=10.81.0.99"),
    "ip-by-capability": Case(
        routed(NET4, NET6, runtimeConfig={"ips": ["10.81.0.9/24", "fd00:81::9"]})
    ),
    "ip-by-args": Case(routed(NET4, args={"cni": {"ips": ["10.81.0.9"]}})),
    "ranges-by-capability": Case(routed(NET6, runtimeConfig={"ipRanges": [[{"subnet": NET4}]]})),
    "hairpin": Case(routed(NET4, hairpinMode=True)),
    "promiscuous": Case(routed(NET4, promiscMode=True)),
    "port-isolation": Case(routed(NET4, portIsolation=True)),
    "dad": Case(routed(NET6, enabledad=True)),
    "spoof-check": Case(
        routed(NET4, macspoofchk=True),
        differs=("Layout of the MAC filter", "Unused tables"),
    ),
    "masquerade": Case(routed(NET4, NET6, ipMasq=True), ("Default backend",)),
    "masquerade-iptables": Case(routed(NET4, NET6, ipMasq=True, ipMasqBackend="iptables")),
    "masquerade-nftables": Case(
        routed(NET4, NET6, ipMasq=True, ipMasqBackend="nftables"),
        differs=("Layout of masquerading", "Unused tables"),
    ),
    "masquerade-iptables-two": Case(
        bridge(NET4, "10.82.0.0/24", ipMasq=True, ipMasqBackend="iptables"),
        differs=("Order of iptables rules", "DEL of two addresses"),
    ),
    "pool-of-two-ranges": Case(
        bridge(
            ipam={
                "ranges": [[{"subnet": NET4, "rangeEnd": "10.81.0.2"}, {"subnet": "10.82.0.0/24"}]]
            }
        )
    ),
    "two-subnets": Case(bridge(NET4, "10.82.0.0/24", NET6)),
    "two-ipv6-gateways": Case(routed(NET6, "fd00:82::/64")),
    "subnets-of-four": Case(bridge("10.81.0.0/30", "fd00:81::/126", isGateway=True)),
    "default-route-in-a-table": Case(
        bridge(
            NET4,
            ipam={"routes": [{"dst": "0.0.0.0/0", "gw": "10.81.0.1", "table": 100}]},
            isDefaultGateway=True,
        ),
        ("CHECK of routes",),
    ),
    "default-route-in-a-table-without-gateway": Case(
        bridge(NET4, ipam={"routes": [{"dst": "0.0.0.0/0", "table": 100}]}, isDefaultGateway=True),
    ),
    "routes-to-hosts": Case(with_routes({"dst": "192.0.2.9/32"}, {"dst": "fd99::1/128"})),
    "route-in-mapped-notation": Case(with_routes({"dst": "::ffff:192.0.2.0/120"})),
    "zeros": Case(
        with_routes({"dst": "192.0.2.9/32", "mtu": 0, "priority": 0, "table": 0}, mtu=0, vlan=0)
    ),
    "nulls": Case(bridge(NET4, mtu=None, ipMasqBackend=None, args=None, runtimeConfig=None)),
    "mac-in-another-notation": Case(bridge(NET4, runtimeConfig={"mac": "02AA.BBCC.DD0F"})),
    "markup-in-strings": Case(bridge(NET4, dns={"domain": "<&>\u2028\u00e9"})),
    "unknown-keys": Case(bridge(NET4, capabilities={"x": True}, someKey={"list": [1.5, None]})),
    "static": Case(static("10.5.0.5/24", "fd05::5/64", isDefaultGateway=True)),
    "static-of-one-address": Case(
        static("10.5.0.5/32", "fd05::5/128", isGateway=True), ("CHECK of routes",)
    ),
    **{
        f"static-{v}": Case(
            static("10.5.0.5/24", "fd05::5/64", version=v), plugin="static", args="IP=;GATEWAY="
        )
        for v in VERSIONS
    },
    "static-all-keys": Case(STATIC, plugin="static"),
    "static-cni-args": Case(
        STATIC, plugin="static", args="IP=10.6.0.6/24, fd06::6/64;GATEWAY=10.6.0.1,fd06::1"
    ),
    "static-gateway-of-configured": Case(
        static("10.5.0.5/24"), ("GATEWAY of static",), plugin="static", args="GATEWAY=10.5.0.1"
    ),
    "static-args": Case(
        {**STATIC, "args": {"cni": {"ips": ["10.7.0.7/24"]}}},
        plugin="static",
        args="IP=10.6.0.6/24",
    ),
    "static-runtime": Case(
        {
            **STATIC,
            "args": {"cni": {"ips": ["10.7.0.7/24"]}},
            "runtimeConfig": {"ips": ["10.8.0.8/24", "fd08::8/64"]},
        },
        plugin="static",
    ),
    "static-nothing": Case(static(), plugin="static"),
    **{f"ptp-ipv4-{v}": Case(ptp(NET4, version=v), POINT, plugin="ptp") for v in VERSIONS},
    **{f"ptp-dual-{v}": Case(ptp(NET4, NET6, version=v), POINT, plugin="ptp") for v in VERSIONS},
    "ptp-ipv6": Case(ptp(NET6), POINT, plugin="ptp"),
    "ptp-mtu-dns": Case(
        ptp(NET4, mtu=1400, dns={"nameservers": ["10.0.0.1"]}), POINT, plugin="ptp"
    ),
    "ptp-route-with-gw": Case(
        ptp(NET4, routes=({"dst": "192.168.1.0/24", "gw": "10.81.0.1", "priority": 7},)),
        POINT,
        plugin="ptp",
    ),
    "ptp-masquerade": Case(
        ptp(NET4, NET6, ipMasq=True, ipMasqBackend="nftables"),
        (*POINT, "Layout of masquerading", "Unused tables"),
        plugin="ptp",
    ),
    "ptp-masquerade-iptables": Case(
        ptp(NET4, NET6, ipMasq=True, ipMasqBackend="iptables"), POINT, plugin="ptp"
    ),
    "ptp-masquerade-by-default": Case(
        ptp(NET4, ipMasq=True), (*POINT, "Default backend"), plugin="ptp"
    ),
    "ptp-static": Case(
        {
            "cniVersion": "1.0.0",
            "name": "net1",
            "type": "ptp",
            "ipam": {
                "type": "static",
                "addresses": [{"address": "10.5.0.5/24", "gateway": "10.5.0.1"}],
            },
        },
        POINT,
        plugin="ptp",
    ),
    **{
        f"macvlan-{name}": Case(
            config, differs, plugin="macvlan", args=args, prepare=f"{MASTER}; {prepare}true"
        )
        for name, config, differs, args, prepare in (
            *((f"ipv4-{v}", macvlan(NET4, version=v), (), "", "") for v in VERSIONS),
            *((f"dual-{v}", macvlan(NET4, NET6, version=v), (), "", "") for v in VERSIONS),
            *((m, macvlan(NET4, mode=m), (), "", "") for m in ("private", "vepa", "passthru", "")),
            ("mtu-dns", macvlan(NET4, mtu=1400, dns={"nameservers": ["10.0.0.1"]}), (), "", ""),
            ("queue", macvlan(NET4, bcqueuelen=3000), (), "", ""),
            ("layer2", macvlan(), (), "", ""),
            ("mac", macvlan(NET4, mac=MAC), (), "", ""),
            ("mac-by-cni-args", macvlan(NET4, mac=OTHER_MAC), (), f"IgnoreUnknown=1;MAC={MAC}", ""),
            (
                "mac-by-capability",
                macvlan(NET4, mac=OTHER_MAC, runtimeConfig={"mac": MAC}),
                (),
                "",
                "",
            ),
            (
                "by-default-route",
                macvlan(NET4) | {"master": ""},
                (),
                "",
                "ip address add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.2;",
            ),
            (
                "in-container",
                macvlan(NET4, linkInContainer=True),
                (),
                "",
                "ip link set up0 netns c1; ip -n c1 link set up0 up;",
            ),
        )
    },
    **{
        f"host-device-{name}": Case(
            config,
            ("Device after DEL", *(["Start of host-device"] if "ipam" in config else [])),
            plugin="host-device",
            prepare=NIC,
        )
        for name, config in (
            *((f"dual-{v}", host_device(NET4, NET6, version=v)) for v in VERSIONS),
            ("layer2", host_device()),
            ("by-mac", host_device(NET4, hwaddr=MAC) | {"device": ""}),
        )
    },
    **{
        f"tap-{name}": Case(config, differs, plugin="tap", args=args, prepare=prepare)
        for name, config, differs, args, prepare in (
            *((f"dual-{v}", tap(NET4, NET6, version=v), TAP, "", "") for v in VERSIONS),
            ("layer2", tap(), TAP[:1], "", ""),
            ("owned", tap(owner=5, group=6, multiQueue=True), (), "", ""),
            ("owner", tap(owner=5, mtu=1400, mac=MAC), TAP[:1], "", ""),
            ("mtu-of-owner", tap(owner=5, group=6, mtu=1400), MTU_OF_TAP, "", ""),
            ("mac-by-args", tap(mac=OTHER_MAC), TAP[:1], f"IgnoreUnknown=1;MAC={MAC}", ""),
            (
                "bridge",
                tap(bridge="br9"),
                TAP[:1],
                "",
                "ip -n c1 link add br9 type bridge; ip -n c1 link set br9 up",
            ),
        )
    },
    **{
        f"tuning-{v}": Case(tuning(v, mac=MAC, mtu=1400), (), plugin="tuning", prepare=ETH0)
        for v in VERSIONS
    },
    "tuning-all-keys": Case(
        tuning(promisc=True, allmulti=True, txQLen=77, sysctl={"net.core.somaxconn": "77"}),
        plugin="tuning",
        prepare=ETH0,
    ),
    "tuning-sysctl": Case(
        tuning(sysctl={"net.ipv4.conf.IFNAME.forwarding": "0"}),
        ("Sysctls after DEL",),
        plugin="tuning",
        prepare=f"{ETH0}; ip netns exec c1 sysctl -qw net.ipv4.conf.eth0.forwarding=1",
    ),
    "tuning-args": Case(
        tuning(mac=MAC, mtu=1400, args={"cni": {"mac": "02:00:00:00:81:02", "mtu": 1300}}),
        plugin="tuning",
        prepare=ETH0,
        args="MAC=02:00:00:00:81:03",
    ),
    **{f"sbr-{v}": Case(sbr(v), SOURCED, plugin="sbr", prepare=ROUTED) for v in VERSIONS},
    "sbr-dual": Case(
        sbr(
            "1.1.0",
            {"interface": 0, "address": "fd00:5::5/64", "gateway": "fd00:5::1"},
            {"address": "10.5.0.6/24", "gateway": "10.5.0.1"},
        ),
        (*SOURCED, "Default route of a table"),
        plugin="sbr",
        prepare=ROUTED,
    ),
    "sbr-table": Case(sbr(table=300), ("Lock of sbr",), plugin="sbr", prepare=ROUTED),
    "tuning-nothing": Case(tuning("0.4.0"), plugin="tuning", prepare=ETH0),
    **{
        f"bandwidth-{v}": Case(
            bandwidth(
                v, ingressRate=10**7, ingressBurst=10**6, egressRate=10**7, egressBurst=10**6
            ),
            ("Qdiscs after DEL", *IFB),
            plugin="bandwidth",
            prepare=PAIR,
        )
        for v in VERSIONS
        if v >= "0.3.0"
    },
    "bandwidth-ingress": Case(
        bandwidth("1.0.0", ingressRate=10**7, ingressBurst=10**6),
        ("Qdiscs after DEL",),
        plugin="bandwidth",
        prepare=PAIR,
    ),
    "bandwidth-by-runtime": Case(
        bandwidth(runtimeConfig={"bandwidth": {"EgressRate": 10**7, "EgressBurst": 10**6}}),
        IFB,
        plugin="bandwidth",
        prepare=PAIR,
    ),
    "bandwidth-nothing": Case(bandwidth(), plugin="bandwidth", prepare=PAIR),
    **{
        f"firewall-{v}": Case(firewall(v), ("Chains of firewall",), plugin="firewall")
        for v in VERSIONS
        if v >= "0.4.0"
    },
    "firewall-dual": Case(
        firewall("1.0.0", "10.5.0.5/24", "fd00:5::5/64"),
        ("Chains of firewall",),
        plugin="firewall",
    ),
    "firewall-admin-chain": Case(
        firewall(iptablesAdminChainName="MINE-CNI-CHAIN"),
        ("Chains of firewall",),
        plugin="firewall",
    ),
    **{
        f"firewall-{policy}": Case(
            firewall("1.0.0", "10.5.0.5/24", "fd00:5::5/64", "10.5.0.6/24", ingressPolicy=policy),
            ("Chains of firewall",),
            plugin="firewall",
            prepare=BR0,
        )
        for policy in ("open", "same-bridge", "isolated")
    },
    "firewall-beside-docker": Case(
        firewall(),
        ("Chains of firewall",),
        plugin="firewall",
        prepare="iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER;"
        " iptables -P FORWARD DROP",
    ),
    "layer2": Case(bridge(), differs=("CHECK of L2 networks",)),
    "layer2-0.4.0": Case(bridge(version="0.4.0"), differs=("CHECK of L2 networks",)),
    "layer2-mtu": Case(bridge(mtu=1300), differs=("CHECK of L2 networks",)),
    "layer2-down": Case(bridge(disableContainerInterface=True), differs=("CHECK of L2 networks",)),
    "bridge-exists": Case(
        routed(NET4, mtu=1400), prepare="ip link add br0 type bridge; ip link set br0 up"
    ),
    "address-in-the-way": Case(
        routed(NET4, forceAddress=True),
        prepare="ip link add br0 type bridge; ip link set br0 up; ip addr add 10.83.0.1/24 dev br0",
    ),
    "keys-in-any-case": Case(
        {
            "cniVersion": "1.0.0",
            "Name": "net1",
            "BRIDGE": "br0",
            "isgateway": True,
            "IPAM": {"Type": "host-local", "SUBNET": NET4},
        }
    ),
    "prev-result-is-ignored": Case(
        routed(NET4, prevResult={"cniVersion": "1.1.0", "ips": [{"address": "10.1.1.1/24"}]})
    ),
    **{
        f"host-local-{v}": Case(
            bridge(NET4, NET6, version=v, ipam={"routes": [DEFAULT4, DEFAULT6]}),
            plugin="host-local",
        )
        for v in VERSIONS
    },
    "host-local-route-keys": Case(
        bridge(
            NET4,
            ipam={
                "routes": [
                    {
                        "dst": "10.0.0.0/8",
                        "gw": "10.81.0.9",
                        "mtu": 1,
                        "advmss": 2,
                        "priority": 3,
                        "table": 4,
                        "scope": 0,
                    }
                ]
            },
        ),
        plugin="host-local",
    ),
    **{
        f"loopback-{v}": Case(
            {"cniVersion": v, "name": "lo", "type": "loopback"},
            ("Layout of loopback's results",) if v < "1.0.0" else (),
            plugin="loopback",
            ifname="lo",
        )
        for v in VERSIONS
    },
    "loopback-chained": Case(
        {
            "cniVersion": "0.4.0",
            "name": "lo",
            "type": "loopback",
            "prevResult": {
                "cniVersion": "0.4.0",
                "ips": [{"version": "4", "address": "10.1.1.1/24"}],
                "dns": {},
            },
        },
        plugin="loopback",
        ifname="eth0",
    ),
}
