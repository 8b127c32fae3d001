"""The file that says what is not masqueraded, in the format of ip-masq-agent."""

from __future__ import annotations

import ipaddress
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.network import masquerade_config
from agent.network.masquerade_config import Masquerading


class TestMasqueradeFile:
    """The format of ip-masq-agent."""

    def test_its_own_example(self) -> None:
        """YAML, as in its README, and JSON."""
        expected = Masquerading(
            (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
            link_local=True,
            resync_seconds=90.0,
        )

        assert (
            masquerade_config.parse(
                "nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - fd00::/8\n"
                "masqLinkLocal: true\nmasqLinkLocalIPv6: false\nresyncInterval: 1m30s\n"
            )
            == expected
        )
        assert (
            masquerade_config.parse(
                '{"nonMasqueradeCIDRs": ["10.0.0.0/8", "fd00::/8"],'
                ' "masqLinkLocal": true, "resyncInterval": "90s"}'
            )
            == expected
        )

    @pytest.mark.parametrize("text", ["", "{}", "nonMasqueradeCIDRs:\n"])
    def test_nothing(self, text: str) -> None:
        """Each key has a default."""
        assert masquerade_config.parse(text) == Masquerading()

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[", "it is neither YAML nor JSON: "),
            ("- 10.0.0.0/8", "it must be an object"),
            ("nonMasqueradeCIDRs: 10.0.0.0/8", "nonMasqueradeCIDRs must be a list"),
            ("nonMasqueradeCIDRs: [10.0.0.1/8]", "nonMasqueradeCIDRs: 10.0.0.1/8 has host bits"),
            ("nonMasqueradeCIDRs: [7]", "nonMasqueradeCIDRs has 7, which is no CIDR"),
            ("masqLinkLocal: 'yes'", "masqLinkLocal must be true or false, it is 'yes'"),
            ("resyncInterval: 60", 'resyncInterval must be like "60s" or "1m30s", it is 60'),
            ("resyncInterval: 60s!", "resyncInterval must be like"),
        ],
    )
    def test_refused(self, text: str, words: str) -> None:
        """The sentence names the key and the value."""
        with pytest.raises(ValueError, match="^" + words.replace("(", "\\(")):
            masquerade_config.parse(text)

    @pytest.mark.parametrize(
        ("text", "seconds"), [("1h", 3600.0), ("1.5s", 1.5), ("10ms", 1.0), ("99999h", 86400.0)]
    )
    def test_interval(self, text: str, seconds: float) -> None:
        """Durations of Go, from a second to a day."""
        assert masquerade_config.parse(f"resyncInterval: {text}").resync_seconds == seconds

    @given(st.recursive(st.text() | st.integers() | st.none() | st.booleans(), st.lists))
    def test_any_value(self, value: Any) -> None:
        """Is taken or refused by words."""
        for key in ("nonMasqueradeCIDRs", "masqLinkLocal", "resyncInterval"):
            with suppress(ValueError):
                assert masquerade_config.parse(json.dumps({key: value}))
