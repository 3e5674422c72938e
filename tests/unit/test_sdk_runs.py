"""A plan on its way, as the SDK waits for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.support.virtual import run
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._runs import Run


def test_what_is_parked_is_looked_at_now_and_then() -> None:
    """Its coordinator answers at once: nothing more comes without an operator."""
    asked: list[str] = []

    async def call(name: str, request: Any, until: float, **_: Any) -> Any:
        asked.append(name)
        assert len(asked) < 1_000, "it is stormed"
        outcome = c.Outcome(state=c.STATE_ABORTING, decision=c.DECISION_ABORT, parked=1)
        return pb.WaitResponse(results=[pb.WaitResult(outcome=outcome)])

    runtime: Any = SimpleNamespace(wire=SimpleNamespace(call=call), call_timeout=5.0)
    out = run(Run(runtime, "0" * 32, "order-1").wait(60.0))
    assert (out.state, out.parked) == ("ABORTING", 1)
    assert set(asked) == {"wait"}
    assert len(asked) <= 42
