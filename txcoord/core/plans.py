"""Plans: steps that the coordinator runs before anything is decided, and that decide.

The COMMIT of a submitted saga is what its steps have done, no more: so it is not forced. A crash of the log's database
may lose it after a client was told COMMITTED; the row is a running plan again then. Hence, whoever *reads* a running
plan is *in doubt*: it aborts only when a step has said no, which a step that was done never does. To get there an
unwanted plan is asked on as if its deadline had passed: then a step that was done says so, and any other one says no.
"""

from __future__ import annotations

from .calling import calls_of
from .events import Decide, Effect
from .evolve import replace
from .kinds import RULES
from .lifecycle import BranchEvent, TxEvent, next_branch, next_tx
from .model import Branch, BranchState, DecidedBy, Kind, Tx, TxState

_LONG_AGO_US = 1
_NO = (BranchState.REFUSED, BranchState.PARKED)
_FACTS = (BranchState.READY, *_NO)
_BY_HAND = (BranchState.SKIPPED, BranchState.RESOLVED)


def is_step(branch: Branch) -> bool:
    """Does the coordinator run its first phase?"""
    return branch.action is not None and branch.action.run_first


def sealed(tx: Tx) -> Tx:
    """A plan as it begins."""
    return started(replace(tx, state=next_tx(tx.state, TxEvent.SEAL)))


def started(tx: Tx) -> Tx:
    """Start the steps before which everything has happened."""
    if tx.decision is not None:
        return tx
    return replace(tx, branches=tuple(_started(tx, b) for b in tx.branches))


def _started(tx: Tx, branch: Branch) -> Branch:
    if branch.state is not BranchState.OPEN or not is_step(branch):
        return branch
    begun = next_branch(branch.kind, branch.state, BranchEvent.START)
    return replace(branch, state=begun) if tx.may_go(branch, begun) else branch


def runs(tx: Tx, branch: Branch) -> bool:
    """Is its first phase being called?"""
    return branch.state is BranchState.RUNNING and tx.may_go(branch)


def as_read(tx: Tx) -> Tx:
    """An undecided transaction as the log has it. What its steps do is written lazily, or not at all: any of them may
    have been started since, so that an abort has to undo it. Running it again is harmless."""
    if tx.decision is not None:
        return tx
    return replace(
        tx,
        in_doubt=may_have_committed(tx),
        unwanted=None,  # No row says it: whoever wanted it aborted asks again, or its deadline does.
        branches=tuple(
            replace(b, state=BranchState.RUNNING) if b.state is BranchState.OPEN and is_step(b) else b
            for b in tx.branches
        ),
    )


def joined(row: Tx, own: Tx) -> Tx:
    """The row of an active transaction that others have changed, with what is known here of its steps."""
    facts = {b.id: b for b in own.branches if is_step(b) and b.state in _FACTS}
    return replace(row, branches=tuple(facts.get(b.id, b) if is_step(b) else b for b in row.branches))


def only_forward(tx: Tx) -> bool:
    """Has a step begun, or may it have, that is never undone? Then the plan cannot be aborted any more."""
    begun = (BranchState.RUNNING, BranchState.READY, *_BY_HAND)
    return tx.state is TxState.RUNNING and any(
        b.action is not None and b.action.forward and b.state in begun for b in tx.branches
    )


def unwanted(tx: Tx, by: DecidedBy, reason: str) -> Tx:
    """A plan in doubt that is to be aborted if it was not committed: its steps are asked at once."""
    return replace(
        tx,
        unwanted=(by, reason),
        branches=tuple(
            replace(b, next_attempt_us=0) if is_step(b) and b.state is BranchState.RUNNING else b
            for b in tx.branches
        ),
    )


def as_asked(tx: Tx) -> Tx:
    """As its participants see it: a step of a plan that is unwanted must not begin any more."""
    return replace(tx, deadline_us=_LONG_AGO_US) if tx.unwanted is not None and tx.decision is None else tx


def may_have_committed(tx: Tx) -> bool:
    """May a running plan that was read have been committed before, and told so?"""
    return tx.state is TxState.RUNNING and no_of(tx) is None and may_be_lost(tx)


def may_be_lost(tx: Tx) -> bool:
    """Is its COMMIT found again by asking its steps again, and does nothing else come of it?"""
    return all(b.kind is Kind.CALLBACK or (b.kind is Kind.SAGA and is_step(b)) for b in tx.branches)


def may_say_no(tx: Tx) -> bool:
    """In doubt a step that is never undone has perhaps not begun: is any before it not known to be done?"""
    return tx.in_doubt and any(
        b.action is not None and not b.action.forward and b.state is not BranchState.READY
        for b in tx.branches
    )


def no_of(tx: Tx) -> Branch | None:
    """The step that has said no, or that was given up."""
    return next((b for b in tx.branches if is_step(b) and b.state in _NO), None)


def all_done(tx: Tx) -> bool:
    """Is the first phase of all its branches done, or settled by an operator?"""
    done = (BranchState.READY, *_BY_HAND)
    return all(b.state in done for b in tx.branches if RULES[b.kind].first_phase)


def effects_of(tx: Tx) -> tuple[Effect, ...]:
    """What is to be done for the steps of an undecided transaction. Once one has said no, nothing more is begun."""
    if tx.decision is not None:
        return ()
    if no_of(tx) is not None or (tx.state is TxState.RUNNING and all_done(tx)):
        return (Decide(),)
    return calls_of(tx)
