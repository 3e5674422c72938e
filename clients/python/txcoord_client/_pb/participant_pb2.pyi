from . import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class QueryBackVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUERY_BACK_VERDICT_UNSPECIFIED: _ClassVar[QueryBackVerdict]
    QUERY_BACK_VERDICT_COMMITTED: _ClassVar[QueryBackVerdict]
    QUERY_BACK_VERDICT_ABORTED: _ClassVar[QueryBackVerdict]
    QUERY_BACK_VERDICT_OPEN: _ClassVar[QueryBackVerdict]
    QUERY_BACK_VERDICT_EXPIRED: _ClassVar[QueryBackVerdict]
QUERY_BACK_VERDICT_UNSPECIFIED: QueryBackVerdict
QUERY_BACK_VERDICT_COMMITTED: QueryBackVerdict
QUERY_BACK_VERDICT_ABORTED: QueryBackVerdict
QUERY_BACK_VERDICT_OPEN: QueryBackVerdict
QUERY_BACK_VERDICT_EXPIRED: QueryBackVerdict

class StepResult(_message.Message):
    __slots__ = ("branch", "name", "result", "content_type")
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    branch: str
    name: str
    result: bytes
    content_type: str
    def __init__(self, branch: _Optional[str] = ..., name: _Optional[str] = ..., result: _Optional[bytes] = ..., content_type: _Optional[str] = ...) -> None: ...

class ActionContext(_message.Message):
    __slots__ = ("tx_id", "gid", "name", "deadline_us", "headers", "trace_parent", "trace_state", "labels", "decision")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    TRACE_PARENT_FIELD_NUMBER: _ClassVar[int]
    TRACE_STATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    tx_id: str
    gid: str
    name: str
    deadline_us: int
    headers: _containers.ScalarMap[str, str]
    trace_parent: str
    trace_state: str
    labels: _containers.ScalarMap[str, str]
    decision: _common_pb2.Decision
    def __init__(self, tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., name: _Optional[str] = ..., deadline_us: _Optional[int] = ..., headers: _Optional[_Mapping[str, str]] = ..., trace_parent: _Optional[str] = ..., trace_state: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., decision: _Optional[_Union[_common_pb2.Decision, str]] = ...) -> None: ...

class BranchAction(_message.Message):
    __slots__ = ("context", "branch", "op", "operation", "attempt", "payload", "content_type", "result", "result_content_type", "call_deadline_us", "headers", "results", "message_id", "kind", "step", "outcome", "callback_id")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RESULT_CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    CALL_DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_ID_FIELD_NUMBER: _ClassVar[int]
    context: int
    branch: str
    op: _common_pb2.BranchOp
    operation: str
    attempt: int
    payload: bytes
    content_type: str
    result: bytes
    result_content_type: str
    call_deadline_us: int
    headers: _containers.ScalarMap[str, str]
    results: _containers.RepeatedCompositeFieldContainer[StepResult]
    message_id: str
    kind: _common_pb2.Kind
    step: str
    outcome: _common_pb2.Outcome
    callback_id: str
    def __init__(self, context: _Optional[int] = ..., branch: _Optional[str] = ..., op: _Optional[_Union[_common_pb2.BranchOp, str]] = ..., operation: _Optional[str] = ..., attempt: _Optional[int] = ..., payload: _Optional[bytes] = ..., content_type: _Optional[str] = ..., result: _Optional[bytes] = ..., result_content_type: _Optional[str] = ..., call_deadline_us: _Optional[int] = ..., headers: _Optional[_Mapping[str, str]] = ..., results: _Optional[_Iterable[_Union[StepResult, _Mapping]]] = ..., message_id: _Optional[str] = ..., kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., step: _Optional[str] = ..., outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., callback_id: _Optional[str] = ...) -> None: ...

class ExecuteRequest(_message.Message):
    __slots__ = ("namespace", "contexts", "actions", "log_time_us", "node", "participant", "log_id")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    contexts: _containers.RepeatedCompositeFieldContainer[ActionContext]
    actions: _containers.RepeatedCompositeFieldContainer[BranchAction]
    log_time_us: int
    node: str
    participant: str
    log_id: str
    def __init__(self, namespace: _Optional[str] = ..., contexts: _Optional[_Iterable[_Union[ActionContext, _Mapping]]] = ..., actions: _Optional[_Iterable[_Union[BranchAction, _Mapping]]] = ..., log_time_us: _Optional[int] = ..., node: _Optional[str] = ..., participant: _Optional[str] = ..., log_id: _Optional[str] = ...) -> None: ...

class ExecuteResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[_common_pb2.BranchAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[_common_pb2.BranchAnswer, _Mapping]]] = ...) -> None: ...

class QueryBackItem(_message.Message):
    __slots__ = ("tx_id", "gid", "branch", "deadline_us", "headers", "participant", "identity")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    tx_id: str
    gid: str
    branch: str
    deadline_us: int
    headers: _containers.ScalarMap[str, str]
    participant: str
    identity: str
    def __init__(self, tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., branch: _Optional[str] = ..., deadline_us: _Optional[int] = ..., headers: _Optional[_Mapping[str, str]] = ..., participant: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...

class QueryBackRequest(_message.Message):
    __slots__ = ("namespace", "items", "log_time_us", "node", "log_id")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    items: _containers.RepeatedCompositeFieldContainer[QueryBackItem]
    log_time_us: int
    node: str
    log_id: str
    def __init__(self, namespace: _Optional[str] = ..., items: _Optional[_Iterable[_Union[QueryBackItem, _Mapping]]] = ..., log_time_us: _Optional[int] = ..., node: _Optional[str] = ..., log_id: _Optional[str] = ...) -> None: ...

class QueryBackAnswer(_message.Message):
    __slots__ = ("tx_id", "branch", "verdict", "retry_after_us", "message")
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_US_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    tx_id: str
    branch: str
    verdict: QueryBackVerdict
    retry_after_us: int
    message: str
    def __init__(self, tx_id: _Optional[str] = ..., branch: _Optional[str] = ..., verdict: _Optional[_Union[QueryBackVerdict, str]] = ..., retry_after_us: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class QueryBackResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[QueryBackAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[QueryBackAnswer, _Mapping]]] = ...) -> None: ...
