"""The facts about a plugin's configurations for `pycni lint`, `plan` and `doctor`.

Each plugin has a module `profile` with a constant PROFILE. No plugin loads its own: it is for the
operators' commands alone, and pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cni_common.spec.names import Address, Subnet
    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

    Path = tuple[str | int, ...]  # keys and indexes from the plugin's object on

INTERFACE, IPAM, CHAINED = "interface", "ipam", "chained"
ADDRESSES, HOST_PATH = "addresses", "host path"  # what a chained plugin can need of those before


@dataclass(frozen=True, slots=True)
class Advice:
    """A part of a configuration that its plugin accepts, and that does not do what it says.

    `code` is one of RULES in commands/lint/rules.py.
    """

    code: str
    path: Path
    text: str  # a sentence without a full stop: what, and what to do


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses that are given out to containers: `first` to `last`, both inclusive."""

    subnet: Subnet
    first: Address
    last: Address
    path: Path
    gateway: Address | None = None  # that containers are told


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of an object that several networks may share, and that can have one value."""

    owner: str  # the object in words: "bridge 'cni0'"
    key: str
    value: object
    path: Path


@dataclass(frozen=True, slots=True)
class HostLink:
    """An interface of the host that attachments use."""

    name: str
    path: Path
    kind: str = ""  # of the link as `ip -d link` has it, "" for any
    made: bool = False  # by the plugin, if it is not there
    gateway: Path = ()  # the key by which it gets the gateways of Pools, () if it does not


@dataclass(frozen=True, slots=True)
class Need:
    """Something of the node without which a configuration cannot be carried out."""

    kind: str  # one of those that commands/doctor knows
    name: str
    path: Path = ()
    module: str = ""  # of the kernel, if its name is another


Fact = Advice | Pool | Setting | HostLink | Need


@dataclass(frozen=True, slots=True)
class Profile:
    """A plugin's facts for the operators' commands: the constant PROFILE of its module."""

    kind: str  # INTERFACE, IPAM or CHAINED
    parse: Callable[[Request], object]  # raises CNIError for what the plugin refuses
    facts: Callable[[Request], Iterator[Fact]]  # of a configuration that `parse` accepts
    needs: Sequence[str] = ()  # a chained plugin's: ADDRESSES, HOST_PATH
    passes_host: bool = True  # whether packets of the interface pass the host's firewall
    admits: bool = False  # whether it admits packets of its addresses that others drop
    is_network: bool = True  # whether containers reach others by it
    may_follow: bool = False  # an interface plugin's: whether it can come behind another
    # Of an IPAM plugin whose addresses come from beyond the node: returns for its object `ipam`
    # that of another plugin, which gives examples where no server is asked. For `pycni plan`.
    stand_in: Callable[[Json], Json] | None = None
    # Directories with a file for each DEL that a daemon, away at that time, has still to complete.
    queues: Sequence[str] = ()


def without_effect(config: Json, *pairs: tuple[str, str, bool]) -> Iterator[Advice]:
    """Yield advice for each key that does nothing because of another.

    Each pair is the key, what it needs in words, and whether that is given.
    """
    for key, condition, is_given in pairs:
        if config.get(key) and not is_given:
            yield Advice("L505", (key,), f'"{key}" does nothing without {condition}')
