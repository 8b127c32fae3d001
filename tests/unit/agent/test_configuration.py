"""The list of plugins that the agent writes: its content, its version, its file."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import configuration
from agent.cluster import Cluster, Member
from agent.configuration import Choice, ConfigurationError
from agent.snapshot import Snapshot
from cni_common.node.interface import VethFacts
from cni_common.node.record import Records
from cni_common.spec.request import Attachment

RANGES = ("10.244.1.0/24", "fd00:10:244:1::/64")


def _member(name: str, *ranges: str) -> Member:
    return Member(name, f"uid-{name}", ranges=tuple(map(ipaddress.ip_network, ranges)))


def _snapshot(*ranges: str, others: tuple[Member, ...] = (), runtime: str = "") -> Snapshot:
    return Snapshot(Cluster(_member("a", *ranges), others), runtime)


def _list(choice: Choice, snapshot: Snapshot, mtu: int = 1450) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(configuration.render(choice, snapshot, mtu))
    return found


def _bins(directory: Path, *types: str) -> Path:
    for type in types:
        (directory / type).touch()
    return directory


def test_both_families() -> None:
    """An attachment gets an address and a default route of each family, from one range set each."""
    found = _list(Choice(), _snapshot(*RANGES))

    (interface, *rest) = found["plugins"]
    assert (found["cniVersion"], found["name"]) == ("1.0.0", "pycni")
    assert (interface["type"], interface["mtu"]) == ("ptp", 1450)
    assert interface["ipam"]["ranges"] == [[{"subnet": RANGES[0]}], [{"subnet": RANGES[1]}]]
    assert interface["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert interface["ipam"]["readinessIndicatorFile"] == "/run/pycni/agent/ready"
    assert "ipMasq" not in interface
    assert [one["type"] for one in rest] == ["portmap", "bandwidth"]
    assert rest[0]["capabilities"] == {"portMappings": True}


def test_choices() -> None:
    """Bridge, firewall and no host ports are what an operator may want."""
    choice = Choice(kind="bridge", portmap=False, bandwidth=False, firewall=True)
    interface, firewall = _list(choice, _snapshot(*RANGES))["plugins"]

    assert (interface["type"], interface["bridge"]) == ("bridge", "pycni0")
    assert [interface[key] for key in ("isDefaultGateway", "hairpinMode")] == [True, True]
    assert interface["forceAddress"] is True  # of a range that the node had before
    assert firewall == {"type": "firewall"}


@pytest.mark.parametrize(
    ("families", "ranges", "lacking"),
    [
        ("auto", (), "any family"),
        ("dual", RANGES[:1], "IPv6"),
        ("ipv4", RANGES[1:], "IPv4"),
        ("dual", (), "IPv4 and IPv6"),
    ],
)
def test_never_without_ranges(families: str, ranges: tuple[str, ...], lacking: str) -> None:
    """Without a range of each family that is asked for there is no list at all."""
    with pytest.raises(ConfigurationError, match=f"no podCIDR of {lacking} yet"):
        configuration.render(Choice(families=families), _snapshot(*ranges), 1500)


def test_one_family_of_two() -> None:
    """A node with both may give its pods one."""
    found = _list(Choice(families="ipv6"), _snapshot(*RANGES))

    assert found["plugins"][0]["ipam"]["ranges"] == [[{"subnet": RANGES[1]}]]


@pytest.mark.parametrize(
    ("runtime", "version"),
    [
        ("containerd://1.6.20", "1.0.0"),
        ("containerd://2.0.2", "1.0.0"),  # STATUS can lock it up
        ("containerd://2.0.3", "1.1.0"),
        ("containerd://v2.4.2", "1.0.0"),  # not how the kubelet writes it: nothing is guessed
        ("containerd://2.4.2-rc.1", "1.1.0"),
        ("cri-o://1.31.9", "1.0.0"),
        ("cri-o://1.32.0", "1.1.0"),
        ("docker://27.0.1", "1.0.0"),
        ("", "1.0.0"),
    ],
)
def test_version(runtime: str, version: str) -> None:
    """The list has the newest version that the runtime of the node reads, or the one asked for."""
    assert configuration.cni_version(Choice(), runtime) == version
    assert configuration.cni_version(Choice(cni_version="1.1.0"), runtime) == "1.1.0"


@pytest.mark.parametrize(
    ("others", "taker"),
    [((), ""), (("b",), ""), (("A-node",), "A-node"), (("b", "A-other", "A-node"), "A-node")],
)
def test_overlap_takes_packets(others: tuple[str, ...], taker: str) -> None:
    """Pods that run lose the packets of other nodes where another node's name comes first."""
    overlapping = tuple(_member(name, "10.244.0.0/16") for name in others)

    assert configuration.taker(_snapshot(*RANGES, others=overlapping)) == taker


def test_overlap_closes() -> None:
    """A range that another node has, too, is closed, and the list says with which node."""
    other = _member("b", "10.244.0.0/16", "fd00:20::/64")
    alone = _list(Choice(), _snapshot(*RANGES, others=(_member("b", "10.244.2.0/24"),)))
    found = _list(Choice(), _snapshot(*RANGES, others=(other,)))

    assert "closed" not in alone["plugins"][0]["ipam"]
    closed = found["plugins"][0]["ipam"]["closed"]
    assert "podCIDR 10.244.1.0/24 of node a overlaps 10.244.0.0/16 of node b" in closed


class TestTemplate:
    """A list of the operator's own."""

    def test_filled(self, tmp_path: Path) -> None:
        """Placeholders are replaced by values, also by those that are no text."""
        path = tmp_path / "template.conflist"
        ipam = {"type": "host-local", "ranges": "${ranges}", "routes": "${routes}"}
        macvlan = {"type": "macvlan", "mtu": "${mtu}", "ipam": ipam, "label": "cost: ${5}"}
        path.write_text(json.dumps({"name": "own", "plugins": [macvlan, {"type": "tuning"}]}))

        found = _list(Choice(template=path, network="own"), _snapshot(*RANGES), 1400)

        assert (found["name"], found["cniVersion"]) == ("own", "1.0.0")
        assert found["plugins"][0]["mtu"] == 1400
        assert found["plugins"][0]["label"] == "cost: ${5}"
        assert found["plugins"][0]["ipam"]["ranges"][0] == [{"subnet": RANGES[0]}]
        assert found["plugins"][1] == {"type": "tuning"}

    def test_closed(self, tmp_path: Path) -> None:
        """An overlap closes host-local in a template, too, and so does a boot."""
        path = tmp_path / "template.conflist"
        path.write_text(json.dumps({"plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}]}))
        snapshot = _snapshot(*RANGES, others=(_member("b", RANGES[0]),))

        found = _list(Choice(template=path), snapshot)

        ipam = found["plugins"][0]["ipam"]
        assert "overlaps" in ipam["closed"]
        assert ipam["readinessIndicatorFile"] == "/run/pycni/agent/ready"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "cannot be read"),
            ("[]", "no list of plugins"),
            ('{"plugins": []}', "no list of plugins"),
            ('{"plugins": [{"type": 5}]}', "no list of plugins"),
            ('{"plugins": [{"type": "ptp", "mtu": "${MTU}"}]}', "has ${MTU}"),
            ('{"name": "own", "plugins": [{"type": "ptp"}]}', "network is 'pycni'"),
        ],
    )
    def test_refused(self, tmp_path: Path, text: str, message: str) -> None:
        """A file that is no list, or has an unknown placeholder, is refused."""
        path = tmp_path / "template.conflist"
        path.write_text(text)

        with pytest.raises(ConfigurationError) as caught:
            configuration.render(Choice(template=path), _snapshot(*RANGES), 1500)

        assert message in str(caught.value)

    def test_absent(self, tmp_path: Path) -> None:
        """A template that is not there is an error, not a reason for ours."""
        choice = Choice(template=tmp_path / "none")

        with pytest.raises(ConfigurationError, match="cannot be read"):
            configuration.render(choice, _snapshot(*RANGES), 1500)


class TestFile:
    """The file in the runtime's directory."""

    def test_written_once(self, tmp_path: Path) -> None:
        """The same content once more leaves the file as it is; nothing else is left beside it."""
        bins = _bins(tmp_path, "ptp", "host-local", "portmap", "bandwidth")
        choice = Choice(directory=tmp_path / "net.d")
        text = configuration.render(choice, _snapshot(*RANGES), 1450)

        assert configuration.write(choice, text, bins)
        before = choice.path.stat()
        assert not configuration.write(choice, text, bins)

        after = choice.path.stat()  # the time of the last look at it may differ
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert [one.name for one in choice.directory.iterdir()] == ["10-pycni.conflist"]
        assert configuration.write(choice, text.replace(b"1450", b"1400"), bins)
        assert choice.path.stat().st_ino != before.st_ino

    def test_binaries_first(self, tmp_path: Path) -> None:
        """A list whose plugins are not all there is not written: containerd would leak."""
        bins = _bins(tmp_path, "ptp", "portmap")
        choice = Choice(directory=tmp_path / "net.d")
        text = configuration.render(choice, _snapshot(*RANGES), 1450)

        with pytest.raises(ConfigurationError, match="lacks bandwidth, host-local"):
            configuration.write(choice, text, bins)

        assert not choice.directory.exists()

    def test_foreign_list_stays(self, tmp_path: Path) -> None:
        """Only a list of our network is removed, whatever the file is called."""
        choice = Choice(directory=tmp_path)
        choice.path.write_text('{"name": "cbr0", "plugins": [{"type": "flannel"}]}')

        assert not configuration.set_aside(choice)
        assert choice.path.exists()
        assert configuration.set_aside(replace(choice, network="cbr0"))
        assert not choice.path.exists()

    def test_set_aside(self, tmp_path: Path) -> None:
        """A list comes back as it was, unless another has come; or goes for good."""
        choice = Choice(directory=tmp_path)
        text = b'{"name": "pycni", "plugins": []}'
        for again in (b"", b"another"):
            choice.path.write_bytes(text)
            assert configuration.set_aside(choice)
            if again:
                choice.path.write_bytes(again)
            configuration.restore(choice)
            assert choice.path.read_bytes() == (again or text)
        configuration.forget(choice)
        configuration.forget(choice)
        assert [path.name for path in tmp_path.iterdir()] == [choice.name]

    def test_another_comes_first(self, tmp_path: Path) -> None:
        """A file with an earlier name is what the runtime uses: that is said, and it stays."""
        for name in ("00-note.txt", "05-other.conf", "10-pycni.conflist", "20-later.conflist"):
            (tmp_path / name).touch()

        (found,) = configuration.problems(Choice(directory=tmp_path), ())

        assert f"uses '{tmp_path}/05-other.conf'" in found
        (tmp_path / "05-other.conf").unlink()
        assert configuration.problems(Choice(directory=tmp_path), ()) == []
        assert configuration.problems(Choice(directory=tmp_path / "none"), ()) == []

    def test_bridge_needs_netfilter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without br_netfilter a bridge breaks Services on one node: the agent says how to mend."""
        choice, ranges = Choice(directory=tmp_path, kind="bridge"), _member("a", *RANGES).ranges
        sysctls = tmp_path / "bridge"
        monkeypatch.setattr(configuration, "_BRIDGE_SYSCTLS", sysctls)

        (missing,) = configuration.problems(choice, ranges)
        sysctls.mkdir()
        (sysctls / "bridge-nf-call-iptables").write_text("1\n")
        (sysctls / "bridge-nf-call-ip6tables").write_text("0\n")
        (off,) = configuration.problems(choice, ranges)

        assert "modprobe br_netfilter" in missing
        assert "sysctl net.bridge.bridge-nf-call-ip6tables=1" in off
        assert configuration.problems(replace(choice, kind="ptp"), ranges) == []


def test_pods_of_another_plugin(tmp_path: Path) -> None:
    """Those whose link is there are told of, by plugin; and of no other network, or template."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    records = Records(str(state))
    for plugin, network, container, device in (
        ("bridge", "pycni", "c1", "lo"),
        ("bridge", "pycni", "c2", "gone"),
        ("ptp", "pycni", "c3", "lo"),
        ("bridge", "other", "c4", "lo"),
        ("portmap", "pycni", "c1", "lo"),
    ):
        made = records.hold(plugin, network, Attachment(container, "eth0"))
        assert made
        made.put(VethFacts(device), plugin=plugin, network=network, containerid=container)
        made.close()
    records.close()

    def told(**keys: Any) -> list[str]:
        return configuration.of_another_plugin(Choice(**keys), str(state))

    (ptp,), (bridge,) = told(), told(kind="bridge")
    assert "attached by the plugin bridge, and do not reach those of ptp" in ptp
    assert "attached by the plugin ptp, and do not reach those of bridge" in bridge
    assert told(network="none") == told(template=tmp_path) == []
