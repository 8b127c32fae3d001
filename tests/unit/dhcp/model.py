"""A model of any DHCP client, with time, chance and servers under control."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plugins.dhcp.daemon import machine
from plugins.dhcp.daemon.machine import Bound, Lost, Send

if TYPE_CHECKING:
    from plugins.dhcp.daemon.machine import Action, Lease, Machine


class Model(RuleBasedStateMachine):
    """A client among servers that answer, refuse, lie and fall silent, while time goes on.

    The rules of each DHCP choose the answers of servers.
    """

    def make(self, chance: float, lease: Lease | None) -> Machine:
        """Return a machine, for which chance is always the same."""
        raise NotImplementedError

    def judge(self, sent: Send) -> None:
        """Demand of a message what this DHCP demands."""

    @initialize(seconds=st.sampled_from([3, 10, 75]), chance=st.floats(0, 0.99))
    def begin(self, seconds: int, chance: float) -> None:
        """Look for an address."""
        self.now = 1000.0
        self.machine = self.make(chance, None)
        self.until = self.now + seconds
        self.used: Lease | None = None  # the lease of the address that is on the interface
        self.asked: list[Any] = []  # messages
        self.address: object = None  # that the container was given
        self.ended = False
        self.perform(self.machine.start(self.now, seconds))

    def perform(self, actions: list[Action]) -> None:
        """Do what the machine says, as its keeper does."""
        for action in actions:
            assert not self.ended, "nothing is done after the end"
            if isinstance(action, Send):
                self.asked.append(action.message)
                self.judge(action)
            elif isinstance(action, Bound):
                assert action.is_new == (self.used is None)
                assert self.address in (None, action.lease.address), "the runtime knows the first"
                self.used, self.address = action.lease, action.lease.address
            elif isinstance(action, Lost):
                assert action.lease == self.used
                self.used = None
            else:
                assert self.now >= self.until
                assert self.address is None, "an address that was there is looked for without end"
                self.ended = True

    def take(self, data: bytes, sender: str) -> None:
        """Have the machine hear what a server says."""
        self.perform(self.machine.hear(data, sender, self.now))

    @precondition(lambda self: not self.ended and self.machine.deadline < inf)
    @rule(late=st.sampled_from([0, 0, 0, 1, 100, 5000]))
    def pass_time(self, late: float) -> None:
        """The time comes at which something is due, or goes by; then it is not due any more."""
        self.now = max(self.now, self.machine.deadline) + late
        self.perform(self.machine.tick(self.now))
        assert self.machine.deadline > self.now
        assert self.used is None or self.now < self.used.expire

    @rule(seconds=st.floats(0, 3))
    def pass_a_moment(self, seconds: float) -> None:
        """Too early nothing is done."""
        self.now += seconds
        if self.now < self.machine.deadline:
            assert self.machine.tick(self.now) == []
        else:
            self.perform(self.machine.tick(self.now))

    @rule()
    def link_returns(self) -> None:
        """The link was away."""
        self.perform(self.machine.verify(self.now))

    @precondition(lambda self: self.used is not None)
    @rule()
    def another_machine_has_the_address(self) -> None:
        """Detection of duplicates says so."""
        self.perform(self.machine.conflict(self.now))

    @rule(again=st.booleans())
    def restart(self, again: bool) -> None:
        """The daemon is restarted, and knows the lease that is used, or nothing."""
        if self.used and again and self.now < self.used.expire:
            self.machine = self.make(0.5, self.used)

    @invariant()
    def lease_is_used_in_its_time(self) -> None:
        """An address is used if and only if there is a lease, and never after its end."""
        assert self.machine.holds == (self.used is not None)
        assert self.machine.lease == self.used
        if self.used:
            assert self.machine.deadline <= self.used.expire

    @invariant()
    def something_is_due(self) -> None:
        """Unless all is over, or the lease has no end, there is a time to wait for."""
        forever = self.used is not None and self.used.expire == inf
        assert self.ended == (self.machine.state == machine.STOPPED)
        assert self.ended or forever or self.machine.deadline < inf
