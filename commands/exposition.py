"""Metrics as data, and as Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

GAUGE, COUNTER, HISTOGRAM, SUMMARY = "gauge", "counter", "histogram", "summary"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of a family; `suffix` follows the family's name."""

    suffix: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, with its numbers."""

    name: str  # of a counter without _total
    help: str
    type: str
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float, suffix: str = "", **labels: str) -> None:
        """Add a number."""
        self.samples.append(Sample(suffix or ("_total" * (self.type == COUNTER)), labels, value))

    def json(self) -> dict[str, object]:
        """Return the family for --json."""
        samples = [
            {"name": f"{self.name}{one.suffix}", "labels": dict(one.labels), "value": one.value}
            for one in self.samples
        ]
        return {"name": self.name, "help": self.help, "type": self.type, "samples": samples}


def text(families: Iterable[Family]) -> str:
    """Return families as a page that Prometheus reads."""
    return "".join(f"{line}\n" for one in families for line in _lines(one))


def _lines(family: Family) -> Iterator[str]:
    name = f"{family.name}_total" if family.type == COUNTER else family.name
    yield f"# HELP {name} {family.help.translate(_ESCAPES)}"
    yield f"# TYPE {name} {family.type}"
    for one in family.samples:
        pairs = ",".join(
            f'{key}="{value.translate(_ESCAPES)}"' for key, value in one.labels.items()
        )
        labels = f"{{{pairs}}}" if pairs else ""
        yield f"{family.name}{one.suffix}{labels} {_number(one.value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
