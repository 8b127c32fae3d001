"""Table filter of each IP version and flavour of iptables: queries, and atomic changes.

A packet is forwarded only if no chain at the hook drops it, in any table. So a packet that docker's
FORWARD drops must be accepted in that very table, not in one of our own. iptables-nft keeps its
tables in nftables, where netlink reaches them; iptables-legacy is reached by its commands.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel import nft_messages, nft_table
from cni_common.spec.errors import CNIError, Code
from plugins.firewall.conf import FIREWALLD, IPTABLES
from plugins.firewall.rules import Line, signature_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from typing import Protocol

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from plugins.firewall.rules import Signature

    Key = str | Signature

    class Filter(Protocol):
        """Table filter of one IP version and flavour."""

        @property
        def name(self) -> str:
            """The table's name in messages."""

        @property
        def version(self) -> int:
            """The IP version."""

        def rules(self, chain: str) -> list[Key] | None:
            """Return the rules of a chain, None if it does not exist."""

        def look(self, chain: str) -> None:
            """Raise what `rules` would raise, which may cost more."""

        def key(self, line: Line) -> Key:
            """Return the form of a rule in the result of `rules`."""

        def drops(self) -> bool:
            """Tell whether the policy of FORWARD is drop."""

        def is_used(self) -> bool:
            """Tell whether FORWARD drops by its policy or has rules."""

        def is_ours(self, chain: str) -> bool:
            """Tell whether this plugin made a chain that others may use."""

        def unheld(self, chain: str, line: Line) -> int:
            """Return how many rules like `line` no record holds by their handles."""

        def commit(self, edits: Sequence[Edit]) -> list[int]:
            """Apply all edits or none; return the handles of appended rules where they have any.

            Raises CNIError, NetlinkError.
            """


FORWARD = "FORWARD"
VERSIONS = (4, 6)
_FAMILIES = {4: nft_table.IPV4, 6: nft_table.IPV6}
_COMMANDS = {4: "iptables", 6: "ip6tables"}
_TABLE = "filter"
_OURS = "pycni"  # comment of a chain
_WHY = 'the chains of this node are those of its older flavour; install it or set "backend"'

ADD_CHAIN, DELETE_CHAIN, APPEND, INSERT, DELETE = "-N", "-X", "-A", "-I", "-D"


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a chain, with its rule if it has one."""

    what: str
    chain: str
    line: Line | None = None


class NftFilter:
    """The table of iptables-nft, by netlink."""

    def __init__(self, netns: NetNS, version: int) -> None:
        self.held: Collection[int] = ()  # handles of rules in records of attachments that stay
        self.version = version
        self.name = f"'table {'ip' if version == 4 else 'ip6'} {_TABLE}'"
        self._netns = netns
        self._table = nft_table.Table(_FAMILIES[version], _TABLE)
        self._handles: dict[tuple[str, Signature], list[int]] = {}

    def rules(self, chain: str) -> list[Key] | None:
        """Return the rules of a chain, None if it does not exist."""
        found: list[Key] = []
        handles: dict[tuple[str, Signature], list[int]] = {}
        for rule in self._table.rules(self._netns, chain):
            signature = signature_of(rule)
            found.append(signature)
            if rule.handle not in self.held:
                handles.setdefault((chain, signature), []).append(rule.handle)
        self._handles = {key: own for key, own in self._handles.items() if key[0] != chain}
        self._handles |= handles
        if not found and not self._table.has_chain(self._netns, chain):
            return None
        return found

    def key(self, line: Line) -> Key:
        """Return the form of a rule in the result of `rules`."""
        return line.signature()

    def drops(self) -> bool:
        """Tell whether the policy of FORWARD is drop."""
        chain = self._table.chain(self._netns, FORWARD) or {}
        return int.from_bytes(chain.get(nft_table.CHAIN_POLICY, b"\1"), "big") == nft_table.DROP

    def is_ours(self, chain: str) -> bool:
        """Tell whether this plugin made a chain that others may use."""
        found = self._table.chain(self._netns, chain) or {}
        return nft_messages.comment(found.get(nft_table.CHAIN_USERDATA)) == _OURS

    def is_used(self) -> bool:
        """Tell whether FORWARD drops by its policy or has rules."""
        try:
            return self.drops() or bool(self.rules(FORWARD))
        except OSError as error:
            if error.errno not in nft_table.NO_NFTABLES:
                raise
            return False

    def unheld(self, chain: str, line: Line) -> int:
        """Return how many rules like `line` were listed that no record holds by their handles."""
        return len(self._handles.get((chain, line.signature()), ()))

    def handle(self, chain: str, line: Line) -> int:
        """Return the handle of a rule that was listed and that no record holds, 0 for none."""
        return next(iter(self._handles.get((chain, line.signature()), ())), 0)

    def unheld_rules(self, chain: str) -> list[Signature]:
        """Return the rules listed that no record holds by their handles."""
        return [signature for where, signature in self._handles if where == chain]

    def look(self, chain: str) -> None:
        """Raise what `rules` would raise, but list no rule."""
        self.is_rule(chain, self.usage(chain)[0], Line(""))

    def usage(self, chain: str) -> tuple[int, int]:
        """Return handle of a chain, and number of its rules and of jumps to it; zeros if absent."""
        found = self._table.chain(self._netns, chain) or {}
        handle = int.from_bytes(found.get(nft_table.CHAIN_HANDLE, b""), "big")
        return handle, int.from_bytes(found.get(nft_table.CHAIN_USE, b""), "big")

    def is_rule(self, chain: str, handle: int, line: Line) -> bool:
        """Tell whether the rule with this handle is there, and is `line`."""
        rule = self._table.rule(self._netns, chain, handle)
        return rule is not None and signature_of(rule) == line.signature()

    def delete_rules(self, chain: str, handles: Sequence[int]) -> None:
        """Delete rules by their handles, all or none. Raises NetlinkError."""
        messages = [self._table.delete_rule(chain, handle) for handle in handles]
        nft_table.apply(self._netns, messages)

    def commit(self, edits: Sequence[Edit]) -> list[int]:
        """Apply all edits or none; return the handles of appended rules. Raises NetlinkError."""
        messages = [message for edit in edits for message in self._messages(edit)]
        if any(edit.what in (ADD_CHAIN, INSERT) for edit in edits):
            # As iptables makes it; an existing chain is unchanged, also its policy.
            forward = self._table.add_base_chain(
                FORWARD, type="filter", hook=nft_table.FORWARD, priority=0
            )
            messages = [self._table.add(), forward, *messages]
        answers = nft_table.apply(self._netns, messages)
        return [one for one in answers if isinstance(one, int)]

    def _messages(self, edit: Edit) -> Iterator[Message]:
        table, line = self._table, edit.line or Line("")
        match edit.what:
            case "-N":
                yield table.add_chain(edit.chain, comment=_OURS)
            case "-X":
                yield table.delete_rule(edit.chain)
                yield table.delete_chain(edit.chain)
            case "-D":
                handle = self._handles[edit.chain, line.signature()].pop()
                yield table.delete_rule(edit.chain, handle)
            case _:
                first = edit.what == INSERT
                parts = line.expressions()
                yield table.add_rule(edit.chain, *parts, first=first, echo=not first)


class LegacyFilter:
    """The table of iptables-legacy, by its commands."""

    def __init__(self, netns: NetNS, version: int) -> None:
        from cni_common.kernel import iptables

        self.version = version
        self._iptables = iptables
        self._netns = netns
        command = _COMMANDS[version]
        self.name = f"table {_TABLE} of {command}-legacy"
        self._command = iptables.find(*_older_commands(version), why=_WHY)
        self._restore = f"{self._command}-restore"
        self._lines: list[str] | None = None

    def rules(self, chain: str) -> list[Key] | None:
        """Return the rules of a chain, None if it does not exist."""
        lines = self._listing()
        prefix = f"-A {chain} "
        found: list[Key] = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
        exists = found or any(line.startswith((f"-N {chain}", f"-P {chain} ")) for line in lines)
        return found if exists else None

    def key(self, line: Line) -> Key:
        """Return the form of a rule in the result of `rules`."""
        return line.text()

    def drops(self) -> bool:
        """Tell whether the policy of FORWARD is drop."""
        return f"-P {FORWARD} DROP" in self._listing()

    def is_ours(self, chain: str) -> bool:
        """Tell whether this plugin made a chain that others may use."""
        return False

    def is_used(self) -> bool:
        """Tell whether FORWARD drops by its policy or has rules."""
        return self.drops() or bool(self.rules(FORWARD))

    def look(self, chain: str) -> None:
        """Raise what `rules` would raise."""
        self.rules(chain)

    def unheld(self, chain: str, line: Line) -> int:
        """Return how many rules are like `line`: none has a handle here."""
        return (self.rules(chain) or []).count(line.text())

    def commit(self, edits: Sequence[Edit]) -> list[int]:
        """Apply all edits or none; return no handles. Raises CNIError."""
        commands: list[str] = []
        for edit in edits:
            if edit.line is None:
                commands += [f"-F {edit.chain}"] if edit.what == DELETE_CHAIN else []
                commands.append(f"{edit.what} {edit.chain}")
            else:
                commands.append(f"{edit.what} {edit.chain} {edit.line.text()}")
        self._lines = None
        self._iptables.restore(self._netns, self._restore, commands, _TABLE)
        return []

    def _listing(self) -> list[str]:
        if self._lines is None:
            self._lines = self._iptables.listing(self._netns, self._command, _TABLE)
        return self._lines


def to_admit(netns: NetNS, version: int, backend: str) -> list[Filter]:
    """Return the tables in which packets must be accepted for `backend`.

    Always one, since docker may be started later: that of iptables-nft, or for "iptables" that of
    the command's flavour. Also the other one if it is in use. With firewalld only dropping tables.
    """
    newer = NftFilter(netns, version)
    if backend == FIREWALLD:
        tables: list[Filter] = [newer, *_legacy(netns, version)]
        return [one for one in tables if one.drops()]
    if backend == IPTABLES and _has_older_iptables(version):
        older = LegacyFilter(netns, version)
        return [older, newer] if newer.is_used() else [older]
    return [newer, *(one for one in _legacy(netns, version) if one.is_used())]


def present(netns: NetNS, version: int) -> list[Filter]:
    """Return the tables that may have rules of ours."""
    return [NftFilter(netns, version), *_legacy(netns, version)]


def probe(netns: NetNS, backend: str) -> None:
    """Raise CNIError 50 if `backend` cannot be used here."""
    if backend == IPTABLES and _has_older_iptables(4):
        LegacyFilter(netns, 4)
        return
    if not has_nftables(netns):
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            'nftables cannot be used; load nf_tables, or set "backend": "iptables"',
        )


def has_nftables(netns: NetNS) -> bool:
    """Tell whether the kernel has nftables."""
    try:
        nft_table.Table(nft_table.IPV4, _TABLE).has_chain(netns, FORWARD)
    except OSError as error:
        if error.errno not in nft_table.NO_NFTABLES:
            raise
        return False
    return True


def _legacy(netns: NetNS, version: int) -> list[LegacyFilter]:
    """Return the table of iptables-legacy if it is in use and readable on this node."""
    if _TABLE not in netns.legacy_tables(version):
        return []
    from cni_common.kernel import iptables

    is_installed = any(map(iptables.installed, _older_commands(version)))
    return [LegacyFilter(netns, version)] if is_installed else []


def _older_commands(version: int) -> list[str]:
    """Return the names of the older flavour's command, where it can be had."""
    command = _COMMANDS[version]
    return [f"{command}-legacy", *([command] if _has_older_iptables(version) else [])]


def _has_older_iptables(version: int) -> bool:
    """Tell whether the command of that name is iptables-legacy, by its symbolic link."""
    from cni_common.kernel import iptables

    path = iptables.installed(_COMMANDS[version])
    return bool(path) and "nft" not in os.path.basename(os.path.realpath(path))
