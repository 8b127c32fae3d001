"""The life of an attachment by its parts: the record, rollback of ADD, DEL, GC.

A plugin says what its attachments have on the node as parts, in the order in which they are torn
down. Everything else follows from them: DEL with a record and without one, what a failing ADD takes
back, GC, and what `pycni audit`, `explain` and `reclaim` do.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.record import Lock, dump
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import CURRENT_VERSION
from cni_common.spec.request import Attachment, Command, Request
from cni_common.spec.undo import BestEffort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, Protocol

    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.liveness import Liveness
    from cni_common.node.owned import Holding, Owned, Pool, Stray, Usage
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.undo import Undo

    class Leases(Protocol):
        """The leases of an IPAM plugin, for the operators' commands."""

        def directories(self, record: Record) -> Iterable[str]:
            """Yield the directories of leases that a record names."""

        def holdings(self, host: Host, network: str, directory: str) -> Sequence[Holding]:
            """Return every lease in `directory`, ordered by address; changes nothing."""

        def pools(self, record: Record) -> Iterable[Pool]:
            """Yield the ranges from which an attachment got its addresses. Raises CNIError."""

        def missing(self, record: Record, held: Iterable[str]) -> Iterable[str]:
            """Yield the files of those recorded leases whose addresses are not `held`."""

        def reclaim(self, host: Host, network: str, directory: str) -> object:
            """Free the leases in `directory` whose containers were found GONE before."""

        def temporary_files(
            self, host: Host, directories: Iterable[str]
        ) -> Iterable[tuple[str, Callable[[], object]]]:
            """Yield each file that a killed call may have left, and what removes it."""


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # for delegates


class Unrecorded:
    """An attachment without a record, during its DEL."""

    def __init__(self, plugin: str, req: Request) -> None:
        self.plugin = plugin
        self.exists = False  # whether a part has come across it, or its record is damaged
        self._req = req
        self._addresses: set[Address] | None = None

    @property
    def addresses(self) -> set[Address]:
        """Its addresses: of prevResult, to which parts add those that they come across."""
        if self._addresses is None:
            self._addresses = _addresses_of_prev_result(self._req)
        return self._addresses

    @property
    def is_known(self) -> bool:
        """Tell whether the attachment existed: ADD has succeeded, or a part has met it."""
        return self.exists or bool(self.addresses)

    def other_in(self, host: Host, container: NetNS) -> Record | None:
        """Return the record of the interface in this namespace, which is of another container.

        Then the path was that of a namespace which died, and by now is that of another.
        """
        return next(
            (
                record
                for record in host.records.of_plugin(self.plugin)
                if record.attachment.ifname == self._req.ifname
                and record.facts.get("netns_id") == container.identity
            ),
            None,
        )


class Part:
    """One thing that an attachment has on the node. Methods do nothing unless overridden.

    `record` is the record of the attachment, `facts` are the record's facts about this part.
    """

    facts: type[Any]  # a dataclass, as record.load has it
    shared = False  # True: its objects are other attachments' too, and stay; JSON has its facts
    lasting = False  # True: its objects are files, which outlive the node's boot and its records
    derived = False  # True: its facts follow from configuration, arguments and result of the ADD
    inside = False  # True: all of it is in the container, which may have changed it on purpose
    has_addresses = False  # True: the container's addresses are on it until it is torn down
    gives_addresses = False  # True: afterwards they are others'; so what has them goes first

    @property
    def name(self) -> str:
        """The word for it in the record, in messages and in the log."""
        return str(self.facts.PART)

    def teardown(self, req: Request, host: Host, record: Record, facts: Any) -> None:
        """Remove the objects in `facts`, no other attachment's; succeed if nothing is left.

        `req` is a DEL, in which only the names are sure to be right, or the ADD that has failed.
        Raises CNIError, OSError or an ExceptionGroup of these.
        """

    def teardown_unrecorded(self, req: Request, host: Host, found: Unrecorded) -> None:
        """DEL without a record: remove objects of the reference, or ours after a lost record."""

    def goes_first(self, req: Request, facts: Any) -> bool:
        """Tell whether DEL tears this part down first; `facts` are None without a record."""
        return False

    def refuse_living(self, req: Request, host: Host, record: Record, facts: Any) -> None:
        """Raise CNIError 4 if another ADD of the same attachment would harm a living container."""

    def collect(self, req: Request, host: Host, plugin: str) -> None:
        """GC: remove objects of the network without a record and without a valid attachment."""

    def restore(self, req: Request, host: Host, record: Record, facts: Any) -> None:
        """Put back what others have taken away of a living container's part, as far as that goes.

        `req` is its ADD, as it was recorded. Raises CNIError, OSError.
        """

    def rejoin(self, host: Host, record: Record, facts: Any) -> None:
        """Note what other calls have noted in `record` since its ADD: it was written anew by that.

        Raises CNIError, OSError.
        """

    def present(self, host: Host, record: Record, facts: Any) -> Iterable[Owned]:
        """Yield each object in `facts`, and whether it is there. Raises CNIError, OSError."""
        return ()

    def usage(self, host: Host, record: Record, facts: Any) -> Iterable[Usage]:
        """Yield what the part does with traffic, and how often. Raises CNIError, OSError."""
        return ()

    def devices(self, facts: Any) -> Iterable[str]:
        """Yield the interfaces of the host that are the attachment's alone."""
        return ()

    def addresses(self, facts: Any) -> Iterable[str]:
        """Yield the container's addresses, with or without prefix length."""
        return ()

    def pod(self, facts: Any) -> str:
        """Return the pod as namespace/name, empty if the part does not note it."""
        return ""

    def has_host_port(self, facts: Any, port: int) -> bool:
        """Tell whether a port of the host leads to the container."""
        return False

    def strays(self, host: Host) -> Iterable[Stray]:
        """Yield the objects of this part in the kernel, of all attachments, recorded or not."""
        return ()

    def claims(self, record: Record) -> Iterable[str]:
        """Yield the `owner`s of those strays that are `record`'s, a record of any plugin."""
        return ()


class Lifecycle:
    """The parts of one plugin's attachments, and the calls derived from them."""

    def __init__(
        self, plugin: str, *parts: Part, locked: bool = False, leases: Leases | None = None
    ) -> None:
        """`locked`: the objects of one attachment depend on the records of all others.

        Then parts and record go under the lock over all records. `leases` are those of an IPAM
        plugin, for the operators' commands.
        """
        self.plugin = plugin
        self.parts = parts
        self.leases = leases
        self._locked = locked

    def begin(self, req: Request, host: Host, undo: Undo, *facts: object) -> Attaching:
        """Write the record of an attachment that is about to be made, and `facts` about its parts.

        Remains of an earlier ADD of the same attachment are torn down first; a part that lives,
        such as an interface in another namespace, is refused by CNIError 4.
        """
        undo.reserve()
        noted = {
            "netns": req.netns,
            "netns_id": host.open_netns(req.netns).identity,
            "stdin": req.stdin.decode("utf-8", "replace"),
            "cni_args": req.environ.get("CNI_ARGS", ""),
            "cni_path": req.environ.get("CNI_PATH", ""),
        }
        for one in facts:
            noted |= dump(one)

        def clear(old: Record) -> None:
            if old.damage:
                raise CNIError(
                    Code.INVALID_ENVIRONMENT,
                    f"container {req.containerid} may be attached to '{req.network}' as"
                    f" {req.ifname}: its attachment record '{old.path}' is damaged ({old.damage});"
                    " DEL it first",
                )
            for part in self.parts:
                known = old.get(part.facts)
                if known is not None:
                    part.refuse_living(req, host, old, known)
            host.log(f"tears down the remains of an earlier ADD of {req.containerid}")
            self.teardown(req, host, old)

        record = host.records.begin_anew(
            self.plugin, req.network, req.attachment, noted, clear=clear
        )
        if self._locked:
            undo.push("attachment", lambda: self.teardown(req, host, record))
        else:
            # The last to go, and only when nothing is left that it could be needed for.
            undo.push("record", lambda: None if undo.failed else record.remove())
        return Attaching(req, host, undo, record)

    def delete(self, req: Request, host: Host) -> None:
        """Detach: by the record of what ADD made, else by what can be found.

        Without a record an empty one is held, so that no ADD makes objects meanwhile that would be
        found.
        """
        record = host.records.hold(self.plugin, req.network, req.attachment)
        if record and record.is_begun() and not record.damage:
            self.teardown(req, host, record)
            return
        found = Unrecorded(self.plugin, req)
        found.exists = bool(record and record.damage)
        try:
            with BestEffort() as steps:
                parts = sorted(self.parts, key=lambda one: not one.goes_first(req, None))
                _attempt(
                    {one: partial(_look_for, one, req, host, found) for one in parts}, steps, host
                )
                if record and record.damage:  # its readable part counts, too
                    host.log(f"the attachment record '{record.path}' is damaged: {record.damage}")
                    steps.attempt("record", partial(self.teardown, req, host, record))
        finally:
            if record and not record.damage:
                record.remove()

    def teardown(self, req: Request, host: Host, record: Record) -> None:
        """Tear down the parts in `record`, then remove it; the record stays if a step fails."""
        if self._locked:
            with Lock(host.records):
                self._teardown(req, host, record)
        else:
            self._teardown(req, host, record)

    def gc(self, req: Request, host: Host) -> None:
        """Tear down recorded attachments that are not valid, then objects without a record."""
        with BestEffort() as steps:
            self._collect(req, host, steps)
            for part in self.parts:
                steps.attempt(part.name, partial(part.collect, req, host, self.plugin))

    def restore(
        self, req: Request, host: Host, record: Record, *, inside: bool = True
    ) -> list[str]:
        """Put back what parts in `record` lack, in the order of ADD; return what is back.

        `req` is the ADD of the attachment, whose container lives; without `inside` its own
        settings stay as they are. Raises an ExceptionGroup.
        """
        restored: list[str] = []
        with BestEffort() as steps:
            for part, facts in reversed([*self.noted(record)]):
                if part.inside and not inside:
                    continue
                step = partial(_restore, part, req, host, record=record, facts=facts)
                steps.attempt(part.name, partial(_extend, restored, step))
        return restored

    def noted(self, record: Record) -> Iterator[tuple[Part, Any]]:
        """Yield each part that `record` has facts about, with these facts."""
        for part in self.parts:
            facts = record.get(part.facts)
            if facts is not None:
                yield part, facts

    def present(self, host: Host, record: Record) -> Iterator[Owned]:
        """Yield each object in `record`, and whether it is there. Raises CNIError, OSError."""
        for part, facts in self.noted(record):
            restores = type(part).restore is not Part.restore
            for one in part.present(host, record, facts):
                yield one if restores else replace(one, final=True)

    def _collect(self, req: Request, host: Host, steps: BestEffort) -> None:
        """Tear down what the runtime does not name and no container lives for.

        Young attachments, and those that another call works on, are left alone.
        """
        from cni_common.node.liveness import Liveness

        liveness, valid = Liveness(host), req.valid_attachments
        for path in host.records.paths(self.plugin, req.network):
            record = host.records.open(path)
            if record is None:
                continue
            others = host.records.identify(record, self.plugin, req.network, valid or ())
            owner = record.attachment
            reason = _reason_to_keep(record, others, valid, liveness)
            if reason:
                host.log(f"GC keeps {owner.containerid or path} {owner.ifname}: {reason}")
                record.close()
                continue
            why = "it is empty" if record.is_unbegun() else "not valid, namespace gone"
            host.log(f"GC removes {owner.containerid or path} {owner.ifname}: {why}")
            gone = _delete_under_gc(req, owner)
            step = partial(self.teardown, gone, host, record)
            steps.attempt(f"{owner.containerid} {owner.ifname}", step)

    def _teardown(self, req: Request, host: Host, record: Record) -> None:
        noted = sorted(self.noted(record), key=lambda one: not one[0].goes_first(req, one[1]))
        with BestEffort() as steps:
            step = {part: partial(part.teardown, req, host, record, facts) for part, facts in noted}
            _attempt(step, steps, host)
        record.remove()


class Attaching:
    """An attachment during its ADD: notes its parts, and takes them back if the ADD fails."""

    def __init__(self, req: Request, host: Host, undo: Undo, record: Record) -> None:
        self.record = record
        self.config = req.config  # of the ADD
        self._req = req
        self._host = host
        self._undo = undo
        self._free: Callable[[], object] = lambda: None  # tears down what has the addresses

    def note(self, facts: object) -> None:
        """Note a part that is about to be made, or changed. Raises OSError."""
        self.record.put(facts)

    def take_back(self, part: Part) -> None:
        """Tear the part down by its latest facts if the ADD fails."""

        def step() -> None:
            facts = self.record.get(part.facts)
            if facts is not None:
                part.teardown(self._req, self._host, self.record, facts)

        if part.has_addresses:
            self._free = step
        self._undo.push(part.name, step)

    def give_back(self, what: str, step: Callable[[], object], *, first: bool) -> None:
        """Return addresses by `step` if the ADD fails, once no part has them any more.

        A part that cannot be torn down keeps them, and a later DEL returns them. With `first` they
        are returned before.
        """

        def returning() -> None:
            self._free()
            step()

        self._undo.push(what, step if first else returning)


def in_container(req: Request, host: Host, record: Record, act: Callable[[NetNS], object]) -> None:
    """Call `act` with the namespace of a record's container, unless that is gone.

    The runtime may have removed its mount while a process keeps the namespace: then the namespace
    is searched for.
    """
    if req.netns and host.identity_of(req.netns) == record.facts.get("netns_id"):
        act(host.open_netns(req.netns))
        return
    from cni_common.node.owned import recorded_netns

    with recorded_netns(record) as container:
        if container:
            act(container)


def refuse_elsewhere(req: Request, host: Host, record: Record) -> None:
    """Raise CNIError 4 if the attachment of a record is in another namespace than that of `req`."""
    if host.identity_of(req.netns) == record.facts.get("netns_id"):
        return
    from cni_common.node.owned import recorded_netns

    with recorded_netns(record) as living:
        if living:
            raise CNIError(
                Code.INVALID_ENVIRONMENT,
                f"container {req.containerid} is attached to '{req.network}' as {req.ifname} in"
                f" '{record.facts.get('netns')}'; DEL it first",
            )


def attached_already(req: Request, record: Record) -> CNIError:
    """Return the refusal of a second ADD of the attachment that `record` has."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - record.age()))
    return CNIError(
        Code.INVALID_ENVIRONMENT,
        f"container {req.containerid} is attached to '{req.network}' as {req.ifname} since"
        f" {since}, in '{record.facts.get('netns')}'; DEL it first",
    )


def recorded_delete(record: Record, path: str) -> Request:
    """Return the DEL that the runtime never sent for an attachment whose record is at hand.

    That DEL has the recorded configuration, or the least where there is none, and the recorded
    CNI_PATH, or else `path`. Raises CNIError.
    """
    return _recorded(record, path, Command.DEL, "")


def recorded_add(record: Record, path: str) -> Request:
    """Return the ADD of an attachment as its record has it, see `recorded_delete`."""
    return _recorded(record, path, Command.ADD, str(record.facts.get("netns", "")))


def _recorded(record: Record, path: str, command: str, netns: str) -> Request:
    from cni_common.spec import wire

    facts = record.facts
    environ = {
        "PATH": _PATH,
        "CNI_COMMAND": command,
        "CNI_NETNS": netns,
        "CNI_CONTAINERID": record.attachment.containerid,
        "CNI_IFNAME": record.attachment.ifname,
        "CNI_ARGS": facts.get("cni_args", ""),
        "CNI_PATH": facts.get("cni_path") or path,
    }
    least = {"cniVersion": CURRENT_VERSION, "name": record.network, "type": record.plugin}
    return Request.parse(environ, facts.get("stdin", "").encode() or wire.encode_line(least))


def _extend(found: list[str], step: Callable[[], list[str]]) -> None:
    found += step()


def _restore(part: Part, req: Request, host: Host, *, record: Record, facts: Any) -> list[str]:
    """Have a part put back what it lacks; return what is there again."""

    def lost() -> list[str]:
        return [one.what for one in part.present(host, record, facts) if not one.present]

    before = lost()
    if before:
        part.restore(req, host, record, facts)
    after = lost() if before else ()
    return [what for what in before if what not in after]


def _attempt(teardowns: Mapping[Part, Callable[[], object]], steps: BestEffort, host: Host) -> None:
    """Tear down parts in this order; addresses stay taken while something may have them."""
    holder = ""
    for part, teardown in teardowns.items():
        if holder and part.gives_addresses:
            host.log(f"the container's addresses stay taken: its {holder} could not be removed")
        elif not steps.attempt(part.name, teardown) and part.has_addresses:
            holder = part.name


def _look_for(part: Part, req: Request, host: Host, found: Unrecorded) -> None:
    """Tear down what there is of a part. Raises as `Part.teardown_unrecorded`.

    A look that fails is no error where nothing else shows that there is an attachment. The reason
    for which it fails may be that for which the ADD failed, before its record was written, and a
    runtime could then never remove the container.
    """
    try:
        part.teardown_unrecorded(req, host, found)
    except (CNIError, OSError, ExceptionGroup) as error:
        failures = _leaves(error)
        if part.lasting or not all(map(_is_look, failures)) or found.is_known:
            raise
        why = "; ".join(dict.fromkeys(map(_words, failures)))
        host.log(f"DEL without a record could not look for its {part.name}: {why}")


def _words(error: Exception) -> str:
    text = getattr(error, "strerror", "") or str(error)
    where = getattr(error, "filename", "")
    return f"{text}: '{where}'" if where else text


def _leaves(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]


def _is_look(error: Exception) -> bool:
    """Tell whether a file or socket was not opened, or a query not answered; no removal refused."""
    if isinstance(error, CNIError):
        return error.code == Code.INVALID_NETNS
    return isinstance(error, OSError) and getattr(error, "is_look", True)


def _reason_to_keep(
    record: Record,
    others: Iterable[Record],
    valid: frozenset[Attachment] | None,
    liveness: Liveness,
) -> str:
    """Return why GC leaves an attachment alone, "" if it does not.

    `others` are other records of an attachment that its own does not name.
    """
    from cni_common.node.liveness import GRACE_SECONDS, State

    if valid is not None and record.attachment in valid:
        return "valid"
    if record.age() < GRACE_SECONDS:
        return f"younger than {GRACE_SECONDS} s"
    if record.damage:
        return f"its record '{record.path}' is damaged, {record.damage}; DEL removes it"
    if any(liveness.state_of(one.facts) is not State.GONE for one in others):
        return f"its record '{record.path}' is empty, and others of its container are not"
    if record.is_unbegun():
        return ""  # its ADD was killed before it had made anything
    state, reason = liveness.assess(record.facts)
    if state is State.ALIVE:
        return f"its namespace lives: {reason}"
    if state is State.UNKNOWN:
        return f"its liveness is unknown: {reason}; DEL removes it"
    return ""


def _delete_under_gc(req: Request, owner: Attachment) -> Request:
    """Return the DEL of `owner` that the runtime did not send, with the configuration of the GC.

    The GC's is the newest that the runtime has; recorded_delete serves `reclaim`, which has the
    record alone.
    """
    environ = {
        **req.environ,
        "CNI_COMMAND": Command.DEL,
        "CNI_CONTAINERID": owner.containerid,
        "CNI_IFNAME": owner.ifname,
        "CNI_NETNS": "",
        "CNI_ARGS": "",
    }
    return replace(
        req,
        command=Command.DEL,
        containerid=owner.containerid,
        ifname=owner.ifname,
        netns="",
        environ=environ,
    )


def _addresses_of_prev_result(req: Request) -> set[Address]:
    try:
        result = req.prev_result
    except CNIError:
        return set()  # a damaged cache must not keep a container from being deleted
    return {ip.address.ip for ip in result.ips} if result else set()
