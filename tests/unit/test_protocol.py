"""cni_common/serve/protocol.py: the path of every invocation, with a plugin that does nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_common.kernel.netns import OWN
from cni_common.node.host import Host
from cni_common.serve.protocol import Reply, execute, respond
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import SUPPORTED_VERSIONS
from cni_common.spec.request import PROTOCOL_PROPERTIES, Request
from cni_common.spec.result import Interface, IPConfig, Result
from cni_common.spec.undo import Undo
from tests.machine import Json

COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
SUPPORTED = "0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"


class Plugin:
    """A plugin that remembers what it was asked, and fails when it is told to."""

    SCHEMA: Json = {  # noqa: RUF012 - as of a module
        "type": "object",
        "properties": {
            **PROTOCOL_PROPERTIES,
            "mtu": {"type": "integer"},
            "ipam": {"type": "object", "properties": {"type": {"type": "string"}}},
        },
    }

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.undone: list[str] = []
        self.error: BaseException | None = None
        self.result = Result([Interface("eth0")], [IPConfig(ip_interface("10.0.0.2/24"))])

    def add(self, req: Request, host: Host, undo: Undo) -> Result:
        """Push a step, then answer."""
        undo.push("the step", lambda: self.undone.append("the step"))
        self._serve(req)
        return self.result

    def delete(self, req: Request, host: Host) -> None:
        """Answer."""
        self._serve(req)

    gc = status = delete

    def check(self, req: Request, host: Host) -> list[CNIError]:
        """Find nothing, or fail."""
        self.delete(req, host)
        return []

    def lifecycle(self) -> None:
        """Keep no records."""

    def _serve(self, req: Request) -> None:
        self.requests.append(req)
        if self.error:
            raise self.error


class Node:
    """A host with one plugin, called "test"."""

    def __init__(self, tmp_path: Path) -> None:
        self.plugin = Plugin()
        self.log: list[str] = []
        self._state_dir = str(tmp_path)

    def call(
        self, command: str, config: object = None, *, plugin: str = "test", **environ: str
    ) -> Reply:
        """Serve one invocation."""
        complete = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/no/such/netns",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            **environ,
        }
        if config is None:
            config = {"cniVersion": "1.1.0", "name": "net"}
        stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
        plugins = {"test": self.plugin}
        with Host(
            plugins.get, "", self.log.append, execute=execute, state_dir=self._state_dir
        ) as host:
            return respond(plugin, complete, stdin, host)

    def refusal(self, command: str, config: object = None, **environ: str) -> Json:
        """Return the error object of an invocation that must fail."""
        reply = self.call(command, config, **environ)
        assert reply.exit_code == 1
        error: Json = json.loads(reply.stdout)
        details, named, rest = error.get("details", "").rpartition("network 'net'")
        if named:  # as every error of a request that could be parsed
            error["details"] = details.removesuffix("; ") + rest
        return {key: value for key, value in error.items() if key != "details" or value}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A host of the test's own."""
    return Node(tmp_path)


class TestVersionCommand:
    """VERSION."""

    @pytest.mark.parametrize("stdin", [b"", b"garbage", b'{"cniVersion": "0.2.0"}'])
    def test_answer(self, node: Node, stdin: bytes) -> None:
        """The answer is one line that depends on nothing."""
        reply = node.call("VERSION", stdin, plugin="none", CNI_PATH="", CNI_IFNAME="a b")

        assert reply.exit_code == 0
        assert reply.stdout == (
            b'{"cniVersion":"1.1.0","supportedVersions":'
            b'["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}\n'
        )
        assert node.plugin.requests == []


class TestVersionGate:
    """Which configuration may come with which command."""

    @pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
    @pytest.mark.parametrize(
        ("command", "since"),
        [
            ("ADD", "0.1.0"),
            ("DEL", "0.1.0"),
            ("CHECK", "0.4.0"),
            ("GC", "1.1.0"),
            ("STATUS", "1.1.0"),
        ],
    )
    def test_supported(self, node: Node, command: str, version: str, since: str) -> None:
        """A command is served from the version that brought it, and refused before as code 1."""
        reply = node.call(command, {"name": "net", "cniVersion": version})

        served = version >= since
        assert reply.exit_code == (0 if served else 1)
        assert len(node.plugin.requests) == served
        if not served:
            assert json.loads(reply.stdout) == {
                "cniVersion": version,
                "code": 1,
                "msg": f"config version does not allow {command}",
                "details": f"cniVersion {version} is older than {since},"
                f" which introduced {command}; network 'net'",
            }

    @pytest.mark.parametrize(
        ("command", "version", "code", "msg"),
        [
            ("CHECK", "", 1, "config version does not allow CHECK"),
            ("GC", "", 1, "config version does not allow GC"),
            ("STATUS", "1", 1, "config version does not allow STATUS"),
            ("CHECK", "0.4.5", 1, "incompatible CNI versions"),
            ("CHECK", "1", 1, "incompatible CNI versions"),
            ("CHECK", "01.0.0", 1, "incompatible CNI versions"),
            ("GC", "1.1", 1, "incompatible CNI versions"),
            ("CHECK", "1.1.1", 1, "plugin version does not allow CHECK"),
            ("GC", "9.0.0", 1, "plugin version does not allow GC"),
            ("STATUS", "1.2", 1, "plugin version does not allow STATUS"),
            ("CHECK", "abc", 6, 'cniVersion "abc" is not a version such as 1.0.0'),
            ("GC", "1.1.0.0", 6, 'cniVersion "1.1.0.0" is not a version such as 1.0.0'),
            ("STATUS", "9" * 5000, 6, f'cniVersion "{"9" * 5000}" is not a version such as 1.0.0'),
            ("ADD", "0.4.5", 1, "incompatible CNI versions"),
            ("ADD", "abc", 1, "incompatible CNI versions"),
            ("ADD", "1.0", 1, "incompatible CNI versions"),
            ("DEL", "9.0.0", 1, "incompatible CNI versions"),
            ("DEL", "v1.0.0", 1, "incompatible CNI versions"),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_unsupported(self, node: Node, command: str, version: str, code: int, msg: str) -> None:
        """Any other version is refused before the plugin is asked."""
        error = node.refusal(command, {"name": "net", "cniVersion": version, "mtu": "bad"})

        assert (error["code"], error["msg"][:1000]) == (code, msg[:1000])
        assert node.plugin.requests == []

    def test_details(self, node: Node) -> None:
        """Both sides are named."""
        error = node.refusal("ADD", {"name": "net", "cniVersion": "0.5.0"})

        assert error["details"] == f'config is "0.5.0", plugin supports {SUPPORTED}'


class TestServing:
    """The plugin's request, and its answer."""

    @pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
    def test_nothing_to_say(self, node: Node, command: str) -> None:
        """Only ADD prints something."""
        assert node.call(command) == Reply(b"", 0)
        assert [req.command for req in node.plugin.requests] == [command]

    @pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
    def test_result_with_sorted_keys(self, node: Node, version: str) -> None:
        """From 1.0.0 the keys of every object are sorted."""
        node.plugin.result = Result([Interface("eth0", "02:00:00:00:00:01", sandbox="/n")])

        reply = node.call("ADD", {"name": "net", "cniVersion": version})

        result = json.loads(reply.stdout)
        assert reply.stdout == json.dumps(result, indent=4, sort_keys=True).encode()
        assert result["cniVersion"] == version
        assert reply.exit_code == 0

    @pytest.mark.parametrize(
        ("version", "keys"),
        [
            ("0.2.0", ["cniVersion", "ip4", "dns"]),
            ("0.4.0", ["cniVersion", "interfaces", "ips", "dns"]),
        ],
    )
    def test_result_in_fixed_order(self, node: Node, version: str, keys: list[str]) -> None:
        """Before 1.0.0 they are in the order of the reference."""
        reply = node.call("ADD", {"name": "net", "cniVersion": version})

        assert list(json.loads(reply.stdout)) == keys

    def test_version_of_the_result(self, node: Node) -> None:
        """A configuration without version gets a result of the oldest."""
        assert json.loads(node.call("ADD", {"name": "net"}).stdout)["cniVersion"] == "0.1.0"

    def test_keys_of_the_plugin(self, node: Node) -> None:
        """The plugin sees its keys as its SCHEMA spells them, whatever their case."""
        node.call("ADD", {"name": "net", "MTU": 1400, "IPAM": {"TYPE": "x"}, "x": None})

        assert node.plugin.requests[0].config == {"name": "net", "mtu": 1400, "ipam": {"type": "x"}}

    def test_unknown_plugin(self, node: Node) -> None:
        """An executable of another name is code 7."""
        error = node.refusal("ADD", plugin="none")

        assert (error["code"], error["msg"]) == (7, "'none' is not one of this suite's plugins")


class TestConfiguration:
    """Errors of the configuration."""

    @pytest.mark.parametrize("command", ["ADD", "CHECK", "STATUS"])
    def test_refused(self, node: Node, command: str) -> None:
        """ADD, CHECK and STATUS refuse it as code 7 before the plugin is asked."""
        error = node.refusal(command, {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": 5}})

        assert error["code"] == Code.INVALID_CONFIG
        assert error["msg"] == 'invalid configuration: "ipam.type": 5 is not of type string'
        assert node.plugin.requests == []

    @pytest.mark.parametrize("command", ["DEL", "GC"])
    def test_salvaged(self, node: Node, command: str) -> None:
        """DEL and GC go on with what is left of it, and say so in the log."""
        config = {"cniVersion": "1.1.0", "name": "net", "mtu": "bad", "prevResult": "bad", "x": 1}

        assert node.call(command, config).exit_code == 0

        assert node.plugin.requests[0].config == {"cniVersion": "1.1.0", "name": "net", "x": 1}
        assert sorted(node.log) == [
            f'{command} goes on without "mtu": "bad" is not of type integer',
            f'{command} goes on without "prevResult": "bad" is not of type object',
        ]

    @pytest.mark.parametrize(
        ("config", "code"),
        [(b"", 6), (b"[]", 6), (b"{", 6), (b"null", 7), ({"name": "a b"}, 7)],
    )
    @pytest.mark.parametrize("command", COMMANDS)
    def test_hopeless(self, node: Node, command: str, config: object, code: int) -> None:
        """A configuration without a network's name is refused by every command."""
        assert node.refusal(command, config)["code"] == code

    def test_args_do_not_stop_del(self, node: Node) -> None:
        """Bad CNI_ARGS are the business of a plugin that needs them."""
        assert node.call("DEL", CNI_ARGS="bad").exit_code == 0


class TestUndo:
    """An ADD that fails."""

    def test_taken_back(self, node: Node) -> None:
        """The steps that an ADD has pushed are taken back when it fails."""
        node.plugin.error = CNIError(11, "later")

        assert node.refusal("ADD")["code"] == Code.TRY_AGAIN_LATER
        assert node.plugin.undone == ["the step"]

    def test_unprintable_result(self, node: Node) -> None:
        """An ADD whose result its version cannot express is taken back."""
        node.plugin.result = Result([Interface("eth0")])

        error = node.refusal("ADD", {"name": "net", "cniVersion": "0.2.0"})

        assert error["code"] == Code.INCOMPATIBLE_VERSION
        assert node.plugin.undone == ["the step"]

    def test_success(self, node: Node) -> None:
        """The result of a success stays."""
        node.call("ADD")

        assert node.plugin.undone == []

    def test_interruption(self, node: Node) -> None:
        """A BaseException that is no Exception passes through, and the ADD is taken back."""
        node.plugin.error = KeyboardInterrupt()

        with pytest.raises(KeyboardInterrupt):
            node.call("ADD")

        assert node.plugin.undone == ["the step"]


class TestErrors:
    """The error object."""

    def test_bytes(self, node: Node) -> None:
        """Keys in fixed order, four spaces, HTML escapes, no newline at the end."""
        node.plugin.error = CNIError(999, "a <b>", "c & d")

        assert node.call("CHECK").stdout == (
            b"{\n"
            b'    "cniVersion": "1.1.0",\n'
            b'    "code": 999,\n'
            b'    "msg": "a \\u003cb\\u003e",\n'
            b'    "details": "c \\u0026 d; network \'net\'"\n'
            b"}"
        )

    @pytest.mark.parametrize(
        ("config", "version"),
        [
            ({"cniVersion": "0.3.1", "name": "net"}, "0.3.1"),
            ({"CNIVERSION": "1.0.0", "name": "net"}, "1.0.0"),
            ({"cniVersion": "0.4.0"}, "0.4.0"),
            ({"name": "net"}, "1.1.0"),
            ({"cniVersion": "9.9.9", "name": "net"}, "1.1.0"),
            ({"cniVersion": ["1.0.0"], "name": "net"}, "1.1.0"),
            (b"garbage", "1.1.0"),
            (b'{"cniVersion": "0.4.0"', "1.1.0"),
        ],
    )
    def test_version(self, node: Node, config: object, version: str) -> None:
        """Its cniVersion is that of the configuration, where that is one of ours."""
        node.plugin.error = CNIError(999, "x")

        assert node.refusal("ADD", config)["cniVersion"] == version

    @pytest.mark.parametrize(
        ("error", "code", "msg", "details"),
        [
            pytest.param(CNIError(50, "a", "b"), 50, "a", "b", id="cni"),
            pytest.param(CNIError(123, "a"), 123, "a", None, id="cni-without-details"),
            pytest.param(CNIError(1, ""), 1, "no message", None, id="cni-without-text"),
            pytest.param(CNIError(1, "a\n\n b\r\n", "c\u2028d\x1c"), 1, "a b", "c d", id="lines"),
            pytest.param(
                FileNotFoundError(2, "No such file or directory", "/f"),
                5,
                "No such file or directory '/f'",
                None,
                id="file",
            ),
            pytest.param(OSError(12, "Out of memory"), 999, "Out of memory", None, id="os"),
            pytest.param(OSError("told otherwise"), 999, "told otherwise", None, id="os-text"),
            pytest.param(
                ExceptionGroup("incomplete", [CNIError(5, "a", "d"), OSError(1, "b")]),
                5,
                "incomplete: : a; : b",
                "d",
                id="group",
            ),
            pytest.param(
                KeyError("k"), 999, "internal error, see the log: KeyError: 'k'", None, id="ours"
            ),
        ],
    )
    def test_kinds(
        self, node: Node, error: Exception, code: int, msg: str, details: str | None
    ) -> None:
        """Code, message and details of each kind of exception."""
        node.plugin.error = error

        answer = node.refusal("ADD")

        assert (answer["code"], answer["msg"], answer.get("details")) == (code, msg, details)

    def test_the_network_is_named(self, node: Node) -> None:
        """Each error names the network, in its message or else in its details."""
        node.plugin.error = CNIError(999, "a", "b")
        assert json.loads(node.call("ADD").stdout)["details"] == "b; network 'net'"

        node.plugin.error = CNIError(999, "network 'net' has no room")
        assert "details" not in json.loads(node.call("ADD").stdout)

    def test_very_long(self, node: Node) -> None:
        """A message that quotes megabytes keeps its beginning and end."""
        node.plugin.error = CNIError(999, f"begin {'x' * 100_000} end", "y" * 100_000)

        error = node.refusal("ADD")

        assert error["msg"].startswith("begin xxx")
        assert error["msg"].endswith("xxx end")
        assert len(error["msg"]) + len(error["details"]) < 10_000

    def test_notes(self, node: Node) -> None:
        """The failure of an undo step is in the details."""
        node.plugin.error = CNIError(999, "a", "b")
        node.plugin.error.add_note("undo of x failed: y")

        assert node.refusal("ADD")["details"] == "b; undo of x failed: y"

    def test_steps_of_a_group(self, node: Node) -> None:
        """Every failure of a clean-up is told together with its step."""
        parts = [CNIError(11, "busy"), OSError(1, "refused")]
        for part, step in zip(parts, ("interface", "IPAM DEL"), strict=True):
            part.add_note(step)
        node.plugin.error = ExceptionGroup("clean-up is incomplete", parts)

        error = node.refusal("DEL")

        assert (error["code"], error["msg"]) == (
            11,
            "clean-up is incomplete: interface: busy; IPAM DEL: refused",
        )

    @pytest.mark.parametrize(
        ("error", "logged"),
        [
            (KeyError("k"), True),
            (ExceptionGroup("g", [OSError("a"), ExceptionGroup("h", [KeyError("k")])]), True),
            (ExceptionGroup("g", [OSError("a"), ExceptionGroup("h", [CNIError(1, "b")])]), False),
            (CNIError(1, "a"), False),
            (OSError("a"), False),
        ],
    )
    def test_traceback(self, node: Node, error: Exception, logged: bool) -> None:
        """A traceback goes to the log, for what nobody expected and for nothing else."""
        node.plugin.error = error

        reply = node.call("DEL")

        assert any("Traceback" in text for text in node.log) == logged
        assert b"Traceback" not in reply.stdout

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("link not found", "link missing"),
            ("Not Found: No Such File Or Directory", "missing: absent (ENOENT)"),
            ("a not\nfound", "a missing"),
            ("İİ not found", "İİ missing"),
            ("notfound", "notfound"),
        ],
    )
    def test_words_that_runtimes_discard(self, node: Node, text: str, expected: str) -> None:
        """DEL says in other words what would make a runtime take a failure for a success."""
        node.plugin.error = CNIError(999, text, text)

        deleted, added = node.refusal("DEL"), node.refusal("ADD")

        assert (deleted["msg"], deleted["details"]) == (expected, expected)
        assert added["msg"] == " ".join(text.split())

    def test_bytes_of_a_variable(self, node: Node) -> None:
        """A variable that is not UTF-8 does not make the answer something else than UTF-8."""
        error = node.refusal("ADD", CNI_CONTAINERID="a\udcff")

        assert error["details"] == "CNI_CONTAINERID: a\ufffd"


class TestOwnNamespace:
    """CNI_NETNS that is the plugin's own namespace."""

    @pytest.mark.parametrize(
        "netns",
        [OWN, "/proc/self/ns/net", f"/proc/{os.getpid()}/ns/net"],
        ids=["of the thread", "of the process", "by its number"],
    )
    @pytest.mark.parametrize("command", ["ADD", "CHECK"])
    def test_refused(self, node: Node, command: str, netns: str) -> None:
        """ADD and CHECK refuse it as code 8 before the plugin is asked."""
        error = node.refusal(command, CNI_NETNS=netns)

        assert error["code"] == Code.INVALID_NETNS
        assert error["msg"].startswith(f"CNI_NETNS '{netns}' is the network namespace of the")
        assert node.plugin.requests == []

    @pytest.mark.parametrize("netns", [OWN, "/proc/self/ns/net"])
    def test_del(self, node: Node, netns: str) -> None:
        """DEL takes it for gone: the path may lead to another process by now."""
        assert node.call("DEL", CNI_NETNS=netns).exit_code == 0

        assert [req.netns for req in node.plugin.requests] == [""]
        assert node.log == [f"DEL takes '{netns}' for gone: it is the plugin's own namespace"]

    @pytest.mark.parametrize("value", ["TRUE", "true", "True", "1"])
    @pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
    def test_override(self, node: Node, command: str, value: str) -> None:
        """CNI_NETNS_OVERRIDE allows it."""
        reply = node.call(command, CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE=value)

        assert reply.exit_code == 0
        assert [req.netns for req in node.plugin.requests] == ["/proc/self/ns/net"]

    @pytest.mark.parametrize("value", ["", "0", "yes", "false", "11"])
    def test_no_override(self, node: Node, value: str) -> None:
        """Other values of CNI_NETNS_OVERRIDE do not."""
        error = node.refusal("ADD", CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE=value)

        assert error["code"] == Code.INVALID_NETNS

    @pytest.mark.parametrize("command", ["GC", "STATUS"])
    def test_not_looked_at(self, node: Node, command: str) -> None:
        """GC and STATUS are not about a namespace."""
        assert node.call(command, CNI_NETNS="/proc/self/ns/net").exit_code == 0

    @pytest.mark.parametrize("netns", ["/no/such/netns", "/proc/self/ns/uts", "/etc", "a\0b"])
    @pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
    def test_no_namespace(self, node: Node, command: str, netns: str) -> None:
        """A path that is no network namespace at all is left to the plugin."""
        assert node.call(command, CNI_NETNS=netns).exit_code == 0

        assert [req.netns for req in node.plugin.requests] == [netns]


# --- any failure ---

_TEXTS = st.text(max_size=30) | st.sampled_from(["not found", "no such\nfile or directory", "\n"])
_ERRORS: list[Callable[[str, str], Exception]] = [
    lambda a, b: CNIError(7, a, b),
    lambda a, b: OSError(2, a, b),
    lambda a, b: ExceptionGroup(a, [CNIError(7, b), OSError(b)]),
    lambda a, b: ValueError(a, b),
]


@given(st.sampled_from(_ERRORS), _TEXTS, _TEXTS, st.sampled_from(COMMANDS))
def test_any_error(
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[[str, str], Exception],
    first: str,
    second: str,
    command: str,
) -> None:
    """Any exception of a plugin becomes one error object with one line of text a member."""
    node = Node(tmp_path_factory.getbasetemp())
    node.plugin.error = make(first, second)

    error = node.refusal(command)

    texts = [error.pop("msg"), error.pop("details", "x")]
    assert set(error) == {"cniVersion", "code"}
    assert [len(text.splitlines()) for text in texts] == [1, 1]
    discarded = ("not found", "no such file or directory")
    assert command != "DEL" or not any(p in t.lower() for p in discarded for t in texts)


@given(
    st.dictionaries(
        st.sampled_from(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    ),
    st.binary(max_size=30) | st.sampled_from([b"{}", b'{"name": "n"}']),
    st.sampled_from([*COMMANDS, "", "FOO", "VERSION"]),
)
def test_any_request(
    tmp_path_factory: pytest.TempPathFactory, environ: dict[str, str], stdin: bytes, command: str
) -> None:
    """Any input gives one document, an error exactly when the status is 1."""
    node = Node(tmp_path_factory.getbasetemp())

    reply = node.call(command, stdin, **environ)

    output = json.loads(reply.stdout or b"{}")
    assert reply.exit_code == ("code" in output)
    assert not any("Traceback" in text for text in node.log)
