"""Netlink's attributes without a kernel: the wanted ones of a message are found, and no more."""

from __future__ import annotations

import struct

from cni_common.kernel.netlink import attribute, attributes, chosen_attributes, string, u32

NESTED = 0x8000  # NLA_F_NESTED, which the kernel may set on a type


def test_chosen_attributes_are_those_of_all() -> None:
    """Each kind that is asked for is found, wherever it is, and a kind that is absent is not."""
    data = bytes(16) + u32(1, 5) + string(2, "br") + attribute(3) + u32(NESTED | 4, 7) + u32(5, 9)
    every = attributes(data, 16)

    assert set(every) == {1, 2, 3, 4, 5}
    for kinds in ({1}, {5}, {2, 4}, {3}, {1, 2, 3, 4, 5}, {6}, {1, 6}):
        wanted = {kind: every[kind] for kind in kinds & set(every)}
        assert chosen_attributes(data, 16, frozenset(kinds)) == wanted


def test_nothing_is_read_behind_the_last_that_was_asked_for() -> None:
    """An attribute of length 0, which no kernel sends, is passed over, or not even reached."""
    odd = struct.pack("=HH", 0, 8)

    assert chosen_attributes(odd + u32(1, 5), 0, frozenset((1,))) == {1: struct.pack("=I", 5)}
    assert chosen_attributes(u32(1, 5) + u32(1, 6) + odd, 0, frozenset((1,))) == {
        1: struct.pack("=I", 5)
    }
