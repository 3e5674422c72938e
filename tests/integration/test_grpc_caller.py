"""The caller over real gRPC: any unary method. What all callers do is in ``test_callers``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.support.callers import TX, answers, over_grpc, request
from txcoord.adapters.calling.any_ import AnyCaller
from txcoord.core.action import Action, Answer, AnswerKind, Op

PLAIN = Action(
    "/shop.Stock/Try", commit_operation="/shop.Stock/Confirm", abort_operation="/shop.Stock/Cancel"
)


@pytest.fixture
async def caller() -> AsyncIterator[AnyCaller]:
    caller = AnyCaller(node="n1")
    yield caller
    await caller.close()


async def test_any_unary_method(caller: AnyCaller) -> None:
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

    async with over_grpc({"Confirm": confirm, "Cancel": cancel, "Try": first}) as target:
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
