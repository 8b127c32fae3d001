"""The page of `pycni inspect`, as text or JSON, with rates where there was one before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import view

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from commands.inspect import Attached, Page
    from commands.kernel.links import Link, Queue
    from commands.kernel.sockets import Socket
    from commands.kernel.tracked import Tracked

    Counts = dict[str, int]

_CONNECTIONS_MAX = 20  # that the text shows, those with trouble first
_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000
_DIRECTIONS = {"rx": "received", "tx": "sent"}


def write(options: Namespace, page: Page, before: Page | None) -> None:
    """Print the page; with the one `before` it, what was counted since, a second."""
    rates = _rates(page, before)
    if options.json:
        more = {"rates": rates} if before else {}
        view.write_json({**page.json(), **more}, in_line=bool(options.watch))
        return
    view.write_page(list(_lines(page, rates)), again=bool(options.watch))


def _counts(page: Page) -> Counts:
    """Return all counters of a page by names that stay the same."""
    found: Counts = {}
    places = (("container", page.inside.links), ("host", page.host_links))
    for where, links in places:
        for link in links:
            found |= {f"{where} {link.name} {k}": v for k, v in link.counters.items()}
    names = {link.index: link.name for link in page.host_links}
    for queue in page.host_queues:
        where = f"{names.get(queue.index)} {queue.kind} {queue.handle}"
        found |= {f"{where} {k}": v for k, v in queue.counters.items() if k != "backlog"}
    for one in page.attachments:
        for use in one.usage:
            if use.packets is not None:
                found[f"{use.kind} {use.what}"] = use.packets
    return found | page.inside.errors


def _rates(page: Page, before: Page | None) -> dict[str, float]:
    """Return what was counted a second since `before`, of counters that have moved."""
    if before is None:
        return {}
    old, seconds = _counts(before), page.at - before.at
    return {
        name: round((value - old[name]) / seconds, 1)
        for name, value in _counts(page).items()
        if name in old and value > old[name] and seconds > 0
    }


def _lines(page: Page, rates: dict[str, float]) -> Iterator[tuple[str, str]]:
    """Yield pairs of a label and a text; without a text the label is a heading."""
    yield f"container {page.containerid or 'without a record'}", ""
    if page.pod:
        yield "pod", page.pod
    state = {True: "alive", False: "gone", None: "unknown"}[page.alive]
    yield "netns", f"{page.netns}, {state}" if page.netns else state
    for one in page.attachments:
        yield from _attachment(page, one, rates)
    named = {one.ifname for one in page.attachments}
    for link in page.inside.links:
        if link.name not in named and (link.name != "lo" or not page.attachments):
            yield f"{link.name}, of no record", ""
            yield from _inside(page, link, rates)
    yield from _neighbours(page)
    if page.tracked:
        yield "connections tracked on the host", ""
        yield from _tracked(page.tracked)
    yield from _sockets(page)
    if page.inside.errors:
        yield "counters that are not zero", ""
        for name, value in page.inside.errors.items():
            yield "", f"{name} {value}{_rate(rates, name)}"
    if page.unread:
        yield "cannot be read", ""
        yield from (("", text) for text in page.unread)


def _attachment(page: Page, one: Attached, rates: dict[str, float]) -> Iterator[tuple[str, str]]:
    yield f"{one.ifname or 'an interface'} on network {one.network}", ""
    yield "plugins", ", ".join(one.plugins)
    for link in page.inside.links:
        if link.name == one.ifname:
            yield from _inside(page, link, rates)
    for name, value in one.dns.items():
        if value:
            words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield "dns", f"{name} {words}"
    names = {link.index: link.name for link in page.host_links}
    for link in page.host_links:
        if link.name in one.devices:
            yield "host's end", ", ".join([*_words(link), *_port(link, names)])
            yield "its traffic", _counters(link, f"host {link.name}", rates)
            yield from _master(page, link)
    for queue in page.host_queues:
        if names.get(queue.index) in one.devices:
            yield "limit", _queue(queue, names[queue.index], rates)
    for use in one.usage:
        plural = "" if use.packets == 1 else "s"
        hits = "" if use.packets is None else f": {use.packets} connection{plural}"
        yield use.kind, f"{use.what}{hits}{_rate(rates, f'{use.kind} {use.what}')}"
    yield from (("missing", what) for what in one.missing)


def _master(page: Page, port: Link) -> Iterator[tuple[str, str]]:
    for link in page.host_links:
        if link.index == port.master:
            yield "joined by", ", ".join(_words(link))


def _inside(page: Page, link: Link, rates: dict[str, float]) -> Iterator[tuple[str, str]]:
    yield "interface", ", ".join(_words(link))
    for one in page.inside.addresses:
        if one.index == link.index:
            yield "address", " ".join([one.address, *one.flags])
    for route in page.inside.routes:
        if route.index == link.index:
            yield "route", route.words()
    yield "traffic", _counters(link, f"container {link.name}", rates)
    for queue in page.inside.queues:
        if queue.index == link.index:
            yield "queue", _queue(queue, link.name, rates)


def _words(link: Link) -> list[str]:
    state = "up" if link.up else "down"
    carrier = "" if link.operstate in ("up", "unknown", "") else f" ({link.operstate})"
    kind = f"{link.kind} {link.vlan}" if link.vlan else link.kind
    return [f"{link.name} {link.mac} {kind}", f"{state}{carrier}", f"mtu {link.mtu}"]


def _port(link: Link, names: dict[int, str]) -> list[str]:
    if link.port is None:
        return []
    master = names.get(link.master, "")
    return [f"port of {master}: {' '.join((link.port.state, *link.port.flags))}"]


def _counters(link: Link, where: str, rates: dict[str, float]) -> str:
    return "; ".join(_counted(link, where, direction, rates) for direction in ("rx", "tx"))


def _counted(link: Link, where: str, direction: str, rates: dict[str, float]) -> str:
    packets, size = link.counters[f"{direction}_packets"], link.counters[f"{direction}_bytes"]
    rate = rates.get(f"{where} {direction}_bytes")
    words = [f"{_DIRECTIONS[direction]} {amount(size)} in {packets} packets"]
    words += [f"{amount(rate)}/s"] if rate else []
    for trouble in ("dropped", "errors"):
        count = link.counters[f"{direction}_{trouble}"]
        if count:
            words.append(f"{count} {trouble}{_rate(rates, f'{where} {direction}_{trouble}')}")
    return ", ".join(words)


def _queue(queue: Queue, name: str, rates: dict[str, float]) -> str:
    words = [f"{queue.kind} {queue.handle} of {name}"]
    words += [f"{queue.rate / 1e6:g} Mbit/s"] if queue.rate else []
    counted = queue.counters
    rate = _rate(rates, f"{name} {queue.kind} {queue.handle} dropped")
    words.append(f"{counted['dropped']} dropped{rate}")
    words += [f"{amount(counted['backlog'])} waiting"] if counted["backlog"] else []
    return ", ".join(words)


def _neighbours(page: Page) -> Iterator[tuple[str, str]]:
    names = {link.index: link.name for link in page.inside.links}
    if page.inside.neighbours:
        yield "neighbours", ""
    for one in page.inside.neighbours:
        where = f"{one.mac or 'no MAC'} {one.state}, {names.get(one.index, '')}"
        yield "", f"{one.address} {where}"


def _tracked(found: Tracked) -> Iterator[tuple[str, str]]:
    of_node = f"{found.total} of at most {found.limit} on the node"
    if found.counts is None:
        yield "", f"{of_node}: too many to look through"
        return
    words = ", ".join(f"{n} {name}" for name, n in found.counts.items()) or "none"
    unreplied = f"; {found.unreplied} without an answer" if found.unreplied else ""
    yield "", f"{words}{unreplied} ({of_node})"
    for one in found.talkers:
        size = f", {amount(one.bytes)}" if one.bytes is not None else ""
        yield "", f"{one.peer}: {one.connections}{size}"


def _sockets(page: Page) -> Iterator[tuple[str, str]]:
    found = page.inside.sockets
    listeners = [one for one in found if one.is_listener]
    if listeners:
        yield "listening sockets", ""
    for one in listeners:
        queue = f"{one.receive_queue}/{one.send_queue}" if one.protocol == "tcp" else ""
        full = " FULL" if one.send_queue and one.receive_queue > one.send_queue else ""
        words = f", to be accepted {queue}{full}" if queue else ""
        waiting = f", {amount(one.receive_queue)} unread" if one.receive_queue else ""
        yield "", f"{one.protocol} {one.local}{words or waiting}{_process(one)}"
    others = sorted((one for one in found if not one.is_listener), key=_trouble)
    if others:
        yield f"connections: {len(others)}", ""
    for one in others[:_CONNECTIONS_MAX]:
        yield "", _connection(one)
    if len(others) > _CONNECTIONS_MAX:
        yield "", f"and {len(others) - _CONNECTIONS_MAX} more: --json has all"


def _trouble(one: Socket) -> tuple[int, int, str]:
    return -one.tcp.get("retransmits", 0), -(one.send_queue + one.receive_queue), one.local


def _connection(one: Socket) -> str:
    words = [f"{one.protocol} {one.local} to {one.remote or 'no peer'}", one.state]
    queues = {"unread": one.receive_queue, "unsent or unacknowledged": one.send_queue}
    words += [f"{amount(size)} {what}" for what, size in queues.items() if size]
    if one.tcp.get("rtt_us"):
        words.append(f"rtt {one.tcp['rtt_us'] / 1000:g} ms")
    if one.tcp.get("retransmits"):
        words.append(f"{one.tcp['retransmits']} retransmits")
    if one.congestion:
        words.append(f"{one.congestion} cwnd {one.tcp.get('cwnd', 0)}")
    return ", ".join(words) + _process(one)


def _process(one: Socket) -> str:
    return f", {one.process or 'a process'} (PID {one.pid})" if one.pid else ""


def _rate(rates: dict[str, float], name: str) -> str:
    return f" (+{rates[name]:g}/s)" if rates.get(name) else ""


def amount(size: float) -> str:
    """Return a number of bytes for people."""
    unit = 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size, unit = size / _STEP, unit + 1
    return f"{size:.3g} {_UNITS[unit]}" if unit else f"{size:.0f} B"
