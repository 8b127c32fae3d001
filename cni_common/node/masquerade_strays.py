"""Masquerading that may have no record: our elements, and what the reference has made."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel import nft_layout
from cni_common.node import masquerade, masquerade_iptables
from cni_common.node.namespaces import addresses_in_use
from cni_common.node.owned import Stray
from cni_common.spec.request import Attachment

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cni_common.node.host import Host
    from cni_common.spec.names import Address

_OF_REFERENCE = "masquerading of the reference's kind for an address that is in no namespace"


def of(host: Host) -> list[Stray]:
    """Return what there is on the node, with or without a record."""
    return [*_elements(host), *_jumps(host), *_rules(host)]


def _elements(host: Host) -> Iterator[Stray]:
    for text, address in masquerade.owners(host.netns):
        parts = text.split(" ") if text.count(" ") == 3 else ["", "", "", ""]
        yield Stray(
            "masquerade",
            f"element {address} of {nft_layout.TABLE}, for '{text}'",
            tuple(parts[1:]),
            owner=text,
            addresses=frozenset([address]),
            reason="its owner has no record, and its address is in no namespace",
            remove=partial(masquerade.remove_element, host.netns, address, text),
        )


def _jumps(host: Host) -> Iterator[Stray]:
    for jump in masquerade_iptables.reference_jumps(host.netns):
        yield Stray(
            "iptables",
            f"chain {jump.chain} for {jump.source}",
            (jump.network, jump.containerid),
            owner=f"{jump.network} {jump.containerid}",  # an object with a record goes with it
            addresses=frozenset([jump.source]),
            reason=_OF_REFERENCE,
            remove=_nothing,
            remove_from=partial(_remove_of_reference, host, jump.source),
        )


def _rules(host: Host) -> Iterator[Stray]:
    for comment, source in masquerade_iptables.reference_rules(host.netns):
        yield Stray(
            "nftables",
            f"rule '{comment}' for {source}",
            (),
            owner="",
            addresses=frozenset([source]),
            reason=_OF_REFERENCE,
            remove=_nothing,
            remove_from=partial(_remove_of_reference, host, source),
            names_by=partial(_names_in, comment),
        )


def _nothing() -> None:
    """Do nothing: it needs to be known of which network it is."""


def _remove_of_reference(host: Host, source: Address, network: str) -> None:
    """Remove the reference's masquerading of one address that no namespace has."""

    def keep() -> frozenset[Attachment]:
        listed = host.records.listing()
        return frozenset(one.attachment for one, _ in listed if one.network == network)

    in_use = addresses_in_use(host)
    masquerade.gc_of_reference(
        host.netns, network, keep, lambda address: address != source or address in in_use
    )


def _names_in(comment: str, networks: Collection[str]) -> tuple[str, ...]:
    """Return network, container and interface of a rule's comment, as far as they are proven.

    The comment is "<digest>-<digest>, net: NETWORK, if: INTERFACE, id: CONTAINER", and may be cut
    short.
    """
    instance, *parts = comment.split(", ")
    given = dict(part.partition(": ")[::2] for part in parts)
    network, owner = given.get("net", ""), Attachment(given.get("id", ""), given.get("if", ""))
    if instance == masquerade_iptables.reference_instance(network, owner):
        return network, owner.containerid, owner.ifname
    is_of = partial(masquerade_iptables.is_of_network, instance)
    return (next(filter(is_of, networks), ""),)
