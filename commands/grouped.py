"""Findings as text: a sentence in front, then the objects of each container together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from commands import view

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from commands.audit import Finding
    from commands.missing import Missing

    Line = tuple[str, str]

NOW, LATER, NEVER = "now", "later", "no"  # what `reclaim` does with a finding
LEASE = "lease"
_ADVICE = {
    NOW: "run 'pycni reclaim'",
    LATER: "run 'pycni reclaim' twice, a minute apart",
    NEVER: "'pycni reclaim' leaves them to you",
}
_STATES = {NOW: "reclaim removes it", LATER: "reclaim removes it at its second sight"}


def of_findings(findings: Sequence[Finding]) -> str:
    """Return in words what belongs to no living container, and what to do about it."""
    states = [state for state in (NOW, LATER, NEVER) if any(o.reclaim == state for o in findings)]
    return f"{counted(findings)}; {_ADVICE[states[0]]}"


def of_missing(lacking: Sequence[Missing]) -> str:
    """Return in words what living containers lack, and what to do about it."""
    advice = "" if all(one.final for one in lacking) else "; run 'pycni repair --all'"
    return f"{lacked(lacking)}{advice}"


def lacked(lacking: Sequence[Missing]) -> str:
    """Return how many objects living containers lack."""
    verb, them = ("is", "it") if len(lacking) == 1 else ("are", "them")
    what = _number(len(lacking), "object")
    return f"{what} {verb} missing, though living containers need {them}"


def counted(findings: Sequence[Finding]) -> str:
    """Return how many objects there are of how many containers: 3 leases of 2 dead containers."""
    kinds = Counter(LEASE if one.kind == LEASE else "" for one in findings)
    leases, others = kinds[LEASE], kinds[""]
    words = [_number(leases, LEASE)] if leases else []
    words += [_number(others, "other object" if leases else "object")] if others else []
    containers = {one.containerid for one in findings} - {""}
    of = f" of {_number(len(containers), 'dead container')}" if containers else " of no container"
    if all(one.reclaim == NEVER for one in findings):
        of = f" that {'belongs' if len(findings) == 1 else 'belong'} to no living container"
    return " and ".join(words) + of


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def write_findings(findings: Sequence[Finding], *, states: bool = True) -> None:
    """Print findings by container and reason; with `states` also what `reclaim` does with them."""
    view.write_page(list(_lines(findings, states=states)))


def _lines(findings: Iterable[Finding], *, states: bool) -> Iterator[Line]:
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for one in findings:
        key = (one.network, one.containerid, one.ifname, one.reason, one.reclaim)
        groups.setdefault(key, []).append(one)
    last: list[str] = []
    for group, found in sorted(groups.items()):
        *owner, reason, state = group
        if owner != last:  # else the same for another reason
            yield from _head(*owner)
        last = owner
        yield "because", reason
        if states:
            yield "reclaim", f"{state}: {_STATES[state]}" if state in _STATES else state
        yield from ((one.kind, one.what) for one in found)


def write_missing(lacking: Sequence[Missing]) -> None:
    """Print missing objects by container, shared ones by network."""
    groups: dict[tuple[str, ...], list[Missing]] = {}
    for one in lacking:
        key = (one.network, one.containerid, one.ifname, one.pod)
        groups.setdefault(key, []).append(one)
    lines: list[Line] = []
    for (network, containerid, ifname, pod), found in sorted(groups.items()):
        lines += _head(network, containerid, ifname)
        lines += [("pod", pod)] if pod else []
        lines += [(one.kind, one.what) for one in found]
    view.write_page(lines)


def _head(network: str, containerid: str, ifname: str) -> Iterator[Line]:
    if not containerid:
        yield f"network {network}" if network else "the node", ""
        return
    yield f"container {containerid}", ""
    yield "interface", f"{ifname or 'any'} on network {network}" if network else ifname or "any"
