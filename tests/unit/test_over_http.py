"""Many messages in one body, and what a participant's endpoint is served by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord_client._serving import permitted
from txcoord_client.protocol.over_http import BadFrame, Frames, frame, media_type


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
