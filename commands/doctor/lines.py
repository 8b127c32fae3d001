"""The lines of the doctor's page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from commands import runtimes
from commands.lint import files
from commands.lint.values import facts_of
from commands.node import Node
from commands.verb import RefusedError

if TYPE_CHECKING:
    from argparse import Namespace

    from cni_common.kernel.link import Link
    from cni_common.node.host import Host
    from cni_common.spec.profile import Fact
    from commands.lint.files import Entry, File

OK, WARNING, ERROR = LEVELS = ("ok", "warning", "error")


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at."""

    level: str  # one of LEVELS
    subject: str
    text: str  # what was found
    remedy: str = ""  # what to do, "" where nothing is to be done


class Patient:
    """The node: each part is read once, when it is first needed."""

    def __init__(self, host: Host, options: Namespace) -> None:
        self.host = host
        self.options = options

    @cached_property
    def runtimes(self) -> list[runtimes.Runtime]:
        """The runtimes of the node."""
        return runtimes.found()

    @property
    def directories(self) -> list[str]:
        """The directories of configurations, of the runtimes and those of the command line."""
        given = list(self.options.paths) or [one.conf_dir for one in self.runtimes]
        return list(dict.fromkeys(given or [runtimes.CONF_DIR]))

    @property
    def bin_dirs(self) -> list[str]:
        """The directories of plugins."""
        found = [path for one in self.runtimes for path in one.bin_dirs]
        return list(dict.fromkeys([*(self.options.path or ()), *(found or [runtimes.BIN_DIR])]))

    @cached_property
    def files(self) -> list[File]:
        """The configurations."""
        found = []
        for directory in self.directories:
            try:
                found += files.gather([directory])
            except RefusedError:
                continue  # reported with the directories
        return found

    @cached_property
    def facts(self) -> list[tuple[Entry, Fact]]:
        """The plugins' own facts about their configurations."""
        entries = [entry for file in self.files for entry in file.entries]
        return [(one, fact) for one in entries for fact in facts_of(one, self.host.load)]

    @cached_property
    def links(self) -> dict[str, Link]:
        """The interfaces of the host, by name."""
        return {one.name: one for one in self.host.netns.netlink.links()}

    @cached_property
    def node(self) -> Node:
        """The records and leases of the node."""
        return Node(self.host, self.options.data_dir)

    def sysctl(self, name: str) -> str:
        """Return a sysctl, by its path below /proc/sys; "" if the kernel does not have it."""
        try:
            with open(f"/proc/sys/{name}", encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            return ""
