"""host-local: GC, leases of living and dead namespaces, STATUS."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plugins.host_local import collect
from plugins.host_local.lease import GRACE_SECONDS, Lease
from plugins.host_local.sweep import Sweep
from tests.kernel.containers import Container
from tests.unit.host_local.node import Node
from tests.waits import wait_until

OLD = GRACE_SECONDS + 10
# Not one address of the test host may lie in here: GC spares what is seen in use.
NET4, NET6 = "198.18.64.0/24", "fd5a:18::/64"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without any lease."""
    return Node(tmp_path)


def _make_old(node: Node) -> None:
    moment = time.time() - OLD
    for name in node.leases():
        os.utime(node.store / name, (moment, moment))
    node.age_records(OLD)


def _gc(node: Node, *valid: tuple[str, str], **ipam: object) -> None:
    attachments = [{"containerID": one, "ifname": ifname} for one, ifname in valid]
    config = {**node.config(NET4, NET6, **ipam), "cni.dev/valid-attachments": attachments}
    assert node.call("GC", config) == {}


def test_gc_frees_what_is_not_listed(node: Node) -> None:
    """Leases of attachments that the runtime does not know go, both forms, with their records."""
    config = node.config(NET4, NET6)
    for containerid in ("kept", "gone"):
        node.add(config, containerid)
    node.lease("198.18.64.50", "kept")
    node.lease("198.18.64.51", "gone")
    node.lease("198.18.64.52", "kept\r\neth9")
    _make_old(node)

    _gc(node, ("kept", "eth0"))

    assert node.leases() == {
        "198.18.64.2": "kept\r\neth0",
        "198.18.64.50": "kept",
        "fd5a:18::2": "kept\r\neth0",
    }
    assert len(node.records()) == 1
    assert len(node.log) == 4
    assert (
        f"host-local: GC of network testnet removed 198.18.64.3 of gone/eth0 in '{node.store}':"
        " the runtime does not list its owner" in node.log
    )


def test_gc_spares_the_young(node: Node) -> None:
    """An ADD may be at work that the runtime's list does not have yet; clocks may jump."""
    node.add(node.config(NET4, NET6))
    node.lease("198.18.64.50", "", age=5)
    node.lease("198.18.64.51", "x\r\neth0", age=-3600)
    before = _shared(node)

    _gc(node)

    assert _shared(node) == before
    assert node.log == []


def test_gc_removes_what_a_crash_left(node: Node) -> None:
    """Empty and torn files go, also without a list; locks, cursors and foreign files stay."""
    node.add(node.config(NET4, NET6))
    for name, text in (
        ("198.18.64.50", ""),
        ("198.18.64.51", "\0\0"),
        (".pycni-new", "c1\r\neth0"),
    ):
        node.lease(name, text, age=OLD)
    (node.store / "198.18.64.60").mkdir()
    (node.store / "198.18.64.61").symlink_to("/nowhere")

    assert node.call("GC", node.config(NET4, NET6)) == {}

    assert sorted(os.listdir(node.store)) == [
        "198.18.64.2",
        "198.18.64.60",
        "198.18.64.61",
        "fd5a:18::2",
        "last_reserved_ip.0",
        "last_reserved_ip.1",
        "lock",
    ]
    assert all("its file names no owner" in line for line in node.log)


@pytest.mark.parametrize("listed", [True, False])
def test_gc_and_the_namespace(node: Node, container: Callable[[], Container], listed: bool) -> None:
    """A lease lives as long as its namespace, with or without a list from the runtime."""
    alive, dead = container(), container()
    config = node.config(NET4, NET6)
    node.add(config, "alive", CNI_NETNS=alive.netns)
    node.add(config, "dead", CNI_NETNS=dead.netns)
    node.add(config, "unknown")
    dead.end()
    _make_old(node)

    if listed:
        _gc(node, ("unknown", "eth0"))
    else:
        assert node.call("GC", config) == {}

    assert set(node.leases().values()) == {"alive\r\neth0", "unknown\r\neth0"}
    assert len(node.records()) == 2
    assert f"its network namespace '{dead.netns}' is gone" in node.log[0]


def test_gc_sees_a_namespace_without_its_path(
    node: Node, container: Callable[[], Container]
) -> None:
    """The path in the record may end before the namespace does."""
    process = container()
    second = subprocess.Popen(["nsenter", f"--net={process.netns}", "sleep", "60"])
    try:
        node.add(node.config(NET4, NET6), CNI_NETNS=process.netns)
        comm = Path(f"/proc/{second.pid}/comm")
        wait_until(lambda: comm.read_text().startswith("sleep"), "it does not start")
        process.end()
        _make_old(node)

        _gc(node)

        assert len(node.leases()) == 2
    finally:
        second.kill()
        second.wait()
    _gc(node)
    assert _shared(node) == ({}, [])


def test_address_in_use_is_not_taken(node: Node, container: Callable[[], Container]) -> None:
    """An address that some namespace has is neither collected nor taken over."""
    config = node.config("198.18.66.0/30", ranges=[[{"subnet": "198.18.66.0/30"}]])
    collect = {**config, "cni.dev/valid-attachments": []}
    process = container()
    for address in ("198.18.66.2", "198.18.66.3"):
        command = ["ip", "address", "add", f"{address}/24", "dev", "lo"]
        subprocess.run(["nsenter", f"--net={process.netns}", *command], check=True)
    node.lease("198.18.66.2", "", age=OLD)
    node.lease("198.18.66.3", "unlisted\r\neth0", age=OLD)

    assert node.call("GC", collect) == {}
    message = node.refusal("ADD", config)

    assert set(node.leases()) == {"198.18.66.2", "198.18.66.3"}
    assert "1 of 1 in use" in message
    process.end()
    assert node.add(config) == ["198.18.66.2"]
    assert "reclaimed 198.18.66.2 in" in node.log[-1]
    assert node.call("GC", collect) == {}
    assert list(node.leases()) == ["198.18.66.2"]


def test_gc_looks_at_what_lives_for_each_directory(
    node: Node, container: Callable[[], Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that came alive while the first directory was cleaned is seen with the second."""
    dead, late = container(), container()
    node.add(node.config(NET4, dataDir=str(node.root / "a")), "dead", CNI_NETNS=dead.netns)
    node.add(node.config(NET4), "late", CNI_NETNS=late.netns)
    fd = os.open(late.netns, os.O_RDONLY)
    for one in (dead, late):
        one.end()
    _make_old(node)
    (lease,) = (node.root / "a").rglob("198.*")
    os.utime(lease, (time.time() - OLD,) * 2)
    revived: list[subprocess.Popen[bytes]] = []

    class Watched(Sweep):
        def read(self, directory: str) -> tuple[list[Lease], int]:
            if directory == str(node.store):
                netns = f"--net=/proc/self/fd/{fd}"
                process = subprocess.Popen(
                    ["nsenter", netns, "sh", "-c", "echo; exec sleep 60"],
                    stdout=subprocess.PIPE,
                    pass_fds=(fd,),
                )
                assert process.stdout is not None
                assert process.stdout.readline() == b"\n"
                revived.append(process)
            return super().read(directory)

    monkeypatch.setattr(collect, "Sweep", Watched)
    try:
        _gc(node)
    finally:
        os.close(fd)
        for process in revived:
            process.kill()
            process.communicate()

    assert len(revived) == 1
    assert (lease.exists(), list(node.leases().values())) == (False, ["late\r\neth0"])


def test_gc_in_recorded_directories(node: Node) -> None:
    """Leases in a dataDir that the configuration no longer names are collected too."""
    node.add(node.config(NET4, NET6))
    _make_old(node)

    _gc(node, dataDir=str(node.root / "other"))

    assert _shared(node) == ({}, [])
    assert not (node.root / "other").exists()


def test_gc_removes_records_without_leases(node: Node) -> None:
    """The record of an ADD that was killed before its leases does not stay for ever."""
    node.add(node.config(NET4, NET6))
    for name in node.leases():
        (node.store / name).unlink()
    _gc(node)
    assert len(node.records()) == 1

    node.age_records(OLD)
    _gc(node)

    assert node.records() == []


def test_gc_does_not_disturb_an_add(node: Node) -> None:
    """GCs with an empty list, amid ADDs and DELs, take nothing from them."""
    config = node.config(NET4, NET6)

    def churn(worker: int) -> None:
        for number in range(15):
            got = node.add(config, f"w{worker}x{number}")
            assert node.call("CHECK", config, f"w{worker}x{number}") == {}
            assert set(got) <= set(node.leases())
            node.call("DEL", config, f"w{worker}x{number}")

    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(churn, worker) for worker in range(4)]
        while not all(job.done() for job in jobs):
            _gc(node)
        for job in jobs:
            job.result()

    assert _shared(node) == ({}, [])


def test_status_of_a_full_pool_does_not_wait(node: Node) -> None:
    """A full pool of 16381 addresses is reported although another process holds the lock."""
    node.store.mkdir(parents=True)
    for number in range(2, 2**14 - 1):
        (node.store / f"10.0.{number >> 8}.{number & 255}").touch()
    with open(node.store / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = node.refusal("STATUS", node.config("10.0.0.0/18"))

    assert "16381 of 16381 in use" in message


def _shared(node: Node) -> tuple[dict[str, str], list[str]]:
    return node.leases(), node.records()
