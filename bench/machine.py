"""The machine and the versions, without names or paths."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path


def description(reference: Path, netavark: Path, bin_dir: Path) -> dict[str, str]:
    """Return the properties that the figures depend on.

    `reference`: the Go plugins' directory. `netavark`: that program, which may be missing.
    `bin_dir`: the directory of this suite.
    """
    peer = {"netavark": _first_line(str(netavark), "--version")} if netavark.exists() else {}
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load before the run": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "Python of the plugins": _python(bin_dir),
        "reference": f"v{_plugins_version(reference)}, built by {_go_version(reference)}",
        "iptables": _first_line("iptables", "--version"),
        "nft": _first_line("nft", "--version"),
        **peer,
    }


def _processor() -> str:
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return names[0] if names else platform.machine()


def _python(bin_dir: Path) -> str:
    told = subprocess.run(
        [bin_dir / "pycni", "version"], capture_output=True, text=True, check=True
    )
    found = re.search(r"^python +(.*)$", told.stdout, re.M)
    return found[1] if found else "?"


def _plugins_version(reference: Path) -> str:
    found = re.search(r"/plugins/main/bridge@v([\d.]+)", (reference / "packages").read_text())
    return found[1] if found else "?"


def _go_version(reference: Path) -> str:
    found = re.search(rb"\bgo1\.\d+(\.\d+)?\b", (reference / "bridge").read_bytes())
    return found[0].decode() if found else "Go"


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["-"])[0].split(" ", 1)[-1]
