"""Write conf/schema: each plugin's SCHEMA as a file for editors, and one for plugin lists.

python -m deploy.schemas
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from plugins import TYPES, load

if TYPE_CHECKING:
    from cni_common.spec.wire import Json

DIRECTORY = Path(__file__).resolve().parents[1] / "conf" / "schema"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_IPAM_TYPES = ("host-local", "static")
_FLAG: Json = {"enum": [True, False, "true", "false"]}


def schemas() -> dict[str, Json]:
    """Return every schema by the name of its file."""
    files = {f"{type}.schema.json": _of_plugin(type) for type in TYPES}
    return {**files, "conflist.schema.json": _of_list()}


def text(schema: Json) -> str:
    """Return the content of a schema's file."""
    return json.dumps(schema, indent=2) + "\n"


def _of_plugin(type: str) -> Json:
    plugin = load(type)
    assert plugin is not None, f"{type} is one of TYPES"
    title = f"Configuration of the CNI plugin {type}"
    return {"$schema": _DIALECT, "title": title, **plugin.SCHEMA}


def _of_list() -> Json:
    """Return the schema of a *.conflist file: the list's keys, and those of each plugin in it."""
    return {
        "$schema": _DIALECT,
        "title": "List of CNI plugins for one network",
        "type": "object",
        "required": ["cniVersion", "name", "plugins"],
        "properties": {
            "cniVersion": {"type": "string", "description": "Version of the CNI specification."},
            "cniVersions": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Supported versions; the runtime uses the newest that it knows.",
            },
            "name": {"type": "string", "description": "Name of the network."},
            "disableCheck": {**_FLAG, "description": "The runtime must not call CHECK."},
            "disableGC": {**_FLAG, "description": "The runtime must not call GC."},
            "plugins": {
                "type": "array",
                "minItems": 1,
                "description": "The plugins, in the order of their ADD.",
                "items": {
                    "type": "object",
                    "required": ["type"],
                    "allOf": [*map(_with_type, TYPES), *map(_with_ipam, _IPAM_TYPES)],
                },
            },
        },
    }


def _with_type(type: str) -> Json:
    return {
        "if": {"properties": {"type": {"const": type}}},
        "then": {"$ref": f"{type}.schema.json"},
    }


def _with_ipam(type: str) -> Json:
    ipam = {"required": ["type"], "properties": {"type": {"const": type}}}
    return {
        "if": {"required": ["ipam"], "properties": {"ipam": ipam}},
        "then": {"$ref": f"{type}.schema.json"},
    }


def main() -> None:
    """Write the files."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (DIRECTORY / name).write_text(text(schema), encoding="utf-8")


if __name__ == "__main__":
    main()
