"""Visits to a container's namespace: sockets and files are of there, and the caller stays here."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from cni_common.kernel import netns
from cni_common.kernel.netns import OWN, NetNS
from deploy.freeze import compile_extension
from tests.faults.inject import Injection, Injector
from tests.machine import Machine

pytestmark = pytest.mark.without_engine(reason="calls functions of this process")
SYSCTL = "net/ipv4/conf/lo/arp_notify"


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the module that the bundle has."""
    directory = tmp_path_factory.mktemp("extension")
    compile_extension(directory)
    return directory


@pytest.fixture(params=["compiled", "thread"])
def _way(request: pytest.FixtureRequest, extension: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have netns visit in one of its two ways."""
    functions: tuple[Callable[..., list[int]], Callable[..., int]]
    functions = netns._open_files_by_thread, netns._open_socket_by_thread
    if request.param == "compiled":
        spec = spec_from_file_location("_setns", next(extension.iterdir()))
        assert spec
        assert spec.loader
        module = module_from_spec(spec)
        functions = module.open_files, module.open_socket
    monkeypatch.setattr(netns, "_open_files", functions[0])
    monkeypatch.setattr(netns, "_open_socket", functions[1])


def _state() -> tuple[str, int]:
    """Return the calling thread's namespace and how many descriptors the process has."""
    return os.readlink(OWN), len(os.listdir("/proc/self/fd"))


@pytest.mark.usefixtures("_way")
def test_the_caller_is_at_home_again(machine: Machine) -> None:
    """Whether what it wanted was there or not, hundreds of times, and no descriptor is left."""
    handle = NetNS(machine.container())
    before = _state()

    for _ in range(300):
        with handle.open_socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0):
            assert os.readlink(OWN) == before[0]
        assert _state() == before
        with pytest.raises(FileNotFoundError) as missing:
            handle.sysctl("net/ipv4/conf/none/forwarding")
        assert missing.value.filename == "/proc/sys/net/ipv4/conf/none/forwarding"
        with pytest.raises(OSError, match="not supported"):
            handle.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, 31)
        assert _state() == before

    handle.close()


@pytest.mark.usefixtures("_way")
def test_what_is_opened_is_of_the_container(machine: Machine) -> None:
    """Sockets and sysctls, also those read and written after the return; programs get neither."""
    handle, own = NetNS(machine.container()), NetNS(OWN)
    inside = handle.run(lambda: os.readlink(OWN))
    before = own.sysctl(SYSCTL)
    other = "1" if before == "0" else "0"

    assert handle.sysctl(SYSCTL, other) == other
    assert not handle.sysctls({SYSCTL: other}, unseen={SYSCTL})
    sock = handle.open_socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0)
    fd = handle.open_file(f"/proc/sys/{SYSCTL}", os.O_RDONLY)

    assert machine.command(handle.path, "cat", f"/proc/sys/{SYSCTL}").strip() == other
    assert own.sysctl(SYSCTL) == before
    assert netns._cookie(sock) == int(handle.identity.rpartition(":")[2])
    assert handle.identity.split(":")[1] == inside.strip("net:[]")
    assert handle.identity != own.identity
    assert not sock.get_inheritable()
    assert not os.get_inheritable(fd)
    assert not handle.legacy_tables(4)
    os.close(fd)
    sock.close()
    handle.close()
    own.close()


@pytest.mark.usefixtures("_way")
def test_several_sysctls_by_one_visit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that can be set is set, whatever becomes of the others, and no file stays open."""
    visits: list[list[str]] = []
    visit: Callable[..., list[int]] = vars(netns)["_open_files"]

    def note(*arguments: Any) -> list[int]:
        visits.append(arguments[1])
        return visit(*arguments)

    monkeypatch.setattr(netns, "_open_files", note)
    handle = NetNS(machine.container())
    missing, read_only = (
        "net/ipv4/conf/none/forwarding",
        "net/ipv4/tcp_available_congestion_control",
    )
    wrong = "net/ipv6/conf/lo/accept_dad"
    before = _state()

    failures = handle.sysctls(
        {missing: "1", SYSCTL: "1", read_only: "x", wrong: "no number", "net/ipv4/ip_forward": "1"},
        unseen={missing, SYSCTL, read_only, wrong},
    )

    assert [len(paths) for paths in visits][:1] == [4]
    assert len([paths for paths in visits if f"/proc/sys/{SYSCTL}" in paths]) == 1
    assert {name: error.errno for name, error in failures.items()} == {
        missing: errno.ENOENT,
        read_only: errno.EACCES,
        wrong: errno.EINVAL,
    }
    assert [handle.sysctl(name) for name in (SYSCTL, "net/ipv4/ip_forward")] == ["1", "1"]
    assert _state() == before
    handle.close()


@pytest.mark.usefixtures("_way")
def test_where_descriptors_are_few(machine: Machine) -> None:
    """Sysctls that cannot be open at the same time are set one after the other."""
    handle = NetNS(machine.container())
    names = [f"net/ipv6/conf/lo/{name}" for name in ("accept_ra", "accept_dad", "autoconf")]
    before, limits = _state(), resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    filler = [os.dup(handle.fd) for _ in range(highest)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler) + 3, limits[1]))
    try:
        failures = handle.sysctls(dict.fromkeys(names, "0"), unseen=names)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in filler:
            os.close(fd)

    assert failures == {}
    assert [handle.sysctl(name) for name in names] == ["0"] * len(names)
    assert _state() == before
    handle.close()


@pytest.mark.usefixtures("_way")
def test_an_interrupt_leaves_no_file(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those are closed whose turn has not come."""
    handle = NetNS(machine.container())
    before = _state()

    def interrupt(fd: int, _value: str) -> bool:
        os.close(fd)
        raise KeyboardInterrupt

    monkeypatch.setattr(netns, "_could_write", interrupt)
    names = [SYSCTL, "net/ipv4/ip_forward", "net/ipv6/conf/lo/accept_dad"]
    with pytest.raises(KeyboardInterrupt):
        handle.sysctls(dict.fromkeys(names, "1"), unseen=names)

    assert _state() == before
    handle.close()


@pytest.mark.usefixtures("_way")
def test_what_cannot_be_entered(machine: Machine, tmp_path: Path) -> None:
    """A descriptor of something else is an error that says so, and nothing has moved."""
    handle = NetNS(machine.container())
    before = _state()
    (tmp_path / "file").touch()
    with open(tmp_path / "file", "rb") as file:
        os.dup2(file.fileno(), handle.fd)

    says = f"cannot enter network namespace '{re.escape(handle.path)}': Inv"
    for _ in range(3):
        with pytest.raises(OSError, match=says) as failure:
            handle.open_socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0)
        assert failure.value.errno == errno.EINVAL
        with pytest.raises(OSError, match=says):
            handle.sysctl(SYSCTL)
        with pytest.raises(OSError, match=says):
            handle.run(int)
        failures = handle.sysctls({SYSCTL: "1"}, unseen={SYSCTL})
        assert re.match(rf"\[Errno {errno.EINVAL}\] {says}", str(failures[SYSCTL]))

    assert _state() == before
    handle.close()


VISIT = """
import os, socket, sys, _setns
own = os.readlink("/proc/thread-self/ns/net")
fd = os.open(sys.argv[1], os.O_RDONLY)
try:
    os.close(_setns.open_socket(fd, socket.AF_UNIX, socket.SOCK_DGRAM, 0))
except PermissionError:
    os._exit(10 + (os.readlink("/proc/thread-self/ns/net") != own))
os._exit(os.readlink("/proc/thread-self/ns/net") != own)
"""
PROBE, ENTER, RETURN = 1, 2, 3  # the calls of `setns` of a visit


@pytest.mark.parametrize(
    ("at", "lasting", "status"),
    [
        pytest.param(PROBE, False, 10, id="own"),
        pytest.param(ENTER, False, 10, id="enter"),
        pytest.param(RETURN, False, 0, id="return once"),
        pytest.param(RETURN, True, 128 + signal.SIGABRT, id="return"),
    ],
)
def test_no_process_goes_on_in_the_wrong_namespace(
    machine: Machine, extension: Path, tmp_path: Path, *, at: int, lasting: bool, status: int
) -> None:
    """A failing entry is an error; a failing return is tried again, or the process ends."""
    injector = Injector(tmp_path)
    injector.arm(Injection(at, errno.EPERM, lasting=lasting))
    words = injector.command(sys.executable, "-SBc", VISIT, machine.container())

    done = subprocess.run(words, env={"PYTHONPATH": str(extension)}, timeout=120, check=False)

    assert injector.what.startswith("setns")
    assert done.returncode == status
