"""Damaged files, as the installed programs read them: their JSON reader is not Python's own."""

from __future__ import annotations

import pytest

from tests.faults.rig import Rig, configuration


@pytest.mark.parametrize(
    "content",
    [b"\xff\n{}\n", b'{"format":1,"plu\n{"veth":{}}\n', b"\0" * 4096 + b"\n[1]\n", b'{"format":1'],
    ids=["garbage", "cut short", "zeros", "half"],
)
def test_record(rig: Rig, content: bytes) -> None:
    """DEL and GC get over a damaged record of any plugin, and nothing is left."""
    rig.config = configuration("ipv4")
    rig.add("c1")
    for path in rig.files("/run/pycni/attachments"):
        rig.node.path(path).write_bytes(content)

    rig.ok("GC")
    rig.ok("DEL", "c1")

    rig.assert_clean()
