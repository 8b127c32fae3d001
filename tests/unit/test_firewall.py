"""firewall's pure parts: its configuration, rules as text and as expressions, chains, D-Bus."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_common.kernel.netlink import attribute
from cni_common.kernel.nft_messages import Rule
from cni_common.spec.errors import CNIError
from cni_common.spec.request import Request
from plugins.firewall import cni_forward, dbus
from plugins.firewall.conf import Conf, addresses_of
from plugins.firewall.filter_tables import APPEND, DELETE, DELETE_CHAIN, INSERT, Edit
from plugins.firewall.rules import ACCEPT, DROP, Line, addresses_in, signature_of

A, B = ip_address("10.9.0.2"), ip_address("10.9.0.3")
V6 = ip_address("fd00:9::2")


def request(**keys: Any) -> Request:
    """Return an ADD with these keys."""
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/n", "CNI_PATH": "/p"}
    parsed = Request.parse(
        {**environ, "CNI_IFNAME": "eth0"}, b'{"cniVersion":"1.0.0","name":"net","type":"firewall"}'
    )
    return replace(parsed, config={**parsed.config, **keys})


def test_defaults() -> None:
    """Absent and empty keys mean the same."""
    empty = {"backend": "", "ingressPolicy": "", "iptablesAdminChainName": "", "firewalldZone": ""}

    assert Conf.of(request(**empty)) == Conf.of(request())
    assert Conf.of(request()) == Conf("", "open", "CNI-ADMIN", "trusted")


@pytest.mark.parametrize(
    "name", ["a b", "-A", "!x", 'q"', "q'", "x" * 29, "DROP", "FORWARD", "ä", "a\n", "a\\"]
)
def test_admin_chain(name: str) -> None:
    """A name that iptables would take for something else is refused."""
    with pytest.raises(CNIError, match="iptablesAdminChainName") as caught:
        Conf.of(request(iptablesAdminChainName=name))

    assert caught.value.code == 7


def test_addresses() -> None:
    """Every address counts once, whatever interface it is on."""
    ips = [
        {"address": "10.9.0.2/24", "interface": 0},
        {"address": "10.9.0.2/16"},
        {"address": "fd00:9::2/64"},
    ]
    previous = {"cniVersion": "1.0.0", "interfaces": [{"name": "br0"}], "ips": ips}

    assert addresses_of(request(prevResult=previous).prev_result) == [A, V6]
    assert addresses_of(None) == []


LINES = {
    "-s 10.9.0.2/32 -j ACCEPT": Line(ACCEPT, source=A),
    "-d fd00:9::2/128 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": Line(
        ACCEPT, destination=V6, established=True
    ),
    '-i br0 ! -o br0 -m comment --comment "a (b: c|d)" -j NEXT': Line(
        "NEXT", iif="br0", but_oif="br0", comment="a (b: c|d)"
    ),
    "-o br0 -j DROP": Line(DROP, oif="br0"),
}


@pytest.mark.parametrize("text", LINES)
def test_text(text: str) -> None:
    """A rule reads as iptables lists it."""
    assert LINES[text].text() == text


def rule(*expressions: bytes, comment: str = "") -> Rule:
    """Return a rule as the kernel would tell it."""
    return Rule(1, comment, "", (), b"".join(attribute(1, part) for part in expressions))


def test_signature() -> None:
    """Each rule is known by its expressions, whatever its counters are, and no other is."""
    signatures = {line.signature() for line in LINES.values()}

    assert len(signatures) == len(LINES)
    for line in LINES.values():
        counted = [
            part.replace(b"counter\0", b"counter\0" + bytes(0)) for part in line.expressions()
        ]
        assert signature_of(rule(*counted)) == line.signature()


def test_comment_in_either_place() -> None:
    """A comment counts the same as a match and beside the rule."""
    line = Line(DROP, oif="br0", comment="why")
    bare = Line(DROP, oif="br0")

    assert signature_of(rule(*bare.expressions(), comment="why")) == line.signature()
    assert signature_of(rule(*bare.expressions())) != line.signature()


@given(st.ip_addresses(), st.booleans())
def test_addresses_in(address: Any, as_source: bool) -> None:
    """The address of a rule is found in its text and in its signature."""
    line = Line(ACCEPT, source=address) if as_source else Line(ACCEPT, destination=address)

    assert addresses_in(line.text()) == [address]
    assert addresses_in(line.signature()) == [address]


# --- chains ---


class Chains:
    """A table filter in memory."""

    name, version = "a table", 4

    def __init__(self) -> None:
        self.chains: dict[str, list[str]] = {"FORWARD": []}

    def rules(self, chain: str) -> list[Any] | None:
        """Return what is in a chain."""
        return list(self.chains[chain]) if chain in self.chains else None

    def key(self, line: Line) -> str:
        """Return the rule's text."""
        return line.text()

    def drops(self) -> bool:
        """Tell that it does not."""
        return False

    def is_used(self) -> bool:
        """Tell that it is."""
        return True

    def look(self, chain: str) -> None:
        """Find nothing wrong."""

    def is_ours(self, chain: str) -> bool:
        """Tell whether we may remove a chain."""
        return chain == "CNI-ADMIN"

    def unheld(self, chain: str, line: Line) -> int:
        """Return how many such rules there are."""
        return self.chains.get(chain, []).count(line.text())

    def commit(self, edits: Sequence[Edit]) -> list[int]:
        """Carry out all edits."""
        for edit in edits:
            if edit.line is None:
                if edit.what == DELETE_CHAIN:
                    del self.chains[edit.chain]
                else:
                    self.chains[edit.chain] = []
                continue
            chain, text = self.chains[edit.chain], edit.line.text()
            if edit.what == INSERT:
                chain.insert(0, text)
            elif edit.what == APPEND:
                chain.append(text)
            else:
                assert edit.what == DELETE
                chain.remove(text)
        return []


def test_admit_and_withdraw() -> None:
    """Admitted addresses are withdrawn, and the chains go with the last."""
    table = Chains()
    cni_forward.admit(table, [A], "CNI-ADMIN")
    cni_forward.admit(table, [A, B], "CNI-ADMIN")

    assert cni_forward.admitted(table) == [A, B]
    assert list(cni_forward.missing(table, [A], "CNI-ADMIN")) == []
    assert len(table.chains["CNI-FORWARD"]) == 5
    cni_forward.withdraw(table, [A], "CNI-ADMIN")
    assert cni_forward.admitted(table) == [B]
    cni_forward.withdraw(table, [B], "CNI-ADMIN")
    assert table.chains == {"FORWARD": []}


def test_what_is_in_the_administrators_chain_stays() -> None:
    """A chain with rules is not ours to remove, nor one that we did not make."""
    table = Chains()
    table.chains |= {"CNI-ADMIN": ["-j LOG"], "MINE": []}
    for admin in ("CNI-ADMIN", "MINE"):
        cni_forward.admit(table, [A], admin)
        cni_forward.withdraw(table, [A], admin)

    assert table.chains == {"FORWARD": [], "CNI-ADMIN": ["-j LOG"], "MINE": []}


def test_duplicates_go_at_once() -> None:
    """Rules that racing calls of the Go plugin have made twice go together."""
    table = Chains()
    cni_forward.admit(table, [A], "CNI-ADMIN")
    table.chains["CNI-FORWARD"] *= 2
    table.chains["FORWARD"] *= 2

    cni_forward.withdraw(table, [A], "CNI-ADMIN")

    assert table.chains == {"FORWARD": []}


POLICIES = st.lists(
    st.tuples(
        st.sampled_from(["br0", "br1"]), st.sets(st.sampled_from(["same-bridge", "isolated"]))
    ),
    max_size=8,
)


@given(POLICIES)
def test_policies(steps: list[tuple[str, set[str]]]) -> None:
    """After any history a bridge has the rules of its strictest policy, or none."""
    table = Chains()
    cni_forward.admit(table, [A], "CNI-ADMIN")
    last: dict[str, set[str]] = {}
    for bridge, policies in steps:
        cni_forward.isolate(table, bridge, policies)
        last[bridge] = policies

    for bridge, policies in last.items():
        strictest = "isolated" if "isolated" in policies else next(iter(policies), "")
        assert cni_forward.is_isolated(table, bridge) == bool(policies)
        if strictest:
            assert list(cni_forward.missing_of_policy(table, bridge, strictest)) == []
        drop = Line(
            DROP,
            iif=bridge,
            oif=bridge,
            comment="CNI firewall plugin rules (ingressPolicy: isolated)",
        ).text()
        assert (drop in table.chains.get(cni_forward.STAGE_1, [])) == (strictest == "isolated")
    if not any(last.values()):
        assert cni_forward.STAGE_1 not in table.chains
        assert len(table.chains["FORWARD"]) == 1


def test_policies_stay_first() -> None:
    """When CNI-FORWARD comes anew, it comes after the policies; CHECK knows when it does not."""
    table = Chains()
    cni_forward.isolate(table, "br0", ["same-bridge"])
    cni_forward.admit(table, [A], "CNI-ADMIN")
    right = list(cni_forward.missing_of_policy(table, "br0", "same-bridge"))
    table.chains["FORWARD"].reverse()

    assert right == []
    (wrong,) = cni_forward.missing_of_policy(table, "br0", "same-bridge")
    assert "before" in wrong


# --- D-Bus ---


def test_call() -> None:
    """A method call is what the specification's example of a header says."""
    fields = [(1, "o", "/a"), (3, "s", "M")]

    message = dbus.encode_call(7, fields, ("x", "yz"))

    order, kind, flags, version, length, serial, header = struct.unpack_from("<cBBBIII", message)
    assert (order, kind, flags, version, serial) == (b"l", 1, 2, 1, 7)
    body = message[16 + header + -header % 8 :]
    assert len(body) == length
    assert body == b"\1\0\0\0x\0\0\0" + b"\2\0\0\0yz\0"
    parsed = dict(dbus.fields(message[16 : 16 + header], "<"))
    assert parsed == {1: "/a", 3: "M", 8: "ss"}


@pytest.mark.parametrize("order", "<>")
def test_values(order: str) -> None:
    """Values are read in either byte order, from where they are aligned to."""
    number = struct.pack(f"{order}I", 1)

    assert dbus.value("s", b"..\0\0" + number + b"a\0", 2, order) == ("a", 10)
    assert dbus.value("b", number, 0, order) == (True, 4)
    assert dbus.value("u", number, 0, order) == (1, 4)
    assert dbus.value("g", b"\2ss\0", 0, order) == ("ss", 4)
    with pytest.raises(OSError, match="type 'a'"):
        dbus.value("a", number, 0, order)


@pytest.mark.parametrize(
    ("address", "path"),
    [("unix:path=/a%20b", b"/a b"), ("unix:path=/c,guid=1", b"/c"), ("unix:abstract=x", b"\0x")],
)
def test_paths(address: str, path: bytes) -> None:
    """An address leads to a path, with what is escaped in it."""
    assert dbus.path_of(address) == path


@pytest.mark.parametrize(
    "address", ["", "tcp:host=a", "unix:", "unix:tmpdir=/tmp", "unix:path=/%zz"]
)
def test_no_path(address: str) -> None:
    """Other addresses lead nowhere."""
    assert dbus.path_of(address) == b""
