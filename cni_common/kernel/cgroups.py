"""Control groups (cgroups(7)): a process leaves those that end with the program that started it."""

from __future__ import annotations

import os
from contextlib import suppress

GROUP = "pycni-engine"  # directory of the control groups, in the root of each hierarchy
# The frozen program has this codec loaded. Any other is a module in a file, which cannot be opened
# once a process has entered another mount namespace.
_ENCODING = "utf-8"


def leave_groups(own: str = "/proc/self/cgroup", mounts: str = "/proc/self/mountinfo") -> list[str]:
    """Move this process into groups of its own in each hierarchy; return what was not possible."""
    with open(own, encoding=_ENCODING) as file:
        lines = file.read().splitlines()  # whole first: it changes while this process moves
    with open(mounts, encoding=_ENCODING) as file:
        places = _hierarchies([line for line in file.read().splitlines() if _is_seen(line)])
    problems = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        place = places.get(frozenset(controllers.split(",")) - {""})
        if place is None or group == "/":
            continue  # one that is not mounted, or the root: no runtime kills by it
        try:
            _move(f"{place}/{GROUP}")
        except OSError as error:
            problems.append(
                f"stays in the control group '{group}' of '{place}' ({error.strerror}): the engine"
                " ends with it"
            )
    return problems


def remove_groups(mounts: str = "/proc/self/mountinfo") -> list[str]:
    """Remove those groups from each hierarchy; return those that stay, as processes are in them."""
    with open(mounts, encoding=_ENCODING) as file:
        places = _hierarchies([line for line in file.read().splitlines() if _is_seen(line)])
    stay = []
    for place in places.values():
        try:
            os.rmdir(f"{place}/{GROUP}")
        except FileNotFoundError:
            continue
        except OSError:
            stay.append(f"{place}/{GROUP}")
    return stay


def _is_seen(line: str) -> bool:
    """Tell whether a mount of proc_pid_mountinfo(5) is not covered by another one."""
    _, _, device, _, place, *_ = line.split()
    with suppress(OSError):
        number = os.stat(place).st_dev
        return device == f"{os.major(number)}:{os.minor(number)}"
    return False


def _hierarchies(lines: list[str]) -> dict[frozenset[str], str]:
    """Return the mount point of each hierarchy by its controllers, none for version 2 (proc(5)).

    Of several the first counts: nodes of kind mount groups of the kubelet on themselves, below it.
    """
    found: dict[frozenset[str], str] = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        place = before.split()[4]
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            found.setdefault(frozenset(), place)
        elif kind == "cgroup":
            words = set(options.split(",")) - {"rw", "ro"}
            found.setdefault(frozenset(word for word in words if not _is_option(word)), place)
    return found


def _is_option(word: str) -> bool:
    return word in ("xattr", "noprefix", "clone_children") or word.startswith("release_agent=")


def _move(group: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(group, 0o755)
    for name in ("cpuset.cpus", "cpuset.mems"):  # of version 1, where a new group may run nowhere
        _inherit(f"{os.path.dirname(group)}/{name}", f"{group}/{name}")
    with open(f"{group}/cgroup.procs", "w", encoding=_ENCODING) as file:
        file.write("0")


def _inherit(source: str, copy: str) -> None:
    with suppress(OSError):
        with open(source, encoding=_ENCODING) as file:
            value = file.read().strip()
        with open(copy, "r+", encoding=_ENCODING) as file:
            if not file.read().strip():
                file.seek(0)
                file.write(value)
