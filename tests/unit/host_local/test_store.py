"""plugins/host_local/store.py: the files of the leases."""

from __future__ import annotations

import os
import stat
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Attachment
from plugins.host_local.lease import GRACE_SECONDS, Lease
from plugins.host_local.store import Store

OWNER = Attachment("c1", "eth0")
ADDRESS = ip_address("10.0.0.2")


def test_files(tmp_path: Path) -> None:
    """Names, contents and modes are those of the Go plugin."""
    directory = tmp_path / "a" / "net"

    with Store(str(directory), create=True) as store:
        store.lock().claim(ADDRESS, OWNER)
        store.claim(ip_address("fd00:0:0::2"), OWNER)
        store.set_last_reserved(0, ADDRESS)

    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        "lock": b"",
        "10.0.0.2": b"c1\r\neth0",
        "fd00::2": b"c1\r\neth0",
        "last_reserved_ip.0": b"10.0.0.2",
    }
    for path in directory.iterdir():
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o600, 1)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("content", "owner"),
    [
        (b"c1\r\neth0", OWNER),
        (b" c1\r\neth0\n", OWNER),
        (b"c1", Attachment("c1", "")),
        (b"\tc1\r\n", Attachment("c1", "")),
        (b"c1\r\n\xff\xfe", Attachment("c1", "\udcff\udcfe")),
        (b"", None),
        (b"\r\n", None),
        (b"\0\0\0\0", None),
        (b"c1\neth0", None),
        (b"c1\r\n\r\neth0", None),
        (b"c1\r\neth0\r\nx", None),
    ],
)
def test_owner(tmp_path: Path, content: bytes, owner: Attachment | None) -> None:
    """A lease names its owner in one of two forms, or is what a crash left behind."""
    (tmp_path / "10.0.0.2").write_bytes(content)

    with Store(str(tmp_path)) as store:
        (lease,) = store.lock().leases()

    assert (lease.address, lease.owner) == (ADDRESS, owner)
    assert lease.reclaimable == (owner is None)


def test_what_is_not_a_lease(tmp_path: Path) -> None:
    """Other files are left alone, and an entry that is no file occupies its address for good."""
    for name in ("last_reserved_ip.0", "10.0.0.02", "fd00:0::1", "FD00::2", "::ffff:1.2.3.4", "x"):
        (tmp_path / name).write_text("c1\r\neth0")
    (tmp_path / "10.0.0.3").mkdir()
    (tmp_path / "10.0.0.3" / "10.0.0.9").write_text("c1\r\neth0")
    (tmp_path / "10.0.0.4").symlink_to(tmp_path / "x")
    os.mkfifo(tmp_path / "10.0.0.5")

    with Store(str(tmp_path)) as store:
        leases = store.lock().leases()

    assert sorted(str(lease.address) for lease in leases) == ["10.0.0.3", "10.0.0.4", "10.0.0.5"]
    assert not any(lease.owner or lease.reclaimable for lease in leases)


def test_claim_never_overwrites(tmp_path: Path) -> None:
    """A file that is there, even a dangling link, wins over a claim."""
    (tmp_path / "10.0.0.2").write_text("c9\r\neth0")
    (tmp_path / "10.0.0.3").symlink_to("/nowhere")

    for text in ("10.0.0.2", "10.0.0.3"):
        with pytest.raises(CNIError) as caught, Store(str(tmp_path)) as store:
            store.lock().claim(ip_address(text), OWNER)
        assert caught.value.code == Code.IO_FAILURE
        assert str(tmp_path) in caught.value.msg
    assert (tmp_path / "10.0.0.2").read_bytes() == b"c9\r\neth0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10.0.0.2", "10.0.0.3", "lock"]


def test_killed_between_link_and_unlink(tmp_path: Path) -> None:
    """The second name of a live lease goes, the lease stays as it is."""
    (tmp_path / "10.0.0.2").write_text("c9\r\neth0")
    os.link(tmp_path / "10.0.0.2", tmp_path / ".pycni-new")

    with Store(str(tmp_path)) as store:
        store.lock().claim(ip_address("10.0.0.3"), OWNER)

    assert (tmp_path / "10.0.0.2").read_bytes() == b"c9\r\neth0"
    assert not (tmp_path / ".pycni-new").exists()


def test_leases_removes_leftovers(tmp_path: Path) -> None:
    """Leftovers of a killed call are gone after the next look at the directory."""
    for name in (".pycni-new", ".pycni-probe"):
        (tmp_path / name).write_text("c1\r\neth0")

    with Store(str(tmp_path), create=True) as store:
        assert store.lock().leases() == []

    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("text", ["10.0.0.2\n", "", "x", "\xff", "10.0.0."])
def test_torn_cursor(tmp_path: Path, text: str) -> None:
    """A cursor that the Go plugin could not read either counts as none."""
    (tmp_path / "last_reserved_ip.0").write_bytes(text.encode("latin-1"))

    with Store(str(tmp_path)) as store:
        assert store.last_reserved(0) is None
        assert store.last_reserved(1) is None


def test_cursor_is_replaced(tmp_path: Path) -> None:
    """A cursor has its new text whatever was there before, and its file stays a single one."""
    cursor = tmp_path / "last_reserved_ip.0"
    for before in (b"10.0.0.9", b"", b"10.0.0.100", b"x"):
        cursor.write_bytes(before)
        with Store(str(tmp_path), create=True) as store:
            store.lock().set_last_reserved(0, ADDRESS)
            assert store.last_reserved(0) == ADDRESS
    cursor.unlink()
    cursor.symlink_to("/nowhere")
    with Store(str(tmp_path), create=True) as store:
        store.lock().set_last_reserved(0, ADDRESS)

    assert (cursor.read_bytes(), cursor.is_symlink()) == (b"10.0.0.2", False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_reserved_ip.0", "lock"]


def test_grace(tmp_path: Path) -> None:
    """A lease is young for the grace time, and when its time is in the future."""
    for address, age in (("10.0.0.2", GRACE_SECONDS + 5), ("10.0.0.3", 5), ("10.0.0.4", -900)):
        (tmp_path / address).write_text("c1\r\neth0")
        moment = time.time() - age
        os.utime(tmp_path / address, (moment, moment))

    with Store(str(tmp_path)) as store:
        young = {str(lease.address): lease.is_young() for lease in store.lock().leases()}

    assert young == {"10.0.0.2": False, "10.0.0.3": True, "10.0.0.4": True}


def test_absent_directory(tmp_path: Path) -> None:
    """A store that is not there is empty, and nobody makes it but ADD and STATUS."""
    with Store(str(tmp_path / "none")) as store:
        assert store.lock().leases() == []
        assert store.lease(ADDRESS) is None
        store.release(Lease(ADDRESS, OWNER))

    assert not (tmp_path / "none").exists()


def test_no_lock_where_nothing_was_leased(tmp_path: Path) -> None:
    """A directory without lock and lease is as good as none: nothing is made in it."""
    (tmp_path / "notes.txt").touch()

    with Store(str(tmp_path)) as store:
        assert store.lock().held_by(OWNER) == []
        assert (store.lease(ADDRESS), store.booted_ns()) == (None, 0)
        store.release(Lease(ADDRESS, OWNER))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    (tmp_path / str(ADDRESS)).write_text("c1\r\neth0")
    with Store(str(tmp_path)) as store:
        assert len(store.lock().held_by(OWNER)) == 1
    assert (tmp_path / "lock").exists()


def test_lock_is_no_symlink(tmp_path: Path) -> None:
    """A planted link does not make us open another file."""
    (tmp_path / "lock").symlink_to("/etc/passwd")

    with pytest.raises(CNIError, match=r"\(lock\)"), Store(str(tmp_path)) as store:
        store.lock()


def test_directory_is_a_file(tmp_path: Path) -> None:
    """The message names the directory."""
    (tmp_path / "net").write_text("")

    for create in (True, False):
        with (
            pytest.raises(CNIError, match=r"cannot use the lease directory '.*/net'"),
            Store(str(tmp_path / "net"), create=create),
        ):
            pass
