"""cni_common/serve/main.py: the process of a one-shot call, played by this one."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.host import Host
from cni_common.serve.main import main
from cni_common.spec.errors import CNIError
from cni_common.spec.names import VERSION
from cni_common.spec.request import PROTOCOL_SCHEMA, Request
from cni_common.spec.result import Interface, Result
from cni_common.spec.undo import Undo

ROOT = Path(__file__).resolve().parents[2]
CONFIG = b'{"cniVersion": "1.1.0", "name": "net"}'
VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/no/such/netns",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "",
}


class Plugin:
    """A plugin that remembers what it was asked, and does during an ADD what it is told to."""

    SCHEMA = PROTOCOL_SCHEMA

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.done: list[str] = []
        self.act: Callable[[], object] = lambda: None
        self.undo: Callable[[], object] = lambda: self.done.append("undone")

    def add(self, req: Request, host: Host, undo: Undo) -> Result:
        """Push a step, act, answer."""
        self.requests.append(req)
        undo.push("the step", lambda: self.undo())
        self.act()
        return Result([Interface("eth0")])

    def delete(self, req: Request, host: Host) -> None:
        """Remember."""
        self.requests.append(req)

    gc = status = delete

    def check(self, req: Request, host: Host) -> list[CNIError]:
        """Find nothing."""
        self.delete(req, host)
        return []

    def lifecycle(self) -> None:
        """Keep no records."""

    @property
    def commands(self) -> list[str]:
        """The requests, in order."""
        return [str(req.command) for req in self.requests]


class Process:
    """Runs main() with descriptors 0 to 2 and variables of its own."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plugin = Plugin()
        self.stdout = self.stderr = b""
        self._tmp_path = tmp_path
        self._monkeypatch = monkeypatch

    def run(
        self, stdin: bytes = CONFIG, *, name: str = "/bin/test", closed: int = -1, **environ: str
    ) -> int:
        """Return the exit status; descriptor `closed` is not open."""
        paths = [self._tmp_path / name for name in ("stdin", "stdout", "stderr")]
        paths[0].write_bytes(stdin)
        fds = [
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC * (path != paths[0]))
            for path in paths
        ]
        try:
            status = self.run_on(fds, name=name, closed=closed, **environ)
        finally:
            for fd in fds:
                os.close(fd)
        self.stdout, self.stderr = paths[1].read_bytes(), paths[2].read_bytes()
        return status

    def run_on(
        self, fds: list[int], *, name: str = "/bin/test", closed: int = -1, **environ: str
    ) -> int:
        """Return the exit status with these descriptors as 0 to 2."""
        for key, value in {**VARIABLES, **environ}.items():
            self._monkeypatch.setenv(key, value)
        self._monkeypatch.setattr(sys, "argv", [name])
        with _standard_streams(fds, closed):
            return main({"test": self.plugin}.get)


@contextmanager
def _standard_streams(fds: list[int], closed: int) -> Iterator[None]:
    saved = [os.dup(fd) for fd in range(3)]
    try:
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        if closed >= 0:
            os.close(closed)
        yield
    finally:
        for number, fd in enumerate(saved):
            os.dup2(fd, number)
            os.close(fd)


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """A process that can be run more than once."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield Process(tmp_path, monkeypatch)
    gc.enable()  # as main() has left it off
    for number, handler in handlers.items():
        signal.signal(number, handler)  # noqa: TID251 - puts back what main() has changed


def terminate() -> None:
    """Send the signal by which a runtime gives up."""
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    """Fail as a plugin may."""
    raise CNIError(50, "not now")


def error(text: bytes) -> dict[str, Any]:
    """Return the error object that `text` is."""
    value: dict[str, Any] = json.loads(text)
    return value


class TestAbout:
    """Called by a person, without CNI_COMMAND."""

    def test_about(self, process: Process) -> None:
        """Two lines on stderr say what this is, nothing is on stdout, and the status is 0."""
        assert process.run(name="/opt/cni/bin/test", CNI_COMMAND="") == 0

        assert process.stdout == b""
        assert process.stderr.decode().splitlines() == [
            f"CNI test plugin v1.9.1+pycni.{VERSION}",
            "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
        ]
        assert process.plugin.requests == []

    def test_its_version_is_that_of_the_reference(self, process: Process) -> None:
        """Programs read off it what the plugin can do: our plugins are compared with it."""
        script = (ROOT / "deploy" / "prerequisites.sh").read_text()
        (version,) = re.findall(r"reference\[@\]/%/@v([\d.]+)}", script)

        process.run(name="/opt/cni/bin/firewall", CNI_COMMAND="")

        assert process.stderr.decode().startswith(f"CNI firewall plugin v{version}+pycni.")


class TestServing:
    """A request and its reply."""

    def test_add(self, process: Process) -> None:
        """The result goes to stdout, and nothing to stderr."""
        assert process.run() == 0

        assert process.stdout == (
            b'{\n    "cniVersion": "1.1.0",\n    "interfaces": [\n        {\n'
            b'            "name": "eth0"\n        }\n    ]\n}'
        )
        assert process.stderr == b""

    def test_failure(self, process: Process) -> None:
        """An error goes to stdout too, and the status is 1."""
        process.plugin.act = fail

        assert process.run() == 1

        assert error(process.stdout)["code"] == 50

    def test_silence(self, process: Process) -> None:
        """A command without a result prints nothing."""
        assert process.run(CNI_COMMAND="DEL") == 0

        assert process.stdout == b""

    def test_all_of_stdin(self, process: Process) -> None:
        """Stdin is read to its end, and given on verbatim."""
        stdin = CONFIG + b" " * 300_000

        assert process.run(stdin) == 0

        assert process.plugin.requests[0].stdin == stdin

    def test_variables(self, process: Process) -> None:
        """The whole environment is given on, bytes that are not UTF-8 included."""
        assert process.run(CNI_ARGS="a=\udcff", PYCNI_TEST="x") == 0

        environ = process.plugin.requests[0].environ
        assert environ["CNI_ARGS"] == "a=\udcff"
        assert environ["PYCNI_TEST"] == "x"

    def test_name(self, process: Process) -> None:
        """The plugin is the one whose name the executable was called by."""
        assert process.run(name="/opt/cni/bin/none") == 1

        assert error(process.stdout)["msg"] == "'none' is not one of this suite's plugins"

    def test_version_leaves_stdin_alone(self, process: Process) -> None:
        """VERSION reads nothing: a person at a terminal need not end the input."""
        reader, writer = os.pipe()
        os.write(writer, b"x")
        null = os.open(os.devnull, os.O_RDWR)

        status = process.run_on([reader, null, null], CNI_COMMAND="VERSION")

        assert status == 0
        assert os.read(reader, 10) == b"x"
        for fd in (reader, writer, null):
            os.close(fd)

    def test_log(self, process: Process) -> None:
        """Log lines go to stderr."""
        process.run(b'{"cniVersion": "1.1.0", "name": "net", "dns": 1}', CNI_COMMAND="DEL")

        assert process.stderr == b'DEL goes on without "dns": 1 is not of type object\n'


class TestStreams:
    """Standard streams that do not work."""

    def test_stdin_closed(self, process: Process) -> None:
        """No stdin is an empty one."""
        assert process.run(closed=0) == 1

        assert error(process.stdout)["code"] == 6
        assert process.plugin.requests == []

    def test_stdin_unreadable(self, process: Process, tmp_path: Path) -> None:
        """A stdin that cannot be read is code 5."""
        directory = os.open(tmp_path, os.O_RDONLY)
        reader, writer = os.pipe()

        status = process.run_on([directory, writer, writer])

        assert status == 1
        assert error(os.read(reader, 9999)) == {
            "cniVersion": "1.1.0",
            "code": 5,
            "msg": "cannot read the configuration from stdin: Is a directory",
        }
        for fd in (directory, reader, writer):
            os.close(fd)

    def test_no_stderr(self, process: Process) -> None:
        """Without stderr the log is lost, and nothing else."""
        stdin = b'{"cniVersion": "1.1.0", "name": "net", "dns": 1}'

        assert process.run(stdin, CNI_COMMAND="DEL", closed=2) == 0
        assert process.stdout == b""

    def test_stderr_broken(self, process: Process) -> None:
        """A stderr that nobody reads any more does no harm."""
        null = os.open(os.devnull, os.O_RDWR)
        reader, writer = os.pipe()
        os.close(reader)

        status = process.run_on([null, null, writer], CNI_COMMAND="")

        assert status == 0
        for fd in (null, writer):
            os.close(fd)

    def test_no_stdout(self, process: Process) -> None:
        """A result that nobody gets is taken back, and no file takes its place."""
        assert process.run(closed=1) == 1

        assert (process.plugin.commands, process.plugin.done) == (["ADD"], ["undone"])
        assert b"the attachment is taken back" in process.stderr
        assert process.stdout == b""

    def test_stdout_broken(self, process: Process) -> None:
        """So it is when the reader has gone away."""
        stdin = os.memfd_create("stdin")
        os.pwrite(stdin, CONFIG, 0)
        reader, writer = os.pipe()
        os.close(reader)
        log = os.memfd_create("stderr")

        status = process.run_on([stdin, writer, log])

        assert status == 1
        assert (process.plugin.commands, process.plugin.done) == (["ADD"], ["undone"])
        assert b"cannot write to stdout: Broken pipe" in os.pread(log, 999, 0)
        for fd in (stdin, writer, log):
            os.close(fd)

    @pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
    def test_no_stdout_and_nothing_made(self, process: Process, command: str) -> None:
        """Only an ADD that succeeded has something to take back."""
        process.plugin.act = fail

        assert process.run(closed=1, CNI_COMMAND=command) == 1
        assert process.plugin.commands == [command]


class TestSignals:
    """SIGTERM."""

    def test_undone(self, process: Process) -> None:
        """An ADD that is terminated is taken back and ends with code 11."""
        process.plugin.act = terminate

        assert process.run() == 1

        assert process.plugin.done == ["undone"]
        assert error(process.stdout) == {
            "cniVersion": "1.1.0",
            "code": 11,
            "msg": "terminated by a signal; its changes are undone, try again later",
            "details": "network 'net'",
        }

    def test_twice(self, process: Process) -> None:
        """A second signal does not stop the undo."""

        def undo() -> None:
            terminate()
            process.plugin.done.append("undone")

        process.plugin.act = terminate
        process.plugin.undo = undo

        assert process.run() == 1
        assert process.plugin.done == ["undone"]
