"""Checks the kernel and the node for the needs of configurations, and sysctls."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from functools import cache
from typing import TYPE_CHECKING

from cni_common.kernel.link import VethEnd
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.netns import OWN, NetNS
from commands import throwaway
from commands.doctor.lines import ERROR, OK, WARNING, Line
from commands.verb import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cni_common.spec.profile import Need
    from commands.doctor.lines import Patient

_LOADED, _BUILT_IN, _LOADABLE, _TRIED, _ABSENT, _UNKNOWN = (
    "is loaded",
    "is part of the kernel",
    "is loaded when it is first used",
    "is there: one was made in a namespace of its own",
    "is missing",
    "cannot be told",
)


def need(patient: Patient, fact: Need, types: Sequence[str]) -> Iterator[Line]:
    """Say whether something that plugins need is there; nothing about what STATUS looks at."""
    check = _CHECKS.get(fact.kind)
    line = check(patient, fact) if check else None
    if line:
        by = ", ".join(types)
        yield Line(line.level, line.subject, f"{line.text}; for {by}", line.remedy)


def _link(_patient: Patient, fact: Need) -> Line:
    module = fact.module or fact.name
    state = _module(module)
    if state in (_ABSENT, _UNKNOWN):
        state = _try(fact.name)
    return _of_module(f"interfaces of kind {fact.name}", module, state)


def _queue(_patient: Patient, fact: Need) -> Line:
    return _of_module(f"queues {fact.name}", fact.module, _module(fact.module))


def _of_module(subject: str, module: str, state: str) -> Line:
    if state == _ABSENT:
        remedy = f"install the kernel's module '{module}', as of linux-modules-extra"
        return Line(ERROR, subject, f"module '{module}' {state}", remedy)
    level = WARNING if state == _UNKNOWN else OK
    remedy = "pycni plan FILE tries it" if level != OK else ""
    return Line(level, subject, f"module '{module}' {state}", remedy)


def _program(_patient: Patient, fact: Need) -> Line:
    return _command(fact.name)


def _iptables(_patient: Patient, _fact: Need) -> Line:
    return _command("iptables")


def _command(name: str) -> Line:
    path = shutil.which(name)
    if path:
        return Line(OK, f"command {name}", path)
    return Line(ERROR, f"command {name}", "is not in PATH", f"install the package of '{name}'")


def _file(_patient: Patient, fact: Need) -> Line:
    path = fact.name
    if os.path.exists(path):
        return Line(OK, path, "is there")
    return Line(ERROR, path, "is missing", "modprobe tun" if path.endswith("tun") else "")


def _readable(_patient: Patient, fact: Need) -> Line:
    path = fact.name
    if os.access(path, os.R_OK):
        return Line(OK, path, "can be read")
    return Line(ERROR, path, "cannot be read, and every ADD fails", "correct the configuration")


def _socket(_patient: Patient, fact: Need) -> Line:
    path = fact.name
    import socket

    try:
        is_there = stat.S_ISSOCK(os.stat(path).st_mode)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(path)
    except OSError as error:
        is_there = False
        why = error.strerror or str(error)
    if is_there:
        return Line(OK, path, "the daemon listens")
    remedy = "start the plugin's daemon: systemctl enable --now the unit of its page"
    return Line(ERROR, path, f"no daemon answers ({why})", remedy)


def _directory(_patient: Patient, fact: Need) -> Line | None:
    path = fact.name
    return None if os.path.isdir(path) else Line(OK, path, "is made by the first ADD")


def _forwarding(patient: Patient, _fact: Need) -> Line:
    values = {
        "net.ipv4.ip_forward": patient.sysctl("net/ipv4/ip_forward"),
        "net.ipv6.conf.all.forwarding": patient.sysctl("net/ipv6/conf/all/forwarding"),
    }
    text = ", ".join(f"{name} = {value or 'absent'}" for name, value in values.items())
    if "1" in values.values():
        return Line(OK, "forwarding", text)
    return Line(OK, "forwarding", f"{text}: the first ADD sets what its addresses need")


_CHECKS: dict[str, Callable[[Patient, Need], Line | None]] = {
    "link": _link,
    "queue": _queue,
    "program": _program,
    "iptables": _iptables,
    "file": _file,
    "readable": _readable,
    "socket": _socket,
    "directory": _directory,
    "forwarding": _forwarding,
}


def sysctls(patient: Patient) -> Iterator[Line]:
    """Check sysctls that change what containers can do."""
    if patient.sysctl("net/ipv4/conf/all/route_localnet") == "1":
        yield Line(
            WARNING,
            "net.ipv4.conf.all.route_localnet",
            "is 1 for all interfaces: neighbours reach what listens on 127.0.0.1 (CVE-2020-8558)",
            "sysctl -w net.ipv4.conf.all.route_localnet=0; the plugins set single interfaces",
        )
    else:
        yield Line(OK, "net.ipv4.conf.all.route_localnet", "is not set for all interfaces")
    bridged = patient.sysctl("net/bridge/bridge-nf-call-iptables")
    yield Line(
        OK,
        "net.bridge.bridge-nf-call-iptables",
        {
            "": "br_netfilter is not loaded: packets between ports of a bridge pass no firewall",
            "0": "is 0: packets between ports of a bridge pass no firewall",
        }.get(bridged, f"is {bridged}: packets between ports of a bridge pass the firewall, too"),
    )


def _module(name: str) -> str:
    """Return the state of a module of the kernel."""
    if os.path.isdir(f"/sys/module/{name}"):
        return _LOADED
    directory = f"/lib/modules/{os.uname().release}"
    for file, state in (("modules.builtin", _BUILT_IN), ("modules.dep", _LOADABLE)):
        if f"/{name}.ko" in _listing(f"{directory}/{file}"):
            return state
    return _ABSENT if _listing(f"{directory}/modules.dep") else _UNKNOWN


@cache
def _listing(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _try(kind: str) -> str:
    """Return whether the kernel knows a kind of interface, by making one for a moment."""

    def attempt() -> bool:
        netns = NetNS(OWN)
        try:
            netns.netlink.add_device(VethEnd("probe0", ""), kind)
        except NetlinkError as error:
            return error.errno != errno.EOPNOTSUPP  # others: it wants to know more
        finally:
            netns.close()
        return True

    try:
        return _TRIED if throwaway.run(attempt) else _ABSENT
    except RefusedError:
        return _UNKNOWN
