"""What is done, step by step, while anything may go wrong at any step; each answers what it must have come to.

A scenario of another kind is one more function here, or in a module like this: ``@scenario()`` makes it one that every
log, every database and every crash is tried with. ``Run`` has what most of them need.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from tests.faults.place import LATE, Run, S, TooSlow
from tests.faults.points import MARIADB
from txcoord.core.errors import Refused
from txcoord.core.events import Commit, Enlist, OnePhaseDone, Operate
from txcoord.core.model import Audit, BranchState, Decision, Tx


@dataclass(frozen=True, slots=True)
class Scenario:
    """One course of things."""

    name: str
    play: Callable[[Run], Awaitable[Decision]]
    """Answers what the transaction ``run.last`` must have come to."""
    needs: str = ""
    """A kind of database without which it makes no sense."""
    actors: frozenset[str] = frozenset()
    """The first crash is at one of these; empty: at any."""


SCENARIOS: dict[str, Scenario] = {}
"""By name, in the order of their modules."""


def scenario(
    *, needs: str = "", actors: tuple[str, ...] = ()
) -> Callable[[Callable[[Run], Awaitable[Decision]]], Callable[[Run], Awaitable[Decision]]]:
    """Make a function a scenario of its name."""

    def add(play: Callable[[Run], Awaitable[Decision]]) -> Callable[[Run], Awaitable[Decision]]:
        name = play.__name__
        SCENARIOS[name] = Scenario(name, play, needs, frozenset(actors))
        return play

    return add


# ---- a client written by hand, against the engine ----


@scenario()
async def commit_with_gid(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    await run.commit(tx, *branches, begun=True)
    return Decision.COMMIT


@scenario()
async def commit_without_gid(run: Run) -> Decision:
    await run.up()
    tx = run.tx(gid=None)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    await run.commit(tx, *branches, begun=False)
    return Decision.COMMIT


@scenario()
async def commit_with_a_branch_of_another_process(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    other = await run.work(tx, "1.1", "b")
    await run.ask(lambda c: c.enlist(Enlist(tx, (other,)), begun=True))
    await run.commit(tx, await run.work(tx, "2", "a"), begun=True)
    return Decision.COMMIT


@scenario()
async def rollback(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    await run.rollback(tx, *branches, begun=True)
    return Decision.ABORT


@scenario()
async def commit_with_a_branch_that_voted_no(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    run.involved.add("b")
    no = run.branch(run.xid(tx, "2"), "b", BranchState.REFUSED)
    await run.commit(tx, await run.work(tx, "1", "a"), no, begun=True)
    return Decision.ABORT


@scenario()
async def one_phase(run: Run) -> Decision:
    await run.up()
    tx = run.tx(one_phase="a")
    await run.begin(tx)
    branch = await run.work(tx, "1", "a", prepare=False)
    event = OnePhaseDone(replace(tx, branches=(branch,)))
    await run.end(await run.ask(lambda c: c.one_phase_done(event)))
    return Decision.COMMIT


@scenario()
async def one_phase_whose_reply_was_lost(run: Run) -> Decision:
    await run.up()
    tx = run.tx(one_phase="a")
    await run.begin(tx)
    await run.work(tx, "1", "a", prepare=False)
    await run.rollback(tx, begun=True, resources=("a",))
    return Decision.COMMIT


@scenario()
async def one_phase_whose_client_died_after_its_commit(run: Run) -> Decision:
    await run.up()
    tx = run.tx(one_phase="a", deadline_s=0.3)
    await run.begin(tx)
    await run.work(tx, "1", "a", prepare=False)
    await _expire(run, tx)
    return Decision.COMMIT


@scenario()
async def one_phase_whose_client_died_before_its_commit(run: Run) -> Decision:
    await run.up()
    tx = run.tx(one_phase="a", deadline_s=0.3)
    await run.begin(tx)
    await _expire(run, tx)
    try:
        await run.work(
            tx, "1", "a", prepare=False
        )  # Late: its marker's key is taken, or it is past its time.
    except LATE:
        return Decision.ABORT
    raise AssertionError("a local commit went through after the abort")


@scenario()
async def deadline(run: Run) -> Decision:
    await run.up()
    tx = run.tx(deadline_s=0.4)
    await run.begin(tx)
    branches = (await run.work(tx, "1", "a"), await run.work(tx, "2", "b"))
    try:
        await run.ask(lambda c: c.enlist(Enlist(tx, branches), begun=True))
    except Refused:
        raise TooSlow from None
    await _expire(run, tx)
    return Decision.ABORT


@scenario()
async def deadline_of_branches_that_nobody_knows(run: Run) -> Decision:
    await run.up()
    tx = run.tx(deadline_s=0.3)
    await run.begin(tx)
    await run.work(tx, "1", "a")
    await run.work(tx, "2", "b")
    await _expire(run, tx)
    await run.scan()
    return Decision.ABORT


@scenario()
async def orphan(run: Run) -> Decision:
    await run.up()
    tx = run.tx(gid=None, deadline_s=0.1)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    await run.past(run.windows.marker_until(tx.deadline_us))
    await run.scan()
    fence = await run.ask(lambda c: c.get(tx.tx_id))
    assert fence is not None, "rolled back, and no row says so"
    await run.commit(tx, *branches, begun=False)  # Too late.
    return Decision.ABORT


@scenario()
async def rollback_that_overtakes_a_prepare(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    await run.rollback(tx, begun=True)
    await run.work(tx, "1", "a")
    await run.scan()
    return Decision.ABORT


@scenario()
async def same_gid_again_after_an_abort(run: Run) -> Decision:
    await run.up()
    first, second = run.tx(), run.tx()
    await run.begin(first)
    await run.rollback(first, await run.work(first, "1", "a"), begun=True, reason="DEADLOCK")
    run.told.clear()  # That was the first attempt's.
    await run.begin(second, retry_of=first.tx_id)
    branches = [await run.work(second, "1", "a"), await run.work(second, "2", "b")]
    await run.commit(second, *branches, begun=True)
    return Decision.COMMIT


@scenario()
async def branch_that_was_finished_by_hand(run: Run) -> Decision:
    """Somebody rolls a prepared branch back, though commit was decided: parked, until an operator resolves it."""
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    await run.undo_by_hand(branches[1])
    await run.commit(tx, *branches, begun=True)
    order = Operate("resolve", "2", Audit("ann", "seen", "resolve", time.time_ns() // 1000))
    try:
        await run.ask(lambda c: c.operate(tx.tx_id, order))
    except Refused as refused:
        assert refused.refusal.reason == "NOT_PARKED"  # noqa: PT017 - the order was carried out before the crash
        assert run.points.fired
    assert (await run.end(tx)).heuristic
    return Decision.COMMIT


async def _expire(run: Run, tx: Tx) -> None:
    """Deadlines have their turns until this transaction is decided: a database may have to be asked first."""
    await run.past(tx.deadline_us)
    while True:
        await run.sweep()
        now = await run.ask(lambda c: c.get(tx.tx_id))
        if now is not None and now.decision is not None:
            await run.end(now)
            return
        await asyncio.sleep(0.005)


@scenario(needs=MARIADB)
async def commit_whose_holder_hangs(run: Run) -> Decision:
    """The session that prepared lives, and does nothing more: it is ended, and the branch taken over."""
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b", hangs=True)]
    await run.commit(tx, *branches, begun=True)
    return Decision.COMMIT


@scenario()
async def decided_by_a_node_that_is_gone(run: Run) -> Decision:
    """Another node takes the transaction over once the lease has run out."""
    run.lease_us = round(0.3 * S * run.scale)
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    branches = (await run.work(tx, "1", "a"), await run.work(tx, "2", "b"))
    await run.ask(lambda c: c.commit(Commit(replace(tx, branches=branches), True)))
    run.lose_node("n2")
    # Not asked again and again: each look is a step.
    await asyncio.sleep(run.lease_us / S)
    while True:
        await run.take_over()
        row = await run.ask(lambda c: c.get(tx.tx_id))
        assert row is not None
        if row.ended:
            break
        await asyncio.sleep(0.1)
    await run.end(row)
    return Decision.COMMIT
