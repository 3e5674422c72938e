"""What services do with the SDK, each in a process of its own that may die at any of its steps.

Where it dies, its next life asks what became of the transaction (``settle``), unless the scenario says that nobody
does: then the deadline and the scan have to end it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tests.faults.client import Business, Client, ClientDied
from tests.faults.place import Run, TooSlow
from tests.faults.scenarios import scenario
from txcoord.core.model import Decision
from txcoord_client import TxcoordError

Body = Callable[[Client, Any], Awaitable[None]]


async def _outcome(run: Run, expected: Decision, body: Body, **options: Any) -> Decision:
    """One transaction of a service."""
    client = await Client(run).start()
    try:
        told = await client.live(client.transaction(body, **options))
    except ClientDied:
        told = None
    return await _known(run, expected, told)


async def _known(run: Run, expected: Decision, told: Decision | None) -> Decision:
    if told is None:
        told = await _settled(run)
    run.told.append(told)
    # What goes wrong at a coordinator changes no outcome. What goes wrong in the service does, but never to a commit
    # of what was to be rolled back.
    if not run.points.fired_at("client") or expected is Decision.ABORT:
        assert told is expected, f"told {told}"
    await _ended(run)
    return told


async def _settled(run: Run) -> Decision:
    """The next life asks; it may die, too."""
    while True:
        client = await Client(run).start()
        if run.last is None:
            return Decision.ABORT  # It has died before it had begun anything.
        try:
            return await client.live(client.settle(run.last))
        except ClientDied:
            continue


async def _ended(run: Run) -> None:
    """What was left behind is ended by those who are still there."""
    if run.points.fired:
        await run.recover(lambda p: p.log.settle())
        await run.scan()


async def _both(client: Client, g: Any) -> None:
    await client.insert(g, "a")
    await client.insert(g, "b")


async def _first(client: Client, g: Any) -> None:
    await client.insert(g, "a")


async def _second(client: Client, g: Any) -> None:
    await client.insert(g, "b")


async def _both_and_no(client: Client, g: Any) -> None:
    await _both(client, g)
    raise Business


async def _one_cannot_prepare(client: Client, g: Any) -> None:
    await client.insert(g, "a", wrongly=True)
    await client.insert(g, "b")


async def _with_service(service: Client, client: Client, g: Any) -> None:
    await client.insert(g, "a")
    await client.call_service(service)


@scenario()
async def sdk_commit_with_gid(run: Run) -> Decision:
    return await _outcome(run, Decision.COMMIT, _both, gid=run.gid)


@scenario()
async def sdk_commit_without_gid(run: Run) -> Decision:
    return await _outcome(run, Decision.COMMIT, _both)


@scenario()
async def sdk_one_phase_with_gid(run: Run) -> Decision:
    return await _outcome(run, Decision.COMMIT, _first, gid=run.gid, resources=["a"])


@scenario()
async def sdk_one_phase_without_gid(run: Run) -> Decision:
    return await _outcome(run, Decision.COMMIT, _second)


@scenario()
async def sdk_rollback(run: Run) -> Decision:
    return await _outcome(run, Decision.ABORT, _both_and_no, gid=run.gid)


@scenario()
async def sdk_branch_that_cannot_prepare(run: Run) -> Decision:
    """The other one is prepared, and is undone: on MariaDB by its own session."""
    return await _outcome(run, Decision.ABORT, _one_cannot_prepare, gid=run.gid)


@scenario()
async def sdk_called_service(run: Run) -> Decision:
    """A branch in another service, which votes with its reply; on MariaDB its session waits for the decision."""
    service = await Client(run).start()
    return await _outcome(run, Decision.COMMIT, partial(_with_service, service), gid=run.gid)


@scenario()
async def sdk_called_service_in_vain(run: Run) -> Decision:
    """The caller changes its mind: what the service has prepared is undone, on MariaDB by its own session."""
    service = await Client(run).start()

    async def body(client: Client, g: Any) -> None:
        await _with_service(service, client, g)
        raise Business

    return await _outcome(run, Decision.ABORT, body, gid=run.gid)


@scenario(actors=("client",))
async def sdk_nobody_comes_back(run: Run) -> Decision:
    """Who dies stays dead. The deadline aborts what is in the log, the scan what is not."""
    client = await Client(run).start()
    try:
        told = await client.live(client.transaction(_both, timeout=0.8 * run.scale))
    except ClientDied:
        told = None
    except TxcoordError as error:
        raise TooSlow from error  # Its time was up before it had begun.
    if told is not None:
        if told is Decision.ABORT and not run.points.fired:
            raise TooSlow
        run.told.append(told)
        return told
    tx = run.last
    assert tx is not None
    await run.past(run.windows.marker_until(tx.deadline_us))
    while await run.prepared():
        await run.scan()
        await asyncio.sleep(0.02)
    row = await run.ask(lambda c: c.get(tx.tx_id))
    return Decision.ABORT if row is None or row.decision is None else row.decision
