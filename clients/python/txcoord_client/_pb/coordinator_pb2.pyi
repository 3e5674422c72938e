from . import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("namespace", "client", "client_version", "instance", "features")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    client: str
    client_version: str
    instance: str
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, namespace: _Optional[str] = ..., client: _Optional[str] = ..., client_version: _Optional[str] = ..., instance: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("log_id", "incarnation", "log_time_us", "node", "version", "limits", "features", "resources", "earlier_log_ids")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    EARLIER_LOG_IDS_FIELD_NUMBER: _ClassVar[int]
    log_id: str
    incarnation: int
    log_time_us: int
    node: str
    version: str
    limits: Limits
    features: _containers.RepeatedScalarFieldContainer[str]
    resources: _containers.RepeatedCompositeFieldContainer[ResourceInfo]
    earlier_log_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, log_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., log_time_us: _Optional[int] = ..., node: _Optional[str] = ..., version: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., features: _Optional[_Iterable[str]] = ..., resources: _Optional[_Iterable[_Union[ResourceInfo, _Mapping]]] = ..., earlier_log_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_payload_bytes", "max_message_bytes", "max_operations", "max_branches", "max_deadline_us", "default_deadline_us", "grace_us", "retention_us", "marker_retention_us", "max_labels", "max_headers_bytes", "max_wait_us", "call_timeout_us")
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_BRANCHES_FIELD_NUMBER: _ClassVar[int]
    MAX_DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    GRACE_US_FIELD_NUMBER: _ClassVar[int]
    RETENTION_US_FIELD_NUMBER: _ClassVar[int]
    MARKER_RETENTION_US_FIELD_NUMBER: _ClassVar[int]
    MAX_LABELS_FIELD_NUMBER: _ClassVar[int]
    MAX_HEADERS_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    CALL_TIMEOUT_US_FIELD_NUMBER: _ClassVar[int]
    max_payload_bytes: int
    max_message_bytes: int
    max_operations: int
    max_branches: int
    max_deadline_us: int
    default_deadline_us: int
    grace_us: int
    retention_us: int
    marker_retention_us: int
    max_labels: int
    max_headers_bytes: int
    max_wait_us: int
    call_timeout_us: int
    def __init__(self, max_payload_bytes: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_operations: _Optional[int] = ..., max_branches: _Optional[int] = ..., max_deadline_us: _Optional[int] = ..., default_deadline_us: _Optional[int] = ..., grace_us: _Optional[int] = ..., retention_us: _Optional[int] = ..., marker_retention_us: _Optional[int] = ..., max_labels: _Optional[int] = ..., max_headers_bytes: _Optional[int] = ..., max_wait_us: _Optional[int] = ..., call_timeout_us: _Optional[int] = ...) -> None: ...

class ResourceInfo(_message.Message):
    __slots__ = ("name", "engine", "identity", "engine_version", "available", "problem")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    name: str
    engine: str
    identity: str
    engine_version: str
    available: bool
    problem: str
    def __init__(self, name: _Optional[str] = ..., engine: _Optional[str] = ..., identity: _Optional[str] = ..., engine_version: _Optional[str] = ..., available: bool = ..., problem: _Optional[str] = ...) -> None: ...

class BeginRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "gid", "deadline_us", "spec")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    gid: str
    deadline_us: int
    spec: _common_pb2.TransactionSpec
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., deadline_us: _Optional[int] = ..., spec: _Optional[_Union[_common_pb2.TransactionSpec, _Mapping]] = ...) -> None: ...

class BeginResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class EnlistRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "deadline_us", "branches", "gid", "begun", "spec", "run", "wait_us")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    deadline_us: int
    branches: _containers.RepeatedCompositeFieldContainer[_common_pb2.Branch]
    gid: str
    begun: bool
    spec: _common_pb2.TransactionSpec
    run: bool
    wait_us: int
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., deadline_us: _Optional[int] = ..., branches: _Optional[_Iterable[_Union[_common_pb2.Branch, _Mapping]]] = ..., gid: _Optional[str] = ..., begun: bool = ..., spec: _Optional[_Union[_common_pb2.TransactionSpec, _Mapping]] = ..., run: bool = ..., wait_us: _Optional[int] = ...) -> None: ...

class EnlistResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class BranchVote(_message.Message):
    __slots__ = ("branch", "vote", "reason", "message", "xa", "result", "content_type", "facts")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    XA_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    branch: str
    vote: _common_pb2.Vote
    reason: str
    message: str
    xa: _common_pb2.XaPart
    result: bytes
    content_type: str
    facts: _containers.ScalarMap[str, str]
    def __init__(self, branch: _Optional[str] = ..., vote: _Optional[_Union[_common_pb2.Vote, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., xa: _Optional[_Union[_common_pb2.XaPart, _Mapping]] = ..., result: _Optional[bytes] = ..., content_type: _Optional[str] = ..., facts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class VoteRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "deadline_us", "votes", "gid")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    deadline_us: int
    votes: _containers.RepeatedCompositeFieldContainer[BranchVote]
    gid: str
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., deadline_us: _Optional[int] = ..., votes: _Optional[_Iterable[_Union[BranchVote, _Mapping]]] = ..., gid: _Optional[str] = ...) -> None: ...

class VoteResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "deadline_us", "begun", "branches", "wait", "wait_us", "gid", "spec", "result")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    deadline_us: int
    begun: bool
    branches: _containers.RepeatedCompositeFieldContainer[_common_pb2.Branch]
    wait: _common_pb2.WaitLevel
    wait_us: int
    gid: str
    spec: _common_pb2.TransactionSpec
    result: bytes
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., deadline_us: _Optional[int] = ..., begun: bool = ..., branches: _Optional[_Iterable[_Union[_common_pb2.Branch, _Mapping]]] = ..., wait: _Optional[_Union[_common_pb2.WaitLevel, str]] = ..., wait_us: _Optional[int] = ..., gid: _Optional[str] = ..., spec: _Optional[_Union[_common_pb2.TransactionSpec, _Mapping]] = ..., result: _Optional[bytes] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "deadline_us", "branches", "resources", "initiator", "sealed", "force_log", "wait", "wait_us", "gid", "begun", "reason", "message", "retriable", "facts")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    INITIATOR_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    FORCE_LOG_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRIABLE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    deadline_us: int
    branches: _containers.RepeatedCompositeFieldContainer[_common_pb2.Branch]
    resources: _containers.RepeatedScalarFieldContainer[str]
    initiator: bool
    sealed: bool
    force_log: bool
    wait: _common_pb2.WaitLevel
    wait_us: int
    gid: str
    begun: bool
    reason: str
    message: str
    retriable: bool
    facts: _containers.ScalarMap[str, str]
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., deadline_us: _Optional[int] = ..., branches: _Optional[_Iterable[_Union[_common_pb2.Branch, _Mapping]]] = ..., resources: _Optional[_Iterable[str]] = ..., initiator: bool = ..., sealed: bool = ..., force_log: bool = ..., wait: _Optional[_Union[_common_pb2.WaitLevel, str]] = ..., wait_us: _Optional[int] = ..., gid: _Optional[str] = ..., begun: bool = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., retriable: bool = ..., facts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "gid", "deadline_us", "branches", "spec", "wait", "wait_us")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    gid: str
    deadline_us: int
    branches: _containers.RepeatedCompositeFieldContainer[_common_pb2.Branch]
    spec: _common_pb2.TransactionSpec
    wait: _common_pb2.WaitLevel
    wait_us: int
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., deadline_us: _Optional[int] = ..., branches: _Optional[_Iterable[_Union[_common_pb2.Branch, _Mapping]]] = ..., spec: _Optional[_Union[_common_pb2.TransactionSpec, _Mapping]] = ..., wait: _Optional[_Union[_common_pb2.WaitLevel, str]] = ..., wait_us: _Optional[int] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class MessageCheck(_message.Message):
    __slots__ = ("resource", "target", "branch", "interval_us", "headers", "participant", "identity")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_US_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    resource: str
    target: str
    branch: str
    interval_us: int
    headers: _containers.ScalarMap[str, str]
    participant: str
    identity: str
    def __init__(self, resource: _Optional[str] = ..., target: _Optional[str] = ..., branch: _Optional[str] = ..., interval_us: _Optional[int] = ..., headers: _Optional[_Mapping[str, str]] = ..., participant: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...

class PrepareMessageRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "deadline_us", "branches", "check", "gid", "spec")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    deadline_us: int
    branches: _containers.RepeatedCompositeFieldContainer[_common_pb2.Branch]
    check: MessageCheck
    gid: str
    spec: _common_pb2.TransactionSpec
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., deadline_us: _Optional[int] = ..., branches: _Optional[_Iterable[_Union[_common_pb2.Branch, _Mapping]]] = ..., check: _Optional[_Union[MessageCheck, _Mapping]] = ..., gid: _Optional[str] = ..., spec: _Optional[_Union[_common_pb2.TransactionSpec, _Mapping]] = ...) -> None: ...

class PrepareMessageResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class SubmitMessageRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "deadline_us", "gid", "wait", "wait_us", "result")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    deadline_us: int
    gid: str
    wait: _common_pb2.WaitLevel
    wait_us: int
    result: bytes
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., deadline_us: _Optional[int] = ..., gid: _Optional[str] = ..., wait: _Optional[_Union[_common_pb2.WaitLevel, str]] = ..., wait_us: _Optional[int] = ..., result: _Optional[bytes] = ...) -> None: ...

class SubmitMessageResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "deadline_us", "reports", "gid", "spec", "result", "begun")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    deadline_us: int
    reports: _containers.RepeatedCompositeFieldContainer[_common_pb2.BranchReport]
    gid: str
    spec: _common_pb2.TransactionSpec
    result: bytes
    begun: bool
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., deadline_us: _Optional[int] = ..., reports: _Optional[_Iterable[_Union[_common_pb2.BranchReport, _Mapping]]] = ..., gid: _Optional[str] = ..., spec: _Optional[_Union[_common_pb2.TransactionSpec, _Mapping]] = ..., result: _Optional[bytes] = ..., begun: bool = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class WaitItem(_message.Message):
    __slots__ = ("tx_id", "gid", "level", "branches", "all_branches", "expected")
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    ALL_BRANCHES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    tx_id: str
    gid: str
    level: _common_pb2.WaitLevel
    branches: _containers.RepeatedScalarFieldContainer[str]
    all_branches: bool
    expected: bool
    def __init__(self, tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., level: _Optional[_Union[_common_pb2.WaitLevel, str]] = ..., branches: _Optional[_Iterable[str]] = ..., all_branches: bool = ..., expected: bool = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("namespace", "items", "wait_us")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    items: _containers.RepeatedCompositeFieldContainer[WaitItem]
    wait_us: int
    def __init__(self, namespace: _Optional[str] = ..., items: _Optional[_Iterable[_Union[WaitItem, _Mapping]]] = ..., wait_us: _Optional[int] = ...) -> None: ...

class WaitResult(_message.Message):
    __slots__ = ("index", "outcome", "status")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    index: int
    outcome: _common_pb2.Outcome
    status: _common_pb2.Status
    def __init__(self, index: _Optional[int] = ..., outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., status: _Optional[_Union[_common_pb2.Status, _Mapping]] = ...) -> None: ...

class WaitResponse(_message.Message):
    __slots__ = ("results", "log_time_us")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[WaitResult]
    log_time_us: int
    def __init__(self, results: _Optional[_Iterable[_Union[WaitResult, _Mapping]]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "gid", "history", "payloads")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    gid: str
    history: bool
    payloads: bool
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., history: bool = ..., payloads: bool = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("transaction", "log_time_us")
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    transaction: _common_pb2.Transaction
    log_time_us: int
    def __init__(self, transaction: _Optional[_Union[_common_pb2.Transaction, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("namespace", "filter", "page_size", "page_token", "order_by")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    filter: str
    page_size: int
    page_token: str
    order_by: str
    def __init__(self, namespace: _Optional[str] = ..., filter: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., order_by: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("transactions", "next_page_token", "log_time_us")
    TRANSACTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    transactions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Transaction]
    next_page_token: str
    log_time_us: int
    def __init__(self, transactions: _Optional[_Iterable[_Union[_common_pb2.Transaction, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class ListDeliveriesRequest(_message.Message):
    __slots__ = ("namespace", "target", "since_us", "states", "page_size", "page_token", "payloads", "parked_only")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    PARKED_ONLY_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    target: str
    since_us: int
    states: _containers.RepeatedScalarFieldContainer[_common_pb2.BranchState]
    page_size: int
    page_token: str
    payloads: bool
    parked_only: bool
    def __init__(self, namespace: _Optional[str] = ..., target: _Optional[str] = ..., since_us: _Optional[int] = ..., states: _Optional[_Iterable[_Union[_common_pb2.BranchState, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., payloads: bool = ..., parked_only: bool = ...) -> None: ...

class ListDeliveriesResponse(_message.Message):
    __slots__ = ("deliveries", "next_page_token", "log_time_us")
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    deliveries: _containers.RepeatedCompositeFieldContainer[_common_pb2.BranchDetail]
    next_page_token: str
    log_time_us: int
    def __init__(self, deliveries: _Optional[_Iterable[_Union[_common_pb2.BranchDetail, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class RegisterCallbackRequest(_message.Message):
    __slots__ = ("namespace", "tx_id", "gid", "callback")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tx_id: str
    gid: str
    callback: _common_pb2.Callback
    def __init__(self, namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., callback: _Optional[_Union[_common_pb2.Callback, _Mapping]] = ...) -> None: ...

class RegisterCallbackResponse(_message.Message):
    __slots__ = ("outcome", "log_time_us")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    outcome: _common_pb2.Outcome
    log_time_us: int
    def __init__(self, outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class RegisterParticipantRequest(_message.Message):
    __slots__ = ("namespace", "participant", "instance", "address", "operations", "version", "max_in_flight", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    participant: str
    instance: str
    address: str
    operations: _containers.RepeatedCompositeFieldContainer[_common_pb2.ParticipantOperation]
    version: str
    max_in_flight: int
    labels: _containers.ScalarMap[str, str]
    def __init__(self, namespace: _Optional[str] = ..., participant: _Optional[str] = ..., instance: _Optional[str] = ..., address: _Optional[str] = ..., operations: _Optional[_Iterable[_Union[_common_pb2.ParticipantOperation, _Mapping]]] = ..., version: _Optional[str] = ..., max_in_flight: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RegisterParticipantResponse(_message.Message):
    __slots__ = ("heartbeat_us", "expires_us", "log_time_us")
    HEARTBEAT_US_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_US_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    heartbeat_us: int
    expires_us: int
    log_time_us: int
    def __init__(self, heartbeat_us: _Optional[int] = ..., expires_us: _Optional[int] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class HeartbeatParticipantRequest(_message.Message):
    __slots__ = ("namespace", "participant", "instance", "leaving")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    participant: str
    instance: str
    leaving: bool
    def __init__(self, namespace: _Optional[str] = ..., participant: _Optional[str] = ..., instance: _Optional[str] = ..., leaving: bool = ...) -> None: ...

class HeartbeatParticipantResponse(_message.Message):
    __slots__ = ("known", "expires_us", "log_time_us")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_US_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    known: bool
    expires_us: int
    log_time_us: int
    def __init__(self, known: bool = ..., expires_us: _Optional[int] = ..., log_time_us: _Optional[int] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("op_id", "commit", "begin", "enlist", "vote", "rollback", "report", "wait", "get", "submit", "prepare_message", "submit_message", "register_callback", "trace_parent")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    ENLIST_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    PREPARE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REGISTER_CALLBACK_FIELD_NUMBER: _ClassVar[int]
    TRACE_PARENT_FIELD_NUMBER: _ClassVar[int]
    op_id: int
    commit: CommitRequest
    begin: BeginRequest
    enlist: EnlistRequest
    vote: VoteRequest
    rollback: RollbackRequest
    report: ReportRequest
    wait: WaitRequest
    get: GetRequest
    submit: SubmitRequest
    prepare_message: PrepareMessageRequest
    submit_message: SubmitMessageRequest
    register_callback: RegisterCallbackRequest
    trace_parent: str
    def __init__(self, op_id: _Optional[int] = ..., commit: _Optional[_Union[CommitRequest, _Mapping]] = ..., begin: _Optional[_Union[BeginRequest, _Mapping]] = ..., enlist: _Optional[_Union[EnlistRequest, _Mapping]] = ..., vote: _Optional[_Union[VoteRequest, _Mapping]] = ..., rollback: _Optional[_Union[RollbackRequest, _Mapping]] = ..., report: _Optional[_Union[ReportRequest, _Mapping]] = ..., wait: _Optional[_Union[WaitRequest, _Mapping]] = ..., get: _Optional[_Union[GetRequest, _Mapping]] = ..., submit: _Optional[_Union[SubmitRequest, _Mapping]] = ..., prepare_message: _Optional[_Union[PrepareMessageRequest, _Mapping]] = ..., submit_message: _Optional[_Union[SubmitMessageRequest, _Mapping]] = ..., register_callback: _Optional[_Union[RegisterCallbackRequest, _Mapping]] = ..., trace_parent: _Optional[str] = ...) -> None: ...

class OperationResult(_message.Message):
    __slots__ = ("op_id", "commit", "begin", "enlist", "vote", "rollback", "report", "wait", "get", "submit", "prepare_message", "submit_message", "register_callback", "status")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    ENLIST_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    PREPARE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REGISTER_CALLBACK_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    op_id: int
    commit: CommitResponse
    begin: BeginResponse
    enlist: EnlistResponse
    vote: VoteResponse
    rollback: RollbackResponse
    report: ReportResponse
    wait: WaitResponse
    get: GetResponse
    submit: SubmitResponse
    prepare_message: PrepareMessageResponse
    submit_message: SubmitMessageResponse
    register_callback: RegisterCallbackResponse
    status: _common_pb2.Status
    def __init__(self, op_id: _Optional[int] = ..., commit: _Optional[_Union[CommitResponse, _Mapping]] = ..., begin: _Optional[_Union[BeginResponse, _Mapping]] = ..., enlist: _Optional[_Union[EnlistResponse, _Mapping]] = ..., vote: _Optional[_Union[VoteResponse, _Mapping]] = ..., rollback: _Optional[_Union[RollbackResponse, _Mapping]] = ..., report: _Optional[_Union[ReportResponse, _Mapping]] = ..., wait: _Optional[_Union[WaitResponse, _Mapping]] = ..., get: _Optional[_Union[GetResponse, _Mapping]] = ..., submit: _Optional[_Union[SubmitResponse, _Mapping]] = ..., prepare_message: _Optional[_Union[PrepareMessageResponse, _Mapping]] = ..., submit_message: _Optional[_Union[SubmitMessageResponse, _Mapping]] = ..., register_callback: _Optional[_Union[RegisterCallbackResponse, _Mapping]] = ..., status: _Optional[_Union[_common_pb2.Status, _Mapping]] = ...) -> None: ...

class BatchRequest(_message.Message):
    __slots__ = ("operations", "namespace", "log_id", "request_id")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    namespace: str
    log_id: str
    request_id: str
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., namespace: _Optional[str] = ..., log_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class BatchResponse(_message.Message):
    __slots__ = ("results", "log_time_us", "draining")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[OperationResult]
    log_time_us: int
    draining: bool
    def __init__(self, results: _Optional[_Iterable[_Union[OperationResult, _Mapping]]] = ..., log_time_us: _Optional[int] = ..., draining: bool = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("operations", "namespace", "log_id", "cancel")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    namespace: str
    log_id: str
    cancel: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., namespace: _Optional[str] = ..., log_id: _Optional[str] = ..., cancel: _Optional[_Iterable[int]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("results", "log_time_us", "draining")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_US_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[OperationResult]
    log_time_us: int
    draining: bool
    def __init__(self, results: _Optional[_Iterable[_Union[OperationResult, _Mapping]]] = ..., log_time_us: _Optional[int] = ..., draining: bool = ...) -> None: ...
