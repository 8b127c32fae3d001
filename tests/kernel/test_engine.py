"""The engine: the callers that it serves, and its requests when something goes wrong."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cni_common.serve import engine as engine_module
from cni_common.serve.engine import owner_of
from cni_common.serve.status import greeting, supervisor_of
from tests.engines import BUNDLE_STATUS, Engine, launcher_dir, socket_path
from tests.machine import Json, Machine, error_of
from tests.waits import GENEROUS, wait_until

pytestmark = [
    pytest.mark.without_engine(reason="starts engines of its own"),
    pytest.mark.timeout(300),
]


def start(
    machine: Machine,
    command: str,
    config: Json,
    netns: str = "",
    *,
    plugin: str = "bridge",
    enter: tuple[str, ...] = (),
    **keywords: Any,
) -> subprocess.Popen[bytes]:
    """Start a launcher on the machine's host as a runtime does, with `config` on its stdin."""
    containerid = keywords.pop("containerid", "c1")
    environ = machine.environ(command, netns, path=str(launcher_dir()), containerid=containerid)
    environ |= keywords.pop("env", {})
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        ["nsenter", f"--net={machine.host}", *enter, str(launcher_dir() / plugin)],
        env=environ,
        **{**pipes, **keywords},
    )
    if process.stdin:
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
        process.stdin = None
    return process


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Return the exit status of a launcher and what it has printed."""
    stdout, _ = process.communicate(timeout=GENEROUS)
    return process.returncode, stdout


def run(machine: Machine, command: str, config: Json, netns: str = "", **keywords: Any) -> int:
    """Run a launcher to its end and return its exit status."""
    return finish(start(machine, command, config, netns, **keywords))[0]


def add_and_delete(machine: Machine, **keywords: Any) -> tuple[int, int]:
    """Attach a container and detach it by launchers; return their exit statuses."""
    container, config = machine.container(), machine.network()
    added = run(machine, "ADD", config, container, **keywords)
    return added, run(machine, "DEL", config, container, **keywords)


def assert_nothing_left(machine: Machine) -> None:
    """Demand that no attachment is on the machine."""
    assert machine.ports() == []
    assert machine.leases() == []
    assert os.listdir(f"{machine.state_dir}/attachments") == []


@contextmanager
def store_locked(machine: Machine) -> Iterator[Callable[[], None]]:
    """Hold host-local's lock, so that ADD and DEL of the bridge hang half-way; give its release."""
    directory = Path(machine.data_dir, machine.name)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


def idle_descriptors(pid: int) -> int:
    """Return how many files a worker has open that waits for its next request.

    A deletion's thread holds two for the moment that the kernel needs to end.
    """
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/task")) == 1, "a thread of it goes on")
    wait_until(lambda: "epoll" in Path(f"/proc/{pid}/wchan").read_text(), "it does not wait")
    return len(os.listdir(f"/proc/{pid}/fd"))


# --- callers that it serves -------------------------------------------------------------------


def test_a_socket_for_root_alone(machine: Machine) -> None:
    """Only root reaches the socket."""
    machine.start_engine()

    assert socket_path().stat().st_mode & 0o777 == 0o600
    assert socket_path().parent.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("kind", ["net", "mount"])
def test_other_namespaces_are_refused(machine: Machine, kind: str) -> None:
    """A launcher in another network or mount namespace starts its own program: it sees its own."""
    machine.start_engine()

    enter = ("unshare", f"--{kind}")
    done = run(machine, "ADD", machine.network(), machine.container(), enter=enter)

    assert done == BUNDLE_STATUS
    assert_empty(machine)


def test_another_root_is_refused(machine: Machine, tmp_path: Path) -> None:
    """So does one whose root is another directory."""
    machine.start_engine()
    mounts = [tmp_path / str(path)[1:] for path in (Path("/proc"), launcher_dir())]
    for mount in mounts:
        mount.mkdir(parents=True)
        source = Path("/") / mount.relative_to(tmp_path)
        subprocess.run(["mount", "--rbind", source, mount], check=True, timeout=GENEROUS)
    try:
        enter = ("chroot", str(tmp_path))
        done = run(machine, "ADD", machine.network(), machine.container(), enter=enter)
    finally:
        for mount in mounts:
            subprocess.run(["umount", "--lazy", mount], check=True, timeout=GENEROUS)

    assert done == BUNDLE_STATUS
    assert_empty(machine)


def assert_empty(machine: Machine) -> None:
    """Demand that nobody has begun anything."""
    assert machine.ports() == []
    assert not Path(machine.state_dir, "attachments").exists()


def test_other_builds_are_refused(machine: Machine) -> None:
    """A launcher of another build starts its own program."""
    machine.start_engine(build="another")

    assert run(machine, "ADD", machine.network(), machine.container()) == BUNDLE_STATUS


def test_a_namespace_by_descriptor(machine: Machine) -> None:
    """CNI_NETNS is opened by the launcher: a path that only it can resolve is no obstacle."""
    machine.start_engine()
    container = machine.container()
    with open(container, "rb") as file:
        # /proc/self is the launcher here, and would be the worker there.
        path = f"/proc/self/fd/{file.fileno()}"
        process = start(machine, "ADD", machine.network(), path, pass_fds=[file.fileno()])
        status, _ = finish(process)

    assert status == 0
    assert machine.addresses(container, "eth0") == ["10.9.0.2/24"]


def test_what_is_no_namespace(machine: Machine) -> None:
    """CNI_NETNS that leads to something else is refused by code 8, as without an engine."""
    machine.start_engine()

    status, printed = finish(start(machine, "ADD", machine.network(), "/etc/passwd"))

    assert (status, error_of(printed)["code"]) == (1, 8)


def test_working_directory_and_environment(machine: Machine, tmp_path: Path) -> None:
    """A delegate is found relative to the runtime's directory, and gets the runtime's variables."""
    machine.start_engine()
    record = tmp_path / "plugins" / "record"
    record.parent.mkdir()
    record.write_text(
        '#!/bin/sh\nprintf %s "$MARK" >mark\n'
        'echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]}\'\n'
    )
    record.chmod(0o755)
    config = machine.network(ipam={"type": "record"})
    env = {"CNI_PATH": "plugins", "MARK": "from the runtime"}

    process = start(machine, "ADD", config, machine.container(), env=env, cwd=tmp_path)

    assert finish(process)[0] == 0
    assert (tmp_path / "mark").read_text() == "from the runtime"


def test_a_request_without_the_challenge_is_not_served(machine: Machine, tmp_path: Path) -> None:
    """Bytes written before the worker looked at their writer are no request."""
    engine = machine.start_engine(workers=1)
    (worker,) = engine.workers()
    ask = (
        "import os, socket, struct, sys;"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]);"
        "e = os.memfd_create('e'); os.write(e, b'CNI_COMMAND=VERSION');"
        "challenge = s.recv(99)[8:24] if sys.argv[2] == 'right' else s.recv(99)[:16];"
        "socket.send_fds(s, [challenge + struct.pack('<I', 8) + b'loopback'], [0, 1, 2, e]);"
        "print(len(s.recv(9)), file=open(sys.argv[3], 'w'))"
    )
    answers = {}
    for what in ("right", "wrong"):
        answer = tmp_path / what
        words = ("python3", "-c", ask, str(socket_path()), what, str(answer))
        machine.try_command(machine.host, *words)
        answers[what] = answer.read_text() if answer.exists() else ""

    assert answers == {"right": "4\n", "wrong": "0\n"}
    assert engine.workers() == [worker]


@pytest.mark.rotating(2)
@pytest.mark.parametrize(
    "message",
    [b"", b"\x06", struct.pack("<I", 6) + b"bridge", struct.pack("<I", 9) + b"bridge", b"x" * 4096],
    ids=["empty", "short", "no descriptors", "wrong length", "long"],
)
def test_what_no_launcher_sends(machine: Machine, message: bytes) -> None:
    """After any message the worker serves the next launcher and keeps no file."""
    engine = machine.start_engine(workers=1)
    assert add_and_delete(machine) == (0, 0)
    (worker,) = engine.workers()
    before = idle_descriptors(worker)

    send = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "s.connect(sys.argv[1]); challenge = s.recv(99)[8:24];"
        "import os; fds = [os.pipe()[0]] * int(sys.argv[3]);"
        "socket.send_fds(s, [challenge + bytes.fromhex(sys.argv[2])], fds)"
    )
    for count in (0, 1, 4, 5, 9):
        words = ("python3", "-c", send, str(socket_path()), message.hex(), str(count))
        machine.try_command(machine.host, *words)

    assert add_and_delete(machine) == (0, 0)
    assert engine.workers() == [worker]
    wait_until(lambda: idle_descriptors(worker) == before, "it keeps files")


def test_deletions_are_gathered(machine: Machine, tmp_path: Path) -> None:
    """All workers put what they delete into one group, so that one request takes several along."""
    machine.start_engine(workers=4)
    machine.do(machine.host, "ip link add other type veth peer name another")
    config = machine.network()
    attachments = {f"c{number}": machine.container() for number in range(12)}
    for containerid, netns in attachments.items():
        assert run(machine, "ADD", config, netns, containerid=containerid) == 0
    words = ("nsenter", f"--net={machine.host}", "ip", "-o", "monitor", "link")

    def deleted() -> list[str]:
        lines = (tmp_path / "events").read_text().splitlines()
        return [line for line in lines if line.startswith("Deleted") and "veth" in line]

    with (tmp_path / "events").open("w") as events, subprocess.Popen(words, stdout=events) as ip:
        wait_until(lambda: is_subscribed(ip.pid), "it does not listen")
        calls = [
            start(machine, "DEL", config, netns, containerid=containerid)
            for containerid, netns in attachments.items()
        ]
        assert [finish(call)[0] for call in calls] == [0] * len(calls)
        wait_until(lambda: len(deleted()) >= len(attachments), "events are missing")
        ip.terminate()

    groups = {line.partition(" group ")[2].split()[0] for line in deleted() if " group " in line}
    assert len(groups) == 1
    assert int(groups.pop()) >= 1 << 30
    assert sorted(machine.ports()) == ["another", "other"]
    assert machine.leases() == []


def is_subscribed(pid: int) -> bool:
    """Tell whether a process listens to groups of rtnetlink (/proc/PID/net/netlink)."""
    rows = Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]
    return any(int(row.split()[2]) == pid and int(row.split()[3], 16) for row in rows)


def test_no_descriptor_is_kept(machine: Machine) -> None:
    """Requests of every kind, also those that fail, leave a worker with the files it had."""
    engine = machine.start_engine(workers=1)
    config = machine.network(ipMasq=True)
    machine_calls(machine, config)
    before = idle_descriptors(engine.workers()[0])

    for _ in range(5):
        machine_calls(machine, config)

    wait_until(lambda: idle_descriptors(engine.workers()[0]) == before, "it keeps files")


def machine_calls(machine: Machine, config: Json) -> None:
    """Make a call of every kind."""
    container = machine.container()
    assert run(machine, "ADD", config, container) == 0
    assert run(machine, "ADD", config, container) == 1
    assert run(machine, "CHECK", config, container) == 1
    assert run(machine, "STATUS", config) == 0
    assert run(machine, "GC", {**config, "cni.dev/valid-attachments": []}) == 0
    assert run(machine, "ADD", {**config, "mtu": "x"}, container) == 1
    assert run(machine, "DEL", config, container) == 0
    assert run(machine, "DEL", config, "/nowhere") == 0
    machine.forget(container)


# --- requests that cannot end -----------------------------------------------------------------


def test_an_overdue_add_is_taken_back(machine: Machine) -> None:
    """An ADD that hangs ends by the deadline with code 11 and leaves nothing; so does its worker.

    The interrupt may strike between any two instructions, and a worker that lived on could keep
    locks and the runtime's descriptors.
    """
    engine = machine.start_engine(add_seconds=3, workers=1)
    interrupted = engine.workers()

    with store_locked(machine) as release:
        config = machine.network(cniVersion="0.4.0")
        process = start(machine, "ADD", config, machine.container())
        wait_until(machine.ports, "it does not get as far as the veth pair")
        status, printed = finish(process)
        error = error_of(printed)
        release()

    assert (status, error["code"], error["cniVersion"]) == (1, 11, "0.4.0")
    assert "given up after 3 s" in error["msg"]
    assert f"network '{config['name']}'" in error["details"]
    assert_nothing_left(machine)
    wait_until(lambda: engine.workers() not in ([], interrupted), "the worker lives on")


def test_the_limit_of_a_worker_that_was_stopped(machine: Machine) -> None:
    """The time while a worker stood still counts: its alarm comes late, and the limit with it."""
    seconds = 4
    engine = machine.start_engine(add_seconds=seconds, workers=1)
    (worker,) = engine.workers()

    with store_locked(machine) as release:
        process = start(machine, "ADD", machine.network(), machine.container())
        wait_until(machine.ports, "it does not get as far as the veth pair")
        os.kill(worker, signal.SIGSTOP)
        time.sleep(seconds)  # what is tested is that this passes
        os.kill(worker, signal.SIGCONT)
        goes_on = time.monotonic()
        status, printed = finish(process)
        took = time.monotonic() - goes_on
        release()

    assert (status, error_of(printed)["code"]) == (1, 11)
    assert took < seconds  # a limit that began anew takes longer
    assert_nothing_left(machine)


def test_an_undo_that_hangs_as_well(machine: Machine, tmp_path: Path) -> None:
    """When taking back takes too long, too, the worker ends and the runtime hears of that."""
    engine = machine.start_engine(workers=1, add_seconds=1, undo_seconds=1)
    (worker,) = engine.workers()
    (tmp_path / "stuck").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "stuck").chmod(0o755)
    config = machine.network(ipam={"type": "stuck"})
    container = machine.container()
    env = {"CNI_PATH": str(tmp_path)}

    status, printed = finish(start(machine, "ADD", config, container, env=env))

    assert (status, error_of(printed)["code"]) == (1, 11)
    assert "gave no answer" in error_of(printed)["msg"]
    wait_until(lambda: engine.workers() not in ([], [worker]), "no other worker starts")
    (tmp_path / "stuck").write_text("#!/bin/sh\n")
    assert run(machine, "DEL", config, container, env=env) == 0
    assert machine.ports() == []


def test_what_an_overdue_undo_leaves_is_told(machine: Machine, tmp_path: Path) -> None:
    """The error names the steps that could not be taken back."""
    machine.start_engine(add_seconds=3)
    (tmp_path / "odd").write_text("#!/bin/sh\n[ $CNI_COMMAND = ADD ] && exec sleep 30\nexit 1\n")
    (tmp_path / "odd").chmod(0o755)
    config = machine.network(ipam={"type": "odd"})
    env = {"CNI_PATH": str(tmp_path)}

    status, printed = finish(start(machine, "ADD", config, machine.container(), env=env))

    error = error_of(printed)
    assert (status, error["code"]) == (1, 11)
    assert "as far as possible" in error["msg"]
    assert "undo of the ADD of 'odd' failed" in error["details"]


def test_an_overdue_del_can_be_repeated(machine: Machine) -> None:
    """A DEL that hangs ends by the deadline with code 11, and the next one finishes the work."""
    machine.start_engine(other_seconds=3)
    container, config = machine.container(), machine.network()
    assert run(machine, "ADD", config, container) == 0

    with store_locked(machine):
        status, printed = finish(start(machine, "DEL", config, container))

    assert (status, error_of(printed)["code"]) == (1, 11)
    assert run(machine, "DEL", config, container) == 0
    assert_nothing_left(machine)


def test_an_overdue_status_says_why(machine: Machine) -> None:
    """A STATUS that hangs ends by its own deadline: a runtime may hold a lock until it ends."""
    machine.start_engine(status_seconds=1)
    read, write = os.pipe()
    try:
        status, printed = finish(start(machine, "STATUS", {}, machine.container(), stdin=read))
    finally:
        os.close(read)
        os.close(write)

    told = "STATUS was given up after 1 s; a lock, a disk or another program keeps it waiting"
    assert (status, error_of(printed)["msg"]) == (1, told)


def test_an_idle_worker_has_no_file_of_a_request(machine: Machine) -> None:
    """Neither interrupted nor finished calls leave a descriptor or a lock."""
    engine = machine.start_engine(workers=2, add_seconds=1)
    container, config = machine.container(), machine.network()
    with store_locked(machine) as release:
        status, _ = finish(start(machine, "ADD", config, container))
        release()
    assert status == 1
    assert run(machine, "ADD", config, container) == run(machine, "DEL", config, container) == 0

    def left() -> list[str]:
        words = ("memfd:", "/run/netns", "attachments", "indexes", machine.data_dir)
        files = [one for pid in engine.workers() for one in Path(f"/proc/{pid}/fd").iterdir()]
        links = [os.readlink(one) for one in files if one.is_symlink()]
        return [one for one in links if any(word in one for word in words)]

    wait_until(lambda: len(engine.workers()) == 2, "no other worker starts")
    wait_until(lambda: not left(), "something of a request is left")


def test_a_configuration_that_does_not_come(machine: Machine) -> None:
    """A runtime that never ends its configuration gets an error by the deadline."""
    machine.start_engine(add_seconds=1)
    read, write = os.pipe()
    try:
        status, printed = finish(start(machine, "ADD", {}, machine.container(), stdin=read))
    finally:
        os.close(read)
        os.close(write)

    assert (status, error_of(printed)["code"]) == (1, 11)


def waiting(engine: Engine) -> list[int]:
    """Return the workers that wait for launchers."""
    found = []
    for pid in engine.workers():
        with suppress(FileNotFoundError):  # it ends
            if "epoll" in Path(f"/proc/{pid}/wchan").read_text():
                found.append(pid)
    return found


def test_another_worker_serves_where_one_waits(machine: Machine) -> None:
    """Of two workers one serves, which keeps the processor's caches warm, until a request waits."""
    engine = machine.start_engine(workers=4)
    wait_until(lambda: len(waiting(engine)) == 2, "two of four do not wait for launchers")
    config = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}

    with store_locked(machine) as release:
        hanging = [
            start(machine, "ADD", machine.network(), machine.container(), containerid=name)
            for name in ("c1", "c2", "c3")
        ]
        wait_until(lambda: len(machine.ports()) == 3, "two of four serve, whatever they wait for")
        wait_until(lambda: len(waiting(engine)) == 1, "the fourth does not wait for launchers")
        served = run(machine, "ADD", config, machine.container(), plugin="loopback")
        release()
        statuses = [finish(process)[0] for process in hanging]

    assert (served, statuses) == (0, [0, 0, 0])  # the bundle would have another status
    wait_until(lambda: len(waiting(engine)) == 2, "four wait for launchers from now on")


def test_launchers_that_stall_keep_no_turn(machine: Machine) -> None:
    """One that is stopped before its request holds a worker, but others serve meanwhile."""
    engine = machine.start_engine(workers=4)
    wait_until(lambda: len(waiting(engine)) == 2, "two of four do not wait for launchers")
    first = set(waiting(engine))
    stall = (
        "import socket, sys, time;"
        "stalled = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)];"
        "greetings = [(one.connect(sys.argv[1]), one.recv(99)) for one in stalled];"
        "print(len(greetings), flush=True); time.sleep(600)"
    )
    words = ("nsenter", f"--net={machine.host}", "python3", "-c", stall, str(socket_path()))
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"2\n"
        wait_until(
            lambda: len(waiting(engine)) == 2 and first.isdisjoint(waiting(engine)),
            "no other workers wait for launchers",
        )
        assert add_and_delete(machine) == (0, 0)
        process.kill()


def test_one_on_demand_that_lost_its_turn_is_replaced(machine: Machine) -> None:
    """A worker that has served shares less memory than a new one, and the engine stays small."""
    words = ("nsenter", f"--net={machine.host}", "sleep", "infinity")
    with subprocess.Popen(words, start_new_session=True) as company, killing(company):
        # Without a process beside it such an engine ends.
        wait_until(lambda: is_in(company.pid, machine.host), "no process keeps the engine company")
        engine = machine.start_engine(workers=4, on_demand=True, idle_seconds=600.0)
        wait_until(lambda: len(waiting(engine)) == 2, "two of four do not wait for launchers")
        first = set(waiting(engine))

        with store_locked(machine) as release:
            process = start(machine, "ADD", machine.network(), machine.container())
            wait_until(machine.ports, "none of them serves")
            wait_until(lambda: len(waiting(engine)) == 2, "no other one has its turn")
            (serving,) = first - set(waiting(engine))
            assert serving in engine.workers()
            release()
            assert finish(process)[0] == 0

        wait_until(lambda: serving not in engine.workers(), "it lives on without a turn")
        wait_until(lambda: len(engine.workers()) == 4, "no other one takes its place")


@contextmanager
def killing(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a process at the end, whatever happens before."""
    try:
        yield
    finally:
        process.kill()


def is_in(pid: int, netns: str) -> bool:
    """Tell whether a process is in a network namespace."""
    return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat(netns))


def test_one_that_is_killed_leaves_its_turn(machine: Machine) -> None:
    """The lock that says whose turn it is ends with its process."""
    engine = machine.start_engine(workers=2)
    wait_until(lambda: waiting(engine), "none waits for launchers")
    (first,) = waiting(engine)

    os.kill(first, signal.SIGKILL)

    wait_until(lambda: waiting(engine) not in ([], [first]), "no other one waits for launchers")
    assert add_and_delete(machine) == (0, 0)


# --- runtimes that go away --------------------------------------------------------------------


def hang(machine: Machine, command: str, container: str) -> None:
    """Start a launcher and kill it while the engine hangs in its request."""
    process = start(machine, command, machine.network(), container)
    ports = 1 if command == "ADD" else 0
    wait_until(lambda: len(machine.ports()) == ports, "it does not get so far")
    process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def test_an_add_whose_launcher_is_gone(machine: Machine) -> None:
    """A runtime that kills its ADD will not delete what it never heard of: it is taken back."""
    machine.start_engine()

    with store_locked(machine) as release:
        hang(machine, "ADD", machine.container())
        release()
        wait_until(lambda: not machine.ports(), "the attachment is not taken back")

    wait_until(lambda: not os.listdir(f"{machine.state_dir}/attachments"), "the record stays")
    assert_nothing_left(machine)


def test_a_del_whose_launcher_is_gone(machine: Machine) -> None:
    """A runtime that kills its DEL wants it done all the same."""
    machine.start_engine()
    container = machine.container()
    assert run(machine, "ADD", machine.network(), container) == 0

    with store_locked(machine) as release:
        hang(machine, "DEL", container)
        release()
        wait_until(lambda: not machine.leases(), "the address is not freed")

    wait_until(lambda: not os.listdir(f"{machine.state_dir}/attachments"), "the record stays")
    assert_nothing_left(machine)


@pytest.mark.parametrize("kind", ["full disk", "closed pipe"])
def test_a_result_that_cannot_be_written(machine: Machine, kind: str) -> None:
    """An ADD whose result cannot be written to stdout is taken back, and fails."""
    machine.start_engine()
    if kind == "full disk":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)

    status = run(machine, "ADD", machine.network(), machine.container(), stdout=stdout)

    os.close(stdout)
    assert status == 1
    assert_nothing_left(machine)


# --- engines that end -------------------------------------------------------------------------


def test_sigterm_drains(machine: Machine) -> None:
    """Calls at work are finished; later launchers start the frozen program."""
    engine = machine.start_engine()
    container = machine.container()

    with store_locked(machine) as release:
        process = start(machine, "ADD", machine.network(), container)
        wait_until(machine.ports, "it does not get so far")
        engine.tell(signal.SIGTERM)
        wait_until(lambda: not socket_path().exists(), "the socket stays")
        late = run(machine, "ADD", machine.network(), machine.container(), containerid="c2")
        release()
        status, printed = finish(process)

    assert (status, late) == (0, BUNDLE_STATUS)
    assert json.loads(printed)["ips"]
    assert engine.wait() == 0
    machine.engine = None


def test_a_worker_that_is_killed(machine: Machine) -> None:
    """Its request fails with code 11, DEL removes what it has left, another worker takes over."""
    engine = machine.start_engine(workers=1)
    (worker,) = engine.workers()
    container, config = machine.container(), machine.network()

    with store_locked(machine) as release:
        process = start(machine, "ADD", config, container)
        wait_until(machine.ports, "it does not get so far")
        os.kill(worker, signal.SIGKILL)
        status, printed = finish(process)
        release()

    assert (status, error_of(printed)["code"]) == (1, 11)
    assert run(machine, "DEL", config, container) == 0
    assert_nothing_left(machine)
    assert engine.workers() != [worker]
    assert f"worker {worker} ended by signal 9" in engine.log_path.read_text()


def test_a_supervisor_that_is_killed(machine: Machine) -> None:
    """Its workers finish what they are at, and end."""
    engine = machine.start_engine()
    workers = engine.workers()
    container, config = machine.container(), machine.network()
    assert run(machine, "ADD", config, container) == 0

    with store_locked(machine) as release:
        process = start(machine, "ADD", config, machine.container(), containerid="c2")
        wait_until(lambda: len(machine.ports()) == 2, "it does not get so far")
        engine.tell(signal.SIGKILL)
        engine.wait()
        release()
        assert finish(process)[0] == 0
    wait_until(lambda: not any(map(is_running, workers)), "the workers stay")
    machine.engine = None

    assert run(machine, "DEL", config, container) == BUNDLE_STATUS


def is_running(pid: int) -> bool:
    """Tell whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_tally_that_cannot_be_written_ends_no_worker(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of workers that end, ten in ten seconds are replaced: then launchers would wait."""
    real = engine_module._Tally.__init__

    def read_only(self: engine_module._Tally, directory: str, places: int) -> None:
        real(self, directory, places)
        self._fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    monkeypatch.setattr(engine_module._Tally, "__init__", read_only)
    engine = machine.start_engine(workers=2)
    before = engine.workers()

    for _ in range(4):
        assert add_and_delete(machine) == (0, 0)

    assert engine.workers() == before


def test_workers_are_recycled(machine: Machine) -> None:
    """After so many requests a new process takes a worker's place, and no request is lost."""
    engine = machine.start_engine(workers=1, requests=4)
    seen = set()

    for _ in range(6):
        seen |= set(engine.workers())
        assert add_and_delete(machine) == (0, 0)

    assert len(seen) >= 3


class Load:
    """Clients that attach and detach without a pause, and what their launchers ended with."""

    def __init__(self, machine: Machine, clients: int = 6) -> None:
        self.statuses: list[int] = []
        self.fallbacks: list[float] = []  # seconds of the calls for which the bundle was started
        self.refusals: list[str] = []  # what the others that failed printed
        self._stop = threading.Event()
        self._machine = machine
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(clients)]

    def _work(self, number: int) -> None:
        machine, name = self._machine, f"client{number}"
        container = machine.container()
        while not self._stop.is_set():
            for command in ("ADD", "DEL"):
                words = (machine, command, machine.network(), container)
                status = BUNDLE_STATUS
                while status == BUNDLE_STATUS and not self._stop.is_set():
                    begun = time.monotonic()
                    status, output = finish(start(*words, containerid=name))
                    self.statuses.append(status)
                    if status == BUNDLE_STATUS:
                        self.fallbacks.append(time.monotonic() - begun)
                    elif status:
                        self.refusals.append(f"{command}: {status}: {output!r}")

    def wait_for_requests(self, number: int) -> None:
        """Wait until more than `number` further requests have been answered."""
        goal = len(self.statuses) + number
        wait_until(lambda: len(self.statuses) > goal, "nothing is served")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_new_engine_replaces_the_old_one(machine: Machine) -> None:
    """Under load, three times: no request fails, and the old engines end."""
    engines: list[Engine] = []

    with Load(machine) as load:
        for _ in range(3):
            engines.append(machine.start_engine())
            load.wait_for_requests(40)
        for old in engines[:-1]:
            assert old.wait() == 0

    statuses = load.statuses[load.statuses.index(0) :]  # before there was the first engine
    assert set(statuses) <= {0, BUNDLE_STATUS}
    assert statuses.count(BUNDLE_STATUS) <= len(engines)
    assert engines[-1].is_running()


def test_an_engine_that_hangs_is_told_to_end(machine: Machine) -> None:
    """An engine that no longer accepts loses its path, and ends once it can."""
    old = machine.start_engine(workers=1)
    for pid in (old.pid, *old.workers()):
        os.kill(pid, signal.SIGSTOP)
    workers = old.workers()
    new = machine.start_engine()

    assert add_and_delete(machine) == (0, 0)
    for pid in (old.pid, *workers):
        os.kill(pid, signal.SIGCONT)
    assert old.wait() == 0
    assert new.is_running()


def test_what_a_killed_start_has_left_is_removed(machine: Machine) -> None:
    """Leftovers of an engine that was killed during its start go; files of a starting one stay."""
    directory = socket_path().parent
    directory.mkdir(exist_ok=True)
    left = ("engine.sock.4999998", "engine.lock.4999998", "engine.sock.4999997")
    kept = ("engine.sock.4999999", "engine.lock.4999999", "engine.sock.old")
    for name in (*left, *kept):
        (directory / name).touch()
    with (directory / "engine.lock.4999999").open("r+b") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # noqa: TID251 - as an engine does
        machine.start_engine()

    found = {path.name for path in directory.iterdir()}
    for name in kept:
        (directory / name).unlink()
    assert found == {"engine.sock", "engine.lock", *kept}


def test_a_socket_of_another_program_is_left_alone(machine: Machine) -> None:
    """Where another program listens, systemd for example, no engine takes its place or ends it."""
    socket_path().parent.mkdir(exist_ok=True)
    socket_path().unlink(missing_ok=True)
    listen = "import socket, sys, time; s = socket.socket(1, 5); s.bind(sys.argv[1]); s.listen()"
    words = ["python3", "-c", f"{listen}; print(flush=True); time.sleep(60)", str(socket_path())]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        before = socket_path().stat().st_ino
        files = sorted(os.listdir(socket_path().parent))  # an engine before it leaves its lock

        with pytest.raises(AssertionError, match="the engine ended"):
            machine.start_engine()

        assert other.poll() is None
        assert socket_path().stat().st_ino == before
        assert sorted(os.listdir(socket_path().parent)) == files
        other.kill()
    socket_path().unlink()


@contextmanager
def socket_of_systemd() -> Iterator[socket.socket]:
    """Have a socket for engines that is there before and after them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        socket_path().parent.mkdir(exist_ok=True)
        socket_path().unlink(missing_ok=True)
        listener.bind(str(socket_path()))
        listener.listen(64)
        yield listener
    assert socket_path().exists()
    socket_path().unlink()


def test_systemd_takes_the_path_of_an_engine(machine: Machine) -> None:
    """systemd binds its socket where one is: the engine that it starts ends the one before.

    Meanwhile no other engine takes systemd's socket away, though the old one still has the lock.
    """
    old = machine.start_engine()
    with socket_of_systemd() as listener:
        taken = socket_path().stat().st_ino
        assert owner_of(str(socket_path())) == -1
        with pytest.raises(AssertionError, match="the engine ended"):
            machine.start_engine()
        assert old.is_running()
        assert socket_path().stat().st_ino == taken

        new = machine.start_engine(listener=listener)

        assert old.wait() == 0
        assert add_and_delete(machine) == (0, 0)
        assert socket_path().stat().st_ino == taken
        assert new.is_running()
        assert supervisor_of(greeting(str(socket_path()))[1]) == new.pid


def test_an_engine_that_has_its_path_stays(machine: Machine) -> None:
    """An engine on a socket of systemd's that is elsewhere by now ends no other one."""
    with socket_of_systemd() as listener:
        socket_path().unlink()
        other = machine.start_engine()
        assert owner_of(str(socket_path())) == other.pid

        late = machine.start_engine(listener=listener)

        assert late.is_running()
        assert other.is_running()
        late.end()
        machine.engine = other
        assert add_and_delete(machine) == (0, 0)


_PATIENCE = 2.0  # HELLO_MS of launcher/launcher.c, in seconds


def test_a_socket_of_systemd(machine: Machine) -> None:
    """On a socket that systemd keeps, engines follow each other, and launchers only wait.

    The bundle is started for those alone that an engine says it has turned away, since a worker
    took longer than a second, and for those that have waited as long as a launcher waits.
    """
    with socket_of_systemd() as listener:
        engines = [machine.engine or machine.start_engine(listener=listener)]
        with Load(machine, clients=3) as load:
            for _ in range(2):
                load.wait_for_requests(20)
                engines[-1].end()
                engines.append(machine.start_engine(listener=listener))
            load.wait_for_requests(20)

    early = [seconds for seconds in load.fallbacks if seconds < _PATIENCE]
    turned_away = sum(engine.turned_away() for engine in engines)
    assert load.refusals == []
    assert len(early) <= turned_away <= len(load.fallbacks), load.fallbacks


def test_workers_that_begin_one_after_the_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launchers that were there first ask again until workers have begun before they did.

    One that has waited as long as a launcher waits, on a busy machine, may start the bundle.
    """
    real = engine_module._Supervisor._start

    def start_late(self: engine_module._Supervisor) -> None:
        real(self)
        time.sleep(0.03)  # as on a machine where a fork takes its time

    monkeypatch.setattr(engine_module._Supervisor, "_start", start_late)
    containers = [machine.container() for _ in range(6)]

    with socket_of_systemd() as listener:
        begun = time.monotonic()
        waiting = [
            start(machine, "ADD", machine.network(), one, containerid=f"c{number}")
            for number, one in enumerate(containers)
        ]
        sockets = Path(f"/proc/{waiting[-1].pid}/net/unix")  # of its network namespace
        wait_until(
            lambda: sockets.read_text().count(str(socket_path())) == len(waiting),
            "not all launchers wait",
        )
        machine.start_engine(listener=listener, workers=8)
        ended = [(finish(one)[0], time.monotonic() - begun) for one in waiting]

    assert [one for one in ended if one[0] and one[1] < _PATIENCE] == []
    assert 0 in {status for status, _ in ended}


def test_a_socket_of_systemd_while_an_add_takes_its_time(machine: Machine) -> None:
    """A launcher that comes while the engine ends is turned away, and does not wait two seconds."""
    with socket_of_systemd() as listener, store_locked(machine) as release:
        engine = machine.start_engine(listener=listener)
        process = start(machine, "ADD", machine.network(), machine.container())
        wait_until(machine.ports, "it does not get so far")
        engine.tell(signal.SIGTERM)
        wait_until(lambda: len(engine.workers()) == 1, "workers without work do not end")

        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
            late.settimeout(GENEROUS)
            late.connect(str(socket_path()))
            assert late.recv(99) == b""
        wait_until(lambda: engine.turned_away() == 1, "it does not tell")
        release()
        assert finish(process)[0] == 0
        assert engine.wait() == 0
        machine.engine = None
