"""Sysctls where /proc/sys cannot be written, as in containers that are nodes."""

from __future__ import annotations

import subprocess
import sys

from tests.machine import ROOT

READ_ONLY = """
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec "$0" -c "$1"
"""
SET_BOTH = """
from cni_common.kernel.netns import OWN, NetNS

name = "net/ipv6/conf/lo/accept_ra"
netns = NetNS(OWN)
value = netns.sysctl(name)
other = "0" if value == "1" else "1"
print(netns.sysctls({name: value}, unseen={name}))
print(netns.sysctls({name: other}, unseen={name})[name].strerror)
"""


def test_what_has_its_value_already_need_not_be_written() -> None:
    """Written without a look or not: only what would have to change is a failure."""
    words = ["unshare", "--mount", "--", "sh", "-ec", READ_ONLY, sys.executable, SET_BOTH]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert done.stderr == ""
    assert done.stdout == "{}\nRead-only file system\n"
