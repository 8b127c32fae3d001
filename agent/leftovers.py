"""Leftovers of pods on the node: the runtime does not know them, and no namespace keeps them.

A runtime that lost a DEL never sends it again. The guards of `pycni reclaim` decide what goes: the
pod's namespace was gone at two looks, a minute apart. The runtime's list is one more guard: pods
that the runtime knows are left to it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent import runtime
from agent.network.pods import words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_common.node.host import Host

AUTO = "auto"
# Of containerd, CRI-O, k3s with RKE2, and k0s; as the host has them, so that no mount is needed.
SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
)


class Leftovers:
    """The leftovers of pods on this node."""

    def __init__(
        self,
        sockets: Sequence[str],
        executable: str,
        log: Callable[[str], object],
        *,
        state_dir: str = "/run/pycni",
    ) -> None:
        """The first of `sockets` that exists is the runtime's; `executable` is `pycni`."""
        self._sockets, self._executable = sockets, executable
        self._log, self._state_dir = log, state_dir
        self._is_missed = False  # it was logged that no socket is there

    def look(self) -> tuple[str, ...]:
        """Remove what was left at this and an earlier look; return the problems.

        Without an answer of the runtime nothing is removed. Nodes without leftovers pay for the
        list of records alone.
        """
        from cni_common.node.host import Host
        from cni_common.serve.protocol import execute
        from cni_common.spec.errors import CNIError
        from plugins import load

        path = self._socket()
        if not path:
            return ()
        try:
            with Host(
                *(load, self._executable, self._log),
                execute=execute,
                guarded=True,
                state_dir=self._state_dir,
            ) as host:
                return self._reclaim(host, path)
        except (CNIError, OSError, ExceptionGroup) as error:
            words = "; ".join(words_of(error))
            return (f"not all leftovers of pods were removed: {words}",)

    def _socket(self) -> str:
        """Return the runtime's socket, "" for none: that is logged, once for as long as it is."""
        path = next(filter(os.path.exists, self._sockets), "")
        if self._sockets and not path and not self._is_missed:
            self._log(
                "leftovers of pods stay, as no runtime can be asked which pods it knows: there is"
                f" no socket {' or '.join(self._sockets)}; name it by --runtime-socket"
            )
        self._is_missed = not path
        return path

    def _reclaim(self, host: Host, path: str) -> tuple[str, ...]:
        from commands import DATA_DIR, reclaim

        recorded = {record.attachment.containerid for record, _ in host.records.listing()}
        if not recorded:
            return ()
        try:
            known = runtime.sandboxes(path)
        except runtime.RuntimeUnknownError as error:
            return (f"leftovers of pods stay, as the runtime does not say which it knows: {error}",)
        if recorded - known:
            for one in reclaim.reclaim(host, DATA_DIR, known=known):
                self._log(f"removed what was left of pod sandbox {one.containerid}: {one.what}")
        return ()


def sockets_of(choice: str, root: str) -> tuple[str, ...]:
    """Return the sockets to try for an operator's choice; `root` is the host's root directory."""
    if choice == AUTO:
        return tuple(f"{root}{one}" for one in SOCKETS)
    return (choice,) if choice else ()
