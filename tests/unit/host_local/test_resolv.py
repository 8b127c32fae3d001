"""plugins/host_local/resolv.py: resolv.conf as part of a result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cni_common.spec.errors import CNIError, Code
from plugins.host_local import resolv


@pytest.mark.parametrize(
    ("text", "dns"),
    [
        ("", {}),
        ("# nameserver 1.1.1.1\n; nameserver 1.1.1.1\n\n   \n", {}),
        ("nameserver 1.1.1.1 2.2.2.2\nnameserver fe80::1%eth0\n",
         {"nameservers": ["1.1.1.1", "fe80::1%eth0"]}),
        ("nameserver\nsearch\noptions\ndomain\n", {}),
        ("domain a.example\n  domain\tb.example x\n", {"domain": "b.example"}),
        ("search a b\nsearch c\n", {"search": ["a", "b", "c"]}),
        ("options ndots:5\noptions rotate edns0\n", {"options": ["ndots:5", "rotate", "edns0"]}),
        ("nameserver 1.1.1.1 # main\r\nsortlist 1\nNAMESERVER 2.2.2.2",
         {"nameservers": ["1.1.1.1"]}),
        ("search a # b", {"search": ["a", "#", "b"]}),
    ],
)  # fmt: skip
def test_parse(text: str, dns: dict[str, Any]) -> None:
    """Lines are read as the reference implementation reads them."""
    assert resolv.parse(text) == dns


def test_read_keeps_the_order_of_the_specification(tmp_path: Path) -> None:
    """The keys come in the order in which old results print them."""
    path = tmp_path / "resolv.conf"
    path.write_text("options a\nsearch b\ndomain c\nnameserver 1.1.1.1\n")

    assert list(resolv.read(str(path))) == ["nameservers", "domain", "search", "options"]


def test_unreadable(tmp_path: Path) -> None:
    """A missing file, a directory, a FIFO and a huge file are refused without waiting."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").write_bytes(b"#" * (resolv.BYTES_MAX + 1))

    for name, reason in (
        ("none", "No such file"),
        ("", "not a regular file"),
        ("fifo", "not a regular file"),
        ("huge", "larger than"),
    ):
        with pytest.raises(CNIError, match=reason) as caught:
            resolv.read(str(tmp_path / name))
        assert caught.value.code == Code.INVALID_CONFIG
        assert "ipam.resolvConf" in caught.value.msg
