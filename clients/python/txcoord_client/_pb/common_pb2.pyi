from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_XA: _ClassVar[Kind]
    KIND_TCC: _ClassVar[Kind]
    KIND_SAGA: _ClassVar[Kind]
    KIND_MESSAGE: _ClassVar[Kind]
    KIND_NOTIFY: _ClassVar[Kind]

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_ACTIVE: _ClassVar[State]
    STATE_RUNNING: _ClassVar[State]
    STATE_COMMITTING: _ClassVar[State]
    STATE_COMMITTED: _ClassVar[State]
    STATE_ABORTING: _ClassVar[State]
    STATE_ABORTED: _ClassVar[State]

class Decision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECISION_UNSPECIFIED: _ClassVar[Decision]
    DECISION_COMMIT: _ClassVar[Decision]
    DECISION_ABORT: _ClassVar[Decision]

class DecidedBy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECIDED_BY_UNSPECIFIED: _ClassVar[DecidedBy]
    DECIDED_BY_CLIENT: _ClassVar[DecidedBy]
    DECIDED_BY_DEADLINE: _ClassVar[DecidedBy]
    DECIDED_BY_BRANCH: _ClassVar[DecidedBy]
    DECIDED_BY_OPERATOR: _ClassVar[DecidedBy]
    DECIDED_BY_SCANNER: _ClassVar[DecidedBy]
    DECIDED_BY_DATABASE: _ClassVar[DecidedBy]

class Vote(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VOTE_UNSPECIFIED: _ClassVar[Vote]
    VOTE_PREPARED: _ClassVar[Vote]
    VOTE_READ_ONLY: _ClassVar[Vote]
    VOTE_NO: _ClassVar[Vote]

class WaitLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WAIT_LEVEL_UNSPECIFIED: _ClassVar[WaitLevel]
    WAIT_LEVEL_ACCEPTED: _ClassVar[WaitLevel]
    WAIT_LEVEL_DECIDED: _ClassVar[WaitLevel]
    WAIT_LEVEL_COMMITTED: _ClassVar[WaitLevel]
    WAIT_LEVEL_DELIVERED: _ClassVar[WaitLevel]

class BranchState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BRANCH_STATE_UNSPECIFIED: _ClassVar[BranchState]
    BRANCH_STATE_OPEN: _ClassVar[BranchState]
    BRANCH_STATE_RUNNING: _ClassVar[BranchState]
    BRANCH_STATE_READY: _ClassVar[BranchState]
    BRANCH_STATE_READ_ONLY: _ClassVar[BranchState]
    BRANCH_STATE_REFUSED: _ClassVar[BranchState]
    BRANCH_STATE_FINISHING: _ClassVar[BranchState]
    BRANCH_STATE_UNDOING: _ClassVar[BranchState]
    BRANCH_STATE_DONE: _ClassVar[BranchState]
    BRANCH_STATE_UNDONE: _ClassVar[BranchState]
    BRANCH_STATE_PARKED: _ClassVar[BranchState]
    BRANCH_STATE_SKIPPED: _ClassVar[BranchState]
    BRANCH_STATE_RESOLVED: _ClassVar[BranchState]

class Heuristic(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEURISTIC_UNSPECIFIED: _ClassVar[Heuristic]
    HEURISTIC_COMMIT: _ClassVar[Heuristic]
    HEURISTIC_ROLLBACK: _ClassVar[Heuristic]
    HEURISTIC_MIXED: _ClassVar[Heuristic]
    HEURISTIC_HAZARD: _ClassVar[Heuristic]

class BranchOp(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BRANCH_OP_UNSPECIFIED: _ClassVar[BranchOp]
    BRANCH_OP_TRY: _ClassVar[BranchOp]
    BRANCH_OP_CONFIRM: _ClassVar[BranchOp]
    BRANCH_OP_CANCEL: _ClassVar[BranchOp]
    BRANCH_OP_ACTION: _ClassVar[BranchOp]
    BRANCH_OP_COMPENSATE: _ClassVar[BranchOp]
    BRANCH_OP_MESSAGE: _ClassVar[BranchOp]
    BRANCH_OP_NOTIFY: _ClassVar[BranchOp]
    BRANCH_OP_CALLBACK: _ClassVar[BranchOp]

class AnswerKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_KIND_UNSPECIFIED: _ClassVar[AnswerKind]
    ANSWER_KIND_DONE: _ClassVar[AnswerKind]
    ANSWER_KIND_REFUSED: _ClassVar[AnswerKind]
    ANSWER_KIND_PENDING: _ClassVar[AnswerKind]
    ANSWER_KIND_FAILED: _ClassVar[AnswerKind]

class BranchEvent(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BRANCH_EVENT_UNSPECIFIED: _ClassVar[BranchEvent]
    BRANCH_EVENT_COMMITTED: _ClassVar[BranchEvent]
    BRANCH_EVENT_ROLLED_BACK: _ClassVar[BranchEvent]
    BRANCH_EVENT_ONE_PHASE_COMMITTED: _ClassVar[BranchEvent]
    BRANCH_EVENT_ANSWER: _ClassVar[BranchEvent]
    BRANCH_EVENT_RELEASED: _ClassVar[BranchEvent]
KIND_UNSPECIFIED: Kind
KIND_XA: Kind
KIND_TCC: Kind
KIND_SAGA: Kind
KIND_MESSAGE: Kind
KIND_NOTIFY: Kind
STATE_UNSPECIFIED: State
STATE_ACTIVE: State
STATE_RUNNING: State
STATE_COMMITTING: State
STATE_COMMITTED: State
STATE_ABORTING: State
STATE_ABORTED: State
DECISION_UNSPECIFIED: Decision
DECISION_COMMIT: Decision
DECISION_ABORT: Decision
DECIDED_BY_UNSPECIFIED: DecidedBy
DECIDED_BY_CLIENT: DecidedBy
DECIDED_BY_DEADLINE: DecidedBy
DECIDED_BY_BRANCH: DecidedBy
DECIDED_BY_OPERATOR: DecidedBy
DECIDED_BY_SCANNER: DecidedBy
DECIDED_BY_DATABASE: DecidedBy
VOTE_UNSPECIFIED: Vote
VOTE_PREPARED: Vote
VOTE_READ_ONLY: Vote
VOTE_NO: Vote
WAIT_LEVEL_UNSPECIFIED: WaitLevel
WAIT_LEVEL_ACCEPTED: WaitLevel
WAIT_LEVEL_DECIDED: WaitLevel
WAIT_LEVEL_COMMITTED: WaitLevel
WAIT_LEVEL_DELIVERED: WaitLevel
BRANCH_STATE_UNSPECIFIED: BranchState
BRANCH_STATE_OPEN: BranchState
BRANCH_STATE_RUNNING: BranchState
BRANCH_STATE_READY: BranchState
BRANCH_STATE_READ_ONLY: BranchState
BRANCH_STATE_REFUSED: BranchState
BRANCH_STATE_FINISHING: BranchState
BRANCH_STATE_UNDOING: BranchState
BRANCH_STATE_DONE: BranchState
BRANCH_STATE_UNDONE: BranchState
BRANCH_STATE_PARKED: BranchState
BRANCH_STATE_SKIPPED: BranchState
BRANCH_STATE_RESOLVED: BranchState
HEURISTIC_UNSPECIFIED: Heuristic
HEURISTIC_COMMIT: Heuristic
HEURISTIC_ROLLBACK: Heuristic
HEURISTIC_MIXED: Heuristic
HEURISTIC_HAZARD: Heuristic
BRANCH_OP_UNSPECIFIED: BranchOp
BRANCH_OP_TRY: BranchOp
BRANCH_OP_CONFIRM: BranchOp
BRANCH_OP_CANCEL: BranchOp
BRANCH_OP_ACTION: BranchOp
BRANCH_OP_COMPENSATE: BranchOp
BRANCH_OP_MESSAGE: BranchOp
BRANCH_OP_NOTIFY: BranchOp
BRANCH_OP_CALLBACK: BranchOp
ANSWER_KIND_UNSPECIFIED: AnswerKind
ANSWER_KIND_DONE: AnswerKind
ANSWER_KIND_REFUSED: AnswerKind
ANSWER_KIND_PENDING: AnswerKind
ANSWER_KIND_FAILED: AnswerKind
BRANCH_EVENT_UNSPECIFIED: BranchEvent
BRANCH_EVENT_COMMITTED: BranchEvent
BRANCH_EVENT_ROLLED_BACK: BranchEvent
BRANCH_EVENT_ONE_PHASE_COMMITTED: BranchEvent
BRANCH_EVENT_ANSWER: BranchEvent
BRANCH_EVENT_RELEASED: BranchEvent

class Status(_message.Message):
    __slots__ = ("code", "reason", "message", "definite", "retry_after_us", "facts", "outcome")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DEFINITE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_US_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    definite: bool
    retry_after_us: int
    facts: _containers.ScalarMap[str, str]
    outcome: Outcome
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., definite: bool = ..., retry_after_us: _Optional[int] = ..., facts: _Optional[_Mapping[str, str]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("state", "decision", "decided_by", "reason", "decided_us", "pending", "heuristic", "parked", "parked_deliveries", "branches", "tx_id", "gid", "result", "message", "deadline_us", "ended_us", "retriable", "delivered", "refused_branch", "version")
    STATE_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DECIDED_US_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    HEURISTIC_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    PARKED_DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_US_FIELD_NUMBER: _ClassVar[int]
    RETRIABLE_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_BRANCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    state: State
    decision: Decision
    decided_by: DecidedBy
    reason: str
    decided_us: int
    pending: bool
    heuristic: bool
    parked: int
    parked_deliveries: int
    branches: _containers.RepeatedCompositeFieldContainer[BranchStatus]
    tx_id: str
    gid: str
    result: bytes
    message: str
    deadline_us: int
    ended_us: int
    retriable: bool
    delivered: bool
    refused_branch: str
    version: int
    def __init__(self, state: _Optional[_Union[State, str]] = ..., decision: _Optional[_Union[Decision, str]] = ..., decided_by: _Optional[_Union[DecidedBy, str]] = ..., reason: _Optional[str] = ..., decided_us: _Optional[int] = ..., pending: bool = ..., heuristic: bool = ..., parked: _Optional[int] = ..., parked_deliveries: _Optional[int] = ..., branches: _Optional[_Iterable[_Union[BranchStatus, _Mapping]]] = ..., tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., result: _Optional[bytes] = ..., message: _Optional[str] = ..., deadline_us: _Optional[int] = ..., ended_us: _Optional[int] = ..., retriable: bool = ..., delivered: bool = ..., refused_branch: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class BranchStatus(_message.Message):
    __slots__ = ("branch", "kind", "state", "vote", "heuristic", "heuristic_end", "reason", "message", "result", "content_type", "attempts", "next_attempt_us", "updated_us", "name", "target", "facts", "parked_in")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    HEURISTIC_FIELD_NUMBER: _ClassVar[int]
    HEURISTIC_END_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_ATTEMPT_US_FIELD_NUMBER: _ClassVar[int]
    UPDATED_US_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    PARKED_IN_FIELD_NUMBER: _ClassVar[int]
    branch: str
    kind: Kind
    state: BranchState
    vote: Vote
    heuristic: bool
    heuristic_end: Heuristic
    reason: str
    message: str
    result: bytes
    content_type: str
    attempts: int
    next_attempt_us: int
    updated_us: int
    name: str
    target: str
    facts: _containers.ScalarMap[str, str]
    parked_in: BranchState
    def __init__(self, branch: _Optional[str] = ..., kind: _Optional[_Union[Kind, str]] = ..., state: _Optional[_Union[BranchState, str]] = ..., vote: _Optional[_Union[Vote, str]] = ..., heuristic: bool = ..., heuristic_end: _Optional[_Union[Heuristic, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., result: _Optional[bytes] = ..., content_type: _Optional[str] = ..., attempts: _Optional[int] = ..., next_attempt_us: _Optional[int] = ..., updated_us: _Optional[int] = ..., name: _Optional[str] = ..., target: _Optional[str] = ..., facts: _Optional[_Mapping[str, str]] = ..., parked_in: _Optional[_Union[BranchState, str]] = ...) -> None: ...

class TransactionSpec(_message.Message):
    __slots__ = ("name", "labels", "headers", "trace_parent", "trace_state", "one_phase_resource", "fingerprint", "callbacks", "retry_of", "again", "retry", "initiator", "resources")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    TRACE_PARENT_FIELD_NUMBER: _ClassVar[int]
    TRACE_STATE_FIELD_NUMBER: _ClassVar[int]
    ONE_PHASE_RESOURCE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CALLBACKS_FIELD_NUMBER: _ClassVar[int]
    RETRY_OF_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    INITIATOR_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.ScalarMap[str, str]
    headers: _containers.ScalarMap[str, str]
    trace_parent: str
    trace_state: str
    one_phase_resource: str
    fingerprint: bytes
    callbacks: _containers.RepeatedCompositeFieldContainer[Callback]
    retry_of: str
    again: bool
    retry: RetryPolicy
    initiator: str
    resources: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., headers: _Optional[_Mapping[str, str]] = ..., trace_parent: _Optional[str] = ..., trace_state: _Optional[str] = ..., one_phase_resource: _Optional[str] = ..., fingerprint: _Optional[bytes] = ..., callbacks: _Optional[_Iterable[_Union[Callback, _Mapping]]] = ..., retry_of: _Optional[str] = ..., again: bool = ..., retry: _Optional[_Union[RetryPolicy, _Mapping]] = ..., initiator: _Optional[str] = ..., resources: _Optional[_Iterable[str]] = ...) -> None: ...

class RetryPolicy(_message.Message):
    __slots__ = ("call_timeout_us", "initial_us", "multiplier", "cap_us", "max_attempts", "give_up_us", "schedule_us")
    CALL_TIMEOUT_US_FIELD_NUMBER: _ClassVar[int]
    INITIAL_US_FIELD_NUMBER: _ClassVar[int]
    MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    CAP_US_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    GIVE_UP_US_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_US_FIELD_NUMBER: _ClassVar[int]
    call_timeout_us: int
    initial_us: int
    multiplier: float
    cap_us: int
    max_attempts: int
    give_up_us: int
    schedule_us: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, call_timeout_us: _Optional[int] = ..., initial_us: _Optional[int] = ..., multiplier: _Optional[float] = ..., cap_us: _Optional[int] = ..., max_attempts: _Optional[int] = ..., give_up_us: _Optional[int] = ..., schedule_us: _Optional[_Iterable[int]] = ...) -> None: ...

class Branch(_message.Message):
    __slots__ = ("id", "kind", "vote", "xa", "action", "delivery", "after", "name", "retry", "callback", "reason", "message", "facts")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    XA_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: Kind
    vote: Vote
    xa: XaPart
    action: ActionPart
    delivery: DeliveryPart
    after: _containers.RepeatedScalarFieldContainer[str]
    name: str
    retry: RetryPolicy
    callback: Callback
    reason: str
    message: str
    facts: _containers.ScalarMap[str, str]
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[Kind, str]] = ..., vote: _Optional[_Union[Vote, str]] = ..., xa: _Optional[_Union[XaPart, _Mapping]] = ..., action: _Optional[_Union[ActionPart, _Mapping]] = ..., delivery: _Optional[_Union[DeliveryPart, _Mapping]] = ..., after: _Optional[_Iterable[str]] = ..., name: _Optional[str] = ..., retry: _Optional[_Union[RetryPolicy, _Mapping]] = ..., callback: _Optional[_Union[Callback, _Mapping]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., facts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class XaPart(_message.Message):
    __slots__ = ("resource", "xid", "connection_id", "held", "one_phase")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    XID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    ONE_PHASE_FIELD_NUMBER: _ClassVar[int]
    resource: str
    xid: str
    connection_id: int
    held: bool
    one_phase: bool
    def __init__(self, resource: _Optional[str] = ..., xid: _Optional[str] = ..., connection_id: _Optional[int] = ..., held: bool = ..., one_phase: bool = ...) -> None: ...

class ActionPart(_message.Message):
    __slots__ = ("target", "operation", "payload", "content_type", "run_first", "forward", "no_undo", "first_operation", "commit_operation", "abort_operation", "headers", "results_of", "aborted_means_refused", "result", "result_content_type", "http_method")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIRST_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    NO_UNDO_FIELD_NUMBER: _ClassVar[int]
    FIRST_OPERATION_FIELD_NUMBER: _ClassVar[int]
    COMMIT_OPERATION_FIELD_NUMBER: _ClassVar[int]
    ABORT_OPERATION_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_OF_FIELD_NUMBER: _ClassVar[int]
    ABORTED_MEANS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RESULT_CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    HTTP_METHOD_FIELD_NUMBER: _ClassVar[int]
    target: str
    operation: str
    payload: bytes
    content_type: str
    run_first: bool
    forward: bool
    no_undo: bool
    first_operation: str
    commit_operation: str
    abort_operation: str
    headers: _containers.ScalarMap[str, str]
    results_of: _containers.RepeatedScalarFieldContainer[str]
    aborted_means_refused: bool
    result: bytes
    result_content_type: str
    http_method: str
    def __init__(self, target: _Optional[str] = ..., operation: _Optional[str] = ..., payload: _Optional[bytes] = ..., content_type: _Optional[str] = ..., run_first: bool = ..., forward: bool = ..., no_undo: bool = ..., first_operation: _Optional[str] = ..., commit_operation: _Optional[str] = ..., abort_operation: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., results_of: _Optional[_Iterable[str]] = ..., aborted_means_refused: bool = ..., result: _Optional[bytes] = ..., result_content_type: _Optional[str] = ..., http_method: _Optional[str] = ...) -> None: ...

class DeliveryPart(_message.Message):
    __slots__ = ("target", "operation", "payload", "content_type", "headers", "deliver_at_us", "ordering_key", "partition_key", "message_id", "signing_secrets", "cloud_event", "sql", "aborted_means_refused", "http_method")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    DELIVER_AT_US_FIELD_NUMBER: _ClassVar[int]
    ORDERING_KEY_FIELD_NUMBER: _ClassVar[int]
    PARTITION_KEY_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNING_SECRETS_FIELD_NUMBER: _ClassVar[int]
    CLOUD_EVENT_FIELD_NUMBER: _ClassVar[int]
    SQL_FIELD_NUMBER: _ClassVar[int]
    ABORTED_MEANS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    HTTP_METHOD_FIELD_NUMBER: _ClassVar[int]
    target: str
    operation: str
    payload: bytes
    content_type: str
    headers: _containers.ScalarMap[str, str]
    deliver_at_us: int
    ordering_key: str
    partition_key: bytes
    message_id: str
    signing_secrets: _containers.RepeatedScalarFieldContainer[str]
    cloud_event: CloudEvent
    sql: SqlUnit
    aborted_means_refused: bool
    http_method: str
    def __init__(self, target: _Optional[str] = ..., operation: _Optional[str] = ..., payload: _Optional[bytes] = ..., content_type: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., deliver_at_us: _Optional[int] = ..., ordering_key: _Optional[str] = ..., partition_key: _Optional[bytes] = ..., message_id: _Optional[str] = ..., signing_secrets: _Optional[_Iterable[str]] = ..., cloud_event: _Optional[_Union[CloudEvent, _Mapping]] = ..., sql: _Optional[_Union[SqlUnit, _Mapping]] = ..., aborted_means_refused: bool = ..., http_method: _Optional[str] = ...) -> None: ...

class CloudEvent(_message.Message):
    __slots__ = ("type", "source", "subject", "data_schema", "structured", "extensions")
    class ExtensionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DATA_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_FIELD_NUMBER: _ClassVar[int]
    EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    type: str
    source: str
    subject: str
    data_schema: str
    structured: bool
    extensions: _containers.ScalarMap[str, str]
    def __init__(self, type: _Optional[str] = ..., source: _Optional[str] = ..., subject: _Optional[str] = ..., data_schema: _Optional[str] = ..., structured: bool = ..., extensions: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SqlUnit(_message.Message):
    __slots__ = ("statements",)
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    statements: _containers.RepeatedCompositeFieldContainer[SqlStatement]
    def __init__(self, statements: _Optional[_Iterable[_Union[SqlStatement, _Mapping]]] = ...) -> None: ...

class SqlStatement(_message.Message):
    __slots__ = ("text", "parameters")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SqlValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SqlValue, _Mapping]] = ...) -> None: ...
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    text: str
    parameters: _containers.MessageMap[str, SqlValue]
    def __init__(self, text: _Optional[str] = ..., parameters: _Optional[_Mapping[str, SqlValue]] = ...) -> None: ...

class SqlValue(_message.Message):
    __slots__ = ("null_value", "bool_value", "int_value", "double_value", "string_value", "bytes_value", "decimal_value", "timestamp_us", "date_value", "time_value", "local_timestamp_value", "json_value", "uuid_value")
    NULL_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    DOUBLE_VALUE_FIELD_NUMBER: _ClassVar[int]
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    BYTES_VALUE_FIELD_NUMBER: _ClassVar[int]
    DECIMAL_VALUE_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_US_FIELD_NUMBER: _ClassVar[int]
    DATE_VALUE_FIELD_NUMBER: _ClassVar[int]
    TIME_VALUE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_TIMESTAMP_VALUE_FIELD_NUMBER: _ClassVar[int]
    JSON_VALUE_FIELD_NUMBER: _ClassVar[int]
    UUID_VALUE_FIELD_NUMBER: _ClassVar[int]
    null_value: bool
    bool_value: bool
    int_value: int
    double_value: float
    string_value: str
    bytes_value: bytes
    decimal_value: str
    timestamp_us: int
    date_value: str
    time_value: str
    local_timestamp_value: str
    json_value: str
    uuid_value: str
    def __init__(self, null_value: bool = ..., bool_value: bool = ..., int_value: _Optional[int] = ..., double_value: _Optional[float] = ..., string_value: _Optional[str] = ..., bytes_value: _Optional[bytes] = ..., decimal_value: _Optional[str] = ..., timestamp_us: _Optional[int] = ..., date_value: _Optional[str] = ..., time_value: _Optional[str] = ..., local_timestamp_value: _Optional[str] = ..., json_value: _Optional[str] = ..., uuid_value: _Optional[str] = ...) -> None: ...

class Callback(_message.Message):
    __slots__ = ("id", "delivery", "retry")
    ID_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    id: str
    delivery: DeliveryPart
    retry: RetryPolicy
    def __init__(self, id: _Optional[str] = ..., delivery: _Optional[_Union[DeliveryPart, _Mapping]] = ..., retry: _Optional[_Union[RetryPolicy, _Mapping]] = ...) -> None: ...

class BranchAnswer(_message.Message):
    __slots__ = ("tx_id", "branch", "op", "attempt", "kind", "result", "content_type", "reason", "message", "retry_after_us", "facts", "repeated_call", "will_report")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_US_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    REPEATED_CALL_FIELD_NUMBER: _ClassVar[int]
    WILL_REPORT_FIELD_NUMBER: _ClassVar[int]
    tx_id: str
    branch: str
    op: BranchOp
    attempt: int
    kind: AnswerKind
    result: bytes
    content_type: str
    reason: str
    message: str
    retry_after_us: int
    facts: _containers.ScalarMap[str, str]
    repeated_call: bool
    will_report: bool
    def __init__(self, tx_id: _Optional[str] = ..., branch: _Optional[str] = ..., op: _Optional[_Union[BranchOp, str]] = ..., attempt: _Optional[int] = ..., kind: _Optional[_Union[AnswerKind, str]] = ..., result: _Optional[bytes] = ..., content_type: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_us: _Optional[int] = ..., facts: _Optional[_Mapping[str, str]] = ..., repeated_call: bool = ..., will_report: bool = ...) -> None: ...

class BranchReport(_message.Message):
    __slots__ = ("branch", "event", "xa", "answer", "marker_seen", "message")
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    XA_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    MARKER_SEEN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    branch: str
    event: BranchEvent
    xa: XaPart
    answer: BranchAnswer
    marker_seen: bool
    message: str
    def __init__(self, branch: _Optional[str] = ..., event: _Optional[_Union[BranchEvent, str]] = ..., xa: _Optional[_Union[XaPart, _Mapping]] = ..., answer: _Optional[_Union[BranchAnswer, _Mapping]] = ..., marker_seen: bool = ..., message: _Optional[str] = ...) -> None: ...

class ParticipantOperation(_message.Message):
    __slots__ = ("name", "kind", "ops", "schema")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OPS_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: Kind
    ops: _containers.RepeatedScalarFieldContainer[BranchOp]
    schema: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[Kind, str]] = ..., ops: _Optional[_Iterable[_Union[BranchOp, str]]] = ..., schema: _Optional[str] = ...) -> None: ...

class BranchDetail(_message.Message):
    __slots__ = ("spec", "status", "namespace", "tx_id", "gid", "created_us", "original_payload")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    CREATED_US_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    spec: Branch
    status: BranchStatus
    namespace: str
    tx_id: str
    gid: str
    created_us: int
    original_payload: bytes
    def __init__(self, spec: _Optional[_Union[Branch, _Mapping]] = ..., status: _Optional[_Union[BranchStatus, _Mapping]] = ..., namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., created_us: _Optional[int] = ..., original_payload: _Optional[bytes] = ...) -> None: ...

class Transaction(_message.Message):
    __slots__ = ("namespace", "tx_id", "gid", "outcome", "spec", "created_us", "updated_us", "branches", "history", "owner", "lease_until_us", "epoch", "detail_pruned_us", "earlier")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CREATED_US_FIELD_NUMBER: _ClassVar[int]
    UPDATED_US_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    LEASE_UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DETAIL_PRUNED_US_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    gid: str
    outcome: Outcome
    spec: TransactionSpec
    created_us: int
    updated_us: int
    branches: _containers.RepeatedCompositeFieldContainer[BranchDetail]
    history: _containers.RepeatedCompositeFieldContainer[HistoryEvent]
    owner: str
    lease_until_us: int
    epoch: int
    detail_pruned_us: int
    earlier: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., spec: _Optional[_Union[TransactionSpec, _Mapping]] = ..., created_us: _Optional[int] = ..., updated_us: _Optional[int] = ..., branches: _Optional[_Iterable[_Union[BranchDetail, _Mapping]]] = ..., history: _Optional[_Iterable[_Union[HistoryEvent, _Mapping]]] = ..., owner: _Optional[str] = ..., lease_until_us: _Optional[int] = ..., epoch: _Optional[int] = ..., detail_pruned_us: _Optional[int] = ..., earlier: _Optional[_Iterable[str]] = ...) -> None: ...

class HistoryEvent(_message.Message):
    __slots__ = ("seq", "at_us", "event", "branch", "actor", "reason", "message", "state", "branch_state", "attempt", "node", "facts", "trace_parent")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BRANCH_STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    TRACE_PARENT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    at_us: int
    event: str
    branch: str
    actor: str
    reason: str
    message: str
    state: State
    branch_state: BranchState
    attempt: int
    node: str
    facts: _containers.ScalarMap[str, str]
    trace_parent: str
    def __init__(self, seq: _Optional[int] = ..., at_us: _Optional[int] = ..., event: _Optional[str] = ..., branch: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., state: _Optional[_Union[State, str]] = ..., branch_state: _Optional[_Union[BranchState, str]] = ..., attempt: _Optional[int] = ..., node: _Optional[str] = ..., facts: _Optional[_Mapping[str, str]] = ..., trace_parent: _Optional[str] = ...) -> None: ...

class CallContext(_message.Message):
    __slots__ = ("namespace", "tx_id", "gid", "deadline_us", "branch", "log_id", "name", "headers")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    gid: str
    deadline_us: int
    branch: str
    log_id: str
    name: str
    headers: _containers.ScalarMap[str, str]
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., deadline_us: _Optional[int] = ..., branch: _Optional[str] = ..., log_id: _Optional[str] = ..., name: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CallVote(_message.Message):
    __slots__ = ("tx_id", "branch", "branches", "rollback_only", "reason", "message")
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_ONLY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    tx_id: str
    branch: str
    branches: _containers.RepeatedCompositeFieldContainer[Branch]
    rollback_only: bool
    reason: str
    message: str
    def __init__(self, tx_id: _Optional[str] = ..., branch: _Optional[str] = ..., branches: _Optional[_Iterable[_Union[Branch, _Mapping]]] = ..., rollback_only: bool = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
