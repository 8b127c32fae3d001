"""Plugins under other names, by link or copy, as operators of nodes install them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machine import Machine, error_of

pytestmark = pytest.mark.timeout(300)  # the first test may have to wait for the build


def _link_twice(plugin: Path, name: Path) -> None:
    between = name.with_name(f"{name.name}-2")
    between.symlink_to(plugin.name)
    name.symlink_to(between.name)


HOW: dict[str, Callable[[Path, Path], object]] = {
    "symbolic link": lambda plugin, name: name.symlink_to(plugin.name),
    "link of a link": _link_twice,
    "hard link": lambda plugin, name: name.hardlink_to(plugin),
    "copy": lambda plugin, name: shutil.copy(plugin, name),
}


@pytest.fixture
def place(dist: Path, tmp_path: Path) -> Path:
    """A bin directory of the test's own."""
    place = tmp_path / "bin"
    shutil.copytree(dist, place)
    return place


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_interface_and_ipam_plugin(
    machine: Machine, place: Path, how: Callable[[Path, Path], object]
) -> None:
    """An attachment by plugins under other names has all that it would have, and can be deleted."""
    for name in ("bridge", "host-local"):
        how(place / name, place / f"cnv-{name}")
    config = machine.network(type="cnv-bridge")
    config["ipam"]["type"] = "cnv-host-local"
    container = machine.container()

    added = machine.execute(place / "cnv-bridge", "ADD", config, container)
    held = machine.leases()
    addresses = machine.addresses(container, "eth0")
    previous = {**config, "prevResult": json.loads(added.stdout)}
    others = [
        machine.execute(place / "cnv-bridge", command, previous, container)
        for command in ("CHECK", "DEL")
    ]

    assert [f"{address}/24" for address in held] == addresses
    assert [(one.returncode, one.stdout) for one in others] == [(0, ""), (0, "")]
    assert machine.leases() == []
    assert machine.link(container, "eth0") is None


def test_from_another_directory(machine: Machine, place: Path, tmp_path: Path) -> None:
    """A symbolic link may be anywhere: its target finds the bundle beside itself."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("bridge", "host-local"):
        (elsewhere / f"cnv-{name}").symlink_to(place / name)
    config = machine.network(type="cnv-bridge")
    config["ipam"]["type"] = "cnv-host-local"
    container = machine.container()

    done = [
        machine.execute(elsewhere / "cnv-bridge", command, config, container)
        for command in ("ADD", "DEL")
    ]

    assert [one.returncode for one in done] == [0, 0], done
    assert machine.leases() == []


def test_a_plain_copy_of_the_visible_files(machine: Machine, dist: Path, tmp_path: Path) -> None:
    """`cp dist/bin/*` leaves the bundle behind: the error says what to copy as well."""
    for file in dist.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)

    done = machine.execute(tmp_path / "bridge", "ADD", machine.network(), machine.container())

    error = error_of(done.stdout)
    assert (done.returncode, error["code"]) == (1, 5)
    assert "the directory '.pycni' must lie beside the plugin" in error["msg"]


def test_one_program_with_all_names(machine: Machine, place: Path) -> None:
    """`pycni` is the plugin that it is called as, for packages that link all names to one file."""
    for name in ("bridge", "host-local"):
        (place / name).unlink()
        (place / name).hardlink_to(place / "pycni")
    container = machine.container()

    done = [
        machine.execute(place / "bridge", command, machine.network(), container)
        for command in ("ADD", "DEL")
    ]

    assert [one.returncode for one in done] == [0, 0], done
