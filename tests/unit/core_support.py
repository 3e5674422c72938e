"""A tiny world for the core: one transaction, a log with its compare-and-set rules, a database with its marker
key, and clients that repeat, lose and delay what they say. Every step checks the promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from txcoord.core.action import AnswerKind, Op
from txcoord.core.calling import op_of
from txcoord.core.events import (
    Answered,
    BranchFailed,
    BranchFinished,
    Call,
    Commit,
    DeadlinePassed,
    Enlist,
    Event,
    Finish,
    HeuristicSeen,
    HolderReported,
    OnePhaseDone,
    Operate,
    OrphanFound,
    Probe,
    Rollback,
    Verdict,
)
from txcoord.core.events import (
    Begin as BeginEvent,
)
from txcoord.core.kinds import RULES
from txcoord.core.machine import decide, expired, resume
from txcoord.core.model import (
    SETTLED_BRANCH,
    Audit,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    DecidedBy,
    Decision,
    Kind,
    Tx,
    TxState,
    Windows,
    Written,
)
from txcoord.core.settle import read_back

B = BranchState
DEADLINE = 100
WINDOWS = Windows(grace_us=50, retention_us=1000)
H, W, P = 150, 650, 1150
TICKS = (10, 101, 200, 660, 1200)
"""One moment in each window: before the deadline, before H, before W, before P, and after."""

VOTED = (B.READY, B.READ_ONLY)
AUDIT = Audit("ann", "a test", "any", 0)
TX = Tx("0" * 31 + "1", "shop", DEADLINE)


def branch(
    number: str, state: BranchState = B.OPEN, kind: Kind = Kind.XA, resource: str = "", xid: str = ""
) -> Branch:
    """A branch; an XA one with a resource and an xid of its own."""
    if kind is Kind.XA:
        resource, xid = resource or f"db{number}", xid or f"xid-{number}"
    return Branch(number, kind, state, resource, xid)


def tx_of(*branches: Branch, **more: object) -> Tx:
    """The transaction as a client knows it."""
    return replace(TX, branches=branches, **more)  # type: ignore[arg-type]


class Broken(AssertionError):
    """A promise was broken."""


def must(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


@dataclass(frozen=True, slots=True)
class World:
    """All that there is at one moment. Immutable, so that a search can go on from any of them."""

    tick: int = 0
    row: Tx | None = None
    stale: Tx | None = None
    """The row as somebody read it earlier."""
    live: Tx | None = None
    """What a coordinator knows beyond the log; a crash forgets it."""
    marker: str = ""
    """The one-phase key of the database: empty, ``done`` or ``tomb``."""
    one_phase: bool = False
    """May this transaction go one-phase?"""
    commit_sent: bool = False
    sealed: bool = False
    told: frozenset[str] = frozenset()
    """Definite outcomes that anybody was told."""

    @property
    def now(self) -> int:
        return TICKS[self.tick]


# ---- the log ----


def write(world: World, change: Change) -> tuple[World, Written]:
    """One change by the rules of :class:`ChangeKind`, at the log's own clock."""
    row, new = world.row, change.tx
    if change.kind is ChangeKind.INSERT:
        conflict = row is not None
    elif change.kind is ChangeKind.AMEND:
        conflict = row is None or row.version != change.expected_version or row.decision is not None
    else:
        conflict = row is None or row.epoch != change.expected_epoch
    if conflict:
        return world, Written.CONFLICT
    if change.not_after_us is not None and world.now > change.not_after_us:
        return world, Written.TOO_LATE
    branches = {b.id: b for b in row.branches} if row is not None else {}
    branches.update((b.id, b) for b in change.touched)
    written = read_back(replace(new, branches=tuple(branches.values())))
    _check_write(world, written)
    return replace(world, row=written), Written.OK


def _check_write(world: World, new: Tx) -> None:
    old = world.row
    if old is not None:
        must(new.version >= old.version and new.epoch >= old.epoch, "version and epoch only grow")
        if old.decision is not None:
            same = (new.decision, new.decided_by, new.decided_us) == (
                old.decision,
                old.decided_by,
                old.decided_us,
            )
            must(same, "a decision never changes")
            must(new.ended or not old.ended, "what has ended stays so")
    if new.decision is not None and (old is None or old.decision is None):
        if new.decision is Decision.COMMIT and new.decided_by is not DecidedBy.DATABASE:
            in_time = world.now <= DEADLINE or (old is not None and old.in_doubt)
            must(in_time, "no COMMIT is written after the deadline")
            must(world.marker != "tomb" or not world.one_phase or world.commit_sent, "commit after tombstone")
        elif new.decision is Decision.ABORT and new.decided_by is DecidedBy.CLIENT:
            must(world.now <= W, "no requested ABORT is written after W")
        elif new.decided_by is DecidedBy.SCANNER:
            must(world.now > H, "no fence before deadline and grace")


# ---- what holds of any verdict ----


def check(before: Tx | None, event: Event, verdict: Verdict) -> None:
    """The promises that one verdict can break."""
    tx = verdict.tx
    if verdict.refusal is not None:
        must(verdict.change is None and not verdict.effects, "a refusal does nothing")
        must(verdict.refusal.reason != "EXPIRED" or not verdict.refusal.definite, "EXPIRED is never definite")
        return
    wanted = Decision.COMMIT if tx.decision is Decision.COMMIT else Decision.ABORT
    finishing = {e.branch.id for e in verdict.effects if isinstance(e, Finish | Call)}
    old = {b.id: b.state for b in before.branches} if before is not None else {}
    for b in tx.branches:
        must(b.state is not B.FINISHING or wanted is Decision.COMMIT, "nothing is finished under abort")
        must(b.state is not B.UNDOING or wanted is Decision.ABORT, "nothing is undone under commit")
        if op_of(b) is not None and not tx.may_go(b):
            must(b.id not in finishing, f"branch {b.id} is called before what comes before it")
        elif b.state in (B.FINISHING, B.UNDOING) and (old.get(b.id) is not b.state or verdict.unlogged):
            must(b.id in finishing, f"branch {b.id} became {b.state} and nobody was told to finish it")
    if isinstance(event, Commit) and tx.decision is Decision.COMMIT and verdict.change is not None:
        for b in (*event.tx.branches, *(before.branches if before is not None else ())):
            if RULES[b.kind].first_phase:
                must(b.state is not B.REFUSED, "committed over a no")
                voted = [
                    x.state
                    for x in (*event.tx.branches, *(before.branches if before is not None else ()))
                    if x.id == b.id
                ]
                must(any(v in VOTED for v in voted), "committed without a vote")
                must(
                    B.READY not in voted or _state(tx, b.id) in (B.FINISHING, B.DONE),
                    "a prepared one forgotten",
                )
    if tx.decision is not None:
        check_decided(tx)


def _state(tx: Tx, branch_id: str) -> BranchState | None:
    b = tx.branch(branch_id)
    return b.state if b is not None else None


def check_decided(tx: Tx) -> None:
    """Nothing is forgotten: what is on its way is what ``resume`` asks for."""
    asked = {(e.branch.id, e.commit) for e in resume(tx) if isinstance(e, Finish)}
    asked |= {(e.branch.id, e.op is Op.CONFIRM) for e in resume(tx) if isinstance(e, Call)}
    if tx.ended:
        late = {b.id for b in tx.branches if not RULES[b.kind].first_phase and b.state is B.FINISHING}
        must({i for i, _ in asked} == late, "an ended transaction leaves only deliveries")
        return
    wanted = {(b.id, b.state is B.FINISHING) for b in tx.branches if b.state in (B.FINISHING, B.UNDOING)}
    waiting = {b.id for b in tx.branches if op_of(b) is not None and not tx.may_go(b)}
    wanted = {(i, commit) for i, commit in wanted if i not in waiting}
    must(asked == wanted, "resume asks for all that is on its way, and for nothing else")
    open_ = [b for b in tx.branches if RULES[b.kind].first_phase and b.state not in SETTLED_BRANCH]
    must(bool(open_), "a transaction with nothing left has ended")


def check_world(world: World) -> None:
    """What holds at every moment."""
    row = world.row
    if world.live is not None and world.live.ended:
        settled = all(b.state in SETTLED_BRANCH for b in world.live.branches if RULES[b.kind].first_phase)
        must(settled, "a settled transaction has no runnable branch with a first phase")
    must(len(world.told) < 2, f"two stories: {world.told}")
    if world.marker == "done":
        must("aborted" not in world.told, "told ABORTED though the database committed")
    if row is None or row.decision is None:
        return
    if row.decision is Decision.COMMIT:
        must("aborted" not in world.told, "told ABORTED, but the log says COMMIT")
        must(row.decided_by is not DecidedBy.DATABASE or world.marker == "done", "committed by nobody")
    elif not expired(row, WINDOWS):
        must("committed" not in world.told, "told COMMITTED, but the log says ABORT")
        must(world.marker != "done", "ABORT beside a one-phase commit")


# ---- the loop around the core, as the engine has it ----


def settle(
    world: World, event: Event, tx: Tx | None, now: int, *, lost: bool = False, gone: bool = False
) -> tuple[World, Tx | None]:
    """Ask and write until it is written or refused. ``lost``: the first change is never written (a crash);
    ``gone``: it is written, and the answer is lost. Answers the transaction as the asker is told of it."""
    for _ in range(6):
        verdict = decide(tx, event, now, WINDOWS)
        check(tx, event, verdict)
        if verdict.refusal is not None:
            return world, None
        probe = next((e for e in verdict.effects if isinstance(e, Probe)), None)
        if probe is not None:
            if not world.marker:
                if world.now > W:
                    return world, None
                world = replace(world, marker="tomb")
            if lost:
                return world, None
            if world.marker == "done":
                event = OnePhaseDone(verdict.tx)
            elif isinstance(event, Rollback):
                event = replace(event, probed=True)
            else:
                event = DeadlinePassed(probed=True)
            continue
        if verdict.change is None or lost:
            return world, None if lost or gone else verdict.tx
        world, written = write(world, verdict.change)
        if written is Written.OK:
            # That it is unwanted is in no row: the node that has it knows.
            known = verdict.tx if verdict.tx.unwanted is not None else world.row
            again = decide(known, event, now, WINDOWS)
            must(again.change is None, f"not idempotent: {event}")
            must(
                again.refusal is not None or again.tx == known,
                f"the repetition tells another story: {event}",
            )
            carried_out = verdict.tx.decision is not None or verdict.tx.state is TxState.RUNNING
            live = verdict.tx if carried_out else None
            return replace(world, live=live), None if gone else verdict.tx
        now = max(now, world.now)
        if written is Written.CONFLICT:
            tx = world.row
    raise Broken("no end of writing")


def say(world: World, event: Event, mode: str) -> World:
    """Somebody sends an event. Modes: ``ok``, ``lost``, ``gone``, ``stale`` (decides on an old row),
    ``slow`` (on a node whose clock is behind)."""
    tx = world.stale if mode == "stale" else (world.live or world.row)
    now = TICKS[max(0, world.tick - 1)] if mode == "slow" else world.now
    world, told = settle(world, event, tx, now, lost=mode == "lost", gone=mode == "gone")
    if told is not None and told.decision is not None:
        outcome = "committed" if told.decision is Decision.COMMIT else "aborted"
        if not expired(told, WINDOWS):
            world = replace(world, told=world.told | {outcome})
    return world


News = BranchFinished | BranchFailed | HeuristicSeen | HolderReported | Answered | Operate


def news(world: World, event: News, mode: str) -> World:
    """Phase two, or an operator, has news. Lost: the process dies before it writes."""
    # An order may come over another node, which has read the row some time ago.
    tx = world.stale if mode == "stale" and isinstance(event, Operate) else (world.live or world.row)
    if tx is None:
        return world
    verdict = decide(tx, event, world.now, WINDOWS)
    check(tx, event, verdict)
    if verdict.refusal is not None or mode == "lost":
        return world
    if not isinstance(event, BranchFailed | Operate) and not _asks_again(event):
        again = decide(verdict.tx, event, world.now, WINDOWS)
        must(again.change is None and again.tx == verdict.tx, f"not idempotent: {event}")
    if verdict.change is not None:
        world, written = write(world, verdict.change)
        if written is not Written.OK:
            return replace(world, live=None)
    at_rest = world.row is not None and world.row.shown_parked
    must(at_rest or not verdict.tx.shown_parked, "at rest, and the log does not say so")
    return replace(world, live=verdict.tx)


def _asks_again(event: News) -> bool:
    return isinstance(event, Answered) and event.answer.kind in (AnswerKind.FAILED, AnswerKind.PENDING)


def crash(world: World) -> World:
    """The coordinator dies; another claims the row, which raises its epoch."""
    row = world.row
    if row is not None and row.decision is not None and not row.ended:
        row = replace(row, epoch=row.epoch + 1)
        check_decided(row)
    return replace(world, row=row, live=None)


# ---- actions ----

Action = Callable[[World, str], World]
ONE, TWO = branch("1", B.READY), branch("2", B.READY)


def _enlist(*branches: Branch) -> Action:
    return lambda world, mode: say(world, Enlist(TX, branches), mode)


def _commit(*branches: Branch) -> Action:
    def act(world: World, mode: str) -> World:
        if world.sealed or (world.one_phase and world.marker == "done"):
            return world  # The initiator obeys its seal, and goes one way only.
        return say(replace(world, commit_sent=True), Commit(tx_of(*branches)), mode)

    return act


def _rollback(sealed: bool, logged: bool, *branches: Branch) -> Action:
    def act(world: World, mode: str) -> World:
        if sealed and world.commit_sent:
            return world
        world = replace(world, sealed=world.sealed or sealed)
        return say(world, Rollback(tx_of(*branches), sealed=sealed, logged=logged), mode)

    return act


def _deadline(world: World, mode: str) -> World:
    return say(world, DeadlinePassed(), mode) if world.row is not None and world.stale is not None else world


def _orphan(world: World, mode: str) -> World:
    return say(world, OrphanFound(tx_of(branch("1"))), mode)


def _news(event: News) -> Action:
    return lambda world, mode: news(world, event, mode)


def _read(world: World, mode: str) -> World:
    return replace(world, stale=world.live or world.row)


def _prune(world: World, mode: str) -> World:
    row = world.row
    return (
        replace(world, row=None, live=None, marker="")
        if row is not None and row.ended and world.now > P
        else world
    )


def _tick(world: World, mode: str) -> World:
    return replace(world, tick=min(world.tick + 1, len(TICKS) - 1))


def _begin_one(world: World, mode: str) -> World:
    return say(world, BeginEvent(replace(TX, gid="g", one_phase_resource="db1")), mode)


def _local_commit(world: World, mode: str) -> World:
    """The initiator commits its only branch in one phase; the marker's own statement refuses after H."""
    if world.sealed or (world.commit_sent and not world.marker):
        return world
    world = replace(world, commit_sent=True)
    if mode == "lost" or world.now > H or world.marker == "tomb":
        return world
    told = world.told if mode == "gone" else world.told | {"committed"}
    return replace(world, marker="done", told=told)


def _report(world: World, mode: str) -> World:
    return say(world, OnePhaseDone(tx_of(branch("1", B.DONE))), mode) if world.marker == "done" else world


COMMON: dict[str, Action] = {
    "tick": _tick,
    "read": _read,
    "crash": lambda world, mode: crash(world),
    "prune": _prune,
    "deadline": _deadline,
    "rollback": _rollback(False, True, ONE),
    "seal": _rollback(True, False, ONE, branch("2")),
    "seal, log": _rollback(True, True, ONE),
}
XA: dict[str, Action] = {
    **COMMON,
    "enlist 2": _enlist(branch("2")),
    "enlist 2 yes": _enlist(TWO),
    "enlist 2 no": _enlist(branch("2", B.REFUSED)),
    "enlist 2 read-only": _enlist(branch("2", B.READ_ONLY)),
    "commit": _commit(ONE, TWO),
    "commit 1": _commit(ONE),
    "commit, 2 unheard": _commit(ONE, branch("2")),
    "orphan": _orphan,
    "finished 1": _news(BranchFinished("1")),
    "finished 2": _news(BranchFinished("2")),
    "failed 1": _news(BranchFailed("1", "BUSY", 7)),
    "heuristic 2": _news(HeuristicSeen("2", "HEURISTIC")),
    "its holder committed 1": _news(HolderReported("1", "db1", "xid-1", True)),
    "its holder rolled 1 back": _news(HolderReported("1", "db1", "xid-1", False)),
    "its holder let go of 1": _news(HolderReported("1", "db1", "xid-1", None)),
    **{f"{what} 1": _news(Operate(what, "1", AUDIT)) for what in ("retry", "park", "skip", "resolve")},
}
ONE_PHASE: dict[str, Action] = {
    **{k: v for k, v in COMMON.items() if k != "seal"},
    "begin": _begin_one,
    "local commit": _local_commit,
    "report": _report,
    "finished 1": _news(BranchFinished("1")),
}
MODES = ("ok", "lost", "gone", "stale", "slow")
QUIET = frozenset({"tick", "read", "crash", "prune"})
"""Actions for which the mode makes no difference."""


def moves(actions: dict[str, Action]) -> list[tuple[str, str]]:
    """All actions in all modes."""
    return [(name, mode) for name in actions for mode in (("ok",) if name in QUIET else MODES)]


def step(world: World, actions: dict[str, Action], name: str, mode: str) -> World:
    """One action, and all that must hold after it."""
    world = actions[name](world, mode)
    check_world(world)
    return world


def key(world: World) -> object:
    """Worlds with the same key go on alike."""
    return (
        world.tick,
        _tx_key(world.row),
        _tx_key(world.stale),
        _tx_key(world.live),
        world.marker,
        world.commit_sent,
        world.sealed,
        world.told,
    )


def _tx_key(tx: Tx | None) -> object:
    if tx is None:
        return None
    return (
        tx.state,
        tx.decided_by,
        tx.decided_us,
        tx.version,
        tx.epoch,
        tx.gid,
        tuple((b.id, b.state, b.attempts, b.heuristic) for b in tx.branches),
    )


__all__ = ["TxState"]
