"""What a participant or receiver does for a branch, and how it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from .words import storable


class Op(StrEnum):
    """What a participant is asked to do."""

    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"
    ACTION = "action"
    COMPENSATE = "compensate"
    MESSAGE = "message"
    """Take a message that must arrive."""
    NOTIFY = "notify"
    """Take a notification."""
    CALLBACK = "callback"
    """Be told that the whole has ended."""


class AnswerKind(StrEnum):
    """A participant answers one of the first three; anything else is a failure."""

    DONE = "done"
    REFUSED = "refused"
    """A business no."""
    PENDING = "pending"
    """Ask again later."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call."""

    kind: AnswerKind
    result: bytes = b""
    """DONE: what it returned."""
    content_type: str = ""
    reason: str = ""
    """REFUSED, FAILED: a stable code, perhaps followed by a text."""
    retry_after_us: int = 0
    """PENDING, FAILED: ask again not before it."""
    repeated: bool = False
    """DONE: it had acted before, and has not done so now."""

    def storable(self) -> Answer:
        """With texts that every log can store: else a participant could say something that is never taken down."""
        reason, kind = storable(self.reason), storable(self.content_type)
        same = (reason, kind) == (self.reason, self.content_type)
        return self if same else replace(self, reason=reason, content_type=kind)


@dataclass(frozen=True, slots=True)
class Retry:
    """When a call is made again. Durations in microseconds; what is 0 or empty is as the coordinator has it."""

    call_timeout_us: int = 0
    first_us: int = 0
    factor: float = 0.0
    cap_us: int = 0
    max_attempts: int = 0
    """So many failures in a row: then a first phase counts as refused, and anything else is parked. Of a branch whose
    first phase the coordinator runs, it is the budget of that alone, and so are the next two."""
    give_up_us: int = 0
    """The same happens so long after the first attempt."""
    schedule_us: tuple[int, ...] = ()
    """Instead of a back-off: the pauses after attempt 1, 2, …; then as above."""


@dataclass(frozen=True, slots=True)
class Event:
    """Attributes of a CloudEvent; id, time and datacontenttype come from the delivery."""

    type: str
    source: str = ""
    """Empty: the namespace's."""
    subject: str = ""
    data_schema: str = ""
    structured: bool = False
    """One JSON body; else the attributes are headers."""
    extensions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What only deliveries have."""

    message_id: str = ""
    """The receiver's key to drop repeats; empty: the tx id and the branch."""
    deliver_at_us: int = 0
    """Not before; 0: as soon as the whole is COMMITTED."""
    event: Event | None = None
    """It is sent as this CloudEvent."""
    order_key: str = ""
    """Messages of one namespace and target with one key leave one after the other; empty: in any order."""
    partition_key: bytes = b""
    """On a topic: the record's key."""


@dataclass(frozen=True, slots=True)
class Action:
    """The participant's part of a branch, as it was enlisted. The participant itself is ``Branch.resource``."""

    operation: str = ""
    name: str = ""
    """Of the step."""
    content_type: str = ""
    """Of the payload; empty is application/json."""
    first_operation: str = ""
    commit_operation: str = ""
    abort_operation: str = ""
    run_first: bool = False
    """The coordinator calls the try or action; else the caller does."""
    forward: bool = False
    """Saga: never compensated, retried until it is done."""
    no_undo: bool = False
    """Saga: there is nothing to compensate."""
    after: tuple[str, ...] = ()
    """Saga: branches whose action comes before. TCC: branches whose confirm comes before."""
    results_of: tuple[str, ...] = ()
    """Branches whose results it is given."""
    aborted_means_refused: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    retry: Retry = Retry()
    delivery: Delivery = Delivery()

    def operation_of(self, op: Op) -> str:
        """Its name at the participant."""
        match op:
            case Op.TRY | Op.ACTION | Op.MESSAGE | Op.NOTIFY | Op.CALLBACK:
                special = self.first_operation
            case Op.CONFIRM:
                special = self.commit_operation
            case Op.CANCEL | Op.COMPENSATE:
                special = self.abort_operation
        return special or self.operation
