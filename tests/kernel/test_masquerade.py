"""Masquerading: the nftables and iptables that bridge makes, shares and takes away."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

import pytest

from cni_common.kernel import iptables, nft_layout, nft_table
from cni_common.kernel.netlink import Message
from cni_common.kernel.netns import NetNS
from tests.machine import Json, Machine, machine_at

V4, V6 = {"subnet": "10.9.0.0/24"}, {"subnet": "fd00:9::/64"}
OTHER_V4 = {"subnet": "10.19.0.0/24"}


def masquerading(machine: Machine, *subnets: Json, **keys: object) -> Json:
    """Return a configuration with ipMasq and one range set per subnet."""
    ranges = [[subnet] for subnet in subnets or (V4,)]
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges}
    return machine.network(**{"ipMasq": True, "ipam": ipam, **keys})


def chains(machine: Machine) -> list[str]:
    """Return the names of the chains of networks."""
    names = [entry["chain"]["name"] for entry in machine.nft() if "chain" in entry]
    return sorted(name for name in names if name.startswith("masquerade-"))


def saved(machine: Machine, command: str) -> list[str]:
    """Return table nat as `command` saves it, with a sign for every hash."""
    text = machine.command(machine.host, command, "-t", "nat")
    names: dict[str, str] = {}
    lines = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        for chain in re.findall(r"CNI-[0-9a-f]{24}", line):
            line = line.replace(chain, names.setdefault(chain, f"CHAIN{len(names)}"))
        lines.append(re.sub(r"\[\d+:\d+\]", "", line))
    return lines


# --- nftables ------------------------------------------------------------------------------


@pytest.mark.both_edges
def test_an_attachment_is_one_element(machine: Machine) -> None:
    """Ten containers add ten elements to one map, and not one rule."""
    config = masquerading(machine)
    machine.ok("bridge", "ADD", config, machine.container())
    rules = [entry for entry in machine.nft() if "rule" in entry]

    for number in range(2, 11):
        machine.ok("bridge", "ADD", config, machine.container(), containerid=f"c{number}")

    assert [entry for entry in machine.nft() if "rule" in entry] == rules
    assert machine.masqueraded() == {
        f"10.9.0.{number + 1}": f"bridge {machine.name} c{number} eth0" for number in range(1, 11)
    }


def test_layout(machine: Machine) -> None:
    """`nft` shows what was sent by netlink as it would show its own."""
    machine.ok("bridge", "ADD", masquerading(machine, V4, V6), machine.container())

    (chain,) = chains(machine)
    listing = machine.command(machine.host, "nft", "list", "table", "inet", "pycni")
    listing = re.sub(r" counter packets \d+ bytes \d+", "", listing)
    assert listing.split("\n") == [
        "table inet pycni {",
        "\tmap masquerade4 {",
        "\t\ttype ipv4_addr : verdict",
        "\t\tcounter",
        f'\t\telements = {{ 10.9.0.2 comment "bridge {machine.name} c1 eth0" : goto {chain} }}',
        "\t}",
        "",
        "\tmap masquerade6 {",
        "\t\ttype ipv6_addr : verdict",
        "\t\tcounter",
        f'\t\telements = {{ fd00:9::2 comment "bridge {machine.name} c1 eth0" : goto {chain} }}',
        "\t}",
        "",
        "\tchain postrouting {",
        "\t\ttype nat hook postrouting priority srcnat; policy accept;",
        "\t\tip saddr vmap @masquerade4",
        "\t\tip6 saddr vmap @masquerade6",
        "\t}",
        "",
        f"\tchain {chain} {{",
        "\t\tip daddr 10.9.0.0/24 accept",
        "\t\tip daddr 224.0.0.0/4 accept",
        "\t\tip6 daddr fd00:9::/64 accept",
        "\t\tip6 daddr ff00::/8 accept",
        "\t\tmasquerade",
        "\t}",
        "}",
        "",
    ]


def test_listing_can_be_loaded_again(machine: Machine) -> None:
    """The output of `nft list ruleset` is valid input for `nft -f`, as a firewall reloads it."""
    config = masquerading(machine, V4, V6, macspoofchk=True)
    machine.ok("bridge", "ADD", config, machine.container())
    before = machine.nft()
    listing = machine.command(machine.host, "nft", "list", "ruleset")

    machine.command(machine.host, "nft", "-f", "-", stdin=f"flush ruleset\n{listing}")

    assert machine.nft() == before


def test_tables_of_others_are_left_alone(machine: Machine) -> None:
    """Neither ADD nor DEL changes a table that is not ours."""
    foreign = """
    table inet o { chain c { type nat hook postrouting priority 5; ip saddr 10.9.0.2 accept; }; }
    table ip nat { chain POSTROUTING { type nat hook postrouting priority 100; }; }
    """
    machine.command(machine.host, "nft", "-f", "-", stdin=foreign)
    before = machine.nft()
    config, container = masquerading(machine), machine.container()

    machine.ok("bridge", "ADD", config, container)
    assert [entry for entry in before if entry not in machine.nft()] == []
    machine.ok("bridge", "DEL", config, container)

    assert machine.nft() == before


def test_chain_of_a_network_goes_with_its_last_container(machine: Machine) -> None:
    """The chain is shared; the table goes with the last network."""
    one = masquerading(machine)
    two = masquerading(machine, OTHER_V4, name=f"{machine.name}-2", bridge="br1")
    for config, containerid in ((one, "c1"), (one, "c2"), (two, "c3")):
        machine.ok("bridge", "ADD", config, machine.container(), containerid=containerid)
    assert len(chains(machine)) == 2

    left = []
    for config, containerid in ((one, "c1"), (one, "c2"), (two, "c3")):
        machine.ok("bridge", "DEL", config, containerid=containerid)
        left.append(len(chains(machine)))

    assert left == [2, 1, 0]
    assert machine.nft() == []


def test_changed_subnets_make_another_chain(machine: Machine) -> None:
    """Containers from before and after a change of the network's ranges go by their own subnets."""
    old, new = masquerading(machine, V4), masquerading(machine, V4, V6)
    machine.ok("bridge", "ADD", old, machine.container(), containerid="c1")

    result = machine.ok("bridge", "ADD", new, container := machine.container(), containerid="c2")

    assert len(chains(machine)) == 2
    machine.ok("bridge", "CHECK", {**new, "prevResult": result}, container, containerid="c2")
    machine.ok("bridge", "DEL", old, containerid="c1")
    assert len(chains(machine)) == 1


def test_element_of_a_dead_container_is_taken_over(machine: Machine) -> None:
    """An address that was freed without its element can be masqueraded for its next owner."""
    config = masquerading(machine)
    machine.ok("bridge", "ADD", config, machine.container(), args="IP=10.9.0.9")
    # An address that no other test's containers have: without a record, the address decides.
    table, key = nft_layout.TABLE, bytes([10, 9, 0, 77])
    host = NetNS(machine.host)
    chain = table.elements(host, "masquerade4")[0].chain
    nft_table.apply(
        host, [table.add_element("masquerade4", key, goto=chain, comment="bridge n dead eth0")]
    )
    host.close()

    machine.ok("bridge", "ADD", config, machine.container(), containerid="c2", args="IP=10.9.0.77")

    assert machine.masqueraded()["10.9.0.77"] == f"bridge {machine.name} c2 eth0"


def test_address_of_a_living_container_of_another_network(machine: Machine) -> None:
    """Two networks cannot masquerade one address: the second is told which one has it."""
    first = machine.container()
    machine.ok("bridge", "ADD", masquerading(machine), first)
    second = masquerading(machine, name=f"{machine.name}-2", bridge="br1")
    before = machine.masqueraded()

    error = machine.refused("bridge", "ADD", second, machine.container(), containerid="c2")

    assert f"10.9.0.2 is masqueraded for 'bridge {machine.name} c1 eth0'" in error["msg"]
    assert machine.masqueraded() == before


def test_a_table_that_vanishes_meanwhile_is_made_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the ruleset is flushed at any point of an ADD, the element is there in the end."""
    apply = nft_table.apply

    def flush_first(netns: NetNS, messages: Sequence[Message]) -> None:
        machine.do(machine.host, "nft flush ruleset")
        apply(netns, messages)

    monkeypatch.setattr(nft_table, "apply", flush_first)

    machine.ok("bridge", "ADD", masquerading(machine), machine.container())

    assert list(machine.masqueraded()) == ["10.9.0.2"]
    assert len(chains(machine)) == 1


def test_flushed_element_is_no_failure_of_del(machine: Machine) -> None:
    """DEL succeeds after a flush of the ruleset."""
    config = masquerading(machine, macspoofchk=True)
    machine.ok("bridge", "ADD", config, container := machine.container())
    machine.do(machine.host, "nft flush ruleset")

    machine.ok("bridge", "DEL", config, container)

    assert machine.leases() == []


def test_del_that_a_gc_outruns(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that goes between the look and the deletion is as good as deleted."""
    config = masquerading(machine, V4, V6)
    machine.ok("bridge", "ADD", config, container := machine.container())
    apply = nft_table.apply
    commands = ["nft delete element inet pycni masquerade6 { fd00:9::2 }"]

    def outrun(netns: NetNS, messages: Sequence[Message]) -> None:
        while commands:
            machine.do(machine.host, commands.pop())
        apply(netns, messages)

    monkeypatch.setattr(nft_table, "apply", outrun)

    machine.ok("bridge", "DEL", config, container)

    assert machine.nft() == []


def test_long_names(machine: Machine) -> None:
    """An owner that does not fit into an element's comment is told by a digest, and deleted."""
    config = masquerading(machine)
    container, containerid = machine.container(), "c" * 300

    machine.ok("bridge", "ADD", config, container, containerid=containerid)
    assert next(iter(machine.masqueraded().values())).startswith("bridge sha256:")
    machine.ok("bridge", "DEL", config, container, containerid=containerid)

    assert machine.nft() == []


# --- iptables ------------------------------------------------------------------------------


@pytest.mark.parametrize("subnets", [(V4,), (V6,), (V4, V6)], ids=["ipv4", "ipv6", "dual"])
def test_iptables_layout_is_the_reference_s(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory, subnets: Sequence[Json]
) -> None:
    """`iptables-save` after our ADD is, up to hashes, that after the Go plugin's."""
    config = masquerading(machine, *subnets, ipMasqBackend="iptables")
    machine.ok("bridge", "ADD", config, machine.container())
    listings = {}

    with machine_at(tmp_path_factory.mktemp("other"), machine.name) as other:
        config = masquerading(other, *subnets, ipMasqBackend="iptables")
        other.reference("bridge", "ADD", config, other.container())
        for command in ("iptables-save", "ip6tables-save"):
            listings[command] = saved(machine, command), saved(other, command)

    for ours, theirs in listings.values():
        assert ours == theirs
    assert any("MASQUERADE" in line for ours, _ in listings.values() for line in ours)


def test_every_subnet_is_accepted_before_anything_is_masqueraded(machine: Machine) -> None:
    """The rules of a container with two IPv4 addresses are in the right order."""
    config = masquerading(machine, V4, OTHER_V4, ipMasqBackend="iptables")

    machine.ok("bridge", "ADD", config, machine.container())

    rules = [line for line in saved(machine, "iptables-save") if line.startswith("-A CHAIN0")]
    targets = [rule.rpartition(" ")[2] for rule in rules]
    assert targets == ["ACCEPT", "ACCEPT", "MASQUERADE"]


def test_each_interface_has_its_own_chain(machine: Machine) -> None:
    """DEL of one of a container's two interfaces leaves the other one's rules."""
    config, container = masquerading(machine, ipMasqBackend="iptables"), machine.container()
    for ifname in ("eth0", "eth1"):
        machine.ok("bridge", "ADD", config, container, ifname=ifname)

    machine.ok("bridge", "DEL", config, container, ifname="eth0")

    jumps = [line for line in saved(machine, "iptables-save") if "-A POSTROUTING" in line]
    assert len(jumps) == 1
    assert "-s 10.9.0.3/32" in jumps[0]


def test_del_with_two_addresses_and_no_namespace(machine: Machine) -> None:
    """All jumps go before the chain does, by the record alone and at the first attempt."""
    config = masquerading(machine, V4, OTHER_V4, V6, ipMasqBackend="iptables")
    machine.ok("bridge", "ADD", config, container := machine.container())
    machine.forget(container)

    machine.ok("bridge", "DEL", config)

    for command in ("iptables-save", "ip6tables-save"):
        assert not [line for line in saved(machine, command) if "CHAIN" in line]


def test_chains_of_names_that_run_together(machine: Machine) -> None:
    """Container "bc" of network "a" and "c" of "ab" do not share a chain."""
    names = [("bc", machine.name), ("c", f"{machine.name}b")]
    for containerid, name in names:
        config = masquerading(machine, name=name, ipMasqBackend="iptables")
        machine.ok("bridge", "ADD", config, machine.container(), containerid=containerid)

    config = masquerading(machine, name=machine.name, ipMasqBackend="iptables")
    machine.ok("bridge", "DEL", config, containerid="bc")

    assert len([line for line in saved(machine, "iptables-save") if "MASQUERADE" in line]) == 1


@pytest.mark.without_engine(reason="watches this process")
def test_iptables_is_run_once_per_family(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADD gives all its rules to one iptables-restore, which waits a bounded time for the lock."""
    commands: list[list[str]] = []
    real = subprocess.Popen.__init__

    def record(self: subprocess.Popen[str], args: list[str], **kwargs: object) -> None:
        commands.append(args)
        real(self, args, **kwargs)  # type: ignore[call-overload]

    config = masquerading(machine, V4, OTHER_V4, V6, ipMasqBackend="iptables")
    container = machine.container()
    monkeypatch.setattr(subprocess.Popen, "__init__", record)

    machine.ok("bridge", "ADD", config, container)

    assert [command[0].rpartition("/")[2] for command in commands] == [
        "iptables-restore",
        "ip6tables-restore",
    ]
    assert all(command[1:] == ["-w", "5", "--noflush"] for command in commands)


def test_iptables_lock_that_is_not_given(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An iptables that does not end in time fails the ADD as one to be tried again."""
    monkeypatch.setattr(iptables, "_RUN_SECONDS", 0)

    error = machine.refused(
        "bridge", "ADD", masquerading(machine, ipMasqBackend="iptables"), machine.container()
    )

    assert error["code"] == 11
    assert "did not end within 0 s" in error["msg"]
    assert machine.leases() == []


def test_rules_of_others_stay(machine: Machine) -> None:
    """ADD and DEL with the iptables backend leave foreign rules and chains as they are."""
    machine.do(
        machine.host,
        "iptables -t nat -N OTHER",
        "iptables -t nat -A POSTROUTING -s 10.0.0.0/8 -j OTHER",
        "iptables -t nat -A OTHER -j RETURN",
    )
    before = saved(machine, "iptables-save")
    config, container = masquerading(machine, ipMasqBackend="iptables"), machine.container()

    machine.ok("bridge", "ADD", config, container)
    machine.ok("bridge", "DEL", config, container)

    assert saved(machine, "iptables-save") == before


def test_reference_leaves_our_iptables_rules(machine: Machine) -> None:
    """A DEL of the Go plugin for an attachment of ours does not fail on them, nor ours after it."""
    config, container = masquerading(machine, ipMasqBackend="iptables"), machine.container()
    machine.ok("bridge", "ADD", config, container)

    machine.reference("bridge", "DEL", config, container)
    machine.ok("bridge", "DEL", config, container)

    assert not [line for line in saved(machine, "iptables-save") if "CHAIN" in line]
    assert machine.leases() == []
