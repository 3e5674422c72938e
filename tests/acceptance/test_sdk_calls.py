"""What a callee's handler may do to its call, and what the caller learns of it."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from sqlalchemy import text

from tests.support.acceptance import INSERT, Site, client_of, eventually, new_gid
from tests.support.acceptance_calls import Pair
from txcoord_client import Aborted, AlreadyAborted


@pytest.fixture
async def pair(site: Site) -> AsyncIterator[Pair]:
    async with client_of(site) as caller, client_of(site) as callee:
        pair = Pair(caller, callee)
        async with pair.stack:
            yield pair


async def test_an_exception_of_the_handler_brings_its_reason(site: Site, pair: Pair) -> None:
    """Whether another try may help hangs on it."""
    body = new_gid()
    tries = 0

    async def handler(request: bytes, context: Any) -> bytes:
        nonlocal tries
        tries += 1
        async with pair.callee.coord.xa(pair.callee.ledger) as db:
            if tries == 1:
                await db.execute(
                    text("DO $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$")
                )
            await db.execute(text(INSERT), {"body": body})
        return b""

    do = await pair.serve(handler)

    async def work() -> None:
        await do(b"")

    with pytest.raises(grpc.aio.AioRpcError):
        await pair.caller.coord.run(work, gid=body)  # The caller's own error is what it lets out.
    with pytest.raises(AlreadyAborted) as caught:
        async with pair.caller.coord.begin(gid=body):
            raise AssertionError("not reached")
    assert (caught.value.reason, caught.value.retriable) == ("DEADLOCK", True)
    await pair.caller.coord.run(work, gid=body)
    assert (site.ledger.count(body), tries) == (1, 2)


async def test_a_handler_that_sets_an_error_code_votes_no(site: Site, pair: Pair) -> None:
    body = new_gid()

    async def handler(request: bytes, context: Any) -> bytes:
        await pair.write(body)
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no such thing")
        return b""

    do = await pair.serve(handler)
    with pytest.raises(Aborted) as aborted:
        async with pair.caller.coord.begin("order") as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await do(b"")
            assert (caught.value.code(), caught.value.details()) == (
                grpc.StatusCode.NOT_FOUND,
                "no such thing",
            )
            assert site.ledger.prepared(g.tx_id) == []
    assert "no such thing" in str(aborted.value)
    assert site.counts(body) == (0, 0)


async def test_a_very_long_error_still_brings_its_vote(site: Site, pair: Pair) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        pair.callee.coord.current.set_rollback_only("NO_STOCK", "sold out " * 5_000)
        return b""

    do = await pair.serve(handler)
    with pytest.raises(Aborted) as aborted:
        async with pair.caller.coord.begin("order"):
            with pytest.raises(grpc.aio.AioRpcError):
                await do(b"")
    assert aborted.value.reason == "NO_STOCK"


async def test_a_caller_that_is_cancelled_cancels_the_call(site: Site, pair: Pair) -> None:
    body = new_gid()
    there, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: bytes, context: Any) -> bytes:
        await pair.write(body)
        there.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    do = await pair.serve(handler)

    async def order() -> None:
        async with pair.caller.coord.begin("order"):
            await do(b"")

    task = asyncio.create_task(order())
    await asyncio.wait_for(there.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 10)
    await eventually(lambda: pair.callee.ledger.pool.checkedout() == 0)  # type: ignore[attr-defined]
    assert (site.counts(body), site.prepared()) == ((0, 0), [])


async def test_a_callee_that_only_serves_learns_of_another_log(site: Site, pair: Pair) -> None:
    """Nobody but its callers tells it that its coordinator's log was replaced."""

    async def handler(request: bytes, context: Any) -> bytes:
        return pair.callee.coord.current.tx_id.encode()

    do = await pair.serve(handler)
    runtime = pair.callee.coord._runtime()
    await runtime.connect_by_default()
    hello = runtime._hello
    assert hello is not None
    true = hello.log_id
    hello.log_id = "0123456789"  # As it was told once.
    async with pair.caller.coord.begin("one") as g:
        assert (await do(b"")).decode() == g.tx_id
    assert runtime.log_id == true
