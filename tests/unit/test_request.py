"""cni_common/spec/request.py: variables and stdin, as far as the protocol goes."""

from __future__ import annotations

import json

import pytest

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import VARIABLES, Attachment, Command, Request
from tests.machine import Json

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/a",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
CONFIG = {"cniVersion": "1.1.0", "name": "net"}
KNOWN = frozenset({"IP", "MAC"})
EMPTY = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
NEEDS = {
    "ADD": EMPTY,
    "CHECK": EMPTY,
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
    "FOO": (),
}


def parse(config: object = CONFIG, **environ: str) -> Request:
    """Return the request of a configuration, the environment completed."""
    stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
    return Request.parse({**ENVIRON, **environ}, stdin)


def refusal(config: object = CONFIG, **environ: str) -> CNIError:
    """Return the error of a request that must be refused."""
    with pytest.raises(CNIError) as caught:
        parse(config, **environ)
    return caught.value


class TestVariables:
    """The variables of the environment."""

    @pytest.mark.parametrize("command", NEEDS)
    def test_required(self, command: str) -> None:
        """All that are missing are named together, in their order, as code 4."""
        error = refusal(CNI_COMMAND=command, **dict.fromkeys(EMPTY, ""))

        expected = f"required env variables [{','.join(NEEDS[command])}] missing"
        assert error.code == Code.INVALID_ENVIRONMENT
        assert error.msg == (expected if NEEDS[command] else f"unknown CNI_COMMAND: {command}")

    @pytest.mark.parametrize("command", [c for c in NEEDS if c != "FOO"])
    @pytest.mark.parametrize("name", EMPTY)
    def test_each(self, command: str, name: str) -> None:
        """One that is unset counts as missing where the command needs it, and only there."""
        environ = {key: value for key, value in ENVIRON.items() if key != name}
        environ["CNI_COMMAND"] = command
        messages = []

        try:
            Request.parse(environ, json.dumps(CONFIG).encode())
        except CNIError as error:
            messages.append(error.msg)

        needed = name in NEEDS[command]
        assert messages == ([f"required env variables [{name}] missing"] if needed else [])

    @pytest.mark.parametrize(
        ("environ", "word"),
        [
            pytest.param({"CNI_CONTAINERID": "///"}, "CNI_CONTAINERID", id="id"),
            pytest.param({"CNI_IFNAME": "a b"}, "CNI_IFNAME", id="ifname"),
            pytest.param(
                {"CNI_CONTAINERID": "///", "CNI_IFNAME": "a b"}, "CNI_CONTAINERID", id="both"
            ),
            pytest.param(
                {"CNI_CONTAINERID": "///", "CNI_NETNS": ""}, "CNI_CONTAINERID", id="id-netns"
            ),
            pytest.param({"CNI_CONTAINERID": "", "CNI_IFNAME": "a b"}, "CNI_IFNAME", id="missing"),
            pytest.param({"CNI_IFNAME": "a b", "CNI_PATH": ""}, "CNI_IFNAME", id="ifname-path"),
        ],
    )
    @pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
    def test_invalid(self, command: str, environ: dict[str, str], word: str) -> None:
        """An invalid one is reported at once, before whatever is missing."""
        error = refusal(CNI_COMMAND=command, **environ)

        assert error.code == Code.INVALID_ENVIRONMENT
        assert word in error.msg
        assert "missing" not in error.msg

    @pytest.mark.parametrize("command", ["GC", "STATUS"])
    def test_not_looked_at(self, command: str) -> None:
        """Variables that a command does not need are not checked."""
        request = parse(CNI_COMMAND=command, CNI_CONTAINERID="///", CNI_IFNAME="a b")

        assert request.command == command

    @pytest.mark.parametrize(
        "command", ["", "FOO", "add", "Add", " ADD", "ADD ", "VERSIONS", "__new__"]
    )
    def test_unknown_command(self, command: str) -> None:
        """An unknown command is code 4, in the words that runtimes look for."""
        error = refusal(CNI_COMMAND=command)

        assert (error.code, error.msg) == (4, f"unknown CNI_COMMAND: {command}")

    @pytest.mark.parametrize(
        ("config", "code"),
        [(b"garbage", 6), ({}, 7), ({"name": "a b"}, 7), ({"name": "n", "cniVersion": 5}, 4)],
    )
    def test_stdin_before_the_command(self, config: object, code: int) -> None:
        """A configuration that is wrong is reported before an unknown command."""
        assert refusal(config, CNI_COMMAND="FOO").code == code

    def test_variables_before_stdin(self) -> None:
        """A fault of the environment is reported before one of the configuration."""
        assert refusal(b"garbage", CNI_IFNAME="").code == Code.INVALID_ENVIRONMENT

    def test_order(self) -> None:
        """The variables are walked through in the order of the reference."""
        assert [name for name, _, _ in VARIABLES] == list(EMPTY)


class TestParsed:
    """The content of a request."""

    def test_everything(self) -> None:
        """The variables, the configuration, and both verbatim for delegates."""
        stdin = b'{"name": "net", "X": null, "x": 1} '

        request = parse(stdin, CNI_PATH="/a::/b:")

        assert request.command == Command.ADD
        assert (request.containerid, request.ifname) == ("c1", "eth0")
        assert request.attachment == Attachment("c1", "eth0")
        assert request.netns == "/run/netns/a"
        assert request.path == ["/a", "/b"]
        assert request.network == "net"
        assert request.config == {"name": "net", "x": 1}
        assert request.environ == {**ENVIRON, "CNI_PATH": "/a::/b:"}
        assert request.stdin == stdin

    def test_without_namespace(self) -> None:
        """DEL needs no namespace."""
        assert parse(CNI_COMMAND="DEL", CNI_NETNS="").netns == ""

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"name": "n"}, "0.1.0"),
            ({"name": "n", "cniVersion": ""}, "0.1.0"),
            ({"name": "n", "cniVersion": None}, "0.1.0"),
            ({"name": "n", "cniVersion": "1.0.0"}, "1.0.0"),
            ({"name": "n", "CNIVersion": "1.0.0"}, "1.0.0"),
            ({"name": "n", "cniVersion": "1.0.0", "CNIVERSION": "0.4.0"}, "0.4.0"),
            ({"name": "n", "cniVersion": "9.9"}, "9.9"),
        ],
    )
    def test_version(self, config: Json, expected: str) -> None:
        """No version means the oldest; whether it is supported is looked at later."""
        assert parse(config).cni_version == expected


class TestName:
    """The network's name and the types of the protocol's own keys."""

    @pytest.mark.parametrize("config", [b"null", {}, {"name": ""}, {"name": None}, {"NAME": ""}])
    def test_missing(self, config: object) -> None:
        """No name is code 7, also for the top-level null."""
        error = refusal(config)

        assert (error.code, error.msg) == (7, "missing network name")

    @pytest.mark.parametrize("name", ["a b", "-a", "../a", "a\n", "ä", "\ufffd"])
    def test_invalid(self, name: str) -> None:
        """A bad name is code 7 and stands in the details."""
        error = refusal({"name": name})

        assert (error.code, error.details) == (7, f"network name: {name}")

    @pytest.mark.parametrize("stdin", [b'{"name": "n\xff"}', b'{"name": "n\\ud800"}'])
    def test_not_utf_8(self, stdin: bytes) -> None:
        """Bytes that are not UTF-8 become U+FFFD, which is not allowed in a name."""
        error = refusal(stdin)

        assert (error.code, error.details) == (7, "network name: n\ufffd")

    @pytest.mark.parametrize("key", ["name", "cniVersion"])
    @pytest.mark.parametrize(
        ("value", "what"),
        [(1, "an integer"), (1.5, "a number"), (True, "a boolean"), ([], "an array")],
    )
    def test_wrong_type(self, key: str, value: object, what: str) -> None:
        """Name and version of another type are code 6."""
        error = refusal({"name": "n", key: value})

        assert error.code == Code.DECODING_FAILURE
        assert error.msg == f'"{key}" in the configuration must be a string, not {what}'

    def test_name_before_version(self) -> None:
        """A missing name is reported before a version of the wrong type."""
        assert refusal({"cniVersion": 5}).code == Code.INVALID_CONFIG


class TestArgs:
    """CNI_ARGS."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", {}),
            ("IP=10.0.0.5", {"IP": "10.0.0.5"}),
            ("IP=", {"IP": ""}),
            ("IP=1;MAC=2", {"IP": "1", "MAC": "2"}),
            ("IP=1;IP=2", {"IP": "2"}),
            ("IgnoreUnknown=0;IP=1", {"IP": "1"}),
            ("K8S_POD_NAME=a;IgnoreUnknown=1", {}),
            ("IgnoreUnknown=true;x=1;MAC=2", {"MAC": "2"}),
            ("x=1;IgnoreUnknown=TRUE;IP=", {"IP": ""}),
            ("=1;IgnoreUnknown=1", {}),
            ("CommonArgs=1;IgnoreUnknown=1", {}),
        ],
    )
    def test_accepted(self, text: str, expected: dict[str, str]) -> None:
        """Pairs in any order; unknown keys only beside IgnoreUnknown."""
        assert parse(CNI_ARGS=text).cni_args(KNOWN) == expected

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("A", 'invalid pair "A"'),
            ("IP=b=c", 'invalid pair "IP=b=c"'),
            ("IP=1;", 'invalid pair ""'),
            (";", 'invalid pair ""'),
            ("IP=1;;MAC=2", 'invalid pair ""'),
            ("IP=1,MAC=2", 'invalid pair "IP=1,MAC=2"'),
            ("mac=1", "unknown keys mac; known are IP, MAC"),
            ("b=1;IP=1;a=2", "unknown keys a, b;"),
            ("a=1;IgnoreUnknown=0", "unknown keys a;"),
            ("a=1;IgnoreUnknown=False", "unknown keys a;"),
            ("a=1;ignoreunknown=1", "unknown keys a, ignoreunknown;"),
            ("IP=1;IgnoreUnknown=yes", "IgnoreUnknown=yes is not a boolean"),
            ("IP=1;IgnoreUnknown=", "IgnoreUnknown= is not a boolean"),
        ],
    )
    def test_refused(self, text: str, words: str) -> None:
        """Malformed pairs, unknown keys and other booleans are code 4 and are quoted."""
        with pytest.raises(CNIError) as caught:
            parse(CNI_ARGS=text).cni_args(KNOWN)

        assert caught.value.code == Code.INVALID_ENVIRONMENT
        assert caught.value.msg.startswith("CNI_ARGS: ")
        assert words in caught.value.msg

    def test_nothing_known(self) -> None:
        """A plugin without keys of its own says so."""
        with pytest.raises(CNIError, match="known are none,"):
            parse(CNI_ARGS="a=1").cni_args(frozenset())


class TestPrevResult:
    """prevResult."""

    @pytest.mark.parametrize("config", [{}, {"prevResult": None}])
    def test_none(self, config: Json) -> None:
        """Absent and null are none."""
        assert parse({**CONFIG, **config}).prev_result is None

    @pytest.mark.parametrize(
        ("config", "own"),
        [
            ("1.1.0", {}),
            ("1.1.0", {"cniVersion": "1.0.0"}),
            ("1.0.0", {"CNIVersion": "1.1.0"}),
            ("0.3.1", {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/8"}]}),
            ("0.4.0", {"cniVersion": ""}),
            ("0.4.0", {"cniVersion": None}),
        ],
    )
    def test_same_family(self, config: str, own: Json) -> None:
        """Its version is its own, or else that of the configuration."""
        previous = {"ips": [{"address": "10.0.0.2/8"}], **own}

        result = parse({"cniVersion": config, "name": "n", "prevResult": previous}).prev_result

        assert result is not None
        assert [str(ip.address) for ip in result.ips] == ["10.0.0.2/8"]

    def test_oldest_family(self) -> None:
        """A configuration without a version has a prevResult of the oldest layout."""
        result = parse({"name": "n", "prevResult": {"ip4": {"ip": "10.0.0.2/8"}}}).prev_result

        assert result is not None
        assert [str(ip.address) for ip in result.ips] == ["10.0.0.2/8"]

    @pytest.mark.parametrize(
        ("config", "own"),
        [
            *(("1.1.0", "0.4.0"), ("0.4.0", "1.0.0"), ("0.3.1", "0.2.0"), ("0.2.0", "0.3.0")),
            *(("1.1.0", "2.0.0"), ("1.1.0", "1.0")),
        ],
    )
    def test_other_family(self, config: str, own: str) -> None:
        """A prevResult of another family is code 7."""
        request = parse({"cniVersion": config, "name": "n", "prevResult": {"cniVersion": own}})

        with pytest.raises(CNIError) as caught:
            _ = request.prev_result

        assert caught.value.code == Code.INVALID_CONFIG
        assert caught.value.msg.startswith(f'prevResult: cniVersion "{own}" does not go with')

    def test_malformed(self) -> None:
        """Its faults have code 7 and name the place."""
        request = parse({**CONFIG, "prevResult": {"ips": [{"address": "x"}]}})

        with pytest.raises(CNIError) as caught:
            _ = request.prev_result

        assert caught.value.code == Code.INVALID_CONFIG
        assert caught.value.msg.startswith("prevResult: malformed result: ips[0].address: 'x'")


class TestValidAttachments:
    """The list that GC gets."""

    @pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
    def test_both_keys(self, key: str) -> None:
        """The old spelling will do; keys inside match without case."""
        listed = [{"containerID": "a", "ifname": "eth0"}, {"ContainerId": "b", "IfName": "eth1"}]

        request = parse({**CONFIG, key: listed}, CNI_COMMAND="GC")

        assert request.valid_attachments == frozenset(
            {Attachment("a", "eth0"), Attachment("b", "eth1")}
        )

    def test_new_key_first(self) -> None:
        """With both keys the new spelling counts."""
        config = {
            **CONFIG,
            "cni.dev/attachments": [{"containerID": "old", "ifname": "eth0"}],
            "cni.dev/valid-attachments": [{"containerID": "new", "ifname": "eth0"}],
        }

        assert parse(config).valid_attachments == frozenset({Attachment("new", "eth0")})

    @pytest.mark.parametrize("config", [{}, {"cni.dev/valid-attachments": None}])
    def test_no_list(self, config: Json) -> None:
        """No list is not the same as an empty one."""
        assert parse({**CONFIG, **config}).valid_attachments is None

    @pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
    def test_empty_list(self, key: str) -> None:
        """An empty list means that nothing is valid."""
        assert parse({**CONFIG, key: []}).valid_attachments == frozenset()

    def test_incomplete_entry(self) -> None:
        """A field that an entry leaves out is the empty string."""
        config = {**CONFIG, "cni.dev/valid-attachments": [{"containerID": "a", "ifname": None}]}

        assert parse(config).valid_attachments == frozenset({Attachment("a", "")})

    @pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
    @pytest.mark.parametrize(
        "value", ["x", {}, 1, [None], [[]], [{"containerID": 1}], [{}, {"ifname": ["eth0"]}]]
    )
    def test_damaged_list(self, key: str, value: object) -> None:
        """GC refuses a damaged list: the rest of it must not decide on removals."""
        error = refusal({**CONFIG, key: value}, CNI_COMMAND="GC")

        assert error.code == Code.INVALID_CONFIG
        assert error.msg.startswith(f'invalid configuration: "{key}')
        assert parse({**CONFIG, key: value}, CNI_COMMAND="DEL").command == "DEL"


def test_attachments_are_ordered() -> None:
    """Attachments sort by container, then by interface."""
    a, b, c = Attachment("a", "x"), Attachment("a", "y"), Attachment("b", "a")

    assert sorted([c, b, a]) == [a, b, c]
