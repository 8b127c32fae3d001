"""cni_common/spec/wire.py: JSON as Go's encoding/json reads and writes it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code

SCHEMA: dict[str, Any] = {
    "properties": {
        "name": {},
        "isGateway": {},
        "mac": {},
        "MAC": {},
        "ipam": {
            "properties": {
                "type": {},
                "routes": {"items": {"properties": {"dst": {}, "gw": {}}}},
            }
        },
    }
}

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**50), 10**50)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(), _VALUES, max_size=6)


def refusal(data: bytes) -> CNIError:
    """Return the error of `data`, which must be refused."""
    with pytest.raises(CNIError) as caught:
        wire.decode(data)
    return caught.value


class TestDecode:
    """decode()."""

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            pytest.param(b"{}", {}, id="empty"),
            pytest.param(b"null", {}, id="top-level-null"),
            pytest.param(b' \t\r\n{"a": 1}\n\n', {"a": 1}, id="white-space"),
            pytest.param(b'{"a": -0}', {"a": 0}, id="minus-zero"),
            pytest.param(b'{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}, id="nested"),
            pytest.param(b'{"a": "\\/\\u0041\\n"}', {"a": "/A\n"}, id="escapes"),
            pytest.param(b'{"a": "\x7f"}', {"a": "\x7f"}, id="del"),
            pytest.param(b'{"a": 1, "a": 2}', {"a": 2}, id="repeated"),
            pytest.param(b'{"a": 1, "a": null}', {"a": 1}, id="repeated-as-null"),
            pytest.param(b'{"a": null, "a": 1}', {"a": 1}, id="repeated-after-null"),
            pytest.param(
                b'{"a": {"x": 1, "y": 1}, "a": {"y": 2, "z": 2}}',
                {"a": {"x": 1, "y": 2, "z": 2}},
                id="repeated-objects-merge",
            ),
            pytest.param(
                b'{"a": {"b": {"x": 1}}, "a": {"b": {"y": 2}}}',
                {"a": {"b": {"x": 1, "y": 2}}},
                id="repeated-objects-merge-deeply",
            ),
            pytest.param(
                b'{"a": {"x": 1}, "a": {"x": null}}',
                {"a": {"x": 1}},
                id="null-inside-a-repeated-object",
            ),
            pytest.param(b'{"a": {"x": 1}, "a": [2]}', {"a": [2]}, id="repeated-as-another-type"),
            pytest.param(b'{"a": [1], "a": [2]}', {"a": [2]}, id="repeated-arrays-replace"),
            pytest.param(b'{"a": "\xff\xfe"}', {"a": "\ufffd\ufffd"}, id="not-utf-8"),
            pytest.param(b'{"\xff": 1}', {"\ufffd": 1}, id="key-not-utf-8"),
            pytest.param(b'{"a": "\\ud800"}', {"a": "\ufffd"}, id="high-surrogate"),
            pytest.param(b'{"a": "x\\uDC00y"}', {"a": "x\ufffdy"}, id="low-surrogate"),
            pytest.param(
                b'{"a": "\\ud800\\ud800\\udc00"}',
                {"a": "\ufffd\U00010000"},
                id="surrogate-and-pair",
            ),
            pytest.param(b'{"a": ["\\ud83d\\ude00"]}', {"a": ["\U0001f600"]}, id="surrogate-pair"),
            pytest.param(b'{"\\udc80": {"\\udc80": 1}}', {"\ufffd": {"\ufffd": 1}}, id="keys"),
            pytest.param(b'{"a": "\\\\ud800"}', {"a": "\\ud800"}, id="no-surrogate"),
        ],
    )
    def test_accepted(self, data: bytes, expected: dict[str, Any]) -> None:
        """Input that Go accepts gives the value that Go sees."""
        assert wire.decode(data) == expected

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("1400", int),
            ("-5", int),
            ("1400.0", float),
            ("14e2", float),
            ('"1400"', str),
            ("true", bool),
            ("1", int),
            ('"true"', str),
        ],
    )
    def test_types_stay(self, text: str, kind: type) -> None:
        """A number written as a float is no integer, and nothing is converted."""
        assert type(wire.decode(b'{"a": ' + text.encode() + b"}")["a"]) is kind

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b" \n", id="white-space"),
            pytest.param(b"{", id="open"),
            pytest.param(b'{"a": 1,}', id="trailing-comma"),
            pytest.param(b'{"a": 1}{}', id="second-document"),
            pytest.param(b'{"a": 1} x', id="trailing-data"),
            pytest.param(b'{"a": 1}\x00', id="trailing-nul"),
            pytest.param(b'{"a": 1}\xff', id="trailing-byte"),
            pytest.param(b'{"a": 1 /* c */}', id="comment"),
            pytest.param(b'{"a": 1}// c', id="line-comment"),
            pytest.param(b'{"a": NaN}', id="nan"),
            pytest.param(b'{"a": Infinity}', id="infinity"),
            pytest.param(b'{"a": -Infinity}', id="minus-infinity"),
            pytest.param(b'\xef\xbb\xbf{"a": 1}', id="byte-order-mark"),
            pytest.param('{"a": 1}'.encode("utf-16"), id="utf-16"),
            pytest.param(b"{'a': 1}", id="single-quotes"),
            pytest.param(b"{a: 1}", id="no-quotes"),
            pytest.param(b'{"a": "\x01"}', id="control-character"),
            pytest.param(b'{"a": "b\tc"}', id="tab-in-string"),
            pytest.param(b'{"a": "\\x41"}', id="unknown-escape"),
            pytest.param(b'{"a": "\\u12"}', id="short-escape"),
            pytest.param(b'{"a": 01}', id="leading-zero"),
            pytest.param(b'{"a": +1}', id="plus"),
            pytest.param(b'{"a": .5}', id="no-integer-part"),
            pytest.param(b'{"a": 1.}', id="no-fraction"),
            pytest.param(b'{"a": 0x1}', id="hexadecimal"),
            pytest.param(b'{"a": True}', id="python-true"),
            pytest.param('{"a":\u00a01}'.encode(), id="no-break-space"),
            pytest.param(b'{"a": ' + b"9" * 101 + b"}", id="long-integer"),
            pytest.param(b'{"a": ' + b"9" * 9999 + b"}", id="very-long-integer"),
            pytest.param(b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", id="deep"),
            pytest.param(b'{"a": ' + b'{"a":' * 9999 + b"1" + b"}" * 10000, id="very-deep"),
            pytest.param(b"[" * 100_000, id="very-deep-and-open"),
        ],
    )
    def test_refused(self, data: bytes) -> None:
        """Input that is not JSON is refused by code 6, on one line."""
        error = refusal(data)

        assert error.code == Code.DECODING_FAILURE
        assert error.msg.startswith("the configuration on stdin is not valid JSON: ")
        assert "\n" not in error.msg
        assert "sys." not in error.msg

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (b"[]", "an array"),
            (b'[{"name": "n"}]', "an array"),
            (b"1", "an integer"),
            (b"1.5", "a number"),
            (b'"x"', "a string"),
            (b"true", "a boolean"),
        ],
    )
    def test_not_an_object(self, data: bytes, what: str) -> None:
        """A document of another type is code 6 and the type is named."""
        error = refusal(data)

        assert error.code == Code.DECODING_FAILURE
        assert error.msg == f"the configuration on stdin must be a JSON object, not {what}"

    def test_deep_enough(self) -> None:
        """A hundred levels are accepted, and all that walk through them can."""
        data = b'{"ipam": ' * 99 + b'{"ipam": 1, "IPAM": null}' + b"}" * 99

        folded = wire.fold(wire.decode(data), SCHEMA)

        assert wire.encode(folded, sort_keys=True).count(b"ipam") == 100

    def test_order_of_repeated_keys(self) -> None:
        """A repeated key stands where its last occurrence does, in merged objects too."""
        top = wire.decode(b'{"a": 1, "b": 2, "a": 3}')
        inner = wire.decode(b'{"x": {"a": 1, "b": 2}, "x": {"a": 3}}')

        assert list(top) == ["b", "a"]
        assert list(inner["x"]) == ["b", "a"]

    @given(OBJECTS, st.booleans(), st.sampled_from([None, 2]))
    def test_as_python(self, value: dict[str, Any], ensure_ascii: bool, indent: int | None) -> None:
        """A valid document without repeated keys gives what Python's json gives."""
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

        decoded = wire.decode(text.encode("utf-8", "surrogatepass"))

        assert decoded == json.loads(text.encode("utf-8", "replace").decode())

    @given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u123d8truefalsn .-').map(str.encode))
    def test_any_bytes(self, data: bytes) -> None:
        """Any input gives an object or an error of one line."""
        value: Any = None
        error = CNIError(Code.DECODING_FAILURE, "none")
        try:
            value = wire.decode(data)
        except CNIError as caught:
            error = caught

        assert error.code == Code.DECODING_FAILURE
        assert len(error.msg.splitlines()) == 1
        assert isinstance(value, dict) == (error.msg == "none")


class TestFold:
    """fold()."""

    def test_two_schemas(self) -> None:
        """The spelling is that of the schema at hand, also where one takes another's place."""
        found = []
        for name in ("mtu", "MTU", "Mtu") * 100:
            found.append(list(wire.fold({"mTu": 1}, {"properties": {name: {}}})))

        assert found == [["mtu"], ["MTU"], ["Mtu"]] * 100

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            pytest.param({"NAME": 1, "isgateway": 2}, {"name": 1, "isGateway": 2}, id="any-case"),
            pytest.param({"i\u017fGateway": 1}, {"isGateway": 1}, id="long-s-as-go-folds-it"),
            pytest.param({"mac": 1, "MAC": 2}, {"mac": 1, "MAC": 2}, id="exact-spelling-first"),
            pytest.param({"name": 1, "Name": 2}, {"name": 2}, id="later-wins"),
            pytest.param({"Name": 2, "name": 1}, {"name": 1}, id="later-wins-though-exact"),
            pytest.param({"name": None}, {}, id="null"),
            pytest.param({"name": 1, "NAME": None}, {"name": 1}, id="null-changes-nothing"),
            pytest.param({"name": None, "NAME": 1}, {"name": 1}, id="null-first"),
            pytest.param({"other": 1, "OTHER": 2}, {"other": 1, "OTHER": 2}, id="unknown"),
            pytest.param(
                {"IPAM": {"Type": 1, "ROUTES": [{"DST": 2, "x": 3}]}},
                {"ipam": {"type": 1, "routes": [{"dst": 2, "x": 3}]}},
                id="all-levels",
            ),
            pytest.param(
                {"ipam": {"type": 1, "x": 1}, "IPAM": {"TYPE": 2}},
                {"ipam": {"type": 2, "x": 1}},
                id="objects-merge",
            ),
            pytest.param(
                {"ipam": {"type": 1}, "IPAM": {"TYPE": None}},
                {"ipam": {"type": 1}},
                id="objects-merge-without-null",
            ),
            pytest.param({"ipam": {"type": None}}, {"ipam": {}}, id="null-inside"),
            pytest.param({"ipam": 5, "name": [1]}, {"ipam": 5, "name": [1]}, id="wrong-types-stay"),
            pytest.param(
                {"ipam": {"routes": [None, 1, {"Gw": None}]}},
                {"ipam": {"routes": [None, 1, {}]}},
                id="null-in-an-array-stays",
            ),
        ],
    )
    def test_examples(self, config: dict[str, Any], expected: dict[str, Any]) -> None:
        """Keys are spelled as the schema does, at every level that it knows."""
        assert wire.fold(config, SCHEMA) == expected

    def test_repeated_and_respelled(self) -> None:
        """The last occurrence in the document wins, whatever its spelling."""
        data = b'{"ipam": {"type": 1, "TYPE": 2}, "ipam": {"type": 3}}'

        assert wire.fold(wire.decode(data), SCHEMA) == {"ipam": {"type": 3}}

    @given(OBJECTS)
    def test_idempotent(self, config: dict[str, Any]) -> None:
        """Folding a folded configuration changes nothing."""
        folded = wire.fold({**config, "Name": config, "ipam": config}, SCHEMA)

        assert wire.fold(folded, SCHEMA) == folded

    @given(
        st.lists(st.tuples(st.sampled_from(["name", "isGateway"]), st.booleans(), st.integers()))
    )
    def test_case_does_not_matter(self, pairs: list[tuple[str, bool, int]]) -> None:
        """Of all spellings of a key the last in the document has its value."""
        text = ",".join(f'"{k.swapcase() if swap else k}":{v}' for k, swap, v in pairs)

        folded = wire.fold(wire.decode(f"{{{text}}}".encode()), SCHEMA)

        assert folded == {key: value for key, _, value in pairs}


class TestEncode:
    """encode() and encode_line()."""

    def test_layout(self) -> None:
        """Four spaces of indentation, keys as given, no newline at the end."""
        value = {"b": [1, {"c": True}], "a": {}, "d": []}

        assert wire.encode(value, sort_keys=False) == (
            b"{\n"
            b'    "b": [\n'
            b"        1,\n"
            b"        {\n"
            b'            "c": true\n'
            b"        }\n"
            b"    ],\n"
            b'    "a": {},\n'
            b'    "d": []\n'
            b"}"
        )

    def test_sorted(self) -> None:
        """With sort_keys the keys of every object are in the order of their bytes."""
        value = {"b": {"z": 1, "Z": 2, "é": 3}, "a": 4}

        text = wire.encode(value, sort_keys=True).decode()

        assert [line.split('"')[1] for line in text.splitlines() if '"' in line] == [
            *("a", "b", "Z", "z", "é")
        ]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            pytest.param("<&>", b"\\u003c\\u0026\\u003e", id="html"),
            pytest.param("\u2028\u2029", b"\\u2028\\u2029", id="line-separators"),
            pytest.param("é\U0001f600", "é\U0001f600".encode(), id="other-letters-raw"),
            pytest.param('"\\/', b'\\"\\\\/', id="quote-and-backslash"),
            pytest.param("\t\n\r\x01\x7f", b"\\t\\n\\r\\u0001\x7f", id="control-characters"),
            pytest.param("\udcff\udc80", "\ufffd\ufffd".encode(), id="bytes-of-a-variable"),
        ],
    )
    def test_escapes(self, text: str, expected: bytes) -> None:
        """Five characters are escaped as for HTML, other letters are not."""
        assert wire.encode(text, sort_keys=False) == b'"' + expected + b'"'
        assert wire.encode_line([text]) == b'["' + expected + b'"]\n'

    def test_keys_are_escaped(self) -> None:
        """A key is escaped as a value is."""
        assert wire.encode_line({"<": "<"}) == b'{"\\u003c":"\\u003c"}\n'

    def test_line(self) -> None:
        """encode_line gives one compact line that ends in a newline."""
        assert wire.encode_line({"a": [1, 2], "b": None}) == b'{"a":[1,2],"b":null}\n'

    @given(OBJECTS)
    def test_reads_back(self, value: dict[str, Any]) -> None:
        """The output is JSON of the same value, surrogates aside."""
        decoded = wire.decode(json.dumps(value).encode())

        assert json.loads(wire.encode(decoded, sort_keys=True)) == decoded
        assert json.loads(wire.encode_line(decoded)) == decoded


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        (True, "a boolean"),
        (1, "an integer"),
        (1.0, "a number"),
        ("", "a string"),
        ([], "an array"),
        ({}, "an object"),
    ],
)
def test_type_name(value: object, expected: str) -> None:
    """The types have the names of JSON."""
    assert wire.type_name(value) == expected


def test_a_megabyte_of_repeated_keys_is_read_at_once() -> None:
    """Objects under one key are merged in place: the cost grows with the input, not its square."""
    members = ",".join(f'"ipam":{{"key{number}":1}}' for number in range(50_000))
    started = time.process_time()

    config = wire.fold(wire.decode(f"{{{members}}}".encode()), {"properties": {"ipam": {}}})

    assert len(config["ipam"]) == 50_000
    assert time.process_time() - started < 5  # it took minutes
