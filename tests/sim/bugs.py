"""Planted bugs: each takes one rule out of the code under test. The simulation must find every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import txcoord.adapters.sql.sqlite as sql
import txcoord.adapters.xa.mariadb as maria
import txcoord.adapters.xa.postgresql as postgres
import txcoord.engine.coordinator as coordinator
import txcoord.engine.recovery as recovery
import txcoord_client._finish as finish
import txcoord_client._xa.postgresql as sdk_postgres
from txcoord.adapters.sql import mapping as m
from txcoord.core.model import WriteResult, Written
from txcoord.ports import Finished, FinishResult, Probed

from . import bugs_gate, bugs_kinds, bugs_messages, bugs_queue

_DONE = FinishResult(Finished.DONE)


@dataclass(frozen=True)
class Bug:
    """One rule that is gone."""

    name: str
    rule: str
    """What the code does, and does not any more."""
    where: Any
    attribute: str
    instead: Callable[[Any], Any]
    """From the right one to the wrong one."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """While the block lasts."""
        right = self.where.__dict__[self.attribute]
        setattr(self.where, self.attribute, self.instead(right))
        try:
            yield
        finally:
            setattr(self.where, self.attribute, right)


def _without_compare_and_set(right: Any) -> Any:
    def amend(count: int) -> str:
        every = (*m.AMEND, m.EXPECTED, m.NOT_AFTER)
        return sql._update(m.AMEND, every[len(m.AMEND) :], count, sql._never_late(every))

    return amend


def _without_epoch(right: Any) -> Any:
    def progress(count: int) -> str:
        return sql._update(m.PROGRESS, (m.EXPECTED,), count, f"decision IS NOT NULL AND {sql._ANY_TIME}")

    return progress


def _limit_in_the_node(right: Any) -> Any:
    async def write(self: Any, new: Any, change: Any) -> Any:
        limit, now_us = change.not_after_us, self.clock.now_us()
        if limit is not None and now_us > limit:
            return WriteResult(Written.TOO_LATE, now_us)
        return await right(self, new, replace(change, not_after_us=None))

    return write


def _absent_is_done(right: Any) -> Any:
    async def gone_commit(self: Any, conn: Any, xid: str) -> FinishResult:
        return _DONE

    return gone_commit


def _absent_is_never(right: Any) -> Any:
    async def probe_on(self: Any, conn: Any, tx_id: str, branch: str, op: str, not_after_us: int) -> Probed:
        state = await conn.fetchval(postgres.pg.read_marker(tx_id, branch, op, self._schema))
        return Probed.COMMITTED if state == postgres.marker.DONE else Probed.NEVER

    return probe_on


def _trust_nota(right: Any) -> Any:
    async def unknown(self: Any, s: Any, x: Any, commit: bool) -> FinishResult:
        return _DONE if commit else await right(self, s, x, commit)

    return unknown


def _marker_not_checked(right: Any) -> Any:
    async def judge(self: Any, s: Any, x: Any) -> FinishResult:
        return _DONE

    return judge


def _orphan_without_fence(right: Any) -> Any:
    async def unknown(self: Any, finisher: Any, x: Any, now_us: int) -> None:
        if now_us > self._c.settings.windows.marker_until(x.deadline_us):
            await finisher.finish(str(x), False)

    return unknown


def _forget_the_lost_reply(right: Any) -> Any:
    async def settle(tx: Any, branch: Any) -> None:
        tx.set_rollback_only("CONNECTION_LOST", "the reply to COMMIT was lost")
        await finish._abort(tx)

    return settle


def _tag_not_checked(right: Any) -> Any:
    def must_be(tag: str, wanted: str, statement: str) -> None:
        pass

    return must_be


BUGS = (
    Bug(
        "skip-cas",
        "deciding requires the version that was read, and no decision yet",
        sql,
        "_amend",
        _without_compare_and_set,
    ),
    Bug(
        "limit-in-node",
        "the inserting statement carries the limit of time",
        coordinator.Coordinator,
        "_write",
        _limit_in_the_node,
    ),
    Bug(
        "absent-is-done",
        "a branch that is gone is done only if its marker says so",
        postgres.PostgresFinisher,
        "_gone_commit",
        _absent_is_done,
    ),
    Bug(
        "absent-is-never",
        "whoever asks for a one-phase commit puts a tombstone where there is no marker",
        postgres.PostgresFinisher,
        "_probe_on",
        _absent_is_never,
    ),
    Bug(
        "trust-nota",
        "1397 (unknown xid) proves nothing: the list and the marker do",
        maria.MariaFinisher,
        "_unknown",
        _trust_nota,
    ),
    Bug(
        "marker-not-checked",
        "OK to XA COMMIT on another session is believed only with the marker",
        maria.MariaFinisher,
        "_judge",
        _marker_not_checked,
    ),
    Bug(
        "lost-reply",
        "a lost reply to a one-phase COMMIT is settled by tombstone",
        finish,
        "_settle_one_phase",
        _forget_the_lost_reply,
    ),
    Bug(
        "no-epoch",
        "progress requires the epoch of the claim",
        sql,
        "_progress",
        _without_epoch,
    ),
    Bug(
        "no-fence",
        "an orphan is rolled back only after its ABORT row",
        recovery.Recovery,
        "_unknown",
        _orphan_without_fence,
    ),
    Bug(
        "tag-not-checked",
        "PREPARE TRANSACTION is done only if the tag says so",
        sdk_postgres,
        "_must_be",
        _tag_not_checked,
    ),
    *(
        Bug(*plant)
        for plant in (*bugs_kinds.PLANTS, *bugs_queue.PLANTS, *bugs_gate.PLANTS, *bugs_messages.PLANTS)
    ),
)
BY_NAME = {bug.name: bug for bug in BUGS}
