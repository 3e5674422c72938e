"""Messages of one key leave one after the other: whose turn it is, the log says.

A message that is due asks for its turn before each attempt. If another one has it, it waits here for a moment, when
that one is carried out here too; else it is put off, and handed off like anything that waits. Whoever writes that a
message has ended asks for the next one, and sends it at once; so does whoever takes over messages that wait from a node
that died. Should nobody do so, it asks again by itself: sooner, the fewer are before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..core.evolve import replace
from ..core.model import SETTLED_BRANCH, Tx
from ..core.ordering import WAITS, lines_of
from ..observe import logs
from ..ports import Clock, Failpoints, Log, LogUnavailable, Spawn, Turn
from .handing import Writes
from .later import Key, Later
from .live import LiveSet

log = logs.get("txcoord.ordering")

HERE_US = 1_000_000
"""So long one waits here for another one that is carried out here."""
STEP_US = 2_000_000
LONGEST_US = 300_000_000
_AGAIN_S = 0.5
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that waits here."""

    line: str
    go: Callable[[], None]
    put_off: Callable[[int, str], None]
    """Until when, and why."""
    early: bool = False
    """By an operator's order: before the time that its sender has chosen."""
    waited: bool = False
    """Here, for as long as one does."""


class _Settings(Protocol):
    @property
    def node(self) -> str: ...
    @property
    def lease_us(self) -> int: ...


class _Carrier(Protocol):
    """What is needed of whoever carries transactions out."""

    log: Log
    clock: Clock
    live: LiveSet
    writes: Writes

    @property
    def settings(self) -> _Settings: ...

    def adopt(self, tx: Tx) -> None: ...

    def call_now(self, key: Key) -> None: ...


class Ordering:
    """Of one node."""

    def __init__(self, carrier: _Carrier, *, spawn: Spawn, failpoints: Failpoints) -> None:
        self._c = carrier
        self._clock = clock = carrier.clock
        self._spawn = spawn
        self._failpoints = failpoints
        self._asking: dict[Key, Waiting] = {}
        self._held: dict[str, dict[Key, Waiting]] = {}
        """By line."""
        self._ended: dict[str, None] = {}
        self._runs = False
        self._later: Later[str] = Later(clock, spawn, "order:later", self._too_long)

    def ask(self, key: Key, waiting: Waiting) -> None:
        """It is due: let it go, or put it off."""
        self._asking[key] = waiting
        self._run_soon()

    def ended(self, line: str) -> None:
        """It is in the log that one of these has ended."""
        self._ended[line] = None
        self._run_soon()

    def taken_over(self, tx: Tx) -> None:
        """It was another node's. What waits in it may have been pulled there, and its turn be lost with that node."""
        for branch, line in lines_of(tx):
            if branch.reason.startswith(WAITS) and branch.state not in SETTLED_BRANCH:
                self._ended[line] = None
                self._run_soon()

    def stop(self) -> None:
        """Nobody waits any more."""
        self._later.stop()

    def _run_soon(self) -> None:
        if not self._runs:
            self._runs = True
            self._spawn(self._run(), "order:turns")

    async def _run(self) -> None:
        try:
            while self._asking or self._ended:
                try:
                    await self._some()
                except LogUnavailable as error:
                    log.debug("log.unavailable", duty="order", reason=str(error))
                    await self._clock.sleep(_AGAIN_S)
                except Exception:
                    log.exception("order.crashed")
                    await self._clock.sleep(_AGAIN_S)
        finally:
            self._runs = False

    async def _some(self) -> None:
        asking = dict(list(self._asking.items())[:_AT_ONCE])
        ended = list(self._ended)[:_AT_ONCE]
        lines = sorted({*ended, *(waiting.line for waiting in asking.values())})
        for line in ended:
            del self._ended[line]
        early = [key for key, one in asking.items() if one.early]
        try:
            if early:
                await self._c.log.hasten(early)
            found = await self._c.log.turns(lines)
            await self._failpoints.reach("order.after_turn")
            others = [key for key, one in asking.items() if not _has(found.get(one.line), key)]
            ahead = await self._c.log.ahead(others) if others else {}
        except BaseException:
            self._ended.update(dict.fromkeys(ended))
            raise
        for key, one in asking.items():
            # It may have been asked for again meanwhile.
            if self._asking.get(key) is not one:
                continue
            turn = found.get(one.line)
            if one.line in self._ended and not _has(turn, key):
                continue  # What was found is old.
            del self._asking[key]
            # What has no place there is one that an operator has sent again, after others: nobody waits for it.
            if _has(turn, key) or key not in ahead:
                one.go()
            elif turn is not None and not one.waited and self._c.live.get(turn.tx_id) is not None:
                self._held.setdefault(one.line, {})[key] = one
                self._later.put(self._clock.now_us() + HERE_US, key, one.line)
            else:
                self._put_off(one, turn, ahead[key])
        for line in ended:
            turn = found.get(line)
            if turn is None:
                continue
            held = self._taken(line, (turn.tx_id, turn.branch))
            if held is not None:
                held.go()
            else:
                self._spawn(self._pull(turn), f"order:{turn.tx_id}")

    def _taken(self, line: str, key: Key) -> Waiting | None:
        held = self._held.get(line, {})
        one = held.pop(key, None)
        if one is not None:
            self._later.drop(key)
            if not held:
                del self._held[line]
        return one

    def _too_long(self, key: Key, line: str) -> None:
        one = self._taken(line, key)
        if one is not None:
            self.ask(key, replace(one, waited=True))

    def _put_off(self, one: Waiting, turn: Turn | None, ahead: int) -> None:
        until_us = self._clock.now_us() + min(LONGEST_US, STEP_US * max(1, ahead))
        why = f": {turn.tx_id}.{turn.branch} of the same key comes first" if turn is not None else ""
        one.put_off(until_us, f"{WAITS}{why}")

    async def _pull(self, turn: Turn) -> None:
        """Send the message whose turn it is, if it waits for that: here, or nowhere."""
        c = self._c
        live = c.live.get(turn.tx_id)
        if live is not None and live.tx.owner:
            branch = live.tx.branch(turn.branch)
            if branch is not None and branch.reason.startswith(WAITS):
                c.call_now((turn.tx_id, turn.branch))
            return
        if live is not None:
            await c.writes.none(turn.tx_id)  # It is being handed off.
        elif turn.owner or not turn.waits or not turn.decided:
            return
        try:
            due = [(turn.tx_id, turn.epoch)]
            rows = await c.log.claim_due(c.settings.node, c.settings.lease_us, due)
        except LogUnavailable as error:
            # It asks again by itself; and what was claimed all the same is taken over.
            log.debug("log.unavailable", duty="order", reason=str(error))
            return
        for tx in rows:
            branches = (
                replace(b, next_attempt_us=0) if b.id == turn.branch and b.reason.startswith(WAITS) else b
                for b in tx.branches
            )
            c.adopt(replace(tx, branches=tuple(branches)))


def _has(turn: Turn | None, key: Key) -> bool:
    return turn is not None and (turn.tx_id, turn.branch) == key


__all__ = ["Ordering", "Waiting"]
