"""Configuration files: finds and reads them, and reports their faults as files."""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import CURRENT_VERSION, SUPPORTED_VERSIONS, check_identifier
from commands.lint.rules import Finding
from commands.lint.text import Span, Text, TextError
from commands.verb import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_common.spec.wire import Json
    from commands.lint.text import Path

LIST, SINGLE = (".conflist",), (".conf", ".json")  # what runtimes read, by libcni
_NEARLY = re.compile(r"\.(conf|conflist|json)[._~-]|\.ya?ml$|\.conf?list?$|~$", re.IGNORECASE)
_BYTES_MAX = 8 << 20  # as a plugin's stdin
_NUMBER = re.compile(r"\d+")


def _no_text() -> Text:
    return Text("")


@dataclass(frozen=True, slots=True)
class Entry:
    """One plugin of a network."""

    file: File
    path: Path
    given: Json

    @property
    def type(self) -> str:
        """Its type, "" if there is none."""
        found = self.given.get("type")
        return found if isinstance(found, str) else ""

    @property
    def ipam(self) -> str:
        """The type of its IPAM plugin, "" if there is none."""
        ipam = self.given.get("ipam")
        found = ipam.get("type") if isinstance(ipam, dict) else None
        return found if isinstance(found, str) else ""

    def report(self, code: str, path: Sequence[str | int], text: str, *, key: bool = False) -> None:
        """Add a finding about a value of it, or about a key."""
        self.file.report(code, (*self.path, *path), text, key=key)


@dataclass(slots=True)
class File:
    """One file, and what was found in it."""

    path: str
    text: Text = field(default_factory=_no_text)
    config: Json = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def report(self, code: str, path: Sequence[str | int], text: str, *, key: bool = False) -> None:
        """Add a finding about a value, or about a key."""
        self.report_at(code, self.text.find(path, key=key), text)

    def report_at(self, code: str, span: Span, text: str) -> None:
        """Add a finding about a stretch of the file."""
        self.findings.append(Finding(self.path, span, code, text))

    @property
    def name(self) -> str:
        """The network's name, "" if there is none."""
        found = self.config.get("name")
        return found if isinstance(found, str) else ""

    @property
    def is_list(self) -> bool:
        """Whether it has a list of plugins."""
        return "plugins" in self.config

    def place(self, path: Sequence[str | int]) -> str:
        """Return file and line of a value, for messages about another file."""
        return f"{self.path}:{self.text.find(path).line}"


def gather(words: Sequence[str]) -> list[File]:
    """Return the files and those of directories, in the order in which runtimes read them.

    Raises RefusedError for a path that is neither.
    """
    files: list[File] = []
    for word in words:
        if not os.path.isdir(word):
            files.append(File(word))
            continue
        found = [File(os.path.join(word, name)) for name in sorted(os.listdir(word))]
        ours = [one for one in found if _concerns(one.path) and not os.path.isdir(one.path)]
        if not ours:
            raise RefusedError(f"there is no configuration in '{word}'")
        _check_order([one for one in ours if one.path.endswith(LIST + SINGLE)])
        files += ours
    named = set(words)
    for one in files:
        _read(one, is_named=one.path in named)
    _check_names(files)
    return files


def _concerns(path: str) -> bool:
    """Tell whether a file is a configuration, or was meant to be one."""
    return path.endswith(LIST + SINGLE) or _NEARLY.search(os.path.basename(path)) is not None


def _read(file: File, *, is_named: bool) -> None:
    """Read and check a file. Raises RefusedError if one that the caller names cannot be read."""
    try:
        data = _content(file.path)
    except OSError as error:
        if is_named:
            raise RefusedError(f"cannot read '{file.path}': {error.strerror}") from None
        file.report_at("L101", Span(), f"it cannot be read: {error.strerror}")
        return
    if not file.path.endswith(LIST + SINGLE):
        file.report_at(
            "L103",
            Span(),
            f"runtimes read files that end in {', '.join(SINGLE + LIST)}, and no other: rename the"
            " file, or move it away",
        )
        return
    if len(data) > _BYTES_MAX:
        file.report_at("L101", Span(), f"it is larger than {_BYTES_MAX >> 20} MiB")
        return
    try:
        file.text = Text.of(data)
        file.config = wire.decode(data)
    except TextError as error:
        file.report_at("L101", error.span, str(error))
        return
    except CNIError as error:
        file.report_at("L101", Span(), error.msg.rpartition("on stdin ")[2])
        return
    for key, span, before in file.text.repeated():
        text = f'"{key}" stands here again, after line {before.line}: the last value counts'
        file.report_at("L102", span, text)
    file.entries = list(_entries(file))
    _check_form(file)
    _check_version(file)


def _content(path: str) -> bytes:
    """Return the beginning of a regular file, without ever waiting. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        return stream.read(_BYTES_MAX + 1)


def _entries(file: File) -> Iterator[Entry]:
    plugins = file.config.get("plugins")
    if not file.is_list:
        yield Entry(file, (), file.config)
    elif isinstance(plugins, list):
        for index, one in enumerate(plugins):
            if isinstance(one, dict):
                yield Entry(file, ("plugins", index), one)
            else:
                text = f"a plugin is an object, not {wire.type_name(one)}"
                file.report("L303", ("plugins", index), text)


def _check_form(file: File) -> None:
    wants_list = file.path.endswith(LIST)
    if file.is_list and not wants_list:
        text = f"a list of plugins is read from a file *{LIST[0]} alone: rename the file"
        file.report("L104", ("plugins",), text, key=True)
    elif wants_list and not file.is_list:
        text = f'a file *{LIST[0]} has a list, "plugins": [...]; a single plugin is in *{SINGLE[0]}'
        file.report("L104" if file.config.get("type") else "L107", (), text)
    elif file.is_list and not isinstance(file.config["plugins"], list):
        found = wire.type_name(file.config["plugins"])
        file.report("L303", ("plugins",), f'"plugins" is a list of objects, not {found}')
    elif file.is_list and not file.config["plugins"]:
        file.report("L107", ("plugins",), "a network has one plugin at least")
    if not file.is_list and wants_list:
        return
    for one in file.entries:
        if not one.type:
            one.report("L107", ("type",), 'a plugin has a "type", the name of its executable')
    try:
        check_identifier(file.name, "network name", Code.INVALID_CONFIG)
    except CNIError as error:
        text = error.msg if "name" in file.config else 'a network has a "name"'
        file.report("L304" if file.name else "L107", ("name",), text)


def _check_version(file: File) -> None:
    given = file.config.get("cniVersion")
    several = file.config.get("cniVersions")
    for key, value, kind in (("cniVersion", given, str), ("cniVersions", several, list)):
        if value is not None and not isinstance(value, kind):
            wanted = {str: "a string", list: "an array of strings"}[kind]
            text = f'"{key}" is {wanted}, not {wire.type_name(value)}'
            file.report("L303", (key,), text)
            return
    offered = [one for one in several if isinstance(one, str)] if isinstance(several, list) else []
    known = ", ".join(SUPPORTED_VERSIONS)
    for path, version in (
        (("cniVersion",), given),
        *((("cniVersions", index), one) for index, one in enumerate(offered)),
    ):
        if isinstance(version, str) and version and version not in SUPPORTED_VERSIONS:
            text = f'there is no version "{version}" of the specification: use one of {known}'
            file.report("L201", path, text)
    if not given and not offered:
        file.report(
            "L202",
            (),
            'without "cniVersion" results are of version 0.1.0, with one address of each family and'
            ' no CHECK: write "cniVersion": "1.0.0"',
        )
    elif (given or max(offered)) == CURRENT_VERSION:
        file.report(
            "L203",
            ("cniVersion",),
            f"containerd 1.6 and 1.7 and podman 4 read no {CURRENT_VERSION}: write"
            f' "cniVersion": "1.0.0", and "cniVersions": ["1.0.0", "{CURRENT_VERSION}"] for newer'
            " runtimes",
        )


def _check_order(files: Sequence[File]) -> None:
    """Report numbers of files that runtimes, which sort names as text, read in another order."""
    numbered = [
        (int(found.group()), one)
        for one in files
        if (found := _NUMBER.match(os.path.basename(one.path)))
    ]
    for (number, one), (following, after) in pairwise(numbered):
        if number > following:
            width = len(str(number))
            one.report_at(
                "L105",
                Span(),
                f"names are sorted as text, so it comes before"
                f" '{os.path.basename(after.path)}': give all numbers the same length, such as"
                f" {following:0{width}}",
            )


def _check_names(files: Sequence[File]) -> None:
    seen: dict[str, File] = {}
    for one in files:
        if not one.name:
            continue
        other = seen.setdefault(one.name, one)
        if other is not one:
            one.report(
                "L106",
                ("name",),
                f'{other.place(("name",))} has a network "{one.name}", too: leases and records'
                " are kept by this name; choose another",
            )
