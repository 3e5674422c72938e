from . import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplayState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLAY_STATE_UNSPECIFIED: _ClassVar[ReplayState]
    REPLAY_STATE_RUNNING: _ClassVar[ReplayState]
    REPLAY_STATE_STOPPED: _ClassVar[ReplayState]
    REPLAY_STATE_CANCELLED: _ClassVar[ReplayState]
    REPLAY_STATE_DONE: _ClassVar[ReplayState]

class TargetState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TARGET_STATE_UNSPECIFIED: _ClassVar[TargetState]
    TARGET_STATE_HEALTHY: _ClassVar[TargetState]
    TARGET_STATE_PROBING: _ClassVar[TargetState]
    TARGET_STATE_PAUSED: _ClassVar[TargetState]
    TARGET_STATE_DISABLED: _ClassVar[TargetState]
REPLAY_STATE_UNSPECIFIED: ReplayState
REPLAY_STATE_RUNNING: ReplayState
REPLAY_STATE_STOPPED: ReplayState
REPLAY_STATE_CANCELLED: ReplayState
REPLAY_STATE_DONE: ReplayState
TARGET_STATE_UNSPECIFIED: TargetState
TARGET_STATE_HEALTHY: TargetState
TARGET_STATE_PROBING: TargetState
TARGET_STATE_PAUSED: TargetState
TARGET_STATE_DISABLED: TargetState

class Audit(_message.Message):
    __slots__ = ("actor", "reason", "request_id", "dry_run")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    actor: str
    reason: str
    request_id: str
    dry_run: bool
    def __init__(self, actor: _Optional[str] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ..., dry_run: bool = ...) -> None: ...

class Selector(_message.Message):
    __slots__ = ("tx_id", "gid", "branches", "filter", "limit")
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    tx_id: str
    gid: str
    branches: _containers.RepeatedScalarFieldContainer[str]
    filter: str
    limit: int
    def __init__(self, tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., branches: _Optional[_Iterable[str]] = ..., filter: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class Effect(_message.Message):
    __slots__ = ("tx_id", "gid", "branch", "effect", "refused", "state", "message")
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    tx_id: str
    gid: str
    branch: str
    effect: str
    refused: _common_pb2.Status
    state: _common_pb2.BranchState
    message: str
    def __init__(self, tx_id: _Optional[str] = ..., gid: _Optional[str] = ..., branch: _Optional[str] = ..., effect: _Optional[str] = ..., refused: _Optional[_Union[_common_pb2.Status, _Mapping]] = ..., state: _Optional[_Union[_common_pb2.BranchState, str]] = ..., message: _Optional[str] = ...) -> None: ...

class ParkRequest(_message.Message):
    __slots__ = ("namespace", "audit", "selector")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    selector: Selector
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., selector: _Optional[_Union[Selector, _Mapping]] = ...) -> None: ...

class ParkResponse(_message.Message):
    __slots__ = ("effects", "more")
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    effects: _containers.RepeatedCompositeFieldContainer[Effect]
    more: bool
    def __init__(self, effects: _Optional[_Iterable[_Union[Effect, _Mapping]]] = ..., more: bool = ...) -> None: ...

class SkipRequest(_message.Message):
    __slots__ = ("namespace", "audit", "selector")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    selector: Selector
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., selector: _Optional[_Union[Selector, _Mapping]] = ...) -> None: ...

class SkipResponse(_message.Message):
    __slots__ = ("effects", "more")
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    effects: _containers.RepeatedCompositeFieldContainer[Effect]
    more: bool
    def __init__(self, effects: _Optional[_Iterable[_Union[Effect, _Mapping]]] = ..., more: bool = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("namespace", "audit", "selector", "resolved_as", "heuristic")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_AS_FIELD_NUMBER: _ClassVar[int]
    HEURISTIC_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    selector: Selector
    resolved_as: _common_pb2.Decision
    heuristic: _common_pb2.Heuristic
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., selector: _Optional[_Union[Selector, _Mapping]] = ..., resolved_as: _Optional[_Union[_common_pb2.Decision, str]] = ..., heuristic: _Optional[_Union[_common_pb2.Heuristic, str]] = ...) -> None: ...

class ResolveResponse(_message.Message):
    __slots__ = ("effects",)
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    effects: _containers.RepeatedCompositeFieldContainer[Effect]
    def __init__(self, effects: _Optional[_Iterable[_Union[Effect, _Mapping]]] = ...) -> None: ...

class RetryRequest(_message.Message):
    __slots__ = ("namespace", "audit", "selector", "payload", "reset_attempts", "early")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    RESET_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    EARLY_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    selector: Selector
    payload: bytes
    reset_attempts: bool
    early: bool
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., selector: _Optional[_Union[Selector, _Mapping]] = ..., payload: _Optional[bytes] = ..., reset_attempts: bool = ..., early: bool = ...) -> None: ...

class RetryResponse(_message.Message):
    __slots__ = ("effects", "more")
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    effects: _containers.RepeatedCompositeFieldContainer[Effect]
    more: bool
    def __init__(self, effects: _Optional[_Iterable[_Union[Effect, _Mapping]]] = ..., more: bool = ...) -> None: ...

class ListParkedGroupsRequest(_message.Message):
    __slots__ = ("namespace", "filter", "limit")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    filter: str
    limit: int
    def __init__(self, namespace: _Optional[str] = ..., filter: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ParkedGroup(_message.Message):
    __slots__ = ("kind", "target", "reason", "fingerprint", "count", "oldest_us", "newest_us", "example_tx_id", "filter", "message", "failed_again")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    OLDEST_US_FIELD_NUMBER: _ClassVar[int]
    NEWEST_US_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_TX_ID_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAILED_AGAIN_FIELD_NUMBER: _ClassVar[int]
    kind: _common_pb2.Kind
    target: str
    reason: str
    fingerprint: str
    count: int
    oldest_us: int
    newest_us: int
    example_tx_id: str
    filter: str
    message: str
    failed_again: int
    def __init__(self, kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., target: _Optional[str] = ..., reason: _Optional[str] = ..., fingerprint: _Optional[str] = ..., count: _Optional[int] = ..., oldest_us: _Optional[int] = ..., newest_us: _Optional[int] = ..., example_tx_id: _Optional[str] = ..., filter: _Optional[str] = ..., message: _Optional[str] = ..., failed_again: _Optional[int] = ...) -> None: ...

class ListParkedGroupsResponse(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[ParkedGroup]
    def __init__(self, groups: _Optional[_Iterable[_Union[ParkedGroup, _Mapping]]] = ...) -> None: ...

class StartReplayRequest(_message.Message):
    __slots__ = ("namespace", "audit", "filter", "target", "since_us", "limit", "rate_per_s", "canary", "max_failures", "by_hand")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    MAX_FAILURES_FIELD_NUMBER: _ClassVar[int]
    BY_HAND_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    filter: str
    target: str
    since_us: int
    limit: int
    rate_per_s: float
    canary: _containers.RepeatedScalarFieldContainer[int]
    max_failures: int
    by_hand: bool
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., filter: _Optional[str] = ..., target: _Optional[str] = ..., since_us: _Optional[int] = ..., limit: _Optional[int] = ..., rate_per_s: _Optional[float] = ..., canary: _Optional[_Iterable[int]] = ..., max_failures: _Optional[int] = ..., by_hand: bool = ...) -> None: ...

class StartReplayResponse(_message.Message):
    __slots__ = ("replay",)
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    replay: Replay
    def __init__(self, replay: _Optional[_Union[Replay, _Mapping]] = ...) -> None: ...

class Replay(_message.Message):
    __slots__ = ("id", "state", "request", "taken", "succeeded", "failed_again", "refused", "started_us", "updated_us", "ended_us", "message", "owner", "canary_step")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_AGAIN_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    STARTED_US_FIELD_NUMBER: _ClassVar[int]
    UPDATED_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_US_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    CANARY_STEP_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: ReplayState
    request: StartReplayRequest
    taken: int
    succeeded: int
    failed_again: int
    refused: int
    started_us: int
    updated_us: int
    ended_us: int
    message: str
    owner: str
    canary_step: int
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[ReplayState, str]] = ..., request: _Optional[_Union[StartReplayRequest, _Mapping]] = ..., taken: _Optional[int] = ..., succeeded: _Optional[int] = ..., failed_again: _Optional[int] = ..., refused: _Optional[int] = ..., started_us: _Optional[int] = ..., updated_us: _Optional[int] = ..., ended_us: _Optional[int] = ..., message: _Optional[str] = ..., owner: _Optional[str] = ..., canary_step: _Optional[int] = ...) -> None: ...

class GetReplayRequest(_message.Message):
    __slots__ = ("namespace", "id")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    id: str
    def __init__(self, namespace: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class GetReplayResponse(_message.Message):
    __slots__ = ("replay",)
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    replay: Replay
    def __init__(self, replay: _Optional[_Union[Replay, _Mapping]] = ...) -> None: ...

class CancelReplayRequest(_message.Message):
    __slots__ = ("namespace", "audit", "id")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    id: str
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., id: _Optional[str] = ...) -> None: ...

class CancelReplayResponse(_message.Message):
    __slots__ = ("replay",)
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    replay: Replay
    def __init__(self, replay: _Optional[_Union[Replay, _Mapping]] = ...) -> None: ...

class ResumeReplayRequest(_message.Message):
    __slots__ = ("namespace", "audit", "id", "rate_per_s")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    id: str
    rate_per_s: float
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., id: _Optional[str] = ..., rate_per_s: _Optional[float] = ...) -> None: ...

class ResumeReplayResponse(_message.Message):
    __slots__ = ("replay",)
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    replay: Replay
    def __init__(self, replay: _Optional[_Union[Replay, _Mapping]] = ...) -> None: ...

class ListReplaysRequest(_message.Message):
    __slots__ = ("namespace", "page_size", "page_token")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    page_size: int
    page_token: str
    def __init__(self, namespace: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListReplaysResponse(_message.Message):
    __slots__ = ("replays", "next_page_token")
    REPLAYS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    replays: _containers.RepeatedCompositeFieldContainer[Replay]
    next_page_token: str
    def __init__(self, replays: _Optional[_Iterable[_Union[Replay, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListReplayItemsRequest(_message.Message):
    __slots__ = ("namespace", "id", "page_size", "page_token")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    id: str
    page_size: int
    page_token: str
    def __init__(self, namespace: _Optional[str] = ..., id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListReplayItemsResponse(_message.Message):
    __slots__ = ("effects", "next_page_token")
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    effects: _containers.RepeatedCompositeFieldContainer[Effect]
    next_page_token: str
    def __init__(self, effects: _Optional[_Iterable[_Union[Effect, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class TargetLimits(_message.Message):
    __slots__ = ("rate_per_s", "max_in_flight")
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    rate_per_s: float
    max_in_flight: int
    def __init__(self, rate_per_s: _Optional[float] = ..., max_in_flight: _Optional[int] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("name", "state", "message", "in_flight", "backlog", "oldest_due_us", "limits", "alias_of", "state_since_us", "instances", "parked", "calls_per_s", "failures_per_s", "p99_us")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    OLDEST_DUE_US_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ALIAS_OF_FIELD_NUMBER: _ClassVar[int]
    STATE_SINCE_US_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    CALLS_PER_S_FIELD_NUMBER: _ClassVar[int]
    FAILURES_PER_S_FIELD_NUMBER: _ClassVar[int]
    P99_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: TargetState
    message: str
    in_flight: int
    backlog: int
    oldest_due_us: int
    limits: TargetLimits
    alias_of: str
    state_since_us: int
    instances: _containers.RepeatedCompositeFieldContainer[TargetInstance]
    parked: int
    calls_per_s: float
    failures_per_s: float
    p99_us: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[TargetState, str]] = ..., message: _Optional[str] = ..., in_flight: _Optional[int] = ..., backlog: _Optional[int] = ..., oldest_due_us: _Optional[int] = ..., limits: _Optional[_Union[TargetLimits, _Mapping]] = ..., alias_of: _Optional[str] = ..., state_since_us: _Optional[int] = ..., instances: _Optional[_Iterable[_Union[TargetInstance, _Mapping]]] = ..., parked: _Optional[int] = ..., calls_per_s: _Optional[float] = ..., failures_per_s: _Optional[float] = ..., p99_us: _Optional[int] = ...) -> None: ...

class TargetInstance(_message.Message):
    __slots__ = ("instance", "address", "version", "expires_us")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_US_FIELD_NUMBER: _ClassVar[int]
    instance: str
    address: str
    version: str
    expires_us: int
    def __init__(self, instance: _Optional[str] = ..., address: _Optional[str] = ..., version: _Optional[str] = ..., expires_us: _Optional[int] = ...) -> None: ...

class ListTargetsRequest(_message.Message):
    __slots__ = ("namespace", "filter", "page_size", "page_token")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    filter: str
    page_size: int
    page_token: str
    def __init__(self, namespace: _Optional[str] = ..., filter: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTargetsResponse(_message.Message):
    __slots__ = ("targets", "next_page_token")
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    next_page_token: str
    def __init__(self, targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class PauseTargetRequest(_message.Message):
    __slots__ = ("namespace", "audit", "target", "until_us", "force")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    target: str
    until_us: int
    force: bool
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., target: _Optional[str] = ..., until_us: _Optional[int] = ..., force: bool = ...) -> None: ...

class PauseTargetResponse(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: Target
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ...) -> None: ...

class ResumeTargetRequest(_message.Message):
    __slots__ = ("namespace", "audit", "target")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    target: str
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., target: _Optional[str] = ...) -> None: ...

class ResumeTargetResponse(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: Target
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ...) -> None: ...

class LimitTargetRequest(_message.Message):
    __slots__ = ("namespace", "audit", "target", "limits", "force")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    target: str
    limits: TargetLimits
    force: bool
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., target: _Optional[str] = ..., limits: _Optional[_Union[TargetLimits, _Mapping]] = ..., force: bool = ...) -> None: ...

class LimitTargetResponse(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: Target
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ...) -> None: ...

class AliasTargetRequest(_message.Message):
    __slots__ = ("namespace", "audit", "target", "alias_of")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ALIAS_OF_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    target: str
    alias_of: str
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., target: _Optional[str] = ..., alias_of: _Optional[str] = ...) -> None: ...

class AliasTargetResponse(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: Target
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "role", "version", "started_us", "seen_us", "draining", "owned", "clock_offset_us", "address", "duties", "gone")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_US_FIELD_NUMBER: _ClassVar[int]
    SEEN_US_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    OWNED_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSET_US_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DUTIES_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    version: str
    started_us: int
    seen_us: int
    draining: bool
    owned: int
    clock_offset_us: int
    address: str
    duties: _containers.RepeatedScalarFieldContainer[str]
    gone: bool
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., version: _Optional[str] = ..., started_us: _Optional[int] = ..., seen_us: _Optional[int] = ..., draining: bool = ..., owned: _Optional[int] = ..., clock_offset_us: _Optional[int] = ..., address: _Optional[str] = ..., duties: _Optional[_Iterable[str]] = ..., gone: bool = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ("namespace",)
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    def __init__(self, namespace: _Optional[str] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes", "retries_wait")
    NODES_FIELD_NUMBER: _ClassVar[int]
    RETRIES_WAIT_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    retries_wait: bool
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., retries_wait: bool = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("namespace", "audit", "node", "undo")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    audit: Audit
    node: str
    undo: bool
    def __init__(self, namespace: _Optional[str] = ..., audit: _Optional[_Union[Audit, _Mapping]] = ..., node: _Optional[str] = ..., undo: bool = ...) -> None: ...

class DrainNodeResponse(_message.Message):
    __slots__ = ("node", "retries_wait")
    NODE_FIELD_NUMBER: _ClassVar[int]
    RETRIES_WAIT_FIELD_NUMBER: _ClassVar[int]
    node: Node
    retries_wait: bool
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., retries_wait: bool = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("id", "at_us", "actor", "identity", "action", "reason", "request_id", "tx_id", "branch", "target", "detail", "node", "replay_id", "namespace")
    ID_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    id: int
    at_us: int
    actor: str
    identity: str
    action: str
    reason: str
    request_id: str
    tx_id: str
    branch: str
    target: str
    detail: str
    node: str
    replay_id: str
    namespace: str
    def __init__(self, id: _Optional[int] = ..., at_us: _Optional[int] = ..., actor: _Optional[str] = ..., identity: _Optional[str] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ..., tx_id: _Optional[str] = ..., branch: _Optional[str] = ..., target: _Optional[str] = ..., detail: _Optional[str] = ..., node: _Optional[str] = ..., replay_id: _Optional[str] = ..., namespace: _Optional[str] = ...) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("namespace", "filter", "page_size", "page_token")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    filter: str
    page_size: int
    page_token: str
    def __init__(self, namespace: _Optional[str] = ..., filter: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAuditResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Resource(_message.Message):
    __slots__ = ("name", "engine", "identity", "url", "available", "problem", "prepared", "foreign", "oldest_prepared_us", "scanned_us", "engine_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    OLDEST_PREPARED_US_FIELD_NUMBER: _ClassVar[int]
    SCANNED_US_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    engine: str
    identity: str
    url: str
    available: bool
    problem: str
    prepared: int
    foreign: int
    oldest_prepared_us: int
    scanned_us: int
    engine_version: str
    def __init__(self, name: _Optional[str] = ..., engine: _Optional[str] = ..., identity: _Optional[str] = ..., url: _Optional[str] = ..., available: bool = ..., problem: _Optional[str] = ..., prepared: _Optional[int] = ..., foreign: _Optional[int] = ..., oldest_prepared_us: _Optional[int] = ..., scanned_us: _Optional[int] = ..., engine_version: _Optional[str] = ...) -> None: ...

class ListResourcesRequest(_message.Message):
    __slots__ = ("namespace",)
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    def __init__(self, namespace: _Optional[str] = ...) -> None: ...

class ListResourcesResponse(_message.Message):
    __slots__ = ("resources",)
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    resources: _containers.RepeatedCompositeFieldContainer[Resource]
    def __init__(self, resources: _Optional[_Iterable[_Union[Resource, _Mapping]]] = ...) -> None: ...

class CheckResourceRequest(_message.Message):
    __slots__ = ("namespace", "resource", "fix", "audit")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    resource: str
    fix: bool
    audit: Audit
    def __init__(self, namespace: _Optional[str] = ..., resource: _Optional[str] = ..., fix: bool = ..., audit: _Optional[_Union[Audit, _Mapping]] = ...) -> None: ...

class ResourceFinding(_message.Message):
    __slots__ = ("check", "severity", "message", "remedy", "fixed")
    CHECK_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    FIXED_FIELD_NUMBER: _ClassVar[int]
    check: str
    severity: str
    message: str
    remedy: _containers.RepeatedScalarFieldContainer[str]
    fixed: bool
    def __init__(self, check: _Optional[str] = ..., severity: _Optional[str] = ..., message: _Optional[str] = ..., remedy: _Optional[_Iterable[str]] = ..., fixed: bool = ...) -> None: ...

class CheckResourceResponse(_message.Message):
    __slots__ = ("resource", "findings")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    resource: Resource
    findings: _containers.RepeatedCompositeFieldContainer[ResourceFinding]
    def __init__(self, resource: _Optional[_Union[Resource, _Mapping]] = ..., findings: _Optional[_Iterable[_Union[ResourceFinding, _Mapping]]] = ...) -> None: ...
