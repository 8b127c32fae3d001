"""The tuning plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import requested_mac
from cni_common.spec.names import is_absolute
from cni_common.spec.request import PROTOCOL_PROPERTIES
from plugins.tuning import sysctl

if TYPE_CHECKING:
    from typing import Any, Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

    Pairs = tuple[tuple[str, Any], ...]

DEFAULT_DATA_DIR = "/run/cni/tuning"
_U32 = 2**32 - 1


def _keys(more: str) -> dict[str, Json]:
    return {
        "sysctl": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": f"Sysctls of the container's network namespace{more}.",
        },
        "mac": {"type": "string", "description": f"MAC of the interface{more}."},
        "mtu": {
            "type": "integer",
            "minimum": 0,
            "maximum": _U32 >> 1,
            "description": f"MTU of the interface in bytes, 0: unchanged{more}.",
        },
        "promisc": {"type": "boolean", "description": f"Set the interface promiscuous{more}."},
        "allmulti": {"type": "boolean", "description": f"All-multicast mode on or off{more}."},
        "txQLen": {
            "type": "integer",
            "minimum": 0,
            "maximum": _U32,
            "description": f"Length of the transmit queue in packets{more}.",
        },
    }


SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        **_keys(""),
        "dataDir": {
            "type": "string",
            "description": "Directory for the interface's former settings.",
            "default": DEFAULT_DATA_DIR,
        },
        "args": {
            "type": "object",
            "description": "Arguments of the runtime, by the CNI conventions.",
            "properties": {
                "cni": {
                    "type": "object",
                    "description": "Arguments for all plugins.",
                    "properties": _keys("; overrides all other sources"),
                }
            },
        },
        "runtimeConfig": {
            "type": "object",
            "description": "Values from the runtime, by capability.",
            "properties": {
                "mac": {"type": "string", "description": "MAC by the capability `mac`."}
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class Device:
    """Settings of an interface, wanted or former; None: unchanged."""

    mac: str | None = None
    promisc: bool | None = None
    mtu: int | None = None  # bytes
    allmulti: bool | None = None
    tx_queue: int | None = None  # packets

    def __bool__(self) -> bool:
        return self != Device()


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    sysctls: dict[str, str]  # values by path below /proc/sys
    keys: dict[str, str]  # keys as written, by path
    device: Device

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7, or 4 for CNI_ARGS."""
        config = req.config
        by_args = config.get("args", {}).get("cni", {})
        if config.get("sysctl"):
            _refuse_duplicates(req.stdin.decode("utf-8", "replace"))
        if not is_absolute(config.get("dataDir", DEFAULT_DATA_DIR)):
            raise _refuse(f'"dataDir" is {config["dataDir"]!r}, it must be an absolute path')
        sysctls, keys = _sysctls(config.get("sysctl", {}), req.ifname)
        more = _sysctls(by_args.get("sysctl", {}), req.ifname)
        merged = {**config, **by_args}
        return cls(
            sysctls={**sysctls, **more[0]},
            keys={**keys, **more[1]},
            device=Device(
                mac=requested_mac(req, config.get("mac", "")) or None,
                promisc=True if merged.get("promisc") else None,
                mtu=merged.get("mtu") or None,
                allmulti=merged.get("allmulti"),
                tx_queue=merged.get("txQLen"),
            ),
        )


def backup_path(req: Request) -> str:
    """Return the path of the reference's file of former settings; for DEL, too."""
    directory = req.config.get("dataDir", DEFAULT_DATA_DIR)
    if not is_absolute(directory):
        directory = DEFAULT_DATA_DIR
    return f"{directory.rstrip('/')}/{req.containerid}_{req.ifname}.json"


def _sysctls(given: Json, ifname: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return values and keys by path. Raises CNIError 7, also for a sysctl that appears twice."""
    values: dict[str, str] = {}
    keys: dict[str, str] = {}
    for key, value in given.items():
        path = sysctl.path_of(key, ifname or "IFNAME")
        if path in values:
            raise _refuse(f"duplicated sysctl keys are not allowed: {keys[path]} and {key}")
        values[path] = sysctl.check_value(key, value)
        keys[path] = key
    return values, keys


def _refuse_duplicates(stdin: str) -> None:
    """Raise CNIError 7 if a sysctl appears twice; JSON would keep only the last."""
    import json

    config = json.loads(stdin, object_pairs_hook=tuple)
    by_args = [cni for args in _objects(config, "args") for cni in _objects(args, "cni")]
    for sysctls in (one for place in (config, *by_args) for one in _objects(place, "sysctl")):
        seen: set[str] = set()
        for name, _ in sysctls:
            if name in seen:
                raise _refuse(f"duplicated sysctl keys are not allowed: {name}")
            seen.add(name)


def _objects(pairs: Pairs, key: str) -> list[Pairs]:
    """Return the objects with that key; an object is a tuple of its pairs, an array is a list."""
    return [value for name, value in pairs if name.lower() == key and isinstance(value, tuple)]


def _refuse(text: str) -> CNIError:
    return CNIError(Code.INVALID_CONFIG, text)
