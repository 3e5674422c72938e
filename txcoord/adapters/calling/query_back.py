"""``ParticipantService.QueryBack``: what became of a local transaction in a participant's own database.

Only a verdict is an answer. What is none of them, or names another transaction, says nothing: it is asked again.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import json_format

from txcoord_client._pb import participant_pb2 as pb
from txcoord_client.protocol import marker

from ...core.model import Tx
from ...ports import NotAnswered, Probed

MOST_REPLY = 64 * 1024
"""Bytes of a reply over HTTP."""
_MOST_RETRY_US = 60_000_000
_VERDICTS: Mapping[int, Probed] = {
    pb.QUERY_BACK_VERDICT_COMMITTED: Probed.COMMITTED,
    pb.QUERY_BACK_VERDICT_ABORTED: Probed.NEVER,
    pb.QUERY_BACK_VERDICT_OPEN: Probed.OPEN,
    pb.QUERY_BACK_VERDICT_EXPIRED: Probed.TOO_LATE,
}


def request_of(
    tx: Tx, participant: str, identity: str, *, node: str, log_id: str, now_us: int
) -> pb.QueryBackRequest:
    """The question about one transaction."""
    item = pb.QueryBackItem(
        tx_id=tx.tx_id,
        gid=tx.gid,
        branch=marker.ONE_BRANCH,
        deadline_us=tx.deadline_us,
        headers=dict(tx.headers),
        participant=participant,
        identity=identity,
    )
    return pb.QueryBackRequest(
        namespace=tx.namespace, items=[item], log_time_us=now_us, node=node, log_id=log_id
    )


def answer_of(response: pb.QueryBackResponse, tx: Tx, target: str) -> Probed:
    """The verdict. Raises NotAnswered."""
    for answer in response.answers:
        if (answer.tx_id, answer.branch) == (tx.tx_id, marker.ONE_BRANCH):
            found = _VERDICTS.get(answer.verdict)
            if found is None:
                text = " ".join(answer.message.split()) or "it could not find out"
                raise NotAnswered(
                    target, f"NO_VERDICT: {text}"[:500], min(max(answer.retry_after_us, 0), _MOST_RETRY_US)
                )
            return found
    raise NotAnswered(target, "NO_ANSWER: it does not speak of this transaction")


def to_json(request: pb.QueryBackRequest) -> bytes:
    """As it is sent over HTTP."""
    return json_format.MessageToJson(request, indent=None).encode()


def from_json(body: bytes, target: str) -> pb.QueryBackResponse:
    """As it comes over HTTP. Raises NotAnswered."""
    try:
        return json_format.Parse(body, pb.QueryBackResponse(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise NotAnswered(target, f"BAD_REPLY: {' '.join(str(error).split())}"[:500]) from error
