"""How bridge calls its IPAM plugin: in this process, or by exec of whatever CNI_PATH leads to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cni_common.node import host as host_module
from cni_common.node.host import DELEGATE_SECONDS, STATE_DIR
from cni_common.serve.protocol import Reply, respond
from cni_common.spec.request import Command
from commands import otlp, traces
from tests.machine import CNI_BIN, REFERENCE_BIN, ROOT, Json, Machine, addresses_of, error_of
from tests.waits import GENEROUS, longer_if_busy, wait_until

ANSWER = {
    "cniVersion": "1.1.0",
    "ips": [{"address": "10.9.0.7/24", "gateway": "10.9.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
}


class Delegate:
    """A plugin made for a test: a shell script that notes each call before it does anything."""

    def __init__(self, directory: Path, body: str = "", name: str = "fake") -> None:
        self.directory = directory / f"bin-{name}"
        self.directory.mkdir()
        self.path = self.directory / name
        self.notes = directory / f"notes-{name}"
        self.notes.mkdir()
        self.write(body)

    def write(self, body: str, others: str = "exit 0") -> None:
        """Let the script do `body` for ADD and `others` for the rest; $notes has the notes."""
        self.path.write_text(
            f"#!/bin/sh\nnotes={self.notes}\n"
            "echo $CNI_COMMAND >> $notes/calls\n"
            "env -0 > $notes/environ.$CNI_COMMAND\n"
            "cat > $notes/stdin.$CNI_COMMAND\n"
            f"[ $CNI_COMMAND = ADD ] || {{ {others}; }}\n{body}\n"
        )
        self.path.chmod(0o755)

    def print(self, answer: Mapping[str, Any]) -> None:
        """Let ADD print `answer`."""
        self.write(f"cat <<'end'\n{json.dumps(answer)}\nend")

    @property
    def calls(self) -> list[str]:
        """The commands that came, in order."""
        calls = self.notes / "calls"
        return calls.read_text().split() if calls.exists() else []

    def environ(self, command: str) -> dict[str, str]:
        """Return the environment that `command` came with."""
        entries = (self.notes / f"environ.{command}").read_bytes().decode().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)

    def stdin(self, command: str) -> bytes:
        """Return what `command` found on stdin."""
        return (self.notes / f"stdin.{command}").read_bytes()

    def processes(self) -> list[int]:
        """Return the numbers that the script wrote to $notes/pids."""
        pids = self.notes / "pids"
        return [int(word) for word in pids.read_text().split()] if pids.exists() else []


@pytest.fixture
def fake(tmp_path: Path) -> Delegate:
    """A delegate that answers ADD with ANSWER."""
    delegate = Delegate(tmp_path)
    delegate.print(ANSWER)
    return delegate


def wrapper(directory: Path, program: Path) -> Delegate:
    """Return a delegate that notes each call of `program`, then becomes it."""
    delegate = Delegate(directory, name=program.name)
    text = delegate.path.read_text().partition("[ $CNI")[0]
    delegate.path.write_text(f"{text}exec {program} < $notes/stdin.$CNI_COMMAND\n")
    return delegate


def config_of(machine: Machine, ipam: str = "fake", **keys: Any) -> Json:
    """Return a bridge configuration with an IPAM plugin of that name."""
    return machine.network(**{"ipam": {"type": ipam, "keep": ["é", 1e3]}, "ipMasq": True, **keys})


def is_alive(pid: int) -> bool:
    """Tell whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def end(pid: int) -> None:
    """Kill a process that the test made, wherever it is by now."""
    if is_alive(pid):
        os.kill(pid, signal.SIGKILL)


def ports(machine: Machine, bridge: str = "br0") -> list[str]:
    """Return the ports of a bridge."""
    return [link["ifname"] for link in machine.ip(machine.host, "link", "show", "master", bridge)]


def records(machine: Machine) -> list[str]:
    """Return the names of the records that are left."""
    found = []
    for path in Path(machine.state_dir, "attachments").iterdir():
        try:
            if machine.name in path.read_text():
                found.append(path.name)
        except FileNotFoundError:
            continue  # of a test beside this one
    return found


def assert_nothing_left(machine: Machine, container: str) -> None:
    """Demand that a failed ADD has left neither interface nor rule nor record."""
    assert machine.link(container, "eth0") is None
    assert ports(machine) == []
    assert machine.nft() == []
    assert records(machine) == []


# --- which one is run ----------------------------------------------------------------------


@pytest.mark.both_edges
def test_our_own_runs_in_process(machine: Machine, tmp_path: Path) -> None:
    """The first plugin in CNI_PATH is ours: no other process is asked."""
    container = machine.container()
    go = wrapper(tmp_path, REFERENCE_BIN / "host-local")
    path = f"{CNI_BIN}:{go.directory}"

    result = machine.ok("bridge", "ADD", machine.network(), container, path=path)
    machine.ok("bridge", "DEL", machine.network(), container, path=path)

    assert addresses_of(result) == ["10.9.0.2"]
    assert go.calls == []


@pytest.mark.parametrize(
    ("name", "ipam"),
    [
        ("host-local", {"ranges": [[{"subnet": "10.9.0.0/24"}]]}),
        ("static", {"addresses": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}]}),
    ],
)
def test_reference_is_run_where_it_comes_first(
    machine: Machine, tmp_path: Path, name: str, ipam: Json
) -> None:
    """Another implementation that comes first in CNI_PATH is used, for each command."""
    container = machine.container()
    go = wrapper(tmp_path, REFERENCE_BIN / name)
    path = f"{go.directory}:{CNI_BIN}"
    config = machine.network(ipam={"type": name, "dataDir": machine.data_dir, **ipam})

    result = machine.ok("bridge", "ADD", config, container, path=path)
    check = {**config, "prevResult": result}
    machine.ok("bridge", "CHECK", check, container, path=path)
    machine.ok("bridge", "DEL", check, container, path=path)

    assert addresses_of(result) == ["10.9.0.2"]
    assert go.calls == ["ADD", "CHECK", "DEL"]
    assert machine.addresses(container, "eth0") == []


@pytest.mark.both_edges
def test_gc_and_status_reach_the_delegate(machine: Machine, fake: Delegate) -> None:
    """GC and STATUS are passed on, as CNI_COMMAND says."""
    config = {**config_of(machine), "cni.dev/valid-attachments": []}

    machine.ok("bridge", "STATUS", config, path=str(fake.directory))
    machine.ok("bridge", "GC", config, path=str(fake.directory))

    assert fake.calls == ["STATUS", "GC"]
    assert fake.environ("GC")["CNI_COMMAND"] == "GC"


# --- what it is given ----------------------------------------------------------------------


def test_environment_and_stdin_arrive_as_they_came(machine: Machine, fake: Delegate) -> None:
    """All of the environment but the call's span reaches it, and each byte of stdin."""
    container = machine.container()
    more = {
        "TRACESTATE": "rojo=00f067aa0ba902b7",
        "BAGGAGE": "userId=alice,serverNode=DF%2028",
        "EMPTY": "",
        "ODD": "a=b\nc ü",
    }
    config = config_of(machine, ipMasq=False)
    stdin = {"ADD": b"\n" + json.dumps(config, ensure_ascii=False, indent=3).encode() + b" \n"}

    def call(command: str) -> Reply:
        environ = machine.environ(command, container, path=str(fake.directory), args="MAC=") | more
        with machine.make_host() as host:
            return respond("bridge", environ, stdin[command], host)

    added = call("ADD")
    stdin["CHECK"] = json.dumps({**config, "prevResult": json.loads(added.stdout)}).encode()
    checked = call("CHECK")

    assert (added.exit_code, checked.exit_code) == (0, 0), checked.stdout
    for command in ("ADD", "CHECK"):
        given = machine.environ(command, container, path=str(fake.directory), args="MAC=") | more
        assert given.items() <= fake.environ(command).items()
        assert fake.environ(command).keys() - given.keys() <= {"PWD", "_", "OLDPWD", "SHLVL"}
        assert fake.stdin(command) == stdin[command]


@pytest.mark.both_edges
def test_a_delegate_is_a_child_of_the_call(machine: Machine, fake: Delegate) -> None:
    """It gets the caller's trace, and as its parent the span that `pycni trace` exports."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    machine.variables["TRACEPARENT"] = f"00-{trace}-b7ad6b7169203331-01"
    container, config = machine.container(), config_of(machine)
    for command in ("ADD", "DEL"):
        machine.ok("bridge", command, config, container, path=str(fake.directory))

    wait_until(lambda: len(traces.calls(machine.state_dir)) == 2, "a call leaves no trace")
    for call in traces.calls(machine.state_dir):
        given = fake.environ(call.verb)["TRACEPARENT"]
        assert given == f"00-{trace}-{call.span}-01"
        [whole, *_] = otlp.spans([call])["resourceSpans"][0]["scopeSpans"][0]["spans"]
        assert (whole["spanId"], whole["parentSpanId"]) == (call.span, "b7ad6b7169203331")


@pytest.mark.parametrize("text", ["", "00-x", f"00-{'0' * 32}-{'b' * 16}-01"])
def test_a_span_of_another_form_is_handed_on(machine: Machine, fake: Delegate, text: str) -> None:
    """A value that is no Trace Context is ignored."""
    machine.variables["TRACEPARENT"] = text
    machine.ok("bridge", "ADD", config_of(machine), machine.container(), path=str(fake.directory))

    assert fake.environ("ADD")["TRACEPARENT"] == text


@pytest.mark.both_edges
def test_delete_releases_by_the_configuration_of_the_add(machine: Machine, fake: Delegate) -> None:
    """DEL gives the delegate what ADD gave it, even when the configuration is another by now."""
    container = machine.container()
    config = config_of(machine)
    machine.ok("bridge", "ADD", config, container, path=str(fake.directory))

    changed = {**config, "ipam": {"type": "other"}}
    machine.ok("bridge", "DEL", changed, container, path=str(fake.directory))

    assert fake.calls == ["ADD", "DEL"]
    assert fake.stdin("DEL") == fake.stdin("ADD")
    assert fake.environ("DEL")["CNI_COMMAND"] == "DEL"


# --- what it answers -----------------------------------------------------------------------

OLD = {
    "ip4": {"ip": "10.9.0.7/24", "gateway": "10.9.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {"ip": "fd00:9::7/64", "gateway": "fd00:9::1", "routes": [{"dst": "::/0"}]},
}
IPS = [
    {"version": "4", "address": "10.9.0.7/24", "gateway": "10.9.0.1"},
    {"version": "6", "address": "fd00:9::7/64", "gateway": "fd00:9::1"},
]
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("own_version", ["0.4.0", "1.1.0"])
def test_reply_in_any_version(
    machine: Machine, fake: Delegate, version: str, own_version: str
) -> None:
    """A delegate may answer in another version than the configuration's."""
    container = machine.container()
    fake.print(
        {"cniVersion": version, **(OLD if version < "0.3" else {"ips": IPS, "routes": ROUTES})}
    )
    config = config_of(machine, cniVersion=own_version)

    result = machine.ok("bridge", "ADD", config, container, path=str(fake.directory))

    assert result["cniVersion"] == own_version
    assert addresses_of(result) == ["10.9.0.7", "fd00:9::7"]
    assert machine.addresses(container, "eth0") == ["10.9.0.7/24", "fd00:9::7/64"]
    assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0", "::/0"]


@pytest.mark.parametrize(
    ("own_version", "answer"), [("0.2.0", OLD), ("0.4.0", {"ips": IPS}), ("1.0.0", {"ips": IPS})]
)
def test_reply_without_version(
    machine: Machine, fake: Delegate, own_version: str, answer: Json
) -> None:
    """A reply that names no version has the configuration's."""
    container = machine.container()
    fake.print(answer)

    machine.ok(
        *("bridge", "ADD", config_of(machine, cniVersion=own_version), container),
        path=str(fake.directory),
    )

    assert machine.addresses(container, "eth0") == ["10.9.0.7/24", "fd00:9::7/64"]


FAILURES = {
    # what the delegate does: code, what the message contains, what the details are
    "own-error": (
        """echo '{"cniVersion": "1.1.0", "code": 123, "msg": "pool closed", "details": "till 9"}'
        exit 1""",
        *(123, "pool closed", "till 9"),
    ),
    "own-error-any-status": ("""echo '{"code": 11, "msg": "later"}'; exit 77""", 11, "later", None),
    "no-json": ("echo no space >&2; echo oops; exit 3", 999, "exit status 3: oops", None),
    "only-stderr": ("echo no space >&2; exit 3", 999, "exit status 3: no space", None),
    "silent": ("exit 3", 999, "exit status 3: it said nothing", None),
    "killed": ("kill -9 $$", 999, "signal 9", None),
    "no-error-object": ("""echo '{"code": "x"}'; exit 1""", 999, '{"code": "x"}', None),
    "rubbish": ("echo 'Segmentation fault?'", 6, "did not print a JSON object", None),
    "two-documents": ("echo '{}{}'", 6, "did not print a JSON object", None),
    "list": ("echo '[]'", 6, "did not print a JSON object", None),
    "unknown-version": ("""echo '{"cniVersion": "7.0.0", "ips": []}'""", 1, "7.0.0", None),
    "bad-address": ("""echo '{"ips": [{"address": "10.9.0.777/24"}]}'""", 6, "10.9.0.777", None),
    "no-addresses": ("""echo '{"cniVersion": "1.1.0"}'""", 999, "missing IP config", None),
    "empty": ("true", 999, "missing IP config", None),
    "null": ("echo null", 999, "missing IP config", None),
}


@pytest.mark.rotating(2)
@pytest.mark.both_edges
@pytest.mark.parametrize(("body", "code", "msg", "details"), FAILURES.values(), ids=FAILURES)
def test_failed_delegate(
    machine: Machine, fake: Delegate, body: str, code: int, msg: str, details: str | None
) -> None:
    """A delegate's own error is kept, any other is told; it gets a DEL, and ADD is taken back."""
    container = machine.container()
    fake.write(body)

    error = machine.refused(
        "bridge", "ADD", config_of(machine), container, path=str(fake.directory)
    )

    assert error["code"] == code, error
    assert msg in error["msg"]
    assert error.get("details") == details
    assert fake.calls == ["ADD", "DEL"]
    assert_nothing_left(machine, container)


def test_failure_after_the_delegate(machine: Machine, fake: Delegate) -> None:
    """An ADD that fails later gives back what the delegate gave."""
    container = machine.container()
    fake.print({**ANSWER, "routes": [{"dst": "10.77.0.0/16", "gw": "10.66.0.1"}]})

    error = machine.refused(
        "bridge", "ADD", config_of(machine), container, path=str(fake.directory)
    )

    assert "cannot reach gateway 10.66.0.1 of the route to 10.77.0.0/16" in error["msg"]
    assert fake.calls == ["ADD", "DEL"]
    assert_nothing_left(machine, container)


@pytest.mark.both_edges
@pytest.mark.parametrize("body", ["", "exit 3"], ids=["success", "failure"])
def test_stderr_reaches_the_log(machine: Machine, fake: Delegate, body: str) -> None:
    """The stderr of a delegate is in our log, also when the delegate failed with an answer."""
    container = machine.container()
    fake.write(f"echo 'pool is nearly empty' >&2\necho '{json.dumps(ANSWER)}'\n{body}")

    machine.invoke("bridge", "ADD", config_of(machine), container, path=str(fake.directory))

    assert f"{fake.path}: pool is nearly empty" in machine.log


@pytest.mark.both_edges
def test_failed_delete_of_the_delegate(machine: Machine, fake: Delegate) -> None:
    """A delegate that cannot release is told of; the rest is gone, and DEL can be repeated."""
    container = machine.container()
    config = config_of(machine)
    machine.ok("bridge", "ADD", config, container, path=str(fake.directory))
    fake.write("", others="""echo '{"code": 5, "msg": "lease not found"}'; exit 1""")

    error = machine.refused("bridge", "DEL", config, container, path=str(fake.directory))
    left = ports(machine), machine.masqueraded(), len(records(machine))
    fake.write("")
    machine.ok("bridge", "DEL", config, container, path=str(fake.directory))

    assert (error["code"], "lease missing" in error["msg"]) == (5, True)
    assert left == ([], {}, 1)
    assert_nothing_left(machine, container)


@pytest.mark.both_edges
def test_delegate_that_fails_both_ways(machine: Machine, fake: Delegate) -> None:
    """When ADD's failure cannot be taken back either, both are told, and DEL can do it later."""
    container = machine.container()
    config = config_of(machine)
    fake.write(
        """echo '{"code": 123, "msg": "half done"}'; exit 1""",
        others="""echo '{"code": 5, "msg": "cannot undo"}'; exit 1""",
    )

    error = machine.refused("bridge", "ADD", config, container, path=str(fake.directory))
    fake.write("")
    machine.ok("bridge", "DEL", config, container, path=str(fake.directory))

    assert (error["code"], error["msg"]) == (123, "half done")
    assert error["details"] == f"undo of the ADD of '{config['ipam']['type']}' failed: cannot undo"
    assert fake.calls == ["ADD", "DEL", "DEL"]
    assert_nothing_left(machine, container)


# --- what cannot be run --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "msg"),
    [
        ("nowhere", 50, 'failed to find plugin "nowhere"'),
        ("bin-fake/fake", 7, "invalid plugin name"),
        ("../fake", 7, "invalid plugin name"),
        ("..", 7, "invalid plugin name"),
        (".", 7, "invalid plugin name"),
    ],
)
def test_name_that_leads_to_no_plugin(
    machine: Machine, fake: Delegate, name: str, code: int, msg: str
) -> None:
    """A plugin that is not there has a code of its own, and a name is no path."""
    container = machine.container()

    error = machine.refused(
        "bridge", "ADD", config_of(machine, name), container, path=str(fake.directory)
    )

    assert (error["code"], msg in error["msg"]) == (code, True), error
    assert fake.calls == []
    assert [link["ifname"] for link in machine.ip(machine.host, "link")] == ["lo"]
    assert machine.link(container, "eth0") is None


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        ("#!/bin/sh\n", 0o644, "Permission denied"),
        ("echo '{}'\n", 0o755, "Exec format error"),
        ("#!/nonexistent/interpreter\n", 0o755, "No such file or directory"),
    ],
    ids=["not-executable", "no-format", "no-interpreter"],
)
def test_file_that_cannot_be_run(
    machine: Machine, fake: Delegate, content: str, mode: int, reason: str
) -> None:
    """The error names the file and why it cannot be started."""
    container = machine.container()
    fake.path.write_text(content)
    fake.path.chmod(mode)

    error = machine.refused(
        "bridge", "ADD", config_of(machine), container, path=str(fake.directory)
    )

    assert f"cannot start plugin '{fake.path}': {reason}" in error["msg"]
    assert_nothing_left(machine, container)


@pytest.mark.without_engine(reason="changes a pause half-way")
def test_file_that_is_being_written(
    machine: Machine, fake: Delegate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is being installed at this moment is tried again, for a while."""
    container = machine.container()
    path = str(fake.directory)
    monkeypatch.setattr(host_module, "_BUSY_PAUSE", 0.01)

    with fake.path.open("a"):
        error = machine.refused("bridge", "ADD", config_of(machine), container, path=path)
    with fake.path.open("a") as file:
        writer = subprocess.Popen(["sleep", "0.3"], stdin=file)
    monkeypatch.setattr(host_module, "_BUSY_PAUSE", 0.2)
    machine.ok("bridge", "ADD", config_of(machine), container, path=path)
    writer.wait()

    assert "Text file busy" in error["msg"]


# --- what does not end ---------------------------------------------------------------------

HANGS = {
    "itself": "echo $$ >> $notes/pids; exec sleep 50",
    "with-child": "sleep 50 & echo $! >> $notes/pids; echo $$ >> $notes/pids; sleep 51",
    "only-child": "sleep 50 & echo $! >> $notes/pids; exit 0",
    "deaf": "trap '' TERM INT HUP; echo $$ >> $notes/pids; while true; do sleep 1; done",
}


@pytest.mark.rotating(2)
@pytest.mark.both_edges
@pytest.mark.parametrize("body", HANGS.values(), ids=HANGS)
def test_delegate_that_hangs_is_killed(
    machine: Machine, fake: Delegate, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    """After its time a delegate is killed with all its children, and the ADD is taken back."""
    container, seconds = machine.container(), round(longer_if_busy(1))
    monkeypatch.setitem(DELEGATE_SECONDS, Command.ADD, seconds)
    fake.write(body)

    error = machine.refused(
        "bridge", "ADD", config_of(machine), container, path=str(fake.directory)
    )

    told = f"plugin '{fake.path}' did not answer ADD within {seconds} s and was killed"
    assert told in error["msg"]
    assert fake.processes()
    assert not [pid for pid in fake.processes() if is_alive(pid)]
    assert fake.calls == ["ADD", "DEL"]
    assert_nothing_left(machine, container)


@pytest.mark.both_edges
def test_daemon_that_keeps_the_pipes_does_not_hold_us(
    machine: Machine, fake: Delegate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that left the session, and has our pipes, is out of reach; we go on without it."""
    container, seconds = machine.container(), round(longer_if_busy(1))
    monkeypatch.setitem(DELEGATE_SECONDS, Command.ADD, seconds)
    daemon = "setsid sh -c 'echo $$ >> $0/pids; exec sleep 50' $notes &"
    fake.write(f"{daemon} until [ -s $notes/pids ]; do sleep 0.01; done; exit 0")

    error = machine.refused(
        "bridge", "ADD", config_of(machine), container, path=str(fake.directory)
    )

    for pid in fake.processes():
        end(pid)
    assert f"within {seconds} s" in error["msg"]
    assert_nothing_left(machine, container)


# --- the executable ------------------------------------------------------------------------


def start(
    machine: Machine,
    config: Json,
    container: str,
    path: str,
    stdout: Any,
    *,
    program: Sequence[str] = (str(CNI_BIN / "bridge"),),
) -> Any:
    """Start our bridge executable with an ADD."""
    process = subprocess.Popen(
        ["nsenter", f"--net={machine.host}", *program],
        env=machine.environ("ADD", container, path=path),
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(json.dumps(config).encode())
    process.stdin.close()
    process.stdin = None
    return process


@pytest.fixture
def node(machine: Machine) -> Machine:
    """A pretend host whose records are where the executables have them."""
    machine.state_dir = STATE_DIR
    return machine


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_while_the_delegate_hangs(
    node: Machine, fake: Delegate, number: signal.Signals
) -> None:
    """A signal to end ends the delegate, undoes the ADD, and is reported in one error object."""
    container = node.container()
    fake.write("sleep 50 & echo $! >> $notes/pids; echo $$ >> $notes/pids; sleep 51")

    process = start(node, config_of(node), container, str(fake.directory), subprocess.PIPE)
    wait_until(lambda: len(fake.processes()) == 2, "the delegate does not start")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=GENEROUS)

    assert process.returncode == 1, stderr
    assert b"Traceback" not in stderr
    error = error_of(stdout)
    assert (error["code"], "terminated" in error["msg"]) == (11, True)
    assert not [pid for pid in fake.processes() if is_alive(pid)]
    assert fake.calls == ["ADD", "DEL"]
    assert_nothing_left(node, container)


def in_time(seconds: float, undo_seconds: float = 30) -> list[str]:
    """Return our bridge executable with other limits of time: no runtime can choose them."""
    lines = (
        "import sys",
        f"sys.argv[0] = {str(CNI_BIN / 'bridge')!r}",
        "from cni_common.serve import protocol",
        f"protocol.UNDO_SECONDS, protocol.seconds_of = {undo_seconds}, lambda _: {seconds}",
        "from plugins.__main__ import run",
        "raise SystemExit(run())",
    )
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-c", "\n".join(lines)]


def test_the_time_of_a_process_is_over(node: Machine, fake: Delegate) -> None:
    """Without an engine, too, an ADD that takes too long is taken back, and the error says so."""
    container, seconds = node.container(), longer_if_busy(3)
    fake.write("echo $$ >> $notes/pids; sleep 50")
    program = in_time(seconds)
    process = start(
        node, config_of(node), container, str(fake.directory), subprocess.PIPE, program=program
    )
    stdout, stderr = process.communicate(timeout=GENEROUS)

    assert process.returncode == 1, stderr
    error = error_of(stdout)
    told = f"ADD was given up after {seconds:g} s; its changes are undone, try again"
    assert (error["code"], error["msg"]) == (11, told)
    assert error["details"] == f"network '{config_of(node)['name']}'"
    assert fake.calls == ["ADD", "DEL"]
    assert_nothing_left(node, container)


def test_the_time_of_an_undo_is_over(node: Machine, fake: Delegate) -> None:
    """Where the undo takes too long as well, the process ends with an error; DEL does the rest."""
    container = node.container()
    fake.write("sleep 50", others="sleep 50")
    config, program = config_of(node), in_time(longer_if_busy(3), undo_seconds=1)
    process = start(node, config, container, str(fake.directory), subprocess.PIPE, program=program)
    stdout, stderr = process.communicate(timeout=GENEROUS)

    assert process.returncode == 1, stderr
    error = error_of(stdout)
    assert (error["code"], "were not undone in time" in error["msg"]) == (11, True)
    fake.write("")
    node.ok("bridge", "DEL", config, container, path=str(fake.directory))
    assert_nothing_left(node, container)


@pytest.mark.parametrize("where", ["full", "closed-pipe", "closed"])
def test_result_that_nobody_gets(node: Machine, where: str) -> None:
    """An ADD whose result cannot be written is taken back: nobody would ever DEL it."""
    container = node.container()
    config = node.network(ipMasq=True)
    stdin = json.dumps(config)
    environ = node.environ("ADD", container)
    program = ["nsenter", f"--net={node.host}", str(CNI_BIN / "bridge")]
    if where == "closed":
        program = ["sh", "-c", 'exec "$@" >&-', "sh", *program]
    reader, writer = os.pipe()
    os.close(reader)

    with open("/dev/full" if where == "full" else os.devnull, "wb") as file:
        done = subprocess.run(
            program,
            input=stdin.encode(),
            env=environ,
            stdout=writer if where == "closed-pipe" else file,
            stderr=subprocess.PIPE,
            timeout=GENEROUS,
            check=False,
        )
    os.close(writer)

    assert done.returncode == 1
    assert b"taken back" in done.stderr
    assert_nothing_left(node, container)
    names = os.listdir(f"{node.data_dir}/{node.name}")
    assert [name for name in names if not name.startswith(("last_reserved_ip.", "lock"))] == []


def test_stderr_of_the_delegate_reaches_ours(node: Machine, fake: Delegate) -> None:
    """The complaints of a delegate are on the stderr of the executable, not on stdout."""
    container = node.container()
    fake.write(f"echo 'pool is nearly empty' >&2\necho '{json.dumps(ANSWER)}'")

    process = start(node, config_of(node), container, str(fake.directory), subprocess.PIPE)
    stdout, stderr = process.communicate(timeout=GENEROUS)

    assert process.returncode == 0, stderr
    assert addresses_of(json.loads(stdout)) == ["10.9.0.7"]
    assert b"pool is nearly empty" in stderr


@pytest.mark.both_edges
@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_bridge_as_its_own_ipam_plugin(machine: Machine, command: str) -> None:
    """A plugin that is to delegate to itself says so, once, and nothing is left."""
    container = machine.container()
    config = machine.network(ipam={"type": "bridge"})

    error = machine.refused("bridge", command, config, container)

    assert error["code"] != 999 or command == "ADD", error
    assert not [line for line in machine.log if "Traceback" in line]
    assert machine.link(container, "eth0") is None
