"""bandwidth on a real kernel: what it makes and takes back, what is refused, CHECK, GC, STATUS."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.liveness import GRACE_SECONDS
from tests.kernel.limits import (
    BOTH,
    MBIT,
    NO_BURST,
    NOTHING,
    SUBNETS,
    Tbf,
    by_runtime,
    config,
    container,
    ifb_of,
    left,
    qdiscs,
    redirections,
    tbf,
    tc,
)
from tests.machine import Json, Machine
from tests.waits import wait_until

MEBIBYTE = 1 << 20
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
INWARD = {"ingressRate": 8 * MBIT}


# --- what is made and taken back ---------------------------------------------------------------


@pytest.mark.both_edges
@pytest.mark.parametrize("namespace", ["there", "gone"])
def test_add_and_delete(machine: Machine, namespace: str) -> None:
    """Both directions have their limits after ADD, pass CHECK, and after DEL nothing is left."""
    netns, conf = container(machine), config(machine, **BOTH)

    result = machine.ok("bandwidth", "ADD", conf, netns)

    ifb = ifb_of(result)
    link = machine.link(machine.host, ifb)
    assert link is not None
    assert result["interfaces"] == [
        *conf["prevResult"]["interfaces"],
        {"name": ifb, "mac": link["address"]},
    ]
    assert (link["mtu"], "UP" in link["flags"]) == (1500, True)
    assert tbf(machine, "host1") == Tbf(2_500_000, 250_000, 62_500 + 65_536)
    assert tbf(machine, ifb) == Tbf(5_000_000, 500_000, 125_000 + 65_536)
    assert redirections(machine, "host1") == [ifb]
    machine.ok("bandwidth", "CHECK", {**conf, "prevResult": result}, netns)
    for _ in range(2):
        machine.ok("bandwidth", "DEL", conf, netns if namespace == "there" else "")
        assert left(machine) == NOTHING


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_one_direction(machine: Machine, direction: str) -> None:
    """A limit of one direction leaves the other alone, and brings an ifb only for egress."""
    netns = container(machine)
    conf = config(machine, **{key: BOTH[key] for key in BOTH if key.startswith(direction)})

    result = machine.ok("bandwidth", "ADD", conf, netns)

    kinds = [one["kind"] for one in qdiscs(machine, "host1")]
    assert kinds == (["tbf"] if direction == "ingress" else ["ingress"])
    assert len(left(machine)["ifbs"]) == len(result["interfaces"]) - 2
    assert len(result["interfaces"]) == (2 if direction == "ingress" else 3)
    machine.ok("bandwidth", "CHECK", conf, netns)
    machine.ok("bandwidth", "DEL", conf)
    assert left(machine) == NOTHING


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({}, id="no keys"),
        pytest.param({"ingressRate": 0, "egressBurst": 0}, id="zeros"),
        pytest.param(by_runtime(ingressRate=0, ingressBurst=NO_BURST), id="containerd"),
        pytest.param({"runtimeConfig": {}, "capabilities": {"bandwidth": True}}, id="capability"),
        pytest.param({"unshapedSubnets": SUBNETS}, id="subnets alone"),
    ],
)
def test_nothing_configured(machine: Machine, keys: Json) -> None:
    """Without a limit prevResult is passed on, even for an interface that could have none."""
    netns = machine.container()
    conf = config(machine, **keys)

    assert machine.ok("bandwidth", "ADD", conf, netns) == conf["prevResult"]
    assert left(machine) == NOTHING
    machine.ok("bandwidth", "CHECK", conf, netns)
    machine.ok("bandwidth", "DEL", conf, netns)


def test_limits_of_containerd(machine: Machine) -> None:
    """Limits by Go's names work, and a burst of the largest 32 bits means that of 25 ms."""
    netns = container(machine)
    limits = {"ingressRate": 100 * MBIT, "egressRate": MBIT}
    bursts = {"ingressBurst": NO_BURST, "egressBurst": NO_BURST}
    conf = config(machine, **by_runtime(**limits, **bursts))

    result = machine.ok("bandwidth", "ADD", conf, netns)

    assert tbf(machine, "host1") == Tbf(12_500_000, 312_500, 312_500 + 65_536)
    assert tbf(machine, ifb_of(result)) == Tbf(125_000, 65536, 65536 + 3125)
    machine.ok("bandwidth", "CHECK", conf, netns)
    machine.ok("bandwidth", "DEL", {**conf, "prevResult": None})
    assert left(machine) == NOTHING


def test_whose_limits_count(machine: Machine) -> None:
    """Limits beside `type` hide those of the runtime, zeros do not."""
    runtime = by_runtime(ingressRate=16 * MBIT)
    for number, own in ((1, INWARD), (2, {"egressRate": 0})):
        netns = container(machine, number)
        conf = config(machine, number, **runtime, **own)
        machine.ok("bandwidth", "ADD", conf, netns, containerid=f"c{number}")
        assert tbf(machine, f"host{number}").rate == number * MBIT


@pytest.mark.parametrize(
    ("keys", "mtu", "expected"),
    [
        pytest.param({"ingressRate": 8, "ingressBurst": 8}, 1500, Tbf(1, -1, 1514), id="least"),
        pytest.param(
            {"ingressRate": 80_000_000_000, "ingressBurst": 8 * MEBIBYTE},
            1500,
            Tbf(10_000_000_000, MEBIBYTE, 250_000_000 + 65_536),
            id="beyond 32 bits",
        ),
        pytest.param(
            {"ingressRate": MBIT, "ingressBurst": 80_000},
            65_535,
            Tbf(125_000, 65_549, 65_549 + 3125),
            id="large packets",
        ),
        pytest.param(
            {"ingressRate": 2**64 - 1, "ingressBurst": 8 * (2**32 - 2)},
            1500,
            Tbf((2**64 - 1) // 8, -1, 2**32 - 1),
            id="greatest",
        ),
    ],
)
def test_extreme_limits(machine: Machine, keys: Json, mtu: int, expected: Tbf) -> None:
    """A limit that the kernel can hardly express has no side effect, and passes CHECK."""
    netns, conf = container(machine, mtu=mtu), config(machine, **keys)

    machine.ok("bandwidth", "ADD", conf, netns)

    found = tbf(machine, "host1")
    assert found == expected._replace(burst=found.burst)
    assert found.burst == pytest.approx(expected.burst, rel=0.01) or expected.burst < 0
    machine.ok("bandwidth", "CHECK", conf, netns)


def test_burst_that_ticks_cannot_express(machine: Machine) -> None:
    """A burst that takes the rate 400 s to fill is kept, where ticks of 32 bits wrap around."""
    netns = container(machine)
    conf = config(machine, ingressRate=MBIT, ingressBurst=400 * MBIT)
    machine.ok("bandwidth", "ADD", conf, netns)

    assert tbf(machine, "host1").limit == 65_536 + 3125
    machine.ok("bandwidth", "CHECK", conf, netns)


@pytest.mark.parametrize("key", ["unshapedSubnets", "shapedSubnets"])
def test_subnets(machine: Machine, key: str) -> None:
    """With subnets an htb has a class for either kind of peers, and a filter for each subnet."""
    keys: Json = {**BOTH, key: [*SUBNETS, SUBNETS[0]]}
    netns, conf = container(machine), config(machine, **keys)

    result = machine.ok("bandwidth", "ADD", conf, netns)

    special, default = ("1:1", "0x30") if key == "unshapedSubnets" else ("1:30", "0x1")
    for name, rate, offsets in (("host1", 20, {8, 12}), (ifb_of(result), 40, {16, 24, 28})):
        root, *queues = (one for one in qdiscs(machine, name) if one["kind"] != "ingress")
        assert (root["kind"], root["handle"], root["options"]["default"]) == ("htb", "1:", default)
        assert {(one["kind"], one["parent"]) for one in queues} == {
            ("bfifo", "1:30"),
            ("pfifo", "1:1"),
        }
        text = machine.command(machine.host, "tc", "class", "show", "dev", name)
        rates = re.findall(r"class htb (1:\d+) .*rate (\S+) ceil (\S+)", text)
        assert sorted(rates) == [("1:1", "800Gbit", "800Gbit"), ("1:30", *[f"{rate}Mbit"] * 2)]
        found = tc(machine, "filter", "show", "dev", name, "parent", "1:")
        matches = [one["options"] for one in found if "match" in one.get("options", {})]
        assert [one["flowid"] for one in matches] == [special] * 2
        assert {one["match"]["off"] for one in matches} <= offsets
    machine.ok("bandwidth", "CHECK", conf, netns)
    machine.ok("bandwidth", "DEL", conf)
    assert left(machine) == NOTHING


def test_many_subnets(machine: Machine) -> None:
    """A thousand subnets have their filters, and one more is refused."""
    netns = container(machine)
    subnets = [f"10.{number // 250}.{number % 250}.0/24" for number in range(1001)]
    conf = config(machine, **INWARD, shapedSubnets=[*subnets[:999], "::/0"])

    machine.ok("bandwidth", "ADD", conf, netns)

    found = tc(machine, "filter", "show", "dev", "host1", "parent", "1:")
    assert len([one for one in found if "match" in one.get("options", {})]) == 1000
    machine.ok("bandwidth", "CHECK", conf, netns)
    more = config(machine, **INWARD, shapedSubnets=subnets)
    assert "1001 subnets" in machine.refused("bandwidth", "ADD", more, netns)["msg"]


@pytest.mark.parametrize("version", VERSIONS)
def test_versions(machine: Machine, version: str) -> None:
    """Every version of the specification works, also those whose results have no interfaces."""
    netns = container(machine)
    previous: Json = {"cniVersion": version, "ip4": {"ip": "10.7.1.2/24"}}
    if version >= "0.3.0":
        family = {} if version >= "1.0.0" else {"version": "4"}
        previous = {"cniVersion": version, "ips": [{"address": "10.7.1.2/24", **family}]}
    conf = config(machine, **BOTH, cniVersion=version, prevResult=previous)

    result = machine.ok("bandwidth", "ADD", conf, netns)

    assert ("interfaces" in result) == (version >= "0.3.0")
    assert tbf(machine, "host1").rate == 2_500_000
    machine.ok("bandwidth", "DEL", conf, netns)
    assert left(machine) == NOTHING


# --- again, and with others' things around -----------------------------------------------------


def test_add_after_delete(machine: Machine) -> None:
    """The same pair gets limits again and again, other ones each time."""
    netns = container(machine)
    for rate in (8, 16, 24):
        conf = config(machine, ingressRate=rate * MBIT, egressRate=rate * MBIT)
        result = machine.ok("bandwidth", "ADD", conf, netns)
        assert {tbf(machine, name).rate for name in ("host1", ifb_of(result))} == {rate * MBIT // 8}
        machine.ok("bandwidth", "DEL", conf, netns)
        assert left(machine) == NOTHING


def test_repeated_add(machine: Machine) -> None:
    """ADD without a DEL before it replaces the limits."""
    netns = container(machine)
    machine.ok("bandwidth", "ADD", config(machine, **BOTH, unshapedSubnets=SUBNETS), netns)
    conf = config(machine, **INWARD)

    machine.ok("bandwidth", "ADD", conf, netns)

    assert left(machine)["ifbs"] == []
    assert [one["kind"] for one in qdiscs(machine, "host1")] == ["tbf"]
    machine.ok("bandwidth", "DEL", conf, netns)
    assert left(machine) == NOTHING


def test_two_interfaces_on_one_network(machine: Machine) -> None:
    """Each has an ifb of its own, and the DEL of one leaves the other its limits."""
    first, second = container(machine, 1), container(machine, 2)
    confs = [config(machine, number, **BOTH) for number in (1, 2)]
    machine.do(second, "ip link set eth0 name eth1")
    one = machine.ok("bandwidth", "ADD", confs[0], first)
    other = machine.ok("bandwidth", "ADD", confs[1], second, ifname="eth1")

    assert ifb_of(one) != ifb_of(other)
    machine.ok("bandwidth", "CHECK", confs[0], first)
    machine.ok("bandwidth", "CHECK", confs[1], second, ifname="eth1")
    for ifname in ("eth1", "eth2"):  # the last never had one
        machine.ok("bandwidth", "DEL", confs[1], "", ifname=ifname)
        machine.ok("bandwidth", "CHECK", confs[0], first)
    machine.ok("bandwidth", "DEL", confs[0])
    assert left(machine) == NOTHING


def test_delete_without_a_record(machine: Machine) -> None:
    """DEL that knows neither namespace nor record finds ifb and limits by the ifb's name."""
    netns, conf = container(machine), config(machine, **BOTH)
    machine.ok("bandwidth", "ADD", conf, netns)
    forget_records(machine)

    machine.ok("bandwidth", "DEL", {**conf, "prevResult": None, "ingressRate": "?"}, "")

    assert left(machine) == NOTHING


def test_delete_of_ingress_without_a_record(machine: Machine) -> None:
    """With its namespace a limit without ifb is found, too."""
    netns, conf = container(machine), config(machine, **INWARD)
    machine.ok("bandwidth", "ADD", conf, netns)
    forget_records(machine)

    machine.ok("bandwidth", "DEL", conf, netns)

    assert left(machine) == NOTHING


def test_stale_ifb(machine: Machine) -> None:
    """An ifb of the right name that nobody uses is replaced, and one in use is left alone."""
    netns, conf = container(machine), config(machine, **BOTH)
    name = ifb_of(machine.ok("bandwidth", "ADD", conf, netns))
    machine.ok("bandwidth", "DEL", conf, netns)
    machine.do(machine.host, f"ip link add {name} type ifb")

    again = ifb_of(machine.ok("bandwidth", "ADD", conf, netns))
    assert again == name
    machine.ok("bandwidth", "CHECK", conf, netns)
    machine.ok("bandwidth", "DEL", conf, netns)

    machine.do(machine.host, f"ip link add {name} type bridge")
    assert ifb_of(machine.ok("bandwidth", "ADD", conf, netns)) != name
    machine.ok("bandwidth", "CHECK", conf, netns)
    machine.ok("bandwidth", "DEL", conf, netns)
    assert left(machine) == {**NOTHING, "ifbs": [name]}


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("tc qdisc add dev host1 root handle 7: tbf rate 1mbit burst 9kb limit 9kb", INWARD),
        ("tc qdisc add dev host1 root pfifo limit 5", INWARD),
        ("tc qdisc add dev host1 clsact", BOTH),
        ("tc qdisc add dev host1 ingress", BOTH),
    ],
)
def test_others_qdiscs(machine: Machine, line: str, keys: Mapping[str, Any]) -> None:
    """A qdisc that another program made is refused and left as it is, by DEL too."""
    netns, conf = container(machine), config(machine, **keys)
    machine.do(machine.host, line)
    if line.endswith("ingress"):
        words = "filter add dev host1 ingress protocol ip u32 match ip dst 10.0.0.0/8 flowid 1:1"
        machine.do(machine.host, f"tc {words}")
    before = left(machine)

    error = machine.refused("bandwidth", "ADD", conf, netns)

    assert "another program" in error["msg"]
    assert left(machine) == before
    machine.ok("bandwidth", "DEL", conf, netns)
    assert left(machine) == before


@pytest.mark.parametrize(
    ("line", "direction"),
    [("root handle 7: pfifo limit 5", "egress"), ("clsact", "ingress")],
)
def test_others_qdiscs_of_the_other_direction(machine: Machine, line: str, direction: str) -> None:
    """Where no limit is wanted, other programs may have their qdiscs."""
    netns = container(machine)
    conf = config(machine, **{f"{direction}Rate": 8 * MBIT})
    machine.do(machine.host, f"tc qdisc add dev host1 {line}")
    before = left(machine)

    machine.ok("bandwidth", "ADD", conf, netns)

    machine.ok("bandwidth", "CHECK", conf, netns)
    machine.ok("bandwidth", "DEL", conf, netns)
    assert left(machine) == before


def test_del_leaves_later_qdiscs_alone(machine: Machine) -> None:
    """A qdisc that another program has put in place of the limits stays."""
    netns, conf = container(machine), config(machine, **BOTH)
    machine.ok("bandwidth", "ADD", conf, netns)
    machine.do(
        machine.host,
        "tc qdisc replace dev host1 root handle 7: pfifo limit 5",
        "tc qdisc del dev host1 ingress",
        "tc qdisc add dev host1 clsact",
    )

    machine.ok("bandwidth", "DEL", conf, netns)

    assert left(machine) == {**NOTHING, "qdiscs": [("host1", "pfifo"), ("host1", "clsact")]}


def test_interface_of_two_attachments(machine: Machine) -> None:
    """A second network cannot take the limits of a pair over; the first keeps them."""
    netns, conf = container(machine), config(machine, **BOTH)
    machine.ok("bandwidth", "ADD", conf, netns)

    error = machine.refused("bandwidth", "ADD", {**conf, "name": "other"}, netns)

    assert "has the limits of container c1" in error["msg"]
    machine.ok("bandwidth", "CHECK", conf, netns)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"ingressRate": -1}, '"ingressRate": -1 is less than the minimum'),
        ({"egressRate": 2**64}, "greater than the maximum"),
        ({"ingressRate": 1.5}, "not of type integer"),
        ({"ingressRate": "10M"}, "not of type integer"),
        ({"ingressRate": 7}, "8 bits a second at least"),
        ({"egressBurst": 1000}, "if burst is set"),
        ({"ingressRate": 8, "ingressBurst": 2**35}, "less than 4 GiB"),
        (by_runtime(egressRate=3), "8 bits a second at least"),
        ({**INWARD, "unshapedSubnets": ["10.0.0.0"]}, "10.0.0.0"),
        ({**INWARD, "shapedSubnets": ["fe80::%1/64"]}, "fe80::%1/64"),
        ({**INWARD, "shapedSubnets": SUBNETS, "unshapedSubnets": SUBNETS}, "choose one"),
        ({**INWARD, "prevResult": None}, "prevResult missing"),
        ({"prevResult": None}, "prevResult missing"),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_refused_configuration(machine: Machine, keys: Json, says: str, command: str) -> None:
    """A configuration that cannot be carried out has code 7 and one clear line, before any act."""
    netns = container(machine)

    error = machine.refused("bandwidth", command, config(machine, **keys), netns)

    assert (error["code"], says in error["msg"]) == (7, True), error
    assert left(machine) == NOTHING


def test_refused_interfaces(machine: Machine) -> None:
    """Only a veth whose other end is on the host can have limits."""
    netns, other = machine.container(), machine.container()
    conf = config(machine, **BOTH)
    assert "missing" in machine.refused("bandwidth", "ADD", conf, netns)["msg"]
    for line in (
        "ip link add eth0 type bridge",
        f"ip link add eth0 type veth peer name host1 netns {other}",
    ):
        machine.do(netns, line)
        assert "no veth" in machine.refused("bandwidth", "ADD", conf, netns)["msg"], line
        machine.do(netns, "ip link del eth0")
    assert left(machine) == NOTHING


# --- CHECK, GC, STATUS -------------------------------------------------------------------------

DRIFTS = {
    "no limit": "tc qdisc del dev host1 root",
    "another kind": "tc qdisc replace dev host1 root handle 2: pfifo limit 9",
    "another rate": "tc qdisc change dev host1 root tbf rate 21mbit burst 250000b limit 312500b",
    "another burst": "tc qdisc change dev host1 root tbf rate 20mbit burst 9000b limit 312500b",
    "another queue": "tc qdisc change dev host1 root tbf rate 20mbit burst 250000b limit 9000b",
    "no redirection": "tc qdisc del dev host1 ingress",
    "no ifb": "ip link del IFB",
    "ifb down": "ip link set IFB down",
    "no limit of the ifb": "tc qdisc del dev IFB root",
}


@pytest.mark.parametrize("line", DRIFTS.values(), ids=DRIFTS)
def test_check_finds(machine: Machine, line: str) -> None:
    """Each difference from ADD is named, and DEL copes with it."""
    netns, conf = container(machine), config(machine, **BOTH)
    ifb = ifb_of(machine.ok("bandwidth", "ADD", conf, netns))
    machine.do(machine.host, line.replace("IFB", ifb))

    error = machine.refused("bandwidth", "CHECK", conf, netns)

    remedy = (
        f": run 'ip link set {ifb} up'" if "down" in line else "; delete and add the attachment"
    )
    assert remedy in error["msg"]
    assert ifb in error["msg"] or "host1" in error["msg"]
    machine.ok("bandwidth", "DEL", conf, netns)
    assert left(machine)["ifbs"] == []


@pytest.mark.parametrize(
    "line",
    [
        "tc class change dev host1 parent 1: classid 1:30 htb rate 21mbit",
        "tc filter del dev host1 parent 1: prio 16",
        "tc qdisc del dev IFB root",
    ],
)
def test_check_finds_with_subnets(machine: Machine, line: str) -> None:
    """So are a class or filter that changed."""
    netns = container(machine)
    conf = config(machine, **BOTH, unshapedSubnets=SUBNETS)
    ifb = ifb_of(machine.ok("bandwidth", "ADD", conf, netns))
    machine.do(machine.host, line.replace("IFB", ifb))

    error = machine.refused("bandwidth", "CHECK", conf, netns)

    assert "delete and add the attachment again" in error["msg"]


@pytest.mark.both_edges
def test_gc(machine: Machine) -> None:
    """GC takes the limits of what is neither listed, alive, young nor of another network."""
    conf = config(machine, **BOTH)
    here = {number: container(machine, number) for number in (1, 2, 3, 4)}
    for number, netns in here.items():
        name = "other" if number == 4 else machine.name
        own = config(machine, number, **BOTH, name=name)
        machine.ok("bandwidth", "ADD", own, netns, containerid=f"c{number}")
    for number in (1, 2, 4):  # of which 1 is listed
        machine.forget(here[number])
    await_end(machine, "host1", "host2", "host4")
    machine.do(
        machine.host, "ip link add bwp000000000000 type ifb"
    )  # of no attachment that we know
    valid = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}

    machine.ok("bandwidth", "GC", {**conf, **valid})
    assert len(left(machine)["ifbs"]) == 5  # all are young
    age_records(machine)
    machine.ok("bandwidth", "GC", {**conf, **valid})

    owners = [line for line in left(machine)["records"] if '"c2"' in line]
    assert (owners, len(left(machine)["records"]), len(left(machine)["ifbs"])) == ([], 3, 4)
    machine.ok("bandwidth", "CHECK", config(machine, 3, **BOTH), here[3], containerid="c3")


@pytest.mark.both_edges
def test_status(machine: Machine) -> None:
    """STATUS needs no prevResult, and tells of a bad configuration and an unwritable state."""
    conf = config(machine, **BOTH, prevResult=None)
    machine.ok("bandwidth", "STATUS", conf)
    assert machine.refused("bandwidth", "STATUS", {**conf, "ingressRate": 1})["code"] == 7
    state = Path(machine.state_dir, "attachments")
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o777)

    assert machine.refused("bandwidth", "STATUS", conf)["code"] == 50


def await_end(machine: Machine, *names: str) -> None:
    """Wait until the kernel has removed interfaces, which it does some time after a namespace."""

    def left_of_them() -> set[str]:
        return {link["ifname"] for link in machine.ip(machine.host, "link")} & set(names)

    wait_until(lambda: not left_of_them(), "the kernel keeps an interface")


def forget_records(machine: Machine) -> None:
    """Remove all records."""
    for path in Path(machine.state_dir, "attachments").iterdir():
        path.unlink()


def age_records(machine: Machine) -> None:
    """Let all records be older than the time that GC gives them."""
    then = time.time() - GRACE_SECONDS - 1
    for path in Path(machine.state_dir, "attachments").iterdir():
        os.utime(path, (then, then))
