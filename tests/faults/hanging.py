"""What is there when a run hangs: where each task stands, what the log says, and who holds what in the databases."""

from __future__ import annotations

import asyncio
import gc
import linecache
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

if TYPE_CHECKING:
    from tests.faults.place import Run

_LOOK_S = 10.0
_DEEP = 60
_OF_LOG = tuple(f"SELECT * FROM {name}" for name in ("txcoord_tx", "txcoord_branch", "txcoord_lease"))
_ON_MARIADB = (
    "SELECT p.id, p.command, p.time, p.state, p.info, t.trx_id, t.trx_state, t.trx_rows_locked,"
    " t.trx_requested_lock_id FROM information_schema.processlist p"
    " LEFT JOIN information_schema.innodb_trx t ON t.trx_mysql_thread_id = p.id",
    "SELECT * FROM information_schema.innodb_lock_waits",
    "SELECT * FROM information_schema.innodb_locks",
    "XA RECOVER",
)
_ON_POSTGRESQL = (
    "SELECT pid, datname, state, wait_event_type, wait_event, now() - state_change AS since,"
    " pg_blocking_pids(pid) AS blocked_by, query FROM pg_stat_activity WHERE datname IS NOT NULL",
    "SELECT gid, database FROM pg_prepared_xacts",
    "SELECT pid, locktype, relation::regclass, transactionid, mode FROM pg_locks WHERE NOT granted",
)


async def seen(run: Run) -> str:
    """All that may tell why it does not go on. The tasks are those of all runs that are side by side now."""
    own = f"gid {run.gid}, last {run.last}, lives {run.lives}, fired {run.points.fired}, told {run.told}"
    out = [own, f"reached {[dict(c) for c in run.points.hits]}", *_tasks()]
    out += await _asked(run.place.log_url, _OF_LOG)
    for url in {run.place.log_url, *run.place.databases.values()}:
        if not url.startswith("sqlite"):
            out += await _asked(url, _ON_POSTGRESQL if url.startswith("postgresql") else _ON_MARIADB)
    return "\n".join(out)


# ---- tasks ----


def _tasks() -> Iterator[str]:
    for task in sorted(asyncio.all_tasks(), key=lambda t: t.get_name()):
        if task is asyncio.current_task():
            continue
        yield f"task {task.get_name()}"
        yield from _stack(task.get_coro())


def _stack(at: Any) -> Iterator[str]:
    """Where it stands, from the outermost call to what it waits for. (A task's own stack ends at the outermost.)"""
    for _ in range(_DEEP):
        frame = next((f for n in ("cr_frame", "gi_frame", "ag_frame") if (f := getattr(at, n, None))), None)
        if isinstance(frame, FrameType):
            code, number = frame.f_code, frame.f_lineno or 0
            line = linecache.getline(code.co_filename, number).strip()
            yield f"    {code.co_filename}:{number} {code.co_name}: {line}"
        if asyncio.isfuture(at):
            yield f"    waits for {at!r}"
            return
        inner = next(
            (i for n in ("cr_await", "gi_yieldfrom", "ag_await") if (i := getattr(at, n, None)) is not None),
            None,
        )
        if inner is None and not isinstance(frame, FrameType):
            # A step of an async generator, and what else only stands between two that wait.
            inner = next((o for o in gc.get_referents(at) if _waits(o)), None)
        if inner is None:
            yield f"    at {at!r}"
            return
        at = inner


def _waits(found: Any) -> bool:
    return asyncio.isfuture(found) or any(hasattr(found, n) for n in ("cr_frame", "gi_frame", "ag_frame"))


# ---- the log, and the databases ----


async def _asked(url: str, questions: tuple[str, ...]) -> list[str]:
    out = [f"---- {url.rpartition('/')[2]} ({url.partition(':')[0]})"]
    # Of its own: those of the run may be what hangs.
    engine = create_async_engine(url)
    for question in questions:
        out.append(f"  {question}")
        try:
            async with asyncio.timeout(_LOOK_S), engine.connect() as conn:
                out += [f"    {tuple(row)}" for row in await conn.execute(text(question))]
        except Exception as error:
            out.append(f"    cannot be seen: {type(error).__name__}: {error}")
    await engine.dispose()
    return out
