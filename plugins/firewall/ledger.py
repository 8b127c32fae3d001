"""The known content of CNI-FORWARD, so that an ADD need not list it and a DEL need not search it.

A rule has a handle, and a record has the handles of its rules. A small file for each IP version
notes how much the chain is in use, all of it known, and the handles of the jumps to it and from it.
As long as the kernel has these jumps and the same use, the chain is as the last call has left it,
but for foreign rules that came in place of others. Else the chain is listed once and all records
are read. Calls hold the lock over all records.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cni_common.spec import wire
from cni_common.spec.errors import CNIError
from plugins.firewall import cni_forward
from plugins.firewall.cni_forward import ALLOWED
from plugins.firewall.filter_tables import FORWARD

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from plugins.firewall.filter_tables import NftFilter

_FEW = 16  # rules and jumps: so short a chain may be listed, to see whether it can go
_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class _Known:
    """The state of the chain after the last change."""

    chain: int = 0  # its handle
    use: int = 0  # rules in it, and jumps to it
    entry: int = 0  # handle of FORWARD's jump to it
    admins: Mapping[str, int] = field(default_factory=dict)  # handles of jumps, by their targets
    found: Sequence[str] = ()  # addresses in rules that no record holds by a handle

    def has_jumps(self, table: NftFilter, admin: str) -> bool:
        """Tell whether the kernel has the jumps to the chain and from it to `admin`, as noted."""
        return (
            self.entry != 0
            and admin in self.admins
            and table.is_rule(ALLOWED, self.admins[admin], cni_forward.override(admin))
            and table.is_rule(FORWARD, self.entry, cni_forward.TO_ALLOWED)
        )


def admit(
    host: Host,
    table: NftFilter,
    addresses: Collection[Address],
    *,
    admin: str,
    held: Callable[[], Collection[int]],
) -> list[int]:
    """Accept packets from and to `addresses`; return the handles of the rules made.

    `held` returns the handles in all records. Raises CNIError, NetlinkError.
    """
    known = _read(host, table.version)
    is_usual = known.chain != 0 and table.usage(ALLOWED) == (known.chain, known.use)
    own = set(map(str, addresses))
    if is_usual and own.isdisjoint(known.found) and known.has_jumps(table, admin):
        handles = cni_forward.append(table, addresses)
        _write(host, table.version, replace(known, use=known.use + len(handles)))
        return handles
    _forget(host, table.version)
    table.held = held()
    handles = cni_forward.admit(table, addresses, admin)
    table.held = {*table.held, *handles}
    before = table.usage(ALLOWED)
    entry, admins, found = cni_forward.unheld(table, {*known.admins, admin})
    if before == table.usage(ALLOWED):
        _write(host, table.version, _Known(*before, entry, admins, found))
    return handles


def withdraw(
    host: Host,
    table: NftFilter,
    addresses: Collection[Address],
    *,
    admin: str,
    handles: Sequence[int],
) -> bool:
    """Remove rules by their handles; return False if they are not all there as they were made.

    Raises CNIError, NetlinkError.
    """
    if not _are_there(table, addresses, handles):
        return False
    known, usage = _read(host, table.version), table.usage(ALLOWED)
    table.delete_rules(ALLOWED, handles)
    left = usage[1] - len(handles)
    if left <= _FEW:
        _forget(host, table.version)
        cni_forward.remove_if_unused(table, admin)
        if table.usage(ALLOWED) != (usage[0], left):
            return True
    if usage == (known.chain, known.use):
        _write(host, table.version, replace(known, use=left))
    return True


def holds(
    host: Host,
    table: NftFilter,
    addresses: Collection[Address],
    *,
    admin: str,
    handles: Sequence[int],
) -> bool:
    """Tell whether rules and jumps are there as an ADD has made them, without a list.

    False: they may be there in another form.
    """
    known = _read(host, table.version)
    return known.has_jumps(table, admin) and _are_there(table, addresses, handles)


def forget(host: Host) -> None:
    """Have the next ADD list the chains: rules were changed in another way."""
    for version in (4, 6):
        _forget(host, version)


def _are_there(table: NftFilter, addresses: Collection[Address], handles: Sequence[int]) -> bool:
    lines = list(cni_forward.lines_of(addresses))
    return len(lines) == len(handles) and all(
        table.is_rule(ALLOWED, handle, line) for handle, line in zip(handles, lines, strict=True)
    )


def _path(host: Host, version: int) -> str:
    return f"{os.path.dirname(host.records.directory)}/firewall-ipv{version}"


def _read(host: Host, version: int) -> _Known:
    """Return what is known, nothing where the file is not there or is damaged."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(_path(host, version), flags)
    except OSError:
        return _Known()
    try:
        data = wire.decode(os.read(fd, _BYTES_MAX))
        return _Known(**{name: data[name] for name in _Known.__match_args__})
    except (CNIError, OSError, KeyError):
        return _Known()
    finally:
        os.close(fd)


def _write(host: Host, version: int, known: _Known) -> None:
    """Note what is known. A file cut short is as good as none."""
    line = wire.encode_line({name: getattr(known, name) for name in _Known.__match_args__})
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        _forget(host, version)
        fd = os.open(_path(host, version), flags, 0o600)
    except OSError:
        return
    try:
        os.write(fd, line)
    except OSError:
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _forget(host: Host, version: int) -> None:
    path = _path(host, version)
    try:
        os.unlink(path)
    except OSError:
        if os.path.isfile(path):  # it would be believed
            raise
