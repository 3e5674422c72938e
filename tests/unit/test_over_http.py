"""Many messages in one body, and what a participant's endpoint is served by."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord_client import _serving
from txcoord_client._answers import Answer, Call
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client._serving import permitted
from txcoord_client.protocol.over_http import BadFrame, Frames, frame, media_type
from txcoord_client.sync import _serving as sync_serving


@given(st.lists(st.binary(max_size=300), max_size=5), st.lists(st.integers(0, 1500), max_size=6))
def test_frames_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(frame, messages))
    frames, out, start = Frames(), [], 0
    for cut in [*sorted(cuts), len(data)]:
        out += frames.feed(data[start:cut])
        start = max(start, min(cut, len(data)))
    assert out == messages
    assert frames.empty


def test_what_is_no_frame() -> None:
    assert Frames().feed(frame(b"x" * 70_000)) == [b"x" * 70_000]
    with pytest.raises(BadFrame, match="no length"):
        Frames().feed(b"\xff" * 9)
    with pytest.raises(BadFrame, match="at most 10"):
        Frames(most=10).feed(frame(b"x" * 11)[:1])
    after = Frames(most=10)
    assert after.feed(frame(b"abc") + frame(b"x" * 11)) == [b"abc"]
    with pytest.raises(BadFrame, match="at most 10"):
        after.feed(b"")
    half = Frames()
    assert half.feed(frame(b"abc")[:2]) == []
    assert not half.empty


def test_media_types() -> None:
    assert media_type("Application/X-Protobuf; encoding=delimited") == "application/x-protobuf"
    assert media_type("") == ""


@pytest.mark.parametrize(
    ("tokens", "authorization", "may"),
    [
        ((), "", True),
        ((), "Bearer x", True),
        (("a", "b"), "Bearer b", True),
        (("a",), "bearer  a ", True),
        (("a",), "", False),
        (("a",), "a", False),
        (("a",), "Bearer", False),
        (("a",), "Bearer aa", False),
        (("a",), "Basic a", False),
        (("a",), "Bearer \u00e4", False),
    ],
)
def test_who_may_call(tokens: tuple[str, ...], authorization: str, may: bool) -> None:
    assert permitted(tokens, authorization) is may


class Large:
    """Answers a lot, all in one moment."""

    name = "stock"
    concurrency = 40
    _operations = ("stock.Look",)
    _tokens = ()

    def under_way(self, call: Call) -> Answer | None:
        return Answer.done(b"x" * 256 * 1024)

    def execute(self, call: Call) -> Any:
        raise AssertionError


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_answers_travel_in_messages_that_are_taken(kind: str) -> None:
    request = pb.ExecuteRequest(contexts=[pb.ActionContext(tx_id="t")])
    for number in range(40):
        request.actions.add(branch=str(number), operation="stock.Look")
    if kind == "async":
        found = [item async for item in _serving.answers(_serving.Runner([Large()]).begin, request, "")]
    else:
        found = list(sync_serving.answers(sync_serving.Runner([Large()]), request, ""))
    assert max(response.ByteSize() for response, _ in found) < 4 * 2**20
    assert len(found) < 10, "as many together as fit"
    assert {answer.branch for response, _ in found for answer in response.answers} == set(map(str, range(40)))
    assert [last for _, last in found] == [False] * (len(found) - 1) + [True]
