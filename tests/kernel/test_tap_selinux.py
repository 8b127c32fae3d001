"""tap under a kernel that enforces SELinux, with the policy tests/vm/selinux.cil."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kernel.test_tap import IPV4, NOTHING, OPEN, left, network, tap_of
from tests.machine import REFERENCE_BIN, Machine

pytestmark = [pytest.mark.full_kernel, pytest.mark.selinux]

OWN, OTHER = "system_u:system_r:svirt_t:s0", "system_u:system_r:kernel_t:s0"
FORBIDDEN = "system_u:system_r:forbidden_t:s0"
_SINGLE, _MULTI = 0x5002, 0x5102  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR; IFF_MULTI_QUEUE of if_tun.h
_IN_CONTEXT = 'printf %s "$1" >/proc/self/attr/exec; shift; exec "$@"'


def opened_in(
    machine: Machine, container: str, context: str, flags: int = _SINGLE
) -> subprocess.CompletedProcess[str]:
    """Have a program in a context open the tap and send a frame."""
    program = (sys.executable, "-I", "-S", "-c", OPEN, "eth0", str(flags), "020000000099")
    return machine.try_command(container, "sh", "-c", _IN_CONTEXT, "sh", context, *program)


@pytest.mark.parametrize("multi_queue", [False, True])
def test_context(machine: Machine, multi_queue: bool) -> None:
    """The tap has the context: programs in it can open the tap, and no others."""
    container, flags = machine.container(), _MULTI if multi_queue else _SINGLE
    config = network(machine, IPV4, selinuxContext=OWN, multiQueue=multi_queue, mtu=1400)

    machine.ok("tap", "STATUS", config)
    result = machine.ok("tap", "ADD", config, container)

    refused = opened_in(machine, container, OTHER, flags)
    assert (refused.returncode, "Permission denied" in refused.stderr) == (1, True), refused
    assert opened_in(machine, container, OWN, flags).stdout == "sent\n"
    link = tap_of(machine, container)
    assert (link["mtu"], link["address"]) == (1400, result["interfaces"][0]["mac"])
    machine.ok("tap", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("tap", "DEL", config, container)
    assert left(machine, container) == NOTHING


def test_without_context(machine: Machine) -> None:
    """Without the key, the tap has the context of the plugin."""
    container = machine.container()
    machine.ok("tap", "ADD", network(machine, IPV4), container)

    assert opened_in(machine, container, OWN).returncode == 1
    assert opened_in(machine, container, OTHER).stdout == "sent\n"


@pytest.mark.parametrize("context", ["system_u:system_r:absent_t:s0", "a", "a b"])
def test_a_context_that_the_policy_lacks(machine: Machine, context: str) -> None:
    """ADD and STATUS refuse the context before anything is made; the next ADD has none."""
    container = machine.container()
    config = network(machine, IPV4, selinuxContext=context)

    for command in ("STATUS", "ADD"):
        error = machine.refused("tap", command, config, container)
        said = f"\"selinuxContext\" is '{context}', which the SELinux policy of this node"
        assert (error["code"], said in error["msg"]) == (7, True), error

    assert left(machine, container) == NOTHING
    machine.ok("tap", "DEL", config, container)
    machine.ok("tap", "ADD", network(machine, IPV4), container)
    assert opened_in(machine, container, OTHER).stdout == "sent\n"


def test_a_policy_that_forbids_ip(machine: Machine) -> None:
    """Where the context is valid and `ip` may not be run in it, ADD says so, and leaves nothing."""
    container = machine.container()
    config = network(machine, IPV4, selinuxContext=FORBIDDEN)

    error = machine.refused("tap", "ADD", config, container)

    assert f"cannot run 'ip' in the SELinux context '{FORBIDDEN}'" in error["msg"], error
    assert left(machine, container) == NOTHING
    machine.ok("tap", "DEL", config, container)


def test_the_reference(machine: Machine) -> None:
    """The reference's tap has the context, too; a context that the policy lacks fails."""
    container, other = machine.container(), machine.container()
    path = REFERENCE_BIN / "tap"

    done = machine.execute(path, "ADD", network(machine, selinuxContext=OWN), container)
    assert done.returncode == 0, done.stdout
    assert opened_in(machine, container, OTHER).returncode == 1
    assert opened_in(machine, container, OWN).stdout == "sent\n"

    done = machine.execute(path, "ADD", network(machine, selinuxContext="a"), other)
    assert (done.returncode, "failed set socket label" in done.stdout) == (1, True), done.stdout
