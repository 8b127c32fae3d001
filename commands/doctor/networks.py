"""Configurations and plugins: which the runtimes take, and whether an ADD could work now."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError
from cni_common.spec.profile import Need, Pool
from cni_common.spec.request import Command, Request
from cni_common.spec.undo import Undo
from commands import view
from commands.doctor.lines import ERROR, OK, WARNING, Line
from commands.lint import run as lint
from plugins import TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from commands.doctor.lines import Patient
    from commands.lint.files import Entry
    from commands.runtimes import Runtime

_FULL = 0.9  # of a range: nine of ten addresses
_VERSION_SECONDS = 2
# About runtimes of other nodes; and what has lines of its own here: plugins, files, kube-proxy.
_NOT_HERE = ("L203", "L601", "L606", "L607", "L609")
_NAMES = 6  # of networks in one line


def runtimes(patient: Patient) -> Iterator[Line]:
    """Say which runtimes there are, where they look, and which file each takes."""
    if not patient.runtimes:
        yield Line(
            OK, "runtimes", "neither containerd nor CRI-O, nor podman with CNI, is set up here"
        )
    for one in patient.runtimes:
        where = f"{one.conf_dir}, plugins in {', '.join(one.bin_dirs)}"
        source = f" by {one.source}" if one.source else " by its defaults"
        yield _choice(one, f"reads {where}{source}")


def _choice(runtime: Runtime, text: str) -> Line:
    read = runtime.files()
    if not read:
        return Line(
            ERROR,
            runtime.name,
            f"{text}; there is no configuration, and no pod gets a network",
            f"put a list into {runtime.conf_dir}",
        )
    if runtime.network:
        return Line(OK, runtime.name, f"{text}; takes the network '{runtime.network}'")
    if runtime.takes_first:
        others = f", not the {len(read) - 1} behind it" if read[1:] else ""
        return Line(OK, runtime.name, f"{text}; takes {os.path.basename(read[0])}{others}")
    return Line(OK, runtime.name, f"{text}; {view.number(len(read), 'file')}")


def configurations(patient: Patient) -> Iterator[Line]:
    """Say what lint finds, also by comparing with this node."""
    for directory in patient.directories:
        try:
            read, findings = lint.check([directory], patient.host.load, patient.bin_dirs)
        except Exception as error:  # noqa: BLE001 - RefusedError: nothing there, or unreadable
            yield Line(WARNING, directory, str(error))
            continue
        findings = [one for one in findings if one.code not in _NOT_HERE]
        count = view.number(len(read), "file")
        remedy = f"pycni lint --node {directory}"
        errors = [one for one in findings if one.severity == ERROR]
        if errors:
            text = f"{view.number(len(errors), 'error')} in {count}, the first: {errors[0].text}"
            yield Line(ERROR, directory, text, remedy)
        elif findings:
            text = (
                f"{view.number(len(findings), 'warning')} in {count}, the first: {findings[0].text}"
            )
            yield Line(WARNING, directory, text, remedy)
        else:
            yield Line(OK, directory, f"{count}, clean")


def plugins(patient: Patient) -> Iterator[Line]:
    """Say whose plugins the runtimes find, and which are missing."""
    wanted = {type for file in patient.files for one in file.entries for type in _types(one)}
    missing = sorted(type for type in wanted if not _find(type, patient.bin_dirs))
    versions: dict[str, list[str]] = {}
    for type in sorted({*wanted, *TYPES} - set(missing)):
        path = _find(type, patient.bin_dirs)
        if path:
            versions.setdefault(_version(path), []).append(type)
    for version, types in sorted(versions.items()):
        yield Line(OK, version, ", ".join(types))
    if len([version for version in versions if version.startswith("pycni")]) > 1:
        yield Line(WARNING, "plugins", "there are several versions of pycni", "make install")
    for type in missing:
        yield Line(
            ERROR,
            type,
            f"a configuration names it, and it is not in {', '.join(patient.bin_dirs)}",
            "install the plugin there, or correct the runtime's directory of plugins",
        )


def status(patient: Patient) -> Iterator[Line]:
    """Ask each plugin of each network whether an ADD could work now."""
    working = []
    for file in patient.files:
        problems = [text for entry in file.entries for text in _status(patient, entry)]
        if problems:
            remedy = f"mend that; pycni plan {file.path} tries it"
            yield Line(ERROR, f"network '{file.name}'", problems[0], remedy)
        elif file.entries:
            working.append(file.name)
    if working:
        yield Line(OK, "an ADD could work now", f"on {_listed(working)}")


def _status(patient: Patient, entry: Entry) -> Iterator[str]:
    from cni_common.serve.protocol import execute

    if entry.type not in TYPES:
        return
    own = {"name": entry.file.name, "cniVersion": "1.1.0"}  # the first with STATUS
    data = json.dumps({**entry.given, **own}).encode()
    environ = {"CNI_COMMAND": Command.STATUS, "CNI_PATH": ":".join(patient.bin_dirs)}
    try:
        with Undo() as undo:
            execute(entry.type, Request.parse(environ, data), patient.host, undo)
    except (CNIError, OSError) as error:
        yield f"{entry.type}: {error}"


def needs(patient: Patient) -> Iterator[Line]:
    """Say what the configurations need of the kernel and of the node, and whether it is there."""
    from commands.doctor import kernel

    found: dict[tuple[str, str], tuple[Need, set[str]]] = {}
    for entry, fact in patient.facts:
        if isinstance(fact, Need):
            found.setdefault((fact.kind, fact.name), (fact, set()))[1].add(entry.type)
    for _, (fact, types) in sorted(found.items(), key=lambda item: item[0]):
        yield from kernel.need(patient, fact, sorted(types))


def pools(patient: Patient) -> Iterator[Line]:
    """Say how many addresses of each range are given out."""
    from commands.node import Node

    tenancies = Node(patient.host, patient.options.data_dir).tenancies
    unused = 0
    for entry, fact in patient.facts:
        if not isinstance(fact, Pool):
            continue
        size = int(fact.last) - int(fact.first) + 1
        used = sum(
            one.network == entry.file.name
            and one.held.address.version == fact.subnet.version
            and int(fact.first) <= int(one.held.address) <= int(fact.last)
            for one in tenancies
        )
        unused += not used
        if used:
            yield _of_pool(f"{entry.file.name} {fact.subnet}", used, size)
    if unused:
        yield Line(OK, "ranges", f"{unused} of which no address is given out")


def _of_pool(subject: str, used: int, size: int) -> Line:
    text = f"{used} of {size} addresses are given out"
    if used >= size - 1:  # the gateway may be one of them
        return Line(ERROR, subject, text, "pycni audit shows leases of dead containers")
    if used >= _FULL * size:
        return Line(WARNING, subject, text, "pycni audit; a larger range")
    return Line(OK, subject, text)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"{view.number(len(names), 'network')}: {', '.join(names[:_NAMES])}{more}"


def _types(entry: Entry) -> list[str]:
    return [type for type in (entry.type, entry.ipam) if type]


def _find(type: str, directories: Sequence[str]) -> str:
    paths = (os.path.join(directory, type) for directory in directories)
    return next((path for path in paths if os.path.isfile(path)), "")


def _version(path: str) -> str:
    """Return suite and version, which an executable says when it is called without a command."""
    import subprocess

    try:
        done = subprocess.run(
            [path],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "no answer"
    words = (done.stderr + done.stdout).split()
    version = next((one for one in words if one[:1] == "v" and one[1:2].isdigit()), "")
    of_ours = version.partition("+pycni.")[2]
    if of_ours:
        return f"pycni {of_ours}"
    return f"another suite, {version}" if version else "another suite"
