"""The same malformed calls for the Go plugins and for ours: what is refused, and by which code.

No call gets as far as changing anything, which is looked at as well.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cni_common.serve.protocol import Reply, respond
from cni_common.spec import wire
from cni_common.spec.errors import CNIError
from cni_common.spec.request import Request
from plugins import TYPES
from tests.golden import Golden
from tests.machine import CNI_BIN, REFERENCE_BIN, Json, Machine

pytestmark = pytest.mark.without_engine(reason="calls functions of this process")
# Those compared with the Go plugins; test_others_refuse_alike has the others.
PLUGINS = ("loopback", "bridge", "firewall", "host-local", "ptp", "static", "tuning")
# The reference's firewall knows 0.4.0 and newer, ours all versions.
SAME_VERSIONS = tuple(plugin for plugin in PLUGINS if plugin != "firewall")
ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/no/such/netns",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/no/such/directory",
    "CNI_ARGS": "",
}
ATTACHED = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS")
# A version that no plugin has: what gets as far as its gate (code 1) has passed all before it.
NO_VERSION = "9.9.9"


@dataclass(frozen=True)
class Case:
    """One call."""

    stdin: bytes
    environ: Mapping[str, str] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()  # by default one of them
    same_words: bool = False  # whether the message is the reference's, letter by letter


CASES: dict[str, Case] = {}


def config(**keys: object) -> bytes:
    """Return a configuration of a version that does not exist."""
    return json.dumps({"cniVersion": NO_VERSION, "name": "net", "type": "x", **keys}).encode()


def text(fields: str) -> bytes:
    """Return a configuration with these fields, written as they are."""
    return (
        b'{"name": "net", "cniVersion": "9.9.9", '
        + fields.encode("utf-8", "surrogateescape")
        + b"}"
    )


def add_variables() -> None:
    """Variables that are missing, malformed, both."""
    for command in COMMANDS:
        none = {"CNI_COMMAND": command, **dict.fromkeys(ATTACHED, "")}
        CASES[f"{command} without all"] = Case(config(), none, same_words=True)
        for name in ATTACHED:
            environ = {"CNI_COMMAND": command, name: ""}
            CASES[f"{command} without {name}"] = Case(config(), environ, same_words=True)
        for name, value in (("CNI_CONTAINERID", "///"), ("CNI_IFNAME", "a b")):
            environ = {"CNI_COMMAND": command, name: value}
            CASES[f"{command} with bad {name}"] = Case(config(), environ)
    for names in (ATTACHED[:2], ATTACHED[1:3], ATTACHED[2:], ATTACHED[::2]):
        none = dict.fromkeys(names, "")
        CASES[f"ADD without {' '.join(names)}"] = Case(config(), none, same_words=True)
    for bad, missing in product(("CNI_CONTAINERID", "CNI_IFNAME"), ATTACHED):
        if bad != missing:
            CASES[f"bad {bad}, no {missing}"] = Case(config(), {bad: "a b", missing: ""})
    CASES["stdin comes later"] = Case(b"garbage", {"CNI_IFNAME": ""}, same_words=True)


def add_commands() -> None:
    """Commands that do not exist."""
    for command in ("FOO", "add", "Add", " ADD", "ADD ", "version", "VERSIONS"):
        for name, stdin in (
            ("", config()),
            (" nameless", b"{}"),
            (" garbage", b"garbage"),
            (" with bad version", config(cniVersion=5)),
        ):
            words = name != " garbage"
            environ = {"CNI_COMMAND": command, **dict.fromkeys(ATTACHED, "")}
            CASES[f"command {command!r}{name}"] = Case(stdin, environ, same_words=words)
    CASES["VERSION"] = Case(b"garbage", {"CNI_COMMAND": "VERSION"}, SAME_VERSIONS)


def add_identifiers() -> None:
    """Container ids and interface names."""
    for value in (
        *("a\n", "-a", ".a", "_a", "a_.-Z9", "ä", "a b", "a/b", "a:b", "1", "\u0661", "a\udcff"),
        "a" * 5000,
    ):
        CASES[f"id {value[:9]!a}"] = Case(config(), {"CNI_CONTAINERID": value})
    for value in (
        *("a" * 15, "a" * 16, "ä" * 7, "ä" * 8, ".", "..", "...", "a/b", "a:b", "a\tb", "a\n"),
        *("\x0b", "\x0c", "\r", "a\x1cb", "a\x1fb", "\x7f", "\x85", "\u00a0", "\u1680", "\u180e"),
        *("\u2000", "\u200a", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff"),
        *("%d", "all", "-x", "\udcff", "a\udc85", "\udcff" * 16),
    ):
        CASES[f"ifname {value!a}"] = Case(config(), {"CNI_IFNAME": value})


def add_versions() -> None:
    """Versions that a command does not go with."""
    old = ("", "0.1.0", "0.2.0", "0.3.1")
    numbers = ("1", "1.1", "0.4.5", "1.0.1", "1.1.1", "9.0.0", "01.0.0")
    others = (
        *("v1.0.0", "1.0.0 ", "1.2.3.4", "abc", ".", "1..0", "-1.0.0", "+1.0.0", "1.0.0-rc1"),
        *("\u0661.0.0", "9" * 20),
    )
    too_old = {"CHECK": old, "GC": (*old, "1.0.0"), "STATUS": (*old, "1.0.0")}
    for command in COMMANDS:
        for version in (*too_old.get(command, ()), *numbers, *others):
            # Why a version is none, Go says in words of its own.
            words = version not in others or command in ("ADD", "DEL")
            case = Case(config(cniVersion=version), {"CNI_COMMAND": command}, same_words=words)
            CASES[f"{command} with {version!a}"] = case
    CASES["version of another type"] = Case(config(cniVersion=1))
    CASES["version as a list"] = Case(config(cniVersion=["1.0.0"]))


def add_documents() -> None:
    """Input that is no JSON object with a name."""
    documents: dict[str, bytes] = {
        "nothing": b"",
        "white space": b" \n",
        "null": b"null",
        "an array": b"[]",
        "a number": b"1",
        "a string": b'"x"',
        "a boolean": b"true",
        "an open object": b"{",
        "two objects": b'{"name": "net"}{}',
        "trailing data": config() + b" x",
        "trailing nul": config() + b"\0",
        "trailing byte": config() + b"\xff",
        "trailing newline": config() + b"\r\n",
        "byte order mark": b"\xef\xbb\xbf" + config(),
        "utf-16": config().decode().encode("utf-16"),
        "single quotes": b"{'name': 'net'}",
        "no quotes": b"{name: 'net'}",
        "trailing comma": b'{"name": "net",}',
        "comment": b'{"name": "net" /* c */}',
        "line comment": config() + b"// c",
        "form feed": config() + b"\x0c",
        "name with a bad byte": b'{"name": "n\xff"}',
        "name with a surrogate": b'{"name": "n\\ud800"}',
        "name with a nul": b'{"name": "n\\u0000"}',
        "deep": text('"x": ' + "[" * 90 + "]" * 90),
        "deeper": text('"x": ' + "[" * 200 + "]" * 200),
        "deepest": text('"x": ' + "[" * 11_000 + "]" * 11_000),
        "deep and open": b"[" * 100_000,
    }
    CASES.update({f"stdin: {name}": Case(stdin) for name, stdin in documents.items()})
    values = {
        **{word: word for word in ("NaN", "Infinity", "-Infinity", "True", "None", "01", "+1")},
        **{word: word for word in (".5", "1.", "-", "-0", "1e5", "1e999", "0x1", "null")},
        "control character": '"\x01"',
        "del": '"\x7f"',
        "tab": '"\t"',
        "escape": '"\\x41"',
        "escaped slash": '"\\/"',
        "escaped quote": '"\\\'"',
        "short escape": '"\\u12"',
        "bad bytes": '"\udcff\udcfe"',
        "surrogates": '"\\ud800\\ud800"',
        "digits": "9" * 100,
        "many digits": "9" * 5000,
    }
    CASES.update({f"value: {n}": Case(text(f'"x": {value}')) for n, value in values.items()})


def add_names() -> None:
    """The name of the network, and how keys are matched."""
    documents = {
        "missing": '{"cniVersion": "9.9.9"}',
        "null": '{"name": null, "cniVersion": "9.9.9"}',
        "empty": '{"name": "", "cniVersion": "9.9.9"}',
        "version of another type, too": '{"cniVersion": 1}',
        "only null": "null",
        "empty at last": '{"name": "n", "name": "", "cniVersion": "9.9.9"}',
    }
    for name, document in documents.items():
        CASES[f"name: {name}"] = Case(document.encode(), same_words=True)
    for value in ("1", "true", "{}", "[]", '"a b"', '"-a"', '"a\\n"', '"../x"', '"ä"'):
        CASES[f"name: {value}"] = Case(f'{{"name": {value}, "cniVersion": "9.9.9"}}'.encode())
    matched = {
        "other case": '{"NaMe": "n", "CNIVERSION": "9.9.9"}',
        "null later": '{"name": "n", "name": null, "cniVersion": "9.9.9"}',
        "bad later": '{"name": "n", "Name": "a b", "cniVersion": "9.9.9"}',
        "good later": '{"Name": "a b", "name": "n", "cniVersion": "9.9.9"}',
        "good later, other type before": '{"name": 1, "name": "n", "cniVersion": "9.9.9"}',
        "long s": '{"name": "n", "cniVer\u017fion": "9.9.9"}',
    }
    CASES.update({f"key: {name}": Case(d.encode()) for name, d in matched.items()})


def add_types() -> None:
    """Keys of the wrong type."""
    everywhere: list[tuple[str, object]] = [
        *(("args", "x"), ("runtimeConfig", []), ("ipam", "x"), ("ipam", []), ("ipam", {"type": 1})),
    ]
    of_bridge: list[tuple[str, object]] = [
        *(("mtu", "1400"), ("mtu", 1400.0), ("mtu", True), ("isGateway", "true"), ("isGateway", 1)),
        *(
            ("capabilities", []),
            ("capabilities", {"a": 1}),
            ("prevResult", "x"),
            ("prevResult", []),
        ),
        *(("dns", "x"), ("dns", {"nameservers": "1.1.1.1"}), ("dns", {"nameservers": [1]})),
        *(("dns", {"domain": 1}), ("type", 1), ("bridge", 1), ("vlan", 4095), ("vlan", -1)),
        *(("vlanTrunk", {}), ("vlanTrunk", [{"id": 5000}]), ("vlanTrunk", [{"minID": 5}])),
    ]
    for keys, plugins in ((everywhere, ("bridge", "host-local")), (of_bridge, ("bridge",))):
        for key, value in keys:
            stdin = config(cniVersion="1.0.0", **{key: value})
            CASES[f"type of {key}: {value}"] = Case(stdin, plugins=plugins)


for add in (
    add_variables,
    add_commands,
    add_identifiers,
    add_versions,
    add_documents,
    add_names,
    add_types,
):
    add()

CALLS = [
    (name, plugin)
    for number, (name, case) in enumerate(CASES.items())
    for plugin in case.plugins or (PLUGINS[number % len(PLUGINS)],)
]

# Where we differ, and mean to: the error codes of the reference and of ours.
OTHER_CODES: dict[str, tuple[int, int]] = {
    # An interface whose name is not UTF-8 could not be named in any result.
    "ifname '\\udcff'": (1, 4),
    "ifname 'a\\udc85'": (1, 4),
    # The kernel would make up another name, or refuse.
    "ifname '%d'": (1, 4),
    "ifname 'all'": (1, 4),
    # Signs in versions: Go's Atoi takes them.
    **{f"{command} with '{sign}1.0.0'": (1, 6) for command in COMMANDS[1::2] for sign in "+-"},
    **{f"STATUS with '{sign}1.0.0'": (1, 6) for sign in "+-"},
    # The limits of a walk through a configuration.
    "stdin: deeper": (1, 6),
    "value: many digits": (1, 6),
    # The last of several values counts; Go stops at the first of a wrong type.
    "key: good later, other type before": (6, 1),
    # A bad configuration has a code of its own.
    **{name: (999, 7) for name in CASES if name.startswith("type of ")},
}


def of_reference(
    arena: Machine, plugin: str, environ: Mapping[str, str], stdin: bytes
) -> dict[str, Any]:
    """Return what a Go plugin on the pretend host answers, as JSON can hold it."""
    done = subprocess.run(
        ["nsenter", f"--net={arena.host}", str(REFERENCE_BIN / plugin)],
        input=stdin,
        env={os.fsencode(key): os.fsencode(value) for key, value in environ.items()},
        capture_output=True,
        timeout=60,
        check=False,
    )
    stdout, stderr = done.stdout.decode(), done.stderr.decode()
    return {"status": done.returncode, "stdout": stdout, "stderr": stderr}


def of_ours(arena: Machine, plugin: str, environ: Mapping[str, str], stdin: bytes) -> Reply:
    """Call our plugin on the pretend host."""
    with arena.make_host() as host:
        return respond(plugin, environ, stdin, host)


@pytest.mark.parametrize(("name", "plugin"), CALLS, ids=[f"{n}-{p}" for n, p in CALLS])
def test_refused_alike(arena: Machine, golden: Golden, name: str, plugin: str) -> None:
    """Exit status and code are the reference's, or as OTHER_CODES says; so are many messages."""
    case = CASES[name]
    environ = {**ENVIRON, **case.environ}

    theirs = golden.answer(
        f"{name}, {plugin}", lambda: of_reference(arena, plugin, environ, case.stdin)
    )
    ours = of_ours(arena, plugin, environ, case.stdin)

    their_error, our_error = json.loads(theirs["stdout"]), json.loads(ours.stdout)
    codes = (their_error.get("code", 0), our_error.get("code", 0))
    assert codes == OTHER_CODES.get(name, (codes[0], codes[0]))
    assert (theirs["status"], ours.exit_code) == (int(codes[0] != 0), int(codes[1] != 0))
    if case.same_words:
        assert our_error["msg"] == their_error["msg"].strip()
    if codes == (0, 0):
        assert ours.stdout.decode() == theirs["stdout"]


@pytest.mark.parametrize("plugin", sorted({*TYPES} - {*PLUGINS}))
def test_others_refuse_alike(arena: Machine, plugin: str) -> None:
    """Every other plugin gives to each case the code of one that is compared with a Go plugin."""
    general = {name: case for name, case in CASES.items() if not case.plugins}
    wrong = []
    for name, case in general.items():
        environ = {**ENVIRON, **case.environ}
        expected, ours = (
            json.loads(of_ours(arena, one, environ, case.stdin).stdout or b"{}").get("code", 0)
            for one in ("loopback", plugin)
        )
        if ours != expected:
            wrong.append((name, ours, expected))

    assert len(general) > 200
    assert wrong == []


def test_table_is_current() -> None:
    """Every intended difference is one of a case, and there are plenty of cases without any."""
    assert set(OTHER_CODES) <= set(CASES)
    assert len(CASES) - len(OTHER_CODES) > 200


@pytest.mark.parametrize("plugin", SAME_VERSIONS)
def test_about(arena: Machine, golden: Golden, plugin: str) -> None:
    """Without CNI_COMMAND both say on stderr what they are, and succeed."""
    theirs = golden.answer(f"about, {plugin}", lambda: of_reference(arena, plugin, {}, b""))
    ours = subprocess.run([CNI_BIN / plugin], env={}, capture_output=True, check=False, text=True)

    assert (theirs["status"], ours.returncode) == (0, 0)
    assert (theirs["stdout"], ours.stdout) == ("", "")
    assert ours.stderr.splitlines()[1:] == theirs["stderr"].splitlines()[1:]
    assert ours.stderr.startswith(f"CNI {plugin} plugin ")
    assert theirs["stderr"].startswith(f"CNI {plugin} plugin ")


# --- results ---

RESULT: Json = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01", "x": 1},
        {"name": "<&>\u2028é", "sandbox": "/n", "socketPath": "/s", "pciID": "0000:00:1f.6"},
    ],
    "ips": [
        {"interface": 1, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
        {"interface": 0, "address": "::ffff:10.0.0.3/120", "gateway": "::ffff:10.0.0.1"},
        {"address": "FD00:0::2/64"},
    ],
    "routes": [
        {"dst": "10.0.0.0/8", "gw": "10.0.0.1", "mtu": 1400, "advmss": 1360, "priority": 5},
        {"dst": "0.0.0.0/0", "mtu": 0, "advmss": 0, "priority": 0, "table": 0, "scope": 0},
        {"dst": "::/0", "gw": "fd00::1", "table": 100, "scope": 253},
    ],
    "dns": {"options": ["b", "a"], "nameservers": ["10.0.0.1"], "search": ["s"], "domain": "d"},
    "x": {"y": 1},
}
MIDDLE = {
    **RESULT,
    "ips": [{"version": "4", **ip} for ip in RESULT["ips"][:2]]
    + [{"version": "6", "address": "fd00::2/64"}],
}
OLD = {
    "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
    "dns": {"search": [], "domain": "d"},
}
PREVIOUS: dict[str, tuple[str, Json]] = {
    **{f"{version} of 1.1.0": (version, RESULT) for version in ("1.0.0", "1.1.0")},
    "1.1.0 of 1.0.0": ("1.1.0", {**RESULT, "cniVersion": "1.0.0"}),
    "1.1.0 without version": ("1.1.0", {k: v for k, v in RESULT.items() if k != "cniVersion"}),
    **{
        f"{v} of 0.4.0": (v, {**MIDDLE, "cniVersion": "0.4.0"}) for v in ("0.3.0", "0.3.1", "0.4.0")
    },
    "0.4.0 of 0.3.0": ("0.4.0", {**MIDDLE, "cniVersion": "0.3.0"}),
    **{f"{v} of 0.2.0": (v, {**OLD, "cniVersion": "0.2.0"}) for v in ("0.1.0", "0.2.0")},
    "other case": ("1.0.0", {"CNIVERSION": "1.1.0", "IPS": [{"Address": "10.0.0.2/8"}]}),
    "nothing": ("1.0.0", {}),
    "nothing in the middle": ("0.4.0", {}),
    "empty lists": ("1.0.0", {"interfaces": [], "ips": [], "routes": [], "dns": {}}),
    "null": ("1.0.0", {"interfaces": None, "ips": None, "routes": None, "dns": None}),
    "1.1.0 of 0.4.0": ("1.1.0", {**MIDDLE, "cniVersion": "0.4.0"}),
    "0.4.0 of 1.0.0": ("0.4.0", {**RESULT, "cniVersion": "1.0.0"}),
    "0.4.0 of 0.2.0": ("0.4.0", {**OLD, "cniVersion": "0.2.0"}),
    "unknown version": ("1.0.0", {"cniVersion": "2.0.0"}),
    "interfaces as object": ("1.0.0", {"interfaces": {}}),
    "ips as string": ("1.0.0", {"ips": "x"}),
    "address without prefix": ("1.0.0", {"ips": [{"address": "10.0.0.2"}]}),
    "address with a netmask": ("1.0.0", {"ips": [{"address": "10.0.0.2/255.0.0.0"}]}),
    "address with a zone": ("1.0.0", {"ips": [{"address": "fe80::1%eth0/64"}]}),
    "address with leading zeros": ("1.0.0", {"ips": [{"address": "010.0.0.2/8"}]}),
    "bad gateway": ("1.0.0", {"ips": [{"address": "10.0.0.2/8", "gateway": "x"}]}),
    "bad route": ("1.0.0", {"routes": [{"dst": "default"}]}),
    "mtu as string": ("1.0.0", {"routes": [{"dst": "::/0", "mtu": "1400"}]}),
    "dns as list": ("1.0.0", {"dns": []}),
    "nameservers as string": ("1.0.0", {"dns": {"nameservers": "10.0.0.1"}}),
    "mac as number": ("1.0.0", {"interfaces": [{"name": "a", "mac": 1}]}),
}


@pytest.mark.parametrize("name", PREVIOUS)
def test_previous_result_alike(arena: Machine, golden: Golden, name: str) -> None:
    """A prevResult is refused as the reference does, or passed on as the same bytes.

    The reference's portmap does that where there is no port to map.
    """
    version, previous = PREVIOUS[name]
    stdin = json.dumps({"cniVersion": version, "name": "net", "prevResult": previous}).encode()

    theirs = golden.answer(
        f"prevResult: {name}", lambda: of_reference(arena, "portmap", ENVIRON, stdin)
    )
    ours = b""
    try:
        result = Request.parse(ENVIRON, stdin).prev_result
        assert result is not None
        ours = wire.encode(result.to_json(version), sort_keys=version >= "1.0.0")
    except CNIError as error:
        assert error.code == 7  # noqa: PT017 - either this or a result

    assert ours.decode() == ("" if theirs["status"] else theirs["stdout"])


@pytest.mark.parametrize(
    ("version", "subnets"),
    [
        *((v, ["10.0.0.0/24", "fd00::/64"]) for v in ("", "0.1.0", "0.2.0", "0.3.0", "0.3.1")),
        *((v, ["10.0.0.0/24", "10.1.0.0/24", "fd00::/64"]) for v in ("0.4.0", "1.0.0", "1.1.0")),
    ],
)
def test_new_result_alike(
    machine: Machine, golden: Golden, tmp_path: Path, version: str, subnets: list[str]
) -> None:
    """A new result is printed as the same bytes in every version."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 10.0.0.1\nsearch <a> é\noptions x\ndomain d\n")
    ipam: Json = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": RESULT["routes"],
        "resolvConf": str(resolv),
    }

    def stdin(who: str) -> bytes:
        own = {**ipam, "dataDir": str(tmp_path / who)}
        return json.dumps({"cniVersion": version, "name": "net", "ipam": own}).encode()

    theirs = golden.answer(
        f"result in {version!r}",
        lambda: of_reference(machine, "host-local", ENVIRON, stdin("theirs")),
    )
    ours = of_ours(machine, "host-local", ENVIRON, stdin("ours"))

    assert '"code"' not in theirs["stdout"]
    assert ours.stdout.decode() == theirs["stdout"]
