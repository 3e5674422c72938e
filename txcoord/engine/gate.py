"""Which calls of a target may be made now: its operator's rule, its breaker, and the room that its limits leave.

Nothing here counts against a branch: what is not admitted is put off, and what is put off is due again soon: a target
that is dead is asked by one of those that wait, once a second, and each of them within the longest pause.

Nodes that share (``ports.SharedGate``) find a target dead, probe it and limit its calls together; while what they
share is away each does so alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from ..core.breaker import Breaker, Health, Key, means_away, not_asked
from ..core.model import BY_ITSELF, TargetRule
from ..core.room import Room, Rooms
from ..observe import logs
from ..observe.metrics import MOST
from ..ports import Clock, Randomness, SharedGate, SharedLost, Spawn

log = logs.get("txcoord.gate")

PAUSED = "TARGET_PAUSED"
OPEN = "BREAKER_OPEN"
LIMITED = "RATE_LIMITED"
DISABLED = "TARGET_DISABLED"
_GRACE_US = 1_000_000
"""How much longer than its time-out a call holds its place, or is the probe, when nothing is heard of it."""
_LOOK_S = 1.0
_TURNS = 100_000
"""So many of those that wait for one target are remembered; others take their chance."""
_TARGETS = 4_096
"""So many targets are remembered, of those of which there is nothing to remember."""
_SOON_US = 1_000_000
"""What has room within it waits in its lane; the rest is put off."""


@dataclass(frozen=True, slots=True)
class GateSettings:
    """How breakers behave. Durations in microseconds."""

    enough: int = 5
    """Branches whose calls have to fail, with no answer to any call since, for their target to be dead."""
    probe_us: int = 1_000_000
    """Between two probes of a dead target."""
    longest_us: int = 60_000_000
    """A call is put off for so long at most."""
    drain_per_s: int = 200
    """How many branches that wait are made due in a second, when their target is back."""


@dataclass(frozen=True, slots=True)
class Admission:
    """How many of the calls that are due may be made."""

    count: int
    held: str = ""
    """Why the others may not."""
    ticket: str = ""
    shared: bool = False
    again_us: int = 0
    stay: int = 0
    """So many of the others have room soon: ask again for them after ``again_us``."""


@dataclass(frozen=True, slots=True)
class TargetSeen:
    """A target as this node sees it."""

    target: str
    rule: TargetRule
    breaker: Breaker = Breaker.CLOSED
    since_us: int = 0
    in_flight: int = 0
    last_error: str = ""
    last_error_us: int = 0


@dataclass(slots=True)
class _Known:
    health: Health = field(default_factory=Health)
    in_flight: int = 0
    slot_us: int = 0
    """The last turn that was given."""
    turns: dict[Key, int] = field(default_factory=dict)
    """When it is the turn of those that wait: in the order in which they came."""
    ended: int = 0
    """Calls that have ended since ``counted_us``, and in the time of the same length before."""
    ended_before: int = 0
    counted_us: int = 0
    rings: list[asyncio.Event] = field(default_factory=list)
    """Who waits for a place."""


class Gate:
    """Of one node, for all targets."""

    def __init__(
        self,
        *,
        clock: Clock,
        randomness: Randomness,
        spawn: Spawn,
        settings: GateSettings | None = None,
        shared: SharedGate | None = None,
    ) -> None:
        self.settings = settings or GateSettings()
        self.returned: Callable[[str], None] = lambda _target: None
        """Called when what waits for a target may go on: it is back, resumed, or less limited."""
        self.perhaps_back: Callable[[str], None] = lambda _target: None
        """Called when no node says any more that a target is dead: one call finds out."""
        self._clock = clock
        self._random = randomness
        self._spawn = spawn
        self._shared = shared
        self._shared_lost_until_us = 0
        self._rooms = Rooms()
        self._rules: dict[str, TargetRule] = {}
        self._paused: set[str] = set()
        self._aliases: dict[str, str] = {}
        self._known: dict[str, _Known] = {}
        self._said: set[str] = set()
        """Targets that all nodes were told to be dead."""

    def start(self) -> None:
        """Begin to follow what other nodes find out."""
        if self._shared is not None:
            self._spawn(self._follow(), "gate:follow")

    # ---- rules ----

    def rules_are(self, rules: Iterable[TargetRule]) -> None:
        """All rules as they are now. Those that limit less than before let what waits go on."""
        before, now_us = self._rules, self._clock.now_us()
        self._rules = {rule.target: rule for rule in rules if rule.says_something}
        paused = {target for target, rule in self._rules.items() if rule.is_paused(now_us)}
        freed = self._paused - paused
        self._paused = paused
        aliases = {rule.target: rule.alias_of for rule in self._rules.values() if rule.alias_of}
        freed |= {t for t in {*aliases, *self._aliases} if aliases.get(t) != self._aliases.get(t)}
        self._aliases = aliases
        for target, old in before.items():
            new = self._rules.get(target, TargetRule(target))
            if _more(new.rate_per_s, old.rate_per_s) or _more(new.at_once, old.at_once):
                freed.add(target)
        for target in freed:
            self._all_may_go(target, self._of(target))

    def rule(self, target: str) -> TargetRule:
        """Its rule; one that limits nothing if there is none."""
        return self._rules.get(target) or TargetRule(target)

    def called(self, target: str) -> str:
        """Where the calls of what is addressed to it go."""
        return self._aliases.get(target, target) if self._aliases else target

    def disabled(self, target: str) -> str:
        """Why no notification is sent to it; empty: they are."""
        rule = self._rules.get(target)
        if rule is None or not rule.disabled_us:
            return ""
        return f"{DISABLED}: {rule.reason}" if rule.actor == BY_ITSELF else DISABLED

    def all_disabled(self) -> list[str]:
        """The targets to which none is."""
        return [target for target, rule in self._rules.items() if rule.disabled_us][:MOST]

    # ---- before a call ----

    def free(self, target: str) -> bool:
        """Does nothing hold its calls back? This is all that is asked while all is well."""
        known = self._known.get(target)
        return target not in self._rules and (known is None or known.health.breaker is Breaker.CLOSED)

    def holds(self, target: str) -> bool:
        """Are no calls made, but for probes?"""
        known = self._known.get(target)
        return self.rule(target).is_paused(self._clock.now_us()) or (
            known is not None and known.health.is_open
        )

    def pace(self, target: str) -> float:
        """How many calls there is room for in a second, as far as limits go; 0: there is none."""
        known, rule = self._of(target), self.rule(target)
        lately = float(rule.at_once + max(known.ended, known.ended_before)) if rule.at_once else 0.0
        return min(rule.rate_per_s, lately) if rule.rate_per_s and lately else rule.rate_per_s or lately

    async def admit(self, target: str, first: Key, wanted: int, timeout_us: int) -> Admission:
        """How many of the calls that are due may be made; ``first`` is the branch of the first of them."""
        known, rule = self._of(target), self.rule(target)
        if rule.is_paused(self._clock.now_us()):
            return Admission(0, PAUSED)
        count = wanted
        if known.health.is_open:
            if not await self._may_probe(target, known.health):
                return Admission(0, OPEN)
            now_us = self._clock.now_us()
            known.health.probed(first, now_us + timeout_us + _GRACE_US, now_us)
            count = 1
        if not rule.limits:
            return Admission(count, OPEN if count < wanted else "")
        room, shared = await self._room(rule, count, timeout_us + _GRACE_US)
        if known.health.is_open and known.health.probe == first:
            if not room.granted:
                known.health.dropped(first, self._clock.now_us())
            return Admission(room.granted, OPEN, room.ticket, shared)
        held = LIMITED if room.granted < wanted else ""
        if not held and rule.at_once and known.turns:
            self.returned(target)  # It is quicker than it was when their turns were given.
        stay = int(self.pace(target) * _SOON_US / 1_000_000)
        return Admission(room.granted, held, room.ticket, shared, min(room.again_us, _SOON_US), stay)

    async def room_again(self, target: str, again_us: int) -> None:
        """Wait for so long, or until a place of this target is free."""
        known, ring = self._of(target), asyncio.Event()
        known.rings.append(ring)
        sleeper = asyncio.ensure_future(self._clock.sleep(again_us / 1_000_000))
        rung = asyncio.ensure_future(ring.wait())
        try:
            await asyncio.wait({sleeper, rung}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            rung.cancel()
            known.rings.remove(ring)

    def put_off_until(self, target: str, held: str, key: Key) -> int:
        """When the call for this branch, which is held back, is due again.

        Each has its turn, one after the other at the pace at which calls can be made, so that none is passed over for
        ever; but nobody waits longer than the longest pause before he asks again.
        """
        known, rule, now_us = self._of(target), self.rule(target), self._clock.now_us()
        longest_us = self.settings.longest_us
        # All branches of a transaction at the same times: each time it has to be read and written as a whole.
        half_us = max(1, longest_us // 2)
        far_us = now_us + half_us + (crc32(key[0].encode()) * 1_000 - now_us) % half_us
        if held == PAUSED:
            # Not all in the moment in which the pause ends by itself.
            end_us = rule.paused_until_us + int(self._random.random() * _SOON_US)
            return min(far_us, max(end_us, now_us + _SOON_US)) if rule.paused_until_us else far_us
        step_us = self.settings.probe_us if held == OPEN else int(1_000_000 / (self.pace(target) or 1.0)) + 1
        turn_us = known.turns.get(key, 0)
        if turn_us and turn_us <= now_us:
            turn_us = now_us + min(step_us, longest_us)  # It was, and another node was faster.
        elif not turn_us:
            turn_us = known.slot_us = max(known.slot_us, now_us) + step_us
        if len(known.turns) < _TURNS:
            known.turns[key] = turn_us
        return turn_us if turn_us - now_us <= longest_us else far_us

    def why(self, target: str, held: str) -> str:
        """What is said of a branch that waits."""
        if held == PAUSED:
            rule = self.rule(target)
            return f"{PAUSED}: by {rule.actor}: {rule.reason}" if rule.actor else PAUSED
        if held == OPEN:
            return f"{OPEN}: its target does not answer: {self._of(target).health.last_error}"
        return f"{LIMITED}: its target takes no more calls now"

    # ---- after a call ----

    def began(self, target: str, keys: Sequence[Key]) -> None:
        """Calls for these branches are on their way."""
        known = self._of(target)
        known.in_flight += len(keys)
        if known.turns:
            for key in keys:
                known.turns.pop(key, None)

    def ended(self, target: str, admission: Admission | None, count: int = 1) -> None:
        """So many calls have ended, however."""
        known = self._of(target)
        known.in_flight -= count
        if target in self._rules:
            self._count(known, count)
        if admission is None or not admission.ticket:
            return
        if admission.shared and self._shared is not None:
            self._spawn(self._leave(self._shared, target, admission.ticket, count), "gate:leave")
        else:
            self._rooms.leave(target, admission.ticket, count)
        self._ring(target)

    def answered(self, target: str) -> None:
        """It lives."""
        known = self._known.get(target)
        if known is None or not (known.health.failing or known.health.is_open or known.health.heard):
            return
        if known.health.answered(self._clock.now_us()):
            self._is_back(target, known)
            if self._shared is not None:
                self._spawn(self._say_alive(self._shared, target), "gate:alive")

    def failed(self, target: str, key: Key, reason: str) -> None:
        """A call for this branch has failed: its target is away, or has answered that it could not do it."""
        health = self._of(target).health
        if not_asked(reason):
            self.dropped(target, key)
            return
        if not means_away(reason):
            health.last_error, health.last_error_us = reason, self._clock.now_us()
            self.answered(target)
            return
        was_probe = health.probe == key
        if health.failed(key, reason, self._clock.now_us(), self.settings.enough):
            log.warning("breaker.open", target=target, reason=reason)
        elif not was_probe:
            return
        if self._shared is not None:
            self._spawn(self._say_dead(self._shared, target, reason), "gate:dead")

    def dropped(self, target: str, key: Key) -> None:
        """The call for this branch was not made after all."""
        known = self._known.get(target)
        if known is not None:
            known.health.dropped(key, self._clock.now_us())

    # ---- for people ----

    def seen(self) -> dict[str, TargetSeen]:
        """All targets that this node has called, or has a rule for."""
        found = {}
        for target in {*self._known, *self._rules}:
            known = self._of(target)
            health = known.health
            found[target] = TargetSeen(
                target,
                self.rule(target),
                health.breaker,
                health.since_us,
                known.in_flight,
                health.last_error,
                health.last_error_us,
            )
        return found

    # ---- parts ----

    def _of(self, target: str) -> _Known:
        known = self._known.get(target)
        if known is None:
            if len(self._known) >= _TARGETS:
                self._forget()
            known = self._known[target] = _Known()
        return known

    def _forget(self) -> None:
        """Targets come and go."""
        idle = [
            target
            for target, known in self._known.items()
            if not known.in_flight and not known.health.is_open and not known.rings
        ]
        for target in idle[: _TARGETS // 2]:
            del self._known[target]

    def _ring(self, target: str) -> None:
        known = self._known.get(target)
        for ring in known.rings if known is not None else ():
            ring.set()

    def _is_back(self, target: str, known: _Known) -> None:
        log.warning("breaker.closed", target=target)
        self._all_may_go(target, known)

    def _all_may_go(self, target: str, known: _Known) -> None:
        known.slot_us = 0
        known.turns.clear()
        self._ring(target)
        self.returned(target)
        for other, alias in self._aliases.items():
            if alias == target:
                self.returned(other)

    def _count(self, known: _Known, count: int) -> None:
        now_us = self._clock.now_us()
        if now_us - known.counted_us >= _SOON_US:
            fresh = now_us - known.counted_us < 2 * _SOON_US
            known.ended_before, known.ended = (known.ended if fresh else 0), 0
            known.counted_us = now_us
        known.ended += count

    # ---- what nodes share ----

    def _sharing(self) -> SharedGate | None:
        return self._shared if self._clock.now_us() >= self._shared_lost_until_us else None

    def _lost(self, error: SharedLost) -> None:
        now_us = self._clock.now_us()
        if now_us >= self._shared_lost_until_us:
            log.debug("gate.alone", reason=str(error))  # What is away says so itself, and not each second.
        self._shared_lost_until_us = now_us + int(_LOOK_S * 1_000_000)

    async def _may_probe(self, target: str, health: Health) -> bool:
        if not health.may_probe(self._clock.now_us()):
            return False
        shared, every_us = self._sharing(), self.settings.probe_us
        if shared is not None:
            try:
                # Another worker of this node may have begun one meanwhile.
                return await shared.probe(target, every_us) and health.may_probe(self._clock.now_us())
            except SharedLost as error:
                self._lost(error)
        return self._rooms.probe(target, every_us, self._clock.now_us())

    async def _room(self, rule: TargetRule, wanted: int, lease_us: int) -> tuple[Room, bool]:
        shared = self._sharing()
        rate, most = rule.rate_per_s, rule.at_once
        if shared is not None:
            try:
                room = await shared.admit(
                    rule.target, wanted, rate_per_s=rate, at_once=most, lease_us=lease_us
                )
                return room, True
            except SharedLost as error:
                self._lost(error)
        now_us = self._clock.now_us()
        room = self._rooms.admit(
            rule.target, wanted, rate_per_s=rate, at_once=most, lease_us=lease_us, now_us=now_us
        )
        return room, False

    async def _leave(self, shared: SharedGate, target: str, ticket: str, count: int) -> None:
        try:
            await shared.leave(target, ticket, count)
        except SharedLost as error:
            self._lost(error)

    async def _say_dead(self, shared: SharedGate, target: str, reason: str) -> None:
        try:
            await shared.opened(target, reason, 2 * self.settings.longest_us)
            self._said.add(target)
        except SharedLost as error:
            self._lost(error)

    async def _say_alive(self, shared: SharedGate, target: str) -> None:
        try:
            await shared.closed(target)
        except SharedLost as error:
            self._lost(error)

    async def _follow(self) -> None:
        while True:
            await self._clock.sleep(_LOOK_S)
            shared = self._sharing()
            if shared is None:
                continue
            said = set(self._said)
            try:
                dead = await shared.dead()
            except SharedLost as error:
                self._lost(error)
                continue
            except Exception:
                log.exception("gate.crashed")
                continue
            self._obey(dead, said)

    def _obey(self, dead: Mapping[str, str], said: set[str]) -> None:
        """What other nodes have found out. ``said``: what was known to all before they were asked."""
        now_us = self._clock.now_us()
        for target, reason in dead.items():
            known = self._of(target)
            self._said.add(target)
            if known.health.found_dead(reason, now_us):
                log.warning("breaker.open", target=target, reason=reason, by="another node")
        for target in said - dead.keys():
            self._said.discard(target)
            known = self._of(target)
            if known.health.forgotten(now_us):
                if not known.health.is_open:
                    log.info("breaker.forgotten", target=target)
                    known.slot_us = 0
                    known.turns.clear()
                self.perhaps_back(target)


def _more(new: float, old: float) -> bool:
    """Does this limit let more through than that one? 0 is none."""
    return bool(old) and (not new or new > old)
