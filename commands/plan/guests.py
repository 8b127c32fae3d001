"""Objects of this node's containers, brought onto the stage of a plan."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cni_common.node.host import STATE_DIR
from cni_common.node.journal import make_directory
from commands import DATA_DIR, throwaway
from commands.held import records
from commands.node import Node
from commands.plan import stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cni_common.node.host import Host
    from cni_common.spec.request import Attachment
    from cni_common.spec.wire import Json


@dataclass(frozen=True, slots=True)
class Guests:
    """Records and leases of this node, and the namespaces of the containers that have them."""

    files: Mapping[str, str]  # where the stage has each file, by its path on the node
    namespaces: Sequence[str]  # paths

    def move_in(self, covered: Mapping[str, int]) -> None:
        """Bring all of it to the stage, without those that are gone meanwhile. Raises OSError.

        `covered` has a descriptor of each directory that the stage covers, as it was before.
        """
        for path, target in self.files.items():
            source = _below(path, covered)
            if not os.path.isfile(source):
                continue
            make_directory(os.path.dirname(target), 0o700)
            try:
                shutil.copy2(source, target)  # with its time: it tells the boot
            except FileNotFoundError:
                continue
        for path in self.namespaces:
            source = _below(path, covered)
            if source == path or os.path.lexists(path) or not os.path.exists(source):
                continue
            make_directory(os.path.dirname(path), 0o755)
            with open(path, "x", encoding="ascii"):
                pass
            throwaway.bind(source, path)


def of(host: Host, network: Json) -> Guests:
    """Return what a network's ADD on this node would find. Raises CNIError, OSError."""
    node, name = Node(host, DATA_DIR), str(network.get("name", ""))
    files = {
        one.path: os.path.join(records(STATE_DIR), os.path.basename(one.path))
        for one in node.records
    }
    configured = (os.path.join(one, name) for one in _data_dirs(network))
    for directory in {*configured, *(path for _, path in node.directories(name))}:
        for path in _leases(directory):
            files[path] = stage.place(path)
    paths = (str(one.facts.get("netns", "")) for one in node.records)
    return Guests(files, sorted({os.path.realpath(one) for one in paths if one}))


def is_attached(host: Host, network: Json, owner: Attachment) -> bool:
    """Tell whether an attachment to a network lives here. Raises CNIError, OSError."""
    node = Node(host, DATA_DIR)
    known = node.attachments.get((str(network.get("name", "")), owner), ())
    return any(node.alive(one.facts) for one in known)


def _below(path: str, covered: Mapping[str, int]) -> str:
    """Return a path to a file that the stage has covered."""
    for directory, fd in covered.items():
        if path.startswith(directory):
            return f"/proc/self/fd/{fd}/{path.removeprefix(directory)}"
    return path


def _leases(directory: str) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            yield from (one.path for one in entries if one.is_file(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return


def _data_dirs(value: Any) -> Iterator[str]:
    """Yield the directories of leases that a configuration names."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _data_dirs(one)
    path = value.get("dataDir") if isinstance(value, dict) else None
    if isinstance(path, str) and path.startswith("/"):
        yield path
