"""cni_common/spec/result.py: names, addresses, versions, and results in every layout."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import parse_mac
from cni_common.spec.names import (
    SUPPORTED_VERSIONS,
    Address,
    check_identifier,
    check_ifname,
    parse_address,
    parse_cidr,
    version_tuple,
)
from cni_common.spec.request import check_same_family
from cni_common.spec.result import Interface, IPConfig, Result, Route
from tests.machine import Json

OLD = ("0.1.0", "0.2.0")
MIDDLE = ("0.3.0", "0.3.1", "0.4.0")
NEW = ("1.0.0", "1.1.0")


@pytest.mark.parametrize("value", ["a", "Z", "0", "a_.-Z9", "1-", "a" * 5000])
def test_identifier(value: str) -> None:
    """An ASCII letter or digit, then any number of letters, digits and `_.-`."""
    check_identifier(value, "CNI_CONTAINERID", Code.INVALID_ENVIRONMENT)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "_a",
        ".a",
        "-a",
        "a\n",
        "a b",
        "a/b",
        "../a",
        "a:b",
        "ä",
        "aä",
        "\u0661",
        "a\udcff",
        "a\0",
    ],
    ids=ascii,
)
def test_bad_identifier(value: str) -> None:
    """Anything else has the given code, and the value in the details."""
    with pytest.raises(CNIError) as caught:
        check_identifier(value, "network name", Code.INVALID_CONFIG)

    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.msg.startswith("invalid network name: ")
    assert caught.value.details == f"network name: {value}"


@pytest.mark.parametrize(
    "value",
    [
        *("e", "eth0", "a" * 15, "ä" * 7, "...", "-x", "All", "a\x1cb", "a\x1fb", "\x7f", "a,b"),
        *("\u200b", "\ufeff", "\u180e", "\U0001f600" * 3),
    ],
    ids=ascii,
)
def test_ifname(value: str) -> None:
    """Up to 15 bytes of anything that is neither forbidden nor white space to Go."""
    check_ifname(value, "CNI_IFNAME", Code.INVALID_ENVIRONMENT)


@pytest.mark.parametrize(
    "value",
    [
        *("", ".", "..", "a/b", "/", "a:b", ":", " ", "a b", "a\t", "a\n", "a\x0b", "a\x0c", "a\r"),
        *("\x85", "\u00a0", "\u1680", "\u2000", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f"),
        *("\u3000", "a" * 16, "ä" * 8, "\udcff", "a\udc85", "%d", "br%d", "a%", "all", "default"),
    ],
    ids=ascii,
)
def test_bad_ifname(value: str) -> None:
    """Values that the kernel, Go or JSON cannot take have the given code and name the object."""
    with pytest.raises(CNIError) as caught:
        check_ifname(value, '"bridge"', Code.INVALID_CONFIG)

    assert caught.value.code == Code.INVALID_CONFIG
    assert '"bridge"' in caught.value.msg


def test_long_ifname_has_details() -> None:
    """A name that is too long is quoted in the details."""
    with pytest.raises(CNIError) as caught:
        check_ifname("a" * 16, "CNI_IFNAME", Code.INVALID_ENVIRONMENT)

    assert caught.value.msg == "CNI_IFNAME is too long"
    assert caught.value.details == "'aaaaaaaaaaaaaaaa' has more than 15 bytes"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("fd00::1", "fd00::1"),
        ("FD00:0:0::1", "fd00::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("64:ff9b::10.0.0.1", "64:ff9b::a00:1"),
    ],
)
def test_address(text: str, expected: str) -> None:
    """An address is read as Go reads it: IPv4 in the notation of IPv6 is IPv4."""
    assert parse_address(text) == ip_address(expected)


@pytest.mark.parametrize(
    "text",
    [
        *("", "10.0.0", "10.0.0.01", "10.0.0.256", "10.0.0.1/24", " 10.0.0.1", "10.0.0.1\n"),
        *("fe80::1%eth0", "1::2::3", "host", "\u0661.0.0.1", "0x0a.0.0.1"),
    ],
    ids=ascii,
)
def test_bad_address(text: str) -> None:
    """Leading zeros, zones and everything that is no address are refused."""
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.2/24", "10.0.0.2/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.0.0.2/32", "10.0.0.2/32"),
        ("fd00::2/64", "fd00::2/64"),
        ("::ffff:10.0.0.2/120", "10.0.0.2/24"),
        ("::ffff:10.0.0.2/96", "10.0.0.2/0"),
    ],
)
def test_cidr(text: str, expected: str) -> None:
    """The host bits stay, and IPv4 in the notation of IPv6 becomes IPv4."""
    assert parse_cidr(text) == ip_interface(expected)


@pytest.mark.parametrize(
    "text",
    [
        *("", "10.0.0.2", "10.0.0.2/", "/24", "10.0.0.2/255.255.255.0", "10.0.0.2/33"),
        *("fd00::2/129", "10.0.0.2/-1", "10.0.0.2/+1", "10.0.0.2/24/1", "10.0.0.2/\u0661"),
        *("fe80::1%eth0/64", "::ffff:10.0.0.2/95", "10.0.0.2/ 24", "10.0.0.2/" + "9" * 5000),
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_bad_cidr(text: str) -> None:
    """Only a prefix length in digits will do."""
    with pytest.raises(ValueError, match=r"."):
        parse_cidr(text)


@pytest.mark.parametrize(
    "text",
    ["02:ab:cd:EF:00:01", "02-ab-cd-ef-00-01", "02ab.cdef.0001", "02AB.CDEF.0001"],
)
def test_mac(text: str) -> None:
    """All notations of Go give the one of the kernel."""
    assert parse_mac(text) == "02:ab:cd:ef:00:01"


@pytest.mark.parametrize(
    "text",
    [
        *("", "02:ab:cd:ef:00", "02:ab:cd:ef:00:01:02", "02ab:cdef:0001", "02.ab.cd.ef.00.01"),
        *("02:ab-cd:ef-00:01", "021:1:22:33:44:55", "02:ab:cd:ef:00:0g", "02abcdef0001"),
        *("02:ab:cd:ef:00: 1", "02:ab:cd:ef:00:+1", "\u0660\u0662:00:00:00:00:01"),
        *("2:0:0:0:0:01", "02:00:5e:10:00:00:00:01", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"),
        "00:00:00:00:00:00",
    ],
    ids=ascii,
)
def test_bad_mac(text: str) -> None:
    """Other shapes, and what no interface can have, are refused."""
    with pytest.raises(ValueError, match=r"^'.*', (not|which)"):
        parse_mac(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 1, 0)),
        ("1", (1, 0, 0)),
        ("1.2", (1, 2, 0)),
        ("1.2.3", (1, 2, 3)),
        ("01.002.10", (1, 2, 10)),
        ("999999999.0.0", (999999999, 0, 0)),
    ],
)
def test_version(text: str, expected: tuple[int, int, int]) -> None:
    """Missing numbers are 0, a missing version is the oldest."""
    assert version_tuple(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("v1.0.0", "1.0.0.0", "1..0", "1.", ".", "1.0.0-rc1", "1.0.0 ", "-1.0.0", "+1.0.0"),
        *("x", "\u0661", "9" * 5000),
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_bad_version(text: str) -> None:
    """A version that is not up to three numbers has code 6."""
    with pytest.raises(CNIError) as caught:
        version_tuple(text)

    assert caught.value.code == Code.DECODING_FAILURE


# --- results ---


def example() -> Result:
    """Return a result that has everything."""
    return Result(
        [
            Interface("br0", "02:00:00:00:00:01", 1500),
            Interface("eth0", "02:00:00:00:00:02", 1400, "/run/netns/a", "/run/s", "0000:00:1f.6"),
        ],
        [
            IPConfig(ip_interface("10.9.0.2/24"), ip_address("10.9.0.1"), 1),
            IPConfig(ip_interface("10.9.1.2/24"), None, 1),
            IPConfig(ip_interface("fd00::2/64"), ip_address("fd00::1"), 1),
            IPConfig(ip_interface("fd01::2/64")),
        ],
        [
            Route(ip_network("0.0.0.0/0"), ip_address("10.9.0.1"), 1400, 1360, 7, 100, 0),
            Route(ip_network("fd02::/64"), ip_address("fd00::1")),
            Route(ip_network("192.168.0.0/16")),
        ],
        {
            "nameservers": ["10.9.0.1"],
            "domain": "a.example",
            "search": ["b.example"],
            "options": ["ndots:1"],
        },
    )


DNS = {
    "nameservers": ["10.9.0.1"],
    "domain": "a.example",
    "search": ["b.example"],
    "options": ["ndots:1"],
}
ROUTES = [
    {
        "dst": "0.0.0.0/0",
        "gw": "10.9.0.1",
        "mtu": 1400,
        "advmss": 1360,
        "priority": 7,
        "table": 100,
        "scope": 0,
    },
    {"dst": "fd02::/64", "gw": "fd00::1"},
    {"dst": "192.168.0.0/16"},
]
IN_OLD: Json = {
    "ip4": {
        "ip": "10.9.0.2/24",
        "gateway": "10.9.0.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}, {"dst": "192.168.0.0/16"}],
    },
    "ip6": {
        "ip": "fd00::2/64",
        "gateway": "fd00::1",
        "routes": [{"dst": "fd02::/64", "gw": "fd00::1"}],
    },
    "dns": DNS,
}
IN_MIDDLE: Json = {
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
    ],
    "ips": [
        {"version": "4", "interface": 1, "address": "10.9.0.2/24", "gateway": "10.9.0.1"},
        {"version": "4", "interface": 1, "address": "10.9.1.2/24"},
        {"version": "6", "interface": 1, "address": "fd00::2/64", "gateway": "fd00::1"},
        {"version": "6", "address": "fd01::2/64"},
    ],
    "routes": ROUTES,
    "dns": DNS,
}
IN_100: Json = {
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:02",
            "sandbox": "/run/netns/a",
            "socketPath": "/run/s",
            "pciID": "0000:00:1f.6",
        },
    ],
    "ips": [{k: v for k, v in ip.items() if k != "version"} for ip in IN_MIDDLE["ips"]],
    "routes": ROUTES,
    "dns": DNS,
}
IN_110: Json = {
    **IN_100,
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01", "mtu": 1500},
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:02",
            "mtu": 1400,
            "sandbox": "/run/netns/a",
            "socketPath": "/run/s",
            "pciID": "0000:00:1f.6",
        },
    ],
}
LAYOUTS: dict[str, Json] = {
    **dict.fromkeys(OLD, IN_OLD),
    **dict.fromkeys(MIDDLE, IN_MIDDLE),
    "1.0.0": IN_100,
    "1.1.0": IN_110,
}


def encoded(result: Result, version: str) -> str:
    """Return `result` as it is printed."""
    return json.dumps(result.to_json(version))


def relabelled(layout: Json, version: str) -> Json:
    """Return a layout with its version in front."""
    return {"cniVersion": version, **layout}


class TestPrinting:
    """Result.to_json()."""

    @pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
    def test_everything(self, version: str) -> None:
        """Every layout shows what it can, the keys in the order of the reference."""
        assert encoded(example(), version) == json.dumps(relabelled(LAYOUTS[version], version))

    @pytest.mark.parametrize("version", MIDDLE)
    def test_empty_in_the_middle(self, version: str) -> None:
        """From 0.3.0 empty lists are left out, and dns stays."""
        assert Result().to_json(version) == {"cniVersion": version, "dns": {}}

    @pytest.mark.parametrize("version", NEW)
    def test_empty(self, version: str) -> None:
        """From 1.0.0 an empty dns is left out as well."""
        assert Result().to_json(version) == {"cniVersion": version}

    @pytest.mark.parametrize("version", OLD)
    @pytest.mark.parametrize(
        "result", [Result(), Result([Interface("eth0")], routes=example().routes, dns=DNS)]
    )
    def test_no_address(self, version: str, result: Result) -> None:
        """Before 0.3.0 a result without address cannot be told: code 1."""
        with pytest.raises(CNIError, match=r"^cannot convert: no valid IP addresses") as caught:
            result.to_json(version)

        assert caught.value.code == Code.INCOMPATIBLE_VERSION

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("10.0.0.2/24", {"ip4": {"ip": "10.0.0.2/24", "routes": [{"dst": "0.0.0.0/0"}]}}),
            ("fd00::2/64", {"ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0"}]}}),
        ],
    )
    def test_one_family(self, address: str, expected: Json) -> None:
        """Before 0.3.0 the routes of a family without address are left out."""
        routes = [Route(ip_network("0.0.0.0/0")), Route(ip_network("::/0"))]

        result = Result(ips=[IPConfig(ip_interface(address))], routes=routes)

        assert result.to_json("0.2.0") == {"cniVersion": "0.2.0", **expected, "dns": {}}

    def test_zero_values(self) -> None:
        """table and scope are told though 0, and interface though it is the first."""
        result = Result(
            [Interface("")],
            [IPConfig(ip_interface("10.0.0.2/24"), interface=0)],
            [Route(ip_network("10.0.0.0/8"), table=0, scope=0)],
        )

        assert result.to_json("1.1.0") == {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": ""}],
            "ips": [{"interface": 0, "address": "10.0.0.2/24"}],
            "routes": [{"dst": "10.0.0.0/8", "table": 0, "scope": 0}],
        }

    def test_dns_keys(self) -> None:
        """Of dns only the four keys of the specification are printed, in their order."""
        result = Result(dns={"options": ["a"], "x": 1e999, "search": [], "domain": "d"})

        assert json.dumps(result.to_json("1.0.0")["dns"]) == '{"domain": "d", "options": ["a"]}'
        assert "dns" not in Result(dns={"x": 1, "domain": ""}).to_json("1.0.0")

    def test_golden_output(self) -> None:
        """The bytes of a bridge's reply are those of the reference plugins."""
        result = Result(
            [
                Interface("br0", "4a:07:9f:b5:29:be"),
                Interface("veth0530cb23", "42:f0:8d:f5:4f:4f"),
                Interface("eth0", "4e:ff:8b:e5:0d:9a", sandbox="/proc/212/ns/net"),
            ],
            [IPConfig(ip_interface("10.9.0.2/24"), ip_address("10.9.0.1"), 2)],
            [Route(ip_network("0.0.0.0/0"))],
        )

        assert wire.encode(result.to_json("1.1.0"), sort_keys=True).decode() == GOLDEN_110
        assert wire.encode(result.to_json("0.4.0"), sort_keys=False).decode() == GOLDEN_040
        assert wire.encode(result.to_json("0.2.0"), sort_keys=False).decode() == GOLDEN_020


GOLDEN_110 = """{
    "cniVersion": "1.1.0",
    "interfaces": [
        {
            "mac": "4a:07:9f:b5:29:be",
            "name": "br0"
        },
        {
            "mac": "42:f0:8d:f5:4f:4f",
            "name": "veth0530cb23"
        },
        {
            "mac": "4e:ff:8b:e5:0d:9a",
            "name": "eth0",
            "sandbox": "/proc/212/ns/net"
        }
    ],
    "ips": [
        {
            "address": "10.9.0.2/24",
            "gateway": "10.9.0.1",
            "interface": 2
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0"
        }
    ]
}"""
GOLDEN_040 = """{
    "cniVersion": "0.4.0",
    "interfaces": [
        {
            "name": "br0",
            "mac": "4a:07:9f:b5:29:be"
        },
        {
            "name": "veth0530cb23",
            "mac": "42:f0:8d:f5:4f:4f"
        },
        {
            "name": "eth0",
            "mac": "4e:ff:8b:e5:0d:9a",
            "sandbox": "/proc/212/ns/net"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 2,
            "address": "10.9.0.2/24",
            "gateway": "10.9.0.1"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0"
        }
    ],
    "dns": {}
}"""
GOLDEN_020 = """{
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "10.9.0.2/24",
        "gateway": "10.9.0.1",
        "routes": [
            {
                "dst": "0.0.0.0/0"
            }
        ]
    },
    "dns": {}
}"""


class TestParsing:
    """Result.parse()."""

    @pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
    def test_everything(self, version: str) -> None:
        """The content of a layout is read back from it."""
        layout = relabelled(LAYOUTS[version], version)

        assert Result.parse(layout).to_json(version) == layout

    @pytest.mark.parametrize(
        ("source", "target", "expected"),
        [
            ("0.1.0", "0.2.0", IN_OLD),
            (
                "0.2.0",
                "0.4.0",
                {
                    "ips": [
                        {"version": "4", "address": "10.9.0.2/24", "gateway": "10.9.0.1"},
                        {"version": "6", "address": "fd00::2/64", "gateway": "fd00::1"},
                    ],
                    "routes": [*IN_OLD["ip4"]["routes"], *IN_OLD["ip6"]["routes"]],
                    "dns": DNS,
                },
            ),
            (
                "0.2.0",
                "1.1.0",
                {
                    "ips": [
                        {"address": "10.9.0.2/24", "gateway": "10.9.0.1"},
                        {"address": "fd00::2/64", "gateway": "fd00::1"},
                    ],
                    "routes": [*IN_OLD["ip4"]["routes"], *IN_OLD["ip6"]["routes"]],
                    "dns": DNS,
                },
            ),
            ("0.3.1", "0.1.0", IN_OLD),
            ("0.3.0", "0.4.0", IN_MIDDLE),
            (
                "0.4.0",
                "1.0.0",
                {**IN_100, "interfaces": IN_MIDDLE["interfaces"]},
            ),
            ("1.1.0", "0.2.0", IN_OLD),
            ("1.1.0", "0.3.1", IN_MIDDLE),
            ("1.0.0", "1.1.0", IN_100),
            ("1.1.0", "1.0.0", IN_100),
        ],
    )
    def test_conversion(self, source: str, target: str, expected: Json) -> None:
        """From one layout to another that is kept which both can express."""
        result = Result.parse(relabelled(LAYOUTS[source], source))

        assert result.to_json(target) == relabelled(expected, target)

    @pytest.mark.parametrize("data", [{}, {"cniVersion": ""}, {"cniVersion": None}])
    def test_default_version(self, data: Json) -> None:
        """Without a version of its own a result has the layout that the caller says."""
        ip4 = {"ip4": {"ip": "10.0.0.2/24"}}

        assert Result.parse({**data, **ip4}, "0.2.0").ips
        assert not Result.parse({**data, **ip4}, "1.0.0").ips
        assert Result.parse({**data, "ips": [{"address": "10.0.0.2/24"}]}).ips

    @pytest.mark.parametrize("version", ["0.5.0", "1.2.0", "1.0", "x", 1, ["1.0.0"], True])
    def test_unknown_version(self, version: object) -> None:
        """A version that is not supported is code 1."""
        with pytest.raises(CNIError) as caught:
            Result.parse({"cniVersion": version})

        assert caught.value.code == Code.INCOMPATIBLE_VERSION

    def test_case_null_and_unknown_keys(self) -> None:
        """Keys match without case at every level, null is absent, unknown keys are dropped."""
        data = {
            "CNIVERSION": "1.0.0",
            "Interfaces": [{"Name": "eth0", "MAC": None, "PCIID": "p", "x": 1}],
            "IPS": [{"ADDRESS": "10.0.0.2/24", "gateway": None, "Interface": 0}],
            "Routes": [{"Dst": "10.0.0.0/8", "MTU": None, "x": 1}],
            "Dns": {"Domain": "d", "search": None, "x": 1},
            "x": {"y": 1},
        }

        assert Result.parse(data) == Result(
            [Interface("eth0", pci_id="p")],
            [IPConfig(ip_interface("10.0.0.2/24"), None, 0)],
            [Route(ip_network("10.0.0.0/8"))],
            {"domain": "d"},
        )

    def test_case_in_the_oldest_layout(self) -> None:
        """Keys match without case in ip4 and ip6 as well."""
        data = {"IP4": {"IP": "10.0.0.2/24", "Routes": [{"DST": "0.0.0.0/0"}]}, "ip6": None}

        assert Result.parse(data, "0.1.0") == Result(
            ips=[IPConfig(ip_interface("10.0.0.2/24"))], routes=[Route(ip_network("0.0.0.0/0"))]
        )

    def test_zero_values(self) -> None:
        """Zero means not set for mtu, advmss and priority, and is a value for table and scope."""
        route = {"dst": "10.0.0.7/8", "gw": "", "mtu": 0, "advmss": 0, "priority": 0}

        result = Result.parse({"routes": [{**route, "table": 0, "scope": 0}]})

        assert result.routes == [Route(ip_network("10.0.0.0/8"), table=0, scope=0)]

    def test_mapped_addresses(self) -> None:
        """IPv4 in the notation of IPv6 is IPv4."""
        result = Result.parse(
            {"ips": [{"address": "::ffff:10.0.0.2/120", "gateway": "::ffff:10.0.0.1"}]}
        )

        assert result.ips == [IPConfig(ip_interface("10.0.0.2/24"), IPv4Address("10.0.0.1"))]

    @pytest.mark.parametrize(
        ("data", "place"),
        [
            ({"interfaces": {}}, "interfaces: an object where an array is due"),
            ({"ips": "x"}, "ips: a string"),
            ({"routes": 1}, "routes: an integer"),
            ({"dns": []}, "dns: an array"),
            ({"interfaces": [None]}, "interfaces[0]: null where an object is due"),
            ({"interfaces": [{}, 1]}, "interfaces[1]: an integer"),
            ({"interfaces": [{"name": 1}]}, "interfaces[0].name: an integer"),
            ({"interfaces": [{"name": "a", "mac": []}]}, "interfaces[0].mac: an array"),
            ({"interfaces": [{"sandbox": True}]}, "interfaces[0].sandbox: a boolean"),
            ({"interfaces": [{"mtu": 1500.0}]}, "interfaces[0].mtu: a number"),
            ({"interfaces": [{"mtu": "1500"}]}, "interfaces[0].mtu: a string"),
            ({"ips": [{}]}, "ips[0].address: ''"),
            ({"ips": [{"address": "10.0.0.2"}]}, "ips[0].address: '10.0.0.2' is not"),
            ({"ips": [{"address": 1}]}, "ips[0].address: an integer"),
            ({"ips": [{"address": "10.0.0.2/8", "gateway": "x"}]}, "ips[0].gateway: 'x'"),
            ({"ips": [{"address": "10.0.0.2/8", "gateway": 1}]}, "ips[0].gateway: an integer"),
            ({"ips": [{"address": "10.0.0.2/8", "interface": "0"}]}, "ips[0].interface: a string"),
            ({"ips": [{"address": "10.0.0.2/8", "interface": True}]}, "ips[0].interface: a bool"),
            ({"routes": [{"gw": "10.0.0.1"}]}, "routes[0].dst: ''"),
            ({"routes": [{"dst": "default"}]}, "routes[0].dst: 'default'"),
            ({"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}, "routes[0].gw: 'x'"),
            ({"routes": [{"dst": "0.0.0.0/0", "mtu": "1"}]}, "routes[0].mtu: a string"),
            ({"routes": [{"dst": "0.0.0.0/0", "mtu": -1}]}, "routes[0].mtu: -1 is not between"),
            ({"routes": [{"dst": "0.0.0.0/0", "table": 2**32}]}, "routes[0].table: 4294967296"),
            ({"routes": [{"dst": "0.0.0.0/0", "scope": 256}]}, "routes[0].scope: 256 is not"),
            ({"dns": {"domain": ["d"]}}, "domain: an array where a string is due"),
            ({"dns": {"search": "d"}}, "search: a string where an array is due"),
            ({"dns": {"nameservers": [1]}}, "dns.nameservers: all members must be strings"),
            ({"cniVersion": "0.2.0", "ip4": []}, "ip4: an array"),
            ({"cniVersion": "0.2.0", "ip4": {}}, "ip: ''"),
            ({"cniVersion": "0.2.0", "ip6": {"ip": "x"}}, "ip: 'x'"),
            (
                {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/8", "routes": [1]}},
                "routes[0]: an integer",
            ),
            ({"cniVersion": "0.1.0", "dns": "x"}, "dns: a string"),
        ],
    )
    def test_malformed(self, data: Json, place: str) -> None:
        """Input that is no result has code 6, and the place is named."""
        with pytest.raises(CNIError) as caught:
            Result.parse(data)

        assert caught.value.code == Code.DECODING_FAILURE
        assert caught.value.msg.startswith(f"malformed result: {place}")


@pytest.mark.parametrize("config", SUPPORTED_VERSIONS)
@pytest.mark.parametrize("version", [*SUPPORTED_VERSIONS, "0.5.0", ""])
def test_families(config: str, version: str) -> None:
    """A result goes with configurations of its own family of versions, and with no other."""
    same = any(version in family and config in family for family in (OLD, MIDDLE, NEW))
    refused = ""

    try:
        check_same_family(version, config)
    except CNIError as error:
        refused = error.msg

    assert bool(refused) != same
    assert (f'cniVersion "{version}"' in refused) != same


class TestContradictions:
    """Result.refuse_contradictions()."""

    def test_none(self) -> None:
        """Values that go together are not refused."""
        example().refuse_contradictions("IPAM plugin 'x'")
        Result().refuse_contradictions("IPAM plugin 'x'")

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (
                {"ips": [{"address": "10.0.0.2/8", "gateway": "fd00::1"}]},
                "gateway fd00::1 for 10.0.0.2/8",
            ),
            (
                {"routes": [{"dst": "::/0"}, {"dst": "fd00::/8", "gw": "10.0.0.1"}]},
                "a route to fd00::/8 via 10.0.0.1",
            ),
            (
                {"ips": [{"address": "10.0.0.2/8"}, {"address": "10.0.0.2/8"}]},
                "address 10.0.0.2/8 more than once",
            ),
        ],
        ids=["gateway", "route", "address"],
    )
    def test_refused(self, data: Json, what: str) -> None:
        """Values that no interface could have are refused by code 6, and the origin is named."""
        with pytest.raises(CNIError) as caught:
            Result.parse(data).refuse_contradictions("IPAM plugin 'x'")

        assert caught.value.code == Code.DECODING_FAILURE
        assert caught.value.msg.startswith(f"IPAM plugin 'x' gives {what}, ")


def test_add_interface() -> None:
    """add_interface() returns the index of what it appended."""
    result = Result()

    assert [result.add_interface(Interface("a")), result.add_interface(Interface("b"))] == [0, 1]
    assert [interface.name for interface in result.interfaces] == ["a", "b"]


# --- any result ---


def _is_no_ipv4(address: Address) -> bool:
    return parse_address(str(address)).version == 6


_NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6).filter(_is_no_ipv4)
_NUMBERS = st.none() | st.integers(1, 2**32 - 1)


@st.composite
def cidrs(draw: st.DrawFn) -> Any:
    """Return any address with any prefix length."""
    address = draw(_ADDRESSES)
    return ip_interface((address, draw(st.integers(0, address.max_prefixlen))))


_RESULTS = st.builds(
    Result,
    st.lists(
        st.builds(Interface, _NAMES, _NAMES, st.integers(0, 2**31), _NAMES, _NAMES, _NAMES),
        max_size=3,
    ),
    st.lists(
        st.builds(IPConfig, cidrs(), st.none() | _ADDRESSES, st.none() | st.integers(0, 3)),
        max_size=4,
    ),
    st.lists(
        st.builds(
            Route,
            cidrs().map(lambda cidr: cidr.network),
            st.none() | _ADDRESSES,
            _NUMBERS,
            _NUMBERS,
            _NUMBERS,
            st.none() | st.integers(0, 2**32 - 1),
            st.none() | st.integers(0, 255),
        ),
        max_size=4,
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "nameservers": st.lists(_NAMES, min_size=1, max_size=2),
            "domain": _NAMES.filter(bool),
            "search": st.lists(_NAMES, min_size=1, max_size=2),
            "options": st.lists(_NAMES, min_size=1, max_size=2),
        },
    ),
)


def through(result: Result, version: str) -> Result:
    """Return what is left of `result` when it was printed and read in the layout of `version`."""
    printed = wire.encode(result.to_json(version), sort_keys=False)
    return Result.parse(wire.decode(printed), "1.1.0")


class TestAnyResult:
    """Rules for all results."""

    @given(_RESULTS)
    def test_current_layout_keeps_all(self, result: Result) -> None:
        """1.1.0 expresses everything."""
        assert through(result, "1.1.0") == result

    @given(_RESULTS)
    def test_layout_1_0_0_loses_the_mtu(self, result: Result) -> None:
        """1.0.0 loses the MTU of interfaces and nothing else."""
        kept = through(result, "1.0.0")

        for interface in result.interfaces:
            interface.mtu = 0
        assert kept == result

    @given(_RESULTS, st.sampled_from(MIDDLE))
    def test_middle_layouts(self, result: Result, version: str) -> None:
        """0.3.0 to 0.4.0 lose what interfaces got later."""
        kept = through(result, version)

        assert (kept.ips, kept.routes, kept.dns) == (result.ips, result.routes, result.dns)
        assert kept.interfaces == [
            Interface(one.name, one.mac, sandbox=one.sandbox) for one in result.interfaces
        ]

    @given(_RESULTS.filter(lambda result: bool(result.ips)), st.sampled_from(OLD))
    def test_oldest_layouts(self, result: Result, version: str) -> None:
        """0.1.0 and 0.2.0 keep the first address of each family and where its routes lead."""
        kept = through(result, version)

        firsts = [[ip for ip in result.ips if ip.address.version == v][:1] for v in (4, 6)]
        families = [ips[0].address.version for ips in firsts if ips]
        routes = [r for v in families for r in result.routes if r.dst.version == v]
        assert kept.ips == [IPConfig(ip.address, ip.gateway) for ips in firsts for ip in ips]
        assert kept.routes == [Route(route.dst, route.gw) for route in routes]
        assert (kept.interfaces, kept.dns) == ([], result.dns)

    @given(_RESULTS, st.sampled_from(SUPPORTED_VERSIONS), st.sampled_from(SUPPORTED_VERSIONS))
    def test_conversion_is_stable(self, result: Result, first: str, second: str) -> None:
        """A result that went through two layouts has nothing more to lose in them."""
        result.ips = result.ips or [IPConfig(ip_interface("10.0.0.2/24"))]

        once = through(through(result, first), second)

        assert through(through(once, first), second) == once
