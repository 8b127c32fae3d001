"""conf/: the exported schemas are current, and the examples are valid, complete and disjoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from deploy.schemas import DIRECTORY, schemas, text
from plugins import TYPES
from tests.machine import Json

CONF = DIRECTORY.parent
EXAMPLES = sorted(path for path in CONF.iterdir() if path.suffix in (".conf", ".conflist"))


def validator(name: str) -> Draft202012Validator:
    """Return the validator of an exported schema, its references resolved among the files."""
    files = {path.name: json.loads(path.read_text()) for path in DIRECTORY.iterdir()}
    resources = [(name, Resource.from_contents(schema)) for name, schema in files.items()]
    registry: Registry[Any] = Registry().with_resources(resources)
    return Draft202012Validator(files[name], registry=registry)


def plugins_of(path: Path) -> list[Json]:
    """Return the plugins of an example: those of a list, or the one that the file is."""
    config = json.loads(path.read_text())
    found: list[Json] = config["plugins"] if path.suffix == ".conflist" else [config]
    return found


def subnets_of(value: Any) -> Iterator[str]:
    """Yield every subnet in a configuration."""
    if isinstance(value, dict):
        yield from [value["subnet"]] if "subnet" in value else []
        for item in value.values():
            yield from subnets_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from subnets_of(item)


def unknown_keys(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """Yield the keys of `value` that `schema` does not have."""
    if isinstance(value, dict) and "properties" in schema:
        for key, item in value.items():
            if key in schema["properties"]:
                yield from unknown_keys(item, schema["properties"][key], f"{where}.{key}")
            else:
                yield f"{where}.{key}"
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            yield from unknown_keys(item, schema["items"], f"{where}[]")


@pytest.mark.parametrize("name", sorted(schemas()))
def test_exported_schema_is_current(name: str) -> None:
    """`python -m deploy.schemas` would write what is there."""
    written = (DIRECTORY / name).read_text()

    assert written == text(schemas()[name])


def test_nothing_else_is_exported() -> None:
    """A plugin that is gone leaves no schema behind."""
    assert {path.name for path in DIRECTORY.iterdir()} == set(schemas())


@pytest.mark.parametrize("name", sorted(schemas()))
def test_exported_schema_is_a_schema(name: str) -> None:
    """The files are themselves valid JSON Schema."""
    Draft202012Validator.check_schema(schemas()[name])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_valid(path: Path) -> None:
    """Every example passes the schema that an editor would use for it."""
    config = json.loads(path.read_text())
    name = "conflist" if path.suffix == ".conflist" else config["type"]

    assert [error.message for error in validator(f"{name}.schema.json").iter_errors(config)] == []


@pytest.mark.parametrize(
    "change",
    [{"mtu": "1400"}, {"ipMasqBackend": "pf"}, {"ipam": {"type": "host-local", "ranges": [{}]}}],
    ids=["bridge", "enum", "host-local"],
)
def test_list_schema_refuses(change: Json) -> None:
    """A list is validated by the schema of each plugin, and its ipam by that plugin's."""
    config = json.loads((CONF / "20-ipv4.conflist").read_text())
    config["plugins"][0] |= change

    assert not validator("conflist.schema.json").is_valid(config)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_has_only_known_keys(path: Path) -> None:
    """No key is misspelled, which no plugin would complain of."""
    for plugin in plugins_of(path):
        assert plugin["type"] in TYPES
        given = plugin.get("ipam", {})
        if given:
            ipam = schemas()[f"{given['type']}.schema.json"]["properties"]["ipam"]
            assert list(unknown_keys(given, ipam)) == []

        rest = {key: value for key, value in plugin.items() if key not in ("ipam", "capabilities")}
        assert list(unknown_keys(rest, schemas()[f"{plugin['type']}.schema.json"])) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_readme_has_example(path: Path) -> None:
    """conf/README.md says what each file is for: JSON has no comments."""
    rows = [line for line in (CONF / "README.md").read_text().splitlines() if line.startswith("|")]

    assert any(f"`{path.name}`" in row for row in rows)


def test_examples_are_disjoint() -> None:
    """All examples can be used at once: no two share a network name, a bridge or an address."""
    configs = [json.loads(path.read_text()) for path in EXAMPLES]
    bridges = [p["bridge"] for path in EXAMPLES for p in plugins_of(path) if "bridge" in p]
    subnets = [ip_network(subnet) for config in configs for subnet in subnets_of(config)]

    assert len({config["name"] for config in configs}) == len(configs)
    assert len(set(bridges)) == len(bridges)
    assert [
        pair
        for pair in combinations(subnets, 2)
        if pair[0].version == pair[1].version and pair[0].overlaps(pair[1])
    ] == []
