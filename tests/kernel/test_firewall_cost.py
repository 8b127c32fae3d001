"""firewall's knowledge of its chain, by which it need not list that, is never wrong."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

import pytest

from tests.machine import Json, Machine

pytestmark = pytest.mark.timeout(60)


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


@pytest.mark.parametrize("chain", ["CNI-FORWARD", "FORWARD"])
def test_a_jump_that_is_replaced_is_noticed(machine: Machine, chain: str) -> None:
    """A rule fewer and another one more leave the count as it was, and yet the jump is missing."""
    netns = machine.container()
    call(machine, "ADD", 0, netns)
    call(machine, "ADD", 1, netns)
    listed = machine.command(machine.host, "iptables", "-S", chain)
    jump = next(line for line in listed.splitlines() if line.startswith(f"-A {chain}"))
    words = [word.strip('"') for word in _words(jump)]
    machine.command(machine.host, "iptables", "-D", *words[1:])
    if chain == "CNI-FORWARD":
        machine.do(machine.host, "iptables -A CNI-FORWARD -s 10.99.0.1/32 -j ACCEPT")
    else:
        machine.do(machine.host, "iptables -A INPUT -j CNI-FORWARD")

    call(machine, "ADD", 2, netns)

    call(machine, "CHECK", 2, netns)


def _words(line: str) -> list[str]:
    return re.findall(r'"[^"]*"|\S+', line)
