"""Modules as the frozen build rewrites them: the same, only sooner there."""

from __future__ import annotations

import ast
import collections.abc
import functools
import hashlib
import ipaddress
import json
import operator
import os
import signal
import socket
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_common.spec import wire
from deploy.frozen.rewrite import OURS, SPARED, UnsupportedError, rewrite, standins

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = b'''
from dataclasses import dataclass, field, replace

@dataclass(frozen=True, slots=True, order=True)
class Frozen:
    """With every kind of field that a frozen one has."""

    first: int
    second: str = "x"

    @property
    def double(self) -> int:
        return 2 * self.first

@dataclass(slots=True)
class Loose:
    first: int
    items: list[int] = field(default_factory=list)
    cache: bytes = field(default=b"", init=False)

@dataclass
class Open:
    first: int = 3

def changed(original):
    return replace(original, first=9)
'''


def _load(name: str, code: types.CodeType) -> Any:
    module = types.ModuleType(name)
    exec(code, module.__dict__)
    return module


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The sample with dataclasses as they are, and as the build writes them."""
    for name, source in standins().items():
        module = _load(name, compile(source, name, "exec", dont_inherit=True))
        monkeypatch.setitem(sys.modules, name, module)
    tree = rewrite("plugins.sample", SAMPLE)
    return _load("real", compile(SAMPLE, "real", "exec", dont_inherit=True)), _load(
        "ours", compile(tree, "", "exec", dont_inherit=True)
    )


@pytest.mark.parametrize(
    "observe",
    [
        lambda sample: repr([sample.Frozen(1), sample.Loose(1, [2]), sample.Open()]),
        lambda sample: [sample.Frozen(1) == sample.Frozen(1, "x"), sample.Open() == sample.Open(4)],
        lambda sample: sample.Frozen(1) == (1, "x"),
        lambda sample: hash(sample.Frozen(1)) == hash(sample.Frozen(1, "x")),
        lambda sample: hash(sample.Loose(1)),
        lambda sample: (
            sorted([sample.Frozen(2), sample.Frozen(1, "y"), sample.Frozen(1)])[1].second
        ),
        lambda sample: sample.Open() < sample.Open(),
        lambda sample: sample.Frozen(4).double,
        lambda sample: setattr(sample.Loose(1), "third", 2),
        lambda sample: sample.Frozen(),
        lambda sample: sample.Loose(1, [], b""),
        lambda sample: sample.Loose(1).items is sample.Loose(1).items,
        lambda sample: repr(sample.changed(sample.Frozen(1, "z"))),
        lambda sample: repr(sample.changed(sample.Loose(1, [5]))),
        lambda sample: sample.Frozen.__match_args__ + sample.Loose.__match_args__,
        lambda sample: sample.Frozen.__slots__ + sample.Loose.__slots__,
    ],
)
def test_a_dataclass_is_the_same_when_written_out(
    both: tuple[Any, Any], observe: Callable[[Any], Any]
) -> None:
    """Its behaviour does not change, errors included, but that nothing guards a frozen one."""

    def outcome(sample: Any) -> tuple[str, Any]:
        try:
            return "result", observe(sample)
        except (AttributeError, TypeError) as error:
            return error.__class__.__name__, str(error)

    real, ours = both

    assert outcome(ours) == outcome(real)


@pytest.mark.parametrize(
    "source",
    [
        b"from dataclasses import asdict",
        b"import dataclasses",
        b"@dataclass(kw_only=True)\nclass A:\n    a: int",
        b"@dataclass\nclass A(B):\n    a: int",
        b"@dataclass\nclass A:\n    a: ClassVar[int]",
        b"@dataclass\nclass A:\n    a: int = field(repr=False)",
        b"class A(NamedTuple):\n    a: int",
    ],
    ids=["asdict", "module", "option", "base", "classvar", "field", "namedtuple"],
)
def test_the_build_refuses_what_it_would_change(source: bytes) -> None:
    """A class that the build cannot write out fails it, before anybody runs the result."""
    with pytest.raises(UnsupportedError, match=r"plugins\.sample"):
        rewrite("plugins.sample", source)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("functools", "wraps"),
        ("hashlib", "md5"),
        ("json", "JSONDecodeError"),
        ("signal", "Signals"),
        ("socket", "AddressFamily"),
    ],
)
def test_a_standin_gives_the_real_thing_when_asked(module: str, name: str) -> None:
    """Names that a stand-in lacks come from the module that it stands for."""
    source = standins()[f"standin_{module}"]

    standin = _load("standin", compile(source, module, "exec", dont_inherit=True))

    assert getattr(standin, name) is getattr(__import__(module), name)
    with pytest.raises(AttributeError):
        standin.__path__  # noqa: B018 - what the import system asks for


@pytest.mark.parametrize(
    ("use", "module"),
    [("socket.AF_NETLINK", "standin_socket"), ("socket.socketpair()[0].accept", "socket")],
    ids=["netlink", "server"],
)
def test_who_serves_gets_real_sockets(use: str, module: str) -> None:
    """The stand-in of socket is only for modules that can do with it."""
    source = f"import socket\n{use}".encode()

    assert ast.unparse(rewrite("cni_common.sample", source)).startswith(f"import {module}")
    assert ast.unparse(rewrite("cni_common.serve.engine", source)).startswith("import socket\n")


def test_every_module_that_is_spared_has_a_standin() -> None:
    """No import is rewritten to something that does not exist."""
    names = {name for spared in SPARED.values() for name in spared}

    assert {f"standin_{name}" for name in names} <= standins().keys()


def _standin(module: str) -> Any:
    standin = types.ModuleType(f"standin_{module}")
    exec(standins()[f"standin_{module}"], standin.__dict__)
    return standin


@cache
def _uses() -> frozenset[tuple[str, str]]:
    """Return what the suite's files import of a stand-in, and each attribute of a name."""
    used = set()
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(rewrite(name, path.read_bytes())):
                match node:
                    case ast.ImportFrom(module=str(source)) if source.startswith("standin_"):
                        used |= {(source.removeprefix("standin_"), one.name) for one in node.names}
                    case ast.Attribute(value=ast.Name(id=owner)):
                        used.add((owner, node.attr))
    return frozenset(used)


def _names_used(module: str) -> set[str]:
    """Return what the suite's files that get the stand-in of `module` use of it."""
    return {name for owner, name in _uses() if owner == module}


@pytest.mark.parametrize("module", ["signal", "socket"])
def test_a_number_is_the_same_in_a_standin(module: str) -> None:
    """Each constant has the number of the real one, and each name that the suite uses is there."""
    standin, real = _standin(module), __import__(module)

    constants = {n for n, value in vars(standin).items() if n.isupper() and type(value) is int}
    values = {name: getattr(standin, name) for name in constants}

    assert len(constants) > 20
    assert values == {name: getattr(real, name) for name in constants}
    assert [name for name in _names_used(module) if not hasattr(standin, name)] == []


def test_sockets_of_the_standin_work() -> None:
    """They carry data and options as real ones do, and a `with` statement closes them."""
    outcomes = []
    for module in (_standin("socket"), socket):
        with module.socket(module.AF_UNIX, module.SOCK_DGRAM, 0) as receiver:
            receiver.bind(f"\0pycni-{os.getpid()}-{module.__name__}")
            with module.socket(module.AF_UNIX, module.SOCK_DGRAM, 0) as sender:
                sender.sendto(b"text", receiver.getsockname())
            receiver.settimeout(5)
            data, _ = receiver.recvfrom(10)
            kind = receiver.getsockopt(module.SOL_SOCKET, module.SO_TYPE)
        copy = module.socket(module.AF_UNIX, module.SOCK_DGRAM, 0, fileno=_datagram_fd())
        descriptor = copy.detach()
        os.close(descriptor)
        outcomes.append((data, kind, sender.fileno(), receiver.fileno(), copy.fileno()))

    assert outcomes[0] == outcomes[1] == (b"text", socket.SOCK_DGRAM, -1, -1, -1)


def _datagram_fd() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def test_a_handler_of_the_standin_is_called() -> None:
    """`signal` sets and returns handlers as the real module does."""
    standin, called = _standin("signal"), []
    before = standin.signal(standin.SIGUSR2, lambda number, _frame: called.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        mine = standin.getsignal(standin.SIGUSR2)
    finally:
        standin.signal(standin.SIGUSR2, before)

    assert called == [signal.SIGUSR2]
    assert callable(mine)
    assert standin.getsignal(standin.SIGUSR2) == before == signal.getsignal(signal.SIGUSR2)


def test_no_other_hash_is_used() -> None:
    """The two that are compared below are all that the suite uses."""
    assert _names_used("hashlib") == {"sha256", "sha512"}


@given(st.binary())
def test_a_hash_is_as_ever(data: bytes) -> None:
    """The stand-in of hashlib gives the digests of the real one, at once and in pieces."""
    standin = _standin("hashlib")

    for name in ("sha256", "sha512"):
        ours, real = getattr(standin, name)(data), getattr(hashlib, name)(data)
        assert (ours.hexdigest(), ours.digest()) == (real.hexdigest(), real.digest())
        ours.update(data)
        real.update(data)
        assert ours.hexdigest() == real.hexdigest()


# --- the stand-in of functools ---


class Counted:
    """Counts how often something is computed."""

    def __init__(self, functools: Any) -> None:
        self.calls: list[object] = []

        class Holder:
            value = functools.cached_property(self._compute)

        self.holder = Holder()
        self.kind = Holder
        self.kept = functools.cache(self._compute)
        self.bound = functools.partial(max, 3)

    def _compute(self, given: object) -> int:
        self.calls.append(given)
        return len(self.calls)


@pytest.mark.parametrize("name", ["functools", "standin_functools"])
def test_what_is_kept_is_computed_once(name: str) -> None:
    """A cached property and a cached function are computed once for each object or argument."""
    module: Any = _load(name, compile(standins()["standin_functools"], name, "exec"))
    counted = Counted(functools if name == "functools" else module)

    got = [counted.holder.value, counted.holder.value, counted.kind().value]
    got += [counted.kept(1), counted.kept(1), counted.kept(2), counted.bound(2)]

    assert got == [1, 1, 2, 3, 3, 4, 3]
    assert len(counted.calls) == 4
    assert isinstance(counted.kind.value, type(counted.kind.__dict__["value"]))


@given(*2 * [st.ip_addresses() | st.ip_addresses().map(ipaddress.ip_network)])
def test_addresses_compare_as_ever(left: Any, right: Any) -> None:
    """ipaddress orders addresses and networks the same on either functools."""

    def outcomes(module: Any) -> list[object]:
        pair = [getattr(module, type(one).__name__)(str(one)) for one in (left, right)]
        found: list[object] = [one.is_private for one in pair]
        for compare in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq):
            try:
                found.append(compare(*pair))
            except TypeError as error:
                found.append(str(error))
        return found

    assert outcomes(_IPADDRESS) == outcomes(ipaddress)


def test_special_networks_are_made_when_asked_for() -> None:
    """Most calls ask for none of them, and all calls import ipaddress."""
    module = _rewritten_ipaddress()
    made = vars(module.IPv4Address._constants)
    assert set(made) == {"_make"}

    assert module.ip_address("10.1.2.3").is_private

    assert "_private_networks" in made
    assert set(vars(module.IPv6Address._constants)) == {"_make"}


@given(st.ip_addresses())
def test_special_networks_are_those_of_the_library(address: Any) -> None:
    """Each question about an address has the answer of the standard library."""
    ours = _IPADDRESS.ip_address(str(address))

    for name in dir(type(address)):
        if name.startswith("is_"):
            assert getattr(ours, name) == getattr(address, name), name


def _rewritten_ipaddress() -> Any:
    tree = rewrite("ipaddress", Path(ipaddress.__file__).read_bytes())
    sys.modules["standin_functools"] = _load(
        "standin_functools", compile(standins()["standin_functools"], "standin", "exec")
    )
    try:
        return _load("ipaddress", compile(tree, "ipaddress", "exec"))
    finally:
        del sys.modules["standin_functools"]


_IPADDRESS = _rewritten_ipaddress()


# --- the stand-in of json ---

_JSON: Any = types.ModuleType("standin_json")
exec(standins()["standin_json"], _JSON.__dict__)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(_VALUES, st.booleans())
def test_json_is_written_as_ever(value: Any, sort_keys: bool) -> None:
    """The stand-in writes each value as json does, in one line and in many."""
    for options in ({"indent": 4, "sort_keys": sort_keys}, {"separators": (",", ":")}, {}):
        expected = json.dumps(value, ensure_ascii=False, **options)

        assert _JSON.dumps(value, ensure_ascii=False, **options) == expected


@given(
    _VALUES.map(json.dumps)
    | st.text(alphabet='{}[]",:01.eEaNtrufls\\\n \t\ud800', max_size=12)
    | st.tuples(st.text(alphabet=" \n\t\r\v\xa0x", max_size=2), st.text(" \n,1", max_size=2)).map(
        lambda around: f"{around[0]}{{}}{around[1]}"
    )
)
def test_json_is_read_as_ever(text: str) -> None:
    """The stand-in reads each text as json does, and refuses with its words what it refuses."""

    def outcome(module: Any) -> str:
        try:
            return repr(
                module.loads(
                    text, object_pairs_hook=list, parse_int=str, parse_constant=lambda name: name
                )
            )
        except ValueError as error:
            return str(error)

    assert outcome(_JSON) == outcome(json)


def test_wire_works_with_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options that wire.py passes are those that the stand-in takes."""
    value = {"b": [1, {"c": None}], "a": "<é>"}

    def written() -> list[bytes]:
        return [
            wire.encode(value, sort_keys=True),
            wire.encode(value, sort_keys=False),
            wire.encode_line(value),
            repr(wire.decode(wire.encode_line(value))).encode(),
        ]

    expected = written()
    monkeypatch.setattr(wire, "json", _JSON)

    assert written() == expected


def _environ_like(base: Any) -> Any:
    """Return an object as os.environ is one, of a base as os._Environ has it."""

    class Environ(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.data = {"a": "1", "b": "2"}

        def __getitem__(self, key: str) -> str:
            return self.data[key]

        def __setitem__(self, key: str, value: str) -> None:
            self.data[key] = value

        def __delitem__(self, key: str) -> None:
            del self.data[key]

        def __iter__(self) -> Any:
            yield from list(self.data)

        def __len__(self) -> int:
            return len(self.data)

    return Environ()


@pytest.mark.parametrize(
    "observe",
    [
        lambda environ: (environ.get("a"), environ.get("c"), environ.get("c", "0")),
        lambda environ: ("a" in environ, "c" in environ),
        lambda environ: (sorted(environ.keys()), sorted(environ.values()), sorted(environ.items())),
        lambda environ: (environ.keys() & {"a", "c"}, dict(environ), {**environ}),
        lambda environ: (environ == {"a": "1", "b": "2"}, environ == {}, environ == 3),
        lambda environ: (environ.pop("a"), environ.pop("a", None), dict(environ)),
        lambda environ: environ.pop("c"),
        lambda environ: (environ.update({"c": "3"}, d="4"), dict(environ)),
        lambda environ: (environ.clear(), dict(environ)),
        lambda environ: (environ.popitem(), len(environ)),
        lambda environ: (environ.clear(), environ.popitem()),
        lambda environ: hash(environ),
    ],
)
def test_the_environment_is_as_ever(observe: Callable[[Any], Any]) -> None:
    """The methods that os.environ takes from collections.abc are the same in the stand-in."""
    outcomes = []
    for base in (_standin("_collections_abc").MutableMapping, collections.abc.MutableMapping):
        try:
            outcomes.append(("result", observe(_environ_like(base))))
        except (KeyError, TypeError) as error:
            outcomes.append((type(error).__name__, str(error)))

    assert outcomes[0] == outcomes[1]
