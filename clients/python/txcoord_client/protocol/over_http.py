"""``ParticipantService.Execute`` over HTTP/1.1: one POST with many actions, the answers one by one.

The request's body is an ``ExecuteRequest`` in protobuf's binary form, that of the reply (200) any number of
``ExecuteResponse``, each after its length as a varint (protobuf's *delimited* form). An action that is not answered
when the reply ends has failed, as has all of it with any other status.
"""

from __future__ import annotations

PATH = "/txcoord/v1/execute"
"""Below the participant's address."""
QUERY_BACK_PATH = "/txcoord/v1/query-back"
"""The same for ``QueryBack``, whose messages are in protobuf's JSON form: any language can answer it."""
JSON_TYPE = "application/json"
REQUEST_TYPE = "application/x-protobuf"
REPLY_TYPE = "application/x-protobuf; encoding=delimited"
MOST_REQUEST = 4 * 1024 * 1024
"""Bytes of a request; more is answered 413."""
MOST_FRAME = 4 * 1024 * 1024
"""Bytes of one message of a reply; more is no answer."""


class BadFrame(ValueError):
    """This is not what was to come."""


def media_type(header: str) -> str:
    """A content type without its parameters."""
    return header.partition(";")[0].strip().lower()


def frame(message: bytes) -> bytes:
    """A message after its length."""
    head, left = bytearray(), len(message)
    while left > 0x7F:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return bytes(head) + message


class Frames:
    """Messages out of a stream of bytes, however it is cut."""

    def __init__(self, most: int = MOST_FRAME) -> None:
        self._buffer = bytearray()
        self._most = most

    @property
    def empty(self) -> bool:
        """Has nothing come of a further message?"""
        return not self._buffer

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now. Raises BadFrame."""
        self._buffer += data
        out: list[bytes] = []
        start = 0
        while (found := self._length(start)) is not None:
            size, begin = found
            if size > self._most:
                if out:
                    break  # Those before it are answers; the next time there is this one to complain of.
                raise BadFrame(f"a message of {size} bytes; at most {self._most}")
            if len(self._buffer) < begin + size:
                break
            out.append(bytes(self._buffer[begin : begin + size]))
            start = begin + size
        del self._buffer[:start]
        return out

    def _length(self, at: int) -> tuple[int, int] | None:
        size = shift = 0
        for index in range(at, len(self._buffer)):
            byte = self._buffer[index]
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                return size, index + 1
            shift += 7
            if shift > 28:
                raise BadFrame("this is no length")
        return None
