"""The engine: whether it answers, what it takes, and whether the launchers use it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from cni_common.serve import status
from cni_common.serve.cli import ENGINE_SOCKET
from commands.doctor.lines import OK, WARNING, Line
from plugins import TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from commands.doctor.lines import Patient

_LAUNCHER = re.compile(rb"pycni launcher ([\w.+-]+) ")  # as plugin_files.type_of looks for it
_LAUNCHER_BYTES_MAX = 1 << 18
_MEMORY_KIB = 512 << 10  # a busy engine of 16 workers takes a fifth of it


def check(patient: Patient) -> Iterator[Line]:
    """Say whether the engine answers, and what is not right with it."""
    if not os.path.exists(ENGINE_SOCKET):
        yield Line(OK, "engine", "does not run; the plugins start by themselves, more slowly")
        return
    found = status.look(ENGINE_SOCKET)
    if found is None:
        text = "its socket is there, and no process listens"
        yield Line(WARNING, "engine", text, "systemctl restart pycni-engine")
        return
    if not found.build:
        text = f"process {found.pid} has its socket, and does not answer"
        yield Line(WARNING, "engine", text, "journalctl -u pycni-engine")
        return
    if found.memory_kib > _MEMORY_KIB:
        remedy = "pycni support, for a bug report; systemctl restart pycni-engine"
        yield Line(WARNING, "engine", f"takes much memory: {found.line()}", remedy)
    else:
        yield Line(OK, "engine", found.line())
    for directory, build in _launchers(patient):
        if build != found.build:
            text = f"is of build {found.build}, the launchers in {directory} are of {build}, and do"
            text += " not use it"
            yield Line(WARNING, "engine", text, "systemctl restart pycni-engine")


def _launchers(patient: Patient) -> Iterator[tuple[str, str]]:
    """Yield directories of plugins, and the build of the launchers there."""
    for directory in patient.bin_dirs:
        for type in TYPES:
            build = _build_of(os.path.join(directory, type))
            if build:
                yield directory, build
                break


def _build_of(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            mark = _LAUNCHER.search(file.read(_LAUNCHER_BYTES_MAX))
    except OSError:
        return ""
    return mark[1].decode("ascii") if mark else ""
