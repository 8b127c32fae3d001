"""bandwidth's arithmetic, its configuration, and the messages for the kernel."""

from __future__ import annotations

import json
import sys
from hashlib import sha512
from ipaddress import ip_network
from typing import Any

import pytest

from cni_common.spec.errors import CNIError
from cni_common.spec.request import Request
from plugins.bandwidth import ifb, tc
from plugins.bandwidth.conf import Conf, Limit
from plugins.bandwidth.shaper import Bucket
from tests.machine import Json

U32 = 2**32 - 1


def request(**keys: Any) -> Request:
    """Return an ADD of c1's eth0 on net1."""
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/n",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/p",
    }
    return Request.parse(environ, json.dumps({"name": "net1", "type": "x", **keys}).encode())


class TestConf:
    """The meaning of a configuration."""

    @pytest.mark.parametrize(
        ("burst", "expected"),
        [
            (None, 0),
            (0, 0),
            (U32, 0),
            (U32 >> 1, 0),
            (8 * U32 - 1, 0),
            ((U32 >> 1) - 1, 268_435_456 - 1),
            (7, 1),
            (8, 1),
            (9, 1),
        ],
    )
    def test_burst(self, burst: int | None, expected: int) -> None:
        """A burst in bits becomes one in bytes, and an absent one becomes 0."""
        keys = {} if burst is None else {"egressBurst": burst}

        assert Conf.of(request(egressRate=80, **keys)).egress == Limit(10, expected)

    @pytest.mark.parametrize("burst", [U32 >> 1, U32, 8 * U32 - 1])
    def test_no_burst_of_runtimes_is_no_wish(self, burst: int) -> None:
        """A number counts as a burst only if the rate can use that up within a second."""
        slow = Conf.of(request(ingressRate=10**7, ingressBurst=burst))
        fast = Conf.of(request(egressRate=burst, egressBurst=burst))

        assert slow.ingress == Limit(10**7 // 8, 0)
        assert fast.egress == Limit(burst // 8, burst // 8)

    def test_runtime(self) -> None:
        """The runtime's limits count when there are none of its own, and its own subnets stay."""
        runtime = {"bandwidth": {"ingressRate": 800}}
        conf = Conf.of(
            request(runtimeConfig=runtime, ingressRate=0, unshapedSubnets=["10.1.2.3/8"])
        )

        assert conf == Conf(Limit(100, 0), None, (ip_network("10.0.0.0/8"),))

    def test_subnets_of_the_runtime(self) -> None:
        """Subnets that stand beside the runtime's limits take the place of the others."""
        runtime = {"bandwidth": {"egressRate": 800, "shapedSubnets": ["fd00::/8"]}}
        conf = Conf.of(request(runtimeConfig=runtime, unshapedSubnets=["10.0.0.0/8"]))

        assert (conf.subnets, conf.only_subnets) == ((ip_network("fd00::/8"),), True)

    @pytest.mark.parametrize(
        "keys",
        [
            {"ingressRate": 1},
            {"ingressBurst": 1},
            {"ingressRate": 8, "ingressBurst": 8 * U32},
            {"unshapedSubnets": ["10.0.0.0/33"]},
            {"shapedSubnets": [""]},
        ],
    )
    def test_refused(self, keys: Json) -> None:
        """A configuration that cannot be carried out has code 7, with limits or without."""
        with pytest.raises(CNIError) as caught:
            Conf.of(request(**keys))

        assert caught.value.code == 7


class TestBucket:
    """A limit in the kernel's terms."""

    @pytest.mark.parametrize(
        ("rate", "burst", "buffer", "limit"),
        [
            # Ticks are of 64 ns, as in the Go plugin. The bytes of 25 ms may wait, and a packet.
            (1_250_000, 200_000, 2_500_000, 31_250 + 65_536),
            (375_000, 97_222, 4_050_906, 9_375 + 65_536),
            (1_250, 125_000, 1_562_500_000, 31 + 65_536),
            (125_000, 15_000, 1_875_000, 3_125 + 15_000),
            (5_000_000_000, 500_000_000, 1_562_500, 125_000_000 + 65_536),
            (5_000_000_000, 4_000_000_000, 12_500_000, 125_000_000 + 65_536),
        ],
    )
    def test_numbers(self, rate: int, burst: int, buffer: int, limit: int) -> None:
        """The queue has the same length whatever the burst is; the buffer has the burst."""
        bucket = Bucket.of(Limit(rate, burst), 1500)

        assert (bucket.buffer, bucket.limit, bucket.burst) == (buffer, limit, burst)
        assert not bucket.needs_bytes

    @pytest.mark.parametrize(
        ("rate", "burst"),
        [(1, 0), (1, 1), (125_000, 0), (2**61, 0), (2**61, U32 - 1), (10**10, 1514), (7, 5000)],
    )
    @pytest.mark.parametrize("mtu", [68, 1500, 65535])
    def test_extremes(self, rate: int, burst: int, mtu: int) -> None:
        """With any limit a packet fits, all numbers fit into 32 bits, and the rate stays."""
        bucket = Bucket.of(Limit(rate, burst), mtu)

        assert bucket.burst >= max(burst, mtu + 14)
        assert min(bucket.burst, 65536) <= bucket.limit <= U32
        assert bucket.limit >= mtu + 14
        assert bucket.rate == rate
        through_ticks = bucket.buffer * 64 * rate // 10**9
        assert bucket.needs_bytes or through_ticks >= mtu + 14
        tc.tbf(rate, min(bucket.buffer, U32), bucket.limit, burst=bucket.burst)

    def test_default_burst(self) -> None:
        """It is 25 ms of the rate, and 64 KiB where that is less."""
        assert Bucket.of(Limit(10_000_000, 0), 1500).burst == 250_000
        assert Bucket.of(Limit(10_000, 0), 1500).burst == 65536


class TestFilters:
    """The filters for packets of a subnet."""

    @pytest.mark.parametrize(
        ("subnet", "source", "expected"),
        [
            ("10.0.0.0/8", False, [("ff000000", "0a000000", 16)]),
            ("10.0.0.0/8", True, [("ff000000", "0a000000", 12)]),
            ("0.0.0.0/0", True, [("00000000", "00000000", 0)]),
            ("2001:db8::/32", True, [("ffffffff", "20010db8", 8)]),
            ("fd00::/8", False, [("ff000000", "fd000000", 24)]),
            (
                "2001:db8:1:2:8000::/65",
                False,
                [
                    ("ffffffff", "20010db8", 24),
                    ("ffffffff", "00010002", 28),
                    ("80000000", "80000000", 32),
                ],
            ),
        ],
    )
    def test_keys(self, subnet: str, source: bool, expected: list[tuple[str, str, int]]) -> None:
        """Each word of the mask that is not zero is compared, at its place in the header."""
        keys = tc.keys_of(ip_network(subnet), source=source)

        parts = [keys[start : start + 16] for start in range(0, len(keys), 16)]
        found = [
            (part[:4].hex(), part[4:8].hex(), int.from_bytes(part[8:12], sys.byteorder))
            for part in parts
        ]
        assert found == expected


def test_names() -> None:
    """The first name is the reference's, the second another; both are names of interfaces."""
    names = ifb.names_of(request())

    assert names[0] == "bwp" + sha512(b"net1c1").hexdigest()[:12] == "bwpc2d892b58e87"
    assert len({*names}) == 2
    assert {len(name) for name in names} == {15}
