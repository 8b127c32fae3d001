"""Findings as text, as JSON, and in the forms of GitHub's and other code hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from cni_common.spec.names import VERSION
from commands import view
from commands.lint.rules import ERROR, PAGE, RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from commands.lint.files import File
    from commands.lint.rules import Finding

_STYLES = {ERROR: "bold red"}
_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def write_text(files: Sequence[File], findings: Sequence[Finding]) -> None:
    """Print one paragraph for each finding, and a line that sums up."""
    for one in findings:
        place = f"{one.file}:{one.span.line}:{one.span.column}:"
        view.write_text(
            f"{place} {one.severity}: {one.text} [{one.code}]",
            style=_STYLES.get(one.severity, "yellow"),
            more_indent="    ",
        )
    errors = sum(one.severity == ERROR for one in findings)
    warnings = len(findings) - errors
    count = view.number(len(files), "file")
    if findings:
        codes = ", ".join(sorted({one.code for one in findings}))
        view.write_line()
        view.write_text(
            f"{count}: {view.number(errors, 'error')}, {view.number(warnings, 'warning')};"
            f" {PAGE} explains {codes}"
        )
    else:
        view.write_text(f"{count}: clean", style="green")


def write_json(files: Sequence[File], findings: Sequence[Finding]) -> None:
    """Print an object with all findings."""
    view.write_json(
        {"files": [one.path for one in files], "findings": [one.json() for one in findings]}
    )


def write_github(_files: Sequence[File], findings: Sequence[Finding]) -> None:
    """Print workflow commands, which GitHub shows beside the lines of a pull request."""
    for one in findings:
        span = one.span
        place = f"file={_property(one.file)},line={span.line},endLine={span.end_line}"
        columns = f",col={span.column}" + (
            f",endColumn={span.end_column}" if span.line == span.end_line else ""
        )
        title = _property(f"{one.code}: {RULES[one.code].title}")
        view.write_line(f"::{one.severity} {place}{columns},title={title}::{_data(one.text)}")


def write_sarif(_files: Sequence[File], findings: Sequence[Finding]) -> None:
    """Print a log in the Static Analysis Results Interchange Format, version 2.1.0."""
    codes = sorted({one.code for one in findings})
    rules = [
        {
            "id": code,
            "shortDescription": {"text": RULES[code].title},
            "help": {"text": f"{PAGE}#{code.lower()}"},
            "defaultConfiguration": {"level": RULES[code].severity},
        }
        for code in codes
    ]
    driver = {"name": "pycni lint", "version": VERSION, "rules": rules}
    results = [_result(one, codes.index(one.code)) for one in findings]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    view.write_json({"$schema": _SARIF, "version": "2.1.0", "runs": [run]})


FORMATS: Mapping[str, Callable[[Sequence[File], Sequence[Finding]], None]] = {
    "text": write_text,
    "json": write_json,
    "github": write_github,
    "sarif": write_sarif,
}


def _result(one: Finding, rule: int) -> dict[str, object]:
    region = {
        "startLine": one.span.line,
        "startColumn": one.span.column,
        "endLine": one.span.end_line,
        "endColumn": one.span.end_column,
    }
    place = {"artifactLocation": {"uri": quote(one.file)}, "region": region}
    return {
        "ruleId": one.code,
        "ruleIndex": rule,
        "level": one.severity,
        "message": {"text": one.text},
        "locations": [{"physicalLocation": place}],
    }


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
