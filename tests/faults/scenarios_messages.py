"""Messages that go with a local transaction, or with any other one. Who sends them and dies stays dead: nobody but its
database, and the deadline, tells what became of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from typing import Any

from tests.faults.client import Business, Client, ClientDied
from tests.faults.place import Run, TooSlow
from tests.faults.scenarios import scenario
from tests.faults.services import DECLARED
from txcoord.core.model import Decision, Tx
from txcoord.engine.live import WaitLevel
from txcoord_client import TxcoordError

Body = Callable[[Client, Any], Awaitable[None]]
_PATIENCE_S = 15.0
_LOOK_S = 0.02
_TICK_S = 0.3


def _send(client: Client, g: Any, *places: str) -> None:
    for place in places:
        step = f"m{place}"
        client.run.steps.add(step)
        g.message(DECLARED[place].told, {"gid": client.run.gid, "step": step})


async def _sent(run: Run, expected: Decision, body: Body, **options: Any) -> Decision:
    client = await Client(run).start()
    return await _ended(run, expected, client, client.transaction(body, timeout=1.5 * run.scale, **options))


async def _ended(
    run: Run, expected: Decision, client: Client, work: Coroutine[Any, Any, Decision | None]
) -> Decision:
    try:
        told = await client.live(work)
    except ClientDied:
        told = None
    except TxcoordError as error:
        raise TooSlow from error  # Its time was up before it had begun.
    if told is not None:
        if told is not expected and not run.points.fired:
            raise TooSlow
        run.told.append(told)
    if run.last is None:
        return Decision.ABORT
    row = await _decided(run, run.last)
    if row is None or row.decision is None:
        return Decision.ABORT
    if row.decision is Decision.COMMIT:
        await _delivered(run, row)
    await run.scan()
    return row.decision


async def _delivered(run: Run, tx: Tx) -> None:
    until = time.monotonic() + _PATIENCE_S * run.scale
    while True:
        seen = await run.ask(lambda c: c.wait(tx, WaitLevel.DELIVERED, _TICK_S))
        if seen.ended_us:
            return
        assert time.monotonic() < until, f"not delivered: {seen}"
        # What waits for a lazy write waits for the log's tick, as in production.
        await run.recover(lambda p: p.log.settle())


async def _decided(run: Run, tx: Tx) -> Tx | None:
    """As it stands once it is decided: by what was told, or at its deadline by whoever sees to that."""
    while True:
        row = await run.ask(lambda c: c.get(tx.tx_id))
        if row is not None and row.decision is not None:
            return row
        late = time.time_ns() // 1000 > run.windows.marker_until(tx.deadline_us)
        if late:
            await run.sweep()
        if late and row is None:
            return None
        await asyncio.sleep(_LOOK_S)


@scenario()
async def message_with_its_local_transaction(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await client.insert(g, "a")
        _send(client, g, "a", "b")

    return await _sent(run, Decision.COMMIT, body)


@scenario()
async def message_with_its_local_transaction_on_the_other(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await client.insert(g, "b")
        _send(client, g, "b")

    return await _sent(run, Decision.COMMIT, body, gid=run.gid, resources=["b"])


@scenario()
async def message_of_a_local_transaction_that_is_rolled_back(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await client.insert(g, "a")
        _send(client, g, "b")
        raise Business

    return await _sent(run, Decision.ABORT, body)


@scenario()
async def message_of_a_local_transaction_that_cannot_commit(run: Run) -> Decision:
    """Its messages are durable when its COMMIT fails."""

    async def body(client: Client, g: Any) -> None:
        await client.insert(g, "a", wrongly=True)
        _send(client, g, "b")

    return await _sent(run, Decision.ABORT, body)


@scenario()
async def message_beside_two_branches(run: Run) -> Decision:
    async def body(client: Client, g: Any) -> None:
        await client.insert(g, "a")
        await client.insert(g, "b")
        _send(client, g, "a", "b")

    return await _sent(run, Decision.COMMIT, body)


@scenario()
async def message_whose_service_is_asked(run: Run) -> Decision:
    """In a database that the coordinator need not know."""

    async def body(client: Client, tx: Any) -> None:
        _send(client, tx, "a", "b")

    client = await Client(run).start()
    return await _ended(run, Decision.COMMIT, client, client.answered("a", body))


@scenario()
async def messages_of_one_key(run: Run) -> Decision:
    """One after the other, whoever dies."""
    steps = ("m1", "m2")

    async def body(client: Client, tx: Any) -> None:
        for step in steps:
            tx.message(DECLARED["b"].told, {"gid": run.gid, "step": step}, order_key=run.gid)

    run.steps.update(steps)
    run.order += pairwise(steps)
    client = await Client(run).start()
    return await _ended(run, Decision.COMMIT, client, client.answered("a", body))


@scenario()
async def message_whose_service_on_the_other_is_asked(run: Run) -> Decision:
    async def body(client: Client, tx: Any) -> None:
        _send(client, tx, "a")

    client = await Client(run).start()
    return await _ended(run, Decision.COMMIT, client, client.answered("b", body))


@scenario()
async def message_whose_service_rolls_back(run: Run) -> Decision:
    async def body(client: Client, tx: Any) -> None:
        _send(client, tx, "b")
        raise Business

    client = await Client(run).start()
    return await _ended(run, Decision.ABORT, client, client.answered("a", body))


@scenario()
async def message_whose_service_forgets_to_submit(run: Run) -> Decision:
    """It lives, and is asked at the deadline."""

    async def body(client: Client, tx: Any) -> None:
        _send(client, tx, "b")

    client = await Client(run).start()
    return await _ended(run, Decision.COMMIT, client, client.answered("a", body, silent=True))
