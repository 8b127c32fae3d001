"""The frozen program: it does what the sources do, in any surroundings."""

from __future__ import annotations

import ast
import errno
import json
import marshal
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from cni_common.kernel.netlink import NetlinkError
from cni_common.serve.protocol import _reason
from cni_common.spec.errors import CNIError
from cni_common.spec.names import VERSION
from deploy import freeze
from deploy.frozen.rewrite import OURS, rewrite
from deploy.interpreter.place import extension_modules, is_own
from plugins import TYPES
from tests.faults.inject import Injection, Injector
from tests.machine import CNI_BIN, ROOT, Machine, error_of
from tests.unit.test_architecture import ENTRIES, Entry, below, refused_add
from tests.waits import GENEROUS, wait_until

pytestmark = pytest.mark.timeout(300)  # the first test may have to wait for the build


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


def test_a_visit_to_a_container_is_of_the_calling_thread(
    dist: Path, machine: Machine, tmp_path: Path
) -> None:
    """It enters its own namespace, the container's and its own again: the bundle has `_setns`."""
    container = machine.container()
    own, inside = (
        machine.command(netns, "readlink", "/proc/self/ns/net").strip()
        for netns in (machine.host, container)
    )
    config = {"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}
    injector = Injector(tmp_path)
    environ = machine.environ("ADD", container, ifname="lo")
    entered = []
    for number in range(1, 5):
        injector.arm(Injection(number, errno.EPERM))
        words = [str(word) for word in injector.command(dist / "loopback")]
        machine.try_command(machine.host, *words, stdin=json.dumps(config), env=environ)
        entered.append(injector.what)

    assert entered[:3] == [f"setns {own}", f"setns {inside}", f"setns {own}"]
    assert entered[3].startswith("send")


def _call_while_removed(
    machine: Machine, dist: Path, place: Path, environ: dict[str, str], config: str
) -> tuple[int, str, str]:
    """Have a copy of the bundle called and removed; return status, output and what it says."""
    shutil.copytree(dist, place)
    with subprocess.Popen(
        ["nsenter", f"--net={machine.host}", place / "bridge"],
        env={**environ, "CNI_PATH": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as called:
        process = Path(f"/proc/{called.pid}")
        wait_until(lambda: (process / "exe").readlink().name == "pycni", "it does not start")
        wait_until(lambda: "pipe" in (process / "wchan").read_text(), "it does not read stdin")
        shutil.rmtree(place / ".pycni")
        printed, said = called.communicate(config, timeout=GENEROUS)
        return called.returncode, printed, said


@pytest.mark.parametrize(
    ("keys", "by_snapshot", "without"), [({}, 0, 11), ({"mtu": "high"}, 11, 11), (None, 6, 11)]
)
def test_a_bundle_that_is_removed_during_an_add(
    dist: Path,
    machine: Machine,
    tmp_path: Path,
    keys: dict[str, Any] | None,
    by_snapshot: int,
    without: int,
) -> None:
    """What needs no more modules is done, as most is by a snapshot; else the answer says why."""
    config = "{" if keys is None else json.dumps(machine.network(**keys))
    environ = machine.environ("ADD", machine.container())

    status, printed, said = _call_while_removed(machine, dist, tmp_path / "bin", environ, config)

    code = json.loads(printed).get("code", 0)
    assert code == (by_snapshot if [*dist.glob(".pycni/*/lib/snapshot")] else without)
    assert (status, said) == (min(code, 1), "")


def test_a_bundle_that_is_removed_during_a_del(
    dist: Path, machine: Machine, tmp_path: Path
) -> None:
    """A DEL that does all but what it has no module for says so, and can be repeated."""
    container = machine.container()
    config = machine.network(ipMasq=True, ipMasqBackend="iptables")
    assert machine.execute(dist / "bridge", "ADD", config, container).returncode == 0
    environ = machine.environ("DEL", container)

    answer = _call_while_removed(machine, dist, tmp_path / "bin", environ, json.dumps(config))

    assert (answer[0], answer[2]) == (1, "")
    assert json.loads(answer[1])["code"] == 11
    assert machine.execute(dist / "bridge", "DEL", config, container).returncode == 0
    assert machine.link(container, "eth0") is None


@pytest.mark.parametrize("what", ["kernel", "disk"])
def test_another_failure_in_a_removed_bundle_keeps_its_words(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Only a module that cannot be imported says that the bundle is gone."""
    monkeypatch.setattr(sys, "_MEIPASS", "/gone/lib", raising=False)
    monkeypatch.setattr(sys, "executable", "/gone/pycni")
    failures = {
        "kernel": NetlinkError(errno.EBUSY, "create 'eth0': busy"),
        "disk": OSError(errno.ENOSPC, "No space left on device", "/run/pycni/attachments/x"),
    }

    assert _reason(failures[what]) is failures[what]
    for lost in (ImportError("json"), OSError(errno.ENOENT, "none", "/gone/lib/other-modules")):
        told = _reason(ExceptionGroup("clean-up", [failures[what], lost]))
        assert isinstance(told, CNIError)
        assert told.code == 11
        assert str(failures[what].strerror) in str(told.__notes__)


# Of the machine the bundle has these libraries, and they are glibc's.
GLIBC = ("ld-linux-x86-64", "libc", "libdl", "libm", "libpthread", "librt", "libutil")
CHANGE_ROOT = """
for name in proc run; do mount --rbind /$name "$0/$name"; done
exec chroot "$0" "$@"
"""


def test_where_there_is_no_python(dist: Path, machine: Machine, tmp_path: Path) -> None:
    """On a machine with the bin directory, glibc and nothing else, an attachment is made."""
    for name in ("proc", "run", "var/lib", "opt/cni"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copytree(dist, tmp_path / "opt/cni/bin")
    programs = [file for file in dist.rglob("*") if file.name == "pycni" or ".so" in file.name]
    listing = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    for library in set(re.findall(r"(/\S+) \(0x", listing)):
        if Path(library).name.partition(".so")[0] in GLIBC:
            (tmp_path / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, tmp_path / library[1:])
    config = machine.network(ipMasq=True)
    config["ipam"]["dataDir"] = "/var/lib/cni/networks"
    container = machine.container()

    def call(command: str) -> subprocess.CompletedProcess[str]:
        environ = machine.environ(command, container, path="/opt/cni/bin")
        words = ["unshare", "--mount", "--", "sh", "-ec", CHANGE_ROOT, str(tmp_path)]
        done = machine.try_command(
            machine.host, *words, "/opt/cni/bin/bridge", stdin=json.dumps(config), env=environ
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    addresses = [ip["address"] for ip in json.loads(call("ADD").stdout)["ips"]]
    assert machine.addresses(container, "eth0") == addresses
    call("DEL")
    assert machine.link(container, "eth0") is None


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
    """The library that explains a wrong configuration is in the bundle with all its files."""
    config = machine.network(**keys)
    expected = machine.execute(CNI_BIN / "bridge", "ADD", config, machine.container())

    done = machine.execute(dist / "bridge", "ADD", config, machine.container())

    assert error_of(done.stdout)["code"] == 7
    assert (done.returncode, done.stdout) == (1, expected.stdout)


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": nope}', '{"a": 1} {}', '{"a": "\\x"}', "[1]", "NaN"]
)
def test_what_is_no_json_is_refused_in_the_same_words(
    dist: Path, machine: Machine, text: str
) -> None:
    """The part of json that words an error is loaded when there is one."""
    done = [
        machine.try_command(
            machine.host,
            str(directory / "host-local"),
            stdin=text,
            env=machine.environ("ADD", "/no/such/netns"),
        )
        for directory in (dist, CNI_BIN)
    ]

    assert error_of(done[0].stdout)["code"] in (6, 7)
    assert (done[0].returncode, done[0].stdout) == (done[1].returncode, done[1].stdout)


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
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ips"]


@pytest.mark.parametrize("name", ["LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT"])
def test_libraries_of_the_runtime_do_not_reach_the_bundle(
    dist: Path, machine: Machine, tmp_path: Path, name: str
) -> None:
    """A runtime's own libraries, as snap has them, may be too old for the bundle, or broken."""
    for library in ("libc.so.6", "libz.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0"):
        (tmp_path / library).write_text("this is no library")
    value = str(tmp_path) if name == "LD_LIBRARY_PATH" else str(tmp_path / "libz.so.1")
    environ = machine.environ("ADD", machine.container(), path=str(dist))

    done = machine.try_command(
        machine.host,
        *("env", f"{name}={value}", str(dist / "bridge")),
        stdin=json.dumps(machine.network()),
        env=environ,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "extra",
    [{}, {"LD_LIBRARY_PATH": "/nowhere", "LD_PRELOAD": "", "LD_AUDIT": ""}],
    ids=["none", "set"],
)
def test_a_delegate_gets_the_environment_untouched(
    dist: Path, machine: Machine, tmp_path: Path, extra: dict[str, str]
) -> None:
    """The bundle adds nothing to the environment: LD_LIBRARY_PATH would steer other programs."""
    (tmp_path / "record").write_text(
        f"#!/bin/sh\ncp /proc/self/environ {tmp_path}/environ-$CNI_COMMAND\n"
        'echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]}\'\n'
    )
    (tmp_path / "record").chmod(0o755)
    path = f"{tmp_path}:{dist}"
    environ = {**machine.environ("ADD", machine.container(), path=path), **extra}

    done = machine.try_command(
        machine.host,
        str(dist / "bridge"),
        stdin=json.dumps(machine.network(ipam={"type": "record"})),
        env=environ,
    )

    entries = (tmp_path / "environ-ADD").read_text().rstrip("\0").split("\0")
    given = dict(entry.split("=", 1) for entry in entries)
    given.pop("PWD", None)  # the shell's
    assert done.returncode == 0, done.stdout
    assert given == environ


def test_a_broken_bundle_still_answers(dist: Path, machine: Machine, tmp_path: Path) -> None:
    """When a part of the bundle is gone, the runtime gets a CNI error object all the same."""
    copy = tmp_path / "copy"
    shutil.copytree(dist, copy)
    file = _without_snapshot(copy)
    index, code = _modules(file)
    del index["cni_common.spec.errors"]
    _write_modules(file, index, code)

    done = machine.execute(copy / "bridge", "ADD", machine.network(), machine.container())

    assert done.returncode == 1
    assert error_of(done.stdout)["code"] == 999
    assert "ModuleNotFoundError" in done.stderr


# --- what it loads ---

# Beside the modules of the suite, which ENTRIES has, and those that the interpreter begins with.
_ABOUT = {"_functools", "ipaddress", "standin_functools"}
_SERVING = _ABOUT | {
    *("_json", "errno", "fcntl", "standin_dataclasses", "standin_json", "standin_signal"),
}
_NETLINK = {"_socket", "_struct", "standin_socket", "struct"}
_NFT = _NETLINK | {"itertools"}
LIBRARIES = {
    "about": _ABOUT,
    "VERSION": set[str](),
    "dhcp refuses an ADD": _SERVING | {"_socket", "standin_socket"},
    "host-local refuses an ADD": _SERVING | {"_struct", "struct"},
    "bridge refuses an ADD": _SERVING | _NFT,
    "loopback refuses an ADD": _SERVING,
    "firewall refuses an ADD": _SERVING | _NFT,
    "portmap refuses an ADD": _SERVING | _NFT,
    "ptp refuses an ADD": _SERVING | _NFT,
    "static refuses an ADD": _SERVING,
    "bandwidth refuses an ADD": _SERVING,
    "tuning refuses an ADD": _SERVING | _NETLINK,
}
_TELLING = """
import os, sys
before = set(sys.modules)
from cni_common.serve.main import main
from plugins import load

def run():
    status = main(load)
    # The bootloader sets this when it starts itself again; the launcher spares it that.
    if b"_PYI_LINUX_PROCESS_NAME" in open("/proc/self/environ", "rb").read():
        os.write(2, b"started twice ")
    os.write(2, " ".join(["loaded:", *(set(sys.modules) - before)]).encode())
    return status
"""


@pytest.fixture(scope="session")
def telling(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with another plugins/__main__.py, which says what has been loaded."""
    copy = tmp_path_factory.mktemp("telling") / "bin"
    shutil.copytree(dist, copy)
    file = _without_snapshot(copy)
    index, code = _modules(file)
    told = marshal.dumps(compile(_TELLING, "telling", "exec"))
    index["plugins.__main__"] = (len(code), len(told), False)
    _write_modules(file, index, code + told)
    return copy


def _without_snapshot(bin_dir: Path) -> Path:
    """Return the file with the modules, which each call loads from now on."""
    file = next(bin_dir.glob(".pycni/*/lib/modules"))
    file.with_name("snapshot").unlink(missing_ok=True)  # of a Python of our own
    return file


Index = dict[str, tuple[int, int, bool]]


def _modules(file: Path) -> tuple[Index, bytes]:
    """Return index and code of what deploy/frozen/pycni.spec writes."""
    data = file.read_bytes()
    size = int.from_bytes(data[:4], "little")
    return marshal.loads(data[4 : 4 + size]), data[4 + size :]


def _write_modules(file: Path, index: Index, code: bytes) -> None:
    head = marshal.dumps(index)
    file.write_bytes(len(head).to_bytes(4, "little") + head + code)


def _loaded_by(telling: Path, machine: Machine, entry: Entry) -> set[str]:
    """Return what a call of the frozen program has loaded of the bundle."""
    environ = {**machine.environ(entry.command, "/no/such/netns"), "CNI_PATH": "/no/such/directory"}

    done = subprocess.run(
        [str(telling / entry.plugin)],
        input=json.dumps({"cniVersion": "1.1.0", "name": "net", **entry.config}),
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "started twice" not in done.stderr
    return set(done.stderr.partition("loaded: ")[2].split())


@pytest.mark.parametrize("name", ENTRIES)
def test_each_entry_loads_what_is_written_here(telling: Path, machine: Machine, name: str) -> None:
    """The modules that a start loads are its cost; VERSION needs none of the bundle."""
    entry = ENTRIES[name]

    loaded = _loaded_by(telling, machine, entry)

    ours = {one for one in loaded if one.partition(".")[0] in ("cni_common", "plugins")}
    # start.py has loaded it before where Python has no setns of its own (3.11).
    assert loaded - ours - {"_setns"} == LIBRARIES[name]
    others = _modules(next(telling.glob(".pycni/*/lib/other-modules")))[0]
    assert "pyroute2" in others
    assert loaded.isdisjoint(others)
    if name != "VERSION":
        assert below("cni_common", ours) == entry.common
        assert below("plugins", ours) == entry.plugins


@pytest.mark.parametrize("plugin", TYPES)
def test_no_plugin_loads_more(telling: Path, machine: Machine, plugin: str) -> None:
    """A refused ADD of any plugin, also of one without an entry, loads no more than this."""
    loaded = _loaded_by(telling, machine, refused_add(plugin))

    ours = {one for one in loaded if one.partition(".")[0] in ("cni_common", "plugins")}
    assert plugin.replace("-", "_") in below("plugins", ours)
    assert loaded - ours - {"_setns"} <= _SERVING | _NFT


# --- how it is made ---


def test_the_build_spares_what_it_did_not_make(tmp_path: Path) -> None:
    """A directory with other files, as an installation may have, is not replaced."""
    (tmp_path / "cilium-cni").touch()

    assert freeze.main([str(tmp_path)]) == 1

    assert [path.name for path in tmp_path.iterdir()] == ["cilium-cni"]


def test_the_bundle_is_small(dist: Path) -> None:
    """Only compiled modules, libraries and data lie in it, and no more than are needed."""
    files = [path for path in dist.rglob("*") if path.is_file()]

    assert {".py", ".a", ".h"}.isdisjoint(path.suffix for path in files)
    sizes = {path: path.stat().st_size for path in files if path.parent != dist}
    snapshot = sum(size for path, size in sizes.items() if path.name == "snapshot")
    assert snapshot < 10 << 20
    assert sum(sizes.values()) - snapshot < 19 << 20


def test_no_library_is_looked_for_outside(dist: Path) -> None:
    """Nothing of the build machine's directories is left in what is loaded."""
    libraries = list(dist.glob(".pycni/*/lib/**/*.so*"))

    done = subprocess.run(
        ["readelf", "-dW", *libraries], capture_output=True, text=True, timeout=60, check=True
    )

    paths = set(re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", done.stdout))
    # The build of Python decides which modules are files of their own.
    names = {re.split(r"[.\d]", path.name)[0] for path in libraries}
    assert "rpds" in names
    assert is_own(next((dist / ".pycni").iterdir())) or {"_setns", "libpython"} <= names
    assert paths <= {"$ORIGIN"}


def test_pycni_says_what_it_is(dist: Path) -> None:
    """`pycni version` names the build and the directories that are in use."""
    bundle = next((dist / ".pycni").iterdir())

    done = subprocess.run(
        [str(dist / "pycni"), "version"], capture_output=True, text=True, timeout=60, check=True
    )

    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["version"] == VERSION
    assert rows["build"] == bundle.name
    assert bundle.name.startswith(f"{VERSION}-")
    assert (rows["plugins"], rows["bundle"]) == (str(dist), str(bundle))


@pytest.mark.parametrize(
    "words",
    [
        *(["leases"], ["audit"], ["explain", "c1"], ["explain", "--kernel", "c1"]),
        ["reclaim", "--dry-run"],
    ],
    ids=" ".join,
)
@pytest.mark.without_engine("the commands know nothing of it")
def test_the_operators_commands_are_in_it(dist: Path, machine: Machine, words: list[str]) -> None:
    """Each says what it says from the sources: as text, as JSON and, in colour, on a terminal."""
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(ipMasq=True, macspoofchk=True), container)
    lease = Path(machine.data_dir, machine.name, "10.9.0.77")
    lease.write_bytes("Behälter世\r\neth0".encode())
    os.utime(lease, (0, 0))
    places = ["--any-netns", "--state-dir", machine.state_dir, "--data-dir", machine.data_dir]
    said = [
        [
            machine.try_command(machine.host, str(directory / "pycni"), *words, *places, *form)
            for form in ([], ["--json"])
        ]
        for directory in (dist, CNI_BIN)
    ]
    coloured = _on_terminal(machine.host, [str(dist / "pycni"), *words, *places])

    assert [(o.returncode, o.stdout) for o in said[0]] == [
        (o.returncode, o.stdout) for o in said[1]
    ]
    assert all(done.stdout and not done.stderr for done in said[0])
    assert "\x1b[" in coloured
    assert "Traceback" not in coloured
    gone = machine.try_command(machine.host, str(dist / "pycni"), "reclaim", *places)
    assert (gone.returncode, gone.stdout.splitlines()[0].startswith("removed: 1")) == (0, True)
    assert machine.leases() == ["10.9.0.2"]


@pytest.mark.without_engine("the commands know nothing of it")
def test_the_views_are_in_it(dist: Path, machine: Machine, tmp_path: Path) -> None:
    """A picture is as from the sources; a page of a container, and an archive, are made."""
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(ipMasq=True), container)
    places = ["--any-netns", "--state-dir", machine.state_dir, "--data-dir", machine.data_dir]

    def said(directory: Path, *words: str) -> str:
        done = machine.try_command(machine.host, str(directory / "pycni"), *words, *places)
        assert (done.returncode, done.stderr) == (0, ""), words
        return done.stdout

    for form in ([], ["--svg", "-"], ["--dot"], ["--mermaid"], ["--json"]):
        assert said(dist, "topology", *form) == said(CNI_BIN, "topology", *form)
    assert "\nlistening sockets\n" not in said(dist, "inspect", "c1")
    found = json.loads(said(dist, "inspect", "c1", "--json"))
    assert (found["unread"], found["attachments"][0]["ifname"]) == ([], "eth0")
    archive = tmp_path / "report.zip"
    said(dist, "support", "-o", str(archive))
    with ZipFile(archive) as opened:
        assert "10.9.0.2" in opened.read("pycni-support/verbs/leases.txt").decode()


@pytest.mark.parametrize(
    "words",
    [
        ["lint", str(ROOT / "conf")],
        ["lint", "--format", "sarif", str(ROOT / "conf")],
        ["lint", "--node", "--path", str(CNI_BIN), str(ROOT / "conf/20-ipv4.conflist")],
        ["plan", str(ROOT / "conf/55-portmap.conflist")],
        ["plan", "--against-node", str(ROOT / "conf/55-portmap.conflist")],
        ["doctor", "--any-netns", "--path", str(CNI_BIN), str(ROOT / "conf")],
    ],
    ids=lambda words: " ".join(words[:2]),
)
@pytest.mark.without_engine("the commands know nothing of it")
def test_lint_plan_and_doctor_are_in_it(dist: Path, machine: Machine, words: list[str]) -> None:
    """They end as from the sources, as text and on a terminal."""
    said = [
        machine.try_command(machine.host, str(directory / "pycni"), *words)
        for directory in (dist, CNI_BIN)
    ]
    coloured = _on_terminal(machine.host, [str(dist / "pycni"), *words])

    assert (said[0].returncode, said[0].stderr) == (said[1].returncode, said[1].stderr)
    assert said[0].stdout.splitlines()[:1] == said[1].stdout.splitlines()[:1] != []
    assert "Traceback" not in coloured


def _on_terminal(netns: str, words: list[str]) -> str:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["nsenter", f"--net={netns}", *words],
        stdout=theirs,
        stderr=theirs,
        env={"PATH": "/usr/bin:/bin", "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            output += chunk
    except OSError:  # EIO: the other side has closed it
        pass
    finally:
        os.close(ours)
    process.wait(timeout=60)
    return output.decode()


def test_all_that_the_suite_imports_is_in_it(dist: Path) -> None:
    """No import of any function fails because the build left a module out."""
    library = next(dist.glob(".pycni/*/lib"))
    modules = _modules(library / "modules")[0] | _modules(library / "other-modules")[0]
    there = {path.name.partition(".")[0] for path in library.iterdir()}
    there |= {name.partition(".")[0] for name in modules}
    there |= {path.name.partition(".")[0] for path in library.glob("*/lib-dynload/*")}
    there |= set(sys.builtin_module_names)
    if is_own(library.parent):
        there |= {"_setns", *extension_modules()}

    wanted = set()
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            place = path.relative_to(ROOT).with_suffix("")
            assert ".".join(place.parts).removesuffix(".__init__") in modules
            tree = rewrite(package, path.read_bytes())
            for node in ast.walk(tree):
                match node:
                    case ast.Import(names=names):
                        wanted |= {alias.name.partition(".")[0] for alias in names}
                    case ast.ImportFrom(module=str(module)):
                        wanted.add(module.partition(".")[0])

    assert wanted - there == set()
