"""Power loss, reboot, a full disk, a clock that was set: nothing is lost, nothing given twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.e2e.node import addresses_in
from tests.faults.power import (
    change_boot_id,
    cut,
    enlarge,
    fill,
    lose_state,
    reboot,
    set_times,
    small_disk,
)
from tests.faults.rig import DATA_DIR, STATE_DIR, Rig, configuration

RECORDS, INDEXES = f"{STATE_DIR}/attachments", f"{STATE_DIR}/indexes"
FULL = ["10.9.0.0/29"]  # five containers, beside the gateway
FIVE = [f"c{number}" for number in range(1, 6)]

edges = pytest.mark.parametrize("edge", ["one-shot", "engine"])


def assert_usable(rig: Rig, *names: str) -> None:
    """Demand that a new container comes and goes, and so do these, and nothing is left."""
    rig.check("new", rig.add("new"))
    rig.assert_unique()
    for name in (*names, "new"):
        rig.ok("DEL", name)
    rig.assert_clean()


def lose(rig: Rig, root: str, pattern: str, part: float) -> None:
    """Cut the files of this kind."""
    found = list(rig.node.path(root).rglob(pattern))
    assert found, f"{root}/{pattern}"
    for path in found:
        cut(path, to=part)


@pytest.mark.parametrize("part", [0, 0.5])
@pytest.mark.parametrize(
    ("root", "pattern"),
    [
        (DATA_DIR, "last_reserved_ip.*"),
        (RECORDS, "bridge-*"),
        (RECORDS, "host-local-*"),
        (RECORDS, "*"),
        (INDEXES, "*"),
    ],
)
def test_torn_file(rig: Rig, root: str, pattern: str, part: float) -> None:
    """With torn files of the state, a new container comes, the old one goes."""
    rig.config = configuration("dual")
    rig.add("c1")
    lose(rig, root, pattern, part)

    assert_usable(rig, "c1")


@pytest.mark.parametrize("part", [0, 0.5])
def test_torn_lease(rig: Rig, part: float) -> None:
    """A lease that a power loss tore names nobody: GC frees it, after its time of grace."""
    rig.config = configuration("dual")
    rig.add("c1")
    reboot(rig)
    lose(rig, DATA_DIR, "*.*.*.*", part)
    lose(rig, DATA_DIR, "*:*", part)
    set_times(rig, 0, DATA_DIR)

    rig.collect()

    rig.assert_clean()
    assert_usable(rig)


@pytest.mark.parametrize("part", [0, 0.5])
def test_torn_lease_without_reboot(rig: Rig, part: float) -> None:
    """A lease that is torn while its container lives goes with the container's DEL."""
    rig.config = configuration("dual")
    rig.add("c1")
    lose(rig, DATA_DIR, "*.*.*.*", part)
    lose(rig, DATA_DIR, "*:*", part)

    assert_usable(rig, "c1")


@edges
def test_reboot_and_gc(rig: Rig) -> None:
    """GC after a reboot frees all that was leased before."""
    rig.config = configuration("dual")
    for name in ("c1", "c2"):
        rig.add(name)
    reboot(rig)

    rig.collect()

    rig.assert_clean()
    assert_usable(rig)


@pytest.mark.parametrize("torn", [False, True])
def test_reboot_of_a_full_network(rig: Rig, torn: bool) -> None:
    """The first ADD that needs an address after a reboot takes back one that nobody has."""
    rig.config = {**configuration("ipv4"), "ipam": {"type": "host-local", "subnet": FULL[0]}}
    for name in FIVE:
        rig.add(name)
    assert rig.container("sixth")
    assert rig.run("ADD", "sixth").returncode == 1
    reboot(rig)
    if torn:
        lose(rig, DATA_DIR, "*.*.*.*", 0)
        set_times(rig, 0, DATA_DIR)

    for name in FIVE:  # a runtime never uses a name again
        rig.check(f"new-{name}", rig.add(f"new-{name}"))

    rig.assert_unique()
    for name in FIVE:
        rig.ok("DEL", f"new-{name}")
    rig.assert_clean()


def test_boot_id_alone(rig: Rig) -> None:
    """An index of another boot is not believed, even if /run outlives the boot."""
    rig.config = configuration("dual")
    rig.add("c1")
    change_boot_id(rig)

    assert_usable(rig, "c1")


@pytest.mark.parametrize("seconds", [-400 * 86400, 400 * 86400])
@pytest.mark.parametrize("with_records", [True, False])
def test_clock(rig: Rig, seconds: float, with_records: bool) -> None:
    """A lease is kept while its container lives, with any clock at the time of its ADD."""
    rig.config = {**configuration("ipv4"), "ipam": {"type": "host-local", "subnet": FULL[0]}}
    for name in FIVE:
        rig.add(name)
    set_times(rig, time.time() + seconds, DATA_DIR, RECORDS)
    if not with_records:
        lose_state(rig)
    rig.container("sixth")

    assert rig.run("ADD", "sixth").returncode == 1
    rig.ok("GC")
    rig.collect()

    rig.assert_unique()
    for name in FIVE:
        rig.ok("DEL", name)
    rig.assert_clean()


@pytest.mark.parametrize("directory", [DATA_DIR, STATE_DIR])
@pytest.mark.parametrize("limit", ["files", "bytes"])
def test_full_disk(rig: Rig, directory: str, limit: str) -> None:
    """Whenever the disk becomes full, ADD works or takes everything back, and DEL works."""
    rig.config = configuration("dual")
    attempt = _with_files if limit == "files" else _with_pages
    outcomes = [attempt(rig, directory, number) for number in range(14)]

    assert outcomes[0] is False
    assert outcomes[-1] is True


def _with_files(rig: Rig, directory: str, number: int) -> bool:
    rig.wipe()
    with small_disk(rig, directory, files=number):
        return _attach(rig, lambda: enlarge(rig, directory))


def _with_pages(rig: Rig, directory: str, number: int) -> bool:
    rig.wipe()
    with small_disk(rig, directory, files=100) as path:
        ballast = fill(path, spare_pages=number)
        done = _attach(rig, ballast.unlink)
        ballast.unlink(missing_ok=True)
        return done


def _attach(rig: Rig, relieve: Callable[[], object]) -> bool:
    """Try to attach two containers and detach them; tell whether it worked for both."""
    worked = True
    for name in ("c1", "c2"):
        rig.container(name)
        done = rig.run("ADD", name)
        worked = worked and done.returncode == 0
        if done.returncode == 0:
            assert set(rig.addresses(name)) == set(addresses_in(json.loads(done.stdout)))
        else:
            assert json.loads(done.stdout)["msg"]
            assert rig.addresses(name) == []
    rig.assert_unique()
    rig.ok("DEL", "c1")  # on the full disk
    relieve()
    for name in ("c1", "c2"):
        rig.ok("DEL", name)
    traces = rig.node.traces("br0")
    traces["files"] = [name for name in traces.pop("files", ()) if ".ballast" not in name]
    assert not any(traces.values()), traces
    return worked
