"""`pycni support`: one archive for a bug report."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from commands import DONE, runtimes, view
from commands.node import Node
from commands.redaction import Redactor
from commands.verb import OnTheNode
from commands.verbs import VERBS, verb
from plugins import TYPES

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from cni_common.node.host import Host

_SECONDS = 60  # that one program may take
_BYTES_MAX = 8 << 20  # of one text
_EXPLAIN_SECONDS = 180  # of all containers together
_CONF_KINDS = (".conf", ".conflist", ".json")
_ALL = ("doctor", "leases", "audit", "topology", "trace", "metrics", "lint")  # if there is one
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = {
    "nft-ruleset.txt": "nft list ruleset",
    "iptables.txt": "iptables-save -c",
    "ip6tables.txt": "ip6tables-save -c",
    "ip-address.txt": "ip -d -s address",
    "ip-route.txt": "ip route show table all",
    "ip-rule.txt": "ip rule",
    "ip6-rule.txt": "ip -6 rule",
    "ip-neighbour.txt": "ip neighbour",
    "bridge-link.txt": "bridge -d link",
    "bridge-vlan.txt": "bridge vlan",
    "tc-qdisc.txt": "tc -s qdisc",
    "engine-log.txt": "journalctl --no-pager --lines 5000 --unit pycni-engine.service"
    " --unit pycni-dhcp.service",
}
_FILES = ("/proc/version", "/etc/os-release", "/proc/modules", "/proc/meminfo", "/proc/loadavg")


def run(options: Namespace, host: Host) -> int:
    """Write the archive, and say where it is. Raises OSError."""
    found, redacted = collect(options, host)
    path = options.output or _name()
    size = _write(path, found)
    if options.json:
        view.write_json({"file": path, "files": [name for name, _ in found], "redacted": redacted})
        return DONE
    view.write_line(path)
    view.write_text(
        f"{len(found)} files, {size / 1000:.0f} kB. {view.number(redacted, 'value')}"
        f" {'was' if redacted == 1 else 'were'} redacted: keys of configurations that no plugin"
        " here knows, and what looks like a secret. Names and addresses of containers are in it:"
        " look into it before you send it."
    )
    return DONE


def collect(options: Namespace, host: Host) -> tuple[list[tuple[str, str]], int]:
    """Return names and texts of all files, and the number of values redacted in them."""
    redactor = Redactor(lambda type: _schema_of(host, type))
    # The configurations come first: values redacted there are redacted everywhere.
    directories = [options.conf_dir] if options.conf_dir else _conf_dirs()
    found: list[tuple[str, str]] = []
    for path in directories:
        # The files of the first one have the names that they have there.
        folder = "" if path == directories[0] else f"{path.strip('/').replace('/', '-')}/"
        found += _configurations(redactor, path, f"configurations/{folder}")
    found += _records(host, redactor)
    found += [(f"system/{path.strip('/').replace('/', '-')}", _file(path)) for path in _FILES]
    found += [(f"kernel/{name}", _output(line.split())) for name, line in _PROGRAMS.items()]
    found += _verbs(options, host, directories)
    texts = redactor.texts(found)
    return texts, redactor.count


def _schema_of(host: Host, type: str) -> Mapping[str, Any] | None:
    module = host.load(type) if type in TYPES else None
    return module.SCHEMA if module else None


def _conf_dirs() -> list[str]:
    """Return the directories of configurations that are here, the usual one if there is none."""
    found = dict.fromkeys([runtimes.CONF_DIR, *(one.conf_dir for one in runtimes.found())])
    return [path for path in found if os.path.isdir(path)] or [runtimes.CONF_DIR]


def _configurations(redactor: Redactor, directory: str, place: str) -> Iterator[tuple[str, str]]:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        yield f"{place}unread.txt", f"{directory}: {error.strerror}\n"
        return
    yield f"{place}files.txt", "".join(f"{name}\n" for name in names)
    for name in names:
        if name.endswith(_CONF_KINDS):
            yield f"{place}{name}", redactor.configuration(_bytes(f"{directory}/{name}"))


def _records(host: Host, redactor: Redactor) -> Iterator[tuple[str, str]]:
    for record, _ in host.records.listing():
        name = os.path.basename(record.path)
        yield f"records/{name}", redactor.record(_bytes(record.path))


def _verbs(options: Namespace, host: Host, conf_dirs: Sequence[str]) -> Iterator[tuple[str, str]]:
    places = ["--state-dir", options.state_dir, "--data-dir", options.data_dir]
    places += ["--any-netns"] if options.any_netns else []
    yield "verbs/version.txt", _output([host.executable, "version"])
    for name in (one for one in _ALL if one in VERBS):
        words = places if isinstance(verb(name).run, OnTheNode) else conf_dirs
        yield f"verbs/{name}.txt", _output([host.executable, name, *words])
    node = Node(host, options.data_dir)
    ids = sorted({attachment.containerid for _, attachment in node.attachments} - {""})
    until, left_out = time.monotonic() + _EXPLAIN_SECONDS, []
    for containerid in ids:
        if time.monotonic() > until:
            left_out.append(containerid)
            continue
        words = ["explain", "--kernel", "--by", "id", containerid, *places]
        yield f"containers/{containerid[:32]}.txt", _output([host.executable, *words])
    if left_out:
        yield "containers/left-out.txt", "".join(f"{one}\n" for one in left_out)


def _bytes(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return file.read(_BYTES_MAX)
    except OSError as error:
        return f"cannot be read: {error.strerror}".encode()


def _file(path: str) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _output(words: Sequence[str]) -> str:
    """Return what a program says, with its status if that is not 0."""
    import subprocess

    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SECONDS,
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8"},
            check=False,
        )
    except OSError as error:
        return f"{words[0]}: {error.strerror}\n"
    except subprocess.TimeoutExpired:
        return f"{' '.join(words)}: no answer within {_SECONDS} s\n"
    text = done.stdout[:_BYTES_MAX].decode("utf-8", "replace")
    more = " (cut)\n" if len(done.stdout) > _BYTES_MAX else ""
    return text + more + (f"exit status {done.returncode}\n" if done.returncode else "")


def _name() -> str:
    from socket import gethostname

    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return f"pycni-support-{gethostname()}-{now}.zip"


def _write(path: str, found: Sequence[tuple[str, str]]) -> int:
    """Write the archive, which only root can read; return its size in bytes. Raises OSError."""
    from zipfile import ZIP_DEFLATED, ZipFile

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            with ZipFile(file, "w", ZIP_DEFLATED) as archive:
                for name, text in found:
                    archive.writestr(f"pycni-support/{name}", text)
            return file.tell()
    except BaseException:  # as on a full disk, or Ctrl-C: half an archive is of no use
        os.unlink(path)
        raise
