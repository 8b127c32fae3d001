"""cni_common/spec/schema.py: configurations against a SCHEMA."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from cni_common.spec import schema
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.result import Result
from plugins import TYPES, load
from tests.machine import Json

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA: Json = {
    "type": "object",
    "properties": {
        "flag": {"type": "boolean", "description": "A flag.", "default": False},
        "mtu": {"type": "integer", "minimum": 68, "maximum": 65535},
        "mode": {"type": "string", "enum": ["", "short", "longer", "longest"]},
        "yes": {"type": "string", "enum": ["yes"]},
        "level": {"enum": [1, "1"]},
        "labels": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "ranges": {
            "type": "array",
            "items": {"type": "object", "properties": {"subnet": {"type": "string"}}},
        },
        "ratio": {"type": "number"},
        "pattern": {"type": "string", "pattern": "^a"},
        "closed": {"type": "object", "additionalProperties": False},
    },
}


def message(config: Json, by: Json = SCHEMA) -> str:
    """Return what is said of a configuration that must be refused."""
    with pytest.raises(CNIError) as caught:
        schema.validate(config, by)
    assert caught.value.code == Code.INVALID_CONFIG
    return caught.value.msg.removeprefix("invalid configuration: ")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"other": [None, {"x": 1.5}]},
        {"flag": False, "mtu": 68, "mode": "short", "level": 1, "labels": {"x": True}},
        {"ranges": [{"subnet": "", "other": None}, {}]},
        {"mtu": 65535, "level": "1"},
    ],
)
def test_plainly_valid(config: Json) -> None:
    """The recogniser knows most valid configurations, with which jsonschema agrees."""
    assert schema._plainly_valid(config, SCHEMA)
    schema.validate(config, SCHEMA)


@pytest.mark.parametrize(
    "config", [{"ratio": 0.5}, {"ratio": 1}, {"pattern": "abc"}, {"closed": {}}]
)
def test_valid_for_jsonschema(config: Json) -> None:
    """Values that the recogniser does not know are left to jsonschema."""
    assert not schema._plainly_valid(config, SCHEMA)
    schema.validate(config, SCHEMA)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"flag": "true"}, '"flag": "true" is not of type boolean'),
        ({"flag": 1}, '"flag": 1 is not of type boolean'),
        ({"flag": None}, '"flag": null is not of type boolean'),
        ({"mtu": "1400"}, '"mtu": "1400" is not of type integer'),
        ({"mtu": 1400.0}, '"mtu": 1400.0 is not of type integer'),
        ({"mtu": True}, '"mtu": true is not of type integer'),
        ({"mtu": 67}, '"mtu": 67 is less than the minimum of 68'),
        ({"mtu": 65536}, '"mtu": 65536 is greater than the maximum of 65535'),
        (
            {"mode": "long"},
            '"mode": "long", it must be "short", "longer" or "longest"; did you mean',
        ),
        ({"mode": "xyz"}, '"mode": "xyz", it must be "short", "longer" or "longest"'),
        (
            {"mode": "LONGEST"},
            '"mode": "LONGEST", it must be "short", "longer" or "longest"; did you',
        ),
        ({"yes": "no"}, '"yes": "no", it must be "yes"'),
        ({"level": True}, "\"level\": True is not one of [1, '1']"),
        ({"labels": []}, '"labels": [] is not of type object'),
        ({"labels": {"x": "ä"}}, '"labels.x": "ä" is not of type boolean'),
        ({"ranges": {}}, '"ranges": {} is not of type array'),
        ({"ranges": [{}, {"subnet": 1}]}, '"ranges[1].subnet": 1 is not of type string'),
        ({"ranges": [None]}, '"ranges[0]": null is not of type object'),
        ({"pattern": "b"}, "\"pattern\": 'b' does not match '^a'"),
        ({"closed": {"a": 1}}, '"closed": Additional properties are not allowed'),
    ],
)
def test_refused(config: Json, expected: str) -> None:
    """A fault has code 7, and key and value are named as the configuration has them."""
    assert message(config).startswith(expected)


def test_the_whole() -> None:
    """A fault of no key in particular is reported without one."""
    assert message({}, {"type": "object", "required": ["a"]}) == "'a' is a required property"


@pytest.mark.parametrize("value", ["x" * 5000, "x\ny " * 300, ["x"] * 999])
def test_long_value(value: object) -> None:
    """A long value is cut, and the message stays one line."""
    text = message({"flag": value})

    assert len(text) < 320
    assert "\n" not in text
    assert text.startswith('"flag": ')
    assert text.endswith(" is not of type boolean")


class TestSalvage:
    """salvage()."""

    def test_nothing_refused(self) -> None:
        """A valid configuration stays as it is."""
        config = {"mtu": 1400, "ratio": 1.5, "other": 1}

        assert schema.salvage(config, SCHEMA) == (config, [])

    def test_what_is_wrong_goes(self) -> None:
        """Wrong values go and are named; those beside them stay."""
        config = {"flag": 1, "ranges": [{"subnet": "s"}, {"subnet": 1}], "mtu": 1400, "other": 1}

        rest, refused = schema.salvage(config, SCHEMA)

        assert rest == {"ranges": [{"subnet": "s"}, {}], "mtu": 1400, "other": 1}
        assert sorted(refused) == [
            '"flag": 1 is not of type boolean',
            '"ranges[1].subnet": 1 is not of type string',
        ]
        assert config["flag"] == 1
        assert config["ranges"] == [{"subnet": "s"}, {"subnet": 1}]

    def test_thousands(self) -> None:
        """Of thousands of faults the first ten are named, and all are counted and removed."""
        config = {"ranges": [{"subnet": 1}, {"subnet": "s"}, None] * 10_000, "mtu": 1400}

        rest, refused = schema.salvage(config, SCHEMA)

        assert rest == {"ranges": [{}, {"subnet": "s"}] * 10_000, "mtu": 1400}
        assert len(refused) == 11
        assert refused[-1] == "19990 more invalid parts"

    def test_nothing_is_left(self) -> None:
        """A fault of no key in particular leaves nothing."""
        rest, refused = schema.salvage({"a": 1}, {"additionalProperties": False})

        assert rest == {}
        assert len(refused) == 1


# --- any configuration ---
# By a generator of our own: hypothesis takes a hundred times as long for values of this depth.


class Generator:
    """Configurations from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def conforming(self, by: Json) -> Any:
        """Return what `by` allows."""
        if "enum" in by:
            return self._random.choice(by["enum"])
        match by.get("type"):
            case "object":
                return self._object(by)
            case "array":
                return [self.conforming(by["items"]) for _ in range(self._random.randrange(4))]
            case "integer":
                return self._random.randint(by.get("minimum", -(2**40)), by.get("maximum", 2**40))
            case "boolean":
                return self._random.random() < 0.5
        return "".join(self._random.choices("abc/.:0 \n\u00e9", k=self._random.randrange(6)))

    def nearly_conforming(self, by: Json) -> Any:
        """Return what `by` allows, with anything else in up to three places."""
        value = self.conforming(by)
        for _ in range(self._random.randint(1, 3)):
            value = self._mutated(value)
        return value

    def _object(self, by: Json) -> Json:
        known = by.get("properties", {})
        more = by.get("additionalProperties", {"type": "string"})
        chosen = {key: self.conforming(value) for key, value in known.items() if self._likely(0.6)}
        others = (
            {} if more is False else {"other": self.conforming(more), "": self.conforming(more)}
        )
        return chosen | (others if self._likely(0.5) else {})

    def _mutated(self, value: Any) -> Any:
        if isinstance(value, dict) and value and self._likely(0.9):
            key = self._random.choice(sorted(value))
            return {**value, key: self._mutated(value[key])}
        if isinstance(value, list) and value and self._likely(0.8):
            at = self._random.randrange(len(value))
            return [*value[:at], self._mutated(value[at]), *value[at + 1 :]]
        anything = (None, True, False, 0, 1, -5, 2**70, 1.0, 1.5, 1e999, "", "1", "a", "b")
        return self._random.choice([*anything, [], [[]], [None], {}, {"type": 1}, {"x": None}])

    def _likely(self, chance: float) -> bool:
        return self._random.random() < chance


def schema_of(plugin: str) -> Json:
    """Return a plugin's SCHEMA."""
    module = load(plugin)
    assert module is not None
    return dict(module.SCHEMA)


def validator(by: Json) -> Draft202012Validator:
    """Return jsonschema's own opinion, with integers as Go has them."""
    strict = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _checker, value: type(value) is int
    )
    kind: type[Draft202012Validator] = extend(Draft202012Validator, type_checker=strict)  # type: ignore[no-untyped-call] # as types-jsonschema has it
    return kind(by)


_SCHEMAS = {"SCHEMA": SCHEMA} | {plugin: schema_of(plugin) for plugin in TYPES}
_VALIDATORS = {name: validator(by) for name, by in _SCHEMAS.items()}


@pytest.mark.parametrize("name", TYPES)
def test_valid_ones_are_recognised(name: str) -> None:
    """No valid configuration of ours needs jsonschema, which costs more than a whole ADD."""
    for seed in range(200):
        config = Generator(seed).conforming(_SCHEMAS[name])

        assert schema._plainly_valid(config, _SCHEMAS[name]), (seed, config)
        assert _VALIDATORS[name].is_valid(config), (seed, config)


@pytest.mark.parametrize("name", _SCHEMAS)
def test_recogniser_never_errs(name: str) -> None:
    """The recogniser accepts nothing that jsonschema refuses."""
    refused = 0
    for seed in range(1500):
        config = Generator(seed).nearly_conforming(_SCHEMAS[name])
        if _VALIDATORS[name].is_valid(config):
            continue
        refused += 1

        assert not schema._plainly_valid(config, _SCHEMAS[name]), (seed, config)

    assert refused > 500


@pytest.mark.parametrize("name", _SCHEMAS)
def test_validate_and_salvage(name: str) -> None:
    """validate() agrees with jsonschema; the result of salvage() is valid and was there before."""
    for seed in range(100):
        config = {"a": Generator(seed).nearly_conforming(_SCHEMAS[name])}
        by = {"type": "object", "properties": {"a": _SCHEMAS[name]}}
        error = CNIError(0, "")

        rest, refused = schema.salvage(config, by)
        try:
            schema.validate(config, by)
        except CNIError as caught:
            error = caught

        valid = _VALIDATORS[name].is_valid(config["a"])
        assert (error.code == 0) == valid, (seed, config)
        assert (refused == []) == valid, (seed, config)
        assert len(error.msg.splitlines()) <= 1, (seed, config)
        assert _VALIDATORS[name].is_valid(rest.get("a", {})), (seed, config)
        assert is_part(rest, config), (seed, config)


def is_part(part: Any, whole: Any) -> bool:
    """Tell whether nothing is in `part` that is not in `whole`."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and is_part(value, whole[key]) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return all(any(is_part(one, other) for other in whole) for one in part)
    return bool(part == whole)


def strings_of(part: Json) -> Iterator[tuple[list[str], Any]]:
    """Yield the path of each string in a SCHEMA, and a value there with a NUL within."""
    if part.get("type") == "string":
        yield [], "ab\0cd"
    for key, inner in part.get("properties", {}).items():
        yield from (([key, *path], {key: value}) for path, value in strings_of(inner))
    if "items" in part:
        yield from (([*path], [value]) for path, value in strings_of(part["items"]))
    if isinstance(part.get("additionalProperties"), dict):
        inner = part["additionalProperties"]
        yield from ((["x", *path], {"x": value}) for path, value in strings_of(inner))


@pytest.mark.parametrize("plugin", TYPES)
def test_no_string_with_a_nul_reaches_kernel_or_path(plugin: str) -> None:
    """The kernel, and C behind a path, would read another name: the text up to the NUL."""
    module = load(plugin)
    assert module
    strings = list(strings_of(dict(module.SCHEMA)))
    assert strings
    for path, config in strings:
        said = message(config, dict(module.SCHEMA))
        assert ".".join(path).replace("..", ".") in said.replace("[0]", ""), said
        assert said.endswith('"ab\\u0000cd" contains a NUL, which is not allowed') or "enum" in said
        rest, refused = schema.salvage(config, module.SCHEMA)
        assert "ab\0cd" not in str(rest)
        assert len(refused) == 1


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ({"interfaces": [{"name": "eth0\0x"}]}, "interfaces[0].name"),
        ({"interfaces": [{"name": "eth0", "sandbox": "/run\0"}]}, "interfaces[0].sandbox"),
        ({"ips": [{"address": "10.0.0.1\0/24"}]}, "ips[0].address"),
    ],
)
def test_no_result_with_a_nul_is_believed(entry: Json, where: str) -> None:
    """The names of a result reach the kernel, too: in chained plugins and from other IPAM."""
    with pytest.raises(CNIError) as caught:
        Result.parse(entry, "1.0.0")

    assert f"{where}: " in caught.value.msg
    assert "contains a NUL" in caught.value.msg
