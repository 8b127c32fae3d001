"""host-device by PCI address, auxiliary device, kernelpath; DPDK: the Go plugin beside ours.

The tests run in a process for which /sys/bus and /sys/devices are directories of the test.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.kernel.lent import IPV4, NOTHING, at_home, await_home, have, left, network, still_device
from tests.machine import REFERENCE_BIN, Json, Machine
from tests.waits import GENEROUS

pytestmark = [
    pytest.mark.without_engine(reason="an engine has another /sys"),
]

NIC, VIRTIO, BARE, UNBOUND = (f"0000:00:0{number}.0" for number in (5, 6, 7, 8))
AUXILIARY = "mlx5_core.sf.4"
CLONE_NEWNS = 0x20000  # linux/sched.h


def make_devices(root: Path) -> None:
    """Make what is below /sys: a device of each kind, all of which have `uplink`."""
    for directory in (
        f"bus/pci/devices/{NIC}/net/uplink",
        f"bus/pci/devices/{VIRTIO}/virtio3/net/uplink",
        f"bus/pci/devices/{BARE}",
        f"bus/pci/devices/{UNBOUND}",
        f"bus/auxiliary/devices/{AUXILIARY}/net/uplink",
        f"devices/pci0000:00/{NIC}/net/uplink",
    ):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for device, driver in ((NIC, "e1000e"), (VIRTIO, "virtio-pci"), (BARE, "vfio-pci")):
        link = root / f"bus/pci/devices/{device}/driver"
        if not link.is_symlink():
            os.symlink(f"../../drivers/{driver}", link)


def where_sys_is(root: Path, function: Callable[[], None]) -> None:
    """Call `function` in a process that sees the directories of `root` below /sys."""
    make_devices(root)
    for driver in ("e1000e", "virtio-pci", "vfio-pci"):
        (root / "bus/pci/drivers" / driver).mkdir(parents=True)

    def run() -> None:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for name in ("bus", "devices"):
            subprocess.run(["mount", "--bind", root / name, f"/sys/{name}"], check=True)
        function()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(GENEROUS)
    assert process.exitcode == 0, "see its traceback on stderr"


WAYS: tuple[tuple[Json, str], ...] = (
    ({"kernelpath": f"/sys/devices/pci0000:00/{NIC}"}, ""),
    ({"pciBusID": NIC}, NIC),
    ({"pciBusID": VIRTIO}, VIRTIO),
    ({"pciBusID": UNBOUND, "runtimeConfig": {"deviceID": NIC}}, NIC),
    ({"runtimeConfig": {"deviceID": AUXILIARY}}, ""),
    ({"device": "uplink", "runtimeConfig": {"deviceID": VIRTIO}}, ""),
)


def test_ways(machine: Machine, tmp_path: Path) -> None:
    """Both plugins find the device, and say the same, but for MTU and PCI address."""
    still_device(machine)
    where_sys_is(tmp_path / "sys", partial(_try_ways, machine, tmp_path / "sys"))


def _try_ways(machine: Machine, sys: Path) -> None:
    path, before = str(REFERENCE_BIN), have(machine)
    for keys, pci in WAYS:
        container, second = machine.container(), machine.container()
        config = network(machine, **{"device": None, **keys})
        ours = machine.ok("host-device", "ADD", config, container)
        (own,) = ours["interfaces"]
        assert (own.pop("mtu"), own.pop("pciID", "")) == (1400, pci), keys
        machine.ok("host-device", "CHECK", {**config, "prevResult": ours}, container)
        for directory in sys.rglob("net"):  # it is empty once the device is in a container
            shutil.rmtree(directory / "uplink")
        if "kernelpath" not in keys:
            machine.ok("host-device", "STATUS", config)
            error = machine.refused("host-device", "ADD", config, second, containerid="c2")
            assert (error["code"], "container c1" in error["msg"]) == (11, True), error
        shutil.rmtree(sys / "bus/pci/devices")
        # Unlike the reference's, DEL does not need the PCI device.
        machine.ok("host-device", "DEL", config, container)
        await_home(machine, before)
        make_devices(sys)
        theirs = machine.reference("host-device", "ADD", config, container, path=path)
        machine.reference("host-device", "DEL", config, container, path=path)
        assert ours == theirs, keys
        machine.command(machine.host, "ip", "link", "del", "uplink")
        still_device(machine)
    assert left(machine) == NOTHING


def test_device_of_user_space(machine: Machine, tmp_path: Path) -> None:
    """A device that DPDK drives stays where it is; the container alone has it, with an address."""
    still_device(machine)
    where_sys_is(tmp_path / "sys", partial(_try_user_space, machine))


def _try_user_space(machine: Machine) -> None:
    path = str(REFERENCE_BIN)
    for config in (
        network(machine, device=None, pciBusID=BARE),
        network(machine, IPV4, device=None, runtimeConfig={"deviceID": BARE}, DPDKMode=False),
        network(machine, DPDKMode=True),
    ):
        container, second = machine.container(), machine.container()
        theirs = machine.reference("host-device", "ADD", config, container, path=path)
        machine.reference("host-device", "DEL", config, container, path=path)

        ours = machine.ok("host-device", "ADD", config, container)

        is_pci = config.get("device") is None
        assert ours["interfaces"][0].pop("pciID", "") == (BARE if is_pci else "")
        assert _without_address(ours) == _without_address(theirs)
        assert [one["ifname"] for one in machine.ip(container, "link")] == ["lo"]
        machine.ok("host-device", "CHECK", {**config, "prevResult": ours}, container)
        machine.ok("host-device", "STATUS", config)
        if is_pci:
            error = machine.refused("host-device", "ADD", config, second, containerid="c2")
            assert (error["code"], "container c1" in error["msg"]) == (11, True), error
            machine.ok("host-device", "DEL", config, second, containerid="c2")
        machine.ok("host-device", "DEL", config, container)
        machine.ok("host-device", "DEL", config, container)
        assert at_home(machine)
        assert left(machine) == NOTHING


def _without_address(result: Json) -> Json:
    """Return a result without what the next ADD of host-local gives anew."""
    ips = [{**ip, "address": ""} for ip in result.get("ips", ())]
    return {**result, "ips": ips}


def test_without_a_driver(machine: Machine, tmp_path: Path) -> None:
    """A PCI device without a driver is refused, and so is one that has no interface."""
    where_sys_is(tmp_path / "sys", partial(_try_without_a_driver, machine))


def _try_without_a_driver(machine: Machine) -> None:
    container = machine.container()
    for keys, says in (
        ({"pciBusID": UNBOUND}, "has no driver"),
        ({"runtimeConfig": {"deviceID": "0000:00:19.0"}}, "neither a PCI device"),
        ({"kernelpath": f"/sys/devices/pci0000:00/{NIC}"}, "no interface 'uplink' of '/sys/dev"),
        ({"kernelpath": f"/sys/devices/pci0000:00/{BARE}"}, "no interface in"),
    ):
        config = network(machine, device=None, **keys)
        for command in ("ADD", "STATUS"):
            error = machine.refused("host-device", command, config, container)
            assert (error["code"], says in error["msg"]) == (50, True), error
        machine.ok("host-device", "DEL", config, container)
    assert left(machine) == NOTHING
