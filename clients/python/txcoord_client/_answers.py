"""A participant's call and its answer, without the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from . import _values
from ._pb import common_pb2 as c
from ._pb import participant_pb2 as pb
from .errors import Pending, Refused, TxcoordError

OPS: Mapping[int, str] = {
    c.BRANCH_OP_TRY: "try",
    c.BRANCH_OP_CONFIRM: "confirm",
    c.BRANCH_OP_CANCEL: "cancel",
    c.BRANCH_OP_ACTION: "action",
    c.BRANCH_OP_COMPENSATE: "compensate",
    c.BRANCH_OP_MESSAGE: "message",
    c.BRANCH_OP_NOTIFY: "notify",
    c.BRANCH_OP_CALLBACK: "callback",
}


@dataclass(frozen=True, slots=True)
class Ended:
    """A transaction has ended. It may be told more than once: ``id`` is always the same then."""

    id: str
    tx_id: str
    gid: str
    committed: bool
    """Or aborted, and everything is undone."""
    reason: str = ""
    """Why it was aborted."""
    data: Any = None
    """What was given when this callback was asked for."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a participant is asked to do."""

    tx_id: str
    branch: str
    op: str
    """``try``, ``confirm``, ``cancel``, ``action``, ``compensate``, ``message`` or ``notify``."""
    operation: str
    payload: bytes = b""
    deadline_us: int = 0
    """Of the transaction, by the log's clock; 0: none."""
    attempt: int = 1
    gid: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, bytes] = field(default_factory=dict)
    """Of earlier steps, by their names."""
    ended: Ended | None = None
    """``callback``: how the whole ended."""
    message_id: str = ""
    """``message``, ``notify``: its sender's key, the same however often it comes."""

    @property
    def not_after_us(self) -> int:
        """A try or action that comes later does nothing, by the database's clock; 0: no limit. What ends it may come
        at any time."""
        return self.deadline_us if self.op in ("try", "action") else 0

    @classmethod
    def from_pb(cls, request: pb.ExecuteRequest, action: pb.BranchAction) -> Self:
        """One action of a request."""
        context = request.contexts[action.context]
        return cls(
            context.tx_id,
            action.branch,
            OPS.get(action.op, ""),
            action.operation,
            action.payload,
            context.deadline_us,
            action.attempt,
            context.gid,
            {**context.headers, **action.headers},
            {r.name or r.branch: r.result for r in action.results},
            _ended(action) if action.op == c.BRANCH_OP_CALLBACK else None,
            action.message_id,
        )


def _ended(action: pb.BranchAction) -> Ended:
    out = action.outcome
    committed = out.decision == c.DECISION_COMMIT
    data = (
        _values.decode(action.payload) if action.content_type in ("", "application/json") else action.payload
    )
    return Ended(action.message_id, out.tx_id, out.gid, committed, out.reason, data)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a participant answers."""

    kind: c.AnswerKind
    result: bytes = b""
    reason: str = ""
    message: str = ""
    retry_after_us: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    repeated: bool = False

    @classmethod
    def done(cls, result: bytes = b"", *, repeated: bool = False) -> Self:
        """It is done."""
        return cls(c.ANSWER_KIND_DONE, result, repeated=repeated)

    @classmethod
    def refused(cls, error: Refused) -> Self:
        """A business no."""
        return cls(c.ANSWER_KIND_REFUSED, reason=error.reason, message=error.message, facts=error.facts)

    @classmethod
    def pending(cls, error: Pending) -> Self:
        """Ask again later."""
        return cls(
            c.ANSWER_KIND_PENDING,
            reason=error.reason,
            message=error.message,
            retry_after_us=int(error.retry_after * 1e6),
        )

    @classmethod
    def failed(cls, error: BaseException) -> Self:
        """To be tried again."""
        if isinstance(error, TxcoordError):
            return cls(c.ANSWER_KIND_FAILED, reason=error.reason, message=error.message[:500])
        return cls(c.ANSWER_KIND_FAILED, reason=type(error).__name__, message=str(error)[:500])

    def to_pb(self, tx_id: str, action: pb.BranchAction) -> c.BranchAnswer:
        """For the wire."""
        return c.BranchAnswer(
            tx_id=tx_id,
            branch=action.branch,
            op=action.op,
            attempt=action.attempt,
            kind=self.kind,
            result=self.result,
            reason=self.reason,
            message=self.message,
            retry_after_us=self.retry_after_us,
            facts=dict(self.facts),
            repeated_call=self.repeated,
        )
