"""The launcher, between a runtime and an engine that each test makes up."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cni_common.spec.names import CURRENT_VERSION, SUPPORTED_VERSIONS
from tests.machine import ROOT
from tests.waits import longer_if_busy

BUILD = "1.2.3"
PROTOCOL = 3
CHALLENGE = bytes(range(16))
HELLO = b"pycni\0" + struct.pack("<H", PROTOCOL) + CHALLENGE + BUILD.encode()
CONFIG = b'{"cniVersion": "1.1.0"}'
SERVED_BY_BUNDLE = 7
TRY_AGAIN_LATER = 11

Handler = Callable[[socket.socket], None]


@dataclass
class Launcher:
    """A launcher in a directory of its own, and the socket whose path is compiled into it."""

    directory: Path
    socket_path: Path

    def start(
        self,
        *arguments: str,
        plugin: str = "bridge",
        env: Mapping[str, str | None] | None = None,
        **keywords: Any,
    ) -> subprocess.Popen[bytes]:
        """Start it as a runtime does; a variable that is None in `env` is not set."""
        environ = {"CNI_COMMAND": "ADD", "MARK": "untouched", **(env or {})}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [str(self.directory / plugin), *arguments],
            env={name: value for name, value in environ.items() if value is not None},
            **{**pipes, **keywords},
        )

    def run(
        self, *arguments: str, given: bytes = CONFIG, **keywords: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end."""
        process = self.start(*arguments, **keywords)
        stdout, stderr = process.communicate(given if process.stdin else None, timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    @contextmanager
    def engine(self, handler: Handler, owner: int = 0) -> Iterator[None]:
        """Serve connections by `handler`, one after the other; its exceptions are raised here."""
        with self.listening(backlog=8, owner=owner) as listener:
            failures: list[BaseException] = []
            thread = threading.Thread(target=_serve, args=(listener, handler, failures))
            thread.start()
            try:
                yield
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()
        for failure in failures:
            raise failure

    @contextmanager
    def listening(self, *, backlog: int, owner: int = 0) -> Iterator[socket.socket]:
        """Give the socket that an engine of the user `owner` has."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(self.socket_path))
            os.seteuid(owner)
            try:
                listener.listen(backlog)  # this is when the kernel notes whose it is
            finally:
                os.seteuid(0)
            yield listener


def _serve(listener: socket.socket, handler: Handler, failures: list[BaseException]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # shut down
        with connection:
            connection.settimeout(60)
            try:
                handler(connection)
            except Exception as error:  # noqa: BLE001 - raised again by the test's thread
                failures.append(error)


def greet(connection: socket.socket) -> None:
    """Say what an engine says before the request."""
    connection.send(HELLO)


@dataclass
class Request:
    """The message of the launcher."""

    plugin: str
    environ: bytes
    descriptors: list[int]
    files: list[os.stat_result]

    @classmethod
    def receive(cls, connection: socket.socket) -> Request:
        """Take it from a connection."""
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 16)
        assert message.startswith(CHALLENGE)
        message = message[len(CHALLENGE) :]
        (length,) = struct.unpack_from("<I", message)
        assert length == len(message) - 4
        with open(descriptors[3], "rb", closefd=False) as file:
            environ = file.read()
        files = [os.fstat(descriptor) for descriptor in descriptors]
        return cls(message[4:].decode(), environ, descriptors, files)

    def close(self) -> None:
        """Close what came with it."""
        for descriptor in self.descriptors:
            os.close(descriptor)


@dataclass
class Worker:
    """An engine's worker that answers each request with `status`, after `act`."""

    status: int = 0
    act: Callable[[Request], None] | None = None
    requests: list[Request] = field(default_factory=list)

    def __call__(self, connection: socket.socket) -> None:
        """Serve one connection."""
        greet(connection)
        request = Request.receive(connection)
        self.requests.append(request)
        try:
            if self.act:
                self.act(request)
        finally:
            request.close()
        connection.send(struct.pack("<i", self.status))


@pytest.fixture(scope="session", params=["", "yes"], ids=["plain", "sanitized"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """A launcher of each kind, with a socket that no other test process uses."""
    directory = tmp_path_factory.mktemp("bin")
    bundle = directory / ".pycni" / "pycni"
    bundle.parent.mkdir()
    socket_path = tmp_path_factory.mktemp("run") / "engine.sock"
    variables = {
        "OUTPUT": directory / "bridge",
        "BUILD": BUILD,
        "BUNDLE": ".pycni/pycni",
        "SANITIZE": request.param,
        "SOCKET": socket_path,
    }
    _run("make", "-C", "launcher", *(f"{name}={value}" for name, value in variables.items()))
    _run("cc", "-Wall", "-Wextra", "-Werror", "-o", str(bundle), "tests/launcher/bundle.c")
    for name in ("pycni", "frobnicate"):
        os.link(directory / "bridge", directory / name)
    return Launcher(directory, socket_path)


@pytest.fixture
def launcher(built: Launcher) -> Iterator[Launcher]:
    """A launcher without an engine."""
    yield built
    built.socket_path.unlink(missing_ok=True)


def _run(*words: str) -> None:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def _go_away(connection: socket.socket) -> None:
    """Prove to be an engine, and see the launcher hang up."""
    greet(connection)
    assert connection.recv(1) == b""


def _refuse(_connection: socket.socket) -> None:
    raise AssertionError("the engine must not be asked")


def _error(printed: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(printed)
    assert error.keys() == {"cniVersion", "code", "msg"}
    assert error["cniVersion"] == CURRENT_VERSION
    return error


# --- VERSION ---


def test_version_is_answered_by_the_launcher(launcher: Launcher) -> None:
    """VERSION prints what the plugins themselves would, without engine and bundle."""
    with launcher.engine(_refuse):
        done = launcher.run(env={"CNI_COMMAND": "VERSION"})

    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "cniVersion": CURRENT_VERSION,
        "supportedVersions": list(SUPPORTED_VERSIONS),
    }
    assert done.stdout.endswith(b"}\n")
    assert done.stderr == b""


def test_version_leaves_stdin_alone(launcher: Launcher) -> None:
    """VERSION does not take a byte from stdin."""
    reader, writer = os.pipe()
    os.write(writer, CONFIG)

    launcher.run(stdin=reader, env={"CNI_COMMAND": "VERSION"})

    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == CONFIG


def test_version_on_a_full_disk_fails(launcher: Launcher) -> None:
    """VERSION that cannot be written says so on stderr and in the exit status."""
    with open("/dev/full", "wb") as full:
        done = launcher.run(env={"CNI_COMMAND": "VERSION"}, stdout=full)

    assert done.returncode == 1
    assert _error(done.stderr)["code"] == 5
    assert _error(done.stderr)["msg"] == "cannot write to stdout: No space left on device"


def test_version_without_stdout_fails(launcher: Launcher) -> None:
    """VERSION without a stdout says so on stderr and in the exit status."""
    done = launcher.run(env={"CNI_COMMAND": "VERSION"}, preexec_fn=lambda: os.close(1))

    assert done.returncode == 1
    assert _error(done.stderr)["code"] == 5


# --- the bundle ---


def test_without_an_engine_the_bundle_runs_in_place(launcher: Launcher) -> None:
    """The bundle has the launcher's own path, its arguments, its files and its environment."""
    done = launcher.run("one", "two")

    assert done.returncode == SERVED_BY_BUNDLE
    assert done.stdout == CONFIG
    assert done.stderr.decode().splitlines() == [
        f"bundle {launcher.directory}/bridge one two",
        "MARK untouched",
        "descriptors above 2: 0",
    ]


def test_a_link_elsewhere_finds_the_bundle(launcher: Launcher, tmp_path: Path) -> None:
    """A symbolic link gives the type, the launcher's own directory the bundle."""
    link = tmp_path / "host-local"
    link.symlink_to(launcher.directory / "bridge")

    done = launcher.run(plugin=str(link))

    assert done.returncode == SERVED_BY_BUNDLE
    assert f"bundle {launcher.directory}/host-local\n" in done.stderr.decode()


def test_a_missing_bundle_is_reported(launcher: Launcher, tmp_path: Path) -> None:
    """A launcher that was copied alone says which file it misses."""
    alone = tmp_path / 'with "quotes"'
    alone.mkdir()
    shutil.copy(launcher.directory / "bridge", alone)

    done = Launcher(alone, launcher.socket_path).run()

    error = _error(done.stdout)
    assert done.returncode == 1
    assert error["code"] == 5
    assert "there is no '" in error["msg"]
    assert "/with ?quotes?/.pycni/pycni': the directory '.pycni' must lie beside" in error["msg"]


def test_a_bundle_that_cannot_be_started_is_reported(launcher: Launcher, tmp_path: Path) -> None:
    """That is another matter than one which is not there."""
    (tmp_path / ".pycni").mkdir()
    (tmp_path / ".pycni/pycni").write_text("no program")
    shutil.copy(launcher.directory / "bridge", tmp_path)

    done = Launcher(tmp_path, launcher.socket_path).run()

    assert f"cannot start '{tmp_path}/.pycni/pycni': Permission denied" in done.stdout.decode()


def test_a_name_too_long_is_refused(launcher: Launcher) -> None:
    """A name for which there is no room does no harm."""
    done = launcher.run(executable=str(launcher.directory / "bridge"), plugin="x" * 5000)

    assert done.returncode == 1
    assert _error(done.stdout)["code"] == 5


@pytest.mark.parametrize(
    ("plugin", "keywords"),
    [
        ("bridge", {"env": {"CNI_COMMAND": None}}),
        ("bridge", {"env": {"CNI_COMMAND": ""}}),
        ("pycni", {}),
        ("bridge", {"preexec_fn": lambda: os.close(1)}),
    ],
    ids=["no command", "empty command", "pycni", "no stdout"],
)
def test_what_is_for_people_goes_to_the_bundle(
    launcher: Launcher, plugin: str, keywords: dict[str, Any]
) -> None:
    """The engine is asked only for what a runtime wants and can be told."""
    with launcher.engine(_refuse):
        done = launcher.run(plugin=plugin, given=b"", **keywords)

    assert done.returncode == SERVED_BY_BUNDLE


# --- the choice of the engine ---


@pytest.fixture
def choice(launcher: Launcher) -> Iterator[Path]:
    """The link beside the bundle that has the choice."""
    link = launcher.directory / ".pycni/engine"
    link.symlink_to("on-demand:5")
    yield link
    link.unlink(missing_ok=True)


def _told(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    lines = done.stderr.decode().splitlines()
    return [line.partition(" ")[2] for line in lines if line.startswith("choice ")]


def test_the_bundle_is_told_the_choice(launcher: Launcher, choice: Path) -> None:
    """Where no engine serves, whether there is a socket or none."""
    without = launcher.run()
    with launcher.listening(backlog=1):
        pass
    ended = launcher.run()
    choice.unlink()
    none = launcher.run(env={"_PYCNI_ENGINE": "on-demand"})
    choice.symlink_to("x" * 200)
    longer = launcher.run()

    assert [_told(done) for done in (without, ended, none)] == [["on-demand:5"]] * 2 + [[]]
    assert _told(longer) == ["x" * 63]
    assert {done.returncode for done in (without, ended, none, longer)} == {SERVED_BY_BUNDLE}


@pytest.mark.usefixtures("choice")
def test_the_choice_is_not_told_beside_an_engine(launcher: Launcher) -> None:
    """An engine of another build or a full one is there already, and a person wants none."""

    def greet_as_another(connection: socket.socket) -> None:
        connection.send(HELLO + b"0")

    with launcher.engine(greet_as_another):
        other = launcher.run(env={"_PYCNI_ENGINE": "on-demand"})
    launcher.socket_path.unlink()
    with launcher.listening(backlog=0), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as it:
        it.connect(str(launcher.socket_path))
        full = launcher.run()
    launcher.socket_path.unlink()
    person = launcher.run(env={"CNI_COMMAND": None})

    assert [_told(done) for done in (other, full, person)] == [[]] * 3
    assert {done.returncode for done in (other, full, person)} == {SERVED_BY_BUNDLE}


# --- an engine that is no use ---


def test_an_engine_that_ended_is_passed_over(launcher: Launcher) -> None:
    """A socket on which no process listens is as good as none."""
    with launcher.listening(backlog=1):
        pass

    done = launcher.run()

    assert launcher.socket_path.exists()
    assert done.returncode == SERVED_BY_BUNDLE


def test_a_full_engine_is_passed_over(launcher: Launcher) -> None:
    """The launcher does not queue where there is no room: nobody would ever take it from there."""
    with (
        launcher.listening(backlog=0) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as it,
    ):
        it.connect(str(launcher.socket_path))

        done = launcher.run()

        listener.accept()[0].close()
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert done.returncode == SERVED_BY_BUNDLE


@pytest.mark.parametrize("built", [""], indirect=True, ids=["plain"])  # once: it takes 2 s
@pytest.mark.parametrize(("command", "least", "most"), [("ADD", 1.9, 60.0), ("STATUS", 0.4, 1.0)])
def test_an_engine_that_says_nothing_is_passed_over(
    launcher: Launcher, command: str, least: float, most: float
) -> None:
    """The launcher does not wait for a worker for ever, and hangs up when it gives up."""
    begun = time.monotonic()
    with launcher.listening(backlog=8) as listener:
        done = launcher.run(env={"CNI_COMMAND": command})
        assert least < time.monotonic() - begun < longer_if_busy(most)

        with listener.accept()[0] as connection:
            assert connection.recv(1) == b""
    assert done.returncode == SERVED_BY_BUNDLE


@pytest.mark.parametrize(
    "hello",
    [
        HELLO + b"0",
        HELLO[:-1],
        HELLO[:-1] + b"4",
        b"pycni\0" + struct.pack("<H", 1) + CHALLENGE + BUILD.encode(),
        b"pycni\0",
        b"nonsense" * 1000,
        b"",
    ],
    ids=["longer", "shorter", "version", "protocol", "torn", "nonsense", "end"],
)
def test_another_version_is_passed_over(launcher: Launcher, hello: bytes) -> None:
    """An engine of another version or protocol, or something else, gets no request."""

    def say(connection: socket.socket) -> None:
        if hello:
            connection.send(hello)
            assert connection.recv(1) == b""

    with launcher.engine(say):
        done = launcher.run()

    assert done.returncode == SERVED_BY_BUNDLE
    assert done.stdout == CONFIG


def test_a_process_that_begins_after_the_launcher_gets_no_request(launcher: Launcher) -> None:
    """It may have the process id of one that has sent the greeting and has ended."""
    received = []

    def greet_from_a_young_process(connection: socket.socket) -> None:
        child = os.fork()  # noqa: TID251 - younger than the launcher
        if child == 0:
            connection.send(HELLO)
            connection.recv(1)  # until the launcher hangs up
            os._exit(0)
        received.append(connection.recv(64))
        os.waitpid(child, 0)

    with launcher.engine(greet_from_a_young_process):
        done = launcher.run()

    assert done.returncode == SERVED_BY_BUNDLE
    assert done.stdout == CONFIG
    assert received == [b""] * 5  # with four more tries, as a worker may have just begun


def test_an_engine_that_has_just_begun_serves(launcher: Launcher) -> None:
    """The launcher waits for the next ticks of the clock by which processes begin."""
    read, write = os.pipe()
    with launcher.listening(backlog=8) as listener:
        worker = os.fork()  # noqa: TID251 - begins at this moment
        if worker == 0:
            os.write(write, b"begun")
            while True:
                with listener.accept()[0] as connection, suppress(OSError, AssertionError):
                    greet(connection)
                    if connection.recv(64).startswith(CHALLENGE):
                        connection.send(struct.pack("<i", 3))
        os.read(read, 9)
        try:
            done = launcher.run()
        finally:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            os.close(read)
            os.close(write)

    assert done.returncode == 3


def test_an_engine_that_ends_before_the_request_is_passed_over(launcher: Launcher) -> None:
    """A greeting alone obliges nobody: the request was not sent yet."""

    def end(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RD)  # nothing can be sent to it
        connection.send(HELLO)

    with launcher.engine(end):
        done = launcher.run()

    assert done.returncode == SERVED_BY_BUNDLE
    assert done.stdout == CONFIG


def test_an_engine_of_another_user_is_passed_over(launcher: Launcher) -> None:
    """A peer that is not root gets neither descriptors nor environment, with any answer."""
    received: list[bytes] = []

    def say(connection: socket.socket) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the launcher may be gone by now
            connection.send(HELLO)
            received.append(connection.recv(1))

    with launcher.engine(say, owner=65534):
        done = launcher.run()

    assert done.returncode == SERVED_BY_BUNDLE
    assert not any(received)


# --- an engine that serves ---


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_the_exit_status_is_the_engines(launcher: Launcher, status: int) -> None:
    """The launcher ends as the engine says, and prints nothing itself."""
    with launcher.engine(Worker(status)):
        done = launcher.run()

    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_the_engine_learns_the_plugins_type(launcher: Launcher) -> None:
    """Any name is handed over: the engine decides on its meaning."""
    worker = Worker()

    with launcher.engine(worker):
        launcher.run(plugin="frobnicate")

    assert worker.requests[0].plugin == "frobnicate"


def test_the_engine_learns_the_environment(launcher: Launcher) -> None:
    """The environment comes as the kernel keeps it."""
    worker = Worker()

    with launcher.engine(worker):
        launcher.run(env={"CNI_ARGS": "a=b;c=\udcff", "EMPTY": ""})

    assert worker.requests[0].environ == (
        b"CNI_COMMAND=ADD\0MARK=untouched\0CNI_ARGS=a=b;c=\xff\0EMPTY=\0"
    )


def test_a_limit_on_file_sizes_does_not_end_the_launcher(launcher: Launcher) -> None:
    """Where the environment cannot be written to a file, the bundle serves: no SIGXFSZ ends it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

    def greet_in_vain(connection: socket.socket) -> None:
        with suppress(BrokenPipeError):  # the launcher knows it before the greeting
            greet(connection)

    with launcher.engine(greet_in_vain):
        done = launcher.run(preexec_fn=limit)

    assert (done.returncode, done.stdout) == (SERVED_BY_BUNDLE, CONFIG)


def test_an_environment_of_a_megabyte_is_handed_over(launcher: Launcher) -> None:
    """No size that the kernel permits is too large."""
    values = {f"VALUE{number}": str(number % 10) * 100_000 for number in range(11)}
    worker = Worker()

    with launcher.engine(worker):
        done = launcher.run(env=values)

    entries = worker.requests[0].environ.split(b"\0")
    assert done.returncode == 0
    assert {f"{name}={value}".encode() for name, value in values.items()} < set(entries)


def test_the_engine_gets_the_very_same_files(launcher: Launcher, tmp_path: Path) -> None:
    """stdin, stdout and stderr are shared with the engine, their offsets too."""
    paths = [tmp_path / name for name in ("stdin", "stdout", "stderr")]
    for path in paths:
        path.write_bytes(b"0123456789")
    streams = [os.open(path, os.O_RDWR) for path in paths]
    stdin, stdout, stderr = streams
    os.lseek(stdin, 3, os.SEEK_SET)
    worker = Worker(act=lambda request: _copy(request.descriptors))

    with launcher.engine(worker):
        done = launcher.run(stdin=stdin, stdout=stdout, stderr=stderr)

    offsets = [os.lseek(stream, 0, os.SEEK_CUR) for stream in streams]
    for stream in streams:
        os.close(stream)
    assert done.returncode == 0
    assert [path.read_bytes() for path in paths] == [b"0123456789", b"3456456789", b"done456789"]
    assert offsets == [7, 4, 4]


def test_a_full_disk_is_the_engines_to_notice(launcher: Launcher) -> None:
    """Where the result goes to is the caller's file, so that the engine sees it fail."""
    errors: list[int | None] = []

    def write(request: Request) -> None:
        try:
            os.write(request.descriptors[1], b"{}")
        except OSError as error:
            errors.append(error.errno)

    with launcher.engine(Worker(1, write)), open("/dev/full", "wb") as full:
        done = launcher.run(stdout=full)

    assert done.returncode == 1
    assert errors == [28]


@pytest.mark.parametrize("stream", [0, 2], ids=["stdin", "stderr"])
def test_a_closed_stream_is_replaced(launcher: Launcher, stream: int) -> None:
    """The engine gets /dev/null where the caller gave nothing, and everything else in its place."""
    worker = Worker()

    with launcher.engine(worker):
        done = launcher.run(given=b"", preexec_fn=lambda: os.close(stream))

    files = worker.requests[0].files
    assert done.returncode == 0
    assert files[stream].st_rdev == os.stat("/dev/null").st_rdev
    assert worker.requests[0].environ.startswith(b"CNI_COMMAND=ADD\0")
    assert len(files) == 4


def test_the_namespace_is_opened_for_the_engine(launcher: Launcher) -> None:
    """CNI_NETNS comes as a descriptor of that file."""
    worker = Worker()

    with launcher.engine(worker):
        launcher.run(env={"CNI_NETNS": "/proc/self/ns/net"})

    assert os.path.samestat(worker.requests[0].files[4], os.stat("/proc/self/ns/net"))


@pytest.mark.parametrize("value", ["", "/run/netns/none", None], ids=["empty", "gone", "unset"])
def test_without_a_namespace_there_is_no_fifth_descriptor(
    launcher: Launcher, value: str | None
) -> None:
    """A namespace that cannot be opened is the engine's to complain about."""
    worker = Worker()

    with launcher.engine(worker):
        done = launcher.run(env={"CNI_NETNS": value})

    assert done.returncode == 0
    assert len(worker.requests[0].files) == 4


def test_a_fifo_in_place_of_a_namespace_does_not_block(launcher: Launcher, tmp_path: Path) -> None:
    """Opening CNI_NETNS waits for nobody."""
    os.mkfifo(tmp_path / "netns")

    with launcher.engine(Worker()):
        done = launcher.run(env={"CNI_NETNS": str(tmp_path / "netns")})

    assert done.returncode == 0


# --- an engine that took the request and fails ---


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"", "it ended"), (b"\0", "it sent something else"), (bytes(8), "it sent something else")],
    ids=["end", "short", "long"],
)
def test_an_accepted_request_is_not_tried_again(
    launcher: Launcher, answer: bytes, reason: str
) -> None:
    """The engine may have acted before it died: the runtime gets an error that says so."""

    def die(connection: socket.socket) -> None:
        greet(connection)
        Request.receive(connection).close()
        if answer:
            connection.send(answer)

    with launcher.engine(die):
        done = launcher.run()

    error = _error(done.stdout)
    assert done.returncode == 1
    assert error["code"] == TRY_AGAIN_LATER
    assert error["msg"] == (
        f"the pycni engine ({launcher.socket_path}) took the request and then gave no answer:"
        f" {reason}; try again"
    )


def test_a_request_that_nobody_read_is_not_tried_again(launcher: Launcher) -> None:
    """A request in the socket of an engine that died may have been read: nobody knows."""

    def die(connection: socket.socket) -> None:
        greet(connection)
        assert socket.recv_fds(connection, 1, 0, socket.MSG_PEEK)[0]

    with launcher.engine(die):
        done = launcher.run()

    assert done.returncode == 1
    assert _error(done.stdout)["code"] == TRY_AGAIN_LATER


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_launcher_and_tells_the_engine(
    launcher: Launcher, number: signal.Signals
) -> None:
    """A caller who gives up ends the launcher at once; the engine sees the connection end."""
    received: list[bytes] = []
    accepted = threading.Event()

    def wait(connection: socket.socket) -> None:
        greet(connection)
        Request.receive(connection).close()
        accepted.set()
        received.append(connection.recv(1))

    with launcher.engine(wait):
        process = launcher.start()
        assert accepted.wait(60)
        process.send_signal(number)
        stdout, _ = process.communicate(CONFIG, timeout=60)

    assert process.returncode == -number
    assert stdout == b""
    assert received == [b""]


def test_the_socket_of_a_release_is_fixed(tmp_path: Path) -> None:
    """Without SOCKET, which only tests give, the path is the one that the engine uses."""
    program = tmp_path / "pycni"

    _run("make", "-C", "launcher", f"OUTPUT={program}", "VERSION=1", "BUNDLE=.pycni/pycni")

    assert b"/run/pycni/engine.sock\0" in program.read_bytes()


def _copy(descriptors: list[int]) -> None:
    os.write(descriptors[1], os.read(descriptors[0], 4))
    os.write(descriptors[2], b"done")
