"""Secrets that a bug report must not have."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from commands.redaction import MARK, Redactor
from plugins import TYPES, load


def schema_of(type: str) -> Any:
    """Return the SCHEMA of one of our plugins."""
    module = load(type) if type in TYPES else None
    return module.SCHEMA if module else None


def redacted(config: Any) -> Any:
    """Return a configuration as an archive has it."""
    return json.loads(Redactor(schema_of).configuration(json.dumps(config).encode()))


def test_known_keys_stay() -> None:
    """A configuration without unknown keys is as it was."""
    config = {
        "cniVersion": "1.1.0",
        "name": "n",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "ipMasq": True,
                "dns": {"nameservers": ["192.0.2.1"]},
                "capabilities": {"mac": True},
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}]]},
            },
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}},
            {
                "type": "portmap",
                "capabilities": {"portMappings": True},
                "conditionsV4": ["-s", "a"],
            },
        ],
    }

    assert redacted(config) == config


def test_unknown_keys_go() -> None:
    """Their names stay, at any depth; of another vendor's plugin only its type does."""
    config = {
        "cniVersion": "1.1.0",
        "name": "n",
        "listKey": "hush-0001",
        "plugins": [
            {"type": "bridge", "etcd": {"password": "hush-0002"}, "bridge": "cni0"},
            {"type": "ptp", "ipam": {"type": "calico-ipam", "kubeconfig": "hush-0003"}},
            {"type": "calico", "mtu": 1400, "api": ["hush-0004"]},
            {"type": "portmap", "runtimeConfig": {"other": "hush-0005"}, "mtu": {"a": "hush-0006"}},
            "hush-0007",
        ],
    }

    found = redacted(config)

    assert "hush" not in json.dumps(found)
    assert found["listKey"] == MARK
    bridge, ptp, calico, portmap, text = found["plugins"]
    assert bridge == {"type": "bridge", "etcd": MARK, "bridge": "cni0"}
    assert ptp == {"type": "ptp", "ipam": {"type": "calico-ipam", "kubeconfig": MARK}}
    assert calico == {"type": "calico", "mtu": MARK, "api": MARK}
    assert (portmap["runtimeConfig"], portmap["mtu"], text) == ({"other": MARK}, MARK, MARK)


def test_a_value_is_redacted_everywhere() -> None:
    """A value of an unknown key is found in every other text; short ones are left."""
    redactor = Redactor(schema_of)
    redactor.configuration(b'{"type": "bridge", "x": ["s3cr3t-value", {"y": 1234567}], "z": "abc"}')

    assert redactor.text("log: s3cr3t-value abc 1234567") == f"log: {MARK} abc {MARK}"
    assert redactor.count == 2


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-123456", "abc.def"),
        ("password=hunter22 user=x", "hunter22"),
        ('"apiKey": "0123456789"', "0123456789"),
        ("etcd https://user:pa55word@192.0.2.1:2379/", "pa55word"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl end", "eyJzdWIi"),
        ("ghp_0123456789abcdefghij0123", "0123456789"),
        ('password="correct horse battery"', "battery"),
        ('{\\"token\\":\\"0123456789\\"}', "0123456789"),
        ("redis://:pa55word@192.0.2.1", "pa55word"),
        ("http://user:pa55@word@192.0.2.1/", "word"),
        ("https://0123456789@192.0.2.1/x", "0123456789"),
        ("etcdctl --user-password hunter22 get", "hunter22"),
        ("Cookie: session=0123456789", "0123456789"),
        ("wg private key: 0123456789=", "0123456789"),
        ("-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----", "MIIabc"),
    ],
)
def test_what_looks_like_a_secret(text: str, secret: str) -> None:
    """Forms that are usual, wherever they stand."""
    assert secret not in Redactor(schema_of).text(text)


@pytest.mark.parametrize(
    "text",
    [
        "10.22.0.2 mynet 87428fc52280 eth0 shop/web-5d4f8",
        "https://192.0.2.1:2379/path@x",
        "the password of nobody",
        '10.22.0.2 counter packets 0 bytes 0 comment "bridge mynet passed eth0"',
        "map masquerade4 { type ipv4_addr : verdict }",
        "container 87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7",
    ],
)
def test_what_does_not(text: str) -> None:
    """Names, addresses and ids stay: without them a report tells nothing."""
    assert Redactor(schema_of).text(text) == text


def test_records() -> None:
    """The configuration in a record, and CNI_ARGS, are redacted like files."""
    redactor = Redactor(schema_of)
    args = "IgnoreUnknown=1;K8S_POD_NAME=web;TOKEN=hush-0001"
    stdin = json.dumps({"type": "bridge", "key": "hush-0002"})
    line = json.dumps({"format": 1, "plugin": "bridge", "stdin": stdin, "cni_args": args})

    found = redactor.record(f"{line}\n{{half".encode())

    assert "hush" not in found
    first, second = found.splitlines()
    assert json.loads(first)["cni_args"] == f"IgnoreUnknown=1;K8S_POD_NAME=web;TOKEN={MARK}"
    assert second == "line 2 is no JSON object, left out"


def test_results() -> None:
    """Of a result stay the keys of the specification, at any depth."""
    ips = [{"address": "10.1.0.2/16", "gateway": "10.1.0.1", "note": "hush-0001"}]
    result = {"ips": ips, "interfaces": [{"name": "eth0", "key": ["hush-0002"]}], "x": "hush-0003"}

    found = redacted({"type": "bridge", "prevResult": result})["prevResult"]

    assert found == {
        "ips": [{"address": "10.1.0.2/16", "gateway": "10.1.0.1", "note": MARK}],
        "interfaces": [{"name": "eth0", "key": MARK}],
        "x": MARK,
    }


def test_as_messages_quote_it() -> None:
    """A redacted value is found where JSON or Python has quoted it, too."""
    secret = 'a"b\\c\nd'
    redactor = Redactor(schema_of)
    redactor.configuration(json.dumps({"type": "bridge", "x": secret}).encode())

    text = redactor.text(f"{json.dumps(secret)} {secret!r}")

    assert text == f"\"{MARK}\" '{MARK}'"


def test_large_texts() -> None:
    """The time grows with the text, for any content."""
    for text in ("a" * (1 << 20), "-" * (1 << 20), 'token="' * (1 << 16), "://" * (1 << 16)):
        begun = time.process_time()
        Redactor(schema_of).text(text)
        assert time.process_time() - begun < 10


def test_what_is_no_json() -> None:
    """Of a file that cannot be read nothing is shown."""
    assert "hush" not in Redactor(schema_of).configuration(b'{"a": hush')
