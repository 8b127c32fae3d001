"""The picture in the languages of Graphviz and Mermaid, which draw it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commands.topology.model import Card, Group, Picture


def dot(picture: Picture) -> str:
    """Return a graph in the language of Graphviz."""
    lines = ["graph containers {", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif"];']
    lines += ['  edge [fontname="sans-serif", fontsize=10];']
    lines.append(f"  host [label={_quoted(picture.node)}, style=bold];")
    for number, uplink in enumerate(picture.uplinks):
        label = _quoted("\n".join([f"uplink {uplink.name}", *uplink.details]))
        lines += [f"  uplink{number} [label={label}];", f"  uplink{number} -- host;"]
    for number, group in enumerate(picture.groups):
        label = _quoted("\n".join(_of_group(group)))
        lines += [f"  group{number} [label={label}, style=filled];", f"  host -- group{number};"]
    boxes = dict(_boxes(picture))
    for key, text in boxes.items():
        lines.append(f"  {key} [label={_quoted(text)}, style=rounded];")
    for joined, key, card in _ties(picture):
        lines.append(f"  {joined} -- {key} [label={_quoted(_of_tie(card))}];")
    return "\n".join([*lines, "}"]) + "\n"


def mermaid(picture: Picture) -> str:
    """Return a flowchart in the language of Mermaid."""
    lines = ["flowchart LR", f"  host[{_escaped(picture.node)}]"]
    for number, uplink in enumerate(picture.uplinks):
        label = _escaped("\n".join([f"uplink {uplink.name}", *uplink.details]))
        lines += [f"  uplink{number}[{label}]", f"  uplink{number} --- host"]
    for number, group in enumerate(picture.groups):
        label = _escaped("\n".join(_of_group(group)))
        lines += [f"  group{number}[[{label}]]", f"  host --- group{number}"]
    lines += [f"  {key}({_escaped(text)})" for key, text in _boxes(picture)]
    for joined, key, card in _ties(picture):
        lines.append(f"  {joined} ---|{_escaped(_of_tie(card))}| {key}")
    return "\n".join(lines) + "\n"


def _of_group(group: Group) -> list[str]:
    return [group.title, *group.details, *(f"port {one}" for one in group.ports)]


def _of_tie(card: Card) -> str:
    ends = f"{card.end} - {card.ifname}" if card.end else card.ifname
    vlans = [f"VLAN {vlan}" for vlan in card.vlans]
    return "\n".join([ends, *card.addresses, *vlans])


def _boxes(picture: Picture) -> Iterator[tuple[str, str]]:
    """Yield each container once, with what is done to its traffic on all networks."""
    cards: dict[str, list[Card]] = {}
    for group in picture.groups:
        for card in group.cards:
            cards.setdefault(card.containerid, []).append(card)
    for number, (containerid, own) in enumerate(sorted(cards.items())):
        head = dict.fromkeys([own[0].title, containerid[:12]])
        yield f"container{number}", "\n".join([*head, *(use for card in own for use in card.uses)])


def _ties(picture: Picture) -> Iterator[tuple[str, str, Card]]:
    """Yield the keys of each group and container that are joined, and by what."""
    ids = sorted({card.containerid for group in picture.groups for card in group.cards})
    keys = {containerid: f"container{number}" for number, containerid in enumerate(ids)}
    for number, group in enumerate(picture.groups):
        for card in group.cards:
            yield f"group{number}", keys[card.containerid], card


def _quoted(text: str) -> str:
    """Return a string of Graphviz's language, with its word for the end of a line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    """Return a string of Mermaid's language, which has HTML in quotes."""
    for one, other in (
        ("#", "#35;"),
        ("&", "#amp;"),
        ('"', "#quot;"),
        ("<", "#lt;"),
        (">", "#gt;"),
    ):
        text = text.replace(one, other)
    return '"' + text.replace("\n", "<br/>") + '"'
