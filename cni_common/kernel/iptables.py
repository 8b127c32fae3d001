"""The programs of iptables: found, run inside a namespace, and their listings.

Data reaches the programs through stdin only. Netlink tells whether a chain exists, so the usual
case, no chain, starts no process.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess  # noqa: TID253 - this module is loaded only to run iptables
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.steps import CALL, EXEC, now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_common.kernel.netns import NetNS

COMMANDS = {4: "iptables", 6: "ip6tables"}  # by IP version
_NAT = {4: nft_table.Table(nft_table.IPV4, "nat"), 6: nft_table.Table(nft_table.IPV6, "nat")}
_WAIT_SECONDS = "5"  # for the xtables lock
_RUN_SECONDS = 30
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"  # the caller's PATH may be empty
_WHY = 'the iptables backend needs it; install it or set "ipMasqBackend": "nftables"'
_NAME_MAX = 110  # characters of each of two names, as a comment can have 255


def find(*names: str, why: str = _WHY) -> str:
    """Return the path of the first of these commands that is installed. Raises CNIError 50."""
    for name in names:
        found = shutil.which(name, path=_PATH)
        if found:
            return found
    raise CNIError(Code.PLUGIN_NOT_AVAILABLE, f"'{names[-1]}' is not installed, and {why}")


def installed(name: str) -> str:
    """Return the path of this command, "" if it is not installed."""
    return shutil.which(name, path=_PATH) or ""


def binaries(netns: NetNS, version: int, chain: str) -> list[str]:
    """Return the commands in whose nat tables `chain` exists: none, or one or both flavours."""
    command = COMMANDS[version]
    found = []
    if _has_nft_chain(netns, version, chain):
        found.append(find(f"{command}-nft", command))
    if "nat" in netns.legacy_tables(version):
        legacy = find(f"{command}-legacy", command)
        if _list(netns, legacy, chain).returncode == 0:
            found.append(legacy)
    return found


def _has_nft_chain(netns: NetNS, version: int, chain: str) -> bool:
    """Tell whether iptables-nft has `chain`; a kernel without nftables has none."""
    try:
        return _NAT[version].has_chain(netns, chain)
    except OSError as error:
        if error.errno not in nft_table.NO_NFTABLES:
            raise
        return False


def has_chain(netns: NetNS, chain: str) -> bool:
    """Tell whether `chain` is in a nat table of either flavour of iptables."""
    return any(binaries(netns, version, chain) for version in COMMANDS)


def listing(netns: NetNS, binary: str, table: str = "nat") -> list[str]:
    """Return the chains and rules of a table, as commands of iptables-save(8)."""
    return _list(netns, binary, "", table).stdout.splitlines()


def listed(netns: NetNS, binary: str, chain: str) -> list[str]:
    """Return the rules of `chain` in table nat; none if the chain does not exist."""
    lines = _list(netns, binary, chain).stdout.splitlines()
    return [line for line in lines if line.startswith("-A ")]


def counted(netns: NetNS, binary: str, chain: str) -> list[str]:
    """Return the rules of `chain` in table nat, each with `-c PACKETS BYTES` before its target."""
    lines = _list(netns, binary, chain, more="-v").stdout.splitlines()
    return [line for line in lines if line.startswith("-A ")]


def _list(
    netns: NetNS, binary: str, chain: str, table: str = "nat", *, more: str = ""
) -> subprocess.CompletedProcess[str]:
    # `chain` consists of letters, digits and dashes.
    what = [*([chain] if chain else ()), *([more] if more else ())]
    return run(netns, [binary, "-w", _WAIT_SECONDS, "-t", table, "-S", *what], "")


def restore(netns: NetNS, binary: str, commands: Sequence[str], table: str = "nat") -> None:
    """Run commands on a table, all or none (iptables-restore(8))."""
    text = "\n".join([f"*{table}", *commands, "COMMIT", ""])
    done = run(netns, [binary, "-w", _WAIT_SECONDS, "--noflush"], text)
    if done.returncode:
        raise CNIError(Code.INTERNAL, f"{binary} failed: {done.stderr.strip()}")


def run(netns: NetNS, command: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
    """Run a command inside `netns`, without a shell and with a time limit."""

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False
        )

    since = now()
    try:
        return netns.run(start)
    except subprocess.TimeoutExpired:
        raise CNIError(
            Code.TRY_AGAIN_LATER, f"{command[0]} did not end within {_RUN_SECONDS} s"
        ) from None
    finally:
        CALL.note(EXEC, since)


def comment(network: str, containerid: str, what: str = "") -> str:
    """Return the match by which the reference marks a rule as an attachment's."""
    # Names consist of letters, digits and "_.-" alone: they cannot break out of the quotes.
    names = f'{what}name: \\"{network[:_NAME_MAX]}\\" id: \\"{containerid[:_NAME_MAX]}\\"'
    return f'-m comment --comment "{names}"'


def words(text: str) -> list[str]:
    """Return the words of a listed rule, none if it cannot be split."""
    try:
        return shlex.split(text)
    except ValueError:  # a foreign comment that contains a quote
        return []
