"""Contract of the log: what is handed off, claimed when it is due, and pulled forward; and how much waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.support.logs import LogContract, Place, S, active, committing, end, get, put, written, xa
from txcoord.adapters.sql.log import SqlLog
from txcoord.core.action import Action
from txcoord.core.model import TAKEN, Branch, BranchState, Change, ChangeKind, Kind, Tx, TxState, Written
from txcoord.ports import Backlog

B = BranchState
LEASE = 10 * S


def branch(number: str, due_us: int, resource: str = "accounts", state: BranchState = B.FINISHING) -> Branch:
    return waiting(number, due_us, resource=resource, state=state, attempts=3, failures=3, reason="DOWN")


def waiting(number: str, due_us: int, **more: Any) -> Branch:
    values = {"state": B.FINISHING, "resource": "accounts", **more}
    action = values.pop("action", Action("confirm"))
    return Branch(number, Kind.TCC, xid="", next_attempt_us=due_us, action=action, **values)


def handed_off(now_us: int, *branches: Branch, after_s: int = 60, **more: Any) -> Tx:
    """One that waits, and that no node has."""
    due_us = now_us + after_s * S
    values = {"owner": "", "epoch": 4, "lease_until_us": due_us + S}
    return committing(now_us, *(branches or (branch("1", due_us),)), **{**values, **more})


def claims(*txs: Tx) -> Sequence[tuple[str, int]]:
    return [(tx.tx_id, tx.epoch) for tx in txs]


def ids(txs: Sequence[Tx]) -> set[str]:
    return {tx.tx_id for tx in txs}


class TestHandedOff(LogContract):
    async def test_its_row_says_when_it_is_overdue(self, log: SqlLog) -> None:
        """Also when that is before its lease would have ended."""
        now = await log.now_us()
        tx = committing(now, lease_until_us=now + 60 * S)
        await put(log, tx)
        for until_us in (now + S, now + 90 * S):
            off = replace(tx, owner="", lease_until_us=until_us, branches=(branch("1", until_us - S),))
            change = Change(ChangeKind.PROGRESS, off, off.branches, tx.epoch, tx.epoch, forced=False)
            assert await written(log, change) == [Written.OK]
            assert await get(log, tx.tx_id) == off
        # Taken back by whoever had it: when it would have been overdue is nobody's lease.
        back = replace(tx, lease_until_us=now + 5 * S)
        assert await written(log, Change(ChangeKind.PROGRESS, back, (), tx.epoch, tx.epoch)) == [Written.OK]
        row = await get(log, tx.tx_id)
        assert (row.owner, row.lease_until_us) == ("n1", now + 5 * S)

    async def test_nobody_takes_it_over_before_it_is_overdue(self, log: SqlLog) -> None:
        now = await log.now_us()
        waits, overdue = handed_off(now), handed_off(now, after_s=-5)
        await put(log, waits, overdue)
        assert ids(await log.claim("n2", LEASE, 10, all_of_owner=True)) == {overdue.tx_id}
        assert await get(log, waits.tx_id) == waits


class TestClaimDue(LogContract):
    async def test_what_nobody_has_with_this_epoch(self, log: SqlLog) -> None:
        now = await log.now_us()
        due = [handed_off(now) for _ in range(3)]
        owned = committing(now, lease_until_us=now + S)
        stale, undecided = handed_off(now), active(now)
        stuck = handed_off(now, xa(state=B.PARKED))
        over = handed_off(now, state=TxState.COMMITTED, ended_us=now)
        await put(log, *due, owned, stale, undecided, stuck, over)
        asked = [*claims(*due, owned, undecided, stuck, over), (stale.tx_id, 3), ("no id", 1), ("0" * 32, 1)]
        claimed = await log.claim_due("n2", LEASE, asked)
        assert ids(claimed) == ids(due)
        for tx in claimed:
            was = next(t for t in due if t.tx_id == tx.tx_id)
            assert tx == replace(was, owner="n2", epoch=4 + TAKEN, lease_until_us=tx.lease_until_us)
            assert tx.lease_until_us >= now + LEASE
            assert await get(log, tx.tx_id) == tx
        assert await log.claim_due("n3", LEASE, asked) == []
        assert await log.claim_due("n3", LEASE, []) == []

    async def test_who_had_it_before_is_fenced(self, log: SqlLog) -> None:
        tx = handed_off(await log.now_us())
        await put(log, tx)
        (claimed,) = await log.claim_due("n2", LEASE, claims(tx))
        assert await written(log, end(tx), end(claimed)) == [Written.CONFLICT, Written.OK]

    async def test_two_at_once_take_disjoint_rows(self, place: Place, log: SqlLog) -> None:
        now = await log.now_us()
        due = [handed_off(now) for _ in range(60)]
        await put(log, *due)
        logs = [await place.open() for _ in range(3)]
        taken = await asyncio.gather(
            *(one.claim_due(f"n{n}", LEASE, claims(*due)) for n, one in enumerate(logs)),
            log.claim("n9", LEASE, 100),
        )
        # A row that somebody looked at in that moment may have been passed by, by all others: it is there still.
        taken.append(await log.claim_due("n9", LEASE, claims(*due)))
        seen = [tx.tx_id for some in taken for tx in some]
        assert sorted(seen) == sorted(ids(due))


class TestPulledForward(LogContract):
    async def test_what_waits_for_a_target(self, log: SqlLog) -> None:
        now = await log.now_us()
        both = handed_off(now, branch("1", now + 60 * S), branch("2", now + 20 * S, "ledger"))
        sooner = handed_off(now, branch("1", now + 50 * S), xa("2", B.DONE, next_attempt_us=7))
        aborting = handed_off(now, branch("1", now + 70 * S, state=B.UNDOING), state=TxState.ABORTING)
        await put(
            log, both, sooner, aborting,
            handed_off(now, branch("1", now + 60 * S, "ledger"), xa("2", B.PARKED, next_attempt_us=now + S)),
            committing(now, branch("1", now + 60 * S)),
            handed_off(now, xa(state=B.FINISHING)),
            handed_off(now, state=TxState.COMMITTED, ended_us=now),
        )  # fmt: skip
        assert [t.tx_id for t in await log.claim_waiting("n2", LEASE, "accounts", 1)] == [sooner.tx_id]
        rest = await log.claim_waiting("n2", LEASE, "accounts", 100)
        assert ids(rest) == ids([both, aborting])
        assert await log.claim_waiting("n2", LEASE, "accounts", 100) == []
        assert await log.claim_waiting("n2", LEASE, "nobody", 100) == []
        for tx in (await get(log, both.tx_id), next(t for t in rest if t.tx_id == both.tx_id)):
            assert (tx.owner, tx.epoch) == ("n2", 4 + TAKEN)
            assert [b.next_attempt_us for b in tx.branches] == [0, now + 20 * S]
            assert [b.attempts for b in tx.branches] == [3, 3]
        assert await log.claim_due("n3", LEASE, claims(both, sooner, aborting)) == []

    async def test_two_at_once_take_disjoint_rows(self, place: Place, log: SqlLog) -> None:
        now = await log.now_us()
        due = [handed_off(now) for _ in range(30)]
        await put(log, *due)
        logs = [await place.open() for _ in range(2)]
        taken: list[str] = []

        async def take(one: SqlLog, name: str) -> None:
            while len(taken) < len(due):
                taken.extend(tx.tx_id for tx in await one.claim_waiting(name, LEASE, "accounts", 7))

        await asyncio.gather(*(take(one, f"n{n}") for n, one in enumerate(logs)))
        assert sorted(taken) == sorted(ids(due))

    async def test_only_what_waits_for_the_target_itself(self, log: SqlLog) -> None:
        """Not what is to be called later, or has asked for it."""
        now = await log.now_us()
        due = now + 60 * S
        headers = {"failures": "9"}
        asked = waiting("2", due, attempts=4, reason="PENDING")
        never = [
            handed_off(now, waiting("1", due)),
            handed_off(now, asked),
            handed_off(now, waiting("1", due, attempts=4, reason="BREAKER: of another kind")),
            handed_off(now, waiting("1", due, reason="PENDING", action=Action("failures", headers=headers))),
        ]
        pulled = [
            handed_off(
                now, waiting("1", due, reason="BREAKER_OPEN: its target does not answer: DOWN"), asked
            ),
            handed_off(now, waiting("1", due, reason="RATE_LIMITED"), asked),
            handed_off(now, waiting("1", due, failures=1, attempts=1, reason="DOWN"), asked),
        ]
        await put(log, *never, *pulled)
        taken = await log.claim_waiting("n2", LEASE, "accounts", 100)
        assert ids(taken) == ids(pulled)
        assert [[b.next_attempt_us for b in tx.branches] for tx in taken] == [[0, due]] * 3
        for tx in never:
            assert await get(log, tx.tx_id) == tx

    async def test_how_much_waits(self, log: SqlLog) -> None:
        now = await log.now_us()
        assert await log.backlog() == {}
        await put(
            log,
            handed_off(now, branch("1", now + 60 * S), branch("2", now + 20 * S, "ledger")),
            handed_off(now, branch("1", now - 5 * S), state=TxState.ABORTING),
            committing(now, branch("1", now + 30 * S, "ledger")),
            handed_off(now, xa(state=B.PARKED, next_attempt_us=7)),
            handed_off(now, branch("1", 7), state=TxState.COMMITTED, ended_us=now),
            active(now, xa("1", B.RUNNING, next_attempt_us=7), state=TxState.RUNNING),
        )
        assert await log.backlog() == {
            "accounts": Backlog(2, now - 5 * S),
            "ledger": Backlog(2, now + 20 * S),
        }
