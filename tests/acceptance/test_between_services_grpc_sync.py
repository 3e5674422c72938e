"""The transaction over gRPC with threads: as test_between_services.py has it for grpc.aio."""

# ruff: noqa: PT012, SIM117 - what raises is the end of a whole transaction

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from sqlalchemy import text

from tests.support.acceptance import INSERT, Site, client_of, new_gid
from tests.support.acceptance_sync import Pair, soon, sync_client, sync_pair
from txcoord_client import Aborted, Rejected


@pytest.fixture
def pair(site: Site) -> Iterator[Pair]:
    with sync_pair(site) as pair:
        yield pair


def undone(site: Site, body: str, tx_id: str) -> None:
    soon(lambda: not site.prepared(tx_id))
    assert site.counts(body) == (0, 0)


def test_the_branch_of_a_called_service_is_committed_with_the_whole(site: Site, pair: Pair) -> None:
    body = new_gid()

    def handler(request: bytes, context: Any) -> bytes:
        assert not pair.callee.coord.current.initiator
        context.set_trailing_metadata((("price", "12"),))
        pair.write(body)
        return request

    do = pair.stub(pair.grpc(handler))
    with pair.caller.coord.begin("order", gid=body) as g:
        pair.caller.write(g, pair.caller.accounts, body)
        reply, call = do.with_call(b"x", metadata=(("caller", "me"),))
        assert reply == b"x"
        assert ("price", "12") in [(k, v) for k, v in call.trailing_metadata()], (
            "what the handler said is kept"
        )
        assert call.code() is grpc.StatusCode.OK
        [xid] = site.ledger.prepared(g.tx_id)
        assert xid.endswith(f"{g.tx_id}.2.1")
    assert site.counts(body) == (1, 1)


def test_a_chain_is_one_transaction(site: Site, pair: Pair) -> None:
    body = new_gid()
    with sync_client(site) as third:

        def last(request: bytes, context: Any) -> bytes:
            with third.coord.xa(third.accounts) as db:
                db.execute(text(INSERT), {"body": body})
            return b"last"

        onward = pair.stub(pair.grpc(last, third), pair.callee)

        def middle(request: bytes, context: Any) -> bytes:
            pair.write(body)
            return bytes(onward(b""))

        do = pair.stub(pair.grpc(middle))
        with pair.caller.coord.begin("order", gid=body):
            assert do(b"") == b"last"
    assert site.counts(body) == (1, 1)
    shown = json.loads(site.txcoord("tx", "show", body, "--json"))
    assert [b["branch"] for b in shown["branches"]] == ["1.1", "1.2.1"]


async def test_asyncio_calls_threads(site: Site, pair: Pair) -> None:
    body = new_gid()

    def handler(request: bytes, context: Any) -> bytes:
        pair.write(body)
        return b""

    address = pair.grpc(handler)
    async with (
        client_of(site) as caller,
        grpc.aio.insecure_channel(address, interceptors=caller.coord.client_interceptors()) as channel,
    ):
        async with caller.coord.begin("order"):
            await channel.unary_unary("/Notes/Do")(b"")
    assert site.counts(body) == (0, 1)


def test_futures_side_by_side_have_voted_once_they_are_done(site: Site, pair: Pair) -> None:
    body = new_gid()

    def handler(request: bytes, context: Any) -> bytes:
        pair.write(body)
        return b""

    do = pair.stub(pair.grpc(handler))
    seen: list[bool] = []
    for _ in range(5):
        with pair.caller.coord.begin("order") as g:
            calls = [do.future(b"") for _ in range(4)]
            calls[0].add_done_callback(lambda call: seen.append(call.done()))
            for call in calls:
                call.result()
            assert not g._outstanding
            assert all(call.done() and call.exception() is None for call in calls)
        assert g.outcome is not None
        assert g.outcome.state == "COMMITTED"
    soon(lambda: seen == [True] * 5)
    assert site.counts(body) == (0, 20)


def test_a_future_that_nobody_waited_for_aborts(site: Site, pair: Pair) -> None:
    body = new_gid()
    go, inside = threading.Event(), threading.Event()

    def handler(request: bytes, context: Any) -> bytes:
        pair.write(body)
        inside.set()
        go.wait(20)
        return b""

    do = pair.stub(pair.grpc(handler))
    with pytest.raises(Aborted, match="has not voted"):
        with pair.caller.coord.begin("order", timeout=4) as g:
            call = do.future(b"")
            inside.wait(20)
    go.set()
    call.exception()
    undone(site, body, g.tx_id)


def test_an_exception_aborts_even_if_the_caller_swallows_it(site: Site, pair: Pair) -> None:
    body = new_gid()

    def handler(request: bytes, context: Any) -> bytes:
        pair.write(body)
        raise RuntimeError("no more seats")

    do = pair.stub(pair.grpc(handler))
    with pytest.raises(Aborted) as caught:
        with pair.caller.coord.begin("order") as g:
            pair.caller.write(g, pair.caller.accounts, body)
            with pytest.raises(grpc.RpcError, match="no more seats"):
                do(b"")
    assert caught.value.reason == "VOTE_MISSING"
    undone(site, body, g.tx_id)


@pytest.mark.parametrize("how", ["abort", "set_code"])
def test_an_error_reply_aborts(site: Site, pair: Pair, how: str) -> None:
    body = new_gid()

    def handler(request: bytes, context: Any) -> bytes:
        pair.write(body)
        if how == "abort":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "sold out")
        context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
        context.set_details("sold out")
        return b""

    do = pair.stub(pair.grpc(handler))
    with pytest.raises(grpc.RpcError, match="sold out"):
        with pair.caller.coord.begin("order") as g:
            do(b"")
    undone(site, body, g.tx_id)


def test_what_cannot_be_prepared_and_what_is_doomed_replace_the_reply(site: Site, pair: Pair) -> None:
    body = new_gid()

    def temporary(request: bytes, context: Any) -> bytes:
        with pair.callee.coord.xa(pair.callee.ledger) as db:
            db.execute(text("CREATE TEMPORARY TABLE basket (i int)"))
            db.execute(text(INSERT), {"body": body})
        return b"all well"

    def doomed(request: bytes, context: Any) -> bytes:
        pair.write(body)
        pair.callee.coord.current.set_rollback_only("SOLD_OUT", "no seats")
        return b"sorry"

    for handler, reason in ((temporary, "PREPARE_NOT_POSSIBLE"), (doomed, "SOLD_OUT")):
        do = pair.stub(pair.grpc(handler))
        with pytest.raises(Aborted) as caught:
            with pair.caller.coord.begin("order") as g:
                with pytest.raises(grpc.RpcError, match=reason) as reply:
                    do(b"")
                assert reply.value.code() is grpc.StatusCode.ABORTED
        assert caught.value.reason == reason
        undone(site, body, g.tx_id)


def test_a_service_that_takes_no_part_and_one_that_is_not_there_abort(site: Site, pair: Pair) -> None:
    plain = pair.grpc_methods({"Do": grpc.unary_unary_rpc_method_handler(lambda request, context: b"done")})
    with pytest.raises(Aborted, match="without a vote"), pair.caller.coord.begin("order"):
        assert pair.stub(plain)(b"") == b"done"
    with pytest.raises(Aborted, match="UNAVAILABLE"), pair.caller.coord.begin("order"):
        with pytest.raises(grpc.RpcError):
            pair.stub("127.0.0.1:1")(b"")


def test_a_reply_beyond_the_deadline_aborts(site: Site, pair: Pair) -> None:
    body = new_gid()
    go = threading.Event()

    def handler(request: bytes, context: Any) -> bytes:
        pair.write(body)
        go.wait(20)
        return b"late"

    do = pair.stub(pair.grpc(handler))
    with pytest.raises(Aborted), pair.caller.coord.begin("order", timeout=1) as g:
        with pytest.raises(grpc.RpcError) as caught:
            do(b"")
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    go.set()
    undone(site, body, g.tx_id)


def test_streams_are_refused_on_both_sides(site: Site, pair: Pair) -> None:
    ran: list[str] = []

    def stream(request: Any, context: Any) -> Iterator[bytes]:
        ran.append("stream")
        yield b""

    address = pair.grpc_methods(
        {"Stream": grpc.unary_stream_rpc_method_handler(stream)}, pair.callee.coord.server_interceptor()
    )
    call = pair.channel(address).unary_stream("/Notes/Stream")
    assert list(call(b"")) == [b""], "without a transaction they work as ever"
    with pair.caller.coord.begin("order") as g:
        with pytest.raises(Rejected, match="streaming call"):
            list(call(b""))
        context = g._call_sent("by hand").SerializeToString()
        g._outstanding.clear()
        with grpc.insecure_channel(address) as bare, pytest.raises(grpc.RpcError, match="NOT_SUPPORTED"):
            list(bare.unary_stream("/Notes/Stream")(b"", metadata=(("txcoord-context-bin", context),)))
    assert ran == ["stream"]


def test_only_named_targets_get_interceptors(site: Site) -> None:
    with sync_client(site, propagate_to=["stock:50051", "*.shop.svc"]) as client:
        assert client.coord.client_interceptors("dns:///stock:50051")
        assert client.coord.client_interceptors("api.shop.svc:443")
        assert not client.coord.client_interceptors("api.example.com:443")
        assert client.coord.client_interceptors(), "a channel that is given them is named by that"


def test_contexts_that_make_no_sense_are_refused(site: Site, pair: Pair) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        pytest.fail("it ran")

    address = pair.grpc(handler)
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError, match="cannot be read"):
        channel.unary_unary("/Notes/Do")(b"", metadata=(("txcoord-context-bin", b"\xff\xff"),))


def test_a_service_that_cannot_take_part_says_why(site: Site, pair: Pair) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        pytest.fail("it ran")

    do = pair.stub(pair.grpc(handler))
    with pytest.raises(Aborted) as caught, pair.caller.coord.begin("order") as g:
        g._log_id = "0123456789"
        with pytest.raises(grpc.RpcError, match="BAD_XID"):
            do(b"")
    assert caught.value.reason == "BAD_XID"
