"""Each system call in turn that could change something fails: once, or with all that follow."""

from __future__ import annotations

import errno
import json

import pytest

from tests.e2e.node import Done
from tests.faults.inject import Injection
from tests.faults.rig import Rig, attachments, configuration, sweep

ERRORS = [errno.ENOSPC, errno.EIO, errno.EINTR]
errors = pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)


def assert_told(done: Done, call: str) -> None:
    """Demand one CNI error, unless there was no way to say it."""
    if "pipe:" in call:  # stdout; on stderr there are only words for people
        return
    error = json.loads(done.stdout)
    assert error["code"] > 0
    assert error["msg"]
    assert "Traceback" not in done.stderr, done.stderr


@errors
def test_add(request: pytest.FixtureRequest, rig: Rig, error: int) -> None:
    """An ADD does without the call, or fails and leaves nothing; the next one works."""
    rig.config = configuration("dual")

    def scenario(injection: Injection) -> None:
        if error == errno.ENOSPC:  # the node's first, which makes bridge and table
            rig.wipe()
        rig.container("c1")
        done = rig.inject(injection, "ADD", "c1")
        if done.returncode == 0:
            rig.check("c1", json.loads(done.stdout))
        else:
            assert_told(done, rig.struck)
            rig.assert_clean()
            rig.add("c1")
        rig.ok("DEL", "c1")
        rig.assert_clean()

    sweep(rig, request, scenario, error=error)


@errors
def test_del(request: pytest.FixtureRequest, rig: Rig, error: int) -> None:
    """A DEL does without the call, or says that it failed and the next one goes on with it."""
    rig.config = configuration("dual")

    def scenario(injection: Injection) -> None:
        rig.add("c1")
        done = rig.inject(injection, "DEL", "c1")
        if done.returncode:
            assert_told(done, rig.struck)
            rig.ok("DEL", "c1")
        rig.assert_clean()

    sweep(rig, request, scenario, error=error)


@errors
def test_gc(request: pytest.FixtureRequest, rig: Rig, error: int) -> None:
    """The next GC finishes the work of one that failed; valid attachments stay."""
    rig.config = configuration("dual")
    living = rig.add("living")

    def scenario(injection: Injection) -> None:
        rig.add("dead")
        rig.end("dead")
        rig.age()
        done = rig.inject(injection, "GC", **attachments("living"))
        if done.returncode:
            assert_told(done, rig.struck)
        rig.collect("living")  # one that cannot open a record leaves it to the next
        rig.check("living", living)
        assert len(rig.files("/run/pycni/attachments")) == 2
        rig.assert_unique()

    sweep(rig, request, scenario, error=error)
    rig.ok("DEL", "living")
    rig.assert_clean()


@pytest.mark.parametrize("edge", ["one-shot", "engine"])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_from_one_call_on(request: pytest.FixtureRequest, rig: Rig, command: str) -> None:
    """From some call on everything fails, so nothing can be taken back: DEL does it later."""
    rig.config = configuration("ipv4")

    def scenario(injection: Injection) -> None:
        rig.container("c1")
        if command == "DEL":
            rig.add("c1")
        rig.inject(injection, command, "c1")
        rig.add("c2")
        rig.assert_unique()
        for name in ("c1", "c2"):
            rig.ok("DEL", name)
        rig.assert_clean()

    sweep(rig, request, scenario, error=errno.ENOSPC, lasting=True)
