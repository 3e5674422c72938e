"""A try over HTTP: what the coordinator does, for the caller. Both for loops and for threads."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from ._pb import common_pb2 as c
from ._pb import participant_pb2 as pb
from ._places import ParticipantAt
from .errors import Rejected
from .protocol import over_http, reasons

AWAY = frozenset({429, 502, 503, 504})
"""Who answers so may be back soon."""


class NoAnswer(Exception):
    """There was none."""

    def __init__(self, why: str, *, again: bool) -> None:
        super().__init__(why)
        self.again = again
        """May asking again help?"""


class AsyncHttp:
    """Asks a participant for one action at a time."""

    def __init__(self, place: ParticipantAt) -> None:
        self._httpx = _httpx()
        self._url = place.address.rstrip("/") + over_http.PATH
        self._client: Any = self._httpx.AsyncClient(**_options(place))

    async def ask(self, request: pb.ExecuteRequest, timeout: float) -> c.BranchAnswer | None:
        """The answer; None where the participant had none. Raises NoAnswer."""
        try:
            reply = await self._client.post(self._url, content=request.SerializeToString(), timeout=timeout)
        except self._httpx.HTTPError as error:
            raise _failed(self._httpx, error) from error
        return _answer(reply)

    async def close(self) -> None:
        """Disconnect."""
        await self._client.aclose()


class Http:
    """The same for threads."""

    def __init__(self, place: ParticipantAt) -> None:
        self._httpx = _httpx()
        self._url = place.address.rstrip("/") + over_http.PATH
        self._client: Any = self._httpx.Client(**_options(place))

    def ask(self, request: pb.ExecuteRequest, timeout: float) -> c.BranchAnswer | None:
        """The answer; None where the participant had none. Raises NoAnswer."""
        try:
            reply = self._client.post(self._url, content=request.SerializeToString(), timeout=timeout)
        except self._httpx.HTTPError as error:
            raise _failed(self._httpx, error) from error
        return _answer(reply)

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise Rejected(
            "participants over HTTP are called with httpx: pip install 'txcoord-client[httpx]'",
            reason=reasons.NOT_SUPPORTED,
        ) from error
    return httpx


def _options(place: ParticipantAt) -> dict[str, Any]:
    headers = {"content-type": over_http.REQUEST_TYPE, "accept": over_http.REQUEST_TYPE}
    if place.token:
        headers["authorization"] = place.authorization
    # The environment knows nothing of participants: its proxy would see their tokens, .netrc has others.
    options: dict[str, Any] = {"headers": headers, "trust_env": False}
    if place.address.startswith("https"):
        options["verify"] = place.context()
    return options


def _failed(httpx: Any, error: Exception) -> NoAnswer:
    return NoAnswer(f"{type(error).__name__}: {error}", again=isinstance(error, httpx.TransportError))


def _answer(reply: Any) -> c.BranchAnswer | None:
    kind = reply.headers.get("content-type", "")
    if reply.status_code != 200:
        text = f"it answered {reply.status_code}: {reply.text[:200]}"
        raise NoAnswer(text, again=reply.status_code in AWAY)
    if over_http.media_type(kind) != over_http.REQUEST_TYPE:
        raise NoAnswer(f"it answered with {kind[:100]!r}: is the participant mounted there?", again=False)
    try:
        for frame in over_http.Frames().feed(reply.content):
            for answer in pb.ExecuteResponse.FromString(frame).answers:
                found: c.BranchAnswer = answer
                return found
    except (over_http.BadFrame, DecodeError) as error:
        raise NoAnswer(f"this is no answer: {error}", again=False) from error
    return None
