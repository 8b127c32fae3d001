"""Calls that are hit while they make the index of a large lease directory anew."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from plugins.host_local.store import LARGE_BYTES
from tests.faults.inject import Injection
from tests.faults.rig import DATA_DIR, STATE_DIR, Rig, network_of, sweep

OTHERS = 3000  # leases of others
MOST = 6  # calls of each sweep, in make test


@pytest.mark.parametrize("error", [0, errno.ENOSPC], ids=["killed", "no-space"])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_renewal(request: pytest.FixtureRequest, rig: Rig, command: str, error: int) -> None:
    """Wherever it is hit, the next call makes the index, and nobody's lease is lost or doubled."""
    rig.config = network_of("10.9.0.0/20")
    store = rig.node.path(f"{DATA_DIR}/net1")
    rig.add("c1")
    rig.ok("DEL", "c1")
    others = [f"10.9.{2 + n // 256}.{n % 256}" for n in range(OTHERS)]
    for number, name in enumerate(others):
        (store / name).write_text(f"other{number}\r\neth0")
    assert store.stat().st_size > LARGE_BYTES

    def scenario(injection: Injection) -> None:
        rig.container("c1")
        if command == "DEL":
            rig.add("c1")
        (store / "x").touch()  # others have changed something
        (store / "x").unlink()
        done = rig.inject(injection, command, "c1")
        rig.add("new")
        if command == "ADD" and done.returncode == 0:
            assert len(rig.addresses("c1")) == 1
        rig.assert_unique()
        for name in ("c1", "new"):
            rig.ok("DEL", name)
        names = {Path(path).name for path in rig.files(DATA_DIR)}
        assert names - {"lock", "last_reserved_ip.0"} == set(others)
        assert len(rig.files(f"{STATE_DIR}/indexes")) == 1
        assert rig.files(f"{STATE_DIR}/attachments") == []

    sweep(rig, request, scenario, error=error, most=MOST)
