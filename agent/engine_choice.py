"""The engine of an installation: run by systemd, left behind by calls, or none.

The choice is the text of a symbolic link beside the bundles, `.pycni/engine`, so that a launcher
reads it by one call and a rename replaces it. The link leads nowhere. The module uses the standard
library alone, as agent/install.py does.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Say = Callable[[str], object]

SYSTEMD, ON_DEMAND, NONE = "systemd", "on-demand", "none"
# on-demand:SECONDS, as cni_common/serve/on_demand.py has it: 0 is no time.
CHOICES = re.compile(rf"{SYSTEMD}|{NONE}|{ON_DEMAND}(:0*[1-9]\d{{0,4}})?")
LINK = "engine"  # in the directory of the bundles, as launcher/launcher.c has it
UNITS = ("pycni-engine.service", "pycni-engine.socket")
UNIT_DIR = Path("/etc/systemd/system")
_PACKAGE_UNIT_DIR = Path("/usr/lib/systemd/system")
_BIN_DIR = "/opt/cni/bin"  # in the units as they are in deploy/
_OPTION = b"--on-demand"  # of cni_common/serve/on_demand.py
_END_SECONDS = 5.0  # until an idle engine has ended; a busy one goes on with its request


class SystemdError(Exception):
    """systemd does not do what it is to do; the message says what."""


def read(store: Path) -> str:
    """Return the choice of the installation whose bundles are in `store`, "" for none so far."""
    with suppress(OSError):
        return os.readlink(store / LINK)
    return ""


def write(store: Path, choice: str) -> None:
    """Replace the choice at once. Raises OSError."""
    if read(store) == choice:
        return
    new = store / f"{LINK}.pycni-new"
    new.unlink(missing_ok=True)
    new.symlink_to(choice)
    new.replace(store / LINK)


def default(*, is_for_this_machine: bool) -> str:
    """Return the choice where none was made: systemd where it runs, as sd_booted(3) tells."""
    is_booted = is_for_this_machine and Path("/run/systemd/system").is_dir()
    return SYSTEMD if is_booted else ON_DEMAND


# --- systemd ---


def enable_units(units: Path, bin_dir: Path, say: Say) -> None:
    """Install the units in `units` for the plugins in `bin_dir`, and have systemd run this build.

    Raises OSError, SystemdError.
    """
    for name in UNITS:
        text = (units / name).read_text().replace(_BIN_DIR, str(bin_dir))
        place = UNIT_DIR / name
        if not place.is_file() or place.read_text() != text:
            new = place.with_name(f".{name}.pycni-new")
            new.write_text(text)
            new.chmod(0o644)
            new.replace(place)
    service, socket = UNITS
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", socket, service)
    _systemctl("restart", service)  # the socket stays, and no request is lost
    say(f"systemd runs the engine: {service}")


def disable_units(bin_dir: Path, say: Say) -> None:
    """Have systemd no longer run the plugins in `bin_dir`, and remove the units unless a package's.

    Raises OSError, SystemdError.
    """
    places = [place for place in (UNIT_DIR, _PACKAGE_UNIT_DIR) if _are_of(place, bin_dir)]
    if not places:
        return
    is_running = Path("/run/systemd/system").is_dir()
    if is_running:
        _systemctl("disable", "--now", *reversed(UNITS))
    if UNIT_DIR in places:
        for name in UNITS:
            (UNIT_DIR / name).unlink(missing_ok=True)
        if is_running:
            _systemctl("daemon-reload")
    say(f"systemd no longer runs the engine: {UNITS[0]}")


def _are_of(place: Path, bin_dir: Path) -> bool:
    """Tell whether the units in a directory run the plugins in `bin_dir`."""
    with suppress(FileNotFoundError):
        return f"ExecStart={bin_dir}/pycni engine" in (place / UNITS[0]).read_text()
    return False


def _systemctl(*words: str) -> None:
    command = ("systemctl", *words)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemdError("there is no systemctl: choose another ENGINE") from None
    if done.returncode:
        raise SystemdError(f"'{' '.join(command)}' failed: {done.stderr.strip()}")


# --- engines that calls have left behind ---


def programs(bundles: Iterable[Path]) -> set[tuple[int, int]]:
    """Return the identities of the frozen programs of some builds."""
    found = set()
    for bundle in bundles:
        with suppress(OSError):
            status = (bundle / "pycni").stat()
            found.add((status.st_dev, status.st_ino))
    return found


def end_engines(of: set[tuple[int, int]], say: Say) -> None:
    """End the engines on demand that run one of these programs; requests in progress go on."""
    lives = _running(of)
    try:
        for pid, life in sorted(lives.items()):
            with suppress(OSError):  # it has ended
                if _parent(pid) in lives:
                    continue  # a worker
                signal.pidfd_send_signal(life, signal.SIGTERM)
                has_ended = select.select([life], [], [], _END_SECONDS)[0]
                end = "has ended" if has_ended else "is to end"
                say(f"the engine on demand, process {pid}, {end}")
    finally:
        for life in lives.values():
            os.close(life)


def _running(of: set[tuple[int, int]]) -> dict[int, int]:
    """Return a pidfd of each process of an engine on demand that runs one of these programs."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with suppress(OSError):
            life = os.pidfd_open(int(name))  # first: what is seen below is of this process
            try:
                is_ours = _is_running(f"/proc/{name}", of)
            except OSError:
                is_ours = False
            if is_ours:
                found[int(name)] = life
            else:
                os.close(life)
    return found


def _is_running(process: str, of: set[tuple[int, int]]) -> bool:
    status = os.stat(f"{process}/exe")  # the file itself, wherever that is mounted
    is_of = (status.st_dev, status.st_ino) in of
    return is_of and _OPTION in Path(f"{process}/cmdline").read_bytes().split(b"\0")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
