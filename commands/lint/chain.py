"""The plugins of one network, as a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import ADDRESSES, CHAINED, HOST_PATH, INTERFACE, IPAM
from plugins import profile_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from commands.lint.files import Entry, File


def check(file: File) -> None:
    """Report what cannot work in the order, or without another plugin."""
    for index, one in enumerate(file.entries):
        profile = profile_of(one.type)
        if profile is None:
            continue
        before = file.entries[:index]
        if profile.kind == IPAM:
            one.report(
                "L405",
                ("type",),
                f'{one.type} gives out addresses and makes no interface: name it as "ipam":'
                f' {{"type": "{one.type}", ...}} of an interface plugin',
            )
        elif profile.kind == INTERFACE and not profile.may_follow:
            _check_second(one, before)
        elif profile.kind == CHAINED:
            _check_chained(one, before, profile.needs)


def check_first(files: Sequence[File]) -> None:
    """Report a first file of a directory that gives containers no network."""
    first = next((one for one in files if one.entries), None)
    profiles = [profile_of(one.type) for one in first.entries] if first else []
    if first and files[1:] and all(one and not one.is_network for one in profiles):
        first.report(
            "L108",
            (),
            "runtimes that use one network take this first file, by which containers reach nothing:"
            " give it a name that comes last",
        )


def _check_second(entry: Entry, before: Sequence[Entry]) -> None:
    for other in before:
        profile = profile_of(other.type)
        if profile and profile.kind == INTERFACE:
            entry.report(
                "L403",
                ("type",),
                f"{other.type} has made the container's interface by then, and {entry.type} would"
                " make another of the same name: give each a network of its own",
            )
            return


def _check_chained(entry: Entry, before: Sequence[Entry], needs: Sequence[str]) -> None:
    profiles = [profile_of(one.type) for one in before]
    if not before:
        entry.report(
            "L401",
            ("type",),
            f"{entry.type} changes an interface that a plugin before it has made: put an interface"
            " plugin before it",
        )
        return
    if None in profiles:
        return  # of another vendor: it may do anything
    makers = [
        (one, profile)
        for one, profile in zip(before, profiles, strict=True)
        if profile and profile.kind == INTERFACE
    ]
    if ADDRESSES in needs and makers and not any(one.ipam for one, _ in makers):
        entry.report(
            "L402",
            ("type",),
            f"{entry.type} works on the addresses of the container, and {makers[0][0].type} has no"
            ' "ipam" that gives it one',
        )
    for one, profile in makers:
        if HOST_PATH in needs and not profile.passes_host:
            entry.report(
                "L406",
                ("type",),
                f"packets to and from the interface of {one.type} do not pass the host's firewall,"
                f" where {entry.type} works: it has no effect",
            )
