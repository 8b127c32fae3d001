"""The leases of an attachment, for the operators' commands; ADD and DEL are in allocate."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.lifecycle import Lifecycle, Part, recorded_add
from cni_common.node.owned import Pool
from cni_common.spec.ipam_config import ipam_type
from plugins.host_local import allocate, reclaim
from plugins.host_local.lease import PLUGIN, LeaseFacts
from plugins.host_local.ranges import RangeSet
from plugins.host_local.store import Store, indexes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cni_common.node.host import Host
    from cni_common.node.owned import Holding
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Request

_NEVER_GIVEN = 3  # of a whole subnet: its own address, the gateway, broadcast
_STORES_OWN = ".pycni-"  # how the names of files begin that are made beside the leases


class Lease(Part):
    """The leases of an attachment."""

    facts = LeaseFacts
    derived = True

    def teardown(self, req: Request, host: Host, record: Record, facts: LeaseFacts) -> None:
        """Free the addresses."""
        allocate.free(facts.directory, req, host, facts, rest_seconds=0)

    def pod(self, facts: LeaseFacts) -> str:
        """Return the pod that ADD was told of."""
        return facts.pod

    def directories(self, record: Record) -> Iterator[str]:
        """Yield the directory of leases that a record names."""
        facts = record.get(LeaseFacts)
        if facts and facts.directory.startswith("/"):
            yield facts.directory

    def holdings(self, host: Host, network: str, directory: str) -> list[Holding]:
        """Return every lease in `directory`, ordered by address; changes nothing."""
        return reclaim.holdings(host, network, directory)

    def pools(self, record: Record) -> Iterator[Pool]:
        """Yield the ranges of the configuration of an ADD that had addresses of this plugin."""
        from plugins.host_local import Conf

        req = recorded_add(record, "")
        if ipam_type(req.config) != PLUGIN:
            return
        conf = Conf.of(req)
        for one in (one for of in conf.sets for one in of.ranges):
            alone = RangeSet((one,))
            usual = alone.size >= one.subnet.num_addresses - _NEVER_GIVEN
            text = str(one.subnet) if usual else str(one)
            holds = partial(_holds, alone)
            yield Pool(conf.directory, text, alone.size, holds)

    def missing(self, record: Record, held: Iterable[str]) -> Iterator[str]:
        """Yield the files of those recorded leases whose addresses are not `held`."""
        facts = record.get(LeaseFacts)
        for address in facts.addresses if facts else ():
            if address not in held:
                yield f"{facts.directory if facts else ''}/{address}"

    def reclaim(self, host: Host, network: str, directory: str) -> None:
        """Free the leases in `directory` whose containers were found GONE before."""
        reclaim.reclaim(host, network, directory)

    def temporary_files(
        self, host: Host, directories: Iterable[str]
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield each file that a killed call may have left, and what removes it."""
        indexes = indexes_of(host)
        for name in _names(indexes):
            if name.endswith(".new"):
                yield f"{indexes}/{name}", partial(os.unlink, f"{indexes}/{name}")
        for directory in directories:
            for name in _names(directory):
                if name.startswith(_STORES_OWN):
                    yield f"{directory}/{name}", partial(_tidy, host, directory)


def _holds(pool: RangeSet, address: Address) -> bool:
    return pool.range_of(address) is not None


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _tidy(host: Host, directory: str) -> None:
    """Remove what killed calls left among the leases."""
    with Store(directory, indexes=indexes_of(host), log=host.log) as store:
        store.lock()
        store.tidy(os.listdir(directory))  # by names alone: others wait for the lock


LEASE = Lease()
LIFECYCLE = Lifecycle(PLUGIN, LEASE, leases=LEASE)
