"""Between the wire and the core: bad input is refused with a reason of its own, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.adapters.sql import actions
from txcoord.api.grpc import mapping
from txcoord.api.grpc.mapping import Limits, Reader
from txcoord.core.action import Action, Delivery, Retry
from txcoord.core.errors import Refused
from txcoord.core.model import Branch, BranchState, DecidedBy, Decision, Kind, Tx, TxState
from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import reasons
from txcoord_client.protocol.xid import Xid

NOW = 1_700_000_000_000_000
DEADLINE = NOW + 30_000_000
LOG = "0123456789"
TX = "018bcfe56800765183171ff4a6a3a450"
LIMITS = Limits(payload=100, branches=5, labels=2, headers=50, deadline_max_us=60_000_000)
READER = Reader(limits=LIMITS, log_id=LOG, resources=["a", "b"], now_us=lambda: NOW)


def pb(id: str = "1", resource: str = "a", vote: c.Vote = c.VOTE_PREPARED, **changes: object) -> c.Branch:
    x = Xid(LOG, DEADLINE, TX, id if id else "1")
    x = replace(x, **changes)  # type: ignore[arg-type]
    return c.Branch(id=id, kind=c.KIND_XA, vote=vote, xa=c.XaPart(resource=resource, xid=str(x)))


def message(
    *,
    after: Iterable[str] = (),
    vote: c.Vote = c.VOTE_UNSPECIFIED,
    kind: c.Kind = c.KIND_MESSAGE,
    **part: Any,
) -> c.Branch:
    part = {"target": "grpc://mail:9", "operation": "mail.told", **part}
    return c.Branch(id="1", kind=kind, vote=vote, after=after, delivery=c.DeliveryPart(**part))


def read(
    *branches: c.Branch,
    namespace: str = "shop",
    tx_id: str = TX,
    gid: str = "",
    deadline_us: int = DEADLINE,
    spec: c.TransactionSpec | None = None,
    result: bytes = b"",
) -> Tx:
    return READER.tx(namespace, tx_id, gid, deadline_us, spec, branches, result)


def refused(error: pytest.ExceptionInfo[Refused]) -> str:
    assert error.value.refusal.definite
    assert error.value.refusal.message
    return error.value.refusal.reason


@pytest.mark.parametrize(
    ("vote", "state"),
    [
        (c.VOTE_UNSPECIFIED, BranchState.OPEN),
        (c.VOTE_PREPARED, BranchState.READY),
        (c.VOTE_READ_ONLY, BranchState.READ_ONLY),
        (c.VOTE_NO, BranchState.REFUSED),
    ],
)
def test_a_branch(vote: c.Vote, state: BranchState) -> None:
    (branch,) = read(pb(vote=vote)).branches
    assert branch == Branch("1", Kind.XA, state, "a", str(Xid(LOG, DEADLINE, TX, "1")))


@pytest.mark.parametrize("kind", [Kind.MESSAGE, Kind.NOTIFY])
def test_a_delivery(kind: Kind) -> None:
    asked = message(
        kind=mapping.KIND[kind],
        payload=b"{}",
        deliver_at_us=NOW + 1,
        message_id="order-7",
        headers={"a": "b"},
        aborted_means_refused=True,
    )
    asked.retry.schedule_us.extend([1, 2])
    action = Action(
        "mail.told",
        headers={"a": "b"},
        aborted_means_refused=True,
        retry=Retry(schedule_us=(1, 2)),
        delivery=Delivery("order-7", NOW + 1),
    )
    read_one = Branch("1", kind, resource="grpc://mail:9", payload=b"{}", action=action)
    assert read(asked).branches == (read_one,)
    shown = mapping.transaction(Tx(TX, "shop", DEADLINE, branches=(read_one,))).branches[0].spec
    assert shown.delivery == c.DeliveryPart(
        target="grpc://mail:9", operation="mail.told", deliver_at_us=NOW + 1, message_id="order-7"
    )
    assert actions.from_text(actions.to_text(read_one)) == {"action": action}


def test_every_vote_has_a_meaning() -> None:
    assert set(mapping._VOTED) == set(c.Vote.values())


BAD: dict[str, tuple[str, dict[str, object], Iterable[c.Branch]]] = {
    "no tx id": (reasons.BAD_TX_ID, {"tx_id": ""}, ()),
    "capitals": (reasons.BAD_TX_ID, {"tx_id": TX.upper()}, ()),
    "bad gid": (reasons.BAD_GID, {"gid": "a b"}, ()),
    "long gid": (reasons.BAD_GID, {"gid": "x" * 49}, ()),
    "no deadline": (reasons.BAD_REQUEST, {"deadline_us": 0}, ()),
    "negative deadline": (reasons.BAD_REQUEST, {"deadline_us": -1}, ()),
    "too far": (reasons.DEADLINE_TOO_FAR, {"deadline_us": NOW + 62_000_001}, ()),
    "large result": (reasons.TOO_LARGE, {"result": b"x" * 101}, ()),
    "many labels": (reasons.TOO_LARGE, {"spec": c.TransactionSpec(labels={"a": "", "b": "", "c": ""})}, ()),
    "large headers": (reasons.TOO_LARGE, {"spec": c.TransactionSpec(headers={"a": "x" * 50})}, ()),
    "long name": (reasons.TOO_LARGE, {"spec": c.TransactionSpec(name="x" * 201)}, ()),
    "unknown one-phase": (reasons.UNKNOWN_RESOURCE, {"spec": c.TransactionSpec(one_phase_resource="z")}, ()),
    "bad branch": (reasons.BAD_BRANCH, {}, [pb("x")]),
    "branch twice": (reasons.BAD_BRANCH, {}, [pb(), pb()]),
    "no kind": (reasons.BAD_BRANCH, {}, [c.Branch(id="1")]),
    "a policy of the whole": (
        reasons.NOT_SUPPORTED,
        {"spec": c.TransactionSpec(retry=c.RetryPolicy(max_attempts=1))},
        [],
    ),
    "a message to nobody": (reasons.UNKNOWN_PARTICIPANT, {}, [message(target="")]),
    "a message without an operation": (reasons.BAD_BRANCH, {}, [message(operation="")]),
    "a message to a topic": (reasons.NOT_SUPPORTED, {}, [message(target="topic:orders")]),
    "statements": (reasons.NOT_SUPPORTED, {}, [message(target="sql:reports", sql=c.SqlUnit())]),
    "in an order that cannot be kept": (reasons.BAD_BRANCH, {}, [message(ordering_key="a" * 1000)]),
    "a message after others": (reasons.BAD_BRANCH, {}, [message(after=["2"])]),
    "a message that votes": (reasons.BAD_BRANCH, {}, [message(vote=c.VOTE_PREPARED)]),
    "a message in a year": (reasons.BAD_BRANCH, {}, [message(deliver_at_us=NOW + 366 * 86_400_000_000)]),
    "a message of two words": (reasons.BAD_BRANCH, {}, [message(message_id="a b")]),
    "a message that is too large": (reasons.TOO_LARGE, {}, [message(payload=b"x" * 300_000)]),
    "a step that is not run": (
        reasons.NOT_SUPPORTED,
        {},
        [c.Branch(id="1", kind=c.KIND_SAGA, action=c.ActionPart(target="grpc://a:1"))],
    ),
    "no address": (
        reasons.UNKNOWN_PARTICIPANT,
        {},
        [c.Branch(id="1", kind=c.KIND_TCC, action=c.ActionPart(target="stock", operation="x"))],
    ),
    "no operation": (
        reasons.BAD_BRANCH,
        {},
        [c.Branch(id="1", kind=c.KIND_TCC, action=c.ActionPart(target="grpc://a:1"))],
    ),
    "a read-only try": (
        reasons.BAD_BRANCH,
        {},
        [c.Branch(id="1", kind=c.KIND_TCC, vote=c.VOTE_READ_ONLY)],
    ),
    "a no to a step": (
        reasons.BAD_BRANCH,
        {},
        [c.Branch(id="1", kind=c.KIND_SAGA, vote=c.VOTE_NO)],
    ),
    "unknown resource": (reasons.UNKNOWN_RESOURCE, {}, [pb(resource="z")]),
    "foreign xid": (
        reasons.BAD_XID,
        {},
        [c.Branch(id="1", kind=c.KIND_XA, xa=c.XaPart(resource="a", xid="x"))],
    ),
    "another log": (reasons.BAD_XID, {}, [pb(log_id="vvvvvvvvvv")]),
    "another deadline": (reasons.BAD_XID, {}, [pb(deadline_us=DEADLINE + 1)]),
    "another tx": (reasons.BAD_XID, {}, [pb(tx_id="f" * 32)]),
    "another branch": (reasons.BAD_XID, {}, [pb(branch="2")]),
    "many branches": (reasons.TOO_LARGE, {}, [pb(str(i)) for i in range(6)]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_has_a_reason_of_its_own(what: str) -> None:
    reason, arguments, branches = BAD[what]
    with pytest.raises(Refused) as error:
        read(*branches, **arguments)  # type: ignore[arg-type]
    assert refused(error) == reason


def test_limits_are_inclusive() -> None:
    spec = c.TransactionSpec(name="x" * 200, labels={"a": "1", "b": "2"}, headers={"h": "x" * 45})
    tx = read(*(pb(str(i)) for i in range(5)), deadline_us=DEADLINE, spec=spec, result=b"x" * 100)
    assert len(tx.branches) == 5
    assert read(deadline_us=NOW + 62_000_000).deadline_us == NOW + 62_000_000


@pytest.mark.parametrize(("name", "ok"), [("", True), ("shop", True), ("a b", False), ("x" * 64, False)])
def test_namespaces(name: str, ok: bool) -> None:
    if ok:
        assert READER.namespace(name) == (name or "default")
        return
    with pytest.raises(Refused) as error:
        READER.namespace(name)
    assert refused(error) == reasons.BAD_NAMESPACE


@given(st.text(max_size=60), st.text(max_size=60), st.integers(-(2**63), 2**63 - 1), st.text(max_size=80))
def test_nothing_from_outside_crashes_the_reader(tx_id: str, gid: str, deadline_us: int, xid: str) -> None:
    branch = c.Branch(id="1", kind=c.KIND_XA, xa=c.XaPart(resource="a", xid=xid))
    for arguments in ({"tx_id": tx_id}, {"gid": gid}, {"deadline_us": deadline_us}):
        with suppress(Refused):
            read(branch, **arguments)  # type: ignore[arg-type]


# ---- outcomes ----


@pytest.mark.parametrize(
    ("table", "enum"),
    [
        (mapping.STATE, TxState),
        (mapping.DECISION, Decision),
        (mapping.DECIDED_BY, DecidedBy),
        (mapping.BRANCH_STATE, BranchState),
        # Whoever asked to be told of the end is no branch of any kind there.
        (mapping.KIND, set(Kind) - {Kind.CALLBACK}),
    ],
)
def test_the_wire_has_a_word_for_everything(table: dict[object, int], enum: Iterable[object]) -> None:
    assert set(table) == set(enum)
    assert len(set(table.values())) == len(table)
    assert 0 not in table.values(), "0 is unspecified"


@pytest.mark.parametrize("state", TxState)
@pytest.mark.parametrize("decision", [None, *Decision])
def test_an_outcome_never_says_more_than_is_so(state: TxState, decision: Decision | None) -> None:
    tx = Tx(TX, "shop", DEADLINE, state=state, decision=decision, reason="DEADLINE")
    out = mapping.outcome(tx)
    assert (out.state == c.STATE_COMMITTED) is (state is TxState.COMMITTED)
    assert (out.state == c.STATE_ABORTED) is (state is TxState.ABORTED)
    assert (out.decision == c.DECISION_UNSPECIFIED) is (decision is None)
    assert out.retriable is (decision is Decision.ABORT)


def test_what_a_person_must_see_is_in_the_outcome() -> None:
    branches = (
        Branch("1", Kind.XA, BranchState.DONE, "a"),
        Branch("2", Kind.XA, BranchState.PARKED, "b", reason="HEURISTIC: by hand", heuristic=True),
        Branch("3", Kind.MESSAGE, BranchState.PARKED, "c", reason="REFUSED"),
    )
    tx = Tx(TX, "shop", DEADLINE, state=TxState.COMMITTING, decision=Decision.COMMIT, branches=branches)
    out = mapping.outcome(tx)
    assert (out.heuristic, out.parked, out.parked_deliveries) == (True, 1, 1)
    assert [(b.branch, b.reason, b.message) for b in out.branches] == [
        ("2", "HEURISTIC", "HEURISTIC: by hand"),
        ("3", "REFUSED", "REFUSED"),
    ]
    assert len(mapping.outcome(tx, all_branches=True).branches) == 3
    assert mapping.outcome(tx, named=True).tx_id == TX
    shown = mapping.transaction(tx)
    assert [b.spec.id for b in shown.branches] == ["1", "2", "3"]
    assert shown.branches[0].spec.xa.resource == "a"


# ---- MariaDB: the session is part of the xid ----

ENGINES = {"a": "postgresql", "m": "mariadb", "y": "mysql"}
ON_ALL = Reader(limits=LIMITS, log_id=LOG, resources=ENGINES, now_us=lambda: NOW, engine=ENGINES.__getitem__)


def on(resource: str, session: int = 0, *, in_text: int = 0, vote: c.Vote = c.VOTE_PREPARED) -> Branch:
    item = pb("1", resource, vote, connection_id=in_text)
    item.xa.connection_id = session
    (branch,) = ON_ALL.branches(TX, DEADLINE, [item])
    return branch


def test_the_session_of_a_branch_is_kept_in_its_xid() -> None:
    full = str(Xid(LOG, DEADLINE, TX, "1", 77))
    for branch in (on("m", 77), on("m", in_text=77), on("m", 77, in_text=77), on("y", 77)):
        assert branch.xid == full
        assert branch.has_holder
        part = mapping.xa_part(branch)
        assert (part.xid, part.connection_id) == (str(Xid(LOG, DEADLINE, TX, "1")), 77)
    for branch in (on("a"), on("y"), on("m", vote=c.VOTE_NO)):
        assert not branch.has_holder
        assert mapping.xa_part(branch).connection_id == 0
        assert mapping.xa_part(branch).xid == branch.xid


@pytest.mark.parametrize(
    ("resource", "session", "in_text"),
    [("m", 77, 78), ("a", 77, 0), ("a", 0, 77)],
    ids=str,
)
def test_a_session_that_cannot_be_right_is_refused(resource: str, session: int, in_text: int) -> None:
    with pytest.raises(Refused) as error:
        on(resource, session, in_text=in_text)
    assert refused(error) == "BAD_XID"
