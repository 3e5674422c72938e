"""A participant answers *pending*, and reports by itself later."""

from __future__ import annotations

import pytest

from tests.support.node import Node
from tests.support.virtual import eventually, run
from txcoord.api.grpc.mapping import Limits
from txcoord.api.grpc.operations import Operations
from txcoord.core.action import Answer, AnswerKind, Op
from txcoord.core.errors import Refused
from txcoord.core.model import Tx, TxState
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb

from .test_engine_calls import Place, a_place, step, submit, tcc, tried

LATER = Answer(AnswerKind.PENDING, retry_after_us=3_600_000_000)


async def report(node: Node, tx: Tx, branch: str, op: c.BranchOp, kind: c.AnswerKind, **more: object) -> str:
    said = c.BranchAnswer(branch=branch, op=op, kind=kind, **more)  # type: ignore[arg-type]
    item = c.BranchReport(branch=branch, event=c.BRANCH_EVENT_ANSWER, answer=said)
    operations = Operations(node.coordinator, Limits(), list)
    request = pb.ReportRequest(tx_id=tx.tx_id, reports=[item])
    try:
        response = await operations.report(request, tx.namespace, 0.0)
    except Refused as refused:
        return refused.refusal.reason
    return c.State.Name(response.outcome.state)


async def asked(place: Place, branch: str) -> None:
    await eventually(lambda: any(call[2] == branch for call in place.participants.calls))


@pytest.mark.parametrize("no", [False, True])
def test_an_action(no: bool) -> None:
    async def main() -> None:
        async with a_place() as place:
            node, other = await place.node(), await place.node("n2")
            place.participants.script["2", Op.ACTION] = [LATER]
            tx = place.tx(deadline_s=7200.0)
            done = await submit(node, tx, step("1"), step("2", "1"), step("3", "2", results_of=("2",)))
            await asked(place, "2")
            act, began = c.BRANCH_OP_ACTION, place.clock.monotonic()
            # The other one cannot take it; what nobody waits for changes nothing.
            assert await report(other, tx, "2", act, c.ANSWER_KIND_DONE) == "IN_PROGRESS"
            assert await report(node, tx, "2", c.BRANCH_OP_COMPENSATE, c.ANSWER_KIND_DONE) == "STATE_RUNNING"
            kind = c.ANSWER_KIND_REFUSED if no else c.ANSWER_KIND_DONE
            await report(node, tx, "2", act, kind, result=b"7", reason="NO" if no else "")
            ended = await node.ended(done)
            assert place.clock.monotonic() - began < 60
            if no:
                assert (ended.state, ended.reason) == (TxState.ABORTED, "NO")
                assert Op.COMPENSATE in place.effects(tx)["1"]
            else:
                assert ended.state is TxState.COMMITTED
                assert ended.branch("2").result == b"7"  # type: ignore[union-attr]
            again = await report(node, tx, "2", act, kind)
            assert again == f"STATE_{ended.state.upper()}"

    run(main())


def test_a_confirm() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.script["1", Op.CONFIRM] = [LATER]
            tx = place.tx()
            done = await tried(node, tx, tcc("1"))
            await asked(place, "1")
            assert await report(node, tx, "1", c.BRANCH_OP_CONFIRM, c.ANSWER_KIND_DONE) == "STATE_COMMITTED"
            assert (await node.ended(done, 1)).state is TxState.COMMITTED
            await eventually(lambda: place.storage.row(tx.tx_id).ended)

    run(main())


def test_what_is_no_report() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.script["1", Op.CONFIRM] = [LATER]
            tx = place.tx()
            await tried(node, tx, tcc("1"))
            confirm, done = c.BRANCH_OP_CONFIRM, c.ANSWER_KIND_DONE
            assert await report(node, tx, "7", confirm, done) == "NOT_FOUND"
            assert await report(node, tx, "1", confirm, c.ANSWER_KIND_PENDING) == "BAD_REQUEST"
            assert await report(node, tx, "1", c.BRANCH_OP_UNSPECIFIED, done) == "BAD_REQUEST"
            assert await report(node, tx, "1", confirm, done, result=b"x" * 300_000) == "TOO_LARGE"
            assert await report(node, place.tx(), "1", confirm, done) == "NOT_FOUND"

    run(main())
