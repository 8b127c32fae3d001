"""The agent while somebody sets the clock by a day: it is really set, so under a kernel of its own.

That kernel lacks nftables, so the agent does not masquerade here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.agent.host import LIST, OTHER, RANGES, AgentHost, member
from tests.kernel.test_host_local_clock import clock_set_by
from tests.waits import wait_until

pytestmark = [
    pytest.mark.full_kernel,
    pytest.mark.later_user_mode,  # the clock is set
    pytest.mark.timeout(600),
]
DAY = 86_400
LOOK_SECONDS = 5.0
ROUNDS_MAX = 8  # in that time, by pauses of 1 s that double, and what the test itself causes
OTHERS_LIST = "/etc/cni/net.d/00-other.conflist"


@pytest.fixture
def host() -> Iterator[AgentHost]:
    """A node with an agent that is ready, whose API server is away."""
    made = AgentHost()
    try:
        made.remember(member("a", 1, *RANGES), OTHER)
        made.start("--masquerade", "false")
        made.wait_ready()
        yield made
    finally:
        made.close()


def total(host: AgentHost, name: str) -> float:
    """Return the sum of a counter over its labels."""
    lines = host.get("/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def assert_works(host: AgentHost) -> None:
    """Require that the agent mends at once, and looks neither seldom nor all the time."""
    text = host.path(LIST).read_text()
    host.path(LIST).unlink()
    wait_until(lambda: host.path(LIST).exists(), "the list is not written again")
    tries = total(host, "pycni_api_watches_ended_total")
    host.path(OTHERS_LIST).write_text(text.replace('"pycni"', '"other"'))
    wait_until(lambda: host.metric('pycni_agent_problems{part="conflict"}'), "nothing is wrong")

    before = total(host, "pycni_agent_reconciles_total")
    time.sleep(LOOK_SECONDS)  # the very thing that is tested
    rounds = total(host, "pycni_agent_reconciles_total") - before

    assert 1 <= rounds <= ROUNDS_MAX
    host.path(OTHERS_LIST).unlink()
    wait_until(lambda: not host.metric('pycni_agent_problems{part="conflict"}'), "it stays wrong")
    wait_until(
        lambda: total(host, "pycni_api_watches_ended_total") > tries, "the server is not tried"
    )
    assert (host.get("/healthz")[0], host.get("/readyz")[0]) == (200, 200)


@pytest.mark.rotating(2)
@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])
def test_the_clock_is_set(host: AgentHost, jump: float) -> None:
    """Pauses are those of a clock that nobody sets; engine and list are the same at the end."""
    engine, text = host.engine(), host.path(LIST).read_text()

    with clock_set_by(jump):
        assert_works(host)
    assert_works(host)

    assert host.engine() == engine
    assert host.path(LIST).read_text() == text
