"""TCC, sagas, and mixes with XA, each service in a process that may die at any of its steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import Any

from tests.faults.client import Business, Client, ClientDied
from tests.faults.place import Run
from tests.faults.scenarios import scenario
from tests.faults.scenarios_sdk import _outcome
from tests.faults.services import DECLARED, flow
from txcoord.core.model import Decision, Tx
from txcoord_client import (
    Aborted,
    AlreadyAborted,
    AlreadyCommitted,
    InProgress,
    Refused,
    TxcoordError,
)

Body = Callable[[Client, Any], Awaitable[None]]


async def _try(client: Client, g: Any, *steps: str, **how: str) -> None:
    """Reserve: ``ta`` at service a, ``tb`` at b; all at the same time."""
    run = client.run
    run.steps.update(steps)
    calls = (g.tcc(DECLARED[step[1]].hold, gid=run.gid, step=step, how=how) for step in steps)
    await asyncio.gather(*calls)


async def _saga(client: Client, g: Any, *steps: str, **how: str) -> None:
    run = client.run
    _planned(run, steps)
    await g.saga(flow(*steps), gid=run.gid, how=how)


def _planned(run: Run, steps: tuple[str, ...]) -> None:
    run.steps.update(steps)
    run.order = list(pairwise(steps))


# ---- TCC ----


async def _two_tries(client: Client, g: Any) -> None:
    await _try(client, g, "ta", "tb")


@scenario()
async def tcc_commit(run: Run) -> Decision:
    return await _outcome(run, Decision.COMMIT, _two_tries, gid=run.gid)


@scenario()
async def tcc_confirm_later(run: Run) -> Decision:
    """It waits for its next attempt in the queue."""

    async def body(client: Client, g: Any) -> None:
        await _try(client, g, "ta", "tb", tb="confirm later")

    return await _outcome(run, Decision.COMMIT, body, gid=run.gid)


@scenario()
async def tcc_commit_without_gid(run: Run) -> Decision:
    return await _outcome(run, Decision.COMMIT, _two_tries)


@scenario()
async def tcc_rollback(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await _two_tries(client, g)
        raise Business

    return await _outcome(run, Decision.ABORT, body, gid=run.gid)


@scenario()
async def tcc_second_says_no(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await _try(client, g, "ta")
        await _refused(_try(client, g, "tb", tb="no"))

    return await _outcome(run, Decision.ABORT, body, gid=run.gid)


async def _refused(work: Awaitable[None]) -> None:
    try:
        await work
    except Refused:
        raise Business from None


@scenario()
async def tcc_in_a_called_service(run: Run) -> Decision:
    """The service that is called reserves, and works in its own database."""
    service = await Client(run).start()

    async def body(client: Client, g: Any) -> None:
        await _try(client, g, "ta")
        await client.call_service(service)

    service.also = partial(_try_as_called, service)
    return await _outcome(run, Decision.COMMIT, body, gid=run.gid)


async def _try_as_called(service: Client) -> None:
    await _try(service, service.coordinator.current, "tb")


# ---- sagas inside a transaction ----


@scenario()
async def saga_inside(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await _saga(client, g, "a1", "b1")

    return await _outcome(run, Decision.COMMIT, body, gid=run.gid)


@scenario()
async def saga_inside_rolled_back(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await _saga(client, g, "a1", "b1", "a2")
        raise Business

    return await _outcome(run, Decision.ABORT, body, gid=run.gid)


@scenario()
async def saga_inside_says_no(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await _refused(_saga(client, g, "a1", "b1", b1="no"))

    return await _outcome(run, Decision.ABORT, body, gid=run.gid)


# ---- mixes ----


async def _all_kinds(client: Client, g: Any) -> None:
    await client.insert(g, "a")
    await _try(client, g, "ta", "tb")
    await _saga(client, g, "a1", "b1")
    await client.insert(g, "b")


@scenario()
async def mixed_commit(run: Run) -> Decision:
    return await _outcome(run, Decision.COMMIT, _all_kinds, gid=run.gid)


@scenario()
async def mixed_rollback(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await _all_kinds(client, g)
        raise Business

    return await _outcome(run, Decision.ABORT, body, gid=run.gid)


@scenario()
async def mixed_with_a_branch_that_cannot_prepare(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await _try(client, g, "tb")
        await client.insert(g, "a", wrongly=True)

    return await _outcome(run, Decision.ABORT, body, gid=run.gid)


@scenario()
async def mixed_try_and_one_database(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await client.insert(g, "a")
        await _try(client, g, "tb")

    return await _outcome(run, Decision.COMMIT, body, gid=run.gid)


# ---- sagas that the coordinator runs ----


async def _submitted(run: Run, expected: Decision, plan: Any, how: dict[str, str]) -> Decision:
    """Hand it over under the run's gid, and wait; whoever dies asks again under that gid in the next life."""
    while True:
        client = await Client(run).start()
        try:
            told = await client.live(_run_of(client, plan, how))
        except ClientDied:
            continue
        run.told.append(told)
        assert told is expected, f"told {told}"
        return told


async def _run_of(client: Client, plan: Any, how: dict[str, str]) -> Decision:
    run = client.run
    while True:
        try:
            handed = await client.coordinator.submit(plan, gid=run.gid, data={"gid": run.gid, "how": how})
        except AlreadyCommitted as error:
            _last(run, error.tx_id)
            return Decision.COMMIT
        except AlreadyAborted as error:
            _last(run, error.tx_id)
            return Decision.ABORT
        except InProgress as error:
            _last(run, error.tx_id)
            await asyncio.sleep(0.02)
            continue
        except TxcoordError as error:
            if error.definite:
                raise
            continue
        try:
            outcome = await handed.wait(timeout=30.0 * run.scale)
        except Aborted:
            return Decision.ABORT
        assert outcome.committed, outcome
        return Decision.COMMIT


def _last(run: Run, tx_id: str) -> None:
    """It was begun in an earlier life."""
    deadline_us = run.last.deadline_us if run.last is not None else 0
    run.last = Tx(tx_id, "shop", deadline_us, run.gid)


@scenario()
async def saga_commit(run: Run) -> Decision:
    _planned(run, ("a1", "b1", "a2"))
    return await _submitted(run, Decision.COMMIT, flow("a1", "b1", "a2"), {})


@scenario()
async def saga_compensated(run: Run) -> Decision:
    _planned(run, ("a1", "b1", "a2"))
    return await _submitted(run, Decision.ABORT, flow("a1", "b1", "a2"), {"a2": "no"})


@scenario()
async def saga_side_by_side(run: Run) -> Decision:
    run.steps.update(("a1", "b1", "b2"))
    return await _submitted(run, Decision.ABORT, flow("a1", "b1", "b2", together=True), {"b2": "no"})


@scenario()
async def saga_forward(run: Run) -> Decision:
    """Its last step is never undone, and not ready at first."""
    _planned(run, ("a1", "b3"))
    return await _submitted(run, Decision.COMMIT, flow("a1", forward="b3"), {"b3": "once later"})


@scenario()
async def saga_pending(run: Run) -> Decision:
    _planned(run, ("a1", "b1"))
    return await _submitted(run, Decision.COMMIT, flow("a1", "b1"), {"a1": "once later", "b1": "once later"})


@scenario()
async def saga_of_a_node_that_is_gone(run: Run) -> Decision:
    """Another node takes the plan over once the lease has run out, and runs it to its end."""
    run.lease_us = round(300_000 * run.scale)
    _planned(run, ("a1", "b1"))
    plan, how = flow("a1", "b1"), {"b1": "once later"}
    client = await Client(run).start()
    data = {"gid": run.gid, "how": how}
    with contextlib.suppress(ClientDied, TxcoordError):  # It is asked for again.
        await client.live(client.coordinator.submit(plan, gid=run.gid, data=data))
    run.lose_node("n2")
    await asyncio.sleep(run.lease_us / 1e6)
    await run.take_over()
    return await _submitted(run, Decision.COMMIT, plan, how)
