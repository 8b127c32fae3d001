"""Other programs of the node that touch interfaces or packets."""

from __future__ import annotations

import glob
import os
import re
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.spec.profile import HostLink
from commands.doctor.lines import ERROR, OK, WARNING, Line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from commands.doctor.lines import Patient

_NETWORKD = "/run/systemd/netif"
_UNITS = ("/etc/systemd/network", "/run/systemd/network", "/usr/lib/systemd/network")
_UNMANAGED = (
    "printf '[Match]\\nKind=veth bridge\\n[Link]\\nUnmanaged=yes\\n'"
    " >/etc/systemd/network/05-pycni.network"
)
_MANAGER = "/run/NetworkManager"
_MANAGER_RULES = "/usr/lib/udev/rules.d/85-nm-unmanaged.rules"
_MANAGER_FILE = "/etc/NetworkManager/conf.d/pycni.conf"
_MANAGER_CONF = ("/etc/NetworkManager/conf.d/*.conf", "/usr/lib/NetworkManager/conf.d/*.conf")
_OLD_PROXY = "KUBE-SERVICES"


def proxies(patient: Patient) -> Iterator[Line]:
    """Say in which mode kube-proxy works, and whether docker and firewalld are here."""
    if "kube-ipvs0" in patient.links:
        yield Line(OK, "kube-proxy", "in mode ipvs")
    elif _has_table(patient, nft_table.IPV4, "kube-proxy"):
        yield Line(OK, "kube-proxy", "in mode nftables")
    elif _has_old_proxy(patient):
        bridged = patient.sysctl("net/bridge/bridge-nf-call-iptables")
        if _has_bridge(patient) and bridged != "1":
            yield Line(
                WARNING,
                "kube-proxy",
                "in mode iptables, and packets between ports of a bridge pass no iptables: pods do"
                " not reach a Service whose pod is on the same node",
                "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1",
            )
        else:
            yield Line(OK, "kube-proxy", "in mode iptables")
    if os.path.exists("/run/docker.sock") or "docker0" in patient.links:
        yield Line(OK, "docker", "is here; it sets the policy of FORWARD to DROP")
    if os.path.exists("/run/firewalld"):
        yield Line(OK, "firewalld", "runs; a reload removes what others have in its zones")


def _has_table(patient: Patient, family: int, name: str) -> bool:
    try:
        return nft_table.Table(family, name).holds(patient.host.netns) > 0
    except NetlinkError:
        return False


def _has_old_proxy(patient: Patient) -> bool:
    try:
        return nft_table.Table(nft_table.IPV4, "nat").has_chain(patient.host.netns, _OLD_PROXY)
    except NetlinkError:
        return False


def _has_bridge(patient: Patient) -> bool:
    return any(isinstance(fact, HostLink) and fact.made for _, fact in patient.facts)


def managers(_patient: Patient) -> Iterator[Line]:
    """Say whether a network manager takes the interfaces of containers for its own."""
    yield from _networkd()
    yield from _network_manager()


def _networkd() -> Iterator[Line]:
    if not os.path.isdir(_NETWORKD):
        return
    takers = []
    for path in _first_of_each(_UNITS, "*.network"):
        match, is_unmanaged = _read_unit(path)
        if _matches_pairs(match):
            if is_unmanaged:
                break
            takers.append(path)
    if takers:
        yield Line(
            ERROR,
            "systemd-networkd",
            f"{takers[0]} matches the host's ends of containers: networkd removes their addresses"
            " and routes",
            _UNMANAGED,
        )
    else:
        yield Line(OK, "systemd-networkd", "leaves the interfaces of containers alone")


def _network_manager() -> Iterator[Line]:
    if not os.path.isdir(_MANAGER):
        return
    rules = _text(_MANAGER_RULES)
    files = [path for pattern in _MANAGER_CONF for path in glob.glob(pattern)]
    told = [path for path in files if re.search(r"unmanaged-devices.*(veth|bridge)", _text(path))]
    if "veth" in rules or told:
        yield Line(OK, "NetworkManager", f"leaves pairs alone by {(told or [_MANAGER_RULES])[0]}")
        return
    yield Line(
        WARNING,
        "NetworkManager",
        "no file keeps it from the host's ends of containers: it may ask for addresses there",
        "printf '[keyfile]\\nunmanaged-devices=type:veth;interface-name:cni*\\n'"
        f" >{_MANAGER_FILE}; nmcli general reload",
    )


def _first_of_each(directories: tuple[str, ...], pattern: str) -> list[str]:
    """Return files sorted by name; of two of one name that of the earlier directory."""
    found: dict[str, str] = {}
    for directory in directories:
        for path in glob.glob(os.path.join(directory, pattern)):
            found.setdefault(os.path.basename(path), path)
    return [found[name] for name in sorted(found)]


def _read_unit(path: str) -> tuple[dict[str, str], bool]:
    """Return the section [Match] of a unit, and whether it leaves interfaces alone."""
    section, match, is_unmanaged = "", {}, False
    for line in _text(path).splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and section == "[Match]":
            match[key] = value
        is_unmanaged |= section == "[Link]" and (key, value) == ("Unmanaged", "yes")
    return match, is_unmanaged


def _matches_pairs(match: dict[str, str]) -> bool:
    """Tell whether a [Match] takes the host's end of a pair; one without a word takes nothing."""
    if set(match) - {"Name", "Type", "Kind", "Driver"} or not match:
        return False
    names = match.get("Name", "*").split()
    words = {key: match.get(key, "").split() for key in ("Type", "Kind", "Driver")}
    return (
        any(one in ("*", "v*", "ve*") or one.startswith("veth") for one in names)
        and (not words["Type"] or "ether" in words["Type"])
        and all(not words[key] or "veth" in words[key] for key in ("Kind", "Driver"))
    )


def mac_policy() -> str:
    """Return udev's policy for MACs, "" if there is none."""
    for path in _first_of_each(_UNITS, "*.link"):
        found = re.search(r"^MACAddressPolicy=(\S+)", _text(path), re.MULTILINE)
        if found:
            return found.group(1)
    return ""


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
