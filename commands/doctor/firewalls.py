"""Firewalls of the node: finds those that drop packets of containers through the host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.spec.profile import HostLink, Pool
from commands.doctor.lines import OK, WARNING, Line
from commands.kernel import filters
from plugins import TYPES, profile_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from commands.doctor.lines import Patient
    from commands.kernel.filters import Dropping
    from commands.lint.files import File

_FIREWALLD = ("/run/firewalld", "inet firewalld")  # its directory, and its table
_ADMIT = "add {} to the list of plugins, or admit the subnets by hand"


def check(patient: Patient) -> Iterator[Line]:
    """Say which flavours of firewalls are in use, and which chains drop forwarded packets."""
    netns = patient.host.netns
    for version in (4, 6):
        tables = netns.legacy_tables(version)
        if tables:
            text = f"the older flavour of iptables is in use: {', '.join(tables)}"
            yield Line(OK, f"iptables, IPv{version}", text)
    try:
        chains = nft_table.base_chains(netns)
    except NetlinkError as error:
        if error.errno not in nft_table.NO_NFTABLES:
            raise
        yield Line(WARNING, "nftables", "this kernel has none", "a kernel with CONFIG_NF_TABLES")
        return
    tables = sorted({one.table for one in chains})
    yield Line(OK, "nftables", f"tables with chains: {', '.join(tables) or 'none'}")
    yield from _forwarded(patient)


def _forwarded(patient: Patient) -> Iterator[Line]:
    found = filters.dropping(patient.host.netns)
    if not found:
        yield Line(OK, "forwarded packets", "no chain drops those that it does not know")
        return
    suffering = False
    for one in found:
        networks = [file for file in patient.files if _suffers(file, patient, one)]
        if not networks:
            continue
        suffering = True
        names = ", ".join(file.name for file in networks)
        by_hand = f"accept the subnets there: nft list chain {one.table} {one.chain}"
        yield Line(
            WARNING,
            "forwarded packets",
            f"are dropped by {_words(one)}, and nothing admits those of {names}",
            _ADMIT.format(_admitting()) if _is_admitted(one) else by_hand,
        )
    if not suffering:
        chains = "; ".join(map(_words, found))
        yield Line(
            OK,
            "forwarded packets",
            f"are dropped by {chains}; those of the networks here are admitted",
        )


def _admitting() -> str:
    """Return as JSON the plugins that admit packets of their containers."""
    types = (type for type in TYPES if (profile := profile_of(type)) and profile.admits)
    return " or ".join(f'{{"type":"{type}"}}' for type in types)


def _words(one: Dropping) -> str:
    return f"the {one.how} of table {one.table}, chain {one.chain}"


def _is_admitted(one: Dropping) -> bool:
    """Tell whether a plugin admits packets of its addresses in a chain: not in one of others."""
    directory, table = _FIREWALLD
    return one.is_iptables or (one.table == table and os.path.exists(directory))


def _suffers(file: File, patient: Patient, one: Dropping) -> bool:
    """Tell whether a chain drops packets of a network that pass the host."""
    profiles = [profile_of(entry.type) for entry in file.entries]
    if not file.name or any(profile is None for profile in profiles):
        return False  # a plugin of another vendor may do anything
    if not any(profile and profile.is_network and profile.passes_host for profile in profiles):
        return False
    if _is_admitted(one) and any(profile and profile.admits for profile in profiles):
        return False
    facts = [fact for entry, fact in patient.facts if entry.file is file]
    pools = [fact for fact in facts if isinstance(fact, Pool)]
    if pools and not {pool.subnet.version for pool in pools} & set(one.versions):
        return False
    links = {fact.name for fact in facts if isinstance(fact, HostLink)}
    return not links & one.interfaces and not any(one.knows(pool.subnet) for pool in pools)
