"""cni_common/node/record.py: the files that say what each attachment owns."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cni_common.node.journal import make_directory
from cni_common.node.record import Lock, Record, Records
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Attachment

OWNER = Attachment("c1", "eth0")
OTHER = Attachment("c1", "eth1")


@dataclass(frozen=True, slots=True)
class Facts:
    """A part."""

    PART = "veth"
    host_end: str = ""


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """The records of a node that has none."""
    made = Records(str(tmp_path / "run"))
    yield made
    made.close()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def only_file(records: Records) -> Path:
    """Return the one file in the directory of the records."""
    (path,) = Path(records.directory).iterdir()
    return path


class TestBegin:
    """Records.begin()."""

    def test_file(self, records: Records) -> None:
        """A record is one line of JSON in a private file of a private directory."""
        records.begin("bridge", "net", OWNER, {"netns": "/n"})

        path = only_file(records)
        assert path.read_bytes().count(b"\n") == 1
        assert json.loads(path.read_bytes()) == {
            "format": 1,
            "plugin": "bridge",
            "network": "net",
            "containerid": "c1",
            "ifname": "eth0",
            "pid_ns": os.stat("/proc/self/ns/pid").st_ino,
            "netns": "/n",
        }
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    @pytest.mark.parametrize("place", ["/proc/x/net1", "LINK/net1"])
    def test_where_nothing_can_be_made(self, tmp_path: Path, place: str) -> None:
        """In /proc, and behind a dangling link, ENOENT comes again, and once is enough."""
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "absent" / "target")

        with pytest.raises(FileNotFoundError):
            make_directory(place.replace("LINK", str(link)), 0o755)

    @pytest.mark.parametrize("mask", [0, 0o077, 0o777])
    def test_modes(self, tmp_path: Path, mask: int) -> None:
        """Directories that are made on the way have their mode with any umask of the caller."""
        before = os.umask(mask)  # noqa: TID251 - as a caller does
        try:
            Records(str(tmp_path / "a" / "run")).probe()
            make_directory(str(tmp_path / "b" / "networks"), 0o755)
        finally:
            os.umask(before)  # noqa: TID251 - as a caller does

        modes = {
            str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
            for path in tmp_path.rglob("*")
        }
        private = {"a": 0o700, "a/run": 0o700, "a/run/attachments": 0o700}
        assert modes == private | {"b": 0o755, "b/networks": 0o755}

    @pytest.mark.parametrize("how", ["group", "other", "owner", "link"])
    def test_shared_directory(self, records: Records, how: str) -> None:
        """Records are neither read nor written where others can write."""
        records.begin("bridge", "net", OWNER, {}).close()
        directory = Path(records.directory)
        if how == "owner":
            os.chown(directory, 4711, -1)
        elif how == "link":
            directory.rename(directory.with_name("elsewhere"))
            directory.symlink_to("elsewhere")
        else:
            directory.chmod(0o720 if how == "group" else 0o702)

        for call in (
            records.probe,
            lambda: records.begin("bridge", "net", OTHER, {}),
            lambda: records.find("bridge", "net", OWNER),
            lambda: records.paths("bridge", "net"),
            lambda: list(records.of_plugin("bridge")),
            lambda: list(records.listing()),
        ):
            with pytest.raises((PermissionError, CNIError), match="others can write there"):
                call()

    def test_twice(self, records: Records) -> None:
        """There is one record of an attachment."""
        records.begin("bridge", "net", OWNER, {}).close()

        with pytest.raises(FileExistsError):
            records.begin("bridge", "net", OWNER, {})

    def test_each_its_own(self, records: Records) -> None:
        """Plugin, network, container and interface each make a record of their own."""
        for plugin, network, owner in (
            ("bridge", "net", OWNER),
            ("host-local", "net", OWNER),
            ("bridge", "net2", OWNER),
            ("bridge", "net", OTHER),
            ("bridge", "net", Attachment("c1-eth0", "")),
            ("bridge", "net", Attachment("\udcff", "eth0")),
            ("bridge", "net", Attachment("c" * 5000, "eth0")),
        ):
            records.begin(plugin, network, owner, {})

        assert len(os.listdir(records.directory)) == 7

    def test_disk_full(self, records: Records) -> None:
        """A record that cannot be written whole is none."""
        with file_size_limit(20), pytest.raises(CNIError, match="space"):
            records.begin("bridge", "net", OWNER, {})

        assert os.listdir(records.directory) == []


class TestFacts:
    """The content of a record."""

    def test_notes_add_up(self, records: Records) -> None:
        """Later notes add to earlier ones, and to what the next one reads."""
        record = records.begin("bridge", "net", OWNER, {"a": 1, "b": 1})
        record.note(b=2)
        record.note(c=["x"], d=None)
        expected = {**record.facts}
        record.close()

        found = records.find("bridge", "net", OWNER)

        assert expected["b"] == 2
        assert found is not None
        assert found.facts == expected
        assert found.attachment == OWNER

    def test_torn_line(self, records: Records) -> None:
        """A line that a kill cut short is ignored, and spoils no later one."""
        records.begin("bridge", "net", OWNER, {"a": 1}).close()
        with only_file(records).open("ab") as file:
            file.write(b'{"b": 2, "c"')

        found = records.find("bridge", "net", OWNER)
        assert found is not None
        found.note(d=4)

        (one,) = records.of_plugin("bridge")
        facts = one.facts
        assert {key: facts.get(key) for key in "abcd"} == {"a": 1, "b": None, "c": None, "d": 4}

    def test_empty_file(self, records: Records) -> None:
        """Whose an empty file is, is known from its name."""
        records.begin("bridge", "net", OWNER, {"a": 1}).close()
        only_file(records).write_bytes(b"")

        found = records.find("bridge", "net", OWNER)

        assert found is not None
        assert found.attachment == OWNER
        assert (found.plugin, found.network, found.is_begun()) == ("bridge", "net", False)

    def test_nameless(self, records: Records) -> None:
        """A file that says nothing, found by its path alone, has no owner."""
        records.begin("bridge", "net", OWNER, {}).close()
        only_file(records).write_bytes(b"\0garbage\n[1]\n")

        found = records.open(records.paths("bridge", "net")[0])

        assert found is not None
        assert (found.plugin, found.attachment) == ("bridge", Attachment("", ""))
        records.identify(found, "bridge", "net", [OTHER, OWNER])
        assert found.attachment == OWNER

    def test_note_on_a_full_disk(self, records: Records) -> None:
        """A note that cannot be written fails, and earlier notes stay."""
        record = records.begin("bridge", "net", OWNER, {"a": 1})
        size = only_file(records).stat().st_size

        with file_size_limit(size + 5), pytest.raises(OSError, match="space"):
            record.note(b="x" * 100)

        (one,) = records.of_plugin("bridge")
        facts = one.facts
        assert "b" not in record.facts
        assert (facts["a"], "b" in facts) == (1, False)

    def test_age(self, records: Records) -> None:
        """The age is the time since the last note."""
        record = records.begin("bridge", "net", OWNER, {})
        os.utime(only_file(records), (time.time() - 100, time.time() - 100))

        before = record.age()
        record.note(a=1)

        assert 99 < before < 130
        assert -1 < record.age() < 30


class TestFinding:
    """find(), open(), paths(), of_plugin()."""

    def test_nothing(self, records: Records) -> None:
        """A node without records has none to find."""
        assert records.find("bridge", "net", OWNER) is None
        assert next(records.of_plugin("bridge"), None) is None
        assert records.open(f"{records.directory}/bridge-x") is None
        assert records.paths("bridge", "net") == []
        assert list(records.of_plugin("bridge")) == []

    def test_paths(self, records: Records) -> None:
        """Only the records of that plugin and network are listed."""
        for plugin, network in (("bridge", "net"), ("bridge", "net2"), ("host-local", "net")):
            records.begin(plugin, network, OWNER, {}).close()
            records.begin(plugin, network, OTHER, {}).close()

        found = [records.open(path) for path in records.paths("bridge", "net")]

        assert {(one.attachment, one.facts["network"]) for one in found if one} == {
            (OWNER, "net"),
            (OTHER, "net"),
        }

    def test_of_plugin(self, records: Records) -> None:
        """All networks of a plugin are looked at, those at work and torn files included."""
        records.begin("bridge", "net", OWNER, {})
        records.begin("bridge", "net2", OTHER, {}).close()
        records.begin("host-local", "net", OWNER, {}).close()
        Path(records.directory, "bridge-torn").write_bytes(b'{"a')

        assert sorted(one.network for one in records.of_plugin("bridge")) == ["net", "net2"]

    def test_symbolic_link(self, records: Records, tmp_path: Path) -> None:
        """A symbolic link is no record, wherever it leads."""
        victim = tmp_path / "victim"
        victim.write_bytes(b"{}\n")
        records.begin("bridge", "net", OWNER, {}).close()
        path = only_file(records)
        path.unlink()
        path.symlink_to(victim)

        with pytest.raises(CNIError, match="is a symbolic link, where"):
            records.find("bridge", "net", OWNER)
        with pytest.raises(FileExistsError):
            records.begin("bridge", "net", OWNER, {})

        assert victim.read_bytes() == b"{}\n"


class TestLocking:
    """Two calls for one attachment."""

    def test_at_work(self, records: Records) -> None:
        """A record at work is busy for those who do not wait, and can be peeked into."""
        records.begin("bridge", "net", OWNER, {"a": 1})

        with pytest.raises(CNIError) as caught:
            records.find("bridge", "net", OWNER, wait=False)

        (one,) = records.of_plugin("bridge")
        assert caught.value.code == Code.TRY_AGAIN_LATER
        assert records.open(str(only_file(records))) is None
        assert one.facts["a"] == 1

    @pytest.mark.parametrize("removed", [False, True])
    def test_waits(self, records: Records, removed: bool) -> None:
        """find() waits for the call at work, and sees the record as that has left it."""
        record = records.begin("bridge", "net", OWNER, {})
        record.note(a=1)
        timer = threading.Timer(0.05, record.remove if removed else record.close)

        timer.start()
        found = Records(os.path.dirname(records.directory)).find("bridge", "net", OWNER)
        timer.join()

        assert (found is None) == removed

    def test_closed_with_the_node(self, records: Records) -> None:
        """Closing the records lets others have all of them."""
        records.begin("bridge", "net", OWNER, {})

        records.close()

        assert records.find("bridge", "net", OWNER, wait=False) is not None


FIRST = b'{"format":1,"plugin":"bridge","network":"net","containerid":"c1","ifname":"eth0"}\n'
NOTE = b'{"veth":{"host_end":"veth1"}}\n'


class TestDamage:
    """Damage, and a line that a kill cut short."""

    @pytest.mark.parametrize(
        ("content", "damage"),
        [
            (FIRST + NOTE, ""),
            (FIRST + NOTE[:-1], ""),
            (FIRST + NOTE[:-2], ""),
            (FIRST + NOTE[:12] + b"\n" + NOTE, ""),
            (FIRST + b'{"ok":tru\n' + NOTE, ""),
            (FIRST + b'{"a":\n' + NOTE, ""),
            (b"\xff\n" + FIRST + NOTE, ""),
            (FIRST + NOTE[:12] + b"\n", "line 2 cannot be read"),
            (FIRST + b"\0" * 30 + b"\n" + NOTE, "line 2 cannot be read"),
            (FIRST + b'{"a":?}\n' + NOTE, "line 2 cannot be read"),
            (b"\xff" + FIRST + NOTE, "line 1 cannot be read"),
            (b"[1]\n", "line 1 cannot be read"),
            (b"{\n", "line 1 cannot be read"),
            (NOTE, "its first line is missing"),
            (FIRST.replace(b'"c1"', b"7"), "its containerid is no text"),
            (FIRST.replace(b',"ifname":"eth0"', b""), "its ifname is no text"),
            (FIRST.replace(b"}", b',"netns":[]}'), "its netns is no text"),
        ],
    )
    def test_content(self, records: Records, content: bytes, damage: str) -> None:
        """A line that no kill can have left is damage, unless the record begins anew behind it."""
        records.begin("bridge", "net", OWNER, {}).close()
        only_file(records).write_bytes(content)

        (peeked,) = records.of_plugin("bridge")
        ((listed, _),) = records.listing()
        found = records.find("bridge", "net", OWNER)

        assert [one.damage for one in (peeked, listed)] == [damage] * 2
        assert found is not None
        assert (found.damage, found.is_unbegun()) == (damage, False)

    @pytest.mark.parametrize("content", [b"", FIRST[:1], FIRST[:40], FIRST[:-2]])
    def test_unbegun(self, records: Records, content: bytes) -> None:
        """A first line that a kill has cut short is no damage: nothing was made."""
        records.begin("bridge", "net", OWNER, {}).close()
        only_file(records).write_bytes(content)

        ((listed, _),) = records.listing()
        found = records.find("bridge", "net", OWNER)

        assert list(records.of_plugin("bridge")) == []
        assert found is not None
        assert (listed.damage, listed.is_unbegun()) == ("", True)
        assert (found.damage, found.is_unbegun()) == ("", True)

    def test_huge(self, records: Records) -> None:
        """A file larger than any record is not read."""
        records.begin("bridge", "net", OWNER, {}).close()
        os.truncate(only_file(records), 1 << 40)

        (peeked,) = records.of_plugin("bridge")
        found = records.find("bridge", "net", OWNER)

        assert found is not None
        assert peeked.damage == found.damage
        assert found.damage == f"it has {1 << 40} bytes, and no record has more than {1 << 26}"

    def test_written_anew(self, records: Records) -> None:
        """Facts that are put into a damaged record take the place of the damage."""
        records.begin("bridge", "net", OWNER, {}).close()
        only_file(records).write_bytes(FIRST + b"?\n")
        found = records.find("bridge", "net", OWNER)
        assert found is not None

        found.put(Facts("veth1"))

        (again,) = records.of_plugin("bridge")
        assert (found.damage, again.damage, again.attachment) == ("", "", OWNER)
        assert again.get(Facts) == Facts("veth1")


def fifo(path: Path) -> None:
    """Make a FIFO, at which a call could wait for ever."""
    os.mkfifo(path)


def dangling(path: Path) -> None:
    """Make a link that leads nowhere."""
    path.symlink_to(path.parent / "absent")


def device(path: Path) -> None:
    """Make a device that can be read without end."""
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))


def listening(path: Path) -> None:
    """Make a socket."""
    os.mknod(path, 0o600 | stat.S_IFSOCK)


def hard_link(path: Path) -> None:
    """Make a second name of another file."""
    other = path.parents[1] / "other"
    other.write_bytes(b"SECRET")
    os.link(other, path)


ODD: dict[str, Callable[[Path], object]] = {
    "a FIFO": fifo,
    "a directory": Path.mkdir,
    "a symbolic link": dangling,
    "a device": device,
    "a socket": listening,
    "a file that has other names": hard_link,
}


@pytest.mark.parametrize("kind", ODD)
class TestOddFiles:
    """No call fails or waits for an entry among the records that is no file."""

    def test_of_others(self, records: Records, kind: str) -> None:
        """It is shown as damaged, and the records beside it are found."""
        records.begin("bridge", "net", OWNER, {}).close()
        odd = Path(records.path_of("bridge", "net", OTHER))
        ODD[kind](odd)

        found = {one.path: one.damage for one in records.of_plugin("bridge")}

        assert found == {records.path_of("bridge", "net", OWNER): "", str(odd): f"it is {kind}"}
        assert {one.path: one.damage for one, _ in records.listing()} == found
        assert records.open(str(odd)) is None

    def test_in_the_place_of_a_record(self, records: Records, kind: str) -> None:
        """An ADD is refused, a DEL goes on without a record, and the thing itself stays."""
        records.probe()
        odd = Path(records.path_of("bridge", "net", OWNER))
        ODD[kind](odd)

        with pytest.raises(CNIError, match=f"is {kind}, where a file .* belongs; remove it"):
            records.begin_anew("bridge", "net", OWNER, {}, clear=Record.remove)
        held = records.hold("bridge", "net", OWNER)

        assert held is None
        assert os.path.lexists(odd)


class TestHolding:
    """hold() and hold_place(): records of attachments that have none."""

    def test_keeps_an_add_out(self, records: Records) -> None:
        """While a DEL holds the place of a record an ADD waits, and so does another DEL."""
        held = records.hold("bridge", "net", OWNER)
        assert held is not None
        assert (held.attachment, held.is_begun(), held.is_unbegun()) == (OWNER, False, True)

        assert records.hold_place("bridge", "net", OWNER) is None
        with pytest.raises(CNIError, match="delegates to itself"):
            records.hold("bridge", "net", OWNER)
        elsewhere = Records(os.path.dirname(records.directory))
        with ThreadPoolExecutor(1) as pool:
            deleting = pool.submit(elsewhere.hold, "bridge", "net", OWNER)
            wait([deleting], 0.05)
            assert not deleting.done()
            held.remove()
            other = deleting.result()
            assert other is not None
            adding = pool.submit(
                records.begin_anew, "bridge", "net", OWNER, {}, clear=Record.remove
            )
            wait([adding], 0.05)
            assert not adding.done()
            other.remove()

            assert adding.result().is_begun()

    def test_of_a_record(self, records: Records) -> None:
        """A record that is there is the one that is held, and no place is free for another."""
        records.begin("bridge", "net", OWNER, {"a": 1}).close()

        assert records.hold_place("bridge", "net", OWNER) is None
        held = records.hold("bridge", "net", OWNER)

        assert held is not None
        assert held.facts["a"] == 1

    @pytest.mark.parametrize("errno_", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES])
    @pytest.mark.parametrize("call", ["mkdir", "open"])
    def test_where_none_can_be_made(
        self, records: Records, monkeypatch: pytest.MonkeyPatch, call: str, errno_: int
    ) -> None:
        """Where no record can be made a DEL goes on without: no ADD can begin there either."""
        if call == "open":
            records.probe()
        monkeypatch.setattr(f"os.{call}", failing(getattr(os, call), errno_))

        assert records.hold("bridge", "net", OWNER) is None
        with Lock(records):
            pass
        with pytest.raises(CNIError, match=f"{os.strerror(errno_)}; make it writable"):
            records.begin("bridge", "net", OWNER, {})

    def test_without_descriptors(self, records: Records) -> None:
        """A DEL with few descriptors left needs them for what it is there for."""
        records.probe()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, hard))
        try:
            held = records.hold("bridge", "net", OWNER)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert held is None
        assert os.listdir(records.directory) == []

    def test_in_the_place_of_the_directory(self, records: Records) -> None:
        """The same goes for a file in the place of the directory."""
        Path(records.directory).parent.mkdir(mode=0o700)
        Path(records.directory).write_bytes(b"")

        assert records.hold("bridge", "net", OWNER) is None
        assert list(records.of_plugin("bridge")) == []
        with Lock(records):
            pass
        with pytest.raises(CNIError, match="Not a directory; make it writable"):
            records.begin("bridge", "net", OWNER, {})

    def test_two_adds_over_a_leftover(self, records: Records) -> None:
        """An ADD that finds another one's new record where it took a leftover apart tries later."""
        records.begin("bridge", "net", OWNER, {"old": True}).close()

        def clear(old: Record) -> None:
            old.remove()
            records.begin("bridge", "net", OWNER, {"new": True})  # by a faster call

        with pytest.raises(CNIError) as caught:
            records.begin_anew("bridge", "net", OWNER, {}, clear=clear)

        assert caught.value.code == Code.TRY_AGAIN_LATER
        (one,) = records.of_plugin("bridge")
        assert one.facts["new"] is True


def failing(call: Callable[..., int | None], number: int) -> Callable[..., int | None]:
    """Return `call`, which fails where it would make something."""

    def changed(path: str, flags: int = os.O_CREAT, *args: int, **kwargs: int) -> int | None:
        if not flags & os.O_CREAT:
            return call(path, flags, *args, **kwargs)
        raise OSError(number, os.strerror(number), path)

    return changed


class TestRemoving:
    """Record.remove()."""

    def test_remove(self, records: Records) -> None:
        """A removed record is gone, and closing it again does no harm."""
        record = records.begin("bridge", "net", OWNER, {})

        record.remove()
        record.close()

        assert records.find("bridge", "net", OWNER) is None

    def test_of_another(self, records: Records) -> None:
        """A record whose file was replaced removes nothing."""
        record = records.begin("bridge", "net", OWNER, {})
        only_file(records).unlink()
        records.begin("bridge", "net", OWNER, {"new": True})

        record.remove()

        (one,) = records.of_plugin("bridge")
        assert one.facts["new"] is True


class TestProbe:
    """Records.probe()."""

    def test_leaves_nothing(self, records: Records) -> None:
        """Where records can be written the probe leaves none."""
        records.probe()

        assert os.listdir(records.directory) == []

    def test_no_directory(self, records: Records, tmp_path: Path) -> None:
        """Where there can be no directory the probe fails."""
        (tmp_path / "run").write_bytes(b"")

        with pytest.raises(CNIError, match="Not a directory; make it writable") as caught:
            records.probe()

        assert caught.value.code == Code.PLUGIN_NOT_AVAILABLE

    def test_disk_full(self, records: Records) -> None:
        """Where nothing can be written the probe fails, and leaves nothing."""
        with file_size_limit(0), pytest.raises(CNIError, match=r"space|large"):
            records.probe()

        assert os.listdir(records.directory) == []


class TestRenew:
    """Record.renew()."""

    DAMAGED = b'{"format":1,"plugin":"bridge","network":"net","containerid":"c1"}\nhalf a li'

    def damaged(self, records: Records) -> tuple[Record, Path]:
        """Return a record of which a part can be read, and its file."""
        records.begin("bridge", "net", OWNER, {}).close()
        path = only_file(records)
        path.write_bytes(self.DAMAGED)
        record = records.find("bridge", "net", OWNER)
        assert record
        assert record.damage
        return record, path

    @pytest.mark.parametrize("text", ["", "x" * 500], ids=["shorter", "longer"])
    def test_says_nothing_else(self, records: Records, text: str) -> None:
        """Neither the damage nor what was there before is left, and later notes come behind."""
        record, path = self.damaged(records)

        record.renew({"format": 1, "text": text})
        record.note(more=1)

        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert lines == [{"format": 1, "text": text}, {"more": 1}]
        assert record.damage == ""

    def test_full_disk(self, records: Records) -> None:
        """The facts that could be read are still there."""
        record, path = self.damaged(records)

        with file_size_limit(len(self.DAMAGED) + 10), pytest.raises(OSError, match=r"space|large"):
            record.renew({"format": 1, "text": "x" * 500})

        assert path.read_bytes() == self.DAMAGED
