"""Attachment records: the objects that each plugin is about to make for each attachment.

One small file per (plugin, network, container, interface) under /run, which a reboot empties
as it empties the kernel. The file is written before the kernel is changed and removed last, so DEL,
GC and an operator can find everything an attachment owns with no namespace, no prevResult and a
changed configuration. A file is a journal: each line is a JSON object, later lines add to earlier
ones, a line with a format begins the record anew, and a line that a kill cut short is ignored.
Anything else that cannot be read is damage: the content of such a record is unknown, so nothing
goes by it but the DEL of its attachment. docs/records.md lists what a record holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from cni_common.kernel.netns import pid_namespace
from cni_common.node.journal import (
    OddFileError,
    SharedDirectoryError,
    append,
    is_affordable,
    is_at,
    is_empty,
    lack,
    make_private_directory,
    open_file,
    read,
    refuse_shared,
    replace,
)
from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Attachment
from cni_common.spec.steps import CALL, LOCK, now

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any, TypeVar

    from cni_common.spec.wire import Json

    Facts = TypeVar("Facts")  # a dataclass of JSON values, each with a default; PART names its part

FORMAT = 1
_TRIES = 100  # at a file that others create and remove meanwhile
_DIGEST_SIZE = 32  # characters
# Errors that say nothing about a file, but that this process has run out of something.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class NewerFormatError(CNIError):
    """A record of a newer release, which must not be changed or acted upon."""

    def __init__(self, path: str, found: object) -> None:
        super().__init__(
            Code.DECODING_FAILURE,
            f"the attachment record '{path}' has format {found}, and this release reads formats up"
            f" to {FORMAT}; use the release that wrote it, or a newer one",
        )


def load(facts_type: type[Facts], facts: Json) -> Facts | None:
    """Return the facts of one part, of the class `facts_type`, from a record; None if it has none.

    Fields that the dataclass `facts_type` does not have are of a later release, and left aside.
    """
    described: Any = facts_type
    data = facts.get(described.PART)
    if not isinstance(data, dict):
        return None
    return facts_type(**{name: data[name] for name in described.__match_args__ if name in data})


def dump(facts: Any) -> Json:
    """Return the facts about one part, as a record has them by the part's name."""
    return {facts.PART: {name: getattr(facts, name) for name in facts.__match_args__}}


class Record:
    """One record, locked against other processes until `close` or `remove`."""

    def __init__(
        self, path: str, fd: int, facts: Json, damage: str = "", *, is_whole: bool = False
    ) -> None:
        """Without a file (`fd` -1) it can only be read. Raises NewerFormatError."""
        self.path = path
        self._fd = fd
        self._has_format = "format" in facts
        self._facts = _with_format(path, facts)
        self.damage = damage or lack(self._facts)  # what cannot be read, "" for nothing
        self._is_empty = not self._facts and not self.damage
        self._is_whole = is_whole  # the last line, as far as is known; no other process writes here

    @property
    def facts(self) -> Json:
        """Everything noted so far."""
        return self._facts

    @property
    def attachment(self) -> Attachment:
        """Return the attachment of this record."""
        return Attachment(self._facts.get("containerid", ""), self._facts.get("ifname", ""))

    def identify(self, plugin: str, network: str, attachment: Attachment) -> None:
        """Set the identity that an empty or damaged file lacks."""
        self._facts |= {
            "plugin": plugin,
            "network": network,
            "containerid": attachment.containerid,
            "ifname": attachment.ifname,
        }

    @property
    def plugin(self) -> str:
        """The plugin that wrote it, by the file's name where the record does not say."""
        # The name is "PLUGIN-DIGEST-DIGEST", see Records.path_of.
        in_name = os.path.basename(self.path)[: -2 * (_DIGEST_SIZE + 1)]
        return str(self._facts.get("plugin") or in_name)

    @property
    def network(self) -> str:
        """The network's name."""
        return str(self._facts.get("network", ""))

    def is_begun(self) -> bool:
        """Tell whether the first line is there: ADD writes it before any change."""
        return "format" in self._facts

    def get(self, facts_type: type[Facts]) -> Facts | None:
        """Return the noted facts of the class `facts_type`, None if that part is not noted."""
        return load(facts_type, self._facts)

    def put(self, facts: object, **header: object) -> None:
        """Note the facts of one part, replacing earlier ones. Raises OSError."""
        # A line with a format begins the record anew, so it has everything.
        is_sound = self._has_format and not self.damage
        known = {} if is_sound else {"format": FORMAT, **self._facts}
        noted = {**known, **header, **dump(facts)}
        if self.damage:
            self.renew(noted)
        else:
            self.note(**noted)
            self._has_format = True

    def note(self, **facts: object) -> None:
        """Add `facts` by one write at the end of the file. Raises OSError."""
        is_whole, self._is_whole = self._is_whole, False
        append(self._fd, wire.encode_line(facts), is_whole=is_whole)
        self._is_whole, self._is_empty = True, False
        self._facts |= facts

    def renew(self, facts: Json) -> None:
        """Have the record say `facts`, with a format, and nothing else.

        A full disk or a kill leaves what can be read of it now, or all of `facts`. Raises OSError.
        """
        replace(self._fd, wire.encode_line(facts))
        self._facts, self.damage, self._has_format = dict(facts), "", True
        self._is_whole, self._is_empty = True, False

    def age(self) -> float:
        """Return the seconds since the last note, negative when the clock was set back."""
        return time.time() - os.fstat(self._fd).st_mtime

    def is_unbegun(self) -> bool:
        """Tell whether no line is whole: its ADD was killed before it had made anything."""
        return self._is_empty

    def remove(self) -> None:
        """Delete the record; the last step of a DEL."""
        if self._fd >= 0 and is_at(self._fd, self.path):
            os.unlink(self.path)
        self.close()

    def is_open_at(self, path: str) -> bool:
        """Tell whether this is the record in the file `path`, and still locked."""
        return self._fd >= 0 and self.path == path

    @property
    def inode(self) -> int:
        """The number of the file, which a record that is begun anew does not have."""
        return os.fstat(self._fd).st_ino

    def close(self) -> None:
        """Let others have the record."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Records:
    """All records of a node, in the directory `root`/attachments (0700)."""

    def __init__(self, root: str) -> None:
        self.directory = f"{root}/attachments"
        self._open_records: list[Record] = []

    def close(self) -> None:
        """Close every record that was opened here."""
        for record in self._open_records:
            record.close()

    def probe(self) -> None:
        """Raise CNIError 50 when no record could be written."""
        try:
            self._probe()
        except OSError as error:
            raise self._unwritable(error, Code.PLUGIN_NOT_AVAILABLE) from None

    def _unwritable(self, error: OSError, code: int) -> CNIError:
        """Return what a call says when `error` keeps it from writing a record."""
        return CNIError(
            code, f"cannot write to '{self.directory}': {error.strerror}; make it writable"
        )

    def _probe(self) -> None:
        make_private_directory(self.directory)
        path = ""
        try:  # without a name: a killed process leaves nothing
            fd = os.open(self.directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            path = f"{self.directory}/.probe-{os.getpid()}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            append(fd, b"probe\n")
        finally:
            os.close(fd)
            if path:
                os.unlink(path)

    def begin(self, plugin: str, network: str, attachment: Attachment, facts: Json) -> Record:
        """Create the record of an attachment that is about to be made.

        Raises FileExistsError when there is one already, CNIError 5 when it cannot be written.
        """
        path = self.path_of(plugin, network, attachment)
        try:
            fd = self._create(path)
        except (FileExistsError, SharedDirectoryError):
            raise
        except OSError as error:
            raise self._unwritable(error, Code.IO_FAILURE) from None
        facts = {
            "format": FORMAT,
            "plugin": plugin,
            "network": network,
            "containerid": attachment.containerid,
            "ifname": attachment.ifname,
            "pid_ns": pid_namespace(),
            **facts,
        }
        try:
            append(fd, wire.encode_line(facts))  # another call may have been faster
        except BaseException as error:  # SIGTERM's too
            _give_up(path, fd)
            if isinstance(error, OSError):
                raise self._unwritable(error, Code.IO_FAILURE) from None
            raise
        return self._opened(path, fd, facts, is_whole=True)

    def begin_or_find(
        self, plugin: str, network: str, attachment: Attachment, facts: Json
    ) -> tuple[Record, bool]:
        """Return the record of an attachment, and whether it is new: then it has `facts`.

        Raises CNIError 5 when it cannot be written, 11 when others make and remove it all the time.
        """
        for _ in range(_TRIES):
            try:
                return self.begin(plugin, network, attachment, facts), True
            except FileExistsError:
                found = self.find(plugin, network, attachment)
            if found is not None:
                return found, False
            # A DEL has just removed it.
        raise _busy()

    def begin_anew(
        self,
        plugin: str,
        network: str,
        attachment: Attachment,
        facts: Json,
        *,
        clear: Callable[[Record], object],
    ) -> Record:
        """Do as `begin`, but have what an earlier ADD has left, if anything, taken apart first.

        `clear` gets its record, and removes it or raises. A DEL that has found no record is waited
        for. Raises CNIError 11 when another call for the attachment is at work.
        """
        path = self.path_of(plugin, network, attachment)
        for _ in range(_TRIES):
            try:
                return self.begin(plugin, network, attachment, facts)
            except FileExistsError:
                old = self.find(plugin, network, attachment, wait=is_empty(path))
            if old:
                clear(old)
        raise _busy()

    def hold(
        self, plugin: str, network: str, attachment: Attachment, *, wait: bool = True
    ) -> Record | None:
        """Return the record of an attachment as `find` does; make an empty one if there is none.

        So an ADD waits until the record is removed. None where no record can be made: there
        no ADD can begin, either. None also where descriptors are short: the DEL needs them more.
        Raises CNIError, OSError.
        """
        path = self.path_of(plugin, network, attachment)
        for _ in range(_TRIES):
            try:
                found = self.find(plugin, network, attachment, wait=wait)
            except OddFileError:
                return None
            except PermissionError as error:
                # Where we may not even look, as in a user namespace, nothing can be ours.
                if isinstance(error, SharedDirectoryError) or error.filename == path:
                    raise
                return None
            if found:
                return found
            try:
                fd = self._create(path)
            except FileExistsError:
                continue  # another call was faster
            except OSError:
                return None
            if not is_affordable(fd):
                _give_up(path, fd)
                return None
            record = self._opened(path, fd, {})
            record.identify(plugin, network, attachment)
            return record
        raise _busy()

    def hold_place(self, plugin: str, network: str, attachment: Attachment) -> Record | None:
        """Return an empty record, to be removed by the caller, in the place of an attachment's.

        While it is there an ADD waits. None where there is a record, or none can be made.
        """
        try:
            held = self.hold(plugin, network, attachment, wait=False)
        except NewerFormatError:
            raise
        except CNIError:
            return None  # a call is at work
        if held and not held.is_unbegun():
            held.close()
            return None
        return held

    def find(
        self, plugin: str, network: str, attachment: Attachment, *, wait: bool = True
    ) -> Record | None:
        """Return the record of an attachment, locked, or None.

        An ADD that is still at work is waited for, or, without `wait`, refused by CNIError 11.
        """
        found = self._open(self.path_of(plugin, network, attachment), wait=wait)
        if found is None:
            return None
        # An ADD killed before its first line leaves an empty file, whose name has its owner.
        found.identify(plugin, network, attachment)
        return found

    def identify(
        self, record: Record, plugin: str, network: str, attachments: Collection[Attachment]
    ) -> list[Record]:
        """Name in `record`, if it names none, the attachment whose file it is.

        The attachment is one of `attachments`, or of all records of the network. Return the other
        records of the attachment; none for a record that has a name.
        """
        if record.attachment.containerid:
            return []
        others = [one for one, _ in self.listing() if one.network == network]
        for owner in {*attachments, *(one.attachment for one in others)}:
            if owner.containerid and self.path_of(plugin, network, owner) == record.path:
                record.identify(plugin, network, owner)
                return [one for one in others if one.attachment == owner]
        return []

    def paths(self, plugin: str, network: str) -> list[str]:
        """Return the files of all records of `network`."""
        prefix = f"{plugin}-{_digest(network)}-"
        return [f"{self.directory}/{one}" for one in self._names() if one.startswith(prefix)]

    def of_plugin(self, plugin: str) -> Iterator[Record]:
        """Yield each record of the plugin, of any network, to be read only; takes no lock.

        Damaged records are among them, those that say nothing since a kill are not. Each is read
        when it is asked for, in no order: with thousands, the first may be enough.
        """
        names = (name for name in self._entries() if name.startswith(f"{plugin}-"))
        return filter(None, (self.peek(f"{self.directory}/{name}") for name in names))

    def peek(self, path: str) -> Record | None:
        """Return the record in the file `path`, to be read only, or None; takes no lock."""
        record = _peek(path)
        return record if record and not record.is_unbegun() else None

    def listing(self) -> Iterator[tuple[Record, float]]:
        """Yield every record, to be read only, and its last change, seconds since the epoch.

        Takes no lock. Damaged records are among them, and those that a kill has left unbegun.
        """
        for name in self._names():
            path = f"{self.directory}/{name}"
            record = _peek(path)
            try:
                changed = os.stat(path, follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue
            if record is not None:
                yield record, changed

    def open(self, path: str) -> Record | None:
        """Return the record in the file `path`; None: gone, no file, or an ADD is at work."""
        try:
            return self._open(path, wait=False)
        except NewerFormatError:
            raise
        except (CNIError, OSError):
            return None

    def _names(self) -> list[str]:
        """Return the names of all files, believed only where no other user can have put them."""
        return sorted(self._entries())

    def _entries(self) -> Iterator[str]:
        """Yield what `_names` returns, in no order."""
        try:
            refuse_shared(self.directory)
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    yield entry.name
        except (FileNotFoundError, NotADirectoryError):
            pass

    def _create(self, path: str) -> int:
        """Return the descriptor of a new, locked, empty file. Raises OSError."""
        try:
            refuse_shared(self.directory)
        except FileNotFoundError:
            make_private_directory(self.directory)
        return _create_locked(path)

    def _open(self, path: str, *, wait: bool) -> Record | None:
        if wait and any(one.is_open_at(path) for one in self._open_records):
            raise CNIError(  # instead of waiting for ourselves
                Code.INVALID_CONFIG,
                'a plugin delegates to itself, for the same network and interface; "ipam" must name'
                " an IPAM plugin",
            )
        for _ in range(_TRIES):
            try:
                refuse_shared(self.directory)
                fd = open_file(path, os.O_RDWR | os.O_APPEND)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                if wait:
                    _lock(fd)
                else:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(fd, path):
                    return self._opened(path, fd, *read(fd))
            except BlockingIOError:
                os.close(fd)
                raise _busy() from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its owner removed it while we waited
        raise _busy()

    def _opened(
        self, path: str, fd: int, facts: Json, damage: str = "", *, is_whole: bool = False
    ) -> Record:
        record = Record(path, fd, facts, damage, is_whole=is_whole)
        self._open_records.append(record)
        return record

    def path_of(self, plugin: str, network: str, attachment: Attachment) -> str:
        """Return the file of an attachment's record."""
        # Digests, since the three names together can be longer than a file name may be.
        owner = _digest(f"{attachment.containerid} {attachment.ifname}")
        return f"{self.directory}/{plugin}-{_digest(network)}-{owner}"


class Lock:
    """Keeps other calls out of what they lock likewise, for the length of a `with`."""

    def __init__(self, records: Records) -> None:
        self._directory = records.directory
        self._fd = -1

    def __enter__(self) -> None:
        try:
            make_private_directory(self._directory)
            self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if isinstance(error, SharedDirectoryError) or error.errno in EXHAUSTED:
                raise
            return  # without a record no call makes what this keeps others out of
        try:
            _lock(self._fd)
        except BaseException:  # SIGTERM's too
            os.close(self._fd)
            raise

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock(fd: int) -> None:
    since = now()
    fcntl.flock(fd, fcntl.LOCK_EX)
    CALL.note(LOCK, since)


def _create_locked(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(_TRIES):
        fd = os.open(path, flags, 0o600)
        try:
            _lock(fd)
            if is_at(fd, path):
                return fd
        except BaseException:
            _give_up(path, fd)
            raise
        os.close(fd)  # a DEL took the empty file for a leftover before it was locked
    raise _busy()


def _give_up(path: str, fd: int) -> None:
    """Remove a record that could not be written, and its lock in any case: we may live on."""
    try:
        if is_at(fd, path):
            os.unlink(path)
    finally:
        os.close(fd)


def _busy() -> CNIError:
    return CNIError(
        Code.TRY_AGAIN_LATER,
        "another call for this container and interface is still at work; try again",
    )


@lru_cache(maxsize=8)  # a call asks several times, for plugin and IPAM
def _digest(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST_SIZE]


def _peek(path: str) -> Record | None:
    """Return what is in a record's place, to be read only; None if it is gone."""
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OddFileError as error:
        return Record(path, -1, {}, f"it is {error.kind}")
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        return Record(path, -1, {}, f"it cannot be opened: {error.strerror}")
    try:
        return Record(path, -1, *read(fd))
    finally:
        os.close(fd)


def _with_format(path: str, facts: Json) -> dict[str, Any]:
    """Return the facts of a record in the form of FORMAT. Raises NewerFormatError."""
    if "format" in facts:
        if facts["format"] != FORMAT:
            raise NewerFormatError(path, facts["format"])
        return dict(facts)
    if "plugin" not in facts:  # damaged, or empty
        return dict(facts)
    from cni_common.node import unformatted

    return unformatted.convert(facts)
