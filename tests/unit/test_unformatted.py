"""Records of format 1, those without a format, and those of a newer one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_common.node import unformatted
from cni_common.node.interface import IpamFacts, MasqueradeFacts, VethFacts
from cni_common.node.record import FORMAT, NewerFormatError, Records, dump, load
from cni_common.spec.errors import Code
from cni_common.spec.request import Attachment
from plugins import TYPES
from plugins import load as load_plugin
from plugins.bandwidth.parts import IfbFacts, LimitsFacts
from plugins.bridge.parts import GatewayFacts, MacFilterFacts
from plugins.firewall.facts import FirewallFacts, IsolationFacts
from plugins.host_local.lease import LeaseFacts
from plugins.portmap.claims import HostPortsFacts
from plugins.portmap.parts import ConnectionsFacts, RouteLocalnetFacts
from plugins.tuning.parts import BackupFacts, InterfaceFacts, SysctlsFacts

ROOT = Path(__file__).resolve().parents[2]
OWNER = Attachment("c1", "eth0")
_HEADER = (
    '"network":"n1","containerid":"c1","ifname":"eth0","netns":"/run/netns/c1","netns_id":"4:17"'
)
# Files as release 0.1 wrote them, and what they say.
FILES: dict[str, tuple[str, list[object]]] = {
    "bridge": (
        f'{{"plugin":"bridge",{_HEADER},"ipam":"host-local","stdin":"{{}}","cni_args":"K=V",'
        '"cni_path":"/opt/cni/bin","masquerade":""}\n'
        '{"veth":"veth1","veth_mac":"02:00:00:00:00:01","mac":"02:00:00:00:00:02"}\n'
        '{"mac_filter":"02:00:00:00:00:02"}\n'
        '{"gateway_interface":"cni0","gateways":["10.0.0.1/24"]}\n'
        '{"masquerade":"nftables","addresses":["10.0.0.2/24","fd00::2/64"]}\n',
        [
            VethFacts("veth1", "02:00:00:00:00:01", "02:00:00:00:00:02"),
            MasqueradeFacts("nftables", ["10.0.0.2/24", "fd00::2/64"]),
            MacFilterFacts("veth1", "02:00:00:00:00:02"),
            GatewayFacts("cni0", ["10.0.0.1/24"]),
            IpamFacts("host-local"),
        ],
    ),
    "ptp": (
        f'{{"plugin":"ptp",{_HEADER},"ipam":"static","stdin":"{{}}","masquerade":""}}\n'
        '{"veth":"veth2","veth_mac":"02:00:00:00:00:03","mac":"02:00:00:00:00:04"}\n',
        [VethFacts("veth2", "02:00:00:00:00:03", "02:00:00:00:00:04"), IpamFacts("static")],
    ),
    "portmap": (
        f'{{"plugin":"portmap",{_HEADER},"backend":"nftables","localnet":"cni0",'
        '"localnet_private":true,"ports":[["udp",53,"",4]],"udp":[[4,53,"0a000002",5353]],'
        '"elements":[["hostports4","11000035","0a00000214e9"]],"chains":["hairpin-1"],'
        '"suffix":"-ab"}\n'
        '{"heirs":[["n2","eth1"]]}\n',
        [
            RouteLocalnetFacts("cni0", private=True),
            HostPortsFacts(
                "nftables",
                [["udp", 53, "", 4]],
                [["hostports4", "11000035", "0a00000214e9"]],
                ["hairpin-1"],
                "-ab",
                [["n2", "eth1"]],
            ),
            ConnectionsFacts([[4, 53, "0a000002", 5353]]),
        ],
    ),
    "bandwidth": (
        f'{{"plugin":"bandwidth",{_HEADER},"host_veth":"veth1","host_veth_index":7,'
        '"host_veth_mac":"02:00:00:00:00:01","stdin":"{}"}\n'
        '{"ingress":true,"egress":true}\n'
        '{"ifb":"bwp1","ifb_mac":"02:00:00:00:00:05"}\n',
        [
            LimitsFacts("veth1", "02:00:00:00:00:01", 7, ingress=True, egress=True),
            IfbFacts("bwp1", "02:00:00:00:00:05"),
        ],
    ),
    "tuning": (
        f'{{"plugin":"tuning",{_HEADER},"backup":"/run/cni/tuning/c1_eth0.json","stdin":"{{}}"}}\n'
        '{"sysctls":{"net/core/somaxconn":"128"}}\n'
        '{"sysctls_after":{"net/core/somaxconn":"500"}}\n'
        '{"device":{"mtu":1500}}\n',
        [
            InterfaceFacts({"mtu": 1500}),
            SysctlsFacts({"net/core/somaxconn": "128"}, {"net/core/somaxconn": "500"}),
            BackupFacts("/run/cni/tuning/c1_eth0.json"),
        ],
    ),
    "firewall": (
        f'{{"plugin":"firewall",{_HEADER},"backend":"iptables","addresses":["10.0.0.2"],'
        '"admin_chain":"CNI-ADMIN","zone":"trusted","policy":"isolated","bridge":"cni0",'
        '"port":"veth1","stdin":"{}","bus":"unix:path=/bus"}\n'
        '{"found":true}\n',
        [
            FirewallFacts("iptables", ["10.0.0.2"], "CNI-ADMIN", "trusted", "unix:path=/bus", []),
            IsolationFacts("isolated", "cni0", "veth1", found=True),
        ],
    ),
    "host-local": (
        f'{{"plugin":"host-local",{_HEADER},"directory":"/var/lib/cni/networks/n1",'
        '"addresses":[],"pod":"default/web","pod_uid":"u1","gone_since":null}\n'
        '{"addresses":["10.0.0.2"],"gone_since":null}\n'
        '{"gone_since":12.5}\n',
        [LeaseFacts("/var/lib/cni/networks/n1", ["10.0.0.2"], "default/web", "u1")],
    ),
}


def facts_of(plugin: str) -> list[Any]:
    """Return the dataclasses of a plugin's parts."""
    module = load_plugin(plugin)
    lifecycle = module.lifecycle() if module else None
    return [part.facts for part in lifecycle.parts] if lifecycle else []


RECORDING = [plugin for plugin in TYPES if facts_of(plugin)]


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """The records of a node that has none."""
    made = Records(str(tmp_path))
    yield made
    made.close()


def written(records: Records, plugin: str, text: str) -> Path:
    """Return the file of the attachment's record, with this text."""
    path = Path(records.begin(plugin, "n1", OWNER, {}).path)
    records.close()
    path.write_text(text)
    return path


def test_every_plugin() -> None:
    """Each plugin that can be read without a format has a file here."""
    assert sorted(FILES) == sorted(unformatted._PARTS)
    assert {*FILES} <= {*RECORDING}


@pytest.mark.parametrize("plugin", FILES)
def test_without_a_format(records: Records, plugin: str) -> None:
    """The notes of a released plugin are read as facts of its parts."""
    text, expected = FILES[plugin]
    path = written(records, plugin, text)

    record = records.find(plugin, "n1", OWNER)

    assert record is not None
    assert record.is_begun()
    found = [record.get(kind) for kind in facts_of(plugin)]
    assert [one for one in found if one is not None] == expected
    assert (record.plugin, record.network, record.attachment) == (plugin, "n1", OWNER)
    assert (record.facts["netns"], record.facts["netns_id"]) == ("/run/netns/c1", "4:17")
    assert path.read_text() == text  # reading changes nothing


@pytest.mark.parametrize("plugin", FILES)
def test_noted_on(records: Records, plugin: str) -> None:
    """A part that is noted in such a record gives it the format, and all else stays."""
    text, expected = FILES[plugin]
    written(records, plugin, text)
    record = records.find(plugin, "n1", OWNER)
    assert record is not None
    before = dict(record.facts)

    record.put(expected[0])
    record.note(gone_since=3.0)
    records.close()

    again = records.find(plugin, "n1", OWNER)
    assert again is not None
    assert again.facts == {**before, **dump(expected[0]), "gone_since": 3.0}


@pytest.mark.parametrize("header", [True, False])
def test_header_alone(records: Records, header: bool) -> None:
    """A note that is about no part leaves the record as it was."""
    text, _ = FILES["bridge"]
    path = written(records, "bridge", text if header else text.partition("\n")[2])
    record = records.find("bridge", "n1", OWNER)
    assert record is not None

    record.note(gone_since=3.0)
    records.close()

    assert '"format"' not in path.read_text()
    again = records.find("bridge", "n1", OWNER)
    assert again is not None
    assert (again.is_begun(), again.facts["gone_since"]) == (header, 3.0)


class TestNewer:
    """A record of a newer release."""

    _TEXT = '{"format": 2, "what": ["is", "in", "it"]}\n'

    @pytest.mark.parametrize("how", ["find", "open", "of_plugin", "listing"])
    def test_refused(self, records: Records, how: str) -> None:
        """It is refused with its file, its format and what to do; nothing is changed."""
        path = written(records, "bridge", self._TEXT)

        calls: dict[str, Callable[[], object]] = {
            "find": lambda: records.find("bridge", "n1", OWNER),
            "open": lambda: records.open(str(path)),
            "of_plugin": lambda: list(records.of_plugin("bridge")),
            "listing": lambda: list(records.listing()),
        }

        with pytest.raises(NewerFormatError, match=r"has format 2.*use the release") as caught:
            calls[how]()

        assert str(path) in caught.value.msg
        assert caught.value.code == Code.DECODING_FAILURE
        assert path.read_text() == self._TEXT

    def test_of_others(self, records: Records) -> None:
        """The records of other plugins are not concerned."""
        written(records, "bridge", self._TEXT)

        assert list(records.of_plugin("ptp")) == []


class TestFacts:
    """Rules for the dataclasses of parts."""

    @pytest.mark.parametrize("plugin", RECORDING)
    def test_defaults(self, plugin: str) -> None:
        """Every field has a default: a later release may add one."""
        for kind in facts_of(plugin):
            assert load(kind, {kind.PART: {}}) == kind()

    @pytest.mark.parametrize("plugin", FILES)
    def test_json(self, plugin: str) -> None:
        """Facts survive their way through a file; unknown fields are left aside."""
        for facts in FILES[plugin][1]:
            noted: Any = json.loads(json.dumps(dump(facts)))
            (part,) = noted
            for data in (noted, {part: {**noted[part], "later": 1}}):
                assert json.loads(json.dumps(dump(load(type(facts), data)))) == noted

    def test_absent(self) -> None:
        """A part that is not noted is None, also where its name means something else."""
        assert load(VethFacts, {}) is None
        assert load(VethFacts, {"veth": "veth1"}) is None

    def test_names(self) -> None:
        """No two parts of a plugin have one name, and none has that of a fact of all records."""
        header = {key for text, _ in FILES.values() for key in ("format", *_keys_of_page())}
        for plugin in RECORDING:
            names = [kind.PART for kind in facts_of(plugin)]
            assert len({*names}) == len(names)
            assert not header & {*names}


def _keys_of_page() -> list[str]:
    """Return the facts of all records, by the first table of docs/records.md."""
    page = (ROOT / "docs" / "records.md").read_text()
    return re.findall(r"^\| `(\w+)` \|", page.partition("\n## ")[0], re.M)


def plugin_of(kind: type[object], plugin: str) -> str:
    """Return by what a table of parts names the plugin that has a part."""
    return "interface plugins" if kind.__module__.startswith("cni_common.") else plugin


def test_page() -> None:
    """docs/records.md, or the plugin's page, has each part of each plugin, with its fields."""
    pages = [ROOT / "docs" / "records.md", *(ROOT / "docs" / "plugins").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    tables = re.findall(r"^\| Part \| Plugin \| Fields \|\n(.*?)\n$", text, re.M | re.S)
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| ([^|]+) \|", "\n".join(tables), re.M)
    found = {(plugin, part): re.findall(r"`(\w+)`", fields) for part, plugin, fields in rows}

    expected = {
        (plugin_of(kind, plugin), kind.PART): list(kind.__match_args__)
        for plugin in RECORDING
        for kind in facts_of(plugin)
    }
    assert found == expected
    assert f"format {FORMAT}" in text
