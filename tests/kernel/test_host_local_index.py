"""host-local's index: leases change without it, it is wrong, damaged or cannot be written."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from plugins.host_local import allocate, store
from plugins.host_local.index import rebuild
from plugins.host_local.store import Store
from tests.kernel.test_host_local import addresses, go, ours
from tests.mounts import detach
from tests.unit.host_local.node import Node
from tests.waits import GENEROUS

NET4, NET6 = "198.18.64.0/24", "fd5a:18::/64"


@pytest.fixture(params=["small", "large"])
def node(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node without any lease, which makes its index as for few leases, and as for many."""
    if request.param == "large":
        monkeypatch.setattr(store, "LARGE_BYTES", -1)
    return Node(tmp_path)


def index_of(node: Node) -> Path:
    """Return the file of the one index."""
    (path,) = (node.root / "run" / "indexes").iterdir()
    return path


def scans(node: Node, monkeypatch: pytest.MonkeyPatch, command: str, *args: Any) -> int:
    """Return how often a call that succeeds lists the lease directory to read it."""
    lists: list[object] = []

    class Watched(Store):
        def disk(self, call: Any, *args: Any, **kwargs: Any) -> Any:
            lists.extend([call] if call in (os.listdir, os.scandir) else [])
            return call(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(allocate, "Store", Watched)
        output = node.call(command, *args)
    assert "code" not in output, output
    return len(lists)


def test_file(node: Node) -> None:
    """The index is outside of dataDir, and nobody else's to read."""
    node.add(node.config(NET4, NET6))

    path = index_of(node)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(os.listdir(node.store)) == [
        *("198.18.64.2", "fd5a:18::2"),
        *("last_reserved_ip.0", "last_reserved_ip.1", "lock"),
    ]


def test_modes(node: Node) -> None:
    """No directory is anybody else's to write, also when DEL comes first and has no umask."""
    node.lease("198.18.64.9", "c9\r\neth0")
    before = os.umask(0)  # noqa: TID251 - as a caller does
    try:
        node.call("DEL", node.config(NET4))
        assert stat.S_IMODE((node.root / "run").stat().st_mode) == 0o700
        node.add({**node.config(NET4), "name": "other"})
    finally:
        os.umask(before)  # noqa: TID251 - as a caller does

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (node.root / "run").iterdir()}
    assert modes == {"attachments": 0o700, "indexes": 0o700, "trace": 0o600}
    assert stat.S_IMODE((node.data_dir / "other").stat().st_mode) == 0o755


def test_shared_directory(node: Node) -> None:
    """An index is not believed where others can write; calls go on without it."""
    config = node.config(NET4)
    node.add(config)
    index_of(node).parent.chmod(0o777)

    node.add(config, "c2")
    assert node.call("DEL", config) == {}

    assert list(node.leases().values()) == ["c2\r\neth0"]
    assert "without an index: others can write there" in node.log[-1]


def test_found_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first call no ADD, DEL or CHECK lists the directory."""
    config = node.config(NET4, NET6)
    assert scans(node, monkeypatch, "ADD", config, "c0") == 1

    for number in range(1, 12):  # also where the cursor gets a digit more
        assert scans(node, monkeypatch, "ADD", config, f"c{number}") == 0
    assert node.call("STATUS", config) == {}
    assert node.call("CHECK", config, "c5") == {}
    assert scans(node, monkeypatch, "DEL", config, "c5") == 0
    assert scans(node, monkeypatch, "DEL", config, "c5") == 0


def _edit(node: Node) -> None:
    path = node.store / "198.18.64.2"
    path.write_bytes(b"c9\r\neth0")


def _replace(node: Node) -> None:
    new = node.store / "x"
    new.write_bytes(b"c9\r\neth0")
    new.rename(node.store / "198.18.64.2")


def _swap_directory(node: Node) -> None:
    moved = node.store.with_name("moved")
    node.store.rename(moved)
    shutil.copytree(moved, node.store)
    (node.store / "198.18.64.2").write_bytes(b"c9\r\neth0")


@pytest.mark.parametrize("change", [_edit, _replace, _swap_directory])
def test_lease_gets_another_owner(node: Node, change: Callable[[Node], None]) -> None:
    """DEL of the former owner leaves the address to the new one, whose DEL frees it."""
    config = node.config(NET4)
    node.add(config)
    change(node)

    assert node.call("DEL", config) == {}
    assert node.leases() == {"198.18.64.2": "c9\r\neth0"}
    assert node.call("CHECK", config, "c9") == {}
    assert node.call("DEL", config, "c9") == {}
    assert node.leases() == {}


def test_changes_without_a_pause(node: Node) -> None:
    """A lease that another makes or removes right behind our call, in the same tick, is seen."""
    config = node.config(NET4)
    for number in range(100):
        node.add(config, "ours")
        node.lease("198.18.64.200", f"theirs{number}\r\neth0")
        assert node.call("DEL", config, f"theirs{number}") == {}
        assert list(node.leases().values()) == ["ours\r\neth0"]
        (node.store / next(iter(node.leases()))).unlink()
        assert "code" in node.call("CHECK", config, "ours")
        assert node.call("DEL", config, "ours") == {}


def test_same_times_are_no_proof(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files changed within one tick do not fit: a call may have been killed between them."""
    config = node.config(NET4)
    node.add(config, "c1")
    node.lease("198.18.64.9", "c9\r\neth0")
    now = time.time_ns()
    for path in (node.store, index_of(node)):
        os.utime(path, ns=(now, now))

    assert scans(node, monkeypatch, "DEL", config, "c9") == 1
    assert list(node.leases()) == ["198.18.64.2"]


def _behind_its_back(node: Node, change: Callable[[], object]) -> None:
    """Change the leases so that the index cannot know."""
    status = node.store.stat()
    change()
    os.utime(node.store, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_wrongly_free(node: Node) -> None:
    """An address that the index takes for free is not given away when there is a lease."""
    config = node.config(NET4)
    node.add(config)
    _behind_its_back(node, lambda: node.lease("198.18.64.3", "c9\r\neth0"))

    assert node.add(config, "c2") == ["198.18.64.4"]
    assert node.call("DEL", config, "c9") == {}
    assert set(node.leases()) == {"198.18.64.2", "198.18.64.4"}


def test_wrongly_taken(node: Node) -> None:
    """No range is called exhausted for what the index says alone."""
    config = node.config("198.18.64.0/29")
    for number in range(5):
        node.add(config, f"c{number}")
    _behind_its_back(node, (node.store / "198.18.64.4").unlink)

    assert node.add(config, "c9") == ["198.18.64.4"]
    assert "5 of 5 in use" in node.refusal("ADD", config, "c10")


def test_wrong_about_an_owner(node: Node) -> None:
    """DEL frees what the record names although the index does not know it."""
    config = node.config(NET4)
    node.add(config, "c1")
    text = (node.store / "198.18.64.2").read_bytes()
    _behind_its_back(node, (node.store / "198.18.64.2").unlink)
    assert node.call("CHECK", config, "c2")["msg"]  # nothing of it is told to the index
    node.add(config, "c2")
    index = index_of(node)
    node.call("DEL", config, "c2")
    (node.store / "198.18.64.2").write_bytes(text)
    times = index.stat()
    os.utime(node.store, ns=(0, times.st_mtime_ns - 86_400_987_654_321))

    assert node.call("DEL", config, "c1") == {}
    assert (node.leases(), node.records()) == ({}, [])


def _rewrite(data: bytes) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        path.write_bytes(data)

    return rewrite


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _zero_block(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(600)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": _rewrite(b""),
    "garbage": _rewrite(os.urandom(1 << 16)),
    "ones": _rewrite(b"\xff" * (1 << 20)),
    "cut": _zero_block,
    "link": _link,
    "fifo": _fifo,
    "directory": _directory,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("dated", [True, False])
def test_damaged_file(node: Node, damage: str, dated: bool) -> None:
    """With any damage to the index nothing is lost and nothing is given twice.

    `dated`: with the time of the index that was there, so that only the content can tell.
    """
    config = node.config(NET4, NET6)
    for containerid in ("c1", "c2"):
        node.add(config, containerid)
    path = index_of(node)
    before = path.stat()
    DAMAGES[damage](path)
    if dated and path.exists() and not path.is_symlink():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert node.add(config, "c3") == ["198.18.64.4", "fd5a:18::4"]
    for containerid in ("c1", "c2", "c3"):
        assert node.call("DEL", config, containerid) == {}
    assert (node.leases(), node.records()) == ({}, [])
    assert Path("/etc/passwd").read_bytes()[:4] == b"root"


def test_index_of_another_boot(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /run outlives a boot, the index does not."""
    config = node.config(NET4)
    node.add(config)
    path = index_of(node)
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert scans(node, monkeypatch, "ADD", config, "c2") == 1
    assert scans(node, monkeypatch, "ADD", config, "c3") == 0


def test_no_space_for_the_index(node: Node) -> None:
    """A full disk under the index costs time, not addresses; later it is made again."""
    indexes = node.root / "run" / "indexes"
    indexes.mkdir(parents=True)
    config = node.config(NET4, NET6)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "tmpfs", indexes], check=True)
    try:
        assert node.add(config) == ["198.18.64.2", "fd5a:18::2"]
        assert node.add(config, "c2") == ["198.18.64.3", "fd5a:18::3"]
        assert node.call("CHECK", config) == {}
        assert node.call("DEL", config) == {}
        assert os.listdir(indexes) == []
    finally:
        detach(indexes)
    assert any("goes on without an index: No space left" in line for line in node.log)
    node.log.clear()

    assert node.add(config, "c3") == ["198.18.64.4", "fd5a:18::4"]
    assert (node.log, len(os.listdir(indexes))) == ([], 1)


def test_several_directories(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lease directory has its own index, by whatever path it is reached."""
    config, other = node.config(NET4), node.config(NET4, dataDir=str(node.root / "other"))
    (node.root / "link").symlink_to(node.data_dir)
    linked = node.config(NET4, dataDir=str(node.root / "link"))
    for number, each in enumerate((config, other)):
        node.add(each, f"c{number}")

    assert scans(node, monkeypatch, "ADD", config, "c2") == 0
    assert scans(node, monkeypatch, "ADD", other, "c3") == 0
    assert scans(node, monkeypatch, "ADD", linked, "c4") == 0
    assert set(node.leases().values()) == {"c0\r\neth0", "c2\r\neth0", "c4\r\neth0"}


@pytest.mark.parametrize("seed", range(3))
def test_any_mix_of_implementations_and_people(node: Node, seed: int) -> None:
    """ADD and DEL by both, and people who remove leases, in any order: a model agrees."""
    dice = random.Random(seed)
    config = node.config("198.18.64.0/28", "fd5a:18::/124")
    held: dict[str, list[str]] = {}
    for number in range(60):
        call = dice.choice((go, ours))
        verb = dice.choice(("ADD", "ADD", "DEL", "again", "remove"))
        owner = dice.choice(list(held)) if held and verb != "ADD" else f"c{number}"
        if verb == "DEL":
            assert call(node, "DEL", config, owner) == {}
            held.pop(owner, None)
        elif verb == "again" and held.get(owner):
            assert "duplicate allocation" in call(node, "ADD", config, owner)["msg"]
        elif verb == "remove" and held.get(owner):
            (node.store / held[owner].pop()).unlink()
        elif verb == "ADD":
            output = call(node, "ADD", config, owner)
            if "code" not in output:
                held[owner] = addresses(output)
            else:
                assert sum(map(len, held.values())) >= 13, output
        expected = {address: f"{who}\r\neth0" for who, all_ in held.items() for address in all_}
        assert node.leases() == expected


Change = Callable[[Node], object]


def _meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch, *changes: Change
) -> list[tuple[int, float]]:
    """Have an ADD make the index anew, each of `changes` happening while leases are read.

    Returns the store's locks and unlocks, each with the number of leases read so far.
    """
    monkeypatch.setattr(store, "LARGE_BYTES", -1)
    read, todo = rebuild._read, list(changes)

    def changing(*args: Any) -> Any:
        seen = read(*args)
        if todo:
            todo.pop(0)(node)
        return seen

    reads: list[object] = []
    locks: list[tuple[int, float]] = []

    class Watched(Store):
        def disk(self, call: Any, *args: Any, **kwargs: Any) -> Any:
            if call is fcntl.flock:
                locks.append((args[1], len(reads)))
            reads.extend([call] if call is os.read else [])
            return call(*args, **kwargs)

    monkeypatch.setattr(rebuild, "_read", changing)
    monkeypatch.setattr(allocate, "Store", Watched)
    node.add(node.config(NET4), "ours")
    monkeypatch.undo()
    assert not todo
    return locks


def _comes(node: Node) -> None:
    node.lease("198.18.64.100", "comes\r\neth0")


def _goes(node: Node) -> None:
    (node.store / "198.18.64.51").unlink()


def _passes_on(node: Node) -> None:
    new = node.store / "x"
    new.write_bytes(b"other\r\neth0")
    new.rename(node.store / "198.18.64.52")


def _together(*changes: Change) -> Change:
    def change(node: Node) -> None:
        for one in changes:
            one(node)

    return change


# Until nothing changes, and until no more is waited for that.
SEQUENCES: list[list[Change]] = [
    [_together(_comes, _goes, _passes_on)],
    [_comes, _together(_goes, _passes_on)],
    [_comes, lambda node: node.lease("198.18.64.101", "x\r\neth0"), _goes, _passes_on],
]


@pytest.mark.parametrize("changes", SEQUENCES, ids=len)
def test_changes_while_the_index_is_made(
    node: Node, monkeypatch: pytest.MonkeyPatch, changes: list[Change]
) -> None:
    """Changes of others, while a large directory is read without the lock, are known at the end."""
    for number in range(20):
        node.lease(f"198.18.64.{50 + number}", f"c{number}\r\neth0")

    _meanwhile(node, monkeypatch, *changes)

    config = node.config(NET4)
    assert scans(node, monkeypatch, "DEL", config, "comes") == 0
    for gone in ("c1", "c2"):  # the one without a lease, the other with another's
        assert scans(node, monkeypatch, "DEL", config, gone) == 0
    assert node.leases()["198.18.64.52"] == "other\r\neth0"
    held = {f"c{number}\r\neth0" for number in range(20)} - {"c1\r\neth0", "c2\r\neth0"}
    assert set(node.leases().values()) - {"x\r\neth0"} == {*held, "other\r\neth0", "ours\r\neth0"}


def test_leases_are_read_without_the_lock(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the index of a large directory is made, the lock is held for none of the reads."""
    for number in range(20):
        node.lease(f"198.18.64.{50 + number}", f"c{number}\r\neth0")

    locks = _meanwhile(node, monkeypatch)

    held, since = 0, -1
    for operation, reads in locks:
        if operation == fcntl.LOCK_EX:
            since = int(reads)
        elif since >= 0:
            held += int(reads) - since
            since = -1
    assert held == 0
    assert locks[-1] == (fcntl.LOCK_EX, 20)


def test_one_makes_the_index_for_all(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait while a large directory is read do not read it too."""
    monkeypatch.setattr(store, "LARGE_BYTES", -1)
    for number in range(20):
        node.lease(f"198.18.64.{50 + number}", f"c{number}\r\neth0")
    reading, go_on, readers = Event(), Event(), []
    read = rebuild._read

    def slow(*args: Any) -> Any:
        readers.append(1)
        reading.set()
        assert go_on.wait(GENEROUS)
        return read(*args)

    monkeypatch.setattr(rebuild, "_read", slow)
    config = node.config(NET4)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(node.add, config, f"n{number}") for number in range(3)]
        assert reading.wait(GENEROUS)
        with node.store.joinpath("lock").open("rb") as lock:  # it is free meanwhile
            fcntl.flock(lock, fcntl.LOCK_EX)
        go_on.set()
        found = {address for call in calls for address in call.result()}

    assert len(found) == 3
    assert len(readers) == 1


def test_pods_outlive_the_making(node: Node) -> None:
    """An index that is made anew knows the pods of the former one, except for freed addresses."""
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID="
    config = node.config(NET4)
    for number in range(3):
        node.add(config, f"c{number}", CNI_ARGS=f"{args}{number}")
    (node.store / "198.18.64.4").unlink()  # others change the directory
    node.add(config, "c9")

    with Store(str(node.store), indexes=str(node.root / "run" / "indexes")) as opened:
        opened.lock()
        pods = [opened.held_by_pod(f"{number} eth0") for number in range(3)]
    assert [[str(lease.address) for lease in one] for one in pods] == [
        ["198.18.64.2"],
        ["198.18.64.3"],
        [],
    ]
