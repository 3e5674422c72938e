"""What participants say, as the engine takes it down."""

from __future__ import annotations

from tests.support.virtual import run
from tests.unit.test_engine_calls import a_place, step, submit
from txcoord.core.action import Answer, AnswerKind, Op
from txcoord.core.model import TxState


def test_it_can_be_stored_whatever_it_is() -> None:
    """Else no decision that has it in it would ever be written."""

    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            said = Answer(AnswerKind.REFUSED, reason="SOLD\0OUT: \ud800", content_type="\0")
            place.participants.script["1", Op.ACTION] = [said]
            tx = await node.ended(await submit(node, place.tx(), step("1")))
            assert (tx.state, tx.reason, tx.branches[0].reason) == (
                TxState.ABORTED,
                "SOLD?OUT",
                "SOLD?OUT: ?",
            )

    run(main())
