"""The end of a transaction in the SDK: cancelled anywhere, closed meanwhile, with what cannot be sent."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine, Generator
from contextlib import ExitStack
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.acceptance import INSERT, Client, Site, client_of, eventually, new_gid
from tests.support.acceptance_valve import Valve
from txcoord_client import (
    Aborted,
    AlreadyAborted,
    AlreadyCommitted,
    Coordinator,
    ForkedAfterUse,
    Heuristic,
    Outcome,
    OutcomeUnknown,
    Rejected,
    Transaction,
    TxcoordError,
    Unavailable,
    _finish,
    _forks,
)
from txcoord_client._pb import common_pb2 as c
from txcoord_client._xa import sqlalchemy_
from txcoord_client.outcome import from_pb


class CancelAt:
    """Awaits a coroutine, and cancels the task at its ``at``-th suspension."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int) -> None:
        self._work = work
        self._at = at
        self.cancelled = False

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._work.__await__()
        step, value = inner.send, None
        argument: Any = value
        for count in range(1, 1_000_000):
            try:
                future = step(argument)
            except StopIteration as stop:
                return stop.value
            if count == self._at:
                self.cancelled = True
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                argument, step = (yield future), inner.send
            except BaseException as error:
                argument, step = error, inner.throw
        raise AssertionError


@pytest.mark.parametrize("how", ["engines", "gid", "one phase", "sessions", "pool"])
async def test_cancelled_at_every_await(site: Site, how: str) -> None:
    """Whatever the caller awaits when he is cancelled: all or nothing, and everything is given back."""
    async with client_of(site) as client:
        pool = await asyncpg.create_pool(site.accounts.dsn, min_size=1, max_size=2)
        # Known before: the sweep is about the rest.
        for engine in client.engines.values():
            async with client.coord.begin() as g, g.xa(engine):
                pass

        async def work(body: str) -> None:
            async with client.coord.begin("sweep", gid=body if how == "gid" else "", timeout=10) as g:
                if how == "sessions":
                    async with g.xa(session) as db:
                        await db.execute(text(INSERT), {"body": body})
                    await client.write(g, client.ledger, body)
                elif how == "pool":
                    async with g.xa(pool, resource="accounts") as db:
                        await db.execute(f"INSERT INTO note (body) VALUES ('{body}')")
                    await client.write(g, client.ledger, body)
                elif how == "one phase":
                    await client.write(g, client.accounts, body)
                else:
                    await client.write_both(g, body)

        bodies = []
        for at in range(1, 500):
            bodies.append(new_gid("sweep"))
            async with AsyncSession(client.accounts) as session:
                driven = CancelAt(work(bodies[-1]), at)

                async def run(driven: CancelAt = driven) -> None:
                    await driven

                task = asyncio.create_task(run())
                await asyncio.wait({task}, timeout=30)
                assert task.done()
                assert task.cancelled() or task.exception() is None
                # What goes on without its caller ends by itself.
                await eventually(lambda: client.coord._runtime().under_way == 0)
            if not driven.cancelled:
                break
        assert len(bodies) > 5
        print(f"cancelled at {len(bodies) - 1} places")
        runtime = client.coord._runtime()
        assert runtime.admission._held == {}
        assert runtime.admission._ages == {}
        assert sqlalchemy_._writers == {}
        assert [e.pool.checkedout() for e in client.engines.values()] == [0, 0]  # type: ignore[attr-defined]
        assert pool.get_idle_size() == pool.get_size()
        await pool.close()
    await eventually(lambda: not site.prepared(), within=30)
    alone = how == "one phase"
    for body in bodies:
        here, there = site.counts(body)
        assert (here, there) in ([(0, 0), (1, 0)] if alone else [(0, 0), (1, 1)]), body
    assert site.accounts.count(bodies[-1]) == 1


# ---- what cannot be sent ----


@pytest.mark.parametrize("result", ["text", {"a": 1}, b"x" * 300_000], ids=["text", "dict", "long"])
@pytest.mark.parametrize("alone", [True, False])
async def test_a_result_that_cannot_be_stored_is_refused_while_the_work_can_be_undone(
    client: Client, site: Site, result: Any, alone: bool
) -> None:
    body = new_gid()
    with pytest.raises(Rejected, match="result"):
        async with client.coord.begin("result") as g:
            await client.write(g, client.accounts, body)
            if not alone:
                await client.write(g, client.ledger, body)
            g.result = result
    assert (site.counts(body), site.prepared(g.tx_id)) == ((0, 0), [])


@pytest.mark.parametrize(
    "options",
    [
        {"labels": {"n": 1}},
        {"labels": {f"l{n}": "x" for n in range(50)}},
        {"headers": {"h": "x" * 10_000}},
        {"name": "x" * 300},
    ],
    ids=["a number", "many labels", "large headers", "long name"],
)
async def test_what_the_log_would_refuse_is_refused_before_the_work(
    client: Client, options: dict[str, Any]
) -> None:
    with pytest.raises(Rejected, match=r"name|labels"):
        async with client.coord.begin(**options):
            raise AssertionError("not reached")


# ---- the coordinator does not answer ----


async def test_a_begin_that_nobody_answered_spends_no_gid(site: Site, client: Client) -> None:
    """Nothing was decided about the business: the gid may be run again."""
    gid = new_gid()

    async def nobody(*_: object, **__: object) -> None:
        raise Unavailable("no answer")

    runtime = client.coord._runtime()
    await runtime.connect(asyncio.get_running_loop().time() + 5)
    call = runtime.wire.call

    async def lose_begin(name: str, request: Any, until: float, **more: Any) -> Any:
        if name != "begin":
            return await call(name, request, until, **more)
        await call(name, request, until, **more)
        raise Unavailable("the answer was lost")

    runtime.wire.call = lose_begin  # type: ignore[method-assign]

    async def work(g: Transaction) -> str:
        await client.write_both(g, gid)
        return "done"

    with pytest.raises(Unavailable):
        await client.coord.run(work, gid=gid)
    runtime.wire.call = call  # type: ignore[method-assign]
    assert (await client.ended(gid)).state == "ABORTED"
    with pytest.raises(AlreadyAborted) as caught:
        async with client.coord.begin(gid=gid):
            raise AssertionError("not reached")
    assert caught.value.retriable
    assert await client.coord.run(work, gid=gid) == "done"
    assert site.counts(gid) == (1, 1)


@pytest.mark.parametrize("alone", [True, False])
async def test_a_coordinator_closed_inside_aborts(site: Site, alone: bool) -> None:
    body = new_gid()
    async with client_of(site) as client:
        with pytest.raises(Aborted) as caught:
            async with client.coord.begin("closed") as g:
                await client.write(g, client.accounts, body)
                if not alone:
                    await client.write(g, client.ledger, body)
                await client.coord.close()
        assert caught.value.reason == "CLOSED"
        assert [e.pool.checkedout() for e in client.engines.values()] == [0, 0]  # type: ignore[attr-defined]
    assert (site.counts(body), site.prepared(g.tx_id)) == ((0, 0), [])


async def test_closing_waits_for_ends_and_their_reports(site: Site) -> None:
    body = new_gid()
    async with client_of(site) as client:

        async def one(number: int) -> None:
            async with client.coord.begin("end", gid=f"{body}-{number}", resources=["accounts"]) as g:
                await client.write(g, client.accounts, body)

        # Drivers that are cancelled while they connect may leave a socket behind: the pool is filled before.
        for connection in [await client.accounts.connect() for _ in range(5)]:
            await connection.close()
        tasks = [asyncio.create_task(one(n)) for n in range(5)]
        while client.coord._runtime().under_way == 0:  # noqa: ASYNC110 - the very turn counts
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.coord.close()
        committed = site.accounts.count(body)
        outcomes = [await client.coord.get(f"{body}-{n}") for n in range(5)]
    assert committed == sum(o is not None and o.state == "COMMITTED" for o in outcomes)


async def test_a_wait_that_cannot_be_had_is_not_asked_for_again_and_again(client: Client) -> None:
    """The coordinator knows nothing of the transaction any more, and says so at once."""
    async with client.coord.begin("wait", timeout=20) as g:
        calls = 0
        call = g._runtime.wire.call

        async def count(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            return await call(*arguments, **more)

        g._runtime.wire.call = count  # type: ignore[method-assign]
        pending = c.Outcome(state=c.STATE_COMMITTING, decision=c.DECISION_COMMIT, pending=True)
        out = await _finish._followed(g, pending, asyncio.get_running_loop().time() + 15)
        g._runtime.wire.call = call  # type: ignore[method-assign]
    assert (out.state, calls) == (c.STATE_COMMITTING, 1)


# ---- a pool whose database stands still ----


async def test_a_pool_that_does_not_take_its_connection_back_holds_nothing_up(site: Site) -> None:
    """asyncpg's pool asks the database on release, with no limit of time."""
    body = new_gid()
    valve = Valve(site.accounts.url)
    async with client_of(site) as client:
        dsn = valve.url.replace("+asyncpg", "")
        pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
        with valve.holding("UNLISTEN"):
            async with client.coord.begin("held", timeout=15) as g:
                async with g.xa(pool, resource="accounts") as db:
                    await db.execute(f"INSERT INTO note (body) VALUES ('{body}')")
                await client.write(g, client.ledger, body)
        assert g.outcome is not None
        assert g.outcome.state == "COMMITTED"
        assert site.counts(body) == (1, 1)
        pool.terminate()
    valve.close()


# ---- loops and forks ----


async def test_each_loop_has_its_own_and_a_closed_one_harms_no_other(client: Client, site: Site) -> None:
    body = new_gid()

    async def elsewhere() -> None:
        async with client_of(site) as other:
            await other.coord.close()  # Nothing was opened yet.
            async with other.coord.begin("first") as g:
                await other.write(g, other.accounts, body)
        await client.coord.get(body)
        await client.coord.close()

    async with client.coord.begin("outer") as g:
        await client.write_both(g, body)
        await asyncio.to_thread(asyncio.run, elsewhere())
    assert site.counts(body) == (2, 1)


async def test_a_forked_child_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.coord.get("x")
    with monkeypatch.context() as patch:
        patch.setattr(_forks, "_inherited", True)
        with pytest.raises(ForkedAfterUse):
            await client.coord.get("x")


async def test_settle_tells_what_became_of_it(client: Client, site: Site) -> None:
    async with Coordinator(site.address) as other:
        async with client.coord.begin("known") as g:
            await client.write_both(g, new_gid())
        unknown = OutcomeUnknown("lost", tx_id=g.tx_id, deadline_us=g.deadline_us, resources=("accounts",))
        assert (await other.settle(unknown)).committed


async def test_run_on_a_gid_that_was_committed_otherwise(client: Client, site: Site) -> None:
    gid = new_gid()
    async with client.coord.begin("never", gid=gid) as g:
        await client.write_both(g, gid)
        g.result = b"\xff no JSON"

    async def never() -> None:
        raise AssertionError("not reached")

    with pytest.raises(AlreadyCommitted) as caught:
        await client.coord.run(never, gid=gid)
    assert caught.value.result == b"\xff no JSON"


async def test_a_gid_whose_commit_is_on_its_way_says_so(client: Client, site: Site) -> None:
    gid = new_gid()

    async def again() -> str:
        with pytest.raises(AlreadyCommitted) as caught:
            await client.coord.begin("pay", gid=gid).__aenter__()
        assert caught.value.outcome is not None
        return caught.value.outcome.state

    with ExitStack() as stack:
        async with client.coord.begin("pay", gid=gid, wait="decided") as g:
            await client.write_both(g, gid)
            stack.enter_context(site.valves["ledger"].holding(g.tx_id))
        assert await again() == "COMMITTING"
    assert (await client.ended(tx_id=g.tx_id)).state == "COMMITTED"
    assert await again() == "COMMITTED"


def _told(state: c.State) -> Outcome:
    return from_pb(c.Outcome(state=state, reason="X"))


@pytest.mark.parametrize(
    ("error", "told", "kind", "reason", "retriable"),
    [
        # Nobody took it: an abort, and no business one.
        (
            Unavailable("leaving", reason="SHUTTING_DOWN", definite=True),
            None,
            Aborted,
            "CONNECTION_LOST",
            True,
        ),
        (Rejected("bad", reason="BAD_XID"), None, Rejected, "BAD_XID", None),
        (Rejected("bad", reason="BAD_XID", definite=False), None, OutcomeUnknown, "OUTCOME_UNKNOWN", None),
        (Rejected("late", reason="X"), c.STATE_ABORTED, Aborted, "X", False),
        (Unavailable("lost"), None, OutcomeUnknown, "OUTCOME_UNKNOWN", None),
        (OutcomeUnknown("expired"), None, OutcomeUnknown, "OUTCOME_UNKNOWN", None),
    ],
)
@pytest.mark.parametrize("gid", [True, False])
async def test_a_commit_that_is_refused(
    client: Client,
    site: Site,
    error: TxcoordError,
    told: c.State | None,
    kind: type[TxcoordError],
    reason: str,
    retriable: bool | None,
    gid: bool,
) -> None:
    """What is not sure is told as unknown, whatever is sure is undone at once."""
    body = new_gid()
    refusal = copy.copy(error)
    refusal.outcome = None if told is None else _told(told)
    with pytest.raises(kind) as caught:
        async with client.coord.begin("refused", gid=body if gid else "", timeout=5) as g:
            await client.write_both(g, body)
            wire = g._runtime.wire
            call = wire.call

            async def refuse(name: str, *arguments: Any, **more: Any) -> Any:
                if name == "commit":
                    raise refusal
                return await call(name, *arguments, **more)

            wire.call = refuse  # type: ignore[method-assign]
    wire.call = call  # type: ignore[method-assign]
    assert caught.value.reason == reason
    assert getattr(caught.value, "retriable", None) is retriable
    assert caught.value.definite is (kind is not OutcomeUnknown)
    assert g.outcome is not None
    assert g.outcome.aborted is (kind is not OutcomeUnknown)
    if isinstance(caught.value, OutcomeUnknown):
        assert caught.value.resources == ("accounts", "ledger")
        assert (await client.coord.settle(caught.value)).aborted
    await eventually(lambda: not site.prepared(g.tx_id), within=30)
    assert site.counts(body) == (0, 0)


@pytest.mark.parametrize("state", [c.STATE_COMMITTED, c.STATE_ABORTED])
async def test_what_was_finished_by_hand_is_never_hidden(client: Client, site: Site, state: c.State) -> None:
    async with client.coord.begin() as g:
        pass
    with pytest.raises(Heuristic):
        _finish._conclude(g, c.Outcome(state=state, heuristic=True))
