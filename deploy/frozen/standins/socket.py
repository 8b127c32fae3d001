"""socket, as far as netlink needs it, with numbers for its constants."""

import _socket
from _socket import *  # noqa: F403 - whatever there is

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class socket(_socket.socket):  # type: ignore[no-redef]  # noqa: N801 - as the module calls it
    """A socket that can be used in a `with` statement."""

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
