"""`pycni topology`: the node's container network as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, view
from commands.node import Node
from commands.topology import diagrams, model, svg, tree

if TYPE_CHECKING:
    from argparse import Namespace

    from cni_common.node.host import Host


def run(options: Namespace, host: Host) -> int:
    """Draw the picture in the wanted form, by default as a tree of text. Raises OSError."""
    picture = model.look(Node(host, options.data_dir))
    for reason in picture.unread:
        host.log(f"pycni topology: not all was read: {reason}")
    if options.json:
        view.write_json(picture.json())
        return DONE
    picture = model.shown(picture)
    if options.svg and options.svg != "-":
        with open(options.svg, "w", encoding="utf-8") as file:
            file.write(svg.drawn(picture))
    else:
        view.write_lines(_text(options, picture))
    return DONE


def _text(options: Namespace, picture: model.Picture) -> str:
    if options.svg:
        return svg.drawn(picture)
    if options.dot:
        return diagrams.dot(picture)
    return diagrams.mermaid(picture) if options.mermaid else tree.drawn(picture)
