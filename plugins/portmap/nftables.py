"""Port mappings by nftables: an attachment's elements added, removed and compared."""

import errno

from cni_common import nft
from cni_common.errors import CNIError, Code
from cni_common.masquerade import TABLE
from cni_common.netlink import NetlinkError
from plugins.portmap import layout, localnet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cni_common.host import Host
    from cni_common.netlink import Message
    from cni_common.netns import NetNS
    from plugins.portmap.conf import Conf

    Key = tuple[str, bytes]


def facts_of(conf: "Conf") -> "dict[str, Any]":
    """Return what a record must tell about an attachment for `remove`."""
    suffix = layout.suffix(conf.conditions)
    elements = layout.elements(conf, suffix)
    return {
        "elements": [[element.set, element.key.hex()] for element in elements],
        "chains": sorted({element.goto for element in elements if element.goto}),
        "suffix": suffix,
    }


def add(netns: "NetNS", conf: "Conf", owner: str, is_alive: "Callable[[str], bool]") -> None:
    """Map the ports of `conf`, all by one transaction.

    `is_alive` tells whether the owner named in an element's comment still exists: what a dead one
    left is taken over. Raises CNIError naming a living one, NetlinkError.
    """
    suffix = layout.suffix(conf.conditions)
    if not suffix:
        _add(netns, conf, owner, suffix, is_alive=is_alive)
        return
    from plugins.portmap import conditions  # noqa: PLC0415 - subprocess and more, for this alone

    for attempt in range(nft.TRIES):
        nft.apply(netns, layout.base())
        conditions.ensure(netns, suffix, conf.conditions)
        try:
            _add(netns, conf, owner, suffix, is_alive=is_alive)
        except NetlinkError as error:
            # A DEL took the network's maps away again: it saw no use for them.
            if error.errno != errno.ENOENT or attempt == nft.TRIES - 1:
                raise
        else:
            return


def _add(
    netns: "NetNS",
    conf: "Conf",
    owner: str,
    suffix: str,
    *,
    is_alive: "Callable[[str], bool]",
) -> None:
    elements = layout.elements(conf, suffix)
    messages = [element.add(owner) for element in elements]
    chains = {element.goto for element in elements if element.goto} or {layout.PORTS}
    # Asked for, since a refused transaction takes tens of milliseconds.
    if TABLE.has_chain(netns, *chains) and nft.try_to_add(netns, messages):
        return
    frame = [*layout.base()]
    if conf.snat and not conf.masquerade_all:
        for subnet in {cidr.network for _, cidr in conf.targets()}:
            frame += layout.hairpin(subnet)
    nft.add_with_frame(netns, frame, messages, lambda: _evict(netns, elements, owner, is_alive))


def remove(host: "Host", facts: "Any", owner: str) -> None:
    """Take back what `add` made for this owner, by `facts_of`; nothing that is another's by now."""
    remove_elements(host.netns, _keys(facts), owner)
    remove_unused(host, facts.get("chains", ()), facts.get("suffix", ""))


def remove_elements(netns: "NetNS", keys: "Sequence[Key]", owner: str) -> None:
    """Remove those of the elements under `keys` that are of `owner`."""

    def deletions() -> "list[Message]":
        present = TABLE.present(netns, keys)
        return [
            TABLE.delete_element(*key)
            for key, element in zip(keys, present, strict=True)
            if element and element.comment == owner
        ]

    nft.apply_deletions(netns, deletions)


def remove_unused(host: "Host", chains: "Sequence[str]", suffix: str) -> None:
    """Remove those of `chains`, and of what `suffix` tells, that nothing needs; then the base."""
    netns = host.netns
    idle = [chain for chain in chains if TABLE.is_idle(netns, chain)]
    for chain in idle:
        if chain != layout.MASQUERADE:
            nft.apply_if_unused(netns, layout.without_chain(chain))
    if suffix:
        from plugins.portmap import conditions  # noqa: PLC0415 - as above

        conditions.remove_unused(netns, suffix)
    if not chains or idle:
        localnet.remove_with_base(host)


def check(netns: "NetNS", conf: "Conf", owner: str) -> str:
    """Return what is no longer as `add` made it, "" when nothing has changed."""
    elements = layout.elements(conf, layout.suffix(conf.conditions))
    present = TABLE.present(netns, [(element.set, element.key) for element in elements])
    for element, found in zip(elements, present, strict=True):
        where = f"the element for {element.what} in map '{element.set}'"
        if found is None:
            return f"{where} is missing"
        if found.comment != owner:
            return f"{where} is of '{found.comment}'"
        if (found.data, found.chain) != (element.data, element.goto):
            return f"{where} leads elsewhere"
    needed = {layout.PREROUTING, layout.OUTPUT, layout.POSTROUTING, layout.PORTS}
    for chain in sorted(needed | {element.goto for element in elements if element.goto}):
        if not TABLE.rules(netns, chain):
            return f"chain '{chain}' of 'table inet {TABLE.name}' has lost its rules"
    return ""


def owners(netns: "NetNS") -> "dict[str, list[Key]]":
    """Return the keys of all elements there are by their owners' texts."""
    found: dict[str, list[Key]] = {}
    for name in layout.MAPS:
        for element in TABLE.elements(netns, name):
            found.setdefault(element.comment, []).append((name, element.key))
    return found


def is_there(netns: "NetNS", facts: "Any", owner: str) -> bool:
    """Tell whether anything of what a record tells about is still of `owner`."""
    present = TABLE.present(netns, _keys(facts))
    return any(found is not None and found.comment == owner for found in present)


def taken(what: str, whose: str) -> CNIError:
    """Return the error of an ADD that wants what another living owner has."""
    return CNIError(
        Code.INTERNAL,
        f"{what} is mapped for '{whose}' (plugin, network, container, interface), which is alive;"
        " choose another port, or delete that one first",
    )


def _keys(facts: "Any") -> "list[Key]":
    return [(name, bytes.fromhex(key)) for name, key in facts.get("elements", ())]


def _evict(
    netns: "NetNS",
    elements: "Sequence[layout.Element]",
    owner: str,
    is_alive: "Callable[[str], bool]",
) -> "list[Message]":
    """Return the deletion of elements that dead owners left."""
    messages = []
    alive: dict[str, bool] = {owner: False}
    present = TABLE.present(netns, [(element.set, element.key) for element in elements])
    for element, found in zip(elements, present, strict=True):
        if found is None:
            continue
        if found.comment not in alive:
            alive[found.comment] = is_alive(found.comment)
        if alive[found.comment]:
            raise taken(element.what, found.comment)
        messages.append(TABLE.delete_element(element.set, element.key))
    return messages
