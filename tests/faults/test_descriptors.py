"""Few descriptors (RLIMIT_NOFILE): an ADD that runs out of them takes back what it has made."""

from __future__ import annotations

import json

import pytest

from tests.e2e.node import Done
from tests.faults.rig import DATA_DIR, Rig, configuration

_LIMITS = range(10, 44)


def limited(rig: Rig, limit: int, command: str) -> Done:
    """Run bridge for the container c1 with so many descriptors."""
    env = {"CNI_COMMAND": command, "CNI_PATH": str(rig.node.bin_dir), "CNI_CONTAINERID": "c1"}
    env |= {"CNI_IFNAME": "eth0", "CNI_NETNS": rig.container("c1")}
    words = ("prlimit", f"--nofile={limit}:{limit}", rig.node.bin_dir / "bridge")
    return rig.node.run(*words, stdin=json.dumps(rig.config), env=env)


def starts(rig: Rig, limit: int) -> bool:
    """Tell whether the program starts with so many descriptors."""
    done = limited(rig, limit, "NONE")
    return "unknown CNI_COMMAND: NONE" in done.stdout


@pytest.mark.parametrize("kind", ["ipv4", "dual"])
def test_an_add_without_descriptors(rig: Rig, kind: str) -> None:
    """It leaves nothing, says so, and DEL succeeds with the same limit."""
    rig.config = configuration(kind, macspoofchk=True)
    rig.add("c2")
    outcomes = set()

    for limit in _LIMITS:
        if not starts(rig, limit):
            continue
        added = limited(rig, limit, "ADD")
        outcomes.add(added.returncode)
        if added.returncode == 0:
            rig.check("c1", json.loads(added.stdout))
            rig.ok("DEL", "c1")
        else:
            assert "Too many open files" in added.stdout, (limit, added)
            assert "undo of" not in added.stdout, (limit, added)
            assert rig.addresses("c1") == [], limit
            deleted = limited(rig, limit, "DEL")
            # Whether a lease is there cannot be told without a descriptor for its directory.
            assert deleted.returncode == 0 or f"'{DATA_DIR}" in deleted.stdout, (limit, deleted)
            rig.ok("DEL", "c1")
        assert len(rig.files("/run/pycni/attachments")) == 2, limit  # c2's alone

    assert outcomes == {0, 1}
    rig.ok("DEL", "c2")
    rig.assert_clean()
