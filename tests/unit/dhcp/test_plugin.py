"""The dhcp plugin without a kernel: configuration, result, files, what is said over the socket."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from math import inf
from pathlib import Path

import pytest

from cni_common.spec.errors import CNIError
from cni_common.spec.request import Request
from plugins.dhcp import _facts, rpc
from plugins.dhcp.conf import DEFAULT_SOCKET, Conf, socket_of
from plugins.dhcp.daemon import program, v6
from plugins.dhcp.daemon.allocation import joined
from plugins.dhcp.daemon.machine import Lease
from plugins.dhcp.daemon.options import MalformedError
from plugins.dhcp.daemon.store import Entry, Key, Store
from plugins.dhcp.daemon.v4 import answer, client_id_of, packet
from tests.machine import Json

OPTIONS6 = {
    2: b"\0\3server",
    23: IPv6Address("2001:db8::2").packed + IPv6Address("2001:db8::3").packed,
    24: b"\3eng\7example\3com\0",
    56: b"\0\1\0\x10" + IPv6Address("2001:db8::4").packed,
}
USUAL = [1, 121, 3, 6, 15, 26, 33, 42, 119]
MASK = {packet.SUBNET_MASK: bytes([255, 255, 255, 0])}
LEASE = Lease(IPv4Address("192.0.2.50"), IPv4Address("192.0.2.2"), 10.5, 20, 30, MASK)
ENTRY = Entry(
    Key("net", "c1", "eth0"),
    "/run/netns/c1",
    "4:5:6",
    "boot",
    7,
    2,
    "02:00:00:00:00:01",
    {12: b"pod"},
    [1, 3],
    100,
    broadcast=False,
    below=3,
    server_mac="02:00:00:00:00:02",
    lease=LEASE,
)


LEASE6 = Lease(IPv6Address("2001:db8::50"), IPv6Address("fe80::2"), 10.5, 20, 30, OPTIONS6)
ENTRY6 = replace(ENTRY, key=replace(ENTRY.key, family=6), via="br0", lease=LEASE6)


def request(ipam: Json | None, args: str = "") -> Request:
    """Return an ADD with that IPAM section."""
    config = {"cniVersion": "1.1.0", "name": "net", "type": "macvlan"}
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/n",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": args,
        "CNI_PATH": "/bin",
    }
    told = config if ipam is None else {**config, "ipam": {"type": "dhcp", **ipam}}
    return Request.parse(environ, json.dumps(told).encode())


# --- configuration ---


def test_defaults() -> None:
    """The reference's socket; nothing is sent but the usual."""
    assert Conf.of(request({})) == Conf(DEFAULT_SOCKET, {}, USUAL, 0)


def test_provide() -> None:
    """By name or number, from the configuration or from CNI_ARGS, which may have any key."""
    entries = [
        {"option": "host-name", "value": "x", "fromArg": "K8S_POD_NAME"},
        {"option": "60", "value": "vendor", "fromArg": "NONE"},
        {"option": "user-class", "fromArg": "NONE"},
        {"option": "dhcp-client-identifier", "value": "ä"},
        {"option": "60", "value": "the later one counts"},
    ]

    conf = Conf.of(request({"provide": entries}, "K8S_POD_NAME=a=b;OTHER=1;"))

    assert conf.provided == {12: b"a=b", 60: b"the later one counts", 61: "ä".encode()}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{"option": "44"}], [1, 121, 44, *USUAL[2:]]),
        ([{"option": "routers"}, {"option": "3"}], [1, 121, 3, *USUAL[3:]]),
        ([{"skipDefault": True}], []),
        ([{"skipDefault": True, "option": "3"}, {"option": "121"}], [121, 3]),
        ([{"option": "subnet-mask"}, {"skipDefault": True, "option": ""}], [1]),
    ],
)
def test_request(entries: list[Json], expected: list[int]) -> None:
    """Classless routes come before routers, or a server may not give them (RFC 3442)."""
    assert Conf.of(request({"request": entries})).requested == expected


@pytest.mark.parametrize(
    ("ipam", "says"),
    [
        (None, "missing 'ipam' key"),
        ({"daemonSocketPath": "run/x"}, "absolute path"),
        ({"daemonSocketPath": "/" + "x" * 107}, "at most 107 bytes"),
        ({"provide": [{"option": "", "value": "x"}]}, 'provide[0]: there is no option ""'),
        ({"provide": [{"option": "hostname"}]}, "host-name"),
        ({"provide": [{"option": "256"}]}, "from 1 to 254"),
        ({"provide": [{"option": "53", "value": "x"}]}, "the client's own"),
        ({"provide": [{"option": "12", "value": "x" * 256}]}, "256 bytes"),
        ({"provide": [{"option": "12", "fromArg": "LONG"}]}, "value of LONG in CNI_ARGS has 256"),
        ({"request": [{"option": "1.5"}]}, 'request[0]: there is no option "1.5"'),
        ({"request": [{"option": "255"}]}, "the client's own"),
        ({"family": "ipv6", "request": [{"option": "3"}]}, "ipam.request has options of DHCPv4"),
        ({"family": "ipv6", "provide": [{"option": "12"}]}, "ipam.provide has options of DHCPv4"),
    ],
)
def test_refusals(ipam: Json | None, says: str) -> None:
    """Each names the key."""
    with pytest.raises(CNIError) as caught:
        Conf.of(request(ipam, f"LONG={'x' * 256}"))

    assert caught.value.code == 7
    assert says in caught.value.msg


def test_socket_of_a_bad_configuration() -> None:
    """DEL and GC call the usual daemon."""
    assert socket_of(request({"daemonSocketPath": "x"})) == DEFAULT_SOCKET
    assert socket_of(request(None)) == DEFAULT_SOCKET
    assert socket_of(request({"daemonSocketPath": "/x"})) == "/x"


def test_client_identifier() -> None:
    """As the reference's by default; unlike there, long ones that begin alike are two."""
    longs = [replace(ENTRY, key=Key("net", f"{'c' * 300}{number}", "eth0")) for number in (1, 2)]
    identifiers = [client_id_of(entry) for entry in longs]

    assert client_id_of(ENTRY) == b"\0c1/net/eth0"
    assert [len(one) for one in identifiers] == [255, 255]
    assert identifiers[0] != identifiers[1]
    assert all(one.startswith(b"\0cccc") for one in identifiers)


def test_identifier_of_dhcpv6() -> None:
    """A UUID that is always the same for an attachment: servers would take it for another one."""
    assert v6.identifier_of(ENTRY6).hex() == "0004de004fcb525a829494b7e3b1da3a03e4"
    assert v6.identifier_of(ENTRY6) == v6.identifier_of(ENTRY)
    other = replace(ENTRY6, key=replace(ENTRY6.key, ifname="eth1"))
    assert v6.identifier_of(other) != v6.identifier_of(ENTRY6)
    assert client_id_of(ENTRY6) == client_id_of(ENTRY)


# --- the result ---


def result(priority: int = 0, **options: bytes) -> Json:
    """Return the result of a lease with further options, `o3` and so on."""
    given = {int(name[1:]): value for name, value in options.items()}
    return answer.result_of(replace(LEASE, options={**MASK, **given}), priority)


def test_result_of_little() -> None:
    """An address and its subnet are enough."""
    ips = [{"address": "192.0.2.50/24"}]
    assert result() == {"cniVersion": "1.1.0", "ips": ips, "routes": [], "dns": {}}


def test_result_of_everything() -> None:
    """Routers, static routes, MTU, DNS; a name that is no domain is left out."""
    routers = bytes([192, 0, 2, 1, 192, 0, 2, 9])
    static = bytes([10, 0, 0, 0, 192, 0, 2, 3, 0, 0, 0, 0, 192, 0, 2, 4])
    found = result(
        7,
        o3=routers,
        o33=static,
        o26=bytes([5, 120]),
        o6=routers,
        o15=b"example.com\0",
        o119=b"\1a\1b\0",
    )

    assert found["ips"] == [{"address": "192.0.2.50/24", "gateway": "192.0.2.1"}]
    assert found["routes"] == [
        {"dst": "10.0.0.0/8", "gw": "192.0.2.3", "priority": 7, "mtu": 1400},
        {"dst": "0.0.0.0/0", "gw": "192.0.2.1", "priority": 7, "mtu": 1400},
    ]
    assert found["dns"] == {
        "nameservers": ["192.0.2.1", "192.0.2.9"],
        "domain": "example.com",
        "search": ["a.b"],
    }


def test_classless_routes_are_exclusive() -> None:
    """RFC 3442: static routes and routers are ignored; 0.0.0.0 is no router."""
    classless = bytes([24, 10, 1, 2, 192, 0, 2, 3, 32, 192, 0, 2, 9, 0, 0, 0, 0])

    found = result(o3=bytes([192, 0, 2, 1]), o33=bytes(8), o121=classless)

    assert found["routes"] == [
        {"dst": "10.1.2.0/24", "gw": "192.0.2.3"},
        {"dst": "192.0.2.9/32", "gw": "0.0.0.0", "scope": 253},
    ]


@pytest.mark.parametrize("domain", [b"a b", b"a\nnameserver 6.6.6.6", b"..", b"\xff", b"a/b"])
def test_domains_that_are_none(domain: bytes) -> None:
    """A server cannot write lines, or several words, into the container's resolv.conf."""
    assert result(o15=domain, o119=b"\x01\n\0")["dns"] == {}


@pytest.mark.parametrize("options", [{}, {1: b"\xff"}, {1: bytes([255, 0, 255, 0])}])
def test_no_subnet_mask(options: dict[int, bytes]) -> None:
    """Without one the address is of no use, as in the reference."""
    with pytest.raises(MalformedError, match="subnet mask"):
        answer.interface_of(replace(LEASE, options=options))


def test_facts_for_people() -> None:
    """Values that a result has no place for."""
    lease = replace(LEASE, options={42: bytes([192, 0, 2, 1]), 26: bytes([5, 120]), 12: b"pod"})

    assert answer.facts_of(lease) == {"ntp": ["192.0.2.1"], "mtu": 1400, "hostname": "pod"}


def test_result_of_dhcpv6() -> None:
    """An address alone, and DNS; NTP servers are for people."""
    assert v6.result_of(LEASE6, 7) == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "2001:db8::50/128"}],
        "routes": [],
        "dns": {"nameservers": ["2001:db8::2", "2001:db8::3"], "search": ["eng.example.com"]},
    }
    assert v6.facts_of(LEASE6) == {"ntp": ["2001:db8::4"]}


@pytest.mark.parametrize("value", [b"\1\n\0", b"\5a", b"\xc0\0"])
def test_damaged_options_of_dhcpv6(value: bytes) -> None:
    """They cost nothing but themselves, and a server cannot write lines into resolv.conf."""
    lease = replace(LEASE6, options={2: b"x", 23: value, 24: value, 56: value})

    assert v6.result_of(lease, 0)["dns"] == {}
    assert v6.facts_of(lease) == {}


def test_both_results() -> None:
    """Addresses and DNS of both, IPv4 first; a value of both is there once."""
    dns4 = {"nameservers": ["192.0.2.2"], "domain": "example.com", "search": ["eng.example.com"]}
    first = {"cniVersion": "1.1.0", "ips": [{"address": "a"}], "routes": [{"dst": "r"}]}
    found = {
        6: {"address": "b", "server": "t", "result": v6.result_of(LEASE6, 0)},
        4: {"address": "a", "server": "s", "result": {**first, "dns": dns4}},
    }

    told = joined(found)

    assert (told["address"], told["server"]) == ("a", "s")
    assert told["leases"]["ipv6"] == {"address": "b", "server": "t"}
    assert told["result"] == {
        **first,
        "ips": [{"address": "a"}, {"address": "2001:db8::50/128"}],
        "dns": {
            "nameservers": ["192.0.2.2", "2001:db8::2", "2001:db8::3"],
            "domain": "example.com",
            "search": ["eng.example.com"],
        },
    }


def test_what_the_record_has() -> None:
    """Both leases; of a daemon of an earlier release its only one."""
    conf = Conf.of(request({"family": "both"}))
    both = {"ipv4": {"address": "a", "server": "s"}, "ipv6": {"address": "b", "server": "t"}}

    assert _facts(conf, {"address": "a", "leases": both}).leases == {
        "ipv4": ("a", "s"),
        "ipv6": ("b", "t"),
    }
    assert _facts(conf, {"address": "a", "server": "s"}).leases == {"ipv4": ("a", "s")}


# --- files ---


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A directory of leases."""
    return Store(str(tmp_path / "leases"), print)


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY,
        replace(ENTRY, lease=None),
        replace(ENTRY, is_lost=True, broadcast=True),
        replace(ENTRY, lease=replace(LEASE, renew=inf, rebind=inf, expire=inf)),
        ENTRY6,
    ],
)
def test_what_is_saved_is_loaded(store: Store, entry: Entry) -> None:
    """All of it; a file of a killed daemon is not taken for one."""
    store.save(replace(entry, priority=1))
    store.save(entry)
    Path(f"{store._path(entry.key)}.new").write_text("{")

    assert list(store.load()) == [entry]
    store.remove(entry.key)
    store.remove(entry.key)
    assert list(store.load()) == []


def test_leases_of_both_families(store: Store) -> None:
    """An attachment has a file for each."""
    store.save(ENTRY)
    store.save(ENTRY6)
    store.remove(ENTRY.key)

    assert list(store.load()) == [ENTRY6]


def test_a_lease_of_an_earlier_release(store: Store) -> None:
    """It says nothing of families, and is where it was: it is one of IPv4."""
    store.save(ENTRY)
    path = Path(store._path(ENTRY.key))
    told = json.loads(path.read_text())
    del told["family"], told["via"]
    path.write_text(json.dumps(told))

    assert path.name == "26026bd18b7cde682ae8b772c36d68c0.json"
    assert list(store.load()) == [ENTRY]


def test_a_lease_of_the_wrong_family(store: Store) -> None:
    """It is damaged."""
    store.save(replace(ENTRY6, lease=LEASE))
    store.save(replace(ENTRY, key=replace(ENTRY.key, family=5)))

    assert list(store.load()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format":2}', '{"format":1}', "\0" * 9])
def test_damaged_leases_are_put_aside(store: Store, tmp_path: Path, text: str) -> None:
    """All others are kept."""
    store.save(ENTRY)
    damaged = tmp_path / "leases" / "x.json"
    damaged.write_text(text)

    assert list(store.load()) == [ENTRY]
    assert damaged.with_name("x.json.damaged").read_text() == text


def test_each_byte_that_is_missing(store: Store) -> None:
    """A file cut anywhere is the whole entry or none."""
    store.save(ENTRY)
    path = Path(store._path(ENTRY.key))
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        assert list(store.load()) == []


def test_one_daemon_has_the_directory(store: Store, tmp_path: Path) -> None:
    """Another one is refused, until the first has ended."""
    with pytest.raises(BlockingIOError):
        Store(str(tmp_path / "leases"), print)
    store.close()

    Store(str(tmp_path / "leases"), print).close()


# --- the socket ---


def test_messages() -> None:
    """They are as long as they say; another protocol is known by its first bytes."""
    data = rpc.encode({"version": 1})

    assert rpc.length_in(data) == len(data) - rpc.HEAD_BYTES
    with pytest.raises(ValueError, match="another protocol"):
        rpc.length_in(b"HTTP/1.1 400 Bad Request")
    with pytest.raises(ValueError, match="of which"):
        rpc.encode({"x": "x" * rpc.MESSAGE_BYTES_MAX})


# --- the daemon's options ---


def test_options_of_the_daemon() -> None:
    """Each with one dash and with two, apart or joined, as Go reads them."""
    words = [
        *("-pidfile", "/p", "--hostprefix=/host", "-socketpath=/s", "-broadcast"),
        *("--timeout", "1m30s", "-resendmax=1.5s", "-resendtimeout", "500ms"),
    ]

    found = program.parse(words)

    assert found == program.Options("/p", "/host", "/s", "/var/lib/cni/dhcp", True, 90, 1.5, 0.5)  # noqa: FBT003


def test_defaults_of_the_daemon() -> None:
    """Those of the reference."""
    found = program.parse([])

    assert found == program.Options("", "", "", "/var/lib/cni/dhcp", False, 10, 62, 208)  # noqa: FBT003
    assert program.parse(["-broadcast=false"]) == found


@pytest.mark.parametrize(
    "word",
    ["-timeout=5", "-timeout=-1s", "-timeout=1s2", "-timeout=", "-broadcast=x", "-other", "x"],
)
def test_wrong_options(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused with exit status 2, as Go does."""
    assert program.run([word], {}, print) == 2
    assert "usage: dhcp daemon" in capsys.readouterr().err


def test_relative_pidfile() -> None:
    """The reference's words."""
    if os.geteuid():
        pytest.skip("needs root")
    said: list[str] = []

    assert program.run(["-pidfile=x"], {}, said.append) == 1
    assert said == ["dhcp daemon: -pidfile 'x' is no absolute path"]
