"""The network between nodes, as one thing: applied to a cluster, watched, removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from agent.cluster import Cluster
    from agent.network.settings import Settings

    class Closeable(Protocol):
        """A thing that ends."""

        def close(self) -> None:
            """End it, and wait until it has ended."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The outcome of one application."""

    mtu: int  # bytes, for the interfaces of pods; 0: the node has no uplink yet
    public_key: str  # the node's WireGuard key in base64, "" in other modes
    problems: tuple[str, ...]  # sentences: each says what is wrong, where, and what to do


class Fabric:
    """The network between the nodes, in the network namespace of the thread that calls."""

    def __init__(self, settings: Settings, log: Callable[[str], object]) -> None:
        self._settings = settings
        self._log = log

    def apply(self, cluster: Cluster) -> Applied:
        """Read the kernel anew and bring it to what `cluster` asks for; changes nothing else.

        What is right already is left alone. A request that fails is a problem, and the others go
        on. Raises nothing for what the kernel refuses.
        """
        raise NotImplementedError

    def listen(self, wake: Callable[[str], None]) -> Closeable:
        """Call `wake` with a reason, from a thread, when others have changed something of ours."""
        raise NotImplementedError

    def remove(self) -> tuple[str, ...]:
        """Remove all that `apply` has made, and nothing else; return the problems."""
        raise NotImplementedError
