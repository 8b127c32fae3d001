"""host-device on a real kernel: which device, what it has before and after, DEL, GC, STATUS.

"Unlike the reference" begins the account of each defect of the Go plugin that this one has not.
The device is the host's `uplink`, a veth; behind it are 192.0.2.2 and 2001:db8::2. Hardware, which
the kernel gives back by itself, is in test_host_device_hardware.py.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni_common.node.liveness import GRACE_SECONDS
from commands import DONE, FOUND
from tests.kernel.lent import (
    IPV4,
    IPV6,
    NOTHING,
    at_home,
    await_home,
    forget_records,
    have,
    left,
    network,
    rich_device,
    still_device,
)
from tests.kernel.test_commands import age as age_for_commands
from tests.kernel.test_commands import asked, kinds
from tests.kernel.test_macvlan import watching
from tests.kernel.test_rollback import calm
from tests.machine import REFERENCE_BIN, Json, Machine, addresses_of, files_below
from tests.resident import start_in

KEY = "cni.dev/valid-attachments"
MAC = "02:00:00:00:00:77"


def calm_container(machine: Machine) -> str:
    """Return a container in which the detection of duplicates takes milliseconds."""
    container = machine.container()
    calm(machine, container)
    return container


# --- there and back --------------------------------------------------------------------------


@pytest.mark.both_edges
def test_there_and_back(machine: Machine) -> None:
    """Unlike the reference, the device comes home with all that it had, not bare and down."""
    rich_device(machine)
    before = have(machine)
    container = calm_container(machine)
    config = network(machine, IPV4, IPV6, dns={"domain": "a"})

    result = machine.ok("host-device", "ADD", config, container)

    assert not at_home(machine)
    link = machine.link(container, "eth0")
    assert link is not None
    assert result["interfaces"] == [
        {"name": "eth0", "mac": before["address"], "mtu": 1400, "sandbox": container}
    ]
    assert machine.addresses(container, "eth0") == [ip["address"] for ip in result["ips"]]
    assert (result["dns"], [ip["interface"] for ip in result["ips"]]) == ({"domain": "a"}, [0, 0])
    assert all(machine.ping(container, address) for address in ("192.0.2.2", "2001:db8::2"))
    machine.ok("host-device", "CHECK", {**config, "prevResult": result}, container)
    for _ in range(2):  # unlike the reference's, DEL can be repeated
        machine.ok("host-device", "DEL", config, container)
    await_home(machine, before)
    assert machine.ping(machine.host, "192.0.2.2")
    assert left(machine) == NOTHING
    assert [one["ifname"] for one in machine.ip(container, "link")] == ["lo"]
    assert not any("comes home" in line for line in machine.log)


def test_what_the_container_changed(machine: Machine) -> None:
    """MAC, MTU, queue, alias, name and modes are the host's own again."""
    rich_device(machine)
    before, config = have(machine), network(machine)
    container = machine.container()
    machine.ok("host-device", "ADD", config, container)
    machine.do(
        container,
        f"ip link set eth0 address {MAC}",
        "ip link set eth0 mtu 900 txqueuelen 5 allmulticast on promisc off",
        "ip link set eth0 down",
        "ip link set eth0 name other",
    )
    machine.command(container, "ip", "link", "set", "other", "alias", "")

    machine.ok("host-device", "DEL", config, "")

    await_home(machine, before)


def test_a_device_that_was_down(machine: Machine) -> None:
    """It comes home down, with its addresses, and without IPAM it had none in the container."""
    machine.outside()
    machine.do(machine.host, "ip link set uplink down", "ip addr add 192.0.2.7/24 dev uplink")
    before, container = have(machine), machine.container()

    result = machine.ok("host-device", "ADD", network(machine), container)

    assert "ips" not in result
    link = machine.link(container, "eth0")
    assert link is not None
    assert "UP" in link["flags"]
    machine.do(container, "ip addr add 192.0.2.1/24 dev eth0")
    assert machine.ping(container, "192.0.2.2")
    machine.ok("host-device", "DEL", network(machine), container)
    await_home(machine, before)
    assert not before["up"]


def test_a_port_of_a_bridge(machine: Machine) -> None:
    """The device is a port of its bridge again."""
    machine.outside()
    machine.do(machine.host, "ip link add br0 type bridge", "ip link set uplink master br0")
    before, container = have(machine), machine.container()
    for _ in range(2):
        machine.ok("host-device", "ADD", network(machine), container)
        machine.ok("host-device", "DEL", network(machine), container)
        await_home(machine, before)
    assert before["master"] == "br0"
    machine.ok("host-device", "ADD", network(machine), container)
    machine.command(machine.host, "ip", "link", "del", "br0")

    machine.ok("host-device", "DEL", network(machine), container)

    assert at_home(machine)
    assert any("without master 'br0'" in line for line in machine.log)


def test_seen_under_its_name_alone(machine: Machine) -> None:
    """No program of the host ever sees it as eth0, nor in a namespace made for the move."""
    still_device(machine)
    container, config = machine.container(), network(machine)
    with watching(machine, machine.host) as seen:
        machine.ok("host-device", "ADD", config, container)
        machine.ok("host-device", "DEL", config, container)

    assert seen == {"lo", "uplink"}


def test_a_name_that_is_taken(machine: Machine) -> None:
    """Where another interface has its name by now, it comes home as devN, and the log says so."""
    machine.outside()
    container, config = machine.container(), network(machine)
    machine.ok("host-device", "ADD", config, container)
    machine.do(machine.host, "ip link add uplink type ifb")

    machine.ok("host-device", "DEL", config, container)

    (name,) = [one for one in machine.ports() if one.startswith("dev")]
    assert any(f"comes home as '{name}'" in line for line in machine.log)
    assert machine.addresses(machine.host, name) == ["192.0.2.1/24", "2001:db8::1/64"]
    assert machine.addresses(machine.host, "uplink") == []


def test_routes_that_have_no_place(machine: Machine) -> None:
    """A name or address that others have got meanwhile is logged, and does not keep the device."""
    machine.outside()
    machine.do(machine.host, "ip link add other0 type ifb", "ip link set other0 up")
    machine.do(machine.host, "ip route add 10.8.0.0/16 nexthop dev uplink nexthop dev other0")
    container, config = machine.container(), network(machine)
    machine.ok("host-device", "ADD", config, container)
    machine.command(machine.host, "ip", "link", "del", "other0")

    machine.ok("host-device", "DEL", config, container)

    assert at_home(machine)
    assert any("without route 10.8.0.0/16" in line for line in machine.log)


# --- which device -----------------------------------------------------------------------------


def test_ways_to_a_device(machine: Machine) -> None:
    """By name, by an alternative name, by its MAC in each notation."""
    still_device(machine, mac=MAC)
    altname = "a-name-of-more-than-fifteen-bytes"
    machine.command(
        machine.host, "ip", "link", "property", "add", "dev", "uplink", "altname", altname
    )
    before, container = have(machine), machine.container()
    for keys in (
        {
            "device": "uplink",
            "hwaddr": "02:00:00:00:00:01",
            "cniVersion": "0.3.1",
        },  # the name counts
        {"device": altname},
        {"device": "", "hwaddr": MAC},
        {"device": None, "hwaddr": "02-00-00-00-00-77", "kernelpath": "/sys/devices/none"},
        {"device": None, "hwaddr": "0200.0000.0077"},
    ):
        config = network(machine, **keys)
        result = machine.ok("host-device", "ADD", config, container)
        assert result["interfaces"][0]["mac"] == MAC
        machine.ok("host-device", "DEL", config, container)
        await_home(machine, before)


def test_one_mac_of_several(machine: Machine) -> None:
    """Unlike the reference, which takes the first: one that only borrows the MAC is not meant."""
    machine.outside()
    machine.do(
        machine.host,
        f"ip link set uplink address {MAC}",
        "ip link add top0 link uplink type macvlan mode passthru",
    )
    assert (machine.link(machine.host, "top0") or {})["address"] == MAC
    config, container = network(machine, device=None, hwaddr=MAC), machine.container()
    machine.ok("host-device", "ADD", config, container)
    assert not at_home(machine)
    machine.ok("host-device", "DEL", config, container)
    machine.command(machine.host, "ip", "link", "del", "top0")
    machine.do(
        machine.host, f"ip link add br0 address {MAC} type bridge", "ip link set uplink master br0"
    )
    machine.ok("host-device", "ADD", config, container)
    machine.ok("host-device", "DEL", config, container)
    machine.do(machine.host, "ip link set uplink nomaster")

    error = machine.refused("host-device", "ADD", config, container)

    assert (error["code"], "'br0', 'uplink' have the MAC" in error["msg"]) == (7, True)
    assert at_home(machine)
    assert left(machine) == NOTHING


REFUSED: tuple[tuple[Json, int, str], ...] = (
    ({"device": None}, 7, "specify either"),
    ({"device": "absent"}, 50, "no interface 'absent'"),
    ({"device": "lo"}, 7, "every namespace's own"),
    ({"device": "a/b"}, 7, '"device"'),
    ({"device": "x" * 128}, 7, "at most 127"),
    ({"device": 5}, 7, "device"),
    ({"device": None, "hwaddr": "02:00:00:00:00:99"}, 50, "MAC 02:00:00:00:00:99"),
    ({"device": None, "hwaddr": "02:00"}, 7, "hwaddr"),
    ({"device": None, "hwaddr": "00:00:00:00:00:00"}, 50, "00:00"),
    ({"device": None, "kernelpath": "/sys/class/net/lo"}, 7, "/sys/devices/"),
    ({"device": None, "kernelpath": "/sys/devices/../class"}, 7, "/sys/devices/"),
    ({"device": None, "kernelpath": "/sys/devices/none"}, 50, "/sys/devices/none/net"),
    ({"device": None, "pciBusID": "0000:ff:1f.7"}, 50, "has no driver"),
    ({"device": None, "pciBusID": "../x"}, 7, "pciBusID"),
    ({"device": None, "runtimeConfig": {"deviceID": "none"}}, 50, "'none'"),
    ({"runtimeConfig": {"deviceID": "none"}}, 50, "'none'"),
    ({"runtimeConfig": {"deviceID": ".."}}, 7, "deviceID"),
    ({"runtimeConfig": {"deviceID": 1}}, 7, "deviceID"),
    ({"DPDKMode": "yes"}, 7, "DPDKMode"),
    ({"device": "br0"}, 999, "'br0'"),
    ({"cniVersion": "0.2.0"}, 1, "no valid IP addresses"),  # without any, it cannot be told
    ({"ipam": {"type": "absent"}}, 50, "absent"),
    # Unlike the reference's, an ADD whose IPAM plugin fails brings the device home.
    ({"ipam": {"type": "static"}}, 999, "missing IP config"),
    (
        {
            "ipam": {
                "type": "static",
                "addresses": [{"address": "10.5.5.5/24"}],
                "routes": [{"dst": "10.3.0.0/16", "gw": "10.9.0.77"}],
            }
        },
        7,
        "cannot reach gateway 10.9.0.77",
    ),
)


def test_refused(machine: Machine) -> None:
    """A configuration that cannot work is refused; the device is at home with all that it has."""
    still_device(machine)
    machine.do(machine.host, "ip link add br0 type bridge")
    before, container = have(machine), machine.container()

    for keys, code, says in REFUSED:
        error = machine.refused("host-device", "ADD", network(machine, **keys), container)

        assert (error["code"], says in error["msg"]) == (code, True), error
        await_home(machine, before)
        assert left(machine) == NOTHING
    assert [one["ifname"] for one in machine.ip(container, "link")] == ["lo"]


def test_interface_that_exists(machine: Machine) -> None:
    """A container that has CNI_IFNAME keeps it, and the host its device."""
    still_device(machine)
    before, container = have(machine), machine.container()
    machine.do(container, "ip link add eth0 type ifb")

    assert machine.refused("host-device", "ADD", network(machine), container)["code"] == 4

    await_home(machine, before)


# --- one device, several containers ---------------------------------------------------------


@pytest.mark.both_edges
def test_crossing_adds(machine: Machine) -> None:
    """Of containers that ask for one device at once exactly one gets it; the others harm nobody."""
    still_device(machine)
    before, config = have(machine), network(machine)
    containers = [machine.container() for _ in range(6)]

    def add(number: int) -> tuple[int, str]:
        reply = machine.invoke(
            "host-device", "ADD", config, containers[number], containerid=f"c{number}"
        )
        return reply.exit_code, reply.stdout.decode()

    for _ in range(3):
        with ThreadPoolExecutor(len(containers)) as pool:
            replies = list(pool.map(add, range(len(containers))))

        (winner,) = [number for number, (status, _) in enumerate(replies) if not status]
        assert all('"code": 11' in text for status, text in replies if status), replies
        for number, container in enumerate(containers):
            if number != winner:
                machine.ok("host-device", "DEL", config, container, containerid=f"c{number}")
        assert machine.link(containers[winner], "eth0") is not None
        machine.ok("host-device", "DEL", config, containers[winner], containerid=f"c{winner}")
        await_home(machine, before)
        assert left(machine) == NOTHING


def test_device_of_another_container(machine: Machine) -> None:
    """It is not taken, by whatever key; the error names its container."""
    still_device(machine, mac=MAC)
    config = network(machine)
    first = machine.container()
    machine.ok("host-device", "ADD", config, first)
    second = machine.container()

    for keys in ({}, {"name": f"{machine.name}-2"}, {"device": None, "hwaddr": MAC}):
        other = {**network(machine, **keys)}
        error = machine.refused("host-device", "ADD", other, second, containerid="c2")
        assert (error["code"], "container c1" in error["msg"]) == (11, True)
        machine.ok("host-device", "DEL", other, second, containerid="c2")
        machine.ok("host-device", "DEL", other, first, containerid="c2")  # a path used again
    assert machine.link(first, "eth0") is not None


def test_second_add(machine: Machine) -> None:
    """An attachment that lives is refused with 4; one whose namespace has ended begins anew."""
    machine.outside()
    config, container = network(machine, IPV4), calm_container(machine)
    machine.ok("host-device", "ADD", config, container)

    assert machine.refused("host-device", "ADD", config, machine.container())["code"] == 4
    assert machine.ping(container, "192.0.2.2")
    machine.forget(container)  # with its virtual device

    assert machine.refused("host-device", "ADD", config, machine.container())["code"] == 50
    assert left(machine) == NOTHING


# --- CHECK ---------------------------------------------------------------------------------


def test_check(machine: Machine) -> None:
    """CHECK names what is no longer as ADD has made it, also another interface of its name."""
    machine.outside()
    config, container = network(machine, IPV4), calm_container(machine)
    result = machine.ok("host-device", "ADD", config, container)
    checked = {**config, "prevResult": result}
    for line, says, mend in (
        ("ip addr add 10.7.7.7/24 dev eth0", "", ""),
        ("ip link set eth0 mtu 1300", "MTU", "ip link set eth0 mtu 1500"),
        ("ip link set eth0 down", "is down", "ip link set eth0 up"),
        ("ip addr flush dev eth0", "192.0.2.10/24", ""),
        ("ip link set eth0 name other", "missing", ""),
        ("ip link add eth0 type ifb", "not the device 'uplink'", ""),
    ):
        machine.command(container, *line.split())
        if says:
            error = machine.refused("host-device", "CHECK", checked, container)
            assert says in error["msg"], error
        else:
            machine.ok("host-device", "CHECK", checked, container)
        if mend:
            machine.command(container, *mend.split())
    assert machine.refused("host-device", "CHECK", config, container)["code"] == 7


# --- DEL -----------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", ["there", "unknown", "gone"])
def test_delete(machine: Machine, namespace: str) -> None:
    """Unlike the reference's, DEL needs neither namespace nor a right configuration nor device."""
    changes: list[Json] = [{}, {"device": "absent"}, {"pciBusID": 5, "hwaddr": "x"}]
    for change in (*changes, {"device": None}, {"ipam": None}) if namespace == "there" else changes:
        if not at_home(machine):
            still_device(machine)
        before, config = have(machine), network(machine, IPV4)
        container = machine.container()
        machine.ok("host-device", "ADD", config, container)
        if namespace == "gone":  # the kernel destroys a virtual device
            machine.forget(container)

        for _ in range(2):
            netns = "" if namespace == "unknown" else container
            machine.ok("host-device", "DEL", {**config, **change}, netns)

        assert left(machine) == NOTHING
        if namespace != "gone":
            await_home(machine, before)


def test_delete_with_nothing_known(machine: Machine) -> None:
    """DEL of what was never added succeeds, and touches no interface."""
    still_device(machine)
    before, config, container = have(machine), network(machine, IPV4), machine.container()
    machine.do(container, "ip link add eth0 type ifb")
    missing = {"device": None, "pciBusID": "0000:ff:1f.7"}

    for given in (config, network(machine, **missing), network(machine, device=None, ipam={})):
        for netns in (container, "/no/such/netns", ""):
            machine.ok("host-device", "DEL", given, netns)

    await_home(machine, before)
    assert machine.link(container, "eth0") is not None
    assert left(machine) == NOTHING


def test_delete_of_a_device_that_vanished(machine: Machine) -> None:
    """Unlike the reference's, DEL succeeds when the device is no longer there; the log says so."""
    still_device(machine)
    config, container = network(machine, IPV4), machine.container()
    machine.ok("host-device", "ADD", config, container)
    machine.command(container, "ip", "link", "del", "eth0")

    machine.ok("host-device", "DEL", config, container)

    assert left(machine) == NOTHING
    assert any("'uplink' is gone" in line for line in machine.log)


def test_delete_without_a_path(machine: Machine) -> None:
    """A namespace that only a process holds is found."""
    still_device(machine)
    before, config, container = have(machine), network(machine), machine.container()
    machine.ok("host-device", "ADD", config, container)
    process = start_in(container, "sleep", "infinity")
    try:
        machine.forget(container)
        machine.ok("host-device", "DEL", config, container)
        await_home(machine, before)
    finally:
        process.kill()
        process.wait()


def test_delete_of_the_reference(machine: Machine) -> None:
    """The Go plugin's device comes home, and ours by the Go plugin; the alias is the same."""
    still_device(machine)
    config, container, path = network(machine, IPV4), machine.container(), f"{REFERENCE_BIN}"
    machine.reference("host-device", "ADD", config, container, path=path)
    theirs = machine.link(container, "eth0")
    machine.ok("host-device", "DEL", config, container)
    assert at_home(machine)
    assert not (machine.link(machine.host, "uplink") or {}).get("ifalias")
    assert left(machine) == NOTHING

    machine.ok("host-device", "ADD", config, container)
    ours = machine.link(container, "eth0")
    assert ours is not None
    assert theirs is not None
    assert ours["ifalias"] == theirs["ifalias"] == "uplink"
    machine.reference("host-device", "DEL", config, container, path=path)
    assert (at_home(machine), machine.leases()) == (True, [])
    machine.ok("host-device", "DEL", config, container)
    assert left(machine) == NOTHING


def test_delete_without_the_record(machine: Machine) -> None:
    """After a loss of the records the device comes home bare, as with the reference."""
    machine.outside()
    config, container = network(machine, IPV4), machine.container()
    result = machine.ok("host-device", "ADD", config, container)
    forget_records(machine)
    other = {**config, "name": f"{machine.name}-2", "device": "other0"}
    machine.ok("host-device", "DEL", other, container)
    assert not at_home(machine)

    machine.ok("host-device", "DEL", {**config, "prevResult": result}, container)

    assert at_home(machine)
    assert machine.leases() == []


# --- GC, STATUS, the commands ----------------------------------------------------------------


def age(machine: Machine) -> None:
    """Make all records and leases older than GC's grace time."""
    leases = [Path(machine.data_dir, machine.name, address) for address in machine.leases()]
    for path in (*map(Path, files_below(machine.state_dir)), *leases):
        os.utime(path, (path.stat().st_mtime - GRACE_SECONDS - 60,) * 2)


def test_gc(machine: Machine) -> None:
    """GC ends the attachment of a dead container, and spares a living one and a listed one."""
    subnet = {"subnet": "10.119.57.0/24"}
    containers = {name: machine.container() for name in ("dead", "living", "listed")}
    configs = {}
    for name, container in containers.items():
        still_device(machine, f"{name}0")
        configs[name] = network(machine, subnet, device=f"{name}0")
        machine.ok("host-device", "ADD", configs[name], container, containerid=name)
    machine.forget(containers["dead"])
    age(machine)

    valid = [{"containerID": "listed", "ifname": "eth0"}]
    machine.ok("host-device", "GC", {**configs["dead"], KEY: valid})

    assert machine.leases() == ["10.119.57.3", "10.119.57.4"]
    assert machine.link(containers["living"], "eth0") is not None
    assert machine.link(containers["listed"], "eth0") is not None


@pytest.mark.both_edges
def test_status(machine: Machine) -> None:
    """STATUS misses the device, but not while a container has it: the node is sound then."""
    config, container = network(machine, IPV4), machine.container()
    assert machine.refused("host-device", "STATUS", config)["code"] == 50
    assert machine.refused("host-device", "STATUS", network(machine, device=None))["code"] == 7
    by_runtime = network(machine, device=None, capabilities={"deviceID": True})
    machine.ok("host-device", "STATUS", by_runtime)
    still_device(machine)
    machine.ok("host-device", "STATUS", config)
    machine.ok("host-device", "ADD", config, container)
    machine.ok("host-device", "STATUS", config)

    assert machine.refused("host-device", "STATUS", {**config, "hwaddr": "x"})["code"] == 7
    missing = network(machine, ipam={"type": "absent"})
    assert machine.refused("host-device", "STATUS", missing)["code"] == 50


@pytest.mark.without_engine("the commands know nothing of it")
def test_commands(machine: Machine) -> None:
    """`explain` finds the container by its device; `audit` and `reclaim` find a dead one."""
    machine.outside()
    config = network(machine, {"subnet": "10.119.58.0/24"})
    container = machine.container()
    machine.ok("host-device", "ADD", config, container, containerid="dead")
    shown = ["address", "mac", "moved-device", "mtu"]

    def objects(word: str, status: int) -> Json:
        (one,) = asked(machine, "explain", word, status=status)["attachments"]
        assert kinds(one["objects"]) == shown
        return {one["kind"]: one["present"] for one in one["objects"]}

    assert objects("uplink", DONE) == dict.fromkeys(shown, True)
    machine.do(container, f"ip link set eth0 address {MAC}")
    assert objects("dead", FOUND) == {**dict.fromkeys(shown, True), "mac": False}
    machine.command(container, "ip", "link", "del", "eth0")
    assert objects("dead", FOUND) == dict.fromkeys(shown, False)
    machine.forget(container)
    age_for_commands(machine)
    assert kinds(asked(machine, "audit", status=FOUND)["findings"]) == ["lease", "record"]
    assert asked(machine, "reclaim", status=FOUND)["removed"] == []
    age_for_commands(machine)
    assert kinds(asked(machine, "reclaim")["removed"]) == ["lease", "record"]
    assert asked(machine, "audit")["findings"] == []


@pytest.mark.without_engine("the commands know nothing of it")
def test_beside_another_network(machine: Machine) -> None:
    """As Multus calls it: net1 beside the main network, deviceID absent, DEL in reverse."""
    still_device(machine)
    before, container = have(machine), machine.container()
    main = machine.network()
    machine.ok("bridge", "ADD", main, container)
    config = network(machine, IPV4, name=f"{machine.name}-2", cniVersion="0.3.1")
    args = "IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_UID=9"
    result = machine.ok("host-device", "ADD", config, container, ifname="net1", args=args)

    assert addresses_of(result) == ["192.0.2.10"]
    machine.ok("host-device", "DEL", config, container, ifname="net1", args=args)
    machine.ok("bridge", "DEL", main, container)
    await_home(machine, before)
    assert left(machine)["records"] == []
