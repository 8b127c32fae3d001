"""The picture as a tree of text, in 80 columns."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from commands.topology.model import Card, Group, Picture

    Branch = tuple[str, Sequence["Branch"]]

_WIDTH = 80  # columns
_INDENT = "  "


def drawn(picture: Picture) -> str:
    """Return the tree."""
    branches: list[Branch] = [
        (f"uplink {one.name}\n{', '.join(one.details)}", ()) for one in picture.uplinks
    ]
    branches += [_group(group) for group in picture.groups]
    count = picture.containers
    head = f"{picture.node}: {count} container{'' if count == 1 else 's'}"
    return "\n".join([head, *_lines(branches, "")]) + "\n"


def _group(group: Group) -> Branch:
    head = [group.title]
    networks = f"network{'' if len(group.networks) == 1 else 's'} {', '.join(group.networks)}"
    head += [networks] if group.networks else []
    ports = [(f"port {one}", ()) for one in group.ports]
    text = f"{': '.join(head)}\n{', '.join(group.details)}".rstrip()
    return text, [*ports, *map(_card, group.cards)]


def _card(card: Card) -> Branch:
    ends = f"{card.end} - {card.ifname}" if card.end else card.ifname
    of = f" ({card.containerid[:12]})" if card.pod else ""
    where = ", ".join([*card.addresses, *(f"VLAN {vlan}" for vlan in card.vlans)])
    kind = f" {card.kind}" if card.kind and not card.end else ""
    return "\n".join([f"{ends}{kind}: {card.title}{of}", *filter(None, [where]), *card.uses]), ()


def _lines(branches: Sequence[Branch], lead: str) -> Iterator[str]:
    for number, (text, below) in enumerate(branches):
        last = number == len(branches) - 1
        first, more = ("└─ ", "   ") if last else ("├─ ", "│  ")
        inner = f"{lead}{more}{'│  ' if below else '   '}"
        for place, line in enumerate(text.split("\n")):
            start = inner if place else f"{lead}{first}"
            yield from _folded(line, start, inner)
        yield from _lines(below, f"{lead}{more}")


def _folded(line: str, start: str, inner: str) -> Iterator[str]:
    """Yield a line in pieces that fit; an address or a name is in one of them."""
    room = _WIDTH - len(start) - len(_INDENT)
    pieces = wrap(line, room, break_long_words=False, break_on_hyphens=False) or [""]
    yield f"{start}{pieces[0]}"
    yield from (f"{inner}{_INDENT}{piece}" for piece in pieces[1:])
