"""What every caller does, over real servers: participants with the SDK's service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from tests.support.callers import SDK, TX, answers, confirms, over_grpc, over_the_web, request
from txcoord.adapters.calling.any_ import AnyCaller
from txcoord.adapters.calling.execute import requests_of
from txcoord.core.action import Answer, AnswerKind, Op

Serving = Callable[[], AbstractAsyncContextManager[str]]


@pytest.fixture(params=[over_grpc, over_the_web], ids=["grpc", "http"])
def serving(request: pytest.FixtureRequest) -> Serving:
    found: Serving = request.param
    return found


@pytest.fixture
async def caller() -> AsyncIterator[AnyCaller]:
    caller = AnyCaller(node="n1")
    yield caller
    await caller.close()


async def test_many_branches_in_one_call(caller: AnyCaller, serving: Serving) -> None:
    async with serving() as target:
        found = await answers(caller, target, *(request(n, Op.CONFIRM) for n in ("1", "2", "no")))
    assert found["1"] == found["2"] == Answer(AnswerKind.DONE, b"p")
    assert found["no"] == Answer(AnswerKind.REFUSED, b"p", reason="NO")
    assert caller.messages == 4


async def test_what_is_not_answered_has_failed(caller: AnyCaller, serving: Serving) -> None:
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


async def test_large_payloads_travel_apart(caller: AnyCaller, serving: Serving) -> None:
    large = [replace(r, branch=replace(r.branch, payload=b"x" * 250_000)) for r in confirms(40)]
    async with serving() as target:
        found = await answers(caller, target, *large)
    assert {(a.kind, a.reason) for a in found.values()} == {(AnswerKind.DONE, "")}


async def test_a_result_that_cannot_be_stored(caller: AnyCaller, serving: Serving) -> None:
    [large] = confirms(1)
    large = replace(large, branch=replace(large.branch, payload=b"x" * 300_000))
    async with serving() as target:
        found = await answers(caller, target, large)
    assert found["1"].reason.startswith("TOO_LARGE")


async def test_a_message_that_is_too_large_is_not_taken_in(caller: AnyCaller, serving: Serving) -> None:
    async with serving() as target:
        found = await answers(caller, target, *(request(n, Op.CONFIRM) for n in ("1", "huge")))
    assert found["1"].kind is AnswerKind.DONE
    assert (found["huge"].kind, found["huge"].result) == (AnswerKind.FAILED, b"")
    assert "RESOURCE_EXHAUSTED" in found["huge"].reason or "BAD_REPLY" in found["huge"].reason
