"""No call costs more where many containers are: its demands are counted, not timed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import pytest

from cni_common.kernel.netlink import Channel
from tests.machine import Json, Machine

pytestmark = [
    pytest.mark.without_engine("counts what this process asks of the system"),
    pytest.mark.timeout(120),
]
MANY = 60
SLACK = 4  # the only attachment's DEL looks whether shared objects can go
KILOBYTES = 2
COMMANDS = ("ADD", "CHECK", "DEL")
MODULES = frozenset({"posix", "fcntl", "_socket"})
EXCHANGE, RECEIVE, SEND = Channel.exchange, Channel._receive, Channel._send
# Each plugin that is chained needs an interface, of which another plugin's cost is not counted.
CASES: dict[str, tuple[str, Json]] = {
    "bridge": ("", {}),
    "bridge, masquerading": ("", {"ipMasq": True}),
    "bridge, MAC filter": ("", {"macspoofchk": True}),
    "ptp": ("", {"ipMasq": True}),
    "tuning": ("bridge", {"sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "0"}, "mtu": 1400}),
    "bandwidth": ("bridge", {"ingressRate": 10_000_000, "ingressBurst": 10_000_000}),
    "portmap": ("bridge", {}),
    "portmap, behind ptp": ("ptp", {}),
    "firewall": ("bridge", {"backend": "nftables"}),
    "firewall, one bridge": ("bridge", {"backend": "nftables", "ingressPolicy": "same-bridge"}),
    "firewall, isolated": ("bridge", {"backend": "nftables", "ingressPolicy": "isolated"}),
    "firewall, iptables": ("bridge", {"backend": "iptables"}),
    "firewall, iptables, one bridge": (
        "bridge",
        {"backend": "iptables", "ingressPolicy": "same-bridge"},
    ),
}

# Each send by netlink waits for locks that all calls of the node share, and so do all behind it.
SENDS = {
    ("bridge", "ADD"): 6,
    ("bridge", "DEL"): 1,
    ("bridge, masquerading", "ADD"): 9,
    ("bridge, masquerading", "DEL"): 5,
    ("ptp", "ADD"): 8,
    ("ptp", "DEL"): 5,
}


class Names(TypedDict):
    """The attachment of a call."""

    containerid: str
    ifname: str


@contextmanager
def counted(count: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count netlink messages, kilobytes received and system calls."""

    def exchange(self: Channel, messages: Any, **keys: Any) -> Any:
        count["messages"] += len(messages)
        return EXCHANGE(self, messages, **keys)

    def received(self: Channel, flags: int = 0) -> bytes:
        data = RECEIVE(self, flags)
        count["kilobytes"] += len(data) // 1024
        return data

    def see(_frame: object, event: str, function: Any) -> None:
        if event == "c_call" and function.__module__ in MODULES:
            count["calls"] += 1

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "exchange", exchange)
        patch.setattr(Channel, "_receive", received)
        sys.setprofile(see)
        try:
            yield
        finally:
            sys.setprofile(None)


class Chain:
    """Attachments of one plugin, behind the plugin that makes their interfaces."""

    def __init__(self, machine: Machine, case: str) -> None:
        self.plugin = case.partition(",")[0]
        self.before, self._keys = CASES[case]
        self._machine = machine
        self._netns: dict[str, str] = {}  # by container

    def attach(self, number: int) -> tuple[Json, Names]:
        """Have the interface made; return configuration and attachment of the plugin's call."""
        names: Names = {"containerid": f"c{number}", "ifname": "eth0"}
        self._netns[names["containerid"]] = netns = self._machine.container()
        config = self._machine.network(type=self.plugin, **self._keys)
        if self.before:
            first = self._machine.network(type=self.before)
            config["prevResult"] = self._machine.ok(self.before, "ADD", first, netns, **names)
        if self.plugin == "portmap":
            ports = [{"hostPort": 8000 + number, "containerPort": 80}]
            config["runtimeConfig"] = {"portMappings": ports}
        return config, names

    def detach(self, names: Names) -> None:
        """Take the interface away."""
        if self.before:
            config = self._machine.network(type=self.before)
            netns = self._netns[names["containerid"]]
            self._machine.ok(self.before, "DEL", config, netns, **names)

    def call(self, command: str, config: Json, names: Names) -> Json:
        """Run one command of the plugin."""
        netns = self._netns[names["containerid"]]
        return self._machine.ok(self.plugin, command, config, netns, **names)


def costs(chain: Chain, number: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter[str]]:
    """Return what each command of one more attachment asks of the system."""
    config, names = chain.attach(number)
    found = {}
    for command in COMMANDS:
        count: Counter[str] = Counter()
        with counted(count, monkeypatch):
            result = chain.call(command, config, names)
        if command == "ADD":
            config["prevResult"] = result
        found[command] = count
    chain.detach(names)
    return found


@pytest.mark.rotating(3)  # each has 60 attachments
@pytest.mark.parametrize("case", CASES)
def test_many_attachments_cost_what_one_costs(
    machine: Machine, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 60 attachments ADD, CHECK and DEL ask no more of the kernel than with one."""
    chain = Chain(machine, case)
    chain.call("ADD", *chain.attach(0))
    few = costs(chain, MANY, monkeypatch)
    for number in range(1, MANY):
        chain.call("ADD", *chain.attach(number))

    many = costs(chain, MANY, monkeypatch)

    for command in COMMANDS:
        assert few[command]["calls"] > 0
        for what, slack in (("messages", SLACK), ("kilobytes", KILOBYTES), ("calls", SLACK)):
            assert many[command][what] <= few[command][what] + slack, (command, what, many, few)


@pytest.mark.parametrize(("case", "command"), SENDS)
def test_sends(machine: Machine, case: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call on a network that another container is on asks the kernel no more often than this."""
    chain = Chain(machine, case)
    chain.call("ADD", *chain.attach(0))
    config, names = chain.attach(1)
    sent = []

    def send(self: Channel, data: bytes) -> None:
        sent.append(data)
        SEND(self, data)

    for one in ("ADD", "DEL"):
        sent.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Channel, "_send", send)
            result = chain.call(one, config, names)
        if one == command:
            assert len(sent) == SENDS[case, command]
        config["prevResult"] = result
