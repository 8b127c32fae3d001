"""A tap with an SELinux context: the kernel gives it that of the process that makes it.

The process is `ip`, as in the reference: a process can choose the context of the next program that
it starts, hardly ever its own.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from cni_common.kernel.netns import NetNS
    from plugins.tap.conf import Conf

_CONTEXT = "/sys/fs/selinux/context"  # refuses what the policy lacks; there if SELinux is on
_NEXT_PROGRAM = "/proc/thread-self/attr/exec"
_SECONDS = 20


def require(context: str) -> None:
    """Raise CNIError 50 if SELinux is off, as the reference does, 7 if the policy lacks it."""
    try:
        fd = os.open(_CONTEXT, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"\"selinuxContext\" is '{context}', and SELinux is off on this node: switch it on, or"
            " remove the key",
        ) from None
    except OSError:
        return  # the policy keeps us from asking; `ip` will be refused, if it has to be
    try:
        os.write(fd, context.encode())
    except OSError as error:  # any other than EINVAL, as above, tells nothing of the context
        if error.errno == errno.EINVAL:
            raise CNIError(
                Code.INVALID_CONFIG,
                f"\"selinuxContext\" is '{context}', which the SELinux policy of this node does not"
                " have: correct it, or load the policy's module that has it",
            ) from None
    finally:
        os.close(fd)


def create(netns: NetNS, name: str, mac: str, conf: Conf) -> None:
    """Make the tap, which lasts, by `ip` in the context. Raises CNIError, NetlinkError."""
    words = ["ip", "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"]
    if conf.multi_queue:
        words.append("multi_queue")
    for word, value in (("user", conf.owner), ("group", conf.group)):
        if value is not None:
            words += [word, str(value)]
    # The thread ends with this, and the context with the thread.
    netns.run(lambda: _start_in(conf.context, words))
    made = netns.netlink.identify(name)
    if made:
        netns.netlink.set_mac(made[0], mac)


def _start_in(context: str, words: list[str]) -> None:
    import subprocess

    try:
        fd = os.open(_NEXT_PROGRAM, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, context.encode())
        finally:
            os.close(fd)
        done = subprocess.run(words, capture_output=True, check=False, text=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise CNIError(
            Code.INTERNAL, f"cannot run 'ip' in the SELinux context '{context}': {error}"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise CNIError(Code.INTERNAL, f"'{' '.join(words)}' failed in '{context}': {said}")
