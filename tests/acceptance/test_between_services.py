"""A branch of another process: enlisted by the call that made it, its vote rides back on the reply."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from sqlalchemy import text

from tests.support.acceptance import INSERT, Site, client_of, eventually, new_gid, service
from tests.support.acceptance_calls import Pair, serving
from txcoord.testing.processes import Managed, free_port
from txcoord_client import Aborted
from txcoord_client._pb import common_pb2 as c


@pytest.fixture
async def pair(site: Site) -> AsyncIterator[Pair]:
    async with client_of(site) as caller, client_of(site) as callee:
        pair = Pair(caller, callee)
        async with pair.stack:
            yield pair


@pytest.fixture
def process(site: Site) -> Iterator[Managed]:
    """A service in a process of its own."""
    managed = service(site, port=free_port())
    managed.start()
    yield managed
    managed.stop()


async def undone(site: Site, body: str, tx_id: str) -> None:
    """Nothing of it is there, and nothing is left prepared: at the latest after its deadline and grace."""
    await eventually(lambda: not site.prepared(tx_id))
    assert site.counts(body) == (0, 0)


# ---- all goes well ----


async def test_the_branch_of_another_process_is_committed_with_the_whole(
    site: Site, pair: Pair, process: Managed
) -> None:
    body = new_gid()
    write = await pair.stub(process.address, "Write")
    async with pair.caller.coord.begin("order", gid=body) as g:
        await pair.caller.write(g, pair.caller.accounts, body)
        call = write(json.dumps({"to": ["ledger"], "body": body}).encode())
        assert json.loads(await call) == {"branch": g.tx_id}
        # Prepared when the handler ended, under a number below the call's.
        [xid] = site.ledger.prepared(g.tx_id)
        assert xid.endswith(f"{g.tx_id}.2.1")
        # What the handler itself had to say came along.
        assert ("served-by", "notes") in [(k, v) for k, v in await call.trailing_metadata()]
    assert g.outcome is not None
    assert (g.outcome.state, site.counts(body)) == ("COMMITTED", (1, 1))
    shown = json.loads(site.txcoord("tx", "show", body, "--json"))
    assert [(b["branch"], b["resource"], b["state"]) for b in shown["branches"]] == [
        ("1", "accounts", "DONE"),
        ("2.1", "ledger", "DONE"),
    ]


async def test_the_callee_alone_writes(site: Site, pair: Pair) -> None:
    """One branch, but not the initiator's own: it is committed in two phases."""
    body = new_gid()

    async def handler(request: bytes, context: Any) -> bytes:
        await pair.write(body)
        return b""

    do = await pair.serve(handler)
    async with pair.caller.coord.begin("order") as g:
        await do(b"")
        await do(b"")  # Another call is another branch.
    assert site.counts(body) == (0, 2)
    assert site.ledger.sql(f"SELECT branch, op FROM txcoord_marker WHERE tx_id = '{g.tx_id}' ORDER BY 1") == (
        "1.1|xa\n2.1|xa"
    )


async def test_nested_calls_are_one_transaction(site: Site, pair: Pair) -> None:
    """caller -> callee (1) -> a third (1.2) -> its database (1.2.1)."""
    body = new_gid()
    async with client_of(site) as third:

        async def last(request: bytes, context: Any) -> bytes:
            async with third.coord.xa(third.accounts) as db:
                await db.execute(text(INSERT), {"body": body})
            return b""

        address = await pair.stack.enter_async_context(
            serving({"Do": last}, third.coord.server_interceptor())
        )
        onward = await pair.stack.enter_async_context(
            grpc.aio.insecure_channel(address, interceptors=pair.callee.coord.client_interceptors())
        )

        async def middle(request: bytes, context: Any) -> bytes:
            await pair.write(body)
            await onward.unary_unary("/Notes/Do")(b"")
            return b""

        do = await pair.serve(middle)
        async with pair.caller.coord.begin("order", gid=body):
            await do(b"")
    assert site.counts(body) == (1, 1)
    shown = json.loads(site.txcoord("tx", "show", body, "--json"))
    assert [b["branch"] for b in shown["branches"]] == ["1.1", "1.2.1"]


async def test_a_read_only_callee_votes_and_drops_out(site: Site, pair: Pair) -> None:
    body = new_gid()

    async def handler(request: bytes, context: Any) -> bytes:
        async with pair.callee.coord.xa(pair.callee.ledger) as db:
            return str((await db.execute(text("SELECT count(*) FROM note"))).scalar()).encode()

    async def nothing(request: bytes, context: Any) -> bytes:
        return b"pong"

    do, ping = await pair.serve(handler), await pair.serve(nothing)
    async with pair.caller.coord.begin("order") as g:
        await pair.caller.write(g, pair.caller.accounts, body)
        assert int(await do(b"")) >= 0
        assert await ping(b"") == b"pong"
        assert not site.ledger.prepared(g.tx_id)
    assert site.counts(body) == (1, 0)
    async with pair.caller.coord.begin("order") as g:
        await do(b"")
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert await pair.caller.coord.get(tx_id=g.tx_id) is None, (
        "nothing was written anywhere: nobody was asked"
    )


async def test_the_handler_knows_the_transaction_and_may_not_end_it(site: Site, pair: Pair) -> None:
    body = new_gid()
    seen: dict[str, Any] = {}

    async def handler(request: bytes, context: Any) -> bytes:
        g = pair.callee.coord.current
        seen.update(tx_id=g.tx_id, gid=g.gid, deadline_us=g.deadline_us, headers=g.headers, mine=g.initiator)
        context.set_trailing_metadata((("price", "12"),))
        async with pair.callee.coord.begin("inner") as inner:  # joins
            assert inner is g
            await pair.write(body)
        return b""

    do = await pair.serve(handler)
    async with pair.caller.coord.begin("order", gid=body, headers={"tenant": "a"}) as g:
        call = do(b"", metadata=(("caller", "me"),))
        await call
        assert ("price", "12") in [(k, v) for k, v in await call.trailing_metadata()]
    assert seen == {
        "tx_id": g.tx_id,
        "gid": body,
        "deadline_us": g.deadline_us,
        "headers": {"tenant": "a"},
        "mine": False,
    }
    assert site.counts(body) == (0, 1)


async def test_a_call_outside_of_a_transaction_is_a_plain_call(site: Site, pair: Pair) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        assert pair.callee.coord.current_or_none() is None
        return b"plain"

    do = await pair.serve(handler)
    assert await do(b"") == b"plain"
    body = new_gid()
    async with pair.caller.coord.begin("order") as g:
        await pair.caller.write(g, pair.caller.accounts, body)
        with pair.caller.coord.outside():
            assert await do(b"") == b"plain"
    assert site.counts(body) == (1, 0)


# ---- no yes: the caller aborts, all is undone ----


async def test_an_exception_of_the_handler_aborts_even_if_the_caller_swallows_it(
    site: Site, pair: Pair
) -> None:
    body = new_gid()

    async def handler(request: bytes, context: Any) -> bytes:
        await pair.write(body)
        raise RuntimeError("no more seats")

    do = await pair.serve(handler)
    with pytest.raises(Aborted) as caught:
        async with pair.caller.coord.begin("order") as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            with pytest.raises(grpc.aio.AioRpcError):
                await do(b"")
    assert caught.value.reason == "VOTE_MISSING"
    await undone(site, body, g.tx_id)


@pytest.mark.parametrize("code", ["FAILED_PRECONDITION", "UNAVAILABLE"])
async def test_an_error_reply_aborts_and_the_callers_own_handling_sees_it(
    site: Site, pair: Pair, code: str
) -> None:
    body = new_gid()

    async def handler(request: bytes, context: Any) -> bytes:
        await pair.write(body)
        await context.abort(grpc.StatusCode[code], "sold out")
        raise AssertionError

    do = await pair.serve(handler)
    with pytest.raises(grpc.aio.AioRpcError, match="sold out") as caught:
        async with pair.caller.coord.begin("order") as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            await do(b"")
    assert caught.value.code() is grpc.StatusCode[code]
    await undone(site, body, g.tx_id)


async def test_a_reply_without_a_vote_aborts(site: Site, pair: Pair) -> None:
    """A service that does not take part: nobody knows what it did, or whether it had work to undo."""
    body = new_gid()

    async def handler(request: bytes, context: Any) -> bytes:
        return b"done"

    do = await pair.stub(await pair.stack.enter_async_context(serving({"Do": handler})))
    with pytest.raises(Aborted, match="without a vote") as caught:
        async with pair.caller.coord.begin("order") as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            assert await do(b"") == b"done"
    assert caught.value.reason == "VOTE_MISSING"
    await undone(site, body, g.tx_id)


async def test_a_lost_reply_aborts_and_what_was_prepared_there_is_undone(
    site: Site, pair: Pair, process: Managed
) -> None:
    """The callee is killed once it has prepared, before its reply."""
    body = new_gid()
    write = await pair.stub(process.address, "Write")
    with pytest.raises(Aborted) as caught:
        async with pair.caller.coord.begin("order", timeout=3) as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            with pytest.raises(grpc.aio.AioRpcError):
                await write(json.dumps({"to": ["ledger"], "body": body, "die": "vote"}).encode())
            assert len(site.ledger.prepared(g.tx_id)) == 1
    assert caught.value.reason == "VOTE_MISSING"
    await undone(site, body, g.tx_id)


async def test_a_callee_that_dies_in_the_handler_aborts(site: Site, pair: Pair, process: Managed) -> None:
    body = new_gid()
    write = await pair.stub(process.address, "Write")
    with pytest.raises(grpc.aio.AioRpcError):
        async with pair.caller.coord.begin("order") as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            await write(json.dumps({"to": ["ledger"], "body": body, "die": "handler"}).encode())
    await undone(site, body, g.tx_id)


async def test_a_call_that_is_still_under_way_at_the_end_aborts(site: Site, pair: Pair) -> None:
    body = new_gid()
    go, inside = asyncio.Event(), asyncio.Event()

    async def handler(request: bytes, context: Any) -> bytes:
        await pair.write(body)
        inside.set()
        await go.wait()
        return b""

    do = await pair.serve(handler)
    with pytest.raises(Aborted, match="has not voted") as caught:
        async with pair.caller.coord.begin("order", timeout=4) as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            call = asyncio.ensure_future(_await(do(b"")))
            await inside.wait()
    assert caught.value.reason == "VOTE_MISSING"
    go.set()
    await asyncio.gather(call, return_exceptions=True)
    await undone(site, body, g.tx_id)


async def _await(call: Any) -> Any:
    return await call


async def test_prepare_that_fails_at_the_callee_replaces_its_reply(site: Site, pair: Pair) -> None:
    body = new_gid()

    async def handler(request: bytes, context: Any) -> bytes:
        await pair.write(body)
        async with pair.callee.coord.xa(pair.callee.ledger) as db:
            await db.execute(text("CREATE TEMPORARY TABLE basket (i int)"))  # cannot be prepared
        return b"all well"

    do = await pair.serve(handler)
    with pytest.raises(Aborted) as caught:
        async with pair.caller.coord.begin("order") as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            with pytest.raises(grpc.aio.AioRpcError, match="PREPARE_NOT_POSSIBLE") as reply:
                await do(b"")
            assert reply.value.code() is grpc.StatusCode.ABORTED
    assert caught.value.reason == "PREPARE_NOT_POSSIBLE"
    await undone(site, body, g.tx_id)


async def test_a_handler_that_dooms_it_is_heard(site: Site, pair: Pair) -> None:
    body = new_gid()

    async def handler(request: bytes, context: Any) -> bytes:
        await pair.write(body)
        pair.callee.coord.current.set_rollback_only("SOLD_OUT", "no seats")
        return b"sorry"

    do = await pair.serve(handler)
    with pytest.raises(Aborted) as caught:
        async with pair.caller.coord.begin("order", gid=body) as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            with pytest.raises(grpc.aio.AioRpcError, match="SOLD_OUT: no seats"):
                await do(b"")
    assert caught.value.reason == "SOLD_OUT", "the callee's reason, not only that a vote is missing"
    await undone(site, body, g.tx_id)


async def test_a_retried_call_is_refused_by_the_marker(site: Site, pair: Pair) -> None:
    """A transport that sends a call again sends the same number again: it must not be done twice."""
    body = new_gid()
    contexts: list[Any] = []

    async def handler(request: bytes, context: Any) -> bytes:
        contexts.append(dict(context.invocation_metadata())["txcoord-context-bin"])
        await pair.write(body)
        return b""

    address = await pair.stack.enter_async_context(
        serving({"Do": handler}, pair.callee.coord.server_interceptor())
    )
    do = await pair.stub(address)
    async with pair.caller.coord.begin("order") as g:
        await do(b"")
    assert site.counts(body) == (0, 1)
    async with grpc.aio.insecure_channel(address) as transport:
        again = transport.unary_unary("/Notes/Do")(b"", metadata=(("txcoord-context-bin", contexts[0]),))
        with pytest.raises(grpc.aio.AioRpcError, match="DECIDED"):
            await again
    await eventually(lambda: not site.prepared(g.tx_id))
    assert site.counts(body) == (0, 1)


async def test_a_call_retried_while_the_first_is_prepared_is_refused(site: Site, pair: Pair) -> None:
    """The marker's key is locked by the first one: the second waits for it no longer than its lock_timeout."""
    body = new_gid()
    contexts: list[Any] = []

    async def handler(request: bytes, context: Any) -> bytes:
        contexts.append(dict(context.invocation_metadata())["txcoord-context-bin"])
        async with pair.callee.coord.xa(pair.callee.ledger) as db:
            await db.execute(text("SET LOCAL lock_timeout = '200ms'"))
            await db.execute(text(INSERT), {"body": body})
        return b""

    address = await pair.stack.enter_async_context(
        serving({"Do": handler}, pair.callee.coord.server_interceptor())
    )
    do = await pair.stub(address)
    async with pair.caller.coord.begin("order") as g, grpc.aio.insecure_channel(address) as transport:
        await do(b"")
        with pytest.raises(grpc.aio.AioRpcError, match="DECIDED"):
            await transport.unary_unary("/Notes/Do")(b"", metadata=(("txcoord-context-bin", contexts[0]),))
    assert site.counts(body) == (0, 1)
    assert not site.prepared(g.tx_id)


# ---- what cannot carry a transaction ----


@pytest.mark.parametrize("kind", ["unary_stream", "stream_unary", "stream_stream"])
async def test_streaming_calls_with_a_transaction_are_refused(site: Site, pair: Pair, kind: str) -> None:
    body = new_gid()
    ran: list[str] = []

    async def unary(request: Any, context: Any) -> bytes:
        ran.append(kind)
        return b""

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        ran.append(kind)
        yield b""

    handler = getattr(grpc, f"{kind}_rpc_method_handler")(stream if kind.endswith("stream") else unary)

    async def plain(request: bytes, context: Any) -> bytes:
        return b""

    address = await pair.stack.enter_async_context(
        serving({"Do": plain}, pair.callee.coord.server_interceptor(), streams={"Stream": handler})
    )
    context = c.CallContext(tx_id="0" * 32, branch="1", namespace="default").SerializeToString()
    async with grpc.aio.insecure_channel(address) as channel:
        call = getattr(channel, kind)("/Notes/Stream")
        argument = iter([b""]) if kind.startswith("stream") else b""
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_SUPPORTED: only unary calls") as caught:
            reply = call(argument, metadata=(("txcoord-context-bin", context),))
            if kind.endswith("stream"):
                async for _ in reply:
                    pass
            else:
                await reply
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert not ran
    # Without a transaction they work as ever.
    async with grpc.aio.insecure_channel(
        address, interceptors=pair.caller.coord.client_interceptors()
    ) as channel:
        reply = getattr(channel, kind)("/Notes/Stream")(argument)
        _ = [part async for part in reply] if kind.endswith("stream") else await reply
    assert ran == [kind]
    assert site.counts(body) == (0, 0)


async def test_a_stream_of_the_caller_inside_a_transaction_is_refused(site: Site, pair: Pair) -> None:
    """It would go without the transaction, silently, on a channel that was made to carry it."""

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"local"

    async def plain(request: bytes, context: Any) -> bytes:
        return b""

    handler = grpc.unary_stream_rpc_method_handler(stream)
    address = await pair.stack.enter_async_context(
        serving({"Do": plain}, pair.callee.coord.server_interceptor(), streams={"Stream": handler})
    )
    async with (
        grpc.aio.insecure_channel(address, interceptors=pair.caller.coord.client_interceptors()) as channel,
        pair.caller.coord.begin("order"),
    ):
        with pytest.raises(Exception, match="NOT_SUPPORTED"):
            async for _ in channel.unary_stream("/Notes/Stream")(b""):
                pass


async def test_contexts_that_make_no_sense_are_refused(site: Site, pair: Pair) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        pytest.fail("it ran")

    address = await pair.stack.enter_async_context(
        serving({"Do": handler}, pair.callee.coord.server_interceptor())
    )
    async with pair.caller.coord.begin("order") as g, grpc.aio.insecure_channel(address) as channel:
        good = g._call_sent("by hand")
        g._outstanding.clear()
        for change, match in (
            ({"tx_id": "x"}, "BAD_REQUEST"),
            ({"branch": "one"}, "BAD_REQUEST"),
            ({"namespace": "other"}, "BAD_NAMESPACE"),
            ({"log_id": "0123456789"}, "BAD_XID"),
        ):
            bad = c.CallContext()
            bad.CopyFrom(good)
            for name, value in change.items():
                setattr(bad, name, value)
            with pytest.raises(grpc.aio.AioRpcError, match=match):
                await channel.unary_unary("/Notes/Do")(
                    b"", metadata=(("txcoord-context-bin", bad.SerializeToString()),)
                )
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be read"):
            await channel.unary_unary("/Notes/Do")(b"", metadata=(("txcoord-context-bin", b"\xff\xff"),))


async def test_a_service_that_cannot_take_part_says_why(site: Site, pair: Pair) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        pytest.fail("it ran")

    do = await pair.serve(handler)
    with pytest.raises(Aborted) as caught:
        async with pair.caller.coord.begin("order") as g:
            g._log_id = "0123456789"
            with pytest.raises(grpc.aio.AioRpcError, match="BAD_XID"):
                await do(b"")
    assert caught.value.reason == "BAD_XID", "the callee's own reason, not only that a vote is missing"
