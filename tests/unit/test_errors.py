"""The findings of a CHECK become one error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cni_common.spec.errors import CNIError, Code, drifted, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

AGAIN = "delete and add the attachment again"


def refused(*findings: CNIError) -> CNIError:
    """Return the one error for findings."""
    with pytest.raises(CNIError) as caught:
        refuse(findings)
    return caught.value


def test_nothing() -> None:
    """Without findings CHECK succeeds."""
    refuse([])


def test_one() -> None:
    """One finding is raised as it is: the code of an IPAM plugin stays."""
    other = CNIError(Code.TRY_AGAIN_LATER, "busy", "details")

    assert refused(other) is other
    assert refused(drifted("'eth0' is down")).msg == f"'eth0' is down; {AGAIN}"
    assert refused(drifted("off", "run 'x'")).msg == "off: run 'x'"


def test_several() -> None:
    """All are named, each with its own remedy; the advice to add again comes once, at the end."""
    error = refused(drifted("a"), drifted("b", "run 'x'"), drifted("c"), drifted("a"))

    assert (error.code, error.msg) == (Code.INTERNAL, f"a; b: run 'x'; c; {AGAIN}")
    assert refused(drifted("a", "x"), drifted("b", "y")).msg == "a: x; b: y"


def test_codes() -> None:
    """Findings with one code keep it, others have 999; details are kept."""
    same = [CNIError(Code.INVALID_CONFIG, text, f"of {text}") for text in ("a", "b")]

    assert (refused(*same).code, refused(*same).details) == (Code.INVALID_CONFIG, "of a; of b")
    assert refused(same[0], drifted("c")).code == Code.INTERNAL


def test_bounds() -> None:
    """A thousand findings, and very long ones, make a message of a few thousand characters."""
    error = refused(*(drifted(f"{number} {'x' * 10_000}") for number in range(1000)))

    assert "; and 990 more differences; " in error.msg
    assert len(error.msg) < 5000


def test_error_that_ends_the_search() -> None:
    """The findings before it are named as well."""

    def findings() -> Iterator[CNIError]:
        yield drifted("a")
        raise CNIError(Code.INTERNAL, "interface 'eth0' is missing")

    with pytest.raises(CNIError, match=f"a; interface 'eth0' is missing; {AGAIN}"):
        refuse(findings())
