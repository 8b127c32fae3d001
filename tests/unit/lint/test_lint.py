"""`pycni lint`: what it finds, where, and that it finds nothing where nothing is wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_common.serve import cli
from commands import DONE, FAILED, FOUND
from commands.lint.rules import RULES
from commands.lint.run import check
from commands.verbs import commands
from plugins import TYPES, load, load_all, profile_of
from tests.machine import Json
from tests.scope import ALL, one_in

ROOT = Path(__file__).resolve().parents[3]
IPAM: Json = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}
BRIDGE: Json = {"type": "bridge", "bridge": "br9", "isGateway": True, "ipam": IPAM}


def written(path: Path, *plugins: Json, **keys: object) -> Path:
    """Write a list of plugins, and return its path."""
    content = {"cniVersion": "1.0.0", "name": "net", **keys, "plugins": list(plugins)}
    path.write_text(json.dumps(content, indent=2))
    return path


def found(*paths: Path) -> list[tuple[str, str]]:
    """Return code and marked text of each finding."""
    return [(code, marked) for code, marked, _ in described(*paths)]


def described(*paths: Path) -> list[tuple[str, str, str]]:
    """Return code, marked text and message of each finding."""
    _, findings = check([str(path) for path in paths], load)
    answer = []
    for one in findings:
        lines = Path(one.file).read_text().split("\n")
        span = one.span
        end = span.end_column - 1 if span.line == span.end_line else None
        answer.append((one.code, lines[span.line - 1][span.column - 1 : end], one.text))
    return answer


def lint(*words: str) -> int:
    """Run the command line."""
    return cli.run(["lint", *words], load, load_all, commands())


class TestClean:
    """Nothing is found where nothing is wrong."""

    def test_conf(self, capfd: pytest.CaptureFixture[str]) -> None:
        """All of conf/, alone and together."""
        assert lint(str(ROOT / "conf")) == DONE

        count = len([path for path in (ROOT / "conf").iterdir() if ".conf" in path.name])
        assert capfd.readouterr().out == f"{count} files: clean\n"
        assert [path for path in (ROOT / "conf").glob("*.conf*") if found(path)] == []

    def test_profiles(self) -> None:
        """Every plugin says what kind it is."""
        kinds = {type: getattr(profile_of(type), "kind", None) for type in TYPES}

        assert set(kinds.values()) == {"interface", "ipam", "chained"}
        assert profile_of("no-such") is None

    def test_other_vendors(self, tmp_path: Path) -> None:
        """Keys of another vendor's plugin, also of an IPAM plugin, are its own."""
        other = {"type": "ovn-k8s-cni-overlay", "logFile": "/x", "ipam": {}, "mtu": 5}
        ipam = {"type": "whereabouts", "range": "10.0.0.0/8", "kubernetes": {"kubeconfig": "/k"}}
        macvlan = {"type": "macvlan", "master": "eth1", "ipam": ipam}
        tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "_note": "ours"}

        assert found(written(tmp_path / "1.conflist", other, tuning)) == []
        assert found(written(tmp_path / "2.conflist", macvlan, tuning)) == []

    def test_nerdctl(self, tmp_path: Path) -> None:
        """Keys that a runtime adds for itself are no findings, nor is another case of letters."""
        keys = {"nerdctlID": "0f", "nerdctlLabels": {"a": "b"}, "args": {"podman_labels": {}}}
        bridge = {**BRIDGE, "isgateway": True, "args": {"labels": [{"key": "k", "value": "v"}]}}

        assert found(written(tmp_path / "1.conflist", bridge, **keys)) == []


# Code, the text that is marked, and a network with one thing wrong; after public reports and
# what people ask in forums.
BRIDGE6: Json = {**BRIDGE, "ipam": {**IPAM, "ranges": [[{"subnet": "fd00:9::/64"}]]}}
TUNING: Json = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
PORTS: Json = {"portMappings": True, "portMapping": True}
CLOSED: Json = {**IPAM, "closed": "moved to 10.10.0.0/16"}
STATIC_ROUTE: Json = {
    "type": "static",
    "addresses": [{"address": "fd00::2/64"}],
    "routes": [{"dst": "2001:db8::1/64"}],
}
NOT_FREE: Json = {**IPAM, "ranges": [[{"subnet": "127.9.0.0/24"}]]}
HOST_BITS: Json = {"type": "host-local", "subnet": "10.9.0.7/24"}
NAME_SERVERS: Json = {"nameservers": ["9.9.9.9", "dns.example.org"]}
PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}


def pool(**keys: object) -> Json:
    """Return an IPAM section with one range."""
    return {**IPAM, "ranges": [[{"subnet": "10.9.0.0/24", **keys}]]}


def routed(*routes: Json) -> Json:
    """Return a bridge with routes."""
    return {**BRIDGE, "ipam": {**IPAM, "routes": list(routes)}}


WRONG: list[tuple[str, str, list[Json]]] = [
    ("L301", '"isGatway"', [{"type": "bridge", "isGatway": True, "ipam": IPAM}]),
    ("L301", '"ip_masq"', [{**BRIDGE, "ip_masq": True}]),
    ("L301", '"rangeStrat"', [{**BRIDGE, "ipam": pool(rangeStrat="10.9.0.9")}]),
    ("L301", '"ipMasq"', [{**BRIDGE, "ipam": {**IPAM, "ipMasq": True}}]),
    ("L301", '"routes"', [{**BRIDGE, "routes": [{"dst": "0.0.0.0/0"}]}]),
    ("L302", '"logLevel"', [{**BRIDGE, "logLevel": "debug"}]),
    ("L303", '"yes"', [{**BRIDGE, "ipMasq": "yes"}]),
    ("L303", '"1450"', [{**BRIDGE, "mtu": "1450"}]),
    ("L303", "{", [{**BRIDGE, "ipam": {**IPAM, "ranges": [{"subnet": "10.9.0.0/24"}]}}]),
    ("L303", '"iptable"', [{**BRIDGE, "ipMasq": True, "ipMasqBackend": "iptable"}]),
    ("L304", '"10.9.0.7/24"', [{**BRIDGE, "ipam": HOST_BITS}]),
    ("L304", '"10.9.0.0"', [{**BRIDGE, "ipam": {"type": "host-local", "subnet": "10.9.0.0"}}]),
    ("L304", '"10.8.0.9"', [{**BRIDGE, "ipam": pool(rangeStart="10.8.0.9")}]),
    ("L304", '"default"', [routed({"dst": "default"})]),
    ("L304", "5000", [{**BRIDGE, "vlan": 5000}]),
    ("L304", '"a-bridge-of-my-own"', [{**BRIDGE, "bridge": "a-bridge-of-my-own"}]),
    ("L304", "true", [{**BRIDGE, "hairpinMode": True, "promiscMode": True}]),
    ("L304", '"7"', [BRIDGE, {"type": "tuning", "sysctl": {"kernel.pid_max": "7"}}]),
    ("L307", '"mac"', [{**BRIDGE, "runtimeConfig": {"mac": "02:00:00:00:00:07"}}]),
    ("L305", '"portMapping"', [BRIDGE, {**PORTMAP, "capabilities": PORTS}]),
    ("L306", '"bridg"', [{**BRIDGE, "type": "bridg"}]),
    ("L306", '"host_local"', [{**BRIDGE, "ipam": {**IPAM, "type": "host_local"}}]),
    ("L401", '"portmap"', [PORTMAP]),
    ("L402", '"portmap"', [{"type": "bridge", "bridge": "br9"}, PORTMAP]),
    ("L402", '"firewall"', [{"type": "bridge", "bridge": "br9"}, {"type": "firewall"}]),
    ("L403", '"macvlan"', [BRIDGE, {"type": "macvlan", "master": "eth0", "ipam": IPAM}]),
    ("L404", "{", [BRIDGE, {"type": "portmap"}]),
    ("L404", "{", [BRIDGE, {"type": "bandwidth"}]),
    ("L404", "{", [{"type": "host-device"}]),
    ("L404", '"ipam"', [{**BRIDGE, "ipam": {"type": "static"}}]),
    ("L405", '"host-local"', [{"type": "host-local", "ipam": IPAM}]),
    ("L406", '"portmap"', [{"type": "macvlan", "master": "eth0", "ipam": IPAM}, PORTMAP]),
    ("L501", '"10.8.0.1"', [{**BRIDGE, "ipam": pool(gateway="10.8.0.1")}]),
    ("L501", '"10.9.0.0"', [{**BRIDGE, "ipam": pool(gateway="10.9.0.0")}]),
    ("L501", '"10.9.0.255"', [{**BRIDGE, "ipam": pool(gateway="10.9.0.255")}]),
    (
        "L501",
        '"10.8.0.1"',
        [
            {
                **BRIDGE,
                "ipam": {
                    "type": "static",
                    "addresses": [{"address": "10.9.0.5/24", "gateway": "10.8.0.1"}],
                },
            }
        ],
    ),
    ("L504", "true", [{"type": "bridge", "isGateway": False, "ipMasq": True, "ipam": IPAM}]),
    ("L505", "true", [{"type": "bridge", "isGateway": False, "forceAddress": True, "ipam": IPAM}]),
    ("L505", '"iptables"', [{**BRIDGE, "ipMasqBackend": "iptables"}]),
    ("L505", "true", [BRIDGE, {**PORTMAP, "snat": False, "masqAll": True}]),
    ("L506", '"moved to 10.10.0.0/16"', [{**BRIDGE, "ipam": CLOSED}]),
    ("L507", "1200", [{**BRIDGE6, "mtu": 1200}]),
    ("L508", '"127.9.0.0/24"', [{**BRIDGE, "ipam": NOT_FREE}]),
    ("L509", '"::/0"', [routed({"dst": "0.0.0.0/0"}, {"dst": "::/0"})]),
    ("L510", '"10.8.0.254"', [routed({"dst": "192.168.0.0/16", "gw": "10.8.0.254"})]),
    ("L512", '"10.9.8.7/16"', [routed({"dst": "10.9.8.7/16"})]),
    ("L512", '"2001:db8::1/64"', [{**BRIDGE, "ipam": STATIC_ROUTE}]),
    ("L511", '"dns.example.org"', [{**BRIDGE, "dns": NAME_SERVERS}]),
]  # fmt: skip


class TestFound:
    """Each thing is found once, at its place."""

    @pytest.mark.parametrize(
        ("code", "marked", "plugins"), WRONG, ids=[f"{code} {mark}" for code, mark, _ in WRONG]
    )
    def test_of_a_plugin(self, tmp_path: Path, code: str, marked: str, plugins: list[Json]) -> None:
        """One finding, which marks the value or key."""
        assert found(written(tmp_path / "1.conflist", *plugins)) == [(code, marked)]

    def test_suggestions(self, tmp_path: Path) -> None:
        """A near miss names the key that was probably meant, a misplaced key its place."""
        bridge = {**BRIDGE, "isGatway": True, "ipam": {**IPAM, "hairpinMode": True}}

        texts = [text for _, _, text in described(written(tmp_path / "1.conflist", bridge))]

        assert sorted(texts) == [
            '"ipam" of bridge has no key "hairpinMode" and ignores it: it belongs beside "type"',
            'there is no key "isGatway", and it is ignored: did you mean "isGateway"?',
        ]

    @pytest.mark.parametrize(
        ("keys", "code", "marked"),
        [
            ({"cniVersion": "1.2.0"}, "L201", '"1.2.0"'),
            ({"cniVersion": "0.5.0"}, "L201", '"0.5.0"'),
            ({"cniVersions": ["1.0.0", "9.0.0"]}, "L201", '"9.0.0"'),
            ({"cniVersion": ""}, "L202", "{"),
            ({"cniVersion": "1.1.0"}, "L203", '"1.1.0"'),
            ({"name": ""}, "L107", '""'),
            ({"name": "my net"}, "L304", '"my net"'),
            ({"capabilities": {"ips": True}}, "L301", '"capabilities"'),
            ({"pluggins": []}, "L301", '"pluggins"'),
            ({"disablecheck": True, "diableGC": True}, "L301", '"diableGC"'),
        ],
    )
    def test_of_a_list(self, tmp_path: Path, keys: Json, code: str, marked: str) -> None:
        """Version and name, and keys beside them."""
        assert found(written(tmp_path / "1.conflist", BRIDGE, **keys)) == [(code, marked)]

    @pytest.mark.parametrize(
        ("text", "place", "words"),
        [
            ('{"name": "a",\n}', (1, 13), "comma"),
            ('{"name": "a",\n // note\n "type": "bridge"}', (2, 2), "comment"),
            ('\ufeff{"name": "a"}', (1, 1), "byte order mark"),
            ('{"name": \u201ca\u201d}', (1, 10), "quotation mark"),
            ('{"name": "a"}\n{}', (2, 1), "behind the end"),
            ('{"name": "a"', (1, 13), "too early"),
            ("", (1, 1), "empty"),
            ('{"mtu": NaN}', (1, 1), "NaN"),
            ("[1]", (1, 1), "object"),
            ("[" * 200 + "]" * 200, (1, 102), "levels"),
        ],
    )
    def test_json(self, tmp_path: Path, text: str, place: tuple[int, int], words: str) -> None:
        """A file that is not JSON: the place and the usual cause."""
        path = tmp_path / "1.conf"
        path.write_text(text)

        _, (one,) = check([str(path)], load)

        assert (one.code, (one.span.line, one.span.column)) == ("L101", place)
        assert words in one.text

    def test_repeated_key(self, tmp_path: Path) -> None:
        """The second place of a key is marked, and the first is named."""
        path = tmp_path / "1.conf"
        path.write_text(
            '{"cniVersion": "1.0.0", "name": "a", "type": "bridge",\n "mtu": 1400,\n "mtu": 1500}'
        )

        ((code, marked, text),) = described(path)

        assert (code, marked) == ("L102", '"mtu"')
        assert "after line 2" in text

    @pytest.mark.parametrize(
        ("name", "content", "code"),
        [
            ("1.conf", {"plugins": [BRIDGE]}, "L104"),
            ("1.json", {"plugins": [BRIDGE]}, "L104"),
            ("1.conflist", BRIDGE, "L104"),
            ("1.conflist", {}, "L107"),
            ("1.conflist", {"plugins": []}, "L107"),
            ("1.conflist", {"plugins": {}}, "L303"),
            ("1.conflist", {"plugins": ["bridge"]}, "L303"),
            ("1.conf", {}, "L107"),
            ("1.conflist.bak", {"plugins": [BRIDGE]}, "L103"),
        ],
    )
    def test_form(self, tmp_path: Path, name: str, content: Json, code: str) -> None:
        """A file's content goes with its name."""
        path = tmp_path / name
        path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "a", **content}))

        assert [one for one, _ in found(path)] == [code]


class TestTogether:
    """Files of one directory."""

    def network(self, path: Path, name: str, subnet: str, **keys: object) -> Path:
        """Write a network of its own."""
        bridge = {
            **BRIDGE,
            "bridge": f"br-{name}",
            "ipam": {**IPAM, "ranges": [[{"subnet": subnet}]]},
        }
        return written(path, {**bridge, **keys}, name=name)

    def test_overlap(self, tmp_path: Path) -> None:
        """Two networks that give out the same addresses; one within the other, too."""
        self.network(tmp_path / "10-a.conflist", "a", "10.9.0.0/16")
        self.network(tmp_path / "20-b.conflist", "b", "10.9.7.0/24")
        self.network(tmp_path / "30-c.conflist", "c", "10.10.0.0/24")

        ((code, marked, text),) = described(tmp_path)

        assert (code, marked) == ("L502", '"10.9.7.0/24"')
        assert f'network "a" in {tmp_path}/10-a.conflist:' in text

    def test_one_bridge(self, tmp_path: Path) -> None:
        """One bridge cannot have two MTUs."""
        self.network(tmp_path / "10-a.conflist", "a", "10.9.0.0/24", bridge="br0", mtu=1500)
        self.network(tmp_path / "20-b.conflist", "b", "10.8.0.0/24", bridge="br0", mtu=1400)
        self.network(tmp_path / "30-c.conflist", "c", "10.7.0.0/24", bridge="br1", mtu=9000)

        assert found(tmp_path) == [("L503", "1400")]

    def test_one_name(self, tmp_path: Path) -> None:
        """Leases of two networks of one name would be mixed."""
        self.network(tmp_path / "10-a.conflist", "a", "10.9.0.0/24")
        self.network(tmp_path / "20-b.conflist", "a", "10.8.0.0/24")

        assert found(tmp_path) == [("L106", '"a"')]

    def test_order(self, tmp_path: Path) -> None:
        """100 comes before 20, as text."""
        self.network(tmp_path / "100-a.conflist", "a", "10.9.0.0/24")
        self.network(tmp_path / "20-b.conflist", "b", "10.8.0.0/24")

        ((code, _, text),) = described(tmp_path)

        assert code == "L105"
        assert "'20-b.conflist'" in text
        assert "020" in text

    def test_first(self, tmp_path: Path) -> None:
        """A runtime that takes the first file gets a network from it."""
        written(tmp_path / "00-lo.conflist", {"type": "loopback"}, name="lo")
        self.network(tmp_path / "20-b.conflist", "b", "10.8.0.0/24")

        assert [code for code, _ in found(tmp_path)] == ["L108"]

    def test_not_read(self, tmp_path: Path) -> None:
        """Copies that an editor or a person left are named, other files are not."""
        self.network(tmp_path / "20-b.conflist", "b", "10.8.0.0/24")
        for name in (
            "20-b.conflist~",
            "20-b.conflist.orig",
            "30-c.yaml",
            "README.md",
            "kubeconfig",
        ):
            (tmp_path / name).write_text("x")
        (tmp_path / "whereabouts.d").mkdir()

        _, findings = check([str(tmp_path)], load)

        assert [(one.code, os.path.basename(one.file)) for one in findings] == [
            ("L103", "20-b.conflist.orig"),
            ("L103", "20-b.conflist~"),
            ("L103", "30-c.yaml"),
        ]


class TestForms:
    """The output."""

    @pytest.fixture
    def wrong(self, tmp_path: Path) -> Path:
        """A file with an error in line 9 and a warning."""
        bridge = {"type": "bridge", "isGatway": True, "logLevel": "x", "ipam": IPAM}
        return written(tmp_path / "1.conflist", bridge)

    def test_text(self, wrong: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """Place, severity, words and code; and at the end the number."""
        assert lint(str(wrong)) == FOUND

        text = capfd.readouterr().out
        words = " ".join(text.split())
        assert (
            f'{wrong}:7:7: error: there is no key "isGatway", and it is ignored: did you' in words
        )
        assert "[L302] 1 file: 1 error, 1 warning; docs/lint.md explains L301, L302" in words
        assert all(len(line) <= 80 or str(wrong) in line for line in text.splitlines())

    def test_json(self, wrong: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """All that the text says, by names."""
        assert lint("--json", str(wrong)) == FOUND
        answer = json.loads(capfd.readouterr().out)
        assert lint("--format", "json", str(wrong)) == FOUND
        assert json.loads(capfd.readouterr().out) == answer

        assert answer["files"] == [str(wrong)]
        assert answer["findings"][0] == {
            "file": str(wrong),
            "line": 7,
            "column": 7,
            "endLine": 7,
            "endColumn": 17,
            "code": "L301",
            "severity": "error",
            "rule": "a misspelt key",
            "message": 'there is no key "isGatway", and it is ignored: did you mean "isGateway"?',
        }

    def test_github(self, wrong: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """A workflow command for each finding."""
        assert lint("--format", "github", str(wrong)) == FOUND

        first, second = capfd.readouterr().out.splitlines()
        assert first.startswith(
            f"::error file={wrong},line=7,endLine=7,col=7,endColumn=17,title=L301%3A a misspelt key"
            "::there is no key"
        )
        assert second.startswith("::warning ")

    def test_sarif(self, wrong: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """A log whose results refer to its rules."""
        assert lint("--format", "sarif", str(wrong)) == FOUND

        log = json.loads(capfd.readouterr().out)
        (run,) = log["runs"]
        rules = run["tool"]["driver"]["rules"]
        assert log["version"] == "2.1.0"
        assert [(one["ruleId"], one["level"]) for one in run["results"]] == [
            ("L301", "error"),
            ("L302", "warning"),
        ]
        assert [rules[one["ruleIndex"]]["id"] for one in run["results"]] == ["L301", "L302"]
        region = run["results"][0]["locations"][0]["physicalLocation"]["region"]
        assert (region["startLine"], region["startColumn"]) == (7, 7)

    def test_no_file(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """A path without a configuration is refused, so that a typing error is no clean answer."""
        for path in (tmp_path / "none.conf", tmp_path):
            assert lint(str(path)) == FAILED

            printed = capfd.readouterr()
            assert (printed.out, printed.err.count("\n")) == ("", 1)
            assert str(path) in printed.err


def test_page() -> None:
    """Each code has a section of docs/lint.md, with its title, and no other has."""
    page = (ROOT / "docs" / "lint.md").read_text()

    sections = dict(re.findall(r"^### (L\d+)\n\n\*\*(.+?)\*\*", page, re.M))
    assert sections == {
        code: f"{rule.title[0].upper()}{rule.title[1:]}." for code, rule in RULES.items()
    }


def test_all_codes_are_found() -> None:
    """Each code is the answer to an input of these tests, but those of a node."""
    text = Path(__file__).read_text()

    assert [code for code in RULES if f'"{code}"' not in text and code < "L6"] == []


# Values of every JSON type, some of which look like what they replace.
ODD: tuple[Any, ...] = (None, True, 0, -1, 1.5, "", "x", "10.9.0.7/33", [], [[]], {}, {"a": []})


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each of its keys or indexes."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(members):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


EXAMPLES = sorted(path.name for path in (ROOT / "conf").glob("*.conf*"))


@pytest.mark.parametrize("name", EXAMPLES if ALL else sorted(one_in(8, EXAMPLES)))
def test_any_value_anywhere(tmp_path: Path, name: str) -> None:
    """Any content of a file has an answer, and each place is within the file."""
    config = json.loads((ROOT / "conf" / name).read_text())
    copy = tmp_path / name
    for container, key in places(config):
        kept = container[key]
        for odd in ODD:
            container[key] = odd
            copy.write_text(json.dumps(config, indent=1))
            lines = copy.read_text().split("\n")
            for finding in check([str(copy)], load)[1]:
                span = finding.span
                assert 1 <= span.line <= len(lines)
                assert 1 <= span.column <= len(lines[span.line - 1]) + 1
        container[key] = kept


class TestOddFiles:
    """With any file of a configuration's name, lint neither waits nor fails."""

    def test_named(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """A path that is no regular file is refused in a line."""
        os.mkfifo(tmp_path / "a.conf")
        (tmp_path / "b.conf").symlink_to("b.conf")

        for name in ("a.conf", "b.conf", "c.conf"):
            assert lint(str(tmp_path / name)) == FAILED
            assert capfd.readouterr().err.startswith(f"pycni lint: cannot read '{tmp_path}/{name}'")
        assert lint("/dev/zero") == FAILED

    def test_in_a_directory(self, tmp_path: Path) -> None:
        """There it is a finding, as a runtime fails on it; the others are read."""
        os.mkfifo(tmp_path / "10-a.conf")
        (tmp_path / "20-b.conf").symlink_to("nowhere")
        (tmp_path / "30-c.conf").mkdir()
        written(tmp_path / "40-d.conflist", {**BRIDGE, "isGatway": True})

        _, findings = check([str(tmp_path)], load)

        assert [(Path(one.file).name, one.code) for one in findings] == [
            ("10-a.conf", "L101"),
            ("20-b.conf", "L101"),
            ("40-d.conflist", "L301"),
        ]

    @pytest.mark.parametrize("keys", [{"cniVersion": 1}, {"cniVersions": "1.0.0"}])
    def test_version(self, tmp_path: Path, keys: Json) -> None:
        """A version is text, several are a list."""
        path = written(tmp_path / "a.conflist", BRIDGE, **keys)

        assert [code for code, _ in found(path)] == ["L303"]
