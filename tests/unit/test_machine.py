"""``decide``, event by event and state by state: what is written, what is refused, and how sure that is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from txcoord.core.events import (
    Alarm,
    Begin,
    BranchFailed,
    BranchFinished,
    Commit,
    DeadlinePassed,
    Enlist,
    Event,
    Finish,
    HeuristicSeen,
    OnePhaseDone,
    Operate,
    OrphanFound,
    Probe,
    Rollback,
    Settled,
    Verdict,
)
from txcoord.core.machine import decide, expired, resume
from txcoord.core.model import TAKEN, Branch, BranchState, ChangeKind, DecidedBy, Decision, Kind, Tx, TxState

from .core_support import AUDIT, DEADLINE, TX, WINDOWS, B, H, P, W, branch, tx_of

NOW = 50
ONE, TWO = branch("1", B.READY), branch("2", B.READY)
BEGUN = replace(TX, gid="order-1", version=1, created_us=10)


def ask(tx: Tx | None, event: Event, now_us: int = NOW) -> Verdict:
    return decide(tx, event, now_us, WINDOWS)


def written(verdict: Verdict) -> Tx:
    assert verdict.change is not None
    assert verdict.refusal is None
    assert verdict.change.tx == verdict.tx
    return verdict.tx


def row_of(event: Event, tx: Tx | None = None, now_us: int = NOW) -> Tx:
    return written(ask(tx, event, now_us))


COMMITTING = row_of(Commit(tx_of(ONE, TWO)))
ABORTING = row_of(Rollback(tx_of(ONE, TWO), sealed=True))
ENLISTED = row_of(Enlist(TX, (branch("1"),)))
FENCED = row_of(OrphanFound(tx_of(branch("1"))), now_us=H + 1)
LATE_FENCE = row_of(OrphanFound(tx_of(branch("1"))), now_us=W + 1)
ENDED = ask(ask(COMMITTING, BranchFinished("1")).tx, BranchFinished("2")).tx


def refusal(verdict: Verdict) -> tuple[str, str, bool]:
    assert verdict.refusal is not None
    assert verdict.change is None
    assert not verdict.effects
    assert verdict.refusal.message
    return verdict.refusal.code, verdict.refusal.reason, verdict.refusal.definite


OTHER = "f" * 32
ALIEN = replace(TX, namespace="bank")
REFUSALS: list[tuple[str, Tx | None, Event, int, tuple[str, str, bool]]] = [
    ("begin late", None, Begin(BEGUN), DEADLINE + 1, ("FAILED_PRECONDITION", "DEADLINE", True)),
    ("begin, gid in progress", replace(BEGUN, tx_id=OTHER), Begin(BEGUN), NOW,
     ("ALREADY_EXISTS", "IN_PROGRESS", True)),
    ("begin, gid committed", replace(COMMITTING, tx_id=OTHER), Begin(BEGUN), NOW,
     ("ALREADY_EXISTS", "ALREADY_COMMITTED", True)),
    ("begin, gid aborted", replace(ABORTING, tx_id=OTHER), Begin(BEGUN), NOW,
     ("ALREADY_EXISTS", "ALREADY_ABORTED", True)),
    ("begin, other content", BEGUN, Begin(replace(BEGUN, name="x")), NOW,
     ("ALREADY_EXISTS", "CONTENT_MISMATCH", True)),
    ("begin, other labels", BEGUN, Begin(replace(BEGUN, labels={"a": "b"})), NOW,
     ("ALREADY_EXISTS", "CONTENT_MISMATCH", True)),
    ("begin again, decided", replace(COMMITTING, gid="order-1"), Begin(BEGUN), NOW,
     ("ALREADY_EXISTS", "ALREADY_COMMITTED", True)),
    ("begin after a rollback that overtook it", ABORTING, Begin(BEGUN), NOW,
     ("ALREADY_EXISTS", "ALREADY_ABORTED", True)),
    ("begin after the fence", FENCED, Begin(BEGUN), H + 2, ("ALREADY_EXISTS", "ALREADY_ABORTED", True)),
    ("begin after a late fence", LATE_FENCE, Begin(BEGUN), W + 2,
     ("FAILED_PRECONDITION", "EXPIRED", False)),
    ("enlist decided", COMMITTING, Enlist(TX, (branch("3"),)), NOW, ("FAILED_PRECONDITION", "DECIDED", True)),
    ("enlist decided, again", COMMITTING, Enlist(TX, (ONE,)), NOW, ("FAILED_PRECONDITION", "DECIDED", False)),
    ("enlist sealed", replace(ENLISTED, state=TxState.RUNNING), Enlist(TX, (branch("3"),)), NOW,
     ("FAILED_PRECONDITION", "DECIDED", True)),
    ("enlist late", None, Enlist(TX, (branch("1"),)), DEADLINE + 1, ("FAILED_PRECONDITION", "DEADLINE", True)),
    ("enlist late, again", ENLISTED, Enlist(TX, (branch("1"),)), DEADLINE + 1,
     ("FAILED_PRECONDITION", "DEADLINE", False)),
    ("enlist, other deadline", ENLISTED, Enlist(replace(TX, deadline_us=99), (branch("2"),)), NOW,
     ("INVALID_ARGUMENT", "BAD_XID", True)),
    ("enlist, other resource", ENLISTED, Enlist(TX, (replace(branch("1"), resource="dbx"),)), NOW,
     ("ALREADY_EXISTS", "CONTENT_MISMATCH", True)),
    ("enlist, gid of another", replace(BEGUN, tx_id=OTHER), Enlist(BEGUN, (ONE,)), NOW,
     ("ALREADY_EXISTS", "IN_PROGRESS", True)),
    ("commit, other deadline", ENLISTED, Commit(replace(tx_of(ONE), deadline_us=99)), NOW,
     ("INVALID_ARGUMENT", "BAD_XID", True)),
    ("commit, enlisted differently", ENLISTED, Commit(tx_of(replace(ONE, resource="dbx"))), NOW,
     ("ALREADY_EXISTS", "CONTENT_MISMATCH", True)),
    ("commit again with another list", COMMITTING, Commit(tx_of(ONE, TWO, branch("3", B.READY))), NOW,
     ("ALREADY_EXISTS", "CONTENT_MISMATCH", True)),
    ("commit after W", None, Commit(tx_of(ONE)), W + 1, ("FAILED_PRECONDITION", "EXPIRED", False)),
    ("commit after a late fence", LATE_FENCE, Commit(tx_of(ONE)), W + 2,
     ("FAILED_PRECONDITION", "EXPIRED", False)),
    ("commit, gid of another", replace(COMMITTING, tx_id=OTHER), Commit(tx_of(ONE)), NOW,
     ("ALREADY_EXISTS", "ALREADY_COMMITTED", True)),
    ("rollback after W", None, Rollback(TX, probed=True), W + 1, ("FAILED_PRECONDITION", "EXPIRED", False)),
    ("rollback after a late fence", LATE_FENCE, Rollback(TX), W + 2,
     ("FAILED_PRECONDITION", "EXPIRED", False)),
    ("rollback, other deadline", ENLISTED, Rollback(replace(TX, deadline_us=99)), NOW,
     ("INVALID_ARGUMENT", "BAD_XID", True)),
    *[
        (f"{type(event).__name__} of another namespace", row, event, NOW, ("NOT_FOUND", "NOT_FOUND", True))
        for row in (ENLISTED, COMMITTING, ABORTING)
        for event in (
            Begin(ALIEN), Enlist(ALIEN, (ONE,)), Commit(ALIEN), Rollback(ALIEN), OnePhaseDone(ALIEN)
        )
    ],
    ("operate, no such branch", COMMITTING, Operate("retry", "9", AUDIT), NOW,
     ("NOT_FOUND", "NOT_FOUND", True)),
    ("operate, undecided", ENLISTED, Operate("skip", "1", AUDIT), NOW,
     ("FAILED_PRECONDITION", "NOT_SUPPORTED", True)),
    ("operate, ended", ENDED, Operate("skip", "1", AUDIT), NOW, ("FAILED_PRECONDITION", "NOT_PARKED", True)),
    ("operate, nonsense", COMMITTING, Operate("explode", "1", AUDIT), NOW,
     ("INVALID_ARGUMENT", "BAD_REQUEST", True)),
    *[
        (f"{action} of a settled branch", ask(COMMITTING, BranchFinished("1")).tx, Operate(action, "1", AUDIT),
         NOW, ("FAILED_PRECONDITION", "NOT_PARKED", True))
        for action in ("retry", "park", "skip", "resolve")
    ],
]  # fmt: skip


@pytest.mark.parametrize(
    ("tx", "event", "now_us", "wanted"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_refusals(tx: Tx | None, event: Event, now_us: int, wanted: tuple[str, str, bool]) -> None:
    assert refusal(ask(tx, event, now_us)) == wanted


def test_expired_is_never_definite() -> None:
    assert all(not wanted[2] for *_, wanted in REFUSALS if wanted[1] == "EXPIRED")


# ---- what is written, and until when ----


def test_commit_is_written_until_its_deadline_only() -> None:
    verdict = ask(None, Commit(tx_of(ONE, TWO)))
    tx = written(verdict)
    assert verdict.change is not None
    assert (verdict.change.kind, verdict.change.not_after_us) == (ChangeKind.INSERT, DEADLINE)
    assert verdict.change.forced
    assert (tx.state, tx.decision, tx.decided_by) == (TxState.COMMITTING, Decision.COMMIT, DecidedBy.CLIENT)
    assert verdict.effects == (Finish(tx.branches[0], True), Finish(tx.branches[1], True))
    enlisted = ask(ENLISTED, Commit(tx_of(ONE)))
    assert enlisted.change is not None
    assert (enlisted.change.kind, enlisted.change.expected_version) == (ChangeKind.AMEND, ENLISTED.version)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (B.OPEN, "VOTE_MISSING"),
        (B.REFUSED, "BRANCH_REFUSED"),
    ],
)
def test_a_vote_counts(state: BranchState, reason: str) -> None:
    """In Commit's own list, and in what has enlisted by itself."""
    for tx, asked in (
        (None, tx_of(ONE, branch("2", state))),
        (row_of(Enlist(TX, (branch("2", state),))), tx_of(ONE)),
    ):
        done = row_of(Commit(asked), tx)
        assert (done.state, done.decided_by, done.reason) == (TxState.ABORTING, DecidedBy.BRANCH, reason)
        assert [b.state for b in sorted(done.branches, key=lambda b: b.id)] == [B.UNDOING, B.UNDOING]


def test_read_only_branches_drop_out_and_commit_alone_ends_at_once() -> None:
    done = row_of(Commit(tx_of(branch("1", B.READ_ONLY))))
    assert (done.state, done.ended_us) == (TxState.COMMITTED, NOW)
    assert row_of(Commit(tx_of())).state is TxState.COMMITTED
    mixed = row_of(Commit(tx_of(branch("1", B.READ_ONLY), TWO)))
    assert [b.state for b in mixed.branches] == [B.READ_ONLY, B.FINISHING]


@pytest.mark.parametrize("now_us", [DEADLINE + 1, H, H + 1, W])
def test_a_first_contact_after_the_deadline_is_an_abort_until_w(now_us: int) -> None:
    for event in (Commit(tx_of(ONE)), Rollback(tx_of(ONE), sealed=True), Rollback(tx_of(ONE), probed=True)):
        verdict = ask(None, event, now_us)
        assert written(verdict).decision is Decision.ABORT
        assert verdict.change is not None
        assert verdict.change.not_after_us == W


def test_a_begun_transaction_without_a_row_was_lost_with_its_log() -> None:
    done = row_of(Commit(tx_of(ONE), begun=True))
    assert (done.decision, done.reason) == (Decision.ABORT, "NOT_FOUND")


def test_enlisting_raises_the_version_and_repeats_change_nothing() -> None:
    assert ENLISTED.version == 1
    more = row_of(Enlist(TX, (branch("2"),)), ENLISTED)
    assert (more.version, len(more.branches)) == (2, 2)
    assert ask(more, Enlist(TX, (branch("2"),))).change is None
    voted = row_of(Enlist(TX, (TWO,)), more)
    assert voted.version == 3
    assert ask(voted, Enlist(TX, (branch("2"),))).change is None, "an older report takes no vote back"
    refused = row_of(Enlist(TX, (branch("2", B.REFUSED),)), voted)
    assert ask(refused, Enlist(TX, (TWO,))).change is None, "a no stays"


def test_an_abort_stays_unlogged_only_where_it_may() -> None:
    quiet = Rollback(tx_of(ONE), sealed=True, logged=False)
    verdict = ask(None, quiet)
    assert (verdict.unlogged, verdict.change) == (True, None)
    assert verdict.effects == (Finish(verdict.tx.branches[0], False),)
    assert ask(None, replace(quiet, tx=replace(quiet.tx, gid="order-1"))).change is not None
    assert ask(ENLISTED, quiet).change is not None
    assert ask(None, replace(quiet, logged=True)).change is not None
    unsealed = ask(None, replace(quiet, sealed=False))
    assert (unsealed.unlogged, unsealed.effects) == (False, (Probe(()),))


def test_who_may_have_committed_in_one_phase_is_asked_first() -> None:
    named = replace(BEGUN, one_phase_resource="db1")
    for tx, event, wanted in (
        (None, Rollback(TX), ()),
        (None, Rollback(TX, resources=("db2",)), ("db2",)),
        (named, Rollback(BEGUN, resources=("db2",)), ("db1",)),
        (named, DeadlinePassed(), ("db1",)),
    ):
        now_us = DEADLINE + 1 if isinstance(event, DeadlinePassed) else NOW
        verdict = ask(tx, event, now_us)
        assert (verdict.change, verdict.effects) == (None, (Probe(wanted),))
        assert written(ask(tx, replace(event, probed=True), now_us)).decision is Decision.ABORT
    assert ask(named, Rollback(BEGUN, sealed=True)).change is not None, "its initiator says it never did"
    assert ask(BEGUN, Rollback(BEGUN)).change is not None, "a row that names none allows none"


def test_deadlines_decide_nothing_early_and_nothing_twice() -> None:
    assert ask(ENLISTED, DeadlinePassed(), DEADLINE).change is None
    late = ask(ENLISTED, DeadlinePassed(), P)
    assert (written(late).decided_by, late.change and late.change.not_after_us) == (DecidedBy.DEADLINE, None)
    for row in (COMMITTING, ABORTING, ENDED):
        assert ask(row, DeadlinePassed(), P) == Verdict(row)


def test_the_fence() -> None:
    orphan = OrphanFound(tx_of(branch("1")))
    assert ask(None, orphan, H) == Verdict(orphan.tx), "too early to judge"
    for row in (ENLISTED, COMMITTING, ABORTING, ENDED):
        assert ask(row, orphan, P) == Verdict(row), "somebody was first: obey"
    verdict = ask(None, orphan, P)
    assert verdict.change is not None
    assert (verdict.change.kind, verdict.change.not_after_us) == (ChangeKind.INSERT, None)
    assert verdict.effects == (Finish(verdict.tx.branches[0], False),)
    early = ask(None, orphan, W)
    assert early.change is not None
    assert early.change.not_after_us == W, "decided by W it reads as an outcome: it must not land later"
    assert (expired(FENCED, WINDOWS), expired(LATE_FENCE, WINDOWS)) == (False, True)


def test_the_same_commit_gets_the_same_answer_for_ever() -> None:
    for row in (COMMITTING, ENDED):
        for now_us in (NOW, DEADLINE + 1, W + 1, P):
            assert ask(row, Commit(tx_of(ONE, TWO)), now_us) == Verdict(row)
            assert ask(row, Rollback(TX), now_us) == Verdict(row)
    assert ask(ABORTING, Commit(tx_of(ONE, TWO)), P) == Verdict(ABORTING)
    bare = replace(ENDED, branches=(), detail_pruned=True)
    assert ask(bare, Commit(tx_of(ONE, TWO)), P) == Verdict(bare)


# ---- phase two ----


def test_all_well_writes_one_lazy_end_and_no_branch() -> None:
    first = ask(COMMITTING, BranchFinished("1"))
    assert first.change is None
    last = ask(first.tx, BranchFinished("2"))
    assert last.change is not None
    assert (last.change.forced, last.change.touched) == (False, ())
    assert last.change.expected_epoch == COMMITTING.epoch
    assert (last.tx.state, last.tx.epoch) == (TxState.COMMITTED, COMMITTING.epoch + 1)
    assert last.effects == (Settled(),)


@pytest.mark.parametrize("event", [BranchFinished("1"), BranchFailed("1", "X", 9), HeuristicSeen("1", "H")])
@pytest.mark.parametrize("row", [ENLISTED, ENDED, ask(COMMITTING, BranchFinished("1")).tx])
def test_late_and_repeated_news_change_nothing(row: Tx, event: Event) -> None:
    assert ask(row, event) == Verdict(row)
    assert ask(row, BranchFinished("9")) == Verdict(row)


def test_a_failed_attempt_is_counted_and_tried_again() -> None:
    verdict = ask(COMMITTING, BranchFailed("1", "BUSY: x", 70))
    failed = verdict.tx.branch("1")
    assert failed is not None
    assert (failed.state, failed.attempts, failed.next_attempt_us) == (B.FINISHING, 1, 70)
    assert verdict.effects == (Finish(failed, True, 70),)
    assert verdict.change is not None
    assert not verdict.change.forced
    assert resume(verdict.tx)[0] == Finish(failed, True, 70), "a take-over keeps the time"


@pytest.mark.parametrize("row", [COMMITTING, ABORTING])
def test_a_heuristic_outcome_is_forced_parked_and_alarmed(row: Tx) -> None:
    verdict = ask(row, HeuristicSeen("1", "HEURISTIC: by hand"))
    parked = verdict.tx.branch("1")
    assert parked is not None
    assert (parked.state, parked.heuristic) == (B.PARKED, True)
    assert verdict.change is not None
    assert verdict.change.forced
    assert verdict.effects == (Alarm("heuristic", "1", "HEURISTIC: by hand"),)
    assert not verdict.tx.shown_parked
    beside = ask(verdict.tx, BranchFinished("2"))
    assert beside.tx.shown_parked
    assert not beside.tx.ended, "told COMMITTED only when every branch is"
    assert beside.change is not None, "that it rests has to be written"
    assert beside.effects == (Settled(),)


@pytest.mark.parametrize("row", [COMMITTING, ABORTING])
def test_orders_take_the_row_over_and_are_audited(row: Tx) -> None:
    parked = row_of(Operate("park", "1", AUDIT), row)
    assert parked.epoch == row.epoch + TAKEN
    verdict = ask(parked, Operate("retry", "1", AUDIT))
    assert verdict.change is not None
    assert (verdict.change.kind, verdict.change.expected_epoch) == (ChangeKind.OPERATE, parked.epoch)
    assert (verdict.change.audit, verdict.change.forced) == (AUDIT, True)
    back = verdict.tx.branch("1")
    assert back is not None
    assert back.state is (B.FINISHING if row is COMMITTING else B.UNDOING)
    for action in ("skip", "resolve"):
        settled = row_of(Operate(action, "1", AUDIT), parked)
        assert settled.heuristic, "settled by hand says so"
        assert ask(settled, BranchFinished("2")).tx.ended


@pytest.mark.parametrize("action", ["skip", "resolve"])
def test_a_delivery_that_is_given_up_is_no_heuristic_outcome(action: str) -> None:
    told = Branch("1", Kind.NOTIFY, B.PARKED, "http://shop", reason="GONE")
    row = replace(COMMITTING, state=TxState.COMMITTED, branches=(told,))
    given_up = row_of(Operate(action, "1", AUDIT), row)
    assert given_up.ended_us
    assert not given_up.heuristic


# ---- one-phase ----


def test_a_one_phase_commit_is_a_fact_whenever_it_is_told() -> None:
    news = OnePhaseDone(tx_of(Branch("1", ONE.kind, B.DONE, "db1")))
    for row in (None, replace(BEGUN, one_phase_resource="db1")):
        for now_us in (NOW, P * 2):
            verdict = ask(row, news, now_us)
            done = written(verdict)
            assert (done.state, done.decided_by) == (TxState.COMMITTED, DecidedBy.DATABASE)
            assert verdict.change is not None
            assert verdict.change.not_after_us is None
            assert ask(done, news, now_us) == Verdict(done)


def test_a_one_phase_commit_against_an_abort_or_beside_others_is_alarmed() -> None:
    news = OnePhaseDone(tx_of(Branch("1", ONE.kind, B.DONE, "db1")))
    against = ask(ABORTING, news)
    assert [e.kind for e in against.effects if isinstance(e, Alarm)] == ["one_phase_after_abort"]
    assert against.tx.heuristic
    assert against.tx.decision is Decision.ABORT
    beside = ask(row_of(Enlist(TX, (branch("2"),))), news)
    assert [e.kind for e in beside.effects if isinstance(e, Alarm)] == ["one_phase_not_alone"]
    assert beside.tx.heuristic


@pytest.mark.parametrize("event", [DeadlinePassed(), BranchFinished("1"), Operate("retry", "1", AUDIT)])
def test_some_events_need_a_row(event: Event) -> None:
    with pytest.raises(ValueError, match="row"):
        ask(None, event)
