"""The objects in a namespace at one moment, in words: two looks show what a plugin has done."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.route import RTN_UNICAST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS

HOST, CONTAINER = "host", "container"
_SYSCTLS = "/proc/sys/net"
_LOCAL = 255  # RT_TABLE_LOCAL of linux/rtnetlink.h
_NO_SETTINGS = ("stable_secret", "nf_conntrack_count")  # sysctls that no program sets
_SYSCTL_BYTES = 4096


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """One object or setting."""

    where: str  # HOST or CONTAINER
    kind: str  # link, address, route, queue, sysctl, file, nft
    what: str

    def row(self) -> list[str]:
        """Return the thing for JSON."""
        return [self.where, self.kind, self.what]


Look = dict[Thing, str]  # with its value, "" where it has none


def at(netns: NetNS, where: str) -> Look:
    """Return what there is in a namespace."""
    links = netns.netlink.links()
    names = {one.index: one.name for one in links}
    found = dict.fromkeys(_links(links, names, where), "")
    found |= dict.fromkeys(_addresses(netns, names, where), "")
    found |= dict.fromkeys(_routes(netns, names, where), "")
    found |= dict.fromkeys(_queues(netns, names.values(), where), "")
    return found | dict(_sysctls(netns, where))


def files(directories: Iterable[str]) -> Look:
    """Return the files below some directories of the host, without locks."""
    found: Look = {}
    for root in directories:
        for directory, _, names in os.walk(root):
            for name in names:
                if name != "lock":
                    found[Thing(HOST, "file", os.path.join(directory, name))] = ""
    return found


def nft_tables() -> dict[str, str]:
    """Return each table of nftables as nft(8) lists it; nothing where there is no such command."""
    import subprocess

    nft = shutil.which("nft")
    if not nft:
        return {}
    done = subprocess.run([nft, "list", "ruleset"], capture_output=True, text=True, check=False)
    found: dict[str, str] = {}
    name = ""
    for line in done.stdout.splitlines():
        if line.startswith("table "):
            name = line.partition(" {")[0]
            found[name] = ""
        if name:
            found[name] += f"{line}\n"
    return found


def _links(links: Sequence[Link], names: dict[int, str], where: str) -> Iterator[Thing]:
    for one in links:
        words = [
            one.kind or "device",
            one.mac,
            f"MTU {one.mtu}",
            "up" if one.up else "down",
            *([f"port of {names.get(one.master, one.master)}"] if one.master else ()),
            *(["VLAN filtering"] if one.vlan_filtering else ()),
            *(["hairpin"] if one.hairpin else ()),
            *(["isolated"] if one.isolated else ()),
        ]
        yield Thing(where, "link", f"{one.name}: {', '.join(filter(None, words))}")


def _addresses(netns: NetNS, names: dict[int, str], where: str) -> Iterator[Thing]:
    for index in names:
        for cidr, _ in netns.netlink.addresses(index):
            if not (cidr.version == 6 and cidr.is_link_local):  # the kernel makes these
                yield Thing(where, "address", f"{cidr} of {names[index]}")


def _routes(netns: NetNS, names: dict[int, str], where: str) -> Iterator[Thing]:
    for version in (4, 6):
        for found in netns.netlink.all_routes(version):
            route = found.route
            if found.type != RTN_UNICAST or route.table == _LOCAL or route.dst.is_link_local:
                continue
            parts = {
                "via": route.gw,
                "over": names.get(found.interface),
                "mtu": route.mtu,
                "metric": route.priority if version == 4 else None,  # IPv6 always has one
                "table": None if route.table == 254 else route.table,
            }
            words = [f"{word} {value}" for word, value in parts.items() if value]
            if not route.dst.is_multicast:
                yield Thing(where, "route", " ".join([f"to {route.dst}", *words]))


def _queues(netns: NetNS, names: Iterable[str], where: str) -> Iterator[Thing]:
    from commands.kernel import dumps

    for text in dumps.queues(netns, sorted(names)):
        queue = text.partition(", ")[0]  # without the number of packets
        if not queue.startswith("noqueue"):
            yield Thing(where, "queue", queue)


def _sysctls(netns: NetNS, where: str) -> Iterator[tuple[Thing, str]]:
    """Yield the sysctls of a namespace; of an interface those that are not the default."""
    values = netns.run(lambda: dict(_tree()))
    for name, value in values.items():
        _, _, of_interface = name.partition("/conf/")
        interface, _, key = of_interface.partition("/")
        if interface not in ("", "all", "default"):
            default = name.replace(f"/conf/{interface}/", "/conf/default/")
            if values.get(default) == value or key == "mtu":
                continue
        yield Thing(where, "sysctl", name), value


def _tree() -> Iterator[tuple[str, str]]:
    for directory, below, names in os.walk(_SYSCTLS):
        below[:] = [one for one in below if one != "neigh"]
        for name in names:
            if name in _NO_SETTINGS:
                continue
            path = os.path.join(directory, name)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    value = os.read(fd, _SYSCTL_BYTES).decode("utf-8", "replace")
                finally:
                    os.close(fd)
            except OSError:
                continue  # some can only be written
            yield path.removeprefix("/proc/sys/"), " ".join(value.split())
