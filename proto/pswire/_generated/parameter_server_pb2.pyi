from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    FLOAT16: _ClassVar[DType]
    BFLOAT16: _ClassVar[DType]
    FLOAT32: _ClassVar[DType]
    FLOAT64: _ClassVar[DType]
    INT8: _ClassVar[DType]
    INT16: _ClassVar[DType]
    INT32: _ClassVar[DType]
    INT64: _ClassVar[DType]
    UINT8: _ClassVar[DType]
    UINT16: _ClassVar[DType]
    UINT32: _ClassVar[DType]
    UINT64: _ClassVar[DType]
    BOOL: _ClassVar[DType]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    STALE: _ClassVar[Reason]
    SNAPSHOT_GONE: _ClassVar[Reason]
DTYPE_UNSPECIFIED: DType
FLOAT16: DType
BFLOAT16: DType
FLOAT32: DType
FLOAT64: DType
INT8: DType
INT16: DType
INT32: DType
INT64: DType
UINT8: DType
UINT16: DType
UINT32: DType
UINT64: DType
BOOL: DType
REASON_UNSPECIFIED: Reason
STALE: Reason
SNAPSHOT_GONE: Reason

class ArraySpec(_message.Message):
    __slots__ = ("name", "dtype", "shape", "by_rows")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BY_ROWS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    by_rows: bool
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., by_rows: bool = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("arrays",)
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    arrays: _containers.RepeatedCompositeFieldContainer[ArraySpec]
    def __init__(self, arrays: _Optional[_Iterable[_Union[ArraySpec, _Mapping]]] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("worker", "session", "rejoin")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REJOIN_FIELD_NUMBER: _ClassVar[int]
    worker: str
    session: str
    rejoin: bool
    def __init__(self, worker: _Optional[str] = ..., session: _Optional[str] = ..., rejoin: bool = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("generation", "incarnation", "step", "layout", "limits", "same_host")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SAME_HOST_FIELD_NUMBER: _ClassVar[int]
    generation: str
    incarnation: str
    step: int
    layout: Layout
    limits: Limits
    same_host: str
    def __init__(self, generation: _Optional[str] = ..., incarnation: _Optional[str] = ..., step: _Optional[int] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., same_host: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_staleness", "max_grad_norm", "max_model_nbytes", "max_unary_nbytes", "staleness_policy")
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_NBYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_UNARY_NBYTES_FIELD_NUMBER: _ClassVar[int]
    STALENESS_POLICY_FIELD_NUMBER: _ClassVar[int]
    max_staleness: int
    max_grad_norm: float
    max_model_nbytes: int
    max_unary_nbytes: int
    staleness_policy: str
    def __init__(self, max_staleness: _Optional[int] = ..., max_grad_norm: _Optional[float] = ..., max_model_nbytes: _Optional[int] = ..., max_unary_nbytes: _Optional[int] = ..., staleness_policy: _Optional[str] = ...) -> None: ...

class InitializeRequest(_message.Message):
    __slots__ = ("header", "offset", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: InitializeHeader
    offset: int
    data: bytes
    def __init__(self, header: _Optional[_Union[InitializeHeader, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class InitializeHeader(_message.Message):
    __slots__ = ("session", "layout")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    session: str
    layout: Layout
    def __init__(self, session: _Optional[str] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ...) -> None: ...

class InitializeReply(_message.Message):
    __slots__ = ("initialized", "generation", "step")
    INITIALIZED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    initialized: bool
    generation: str
    step: int
    def __init__(self, initialized: bool = ..., generation: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("session", "generation", "step", "wire_dtype", "rows")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    session: str
    generation: str
    step: int
    wire_dtype: DType
    rows: _containers.RepeatedCompositeFieldContainer[RowIds]
    def __init__(self, session: _Optional[str] = ..., generation: _Optional[str] = ..., step: _Optional[int] = ..., wire_dtype: _Optional[_Union[DType, str]] = ..., rows: _Optional[_Iterable[_Union[RowIds, _Mapping]]] = ...) -> None: ...

class RowIds(_message.Message):
    __slots__ = ("name", "ids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    ids: bytes
    def __init__(self, name: _Optional[str] = ..., ids: _Optional[bytes] = ...) -> None: ...

class PullReply(_message.Message):
    __slots__ = ("header", "offset", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: SnapshotHeader
    offset: int
    data: bytes
    def __init__(self, header: _Optional[_Union[SnapshotHeader, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SnapshotHeader(_message.Message):
    __slots__ = ("generation", "incarnation", "step", "not_modified", "layout", "wire_dtype", "served_at", "wait_s", "waits_for", "paced")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NOT_MODIFIED_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    SERVED_AT_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    PACED_FIELD_NUMBER: _ClassVar[int]
    generation: str
    incarnation: str
    step: int
    not_modified: bool
    layout: Layout
    wire_dtype: DType
    served_at: float
    wait_s: float
    waits_for: str
    paced: bool
    def __init__(self, generation: _Optional[str] = ..., incarnation: _Optional[str] = ..., step: _Optional[int] = ..., not_modified: bool = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., wire_dtype: _Optional[_Union[DType, str]] = ..., served_at: _Optional[float] = ..., wait_s: _Optional[float] = ..., waits_for: _Optional[str] = ..., paced: bool = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("header", "offset", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    offset: int
    data: bytes
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("session", "seq", "generation", "step_read", "layout", "value", "nbytes", "wire_dtype", "counts", "snapshot_wire_dtype", "served_at", "held_s", "rows")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_READ_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    SERVED_AT_FIELD_NUMBER: _ClassVar[int]
    HELD_S_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    session: str
    seq: int
    generation: str
    step_read: int
    layout: Layout
    value: float
    nbytes: int
    wire_dtype: DType
    counts: _containers.RepeatedScalarFieldContainer[int]
    snapshot_wire_dtype: DType
    served_at: float
    held_s: float
    rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session: _Optional[str] = ..., seq: _Optional[int] = ..., generation: _Optional[str] = ..., step_read: _Optional[int] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., value: _Optional[float] = ..., nbytes: _Optional[int] = ..., wire_dtype: _Optional[_Union[DType, str]] = ..., counts: _Optional[_Iterable[int]] = ..., snapshot_wire_dtype: _Optional[_Union[DType, str]] = ..., served_at: _Optional[float] = ..., held_s: _Optional[float] = ..., rows: _Optional[_Iterable[int]] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ("applied", "staleness", "step", "reason", "duplicate", "factor", "consecutive_drops", "dropped_variables", "left_out")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    CONSECUTIVE_DROPS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    applied: bool
    staleness: int
    step: int
    reason: Reason
    duplicate: bool
    factor: float
    consecutive_drops: int
    dropped_variables: int
    left_out: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, applied: bool = ..., staleness: _Optional[int] = ..., step: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ..., duplicate: bool = ..., factor: _Optional[float] = ..., consecutive_drops: _Optional[int] = ..., dropped_variables: _Optional[int] = ..., left_out: _Optional[_Iterable[str]] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("push",)
    PUSH_FIELD_NUMBER: _ClassVar[int]
    push: PushRequest
    def __init__(self, push: _Optional[_Union[PushRequest, _Mapping]] = ...) -> None: ...

class ExchangeReply(_message.Message):
    __slots__ = ("push", "pull")
    PUSH_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    push: PushReply
    pull: PullReply
    def __init__(self, push: _Optional[_Union[PushReply, _Mapping]] = ..., pull: _Optional[_Union[PullReply, _Mapping]] = ...) -> None: ...

class LeaseShardRequest(_message.Message):
    __slots__ = ("session", "count", "held", "finished")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    session: str
    count: int
    held: ShardLease
    finished: bool
    def __init__(self, session: _Optional[str] = ..., count: _Optional[int] = ..., held: _Optional[_Union[ShardLease, _Mapping]] = ..., finished: bool = ...) -> None: ...

class LeaseShardReply(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: ShardLease
    def __init__(self, lease: _Optional[_Union[ShardLease, _Mapping]] = ...) -> None: ...

class ShardLease(_message.Message):
    __slots__ = ("index", "epoch")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    index: int
    epoch: int
    def __init__(self, index: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class InspectReply(_message.Message):
    __slots__ = ("header", "offset", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: InspectHeader
    offset: int
    data: bytes
    def __init__(self, header: _Optional[_Union[InspectHeader, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class InspectHeader(_message.Message):
    __slots__ = ("generation", "step", "layout")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    generation: str
    step: int
    layout: Layout
    def __init__(self, generation: _Optional[str] = ..., step: _Optional[int] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("generation", "incarnation", "step", "limits", "rule", "initialized", "uptime_s", "pushes_per_s", "counts", "staleness", "workers", "steps_per_s", "recent_drop_rate", "loss", "unjoined", "staleness_sum", "durability", "policy_limit", "withheld", "name", "dropped_variables", "waited_s")
    class StalenessEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    INITIALIZED_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    PUSHES_PER_S_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_S_FIELD_NUMBER: _ClassVar[int]
    RECENT_DROP_RATE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    UNJOINED_FIELD_NUMBER: _ClassVar[int]
    STALENESS_SUM_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    POLICY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DROPPED_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    generation: str
    incarnation: str
    step: int
    limits: Limits
    rule: str
    initialized: bool
    uptime_s: float
    pushes_per_s: float
    counts: Counts
    staleness: _containers.ScalarMap[int, int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    steps_per_s: float
    recent_drop_rate: float
    loss: float
    unjoined: Counts
    staleness_sum: int
    durability: Durability
    policy_limit: int
    withheld: float
    name: str
    dropped_variables: int
    waited_s: float
    def __init__(self, generation: _Optional[str] = ..., incarnation: _Optional[str] = ..., step: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., rule: _Optional[str] = ..., initialized: bool = ..., uptime_s: _Optional[float] = ..., pushes_per_s: _Optional[float] = ..., counts: _Optional[_Union[Counts, _Mapping]] = ..., staleness: _Optional[_Mapping[int, int]] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., steps_per_s: _Optional[float] = ..., recent_drop_rate: _Optional[float] = ..., loss: _Optional[float] = ..., unjoined: _Optional[_Union[Counts, _Mapping]] = ..., staleness_sum: _Optional[int] = ..., durability: _Optional[_Union[Durability, _Mapping]] = ..., policy_limit: _Optional[int] = ..., withheld: _Optional[float] = ..., name: _Optional[str] = ..., dropped_variables: _Optional[int] = ..., waited_s: _Optional[float] = ...) -> None: ...

class Durability(_message.Message):
    __slots__ = ("mode", "saved_step", "saved_s", "saves", "failures", "log_nbytes", "log_syncs", "corrupt")
    MODE_FIELD_NUMBER: _ClassVar[int]
    SAVED_STEP_FIELD_NUMBER: _ClassVar[int]
    SAVED_S_FIELD_NUMBER: _ClassVar[int]
    SAVES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LOG_NBYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_SYNCS_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    mode: str
    saved_step: int
    saved_s: float
    saves: int
    failures: int
    log_nbytes: int
    log_syncs: int
    corrupt: int
    def __init__(self, mode: _Optional[str] = ..., saved_step: _Optional[int] = ..., saved_s: _Optional[float] = ..., saves: _Optional[int] = ..., failures: _Optional[int] = ..., log_nbytes: _Optional[int] = ..., log_syncs: _Optional[int] = ..., corrupt: _Optional[int] = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("applied", "dropped", "duplicate", "rejected", "snapshot_gone")
    class RejectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_GONE_FIELD_NUMBER: _ClassVar[int]
    applied: int
    dropped: int
    duplicate: int
    rejected: _containers.ScalarMap[str, int]
    snapshot_gone: int
    def __init__(self, applied: _Optional[int] = ..., dropped: _Optional[int] = ..., duplicate: _Optional[int] = ..., rejected: _Optional[_Mapping[str, int]] = ..., snapshot_gone: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("name", "counts", "consecutive_drops", "last_seen_s", "longest_drops", "pushes_per_s", "loss", "staleness_buckets", "staleness_sum", "recent_drops", "shard", "waiting", "waited_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    CONSECUTIVE_DROPS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    LONGEST_DROPS_FIELD_NUMBER: _ClassVar[int]
    PUSHES_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_SUM_FIELD_NUMBER: _ClassVar[int]
    RECENT_DROPS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    counts: Counts
    consecutive_drops: int
    last_seen_s: float
    longest_drops: int
    pushes_per_s: float
    loss: float
    staleness_buckets: _containers.RepeatedScalarFieldContainer[int]
    staleness_sum: int
    recent_drops: int
    shard: str
    waiting: bool
    waited_s: float
    def __init__(self, name: _Optional[str] = ..., counts: _Optional[_Union[Counts, _Mapping]] = ..., consecutive_drops: _Optional[int] = ..., last_seen_s: _Optional[float] = ..., longest_drops: _Optional[int] = ..., pushes_per_s: _Optional[float] = ..., loss: _Optional[float] = ..., staleness_buckets: _Optional[_Iterable[int]] = ..., staleness_sum: _Optional[int] = ..., recent_drops: _Optional[int] = ..., shard: _Optional[str] = ..., waiting: bool = ..., waited_s: _Optional[float] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetRequest(_message.Message):
    __slots__ = ("settings",)
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    settings: _containers.ScalarMap[str, str]
    def __init__(self, settings: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SetReply(_message.Message):
    __slots__ = ("limits",)
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    limits: Limits
    def __init__(self, limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class SaveCheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SaveCheckpointReply(_message.Message):
    __slots__ = ("path", "step")
    PATH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    path: str
    step: int
    def __init__(self, path: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...
