"""firewall's cost does not depend on how many attachments there are: counted, not timed."""

from __future__ import annotations

import sys
from collections import Counter
from ipaddress import ip_address
from typing import Any

import pytest

from cni_common.kernel.netlink import Channel
from tests.machine import Json, Machine

pytestmark = [
    pytest.mark.without_engine("counts what this process asks of the system"),
    pytest.mark.timeout(60),
]
MANY = 300
SLACK = 4  # the last attachment's DEL looks whether the chain can go
MODULES = frozenset({"posix", "fcntl", "_socket"})
EXCHANGE, RECEIVE = Channel.exchange, Channel._receive


def config(number: int, **keys: Any) -> Json:
    """Return the configuration for the container of that number, without a bridge."""
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
        "ips": [{"address": f"{ip_address('10.70.0.1') + number}/16", "interface": 0}],
    }
    own = {"cniVersion": "1.1.0", "name": "n", "type": "firewall", "backend": "nftables"}
    return {**own, "prevResult": result, **keys}


def call(machine: Machine, command: str, number: int, netns: str, **keys: Any) -> None:
    """Run firewall for the container of that number."""
    conf = config(number, **keys)
    machine.ok("firewall", command, conf, netns, containerid=f"c{number}")


def cost(
    machine: Machine, number: int, netns: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Counter[str]]:
    """Return the number of netlink messages, bytes received and system calls of ADD and DEL."""
    found = {}
    for command in ("ADD", "DEL"):
        count: Counter[str] = Counter()

        def counted(self: Channel, messages: Any, count: Any = count) -> Any:
            count["messages"] += len(messages)
            return EXCHANGE(self, messages)

        def received(self: Channel, flags: int = 0, count: Any = count) -> bytes:
            data = RECEIVE(self, flags)
            count["kilobytes"] += len(data) // 1024
            return data

        def see(_frame: object, event: str, function: Any, count: Any = count) -> None:
            if event == "c_call" and function.__module__ in MODULES:
                count["calls"] += 1

        with monkeypatch.context() as patch:
            patch.setattr(Channel, "exchange", counted)
            patch.setattr(Channel, "_receive", received)
            sys.setprofile(see)
            try:
                call(machine, command, number, netns)
            finally:
                sys.setprofile(None)
        found[command] = count
    return found


def test_many_attachments_cost_what_one_costs(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 300 attachments ADD and DEL ask no more of the kernel than with one."""
    netns = machine.container()
    call(machine, "ADD", 0, netns)
    few = cost(machine, MANY, netns, monkeypatch)
    for number in range(1, MANY):
        call(machine, "ADD", number, netns)

    many = cost(machine, MANY, netns, monkeypatch)

    for command in ("ADD", "DEL"):
        assert few[command]["messages"] > 0
        for what in ("messages", "kilobytes", "calls"):
            assert many[command][what] <= few[command][what] + SLACK, (command, what, many, few)


def test_rules_of_others_are_found_again(machine: Machine) -> None:
    """Rules that another program has added or replaced are noticed, and all go in the end."""
    netns = machine.container()
    call(machine, "ADD", 0, netns)
    call(machine, "ADD", 1, netns)
    add = "iptables -A CNI-FORWARD"
    machine.do(
        machine.host,
        f"{add} -d 10.70.0.3/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"{add} -s 10.70.0.3/32 -j ACCEPT",
        "iptables -D CNI-FORWARD -s 10.70.0.1/32 -j ACCEPT",
        f"{add} -s 10.70.0.1/32 -j ACCEPT",
    )
    call(machine, "ADD", 2, netns)  # has the address of the rules that are there
    listed = machine.command(machine.host, "iptables", "-S", "CNI-FORWARD")
    assert listed.count("10.70.0.3/32") == 2
    call(machine, "CHECK", 2, netns)

    for number in range(3):
        call(machine, "DEL", number, netns)

    assert "CNI" not in machine.command(machine.host, "iptables-save", "-t", "filter")


def test_an_address_of_two_stays_for_the_other(machine: Machine) -> None:
    """Two attachments with one address have rules each: either may go first."""
    netns = machine.container()
    call(machine, "ADD", 0, netns)
    call(machine, "ADD", 1, netns, prevResult=config(0)["prevResult"])

    call(machine, "DEL", 0, netns)

    listed = machine.command(machine.host, "iptables", "-S", "CNI-FORWARD")
    assert listed.count("10.70.0.1/32") == 2
    call(machine, "DEL", 1, netns)
    assert "CNI" not in machine.command(machine.host, "iptables-save", "-t", "filter")
