"""The codes of findings: docs/lint.md has a section for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from commands.lint.text import Span

if TYPE_CHECKING:
    from collections.abc import Mapping

ERROR, WARNING = "error", "warning"
PAGE = "docs/lint.md"


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of finding."""

    severity: str  # ERROR: a key does not work, or not as it says; WARNING: it may be meant
    title: str


RULES: Mapping[str, Rule] = {
    "L101": Rule(ERROR, "not JSON"),
    "L102": Rule(ERROR, "a key stands twice"),
    "L103": Rule(WARNING, "a file that no runtime reads"),
    "L104": Rule(ERROR, "the content does not go with the file's name"),
    "L105": Rule(WARNING, "the order of files is not that of their numbers"),
    "L106": Rule(ERROR, "two files have a network of the same name"),
    "L107": Rule(ERROR, "something that every configuration has is missing"),
    "L108": Rule(WARNING, "the first file is no network for containers"),
    "L201": Rule(ERROR, "a version that does not exist"),
    "L202": Rule(WARNING, "no version"),
    "L203": Rule(WARNING, "a version that many runtimes cannot read"),
    "L301": Rule(ERROR, "a misspelt key"),
    "L302": Rule(WARNING, "a key that the plugin ignores"),
    "L303": Rule(ERROR, "a value that cannot be"),
    "L304": Rule(ERROR, "the plugin refuses it"),
    "L305": Rule(WARNING, "a capability that the plugin does not use"),
    "L306": Rule(ERROR, "a misspelt type"),
    "L307": Rule(WARNING, "a value of the runtime without its capability"),
    "L401": Rule(ERROR, "a chained plugin has nothing before it"),
    "L402": Rule(ERROR, "a chained plugin needs addresses"),
    "L403": Rule(ERROR, "two plugins make the same interface"),
    "L404": Rule(WARNING, "the plugin does nothing, as the runtime tells it nothing"),
    "L405": Rule(ERROR, "an IPAM plugin stands in the chain"),
    "L406": Rule(WARNING, "packets do not pass the host"),
    "L501": Rule(ERROR, "a gateway that cannot be reached"),
    "L502": Rule(ERROR, "two networks give out the same addresses"),
    "L503": Rule(ERROR, "two networks want different things of one object"),
    "L504": Rule(WARNING, "masquerading without a gateway"),
    "L505": Rule(WARNING, "a key without effect"),
    "L506": Rule(WARNING, "the range is closed"),
    "L507": Rule(ERROR, "an MTU that IPv6 cannot have"),
    "L508": Rule(ERROR, "addresses that no container can have"),
    "L509": Rule(WARNING, "a route of a family without an address"),
    "L510": Rule(ERROR, "a next hop outside of all subnets"),
    "L511": Rule(ERROR, "a name server that is no address"),
    "L512": Rule(WARNING, "a route with host bits"),
    "L601": Rule(ERROR, "a plugin is not on this node"),
    "L602": Rule(ERROR, "a subnet that this node has elsewhere"),
    "L603": Rule(ERROR, "a name that something else has"),
    "L604": Rule(ERROR, "an interface is not on this node"),
    "L605": Rule(WARNING, "an MTU above that of the uplink"),
    "L606": Rule(WARNING, "bridged packets do not pass the firewall"),
    "L607": Rule(WARNING, "the runtime takes another file"),
    "L608": Rule(ERROR, "the plugin on this node does not know the version"),
    "L609": Rule(WARNING, "the runtime reads no file of this name"),
    "L610": Rule(ERROR, "the bridge has another address"),
}


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong, and where."""

    file: str
    span: Span
    code: str
    text: str  # what is wrong and what to do, one sentence without a full stop

    @property
    def severity(self) -> str:
        """ERROR or WARNING."""
        return RULES[self.code].severity

    def json(self) -> dict[str, object]:
        """Return the finding for --json."""
        return {
            "file": self.file,
            "line": self.span.line,
            "column": self.span.column,
            "endLine": self.span.end_line,
            "endColumn": self.span.end_column,
            "code": self.code,
            "severity": self.severity,
            "rule": RULES[self.code].title,
            "message": self.text,
        }
