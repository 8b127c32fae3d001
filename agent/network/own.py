"""The agent's own network namespace, whose sysctls it can set from a container, too."""

from __future__ import annotations

import errno
import os

from cni_common.kernel.netns import OWN, NetNS


class OwnNetNS(NetNS):
    """The namespace of the calling thread.

    /proc/sys is read-only in a container that is not privileged. The host's is not, and a sysctl of
    the network, opened in either, is that of the thread's namespace.
    """

    def __init__(self, root: str) -> None:
        """`root` is the host's root directory, as seen from here."""
        super().__init__(OWN)
        self._root = root

    def open_file(self, path: str, flags: int) -> int:
        """Open a file; a sysctl that is read-only here, by the host's /proc. Raises OSError."""
        try:
            return super().open_file(path, flags)
        except OSError as error:
            if error.errno != errno.EROFS or not path.startswith("/proc/sys/"):
                raise
        return os.open(f"{self._root}{path}", flags)
