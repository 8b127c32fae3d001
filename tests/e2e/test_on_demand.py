"""The engine that a call leaves behind: which calls may, its properties, and its end."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cni_common.spec.names import VERSION
from tests.e2e.node import PATH, Done, Node, network, node_with
from tests.e2e.upgrades import CONFIG, Clients, install, uninstall, version_of_engine
from tests.faults.inject import Injection, Injector
from tests.machine import DIST
from tests.other_build import OTHER_VERSION
from tests.scope import ALL, one_in
from tests.waits import longer_if_busy, wait_until

LOOPBACK = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
STATE = {"engine.lock", "engine.log", "engine.on-demand", "engine.sock"}
LOCK = "/run/pycni/engine.on-demand"
OTHERS = {"attachments", "trace"}  # below /run/pycni, of the calls
MEMORY_MIB_MAX = 40e6 / 2**20
MOMENT = 0.5  # seconds in which an engine would come: a call starts it before its own end


@pytest.fixture
def host() -> Iterator[Node]:
    """A node without an engine."""
    with node_with(DIST) as node:
        yield node


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in which calls leave engines behind, for ten minutes."""
    install(DIST, tmp_path / "bin", "on-demand")
    return tmp_path / "bin"


def call(node: Node, place: Path, *before: str, netns: str = "/run/netns/c1") -> Done:
    """Call loopback, by the words in front of it if there are any; it must succeed."""
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "lo"}
    environ |= {"CNI_NETNS": netns, "CNI_PATH": str(place)}
    if not node.path(netns).exists():
        node.container(Path(netns).name)
    done = node.run(*before, place / "loopback", stdin=json.dumps(LOOPBACK), env=environ)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done


def processes(node: Node) -> dict[int, int]:
    """Return the processes of engines on demand on the node, with the parent of each."""
    found = {}
    for line in node.command("ps", "-eo", "pid=,ppid=,args=").splitlines():
        pid, parent, words = line.split(maxsplit=2)
        if words.endswith("pycni engine --on-demand"):
            found[int(pid)] = int(parent)
    return found


def supervisors(node: Node) -> list[int]:
    """Return the engines on demand that run on the node."""
    found = processes(node)
    return [pid for pid, parent in found.items() if parent not in found]


def status(node: Node, place: Path) -> Mapping[str, str]:
    """Return what `pycni engine --status` says, {} when no engine serves."""
    done = node.run(place / "pycni", "engine", "--status")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert done.stderr == ""
    assert (rows.get("engine") == "none serves") == (done.returncode == 1)
    return {} if done.returncode else rows


def engine(node: Node, place: Path) -> int:
    """Return the process id of the engine once one serves."""
    wait_until(lambda: status(node, place), "no engine serves")
    return int(status(node, place)["pid"])


def have_ended(node: Node) -> bool:
    """Tell whether no engine on demand runs, and none that ends has the lock still.

    A process that ends has no arguments in ps before it closes its files, and a call beside it
    leaves no engine.
    """
    if processes(node):
        return False
    if not node.path(LOCK).exists():
        return True
    return node.run("flock", "--nonblock", LOCK, "true").returncode == 0


def none_comes(node: Node) -> bool:
    """Tell whether no engine is left behind in the moments to come."""
    came = threading.Event()
    came.wait(longer_if_busy(MOMENT))
    return not processes(node)


# --- the engine that was left behind ---


def test_the_first_call_leaves_an_engine(host: Node, place: Path, tmp_path: Path) -> None:
    """Later calls are served by it, and it tells about itself."""
    call(host, place)
    pid = engine(host, place)

    served = host.execute("bridge", "ADD", CONFIG, "/run/netns/c1", bin_dir=str(place))
    wait_until(lambda: status(host, place)["requests"] == "1", "requests are not counted")
    rows = status(host, place)
    version = host.command(str(place / "pycni"), "version")

    assert served.returncode == 0, served.stdout
    assert version_of_engine(host, place / "bridge", tmp_path / "alone") == VERSION
    assert (rows["choice"], rows["pid"]) == ("on-demand", str(pid))
    assert rows["build"] == next((place / ".pycni").glob("*/pycni")).parent.name
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", rows["since"])
    assert int(rows["workers"]) == len(processes(host)) - 1
    assert f"on-demand: build {rows['build']}, pid {pid}, since {rows['since']}" in version


def _memory(node: Node, place: Path) -> float:
    """Return the memory of all processes of the engine, MiB."""
    return float(status(node, place)["memory"].removesuffix(" MiB"))


def test_it_needs_little_memory(host: Node, place: Path) -> None:
    """All its processes together have less than 40 MB; workers that have served are replaced."""
    call(host, place)
    pid = engine(host, place)
    netns = [host.container(f"m{number}") for number in range(16)]
    for command in ("ADD", "DEL"):
        for number, path in enumerate(netns):
            done = host.execute(
                "bridge", command, CONFIG, path, containerid=f"m{number}", bin_dir=str(place)
            )
            assert done.returncode == 0, done.stdout

    busy, workers = _memory(host, place), set(processes(host))
    wait_until(lambda: set(processes(host)) != workers, "the workers stay")
    wait_until(lambda: _memory(host, place) < busy, "new workers have as much memory as old ones")

    assert int(status(host, place)["pid"]) == pid
    assert 1 < busy < MEMORY_MIB_MAX


def limits_of(node: Node, pid: int) -> dict[str, str]:
    """Return the soft limits of a process, and its processors."""
    rows = re.findall(r"(?m)^(Max .+?)  +(\S+)", node.path(f"/proc/{pid}/limits").read_text())
    return {**dict(rows), "processors": node.command("taskset", "-pc", str(pid)).split(": ")[1]}


def limits_of_the_first(node: Node) -> dict[str, str]:
    """Return those of process 1, with the descriptors that are usual."""
    return limits_of(node, 1) | {"Max open files": "1024"}


def test_it_belongs_to_nobody(host: Node, place: Path) -> None:
    """It has nothing of its caller but the OOM score: no file, directory, session or limit."""
    host.path("/run/held").mkdir()
    script = "cd /run/held; exec 9</etc/hostname 3</etc/passwd; echo 321 >/proc/self/oom_score_adj"

    few = ("taskset", "-c", "0", "prlimit", "--fsize=65536:", "--nofile=99:9999", "--cpu=9:")

    call(host, place, "nice", "-n", "7", *few, "sh", "-c", f'{script}; exec "$@"', "sh")
    pid = engine(host, place)

    directory = f"/proc/{pid}"
    files = host.command("sh", "-c", f"ls -l {directory}/fd | sed -n 's/.* -> //p'").split("\n")
    stat = host.path(f"{directory}/stat").read_text().rpartition(")")[2].split()
    assert not any(name in ("/etc/hostname", "/etc/passwd") for name in files)
    for fd in range(3):
        assert host.command("readlink", f"{directory}/fd/{fd}") == "/dev/null\n"
    assert host.command("readlink", f"{directory}/cwd") == "/\n"
    assert int(stat[3]) == pid  # it leads its session
    assert stat[16] == "0"  # nice
    assert limits_of(host, pid) == limits_of_the_first(host)
    assert host.path(f"{directory}/oom_score_adj").read_text() == "321\n"
    ignored = int(
        re.findall(r"SigIgn:\s(\w+)", host.path(f"{directory}/status").read_text())[0], 16
    )
    assert not ignored & (1 << signal.SIGTERM - 1 | 1 << signal.SIGHUP - 1)


def test_one_of_many_calls_leaves_it(host: Node, place: Path) -> None:
    """However many calls find no engine at a time, there is one."""
    netns = [f"/run/netns/n{number}" for number in range(16)]
    for path in netns:
        host.container(Path(path).name)
    threads = [
        threading.Thread(target=call, args=(host, place), kwargs={"netns": n}) for n in netns
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    pid = engine(host, place)
    assert supervisors(host) == [pid]
    assert {path.name for path in host.path("/run/pycni").iterdir()} - OTHERS <= STATE


def test_it_ends_when_it_is_idle(host: Node, place: Path) -> None:
    """After the time without a request it goes, and its socket; the next call leaves another."""
    install(DIST, place, "on-demand:1")
    call(host, place)
    first = engine(host, place)

    wait_until(lambda: have_ended(host), "the engine stays")

    assert "engine: there was no request for 1 s" in host.path("/run/pycni/engine.log").read_text()
    assert not host.path("/run/pycni/engine.sock").exists()
    call(host, place)
    assert engine(host, place) != first


def test_an_engine_that_was_started_stays(host: Node, place: Path) -> None:
    """An engine on demand neither takes the place of another one nor comes beside it."""
    host.start_engine(wrap=lambda *_words: (place / "pycni", "engine"))
    pid = engine(host, place)

    done = host.run(place / "pycni", "engine", "--on-demand")
    call(host, place)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pycni engine: another engine serves there '/run/pycni/engine.sock'\n"
    assert engine(host, place) == pid
    assert none_comes(host)


def test_a_started_engine_takes_its_place(host: Node, place: Path) -> None:
    """An engine started by hand serves: the one on demand ends, and no call fails."""
    with Clients(host, place) as clients:
        clients.wait_for_more()
        engine(host, place)
        host.start_engine(wrap=lambda *_words: (place / "pycni", "engine"))
        wait_until(lambda: have_ended(host), "the engine on demand stays")
        clients.wait_for_more()

    assert clients.failures == []
    assert host.traces("br0") == {}


def test_cnitool(tmp_path: Path) -> None:
    """Of a list that cnitool runs, the first plugin leaves the engine that serves the others."""
    place = tmp_path / "installed"
    install(DIST, place, "on-demand")
    with node_with(place) as node:
        node.configure({**network("1.0.0", ["10.9.0.0/24"]), "name": "net1"})
        netns = node.container()
        first = node.ok("add", "net1", netns)
        engine(node, place)
        (program,) = (place / ".pycni").glob("*/pycni")
        program.rename(program.with_name("away"))  # a launcher that is not served fails
        second = node.ok("add", "net1", node.container("c2"))
        for name in ("c1", "c2"):
            node.ok("del", "net1", f"/run/netns/{name}")

        assert {**first, "ips": []}.keys() == {**second, "ips": []}.keys()
        assert node.traces("br0") == {}


# --- where none is left ---


def test_it_ends_when_the_choice_is_another_time(host: Node, place: Path) -> None:
    """Its time without a request is that of the choice by which it was left behind."""
    call(host, place)
    pid = engine(host, place)

    install(DIST, place, "on-demand:60")

    wait_until(lambda: pid not in processes(host), "the engine stays")


@pytest.mark.parametrize("choice", ["none", "systemd"])
def test_another_choice(host: Node, place: Path, choice: str) -> None:
    """Then calls leave nothing behind."""
    (place / ".pycni/engine").unlink()
    (place / ".pycni/engine").symlink_to(choice)

    call(host, place)

    assert none_comes(host)
    rows = host.run(place / "pycni", "engine", "--status")
    assert (rows.returncode, rows.stdout) == (1, f"choice   {choice}\nengine   none serves\n")


def test_a_bin_directory_that_was_not_installed(host: Node) -> None:
    """The result of `make dist` leaves no engine behind, wherever it is used from."""
    call(host, DIST)

    assert none_comes(host)


SANDBOXES = {
    "network": ["unshare", "--net"],
    "mounts": ["unshare", "--mount"],
    "both": ["unshare", "--net", "--mount"],
    "processes of others": ["unshare", "--net", "--mount", "--pid", "--fork"],
    "named": ["ip", "netns", "exec", "c2"],
    "root": ["unshare", "--root=/run/root"],
    "capabilities": ["setpriv", "--bounding-set=-sys_time"],
    "no new privileges": ["setpriv", "--no-new-privs"],
}


OTHER_ROOT = """
mkdir /run/root
mount -t tmpfs tmpfs /run/root
for name in /*; do
    if [ -L "$name" ]; then cp -P "$name" /run/root
    elif [ -d "$name" ]; then mkdir "/run/root$name"; mount --rbind "$name" "/run/root$name"
    fi
done
"""


@pytest.mark.parametrize("kind", SANDBOXES)
def test_none_in_a_sandbox(host: Node, place: Path, kind: str) -> None:
    """No engine keeps a program's namespaces alive, or has less rights than a caller."""
    host.container("c2")
    host.command("sh", "-ec", OTHER_ROOT)

    call(host, place, *SANDBOXES[kind])

    assert none_comes(host)


def test_limits_that_cannot_be_raised(host: Node, place: Path) -> None:
    """An engine has the limits of process 1, or none is left: it would fail other callers."""
    call(host, place, "prlimit", "--nofile=99:99")

    if "sys_resource" in host.command("setpriv", "--dump"):
        assert limits_of(host, engine(host, place)) == limits_of_the_first(host)
    else:
        assert none_comes(host)


# Process 1 of a container, which calls a plugin and then ends, or waits for all its children.
NODE = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "python3", "-c")
FIRST = """
import os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", "/run/pycni"], check=True)
other = subprocess.Popen(["sleep", "600"], start_new_session=True)  # until all was looked at
subprocess.run(sys.argv[2:], check=True)
left = [open(f"/proc/{pid}/cmdline").read() for pid in os.listdir("/proc") if pid.isdigit()]
print(any(text.endswith("pycni\\0engine\\0--on-demand\\0") for text in left))
other.kill()
try:
    while sys.argv[1] == "waits":
        os.wait()
except ChildProcessError:
    print("alone")
"""


@pytest.mark.parametrize("process", ["ends", "waits"])
def test_it_ends_with_a_container_that_is_a_node(host: Node, place: Path, process: str) -> None:
    """It ends with process 1, and where that waits for it, with the last process beside them."""
    host.command("mkdir", "-m", "700", "/run/pycni")

    done = call(host, place, *NODE, FIRST, process)

    assert done.stdout.endswith("}True\nalone\n" if process == "waits" else "}True\n")
    assert processes(host) == {}


def test_it_ends_when_it_is_alone(host: Node, place: Path) -> None:
    """The last other process of its network namespace ends, and at once it ends too."""
    start = (
        "sleep 300 </dev/null >/dev/null 2>&1 & echo $!;"
        ' setsid "$1" engine --on-demand </dev/null >/dev/null 2>&1 &'
    )
    words = ("unshare", "--net", "sh", "-c", start, "sh", str(place / "pycni"))
    (company,) = host.run(*words).stdout.split()
    wait_until(lambda: host.path("/run/pycni/engine.sock").exists(), "no engine serves")
    assert processes(host)

    host.command("kill", "-KILL", company)

    wait_until(lambda: have_ended(host), "the engine stays")
    log = host.path("/run/pycni/engine.log").read_text()
    assert "engine: no other process is in its network namespace" in log


def test_a_directory_that_cannot_be_written(host: Node, place: Path) -> None:
    """A call is served as without an engine, and leaves none."""
    host.container()
    host.command("mount", "-o", "remount,ro", "/run")

    call(host, place)

    assert none_comes(host)


# --- builds ---


@pytest.mark.timeout(600)
def test_an_upgrade(host: Node, place: Path, other_dist: Path, tmp_path: Path) -> None:
    """The engine of the build before ends, a call leaves one of the new build, and none fails."""
    with Clients(host, place) as clients:
        clients.wait_for_more()
        old = engine(host, place)
        install(other_dist, place, "")
        assert clients.wait_for_more() == {OTHER_VERSION}
        wait_until(lambda: old not in processes(host), "the engine of the old build stays")
        clients.wait_for_more()
        new = engine(host, place)
        clients.wait_for_more()

    assert clients.failures == []
    assert supervisors(host) == [new]
    assert version_of_engine(host, place / "bridge", tmp_path / "alone") == OTHER_VERSION


@pytest.mark.parametrize("how", ["superseded", "removed", "revoked"])
def test_replaced_by_other_means(host: Node, place: Path, how: str) -> None:
    """A package, or a person, replaces the build without a word: the engine sees it and ends."""
    install(DIST, place, "on-demand:5")
    call(host, place)
    engine(host, place)
    (program,) = (place / ".pycni").glob("*/pycni")

    if how == "superseded":
        (program.parent / "superseded").touch()
    elif how == "removed":
        program.unlink()
    else:
        (place / ".pycni/engine").unlink()

    wait_until(lambda: have_ended(host), "the engine stays")
    log = host.path("/run/pycni/engine.log").read_text()
    assert ("the choice is 'none' now" if how == "revoked" else "was replaced or removed") in log


@pytest.mark.parametrize("choice", ["none", "uninstalled"])
def test_it_goes_with_the_installation(host: Node, place: Path, choice: str) -> None:
    """`make uninstall`, and another choice, end it, with no process and no socket left."""
    call(host, place)
    engine(host, place)

    if choice == "none":
        install(DIST, place, choice)
        call(host, place)
    else:
        uninstall(place)

    assert none_comes(host)
    assert not host.path("/run/pycni/engine.sock").exists()


@pytest.mark.timeout(600)
def test_two_builds(host: Node, place: Path, other_dist: Path, tmp_path: Path) -> None:
    """Two directories have one engine, of the first; the other's calls serve themselves."""
    other = tmp_path / "other"
    install(other_dist, other, "on-demand")
    call(host, place)
    pid = engine(host, place)

    for _ in range(3):
        for directory in (other, place):
            for command in ("ADD", "DEL"):
                done = host.execute(
                    "bridge", command, CONFIG, "/run/netns/c1", bin_dir=str(directory)
                )
                assert done.returncode == 0, done.stdout

    assert supervisors(host) == [pid]
    wait_until(lambda: status(host, place)["requests"] == "6", "the other build was served")
    uninstall(other)
    assert supervisors(host) == [pid]


# --- killed ---


FIRST_WAITS = '"$@"; sleep 3; true'


@pytest.mark.timeout(900)
def test_killed_at_each_step(host: Node, place: Path, tmp_path: Path) -> None:
    """Wherever a call or its engine is killed, the next call is served and leaves an engine."""
    install(DIST, place, f"on-demand:{longer_if_busy(1):.0f}")  # seconds in which it is looked at
    injector = Injector(tmp_path)
    netns = host.container()
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "lo", "PATH": PATH}
    environ |= {"CNI_NETNS": netns, "CNI_PATH": str(place)}
    # With a process 1 that has the injector's filter, too, as it has less rights without.
    first = ("/usr/bin/unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", FIRST_WAITS, "sh")
    words = injector.command(*first, place / "loopback")

    def run(at: int) -> str:
        injector.arm(Injection(at))
        host.run(*words, stdin=json.dumps(LOOPBACK), env=environ)  # until its engine has ended
        return injector.what

    run(0)
    calls = injector.calls
    begins = next(at for at, name in enumerate(calls, 1) if "engine.on-demand" in name)
    assert any("engine.sock" in name or "rename" in name for name in calls[begins:])
    steps = range(begins, len(calls) + 1)
    for at in steps if ALL else sorted(map(int, one_in(8, [str(step) for step in steps]))):
        run(at)
        assert processes(host) == {}, calls[at - 1]
        call(host, place)
        serving = engine(host, place)  # first: while a program is replaced, ps has no words of it
        assert supervisors(host) == [serving], calls[at - 1]
        wait_until(lambda: have_ended(host), f"the engine stays after {calls[at - 1]}")
    left = {path.name for path in host.path("/run/pycni").iterdir()} - OTHERS
    assert left <= STATE


def test_a_supervisor_that_is_killed(host: Node, place: Path) -> None:
    """Its workers go with it, and the next call leaves another engine."""
    call(host, place)
    first = engine(host, place)

    host.command("kill", "-KILL", str(first))
    wait_until(lambda: have_ended(host), "the workers stay")
    call(host, place)

    assert engine(host, place) != first
