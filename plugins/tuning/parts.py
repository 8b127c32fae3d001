"""The settings that an attachment changes, and their restoration."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_common.node.lifecycle import Lifecycle, Part, in_container
from cni_common.spec.undo import BestEffort
from plugins.tuning import device, sysctl
from plugins.tuning.conf import backup_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Unrecorded
    from cni_common.node.owned import Owned
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json
    from plugins.tuning.conf import Device


@dataclass(frozen=True, slots=True)
class InterfaceFacts:
    """Attributes of the container's interface before their change."""

    PART = "interface"
    before: Json = field(default_factory=dict)  # by the keys of the configuration
    after: Json = field(default_factory=dict)  # likewise, as ADD sets them


class Interface(Part):
    """Attributes of the container's interface."""

    facts = InterfaceFacts
    inside = True

    def teardown(self, req: Request, host: Host, record: Record, facts: InterfaceFacts) -> None:
        """Restore the attributes of the interface, if it still exists."""
        container = _container(req, host, record)
        if container:
            _restore(req, container, device.of_json(facts.before))

    def restore(self, req: Request, host: Host, record: Record, facts: InterfaceFacts) -> None:
        """Set the attributes as ADD did."""

        def act(container: NetNS) -> None:
            link = container.netlink.link(req.ifname)
            if link:
                device.apply(container, link, device.of_json(facts.after))

        in_container(req, host, record, act)

    def present(self, _host: Host, record: Record, facts: InterfaceFacts) -> Iterator[Owned]:
        """Yield each attribute, if the container's namespace can be entered."""
        from cni_common.node.owned import Owned, recorded_netns

        ifname, wanted = record.attachment.ifname, device.of_json(facts.after)
        with recorded_netns(record) as container:
            if container is None:
                return
            link = container.netlink.link(ifname)
            now = device.as_json(device.former(link, wanted)) if link else {}
            for name, value in device.as_json(wanted).items():
                what, setting = f"{value} of '{ifname}'", f"{name} of {ifname}"
                yield Owned(name.lower(), what, now.get(name) == value, setting=setting)


@dataclass(frozen=True, slots=True)
class SysctlsFacts:
    """Sysctls of the container's namespace."""

    PART = "sysctls"
    before: Mapping[str, str | None] = field(default_factory=dict)  # by path; null: unreadable
    after: Mapping[str, str | None] = field(default_factory=dict)  # as ADD has left them


class Sysctls(Part):
    """Sysctls of the container's namespace."""

    facts = SysctlsFacts
    inside = True

    def teardown(self, req: Request, host: Host, record: Record, facts: SysctlsFacts) -> None:
        """Restore the sysctls that have not been changed since ADD."""
        container = _container(req, host, record)
        if container:
            sysctl.restore(container, facts.before, facts.after)

    def restore(self, req: Request, host: Host, record: Record, facts: SysctlsFacts) -> None:
        """Set the sysctls as ADD did."""
        wanted = {path: value for path, value in facts.after.items() if value is not None}

        def act(container: NetNS) -> None:
            sysctl.write(container, wanted, facts.before)

        in_container(req, host, record, act)

    def present(self, _host: Host, record: Record, facts: SysctlsFacts) -> Iterator[Owned]:
        """Yield each sysctl that can be read, if the container's namespace can be entered."""
        from cni_common.node.owned import Owned, recorded_netns

        wanted = {path: value for path, value in facts.after.items() if value is not None}
        with recorded_netns(record) as container:
            if container is None:
                return
            for path, value in sysctl.read_all(container, wanted).items():
                what = f"{path} = {wanted[path]}"
                there = sysctl.is_same(value, wanted[path])
                yield Owned("sysctl", what, there, setting=f"sysctl {path}")


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """The reference's file of earlier attributes, in case its DEL is called instead of ours."""

    PART = "backup"
    path: str = ""


class Backup(Part):
    """The backup file."""

    facts = BackupFacts
    lasting = True

    def teardown(self, _req: Request, _host: Host, _record: Record, facts: BackupFacts) -> None:
        """Remove the file."""
        device.forget(facts.path)

    def teardown_unrecorded(self, req: Request, host: Host, _found: Unrecorded) -> None:
        """Give the interface back what the reference has changed, and remove its file."""
        path = backup_path(req)
        before = device.load(path)
        container = host.find_netns(req.netns) if device.as_json(before) else None
        if container:
            _restore(req, container, before)
        device.forget(path)

    def present(self, _host: Host, record: Record, facts: BackupFacts) -> Iterator[Owned]:
        """Yield the file; sysctls and attributes are the container's, and go with it."""
        from cni_common.node.owned import Owned

        if record.get(InterfaceFacts):
            yield Owned(self.name, f"file {facts.path}", os.path.exists(facts.path))


def _container(req: Request, host: Host, record: Record) -> NetNS | None:
    """Return the container's namespace unless it is gone, or another one has its path."""
    container = host.find_netns(req.netns)
    same = container and container.identity == record.facts.get("netns_id")
    return container if same else None


def _restore(req: Request, container: NetNS, before: Device) -> None:
    link = container.netlink.link(req.ifname)
    if link is None:
        return
    with BestEffort() as steps:
        device.apply(container, link, before, steps)


INTERFACE, SYSCTLS, BACKUP = Interface(), Sysctls(), Backup()
LIFECYCLE = Lifecycle("tuning", INTERFACE, SYSCTLS, BACKUP)
