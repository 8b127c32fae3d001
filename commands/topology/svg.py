"""The picture as SVG: the host with its uplinks, below it a frame for each group of interfaces.

A frame surrounds the interfaces that its group joins. A frame has its cards in rows, so that a node
with very many containers has a picture that is long, and not wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commands.topology.model import Card, Group, Picture

# Pixels. A character of the fixed font is 0.6 of its size wide.
_WIDTH, _MARGIN, _GAP = 1120, 24, 12
_SIZE, _LINE = 12, 16
_COLUMNS = 3
_RAIL = 20  # from the margin to the frames: the line that joins these to the host
_PAD = 10
_CARD = (_WIDTH - 2 * _MARGIN - _RAIL - 2 * _PAD - (_COLUMNS - 1) * _GAP) // _COLUMNS
_CHARACTER = 0.6 * _SIZE
_STYLE = """\
text { font: 12px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #1b2733 }
.head { font-weight: bold } .small { fill: #52606d } .use { fill: #0b6e4f }
.page { fill: #ffffff } .host { fill: #e4ebf5; stroke: #34568b }
.uplink { fill: #fff4dc; stroke: #b7791f } .group { fill: #f5f7fa; stroke: #7b8794 }
.card { fill: #ffffff; stroke: #9aa5b1 } .gone { stroke-dasharray: 4 3 }
.plug { fill: #34568b } .line { stroke: #34568b; fill: none; stroke-width: 1.5 }"""


def drawn(picture: Picture) -> str:
    """Return the SVG."""
    body, top = _top(picture)
    rail = []
    for group in picture.groups:
        shapes, height = _frame(group, top)
        body += shapes
        if group.has_way:
            rail.append(top + _PAD + _LINE // 2)
        top += height + _GAP
    x = _MARGIN + _PAD
    line = [f'<path class="line" d="M{x} {y} H{_MARGIN + _RAIL}"/>' for y in rail]
    if rail:
        start = f"M{x} {_bottom_of_host(picture)}"
        line.append(f'<path class="line" d="{start} V{rail[-1]}"/>')
    height = top - _GAP + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
            f' viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{_escaped(f'The container network of {picture.node}')}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
            *line,
            *body,
            "</svg>",
            "",
        ]
    )


def _rows_of_uplinks(picture: Picture) -> list[list[str]]:
    return [
        _wrapped([one.name, *one.details], _CARD - 2 * _PAD, joined=False)
        for one in picture.uplinks
    ]


def _heights(picture: Picture) -> list[int]:
    """Return the height of each row of uplinks."""
    texts = _rows_of_uplinks(picture)
    rows = [texts[at : at + _COLUMNS] for at in range(0, len(texts), _COLUMNS)]
    return [max(len(text) for text in row) * _LINE + 2 * _PAD for row in rows]


def _top_of_host(picture: Picture) -> int:
    return _MARGIN + sum(height + 2 * _GAP for height in _heights(picture))


def _bottom_of_host(picture: Picture) -> int:
    return _top_of_host(picture) + _LINE + 2 * _PAD


def _top(picture: Picture) -> tuple[list[str], int]:
    """Return uplinks and host, and where what follows begins."""
    shapes = []
    y = _MARGIN
    texts = _rows_of_uplinks(picture)
    host = _top_of_host(picture)
    for row, height in enumerate(_heights(picture)):
        for column, text in enumerate(texts[row * _COLUMNS : (row + 1) * _COLUMNS]):
            x = _MARGIN + _RAIL + _PAD + column * (_CARD + _GAP)
            size = len(text) * _LINE + 2 * _PAD
            path = f"M{x + _CARD // 2} {y + size} V{host}"
            if row < len(_heights(picture)) - 1:  # beside the boxes that are below it
                path = f"M{x + _CARD} {y + size // 2} h{_GAP // 2} V{host}"
            shapes.append(f'<path class="line" d="{path}"/>')
            shapes += _box("uplink", (x, y, _CARD, size), text)
        y += height + 2 * _GAP
    count = picture.containers
    head = f"{picture.node}: {count} container{'' if count == 1 else 's'}"
    area = (_MARGIN, y, _WIDTH - 2 * _MARGIN, _LINE + 2 * _PAD)
    return [*shapes, *_box("host", area, [head])], y + _LINE + 2 * _PAD + 2 * _GAP


def _frame(group: Group, top: int) -> tuple[list[str], int]:
    """Return the shapes of a group whose frame begins at `top`, and its height."""
    x, width = _MARGIN + _RAIL, _WIDTH - 2 * _MARGIN - _RAIL
    networks = [f"network {one}" for one in group.networks]
    ports = [f"port {one}" for one in group.ports]
    room = width - 2 * _PAD
    head = _wrapped([group.title, *networks], room) + _wrapped(group.details, room)
    head += _wrapped(ports, room)
    y = top + _PAD + len(head) * _LINE + _PAD
    shapes: list[str] = []
    texts = [_text_of(card) for card in group.cards]
    for at in range(0, len(texts), _COLUMNS):
        row = range(at, min(at + _COLUMNS, len(texts)))
        height = max(len(texts[number]) for number in row) * _LINE + 2 * _PAD
        for number in row:
            area = (x + _PAD + (number - at) * (_CARD + _GAP), y, _CARD, height)
            shapes += _card(group.cards[number], texts[number], area)
        y += height + _GAP
    height = y - top if texts else y - top - _PAD + _GAP
    frame = _box("group" if group.has_way else "group gone", (x, top, width, height), head)
    return [*frame, *shapes], height


def _text_of(card: Card) -> list[str]:
    kind = f" {card.kind}" if card.kind and not card.end else ""
    ends = f"{card.end} - {card.ifname}" if card.end else f"{card.ifname}{kind}"
    ids = [card.containerid[:12]] if card.pod else []
    vlans = [f"VLAN {one}" for one in card.vlans]
    room = _CARD - 2 * _PAD
    lines = _wrapped([ends, *ids], room)
    lines += _wrapped([*card.addresses, *vlans], room, joined=False)
    return [*_title(card), *lines, *_uses(card)]


def _title(card: Card) -> list[str]:
    return _wrapped([card.title], _CARD - 2 * _PAD, joined=False)


def _uses(card: Card) -> list[str]:
    room = _CARD - 2 * _PAD
    return [line for use in card.uses for line in _wrapped(use.split(", "), room)]


def _card(card: Card, text: Sequence[str], area: tuple[int, int, int, int]) -> list[str]:
    x, y, *_ = area
    plug = f'<rect class="plug" x="{x - 3}" y="{y + _PAD}" width="6" height="{_LINE}"/>'
    full = _escaped("\n".join([card.containerid, *text[1:]]))
    kind = "card" if card.kind else "card gone"
    box = _box(kind, area, text, heads=len(_title(card)), uses=len(_uses(card)))
    return [f"<g><title>{full}</title>", *box, *([plug] if card.end else []), "</g>"]


def _box(
    kind: str,
    area: tuple[int, int, int, int],
    text: Sequence[str],
    *,
    heads: int = 1,
    uses: int = 0,
) -> Iterator[str]:
    """Yield a rectangle and its lines, the first `heads` in bold, the last `uses` in colour."""
    x, y, width, height = area
    yield f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>'
    for number, line in enumerate(text):
        style = "head" if number < heads else "use" if number >= len(text) - uses else "small"
        base = y + _PAD + number * _LINE + _SIZE
        yield f'<text class="{style}" x="{x + _PAD}" y="{base}">{_escaped(line)}</text>'


def _wrapped(words: Sequence[str], room: int, *, joined: bool = True) -> list[str]:
    """Return the words in lines of `room` pixels, several in one if they may be `joined`.

    A word that is longer is continued in the next line.
    """
    most = int(room / _CHARACTER)
    lines: list[str] = []
    for word in words:
        if joined and lines and len(lines[-1]) + 2 + len(word) <= most:
            lines[-1] += f", {word}"
            continue
        lines += [word[at : at + most] for at in range(0, len(word), most)]
    return lines


def _escaped(text: str) -> str:
    for one, other in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(one, other)
    return text
