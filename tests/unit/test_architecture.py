"""The rules that hold the suite together, as data: imports, sizes, start-up, SCHEMA and pages."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import commands
from cni_common.node.lifecycle import Lifecycle
from cni_common.spec.profile import Profile
from cni_common.spec.request import PROTOCOL_PROPERTIES
from plugins import TYPES, host_local, load, profile_of
from tests.machine import ROOT, Json

# The wings of cni_common and their modules. A module imports only from those before it, also inside
# functions. `if TYPE_CHECKING` does not count. A new module needs an entry in docs/decisions.md.
WINGS = {
    "spec": (
        "errors",
        "undo",
        "steps",
        "wire",
        "names",
        "result",
        "schema",
        "request",
        "ipam_config",
        "profile",
    ),
    "kernel": (
        *("cgroups", "netlink", "link", "route", "rtnetlink", "policy_routing", "netns"),
        "link_deletion",
        *("nft_messages", "nft_expressions", "nft_table", "nft_layout", "iptables"),
    ),
    "node": (
        *("unformatted", "journal", "record", "netns_lock", "masquerade_iptables"),
        *(
            "masquerade",
            "spans",
            "namespaces",
            "owned",
            "liveness",
            "absence",
            "masquerade_strays",
            "veth",
            "lifecycle",
        ),
        *("interface", "device", "master", "plugin_files", "host"),
    ),
    "serve": (
        *("stdio", "protocol", "surroundings", "on_demand", "worker", "engine", "status", "cli"),
        "main",
    ),
}
ORDER = tuple(f"{wing}.{module}" for wing, modules in WINGS.items() for module in modules)
FOR_PLUGINS = ORDER[: ORDER.index("node.host")]  # a plugin is handed the Host
# Imports that are allowed only inside functions: each costs a cold start that does not need it.
LAZY = {
    "kernel.netns": ("kernel.netlink", "kernel.rtnetlink"),
    "node.record": ("node.unformatted",),
    "node.masquerade": ("kernel.iptables", "node.masquerade_iptables"),
    "node.veth": ("kernel.policy_routing",),
    "node.lifecycle": ("node.liveness", "node.owned"),
    "node.interface": (
        *("kernel.iptables", "node.liveness", "node.masquerade_iptables", "node.masquerade_strays"),
        *("node.owned", "node.namespaces"),
    ),
    "node.host": ("node.plugin_files",),
    "serve.main": tuple(name for name in ORDER if name != "serve.stdio"),
}
THIRD_PARTIES = {
    "agent": "plugins.__main__",  # `pycni install`; all else of it is a program of its own
    "_setns": "cni_common.kernel.netns",  # of the bundle
    "jsonschema": "cni_common.spec.schema",
    "pyroute2": "commands.kernel",
    "rich": "commands.view",
}

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60
FUNCTION_LINES_P95 = 30


class Import(NamedTuple):
    """One imported module, and whether a function imports it."""

    name: str
    lazy: bool


def sources(*directories: str) -> list[Path]:
    """Return the Python files below directories of the repository."""
    return sorted(path for name in directories for path in (ROOT / name).rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the name by which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Return what a file imports; of `from a import b` both a and a.b, as b may be a module."""
    return tuple(_imports(tree_of(path), lazy=False))


def _imports(node: ast.AST, *, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                yield from (Import(alias.name, lazy) for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield Import(module, lazy)
                yield from (Import(f"{module}.{alias.name}", lazy) for alias in names)
        yield from _imports(child, lazy=lazy or isinstance(child, ast.FunctionDef | ast.Lambda))


def short_name(path: Path) -> str:
    """Return the name of a module of cni_common as ORDER has it."""
    return name_of(path).removeprefix("cni_common.")


def of_common(path: Path) -> list[Import]:
    """Return the modules of cni_common that a file imports, by their short names."""
    found = (Import(one.name.removeprefix("cni_common."), one.lazy) for one in imports(path))
    return [one for one in found if one.name in ORDER]


COMMON = [path for path in sources("cni_common") if path.stem != "__init__"]
COMMANDS = sources("commands")
PRODUCTION = [*sources("cni_common", "plugins"), *COMMANDS]
SIZED = [*PRODUCTION, *sources("agent")]
ENTRANCES = ("plugins", "plugins.__main__")
PLUGIN_FILES = [
    path
    for path in PRODUCTION
    if path not in [*sources("cni_common"), *COMMANDS] and name_of(path) not in ENTRANCES
]


class TestImports:
    """Imports."""

    def test_modules(self) -> None:
        """cni_common consists of these modules, and the files of its packages are empty."""
        packages = [path for path in sources("cni_common") if path.stem == "__init__"]

        assert sorted(map(short_name, COMMON)) == sorted(ORDER)
        assert [path for path in packages if path.read_text()] == []

    def test_page(self) -> None:
        """docs/architecture.md lists the modules in this order."""
        page = (ROOT / "docs" / "architecture.md").read_text()

        assert tuple(re.findall(r"^\| `(\w+\.\w+)` \|", page, re.M)) == ORDER

    def test_order(self) -> None:
        """A module imports only from those before it."""
        wrong = [
            f"{short_name(path)} imports {one.name}"
            for path in COMMON
            for one in of_common(path)
            if one.name not in ORDER[: ORDER.index(short_name(path))]
        ]

        assert wrong == []

    def test_lazy(self) -> None:
        """Expensive modules that are not always needed are imported inside functions."""
        wrong = [
            f"{short_name(path)} imports {one.name}"
            for path in COMMON
            for one in of_common(path)
            if one.name in LAZY.get(short_name(path), ()) and not one.lazy
        ]

        assert wrong == []

    def test_no_plugins(self) -> None:
        """cni_common imports neither plugins nor commands: they are handed in."""
        upper = ("commands", "plugins")
        wrong = [
            f"{short_name(path)} imports {one.name}"
            for path in COMMON
            for one in imports(path)
            if one.name.split(".")[0] in upper
        ]

        assert wrong == []

    def test_commands(self) -> None:
        """Only the entrance knows the operator's commands, and only once they are asked for."""
        found = [
            (name_of(path), one)
            for path in sources("plugins")
            for one in imports(path)
            if one.name.split(".")[0] == "commands"
        ]

        assert {name for name, _ in found} == {"plugins.__main__"}
        assert [one.name for _, one in found if not one.lazy] == []

    def test_plugins(self) -> None:
        """A plugin imports neither what calls it nor another plugin."""
        wrong = []
        for path in PLUGIN_FILES:
            own = ".".join(name_of(path).split(".")[:2])
            wrong += [
                f"{name_of(path)} imports {one.name}"
                for one in imports(path)
                if one.name.startswith("plugins") and not f"{one.name}.".startswith(f"{own}.")
            ]
            wrong += [
                f"{name_of(path)} imports {one.name}"
                for one in of_common(path)
                if one.name not in FOR_PLUGINS
            ]

        assert wrong == []

    def test_modules_of_a_plugin_form_no_circle(self) -> None:
        """Inside each plugin, too, imports go one way; in host-local also those in functions."""
        names = {name_of(path).removesuffix(".__init__") for path in PLUGIN_FILES}
        ways = {
            name_of(path).removesuffix(".__init__"): {
                one.name
                for one in imports(path)
                if one.name in names and (not one.lazy or "host_local" in one.name)
            }
            for path in PLUGIN_FILES
        }
        for name, known in ways.items():  # `from a import b` names a, too, which is loaded before
            known -= {one for one in known if f"{name}.".startswith(f"{one}.")}

        assert "plugins.host_local.index.rebuild" in ways["plugins.host_local.store"]
        while leaves := {name for name, known in ways.items() if not known & ways.keys()}:
            ways = {name: known for name, known in ways.items() if name not in leaves}
        assert ways == {}

    def test_commands_name_no_plugin(self) -> None:
        """The operator's commands know plugins by what each says of its lifecycle."""
        wrong = [
            f"{name_of(path)} imports {one.name}"
            for path in COMMANDS
            for one in imports(path)
            if one.name.startswith("plugins.")
            and one.name not in ("plugins.TYPES", "plugins.profile_of")
        ]

        assert wrong == []

    def test_commands_know_no_part(self) -> None:
        """Nor do they name plugins, or parts of one plugin alone, in strings."""
        lifecycles = {plugin: lifecycle_of(plugin) for plugin in TYPES}
        parts = [part for one in lifecycles.values() if one for part in one.parts]
        owners = [type(part).__module__ for part in parts]
        names = {
            part.name
            for part, owner in zip(parts, owners, strict=True)
            if owner.startswith("plugins.")
        }
        allowed = {"lease", "interface"}  # what any IPAM or interface plugin gives
        kernel = "kernel/"  # has the kernel's words: a route has a gateway
        wrong = [
            f"{name_of(path)}: {node.value!r}"
            for path in COMMANDS
            if not str(path.relative_to(ROOT / "commands")).startswith(kernel)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and node.value in {*TYPES, *names} - allowed
        ]

        assert {"gateway", "mac-filter"} <= names
        assert wrong == []

    def test_commands_read_no_part(self) -> None:
        """Of a record they read the header; a part tells about itself by its methods."""
        page = (ROOT / "docs" / "records.md").read_text().partition("\n## ")[0]
        header = set(re.findall(r"^\| `(\w+)` \|", page, re.M))
        read = {
            (name_of(path), node.args[0].value)
            for path in COMMANDS
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and ast.unparse(node.func.value).endswith(("facts", "part"))
            and isinstance(node.args[0], ast.Constant)
        }

        assert ("commands.explain", "netns") in read
        assert {one for one in read if one[1] not in header} == set()

    def test_data_dir_of_commands(self) -> None:
        """The one exception: --data-dir has host-local's default, without importing that."""
        assert commands.DATA_DIR == host_local.DEFAULT_DATA_DIR

    def test_third_parties(self) -> None:
        """Each library is known to one file, or to one package."""
        known = {*sys.stdlib_module_names, "cni_common", "commands", "plugins"}
        wrong = [
            f"{name_of(path)} imports {name}"
            for path in PRODUCTION
            for name in {one.name.split(".")[0] for one in imports(path)} - known
            if not f"{name_of(path)}.".startswith(f"{THIRD_PARTIES.get(name)}.")
        ]

        assert wrong == []


class TestTypes:
    """Types that have one home."""

    def test_json(self) -> None:
        """`Json` and `JsonObject` are defined beside the code that reads and writes JSON."""
        defined = {
            (name_of(path), node.id)
            for path in [*SIZED, *sources("bench", "deploy")]
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            if node.id.startswith("Json")
        }

        assert defined == {("cni_common.spec.wire", name) for name in ("Json", "JsonObject")}


class TestSizes:
    """How long files and functions may be. Tests are exempt: a file has all cases of a subject."""

    def test_files(self) -> None:
        """A file that outgrows this is split by subject."""
        lengths = {name_of(path): path.read_text().count("\n") for path in SIZED}

        assert {name: n for name, n in lengths.items() if n > FILE_LINES_MAX} == {}

    def test_functions(self) -> None:
        """A function fits on a screen, and most on half of one."""
        lengths = {
            f"{name_of(path)}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
            for path in SIZED
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }

        assert {name for name, lines in lengths.items() if lines > FUNCTION_LINES_MAX} == set()
        assert sorted(lengths.values())[len(lengths) * 95 // 100] <= FUNCTION_LINES_P95


# --- start-up ---

# What each entry loads beside the bare interpreter, top-level names, by Python 3.11; names that
# begin with an underscore left out. dataclasses, enum, ipaddress, json bring in most of _BASE.
_ABOUT = frozenset(
    {
        *("collections", "contextlib", "copyreg", "enum", "functools", "gc", "ipaddress"),
        *("itertools", "keyword", "operator", "re", "reprlib", "types", "typing"),
        *("warnings",),
    }
)
_BASE = _ABOUT | frozenset(
    {
        *("ast", "copy", "dataclasses", "dis", "importlib", "inspect", "json", "linecache"),
        *("opcode", "token", "tokenize", "weakref"),
    }
)
_SERVING = _BASE | {"errno", "fcntl"}
_NETLINK = frozenset({"array", "math", "select", "selectors", "signal", "socket", "struct"})
_WINGS_BASE = frozenset({"serve", "spec"})
_COMMON_BASE = _WINGS_BASE | {"serve.main", "serve.stdio", "spec.errors", "spec.names"}
_COMMON_SERVING = _COMMON_BASE | frozenset(
    {
        *("kernel", "kernel.netns", "node", "node.host", "node.journal", "node.record"),
        *("node.spans", "serve.protocol"),
        *("spec.request", "spec.result", "spec.schema", "spec.steps", "spec.undo", "spec.wire"),
    }
)
_INTERFACE = frozenset(
    {
        *("kernel.link", "kernel.netlink", "kernel.route"),
        *("kernel.rtnetlink", "node.veth"),
    }
)
_NFT_LAYOUT = frozenset(
    {
        *("kernel.nft_expressions", "kernel.nft_layout", "kernel.nft_messages"),
        "kernel.nft_table",
    }
)
_NFT = _NFT_LAYOUT | {"node.masquerade"}


class Entry(NamedTuple):
    """A call that ends before it touches anything, and what it has loaded by then."""

    plugin: str
    command: str
    config: Json
    code: int  # 0: no error
    libraries: frozenset[str]
    common: frozenset[str]
    plugins: frozenset[str]


ENTRIES = {
    "about": Entry("bridge", "", {}, 0, _ABOUT, _COMMON_BASE, frozenset()),
    "VERSION": Entry("bridge", "VERSION", {}, 0, _SERVING, _COMMON_SERVING, frozenset()),
    "host-local refuses an ADD": Entry(
        "host-local",
        "ADD",
        {"ipam": {"type": "host-local"}},
        7,
        _SERVING | {"signal", "struct"},
        _COMMON_SERVING | {"spec.ipam_config"},
        frozenset(
            {
                "host_local",
                "host_local.index.lookup",
                "host_local.index",
                "host_local.index.blocks",
                "host_local.index.file",
                "host_local.lease",
                "host_local.choose",
                "host_local.ranges",
                "host_local.store",
                "host_local.allocate",
            }
        ),
    ),
    "bridge refuses an ADD": Entry(
        "bridge",
        "ADD",
        {"vlan": 5000},
        7,
        _SERVING | _NETLINK,
        _COMMON_SERVING
        | _INTERFACE
        | _NFT
        | {"node.lifecycle", "node.interface", "spec.ipam_config"},
        frozenset(
            {
                "bridge",
                "bridge.conf",
                "bridge.gateway",
                "bridge.parts",
                "bridge.macfilter",
                "bridge.port",
                "bridge.vlan",
            }
        ),
    ),
    "portmap refuses an ADD": Entry(
        "portmap",
        "ADD",
        {},
        7,
        _SERVING | _NETLINK,
        _COMMON_SERVING | _NFT | {"kernel.netlink", "node.lifecycle"},
        frozenset(
            {
                "portmap",
                "portmap.claims",
                "portmap.parts",
                "portmap.conf",
                "portmap.conntrack",
                "portmap.layout",
                "portmap.route_localnet",
                "portmap.services",
                "portmap.nftables",
                "portmap.shared_ports",
            }
        ),
    ),
    "firewall refuses an ADD": Entry(
        "firewall",
        "ADD",
        {},
        7,
        _SERVING | _NETLINK,
        _COMMON_SERVING | _NFT_LAYOUT | {"kernel.netlink", "node.lifecycle"},
        frozenset(
            {
                "firewall",
                "firewall.parts",
                "firewall.conf",
                "firewall.facts",
                "firewall.filter_tables",
                "firewall.isolation",
                "firewall.cni_forward",
                "firewall.rules",
                "firewall.ledger",
            }
        ),
    ),
    "loopback refuses an ADD": Entry(
        "loopback",
        "ADD",
        {},
        8,
        _SERVING | {"signal"},
        _COMMON_SERVING,
        frozenset({"loopback"}),
    ),
    "ptp refuses an ADD": Entry(
        "ptp",
        "ADD",
        {},
        7,
        _SERVING | _NETLINK,
        _COMMON_SERVING
        | _INTERFACE
        | _NFT
        | {"node.lifecycle", "node.interface", "spec.ipam_config"},
        frozenset({"ptp", "ptp.conf", "ptp.parts", "ptp.routes"}),
    ),
    "bandwidth refuses an ADD": Entry(
        "bandwidth",
        "ADD",
        {},
        7,
        _SERVING | {"signal"},
        _COMMON_SERVING,
        frozenset({"bandwidth", "bandwidth.conf"}),
    ),
    "tuning refuses an ADD": Entry(
        "tuning",
        "ADD",
        {},
        7,
        _SERVING | _NETLINK,
        _COMMON_SERVING | {"kernel.link", "kernel.netlink", "node.lifecycle", "spec.ipam_config"},
        frozenset({"tuning", "tuning.conf", "tuning.device", "tuning.parts", "tuning.sysctl"}),
    ),
    "dhcp refuses an ADD": Entry(
        "dhcp",
        "ADD",
        {"ipam": {"type": "dhcp", "provide": [{"option": "53"}]}},
        7,
        _SERVING | _NETLINK - {"struct"},
        _COMMON_SERVING | {"node.lifecycle"},
        frozenset({"dhcp", "dhcp.client", "dhcp.conf", "dhcp.parts", "dhcp.rpc"}),
    ),
    "static refuses an ADD": Entry(
        "static",
        "ADD",
        {},
        7,
        _SERVING | {"signal"},
        _COMMON_SERVING | {"spec.ipam_config"},
        frozenset({"static"}),
    ),
}


def refused_add(plugin: str) -> Entry:
    """Return an ADD that every plugin refuses: there is no such namespace, and no prevResult."""
    nothing: frozenset[str] = frozenset()
    return Entry(plugin, "ADD", {}, 0, nothing, nothing, nothing)


# Runs the entry point of the executable and says what was loaded meanwhile, on stderr.
_SCRIPT = """
import sys
before = set(sys.modules)
root, plugin = sys.argv[1:]
sys.path.insert(0, root)
sys.argv[:] = [plugin]
from plugins.__main__ import run
status = run()
print("loaded:", *(set(sys.modules) - before), file=sys.stderr)
raise SystemExit(status)
"""


def loaded_by(entry: Entry) -> tuple[int, set[str]]:
    """Return the error code that a call in a fresh interpreter gives, and what it has loaded."""
    config = {"cniVersion": "1.1.0", "name": "net", **entry.config}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _SCRIPT, str(ROOT), entry.plugin],
        input=json.dumps(config).encode(),
        env={
            "CNI_COMMAND": entry.command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/no/such/netns",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/no/such/directory",
        },
        capture_output=True,
        check=False,
    )
    names = done.stderr.decode().partition("loaded: ")[2].split()
    assert names, done.stderr.decode()
    return json.loads(done.stdout or b"{}").get("code", 0), set(names)


def below(package: str, names: set[str]) -> set[str]:
    """Return the names inside a package, without its own."""
    return {name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}.")}


@pytest.mark.starts_process
class TestStart:
    """The modules that a fresh interpreter loads are the cost of a cold start."""

    @pytest.mark.parametrize("name", ENTRIES)
    def test_loaded(self, name: str) -> None:
        """Each entry loads what is written here, no more and no less."""
        entry = ENTRIES[name]

        code, names = loaded_by(entry)

        libraries = {name.partition(".")[0] for name in names} - {"cni_common", "plugins"}
        assert code == entry.code
        public = {one for one in libraries if not one.startswith("_")}
        # Newer versions of Python load less of their own: 3.13 neither linecache nor warnings.
        assert public == entry.libraries or (
            public < entry.libraries and sys.version_info >= (3, 12)
        )
        assert below("cni_common", names) == entry.common
        assert below("plugins", names) == entry.plugins | {"__main__"}

    @pytest.mark.parametrize("plugin", TYPES)
    def test_bound(self, plugin: str) -> None:
        """A refused ADD of any plugin, also of one without an entry, loads no more than this."""
        code, names = loaded_by(refused_add(plugin))

        own = plugin.replace("-", "_")
        libraries = {name.partition(".")[0] for name in names} - {"cni_common", "plugins"}
        assert code
        assert {one for one in libraries if not one.startswith("_")} <= _SERVING | _NETLINK
        assert {one.partition(".")[0] for one in below("plugins", names)} == {own, "__main__"}

    def test_jsonschema(self) -> None:
        """jsonschema is loaded only to refuse a configuration."""
        entry = ENTRIES["host-local refuses an ADD"]

        accepted = loaded_by(entry)[1]
        refused = loaded_by(entry._replace(config={"dns": 1}))[1]

        assert ("jsonschema" in accepted, "jsonschema" in refused) == (False, True)

    def test_contextlib(self) -> None:
        """No start loads contextlib, which takes 4 ms: the bundle's stand-ins do without."""
        loaded = {name for entry in ENTRIES.values() for name in entry.common}
        loaded.add("kernel.link_deletion")  # of each DEL
        wrong = [
            short_name(path)
            for path in COMMON
            if short_name(path) in loaded and Import("contextlib", lazy=False) in imports(path)
        ]

        assert "kernel.netns" in loaded
        assert wrong == []

    def test_resident(self) -> None:
        """An engine has everything imported before it forks: an upgrade may take the files away."""
        script = (
            "import sys; sys.path.insert(0, sys.argv[1]);"
            "from cni_common.serve import engine, worker;"
            "from plugins import load_all; load_all(); engine._import_the_rest();"
            "print(*sys.modules)"
        )
        words = [sys.executable, "-I", "-c", script, str(ROOT)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)

        edges = {f"cni_common.serve.{name}" for name in ("main", "cli", "status")}
        edges.add("plugins.__main__")
        edges |= {name_of(path) for path in PRODUCTION if path.stem == "profile"}
        wanted = {name_of(path) for path in PRODUCTION if "commands" not in path.parts}
        assert wanted - edges - set(done.stdout.split()) == set()


# --- plugins ---

# What the recogniser of cni_common/spec/schema.py understands, in the form that it expects.
KEYWORDS: dict[str, type | tuple[type, ...]] = {
    "type": str,
    "description": str,
    "default": (str, int, bool),
    "properties": dict,
    "additionalProperties": dict,
    "items": dict,
    "enum": list,
    "minimum": int,
    "maximum": int,
}


def schema_of(plugin: str) -> Json:
    """Return a plugin's SCHEMA."""
    module = load(plugin)
    assert module is not None
    return dict(module.SCHEMA)


def lifecycle_of(plugin: str) -> Lifecycle | None:
    """Return what the attachments of a plugin consist of."""
    module = load(plugin)
    return module.lifecycle() if module else None


def parts_of(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Yield a schema and all within it, by their dotted paths."""
    yield path, schema
    for key, value in schema.get("properties", {}).items():
        yield from parts_of(value, f"{path}.{key}".removeprefix("."))
    for keyword, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if keyword in schema:
            yield from parts_of(schema[keyword], f"{path}{mark}")


def parts_of_all() -> Iterator[tuple[str, str, Json]]:
    """Yield the parts of the SCHEMA of every plugin: plugin, dotted path, schema."""
    for plugin in TYPES:
        yield from ((plugin, *part) for part in parts_of(schema_of(plugin)))


def keys_of(schema: Json) -> set[str]:
    """Return the paths at which a configuration has a value; lists of values count as one."""
    return {
        path.removesuffix("[]")
        for path, part in parts_of(schema)
        if path and part["type"] not in ("object", "array")
    }


def keys_on_page(text: str) -> list[str]:
    """Return what stands in backticks in the first columns of all tables of keys."""
    keys: list[str] = []
    in_table = False
    for line in text.splitlines():
        in_table = line.startswith("|") and (in_table or line.startswith("| Key |"))
        if in_table:
            keys += re.findall(r"`([^`]+)`", line.split("|")[1])
    return keys


class TestPlugins:
    """The functions, pages and keys that each plugin must have."""

    def test_listed(self) -> None:
        """Every module in plugins/ is in TYPES, and the other way round."""
        paths = [path for path in (ROOT / "plugins").iterdir() if path.stem[0] != "_"]

        assert sorted(path.stem for path in paths) == sorted(t.replace("-", "_") for t in TYPES)

    def test_names_of_host_ends(self) -> None:
        """Facts about a host's end of a pair name it `host_end`: liveness finds it by that."""
        lifecycles = [lifecycle_of(plugin) for plugin in TYPES]
        kinds = {part.facts for one in lifecycles if one for part in one.parts}
        fields = {kind: set(kind.__dataclass_fields__) for kind in kinds}
        others = {
            f"{kind.__name__}.{name}"
            for kind, names in fields.items()
            for name in names - {"host_end", "host_end_mac", "host_end_index"}
            if re.search(r"veth|peer|^host_(?!port)|_end(_|$)", name)
        }

        ends = {kind.__name__ for kind, names in fields.items() if "host_end" in names}
        assert {"VethFacts", "LimitsFacts"} <= ends
        assert all("host_end_mac" in names for names in fields.values() if "host_end" in names)
        assert others == set()

    def test_loaded(self) -> None:
        """load() returns the module of that name, which has all that a plugin must have."""
        verbs = ("add", "delete", "check", "gc", "status", "lifecycle")
        modules: dict[str, Any] = {plugin: load(plugin) for plugin in TYPES}

        assert [
            f"{plugin}: {module}"
            for plugin, module in modules.items()
            if module.__name__ != f"plugins.{plugin.replace('-', '_')}"
            or not all(callable(getattr(module, verb, None)) for verb in verbs)
        ] == []

    def test_profiles(self) -> None:
        """Each plugin has a module `profile` for lint and doctor, which no plugin imports."""
        profiles = [path for path in PLUGIN_FILES if path.stem == "profile"]
        names = {name_of(path) for path in profiles}

        assert len(profiles) == len(TYPES)
        assert all(isinstance(profile_of(plugin), Profile) for plugin in TYPES)
        assert [
            f"{name_of(path)} imports {one.name}"
            for path in PLUGIN_FILES
            for one in imports(path)
            if one.name in names
        ] == []

    def test_no_other(self) -> None:
        """load() knows nothing else."""
        others = ("", "Bridge", "host_local", "pycni", "__init__", "no.such")

        assert [name for name in others if load(name) is not None] == []

    def test_keywords(self) -> None:
        """A SCHEMA uses only what the recogniser understands, and demands no key at the top."""
        types = ("object", "array", "string", "integer", "boolean")

        assert [
            f"{plugin}: {path}: {keyword}"
            for plugin, path, part in parts_of_all()
            for keyword, value in part.items()
            if not isinstance(value, KEYWORDS.get(keyword, ()))
        ] == []
        found = {f"{plugin}: {path}": part["type"] for plugin, path, part in parts_of_all()}
        assert [path for path, kind in found.items() if kind not in types] == []

    def test_protocol_keys(self) -> None:
        """A SCHEMA contains the keys of the protocol as they are."""
        assert [
            f"{plugin}: {key}"
            for plugin in TYPES
            for key, part in PROTOCOL_PROPERTIES.items()
            if schema_of(plugin)["properties"].get(key) != part
        ] == []

    def test_descriptions(self) -> None:
        """Every key says what it is for, in a sentence."""
        assert [
            f"{plugin}: {path}"
            for plugin, path, part in parts_of_all()
            if path and path[-1] not in "]*" and not part.get("description", "").endswith(".")
        ] == []

    def test_page(self) -> None:
        """A plugin's page lists the keys of its SCHEMA, each once, and no others."""
        pages = {
            plugin: keys_on_page((ROOT / "docs" / "plugins" / f"{plugin}.md").read_text())
            for plugin in TYPES
        }
        of_protocol = keys_of({"properties": PROTOCOL_PROPERTIES})
        keys = {plugin: sorted(keys_of(schema_of(plugin)) - of_protocol) for plugin in TYPES}

        assert {plugin: sorted(page) for plugin, page in pages.items()} == keys
