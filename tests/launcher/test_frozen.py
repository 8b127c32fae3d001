"""The frozen program: it does what the sources do, whatever surrounds it."""

import ast
import json
import shutil
import subprocess
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import freeze
from deploy.freeze import BuildError, Collector
from deploy.frozen.rewrite import SPARED, UnsupportedError, rewrite, standins
from tests.machine import CNI_BIN, Machine, error_of

pytestmark = pytest.mark.timeout(90)  # the first test waits for the build


def _attached(machine: Machine, program: Path, config: dict[str, Any]) -> None:
    """Go through an attachment's life by an executable."""
    container = machine.container()
    added = machine.execute(program, "ADD", config, container)
    assert added.returncode == 0, added.stdout + added.stderr
    checked = machine.execute(
        program, "CHECK", {**config, "prevResult": json.loads(added.stdout)}, container
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    addresses = [ip["address"] for ip in json.loads(added.stdout)["ips"]]
    assert machine.addresses(container, "eth0") == addresses
    deleted = machine.execute(program, "DEL", config, container)
    assert deleted.returncode == 0, deleted.stdout + deleted.stderr
    assert machine.link(container, "eth0") is None


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"ipMasq": True},
        {"ipMasq": True, "ipMasqBackend": "iptables"},
        {"macspoofchk": True},
        {"hairpinMode": True, "mtu": 1400},
    ],
    ids=["plain", "nftables", "iptables", "macspoofchk", "port"],
)
def test_a_frozen_plugin_does_its_work(dist: Path, machine: Machine, keys: dict[str, Any]) -> None:
    """Every way to the kernel is open from the bundle too: none of its modules is missing."""
    _attached(machine, dist / "bridge", machine.network(**keys))


def test_a_plain_copy_works(dist: Path, machine: Machine, tmp_path: Path) -> None:
    """Without the links between its files, as some tools copy, the directory works the same."""
    copy = tmp_path / "copy"
    shutil.copytree(dist, copy)

    _attached(machine, copy / "bridge", machine.network())


@pytest.mark.parametrize(
    "keys",
    [{"mtu": "large"}, {"ipam": {"type": "host-local", "ranges": {}}}, {"vlanTrunk": [{"id": []}]}],
    ids=["mtu", "ranges", "trunk"],
)
def test_a_refusal_has_the_same_words(dist: Path, machine: Machine, keys: dict[str, Any]) -> None:
    """What explains a wrong configuration is in the bundle with all its files."""
    config = machine.network(**keys)
    expected = machine.execute(CNI_BIN / "bridge", "ADD", config, machine.container())

    done = machine.execute(dist / "bridge", "ADD", config, machine.container())

    assert error_of(done.stdout)["code"] == 7
    assert (done.returncode, done.stdout) == (1, expected.stdout)


def test_the_environment_does_not_steer_it(dist: Path, machine: Machine, tmp_path: Path) -> None:
    """No PYTHON variable, no locale and no file in the working directory has an effect."""
    for name in ("json", "os", "sitecustomize", "usercustomize", "socket", "_socket", "ctypes"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('intruder')\n")
    environ = {
        **machine.environ("ADD", machine.container(), path=str(dist)),
        "HOME": str(tmp_path),
        "LC_ALL": "C",
        "PYTHONDEVMODE": "1",
        "PYTHONHOME": "/nowhere",
        "PYTHONINSPECT": "1",
        "PYTHONIOENCODING": "utf-16",
        "PYTHONMALLOCSTATS": "1",
        "PYTHONPATH": str(tmp_path),
        "PYTHONPROFILEIMPORTTIME": "1",
        "PYTHONSTARTUP": str(tmp_path / "json.py"),
        "PYTHONVERBOSE": "1",
        "PYTHONWARNINGS": "error",
    }

    done = subprocess.run(
        ["nsenter", f"--net={machine.host}", str(dist / "bridge")],
        input=json.dumps(machine.network()),
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ips"]


def test_a_delegate_gets_the_environment_untouched(
    dist: Path, machine: Machine, tmp_path: Path
) -> None:
    """The bundle adds nothing to the environment: LD_LIBRARY_PATH would steer other programs."""
    (tmp_path / "record").write_text(
        f"#!/bin/sh\ncp /proc/self/environ {tmp_path}/environ-$CNI_COMMAND\n"
        'echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]}\'\n'
    )
    (tmp_path / "record").chmod(0o755)
    config = machine.network(ipam={"type": "record"})
    container = machine.container()
    path = f"{tmp_path}:{dist}"

    done = machine.execute(dist / "bridge", "ADD", config, container, path=path)

    entries = (tmp_path / "environ-ADD").read_text().rstrip("\0").split("\0")
    given = dict(entry.split("=", 1) for entry in entries)
    given.pop("PWD", None)  # the shell's
    assert done.returncode == 0, done.stdout
    assert given == machine.environ("ADD", container, path=path)


def test_a_broken_bundle_still_answers(dist: Path, machine: Machine, tmp_path: Path) -> None:
    """When a part of the bundle is gone, the runtime gets a CNI error object all the same."""
    copy = tmp_path / "copy"
    shutil.copytree(dist, copy)
    next(copy.glob(".pycni/*/lib/_json*")).unlink()
    next(copy.glob(".pycni/*/lib/fcntl*")).unlink()

    done = machine.execute(copy / "bridge", "ADD", machine.network(), machine.container())

    assert done.returncode == 1
    assert error_of(done.stdout)["code"] == 999
    assert "ModuleNotFoundError" in done.stderr


# --- how it is made ---


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
    import sys

    for name, source in standins().items():
        module = _load(name, compile(source, name, "exec"))
        monkeypatch.setitem(sys.modules, name, module)
    tree = rewrite("plugins.sample", SAMPLE)
    return _load("real", compile(SAMPLE, "real", "exec")), _load("ours", compile(tree, "", "exec"))


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
        lambda sample: setattr(sample.Frozen(1), "first", 2),
        lambda sample: delattr(sample.Frozen(1), "first"),
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
    """What can be seen of a dataclass does not change, its errors included."""

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
    ],
    ids=["asdict", "module", "option", "base", "classvar", "field"],
)
def test_the_build_refuses_what_it_would_change(source: bytes) -> None:
    """A dataclass that the build cannot write out fails it, before anybody runs the result."""
    with pytest.raises(UnsupportedError, match=r"plugins\.sample"):
        rewrite("plugins.sample", source)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("hashlib", "md5"),
        ("importlib", "import_module"),
        ("logging", "INFO"),
        ("pkgutil", "iter_modules"),
        ("selectors", "DefaultSelector"),
        ("signal", "Signals"),
        ("socket", "AddressFamily"),
        ("threading", "Thread"),
        ("traceback", "format_exc"),
    ],
)
def test_a_standin_gives_the_real_thing_when_asked(module: str, name: str) -> None:
    """What a stand-in does not have itself comes from the module that it stands for."""
    source = standins()[f"standin_{module}"]

    standin = _load("standin", compile(source, module, "exec"))

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
    tree = rewrite("cni_common.sample", f"import socket\n{use}".encode())

    assert ast.unparse(tree).startswith(f"import {module}")


def test_every_module_that_is_spared_has_a_standin() -> None:
    """No import is rewritten to something that does not exist."""
    names = {name.replace(".", "_") for spared in SPARED.values() for name in spared}

    assert {f"standin_{name}" for name in names} <= standins().keys()


def test_the_build_refuses_an_import_that_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that imports an excluded module fails the build, not the node."""
    monkeypatch.setattr("deploy.freeze.EXCLUDED", frozenset({"fcntl"}))

    with pytest.raises(BuildError, match="imports fcntl: take that off EXCLUDED"):
        Collector().collect()


def test_the_build_spares_what_it_did_not_make(tmp_path: Path) -> None:
    """A directory with other files, as an installation may have, is not replaced."""
    (tmp_path / "ptp").touch()

    assert freeze.main([str(tmp_path)]) == 1

    assert [path.name for path in tmp_path.iterdir()] == ["ptp"]


def test_the_bundle_is_small(dist: Path) -> None:
    """Only compiled modules, libraries and data lie in it, and no more than are needed."""
    files = [path for path in dist.rglob("*") if path.is_file()]

    assert {".py", ".a", ".h"}.isdisjoint(path.suffix for path in files)
    assert sum(path.stat().st_size for path in files) < 20 << 20
