"""Container runtimes of this node: where each looks for configurations and plugins."""

from __future__ import annotations

import glob
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONF_DIR, BIN_DIR = "/etc/cni/net.d", "/opt/cni/bin"
READ = (".conf", ".conflist", ".json")  # as containerd and CRI-O ask libcni for
_LISTS = (".conflist",)  # all that podman asks for
_CONTAINERD = (
    "/etc/containerd/config.toml",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
)
_CRIO = ("/etc/crio/crio.conf", "/etc/crio/crio.conf.d/*.conf")
_PODMAN = (
    "/usr/share/containers/containers.conf",
    "/etc/containers/containers.conf",
    "/etc/containers/containers.conf.d/*.conf",
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime, as its configuration has it."""

    name: str
    conf_dir: str
    bin_dirs: Sequence[str]
    takes_first: bool  # of the files in `conf_dir`, as the network of all pods
    source: str  # the file that says so, "" for the runtime's own defaults
    network: str = ""  # of all pods, if the configuration names it
    read: Sequence[str] = READ  # how the names of files end that it reads

    def files(self) -> list[str]:
        """Return the files of its directory, in the order in which it reads them."""
        try:
            names = sorted(os.listdir(self.conf_dir))
        except OSError:
            return []
        read = tuple(self.read)
        return [os.path.join(self.conf_dir, name) for name in names if name.endswith(read)]


def found() -> list[Runtime]:
    """Return the runtimes of this node that use CNI. Files that are no TOML count as absent."""
    return [*_containerd(), *_crio(), *_podman()]


def _containerd() -> Iterator[Runtime]:
    files = [path for path in _CONTAINERD if os.path.exists(path)]
    for path in files:
        plugins = _section(_toml(path), "plugins")
        cri = _section(plugins, "io.containerd.cri.v1.runtime", "cni") or _section(
            plugins, "io.containerd.grpc.v1.cri", "cni"
        )
        several = cri.get("bin_dirs") or [cri.get("bin_dir") or BIN_DIR]
        conf_dir = str(cri.get("conf_dir") or CONF_DIR)
        first = cri.get("max_conf_num", 1) == 1
        yield Runtime("containerd", conf_dir, _texts(several), first, path)
    if not files and shutil.which("containerd"):
        yield Runtime("containerd", CONF_DIR, (BIN_DIR,), takes_first=True, source="")


def _crio() -> Iterator[Runtime]:
    files = _existing(_CRIO)
    if not files and not shutil.which("crio"):
        return
    merged: dict[str, Any] = {}
    for path in files:
        merged |= _section(_toml(path), "crio", "network")
    yield Runtime(
        "CRI-O",
        str(merged.get("network_dir") or CONF_DIR),
        _texts(merged.get("plugin_dirs") or [BIN_DIR]),
        not merged.get("cni_default_network"),
        files[-1] if files else "",
        str(merged.get("cni_default_network") or ""),
    )


def _podman() -> Iterator[Runtime]:
    merged: dict[str, Any] = {}
    files = _existing(_PODMAN)
    for path in files:
        merged |= _section(_toml(path), "network")
    if merged.get("network_backend") == "cni":
        yield Runtime(
            "podman",
            str(merged.get("network_config_dir") or CONF_DIR),
            _texts(merged.get("cni_plugin_dirs") or ["/usr/libexec/cni", "/usr/lib/cni", BIN_DIR]),
            takes_first=False,
            source=files[-1],
            read=_LISTS,
        )


def _existing(patterns: Sequence[str]) -> list[str]:
    return [path for pattern in patterns for path in sorted(glob.glob(pattern))]


def _toml(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError):
        return {}


def _section(value: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        value = value.get(name, {}) if isinstance(value, dict) else {}
    return value if isinstance(value, dict) else {}


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(one for one in values if isinstance(one, str)) or (BIN_DIR,)
