"""The caller over real gRPC: participants with the SDK's service, and any unary method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from txcoord.adapters.calling.execute import requests_of
from txcoord.adapters.calling.grpc_ import GrpcCaller
from txcoord.core.action import Action, Answer, AnswerKind, Op
from txcoord.core.model import Branch, BranchState, Kind, Tx
from txcoord.ports import CallRequest
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client._pb import participant_pb2_grpc

TX = Tx(
    "0" * 31 + "7",
    "shop",
    9,
    "order-1",
    headers={"Tenant": "7", "bad key": "x", "zwei": "\u4e8c", "grpc-x": "y"},
)
SDK = Action("stock.Reserve")
PLAIN = Action(
    "/shop.Stock/Try", commit_operation="/shop.Stock/Confirm", abort_operation="/shop.Stock/Cancel"
)


def request(number: str, op: Op, action: Action = SDK, **more: Any) -> CallRequest:
    branch = Branch(number, Kind.TCC, BranchState.FINISHING, "grpc://x", action=action, payload=b"p", **more)
    return CallRequest(TX, branch, op, 3, 0)


class Service(participant_pb2_grpc.ParticipantServiceServicer):
    """Answers branch by branch, the slow one not at all."""

    async def Execute(self, request: pb.ExecuteRequest, context: Any) -> AsyncIterator[pb.ExecuteResponse]:
        for action in request.actions:
            if action.branch == "slow":
                await asyncio.Event().wait()
            if action.branch == "gone":
                return
            kind = c.ANSWER_KIND_REFUSED if action.branch == "no" else c.ANSWER_KIND_DONE
            answer = c.BranchAnswer(
                tx_id=request.contexts[action.context].tx_id,
                branch=action.branch,
                op=action.op,
                attempt=action.attempt,
                kind=kind,
                result=action.payload,
                reason="NO" if kind == c.ANSWER_KIND_REFUSED else "",
            )
            yield pb.ExecuteResponse(answers=[answer])


@asynccontextmanager
async def serving(methods: dict[str, Callable[[bytes, Any], Any]] | None = None) -> AsyncIterator[str]:
    server = grpc.aio.server()
    participant_pb2_grpc.add_ParticipantServiceServicer_to_server(Service(), server)
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in (methods or {}).items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Stock", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
async def caller() -> AsyncIterator[GrpcCaller]:
    caller = GrpcCaller(node="n1")
    yield caller
    await caller.close()


async def answers(
    caller: GrpcCaller, target: str, *requests: CallRequest, timeout_s: float = 5.0
) -> dict[str, Answer]:
    return {r.branch.id: a async for r, a in caller.call(target, requests, timeout_s)}


async def test_many_branches_in_one_call(caller: GrpcCaller) -> None:
    async with serving() as target:
        found = await answers(caller, target, *(request(n, Op.CONFIRM) for n in ("1", "2", "no")))
    assert found["1"] == found["2"] == Answer(AnswerKind.DONE, b"p")
    assert found["no"] == Answer(AnswerKind.REFUSED, b"p", reason="NO")
    assert caller.messages == 4


async def test_what_is_not_answered_has_failed(caller: GrpcCaller) -> None:
    async with serving() as target:
        found = await answers(caller, target, *(request(n, Op.CONFIRM) for n in ("1", "gone", "2")))
        assert found["1"].kind is AnswerKind.DONE
        assert found["gone"] == found["2"]
        assert found["2"].reason.startswith("NO_ANSWER")
        found = await answers(caller, target, *(request(n, Op.CONFIRM) for n in ("1", "slow")), timeout_s=0.3)
        assert found["1"].kind is AnswerKind.DONE
        assert found["slow"].reason.startswith("TIMED_OUT")
    found = await answers(caller, target, request("1", Op.CONFIRM))
    assert found["1"].reason.startswith("UNAVAILABLE")
    found = await answers(caller, "smtp://x", request("1", Op.CONFIRM))
    assert found["1"].reason.startswith("UNKNOWN_PARTICIPANT")


def test_a_step_that_is_never_undone_has_no_deadline() -> None:
    """Its barrier would refuse it for ever once the transaction's deadline is over, and nothing else can end it."""
    steps = [request("1", Op.ACTION), request("2", Op.ACTION, replace(SDK, forward=True))]
    [message] = requests_of(steps, node="n1", log_id="")
    assert [message.contexts[action.context].deadline_us for action in message.actions] == [9, 0]
    assert {context.tx_id for context in message.contexts} == {TX.tx_id}


async def test_large_payloads_travel_apart(caller: GrpcCaller) -> None:
    large = [replace(r, branch=replace(r.branch, payload=b"x" * 250_000)) for r in _requests(40)]
    async with serving() as target:
        found = await answers(caller, target, *large)
    assert {a.kind for a in found.values()} == {AnswerKind.DONE}


async def test_a_result_that_cannot_be_stored(caller: GrpcCaller) -> None:
    [large] = _requests(1)
    large = replace(large, branch=replace(large.branch, payload=b"x" * 300_000))
    async with serving() as target:
        found = await answers(caller, target, large)
    assert found["1"].reason.startswith("TOO_LARGE")


def _requests(count: int) -> list[CallRequest]:
    return [request(str(n), Op.CONFIRM) for n in range(1, count + 1)]


async def test_any_unary_method(caller: GrpcCaller) -> None:
    seen: list[tuple[bytes, dict[str, Any]]] = []

    async def confirm(body: bytes, context: Any) -> bytes:
        seen.append((body, dict(context.invocation_metadata())))
        return b"confirmed"

    async def cancel(body: bytes, context: Any) -> bytes:
        code = grpc.StatusCode.ABORTED if body == b"p" else grpc.StatusCode.INTERNAL
        await context.abort(code, "busy")
        raise AssertionError

    async def first(body: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nothing left")
        raise AssertionError

    async with serving({"Confirm": confirm, "Cancel": cancel, "Try": first}) as target:
        declared = Action(PLAIN.operation, abort_operation="/shop.Stock/Cancel", aborted_means_refused=True)
        found = await answers(
            caller,
            target,
            request("1", Op.CONFIRM, PLAIN, result=b"held"),
            request("2", Op.TRY, PLAIN),
            request("3", Op.CANCEL, PLAIN),
            request("4", Op.CANCEL, declared),
            request("5", Op.CONFIRM),
        )
    assert found["1"] == Answer(AnswerKind.DONE, b"confirmed", "application/octet-stream")
    assert found["2"] == Answer(AnswerKind.REFUSED, reason="BRANCH_REFUSED: nothing left")
    assert (found["3"].kind, found["4"].kind) == (AnswerKind.FAILED, AnswerKind.REFUSED)
    assert found["5"] == Answer(AnswerKind.DONE, b"p")
    [(body, metadata)] = seen
    assert body == b"p"
    assert (
        metadata.items()
        >= {
            "tenant": "7",
            "txcoord-tx-id": TX.tx_id,
            "txcoord-gid": "order-1",
            "txcoord-branch": "1",
            "txcoord-op": "confirm",
            "txcoord-attempt": "3",
            "txcoord-result-bin": b"held",
        }.items()
    )
    assert "zwei" not in metadata
