"""`pycni explain`: everything that the attachments of one container own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cni_common.kernel.netns import NetNS
from cni_common.node.record import dump
from cni_common.spec.errors import CNIError
from commands import DONE, FOUND, lookup, view
from commands.node import Known, Node

if TYPE_CHECKING:
    from argparse import Namespace

    from cni_common.node.host import Host
    from cni_common.node.owned import Owned
    from cni_common.spec.request import Attachment
    from cni_common.spec.wire import JsonObject
    from commands.kernel.dumps import Dump
    from commands.node import Tenancy


def run(options: Namespace, host: Host) -> int:
    """Print what is known of a container; FOUND when that is nothing, or something is missing.

    Raises RefusedError when several containers could be meant.
    """
    node = Node(host, options.data_dir)
    nameless = sum(one.damage != "" and not one.attachment.containerid for one in node.records)
    if nameless:
        host.log(
            f"pycni explain: {nameless} attachment records do not say of which container they are;"
            " pycni audit lists them"
        )
    found = lookup.choose(node, options)
    if not found:
        host.log(f"pycni explain: nothing is known of container '{options.container}'")
        return FOUND
    return _explain(options, node, found)


def _explain(options: Namespace, node: Node, containerid: str) -> int:
    records = [one for one in node.records if one.attachment.containerid == containerid]
    leases = [one for one in node.tenancies if one.owner.containerid == containerid]
    owners = {(one.network, one.attachment) for one in records}
    owners |= {(one.network, one.owner) for one in leases}
    attachments = [
        _Attachment(
            network,
            owner,
            [one for one in records if (one.network, one.attachment) == (network, owner)],
            [one for one in leases if (one.network, one.owner) == (network, owner)],
            node,
        )
        for network, owner in sorted(owners)
    ]
    if options.json:
        found = [one.json() | _kernel_json(one, options) for one in attachments]
        view.write_json({"containerid": containerid, "attachments": found})
    else:
        _print(options, containerid, attachments)
    return FOUND if any(one.lacks for one in attachments) else DONE


def _print(options: Namespace, containerid: str, attachments: list[_Attachment]) -> None:
    view.write_line(f"container {containerid}")
    for one in attachments:
        view.write_line()
        title = f"{one.owner.ifname or 'any interface'} on network {one.network}"
        view.write_page([(title, ""), *one.rows()])
        if options.kernel:
            view.write_line()
            found = one.kernel()
            for where in dict.fromkeys(where for where, _ in found):
                rows = [(o.kind, o.what) for place, o in found if place == where]
                view.write_page([(f"in the kernel, of the {where}", ""), *rows])


def _state_of(record: Known) -> str:
    return f"damaged: {record.damage};" if record.damage else f"changed {record.changed_at}"


def _kernel_json(attachment: _Attachment, options: Namespace) -> JsonObject:
    if not options.kernel:
        return {}
    found = attachment.kernel()
    return {"kernel": [{"where": where, "kind": o.kind, "what": o.what} for where, o in found]}


class _Attachment:
    """One interface on one network, and what is its own."""

    def __init__(  # noqa: PLR0917 - what is known
        self,
        network: str,
        owner: Attachment,
        records: list[Known],
        leases: list[Tenancy],
        node: Node,
    ) -> None:
        self.network = network
        self.owner = owner
        self._records = records
        self._leases = leases
        self._host = node.host
        self._facts = {k: v for one in records for k, v in one.facts.items() if v}
        states = [node.alive(one.facts) for one in records]
        self._alive = True if True in states else next((s for s in states if s is not None), None)
        pods = [*(one.pod for one in records), *(one.pod for one in leases)]
        self._pod = next(filter(None, pods), "")
        self._lost = node.lost_leases(records)  # their addresses may be given to others
        self._objects: list[Owned] = node.owned(records)
        self._noted = [pair for one in records for pair in node.noted(one)]
        # Shared with other attachments; without facts where there is none.
        self._shared: JsonObject = {
            part.name: self._facts.get(part.name, dump(part.facts())[part.name])
            for part in node.parts
            if part.shared
        }

    @property
    def lacks(self) -> bool:
        """Whether something is missing."""
        return bool(self._lost) or not all(one.present for one in self._objects)

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of a page."""
        path = str(self._facts.get("netns", ""))
        rows = [("pod", self._pod)] if self._pod else []
        state = {True: "alive", False: "gone", None: "unknown"}[self._alive]
        rows.append(("netns", f"{path}, {state}" if path else state))
        rows += [(f"record of {o.plugin}", f"{_state_of(o)} {o.path}") for o in self._records]
        rows += [("lease", f"{o.file} since {o.held.since}") for o in self._leases]
        rows += [("lease", f"{view.MISSING}{file}") for file in self._lost]
        for one in self._objects:
            kind = f"{one.kind} (shared)" if one.shared else one.kind
            rows.append((kind, one.what if one.present else f"{view.MISSING}{one.what}"))
        return rows

    def kernel(self) -> list[tuple[str, Dump]]:
        """Return what the kernel has of it now, and where: in the container or on the host."""
        from commands.kernel import dumps

        devices = [name for part, facts in self._noted for name in part.devices(facts) if name]
        addresses = [text for part, facts in self._noted for text in part.addresses(facts)]
        addresses += [str(one.held.address) for one in self._leases]
        on_host = dumps.of_host(self._host.netns, dict.fromkeys(devices), addresses)
        found = [("host", one) for one in on_host]
        if self._alive:
            found += [("container", one) for one in self._inside(str(self._facts.get("netns")))]
        return found

    def _inside(self, path: str) -> list[Dump]:
        from commands.kernel import dumps

        try:
            netns = NetNS(path)
        except CNIError as error:  # it lives elsewhere
            return [dumps.Dump("netns", error.msg)]
        try:
            return dumps.of_container(netns, self.owner.ifname)
        finally:
            netns.close()

    def json(self) -> JsonObject:
        """Return what programs get."""
        facts = self._facts
        return {
            "network": self.network,
            "ifname": self.owner.ifname,
            "pod": self._pod,
            "netns": {"path": facts.get("netns", ""), "alive": self._alive},
            "records": [
                {"plugin": o.plugin, "file": o.path, "changed": o.changed_at, "damage": o.damage}
                for o in self._records
            ],
            "addresses": [
                {
                    "address": str(o.held.address),
                    "file": o.file,
                    "since": o.held.since,
                    "present": True,
                }
                for o in self._leases
            ]
            + [
                {
                    "address": os.path.basename(file),
                    "file": file,
                    "since": "",
                    "present": False,
                }
                for file in self._lost
            ],
            "objects": [
                {"kind": o.kind, "what": o.what, "present": o.present}
                for o in self._objects
                if not o.shared
            ],
            "shared": [
                {"kind": o.kind, "what": o.what, "present": o.present}
                for o in self._objects
                if o.shared
            ],
            **self._shared,
        }
