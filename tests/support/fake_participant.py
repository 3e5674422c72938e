"""Participants in memory, for tests of the engine on virtual time. They keep the barrier's rules."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence

from txcoord.core.action import Answer, AnswerKind, Op
from txcoord.ports import CallRequest

DONE = Answer(AnswerKind.DONE)
Say = Callable[[CallRequest], Answer]
UNDOES = {Op.CANCEL: Op.TRY, Op.COMPENSATE: Op.ACTION}


class Participants:
    """``ports.Caller``. All targets are one service."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self.calls: list[tuple[int, str, str, Op, int]] = []
        """When, target, branch, op and attempt."""
        self.batches: list[tuple[str, int]] = []
        self.script: dict[tuple[str, Op], list[Answer]] = defaultdict(list)
        """By branch and op: what is answered before *done*."""
        self.hung: set[str] = set()
        """Targets that accept and never answer."""
        self.down: set[str] = set()
        """Targets that nobody reaches."""
        self.held: dict[tuple[str, Op], asyncio.Event] = {}
        """By branch and op: answered only after this."""
        self.latency_s = 0.001
        self.effects: dict[tuple[str, str], list[Op]] = defaultdict(list)
        """By tx id and branch: what was done in effect."""
        self._seen: set[tuple[str, str, Op]] = set()

    async def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        self.batches.append((target, len(requests)))
        for r in requests:
            self.calls.append((self._now_us(), target, r.branch.id, r.op, r.attempt))
        if target in self.hung:
            await asyncio.Event().wait()
        await asyncio.sleep(self.latency_s)
        if target in self.down:
            for r in requests:
                yield r, Answer(AnswerKind.FAILED, reason="UNAVAILABLE: connection refused")
            return
        for r in requests:
            gate = self.held.get((r.branch.id, r.op))
            if gate is not None:
                await gate.wait()
            steps = self.script[r.branch.id, r.op]
            yield r, steps.pop(0) if steps else self._done(r)

    def _done(self, r: CallRequest) -> Answer:
        """The barrier."""
        tx_id, branch = r.tx.tx_id, r.branch.id
        if (tx_id, branch, r.op) in self._seen:
            if r.op in (Op.TRY, Op.ACTION) and r.op not in self.effects[tx_id, branch]:
                return Answer(AnswerKind.REFUSED, reason="DECIDED")
            return Answer(AnswerKind.DONE, b'"again"')
        forward = r.branch.action is not None and r.branch.action.forward
        if r.op in (Op.TRY, Op.ACTION) and self._now_us() > r.tx.deadline_us and not forward:
            return Answer(AnswerKind.REFUSED, reason="DEADLINE")
        self._seen.add((tx_id, branch, r.op))
        first = UNDOES.get(r.op)
        if (
            first is not None
            and (tx_id, branch, first) not in self._seen
            and first not in self.effects[tx_id, branch]
        ):
            self._seen.add((tx_id, branch, first))
            return DONE
        self.effects[tx_id, branch].append(r.op)
        return Answer(AnswerKind.DONE, f'"{branch}"'.encode())

    async def close(self) -> None: ...
