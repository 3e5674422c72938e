"""What comes from the wire, in the SDK's words: refusals, outcomes, the clock, the errors themselves."""

from __future__ import annotations

import copy
import pickle

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from txcoord_client import _refusals, errors, outcome
from txcoord_client._clock import LogClock
from txcoord_client._pb import common_pb2 as c
from txcoord_client._xa.branch import reason_of, sqlstate_of, worth_another_try
from txcoord_client.outcome import Outcome, State
from txcoord_client.protocol import reasons

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


def status(code: grpc.StatusCode, reason: str, definite: bool = True, **facts: str) -> c.Status:
    return c.Status(code=code.value[0], reason=reason, message="why", definite=definite, facts=facts)


# ---- refusals ----


@pytest.mark.parametrize(
    ("refusal", "kind", "definite"),
    [
        (
            status(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_COMMITTED", tx_id="o"),
            errors.AlreadyCommitted,
            True,
        ),
        (
            status(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_ABORTED", tx_id="o", cause="X"),
            errors.AlreadyAborted,
            True,
        ),
        (
            status(grpc.StatusCode.ALREADY_EXISTS, "IN_PROGRESS", tx_id="o", deadline_us="5"),
            errors.InProgress,
            False,
        ),
        # Many writers at once: not the gid's.
        (status(grpc.StatusCode.ABORTED, "IN_PROGRESS", False), errors.Unavailable, False),
        # Lateness is never an abort.
        (status(grpc.StatusCode.FAILED_PRECONDITION, "EXPIRED", False), errors.OutcomeUnknown, False),
        (status(grpc.StatusCode.FAILED_PRECONDITION, "UNKNOWN_RESOURCE"), errors.UnknownResource, True),
        (status(grpc.StatusCode.FAILED_PRECONDITION, "UNKNOWN_RESOURCE", False), errors.Rejected, False),
        (status(grpc.StatusCode.UNAVAILABLE, "LOG_UNAVAILABLE", False), errors.Unavailable, False),
        (status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"), errors.Unavailable, True),
        (status(grpc.StatusCode.INTERNAL, "INTERNAL", False), errors.Unavailable, False),
        (status(grpc.StatusCode.INVALID_ARGUMENT, "BAD_XID"), errors.Rejected, True),
        (c.Status(code=99, reason="NEW", definite=True), errors.Unavailable, True),
    ],
)
def test_what_a_refusal_means(refusal: c.Status, kind: type[errors.TxcoordError], definite: bool) -> None:
    error = _refusals.error_of(refusal, tx_id="mine", gid="g")
    assert type(error) is kind
    assert (error.definite, error.gid) == (definite, "g")
    assert error.tx_id == refusal.facts.get("tx_id", "mine")
    assert error.outcome is None


def test_a_refusal_tells_the_outcome_and_when_to_come_again() -> None:
    refusal = status(grpc.StatusCode.FAILED_PRECONDITION, "DEADLINE")
    refusal.outcome.state = c.STATE_ABORTED
    told = _refusals.error_of(refusal, tx_id="t").outcome
    assert told is not None
    assert (told.aborted, told.tx_id) == (True, "t")
    refusal = status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    refusal.retry_after_us = 250_000
    error = _refusals.error_of(refusal)
    assert isinstance(error, errors.Unavailable)
    assert error.retry_after == 0.25


@pytest.mark.parametrize("cause", [*sorted(reasons.RETRYABLE_ABORTS), reasons.APPLICATION_ERROR, ""])
def test_whether_an_aborted_gid_may_be_run_again(cause: str) -> None:
    error = _refusals.error_of(status(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_ABORTED", cause=cause))
    assert isinstance(error, errors.AlreadyAborted)
    assert error.retriable is (cause in reasons.RETRYABLE_ABORTS)


def call_error(code: grpc.StatusCode, *details: bytes) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*(("grpc-status-details-bin", d) for d in details))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details="text")


def test_the_status_is_found_among_others_details() -> None:
    """It is read without google.rpc's package; here that package writes it."""
    rich = status_pb2.Status(code=9, message="long " * 100)
    for detail in (
        error_details_pb2.ErrorInfo(reason="R", domain="txcoord"),
        status(grpc.StatusCode.FAILED_PRECONDITION, "DECIDED"),
        error_details_pb2.RetryInfo(),
    ):
        packed = any_pb2.Any()
        packed.Pack(detail)
        rich.details.append(packed)
    error = _refusals.error_of_call(call_error(grpc.StatusCode.FAILED_PRECONDITION, rich.SerializeToString()))
    assert (type(error), error.reason, error.definite) == (errors.Rejected, "DECIDED", True)


@given(st.binary(max_size=200))
def test_garbage_in_the_details_is_no_status(data: bytes) -> None:
    error = _refusals.error_of_call(call_error(grpc.StatusCode.UNAVAILABLE, data))
    assert isinstance(error, errors.TxcoordError)
    for code, kind in (
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.NOT_FOUND, errors.Rejected),
    ):
        bare = _refusals.error_of_call(call_error(code))
        assert type(bare) is kind
        assert not bare.definite


# ---- outcomes ----


@pytest.mark.parametrize("state", list(c.State.values()))
def test_every_state_of_the_wire_has_a_word(state: c.State) -> None:
    told = outcome.from_pb(c.Outcome(state=state), tx_id="t", gid="g")
    name = c.State.Name(state).removeprefix("STATE_")
    assert told.state == (name if name in State.__members__ else State.UNKNOWN)
    assert told.committed is (name in ("COMMITTING", "COMMITTED"))
    assert told.aborted is (name in ("ABORTING", "ABORTED"))
    assert (told.tx_id, told.gid) == ("t", "g")


def test_a_state_or_decider_of_a_newer_server_is_unknown_not_an_error() -> None:
    told = outcome.from_pb(c.Outcome(state=77, decided_by=77, tx_id="theirs"), tx_id="mine")  # type: ignore[arg-type]
    assert (told.state, told.decided_by, told.tx_id) == (State.UNKNOWN, "", "theirs")
    assert (told.committed, told.aborted) == (False, False)


# ---- the clock ----


class Ticks:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_clock_takes_the_best_sample_and_follows_one_that_is_set_back() -> None:
    ticks = Ticks()
    clock = LogClock(ticks)
    assert not clock.known
    clock.observe(0)
    assert not clock.known, "no time is no sample"
    clock.observe(5_000_000_000)
    assert clock.now_us() == 5_000_000_000
    ticks.now += 1.0
    clock.observe(5_000_900_000)  # 0.1 s late
    assert clock.now_us() == 5_001_000_000
    clock.observe(5_001_200_000)  # that was the late one
    assert clock.now_us() == 5_001_200_000
    clock.observe(4_000_000_000)
    assert clock.now_us() == 4_000_000_000
    ticks.now += 2.0
    assert clock.now_us() == 4_002_000_000


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 0.9)), min_size=1, max_size=20))
def test_the_clock_never_says_too_much(samples: list[tuple[float, float]]) -> None:
    ticks = Ticks()
    clock = LogClock(ticks)
    for passed, late in samples:
        ticks.now += passed
        true_us = int((ticks.now + 1_000) * 1e6)
        clock.observe(true_us - int(late * 1e6))
        assert true_us - 1_000_000 <= clock.now_us() <= true_us + 1


# ---- errors ----

SAID = (errors.Refused, errors.Pending)
"""What participants say."""


@pytest.mark.parametrize(
    "error",
    [errors.Refused("NO", "why", left=0), errors.Pending("why", retry_after=5)],
    ids=lambda e: e.reason,
)
def test_what_participants_say_travels(error: errors.TxcoordError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)
        assert str(twin) == str(error) == f"{error.reason}: why"


@pytest.mark.parametrize("kind", [k for k in ALL if k not in SAID], ids=lambda kind: kind.__name__)
def test_errors_travel(kind: type[errors.TxcoordError]) -> None:
    """Through queues and process pools, with their facts."""
    error = kind("why", tx_id="t", gid="g")
    error.facts["k"] = "v"
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert vars(twin) == vars(error)
        assert str(twin) == str(error) == f"{error.reason}: why"


def test_which_errors_are_definite() -> None:
    unsure = {k.__name__ for k in ALL if not k("why").definite}
    assert unsure == {"Pending", "InProgress", "OutcomeUnknown", "Heuristic", "Unavailable"}


# ---- reasons ----


class DriverError(Exception):
    def __init__(self, sqlstate: str) -> None:
        self.sqlstate = sqlstate


def wrapped(inner: Exception) -> Exception:
    outer = RuntimeError("of an ORM")
    outer.orig = inner  # type: ignore[attr-defined]
    return outer


@pytest.mark.parametrize(
    ("error", "reason", "again"),
    [
        (DriverError("40P01"), "DEADLOCK", True),
        (wrapped(DriverError("40001")), "SERIALIZATION_FAILURE", True),
        (wrapped(wrapped(DriverError("40P01"))), "DEADLOCK", True),
        (DriverError("23505"), "APPLICATION_ERROR", False),
        (ValueError("no"), "APPLICATION_ERROR", False),
        (errors.ResourceBusy("full"), "RESOURCE_BUSY", True),
        (errors.Aborted("no", reason="NO_STOCK"), "NO_STOCK", False),
        (errors.Aborted("late", reason="DEADLINE", retriable=True), "DEADLINE", True),
        (errors.OutcomeUnknown("lost"), "OUTCOME_UNKNOWN", False),
        (errors.Unavailable("gone"), "UNAVAILABLE", False),
        (errors.Heuristic("by hand"), "HEURISTIC", False),
    ],
)
def test_which_errors_are_worth_another_try(error: Exception, reason: str, again: bool) -> None:
    assert reason_of(error) == reason
    assert worth_another_try(error) is again


def test_a_ring_of_causes_ends() -> None:
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert sqlstate_of(one) == ""


def test_outcome_is_a_value() -> None:
    assert Outcome(State.COMMITTED, "t") == Outcome(State.COMMITTED, "t")
