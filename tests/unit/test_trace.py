"""The line that each call leaves, the ring that keeps it, and its export."""

from __future__ import annotations

import os
import sys
import time
from ast import literal_eval
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from cni_common.node import spans
from cni_common.serve import cli
from cni_common.spec.steps import CALL, LOCK, NETLINK, NFT, STEPS_MAX, now
from commands import otlp, trace, traces
from commands.verb import RefusedError
from commands.verbs import commands
from plugins import load, load_all

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "a" * 64,
    "CNI_IFNAME": "eth0",
    "TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01",
}
APPENDS_MAX = 4


def leave(directory: Path, *, steps: int = 3, **keys: Any) -> None:
    """Be a call with some steps, and leave its line."""
    outcome = keys.pop("outcome", (0, ""))
    CALL.begin()
    for number in range(steps):
        CALL.note((NETLINK, NFT, LOCK)[number % 3], now())
    environ = {**ENVIRON, **keys}
    spans.leave(str(directory), "bridge", environ, "mynet", outcome=outcome, by="engine")()


def test_what_is_noted(tmp_path: Path) -> None:
    """All that was said comes back, also what needs escapes."""
    leave(tmp_path, outcome=(11, 'busy: "é"\n'))

    (call,) = traces.calls(str(tmp_path))
    assert (call.verb, call.plugin, call.network) == ("ADD", "bridge", "mynet")
    assert (call.containerid, call.ifname, call.by) == ("a" * 64, "eth0", "engine")
    assert (call.code, call.message) == (11, 'busy: "é"\n')
    assert [one.name for one in call.steps] == [NETLINK, NFT, LOCK]
    assert call.parent == ("a" * 32, "b" * 16)
    assert abs(call.at / 1e9 - time.time()) < 60
    assert Path(tmp_path, spans.FILE).stat().st_mode & 0o777 == 0o600


def test_cost() -> None:
    """Tracing a call with twenty steps costs less than APPENDS_MAX bare writes of its line.

    In a file system in memory, as /run is, and each in its best round: machines differ in speed,
    and from minute to minute. One write took 7.6 microseconds where tracing took 21.
    """
    with TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        leave(directory, steps=20)
        line = (directory / spans.FILE).read_bytes()
        traced = appended = float("inf")
        for _ in range(200):
            traced = min(traced, elapsed(lambda: leave(directory, steps=20)))
            appended = min(appended, elapsed(lambda: append(directory / "bare", line)))

    assert traced < APPENDS_MAX * appended


def elapsed(function: Callable[[], object]) -> float:
    """Return the nanoseconds of a call, the mean of five."""
    begun = time.perf_counter_ns()
    for _ in range(5):
        function()
    return (time.perf_counter_ns() - begun) / 5


def append(path: Path, line: bytes) -> None:
    """Write a line at a file's end, by the least number of system calls."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line)
    os.close(fd)


def test_joined_steps() -> None:
    """Steps of one kind that follow each other closely count as one; a pause makes two."""
    CALL.begin()
    CALL.note(NETLINK, now())
    CALL.note(NETLINK, now())
    time.sleep(0.001)
    CALL.note(NETLINK, now())
    _, _, noted = CALL.end()

    assert noted.count(NETLINK) == 2


def test_many_steps() -> None:
    """Of too many steps the long ones are still noted."""
    CALL.begin()
    for number in range(3 * STEPS_MAX):
        CALL.note((NETLINK, NFT)[number % 2], now())
    since = now()
    time.sleep(0.002)
    CALL.note(LOCK, since)
    _, _, noted = CALL.end()

    assert len(noted) == 3 * (STEPS_MAX + 1)
    assert noted[-3] == LOCK


def test_nothing_outside_of_a_call() -> None:
    """Programs that stay use the same code: they gather nothing."""
    CALL.note(NETLINK, now())
    CALL.begin()

    assert CALL.end()[2] == []


def test_bounded(tmp_path: Path) -> None:
    """The ring keeps the last calls in two files that do not grow."""
    count = 3 * spans.BYTES_MAX // 400
    for number in range(count):
        leave(tmp_path, steps=9, CNI_CONTAINERID=f"c{number}", TRACEPARENT="")

    sizes = [Path(tmp_path, name).stat().st_size for name in (spans.FILE, spans.OLDER)]
    assert max(sizes) < spans.BYTES_MAX + 1000
    found = traces.calls(str(tmp_path))
    assert found[-1].containerid == f"c{count - 1}"
    assert [one.containerid for one in found] == [f"c{n}" for n in range(count)][-len(found) :]
    assert len(found) > 1000


def _write_many(directory: str, number: int) -> None:
    for _ in range(500):
        leave(Path(directory), steps=6, CNI_IFNAME=f"eth{number}")


@pytest.mark.starts_process
def test_many_writers(tmp_path: Path) -> None:
    """Lines of processes that write at once are whole, and the files stay bounded."""
    context = get_context("fork")
    processes = [
        context.Process(target=_write_many, args=(str(tmp_path), number)) for number in range(8)
    ]
    for one in processes:
        one.start()
    for one in processes:
        one.join()

    assert [one.exitcode for one in processes] == [0] * 8
    lines = [
        line
        for name in (spans.FILE, spans.OLDER)
        for line in Path(tmp_path, name).read_bytes().splitlines()
    ]
    assert len(traces.calls(str(tmp_path))) == len(lines)
    assert Path(tmp_path, spans.OLDER).stat().st_size < 2 * spans.BYTES_MAX


@pytest.mark.parametrize("obstacle", ["missing", "file", "full", "link", "directory", "pipe"])
def test_never_fails(tmp_path: Path, obstacle: str) -> None:
    """The call goes on if a trace cannot be written; a link is not followed."""
    directory = tmp_path / "state"
    if obstacle == "file":
        directory.write_text("")
    elif obstacle != "missing":
        directory.mkdir()
    if obstacle == "full":
        Path(directory, spans.FILE).symlink_to("/dev/full")
    if obstacle == "link":
        Path(directory, spans.FILE).symlink_to(tmp_path / "elsewhere")
    if obstacle == "pipe":
        os.mkfifo(directory / spans.FILE)
    if obstacle == "directory":
        Path(directory, spans.FILE).mkdir()

    leave(directory)

    assert not (tmp_path / "elsewhere").exists()
    assert CALL.begun == 0
    if obstacle == "missing":
        assert directory.stat().st_mode & 0o777 == 0o700
        assert len(traces.calls(str(directory))) == 1


def test_broken_lines(tmp_path: Path) -> None:
    """The half line of a killed writer is passed over."""
    leave(tmp_path)
    with Path(tmp_path, spans.FILE).open("a") as file:
        file.write("(1, 2\n[]\n(1,)\n" + "(" * 100_000 + "\n")
        file.write(f"{('x',) * len(spans.FIELDS)}\nimport os\n")
    leave(tmp_path)

    assert len(traces.calls(str(tmp_path))) == 2


def test_lines_of_the_release_before(tmp_path: Path) -> None:
    """Its calls are shown after an upgrade; it did not note releases."""
    leave(tmp_path)
    path = Path(tmp_path, spans.FILE)
    with path.open("a") as file:
        file.write(f"{literal_eval(path.read_text())[:-1]!a}\n")

    one, other = traces.calls(str(tmp_path))

    assert one == other
    assert spans.FIELDS[-1] == "released"


def test_damaged_lines(tmp_path: Path) -> None:
    """With any value in the place of a number or text, the verb shows the calls that are whole."""
    leave(tmp_path)
    path = Path(tmp_path, spans.FILE)
    whole = literal_eval(path.read_text())
    odd: tuple[Any, ...] = (
        *(None, -1, 10**40, 1e999, "x\x1b[31m", [], {}, {1: 2}, b"x", [1, 2, 3]),
        ["a", -5, 10**30],
    )
    with path.open("a") as file:
        for place in range(len(whole)):
            for value in odd:
                file.write(f"{(*whole[:place], value, *whole[place + 1 :])!a}\n")

    found = traces.calls(str(tmp_path))

    assert len(found) > len(odd)
    trace._print(found)
    otlp.spans(found)
    assert all(0 <= one.length < 1 << 60 for one in found)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://x/y", "http://x:99999/", "http://[x/", "http:///x", "http://x/\u00fc"),
        *("http://user:password@x/", "https://", "://"),
    ],
)
def test_no_url(url: str) -> None:
    """An argument that is no URL of a collector is refused in a line."""
    with pytest.raises(RefusedError, match="is no URL of a collector"):
        otlp.export([], url)


def test_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python has no ssl, as in the plugins' bundle, the message says what has."""
    monkeypatch.setitem(sys.modules, "ssl", None)

    with pytest.raises(RefusedError, match="pip install pycni"):
        otlp.export([], "https://127.0.0.1:9")


@pytest.mark.parametrize(
    "words", [("--last", "0"), ("--last", "-1"), ("--slow", "-1"), ("--slow", "nan")]
)
def test_refused_numbers(words: tuple[str, str]) -> None:
    """A number that asks for nothing is refused, and not taken for all."""
    assert cli.run(["trace", *words], load, load_all, commands()) == 2


@pytest.mark.parametrize(
    "text",
    ["", "00-", f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'A' * 32}-{'b' * 16}-01", "x" * 5000],
)
def test_bad_traceparent(tmp_path: Path, text: str) -> None:
    """A value that is no parent is ignored; the calls of a container share a trace then."""
    leave(tmp_path, TRACEPARENT=text)
    leave(tmp_path, TRACEPARENT=text, CNI_COMMAND="DEL")

    calls = traces.calls(str(tmp_path))
    assert [one.parent for one in calls] == [None, None]
    exported = spans_of(otlp.spans(calls))
    assert len({one["traceId"] for one in exported}) == 1


def spans_of(request: Any) -> list[dict[str, Any]]:
    """Return the spans of an export request."""
    (resource,) = request["resourceSpans"]
    (scope,) = resource["scopeSpans"]
    found: list[dict[str, Any]] = scope["spans"]
    return found


def test_export(tmp_path: Path) -> None:
    """Spans have the form of OTLP's JSON; steps are children that lie within the call's time."""
    leave(tmp_path, outcome=(7, "no subnet"))
    call, *steps = spans_of(otlp.spans(traces.calls(str(tmp_path))))

    assert (call["traceId"], call["parentSpanId"]) == ("a" * 32, "b" * 16)
    assert (call["name"], call["status"]) == ("ADD bridge", {"code": 2, "message": "no subnet"})
    values = {one["key"]: one["value"] for one in call["attributes"]}
    assert values["cni.code"] == {"intValue": "7"}
    assert values["container.id"] == {"stringValue": "a" * 64}
    assert [one["name"] for one in steps] == [NETLINK, NFT, LOCK]
    for one in steps:
        assert (one["traceId"], one["parentSpanId"]) == (call["traceId"], call["spanId"])
        assert int(call["startTimeUnixNano"]) <= int(one["startTimeUnixNano"])
    ids = [one["spanId"] for one in (call, *steps)]
    assert len({*ids}) == len(ids)
    assert {len(one) for one in ids} == {16}
    again = otlp.spans(traces.calls(str(tmp_path)))
    assert [one["spanId"] for one in spans_of(again)] == ids


def test_root_is_not_needed_for_a_missing_ring(tmp_path: Path) -> None:
    """Without a call there is nothing, and no error."""
    assert traces.calls(str(tmp_path / "none")) == []
    assert os.listdir(tmp_path) == []
