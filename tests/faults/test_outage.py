"""The outage in short form, and that what would be wrong is found. ``scripts/outage`` is the long one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.outage import outage
from tests.faults.outage_check import Found, Row, Rows, Wait, effects, outcomes, times
from tests.faults.outage_plan import SHORT, Asked
from tests.faults.outage_site import BROKER_BACK, STOCK_BACK, STOCK_KILLED, placed
from tests.support.kafka_server import KafkaServer
from tests.support.redis_server import RedisServer
from txcoord.testing.postgres import PostgresServer


@pytest.mark.timeout(180)
async def test_only_time_is_lost(
    pg18: PostgresServer, kafka_of_session: KafkaServer, own_redis: RedisServer, tmp_path: Path
) -> None:
    kafka_of_session.kill9()  # It is started last.
    async with placed(tmp_path, SHORT, pg18, kafka_of_session, own_redis, print) as place:
        found = await outage(SHORT, 1, place)
    # How late calls are is measured, and told by the command: here others use the machine.
    assert [wrong for wrong in found.wrong if not wrong.startswith("late:")] == []
    assert "committed" in found.figures["clients were told"]
    assert all(what in found.figures["delivered, once each"] for what in ("message", "notify", "sql"))
    assert found.figures["repeated calls whose due time was in the log"] > 0


# ---- what would be wrong is found ----

S = 1_000_000
TOLD = (("message", "stock"), ("sql", "reporting"))
HELD = Asked("tcc", "held", 0, 0, ("stock", "payment"), {}, told=TOLD)
UNTOLD = Asked("tcc", "untold", 0, 0, (), {}, gives_up=True, told=(("notify", "stock"),))
SHIPPED = Asked("saga", "shipped", 0, 0, ("stock", "payment"), {})
ANSWERS = {"held": "committed", "shipped": "aborted", "untold": "aborted"}
MARKS = {STOCK_KILLED: 10 * S, STOCK_BACK: 40 * S, BROKER_BACK: 30 * S}


def good() -> Rows:
    """One is committed: the confirm of its first branch had to be repeated. The other is aborted after a step."""
    done = Counter({("held", b, op): 1 for b in "12" for op in ("try", "confirm")})
    done.update({("held", "3", "message"): 1, ("held", "4", "sql"): 1})
    done.update({("shipped", "1", op): 1 for op in ("action", "compensate")})
    ids = {"held": "a", "shipped": "b"}
    return Rows(
        {
            "held": Row("a", "held", "commit", "committed", 45 * S),
            "shipped": Row("b", "shipped", "abort", "aborted", 5 * S),
        },
        done,
        {(ids[gid], branch, op) for gid, branch, op in done} | {("b", "2", "compensate")},
        0,
        {("a", "1"): [Wait(12 * S, 1, 14 * S), Wait(15 * S, 2, 41 * S)]},
        {("a", "1"): "grpc://payment"},
        Counter(),
        [{"tx": "a", "branch": "1", "op": "confirm", "attempt": 3, "at": 42 * S}],
    )


def wrong(rows: Rows) -> list[str]:
    found = Found()
    outcomes([HELD, SHIPPED, UNTOLD], ANSWERS, rows, found)
    effects([HELD, SHIPPED, UNTOLD], rows, found)
    times((S, 2 * S, 4 * S, 32 * S), MARKS, {"grpc://stock": MARKS[STOCK_KILLED]}, rows, found)
    return found.wrong


def test_what_is_right_is_not_wrong() -> None:
    assert wrong(good()) == []


def twice(rows: Rows) -> None:
    rows.done["held", "1", "confirm"] = 2


def half(rows: Rows) -> None:
    del rows.done["held", "2", "confirm"]


def told_twice(rows: Rows) -> None:
    rows.done["held", "3", "message"] = 2


def lost(rows: Rows) -> None:
    del rows.done["held", "4", "sql"]


def told_for_nothing(rows: Rows) -> None:
    rows.done["untold", "3", "notify"] = 1


def not_undone(rows: Rows) -> None:
    del rows.done["shipped", "1", "compensate"]


def other_answer(rows: Rows) -> None:
    rows.txs["shipped"] = Row("b", "shipped", "commit", "committed", 5 * S)


def not_carried_out(rows: Rows) -> None:
    rows.txs["held"] = Row("a", "held", "commit", "committing", 0)


def forgotten(rows: Rows) -> None:
    del rows.txs["held"]


def unmarked(rows: Rows) -> None:
    rows.markers.remove(("a", "1", "confirm"))


def early(rows: Rows) -> None:
    rows.calls[0]["at"] = 40 * S


def early_and_never_there(rows: Rows) -> None:
    rows.waits["a", "1"][1] = Wait(13 * S, 2, 41 * S)


def pulled_though_it_asked(rows: Rows) -> None:
    rows.targets["a", "1"] = "grpc://stock"
    rows.waits["a", "1"][1] = Wait(15 * S, 2, 41 * S, own=True)
    rows.calls[0]["at"] = 40 * S


def late(rows: Rows) -> None:
    rows.calls[0]["at"] = 76 * S


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (twice, "held branch 1"),
        (half, "held branch 2"),
        (told_twice, "held: its message"),
        (lost, "held: its sql"),
        (told_for_nothing, "untold: its notify"),
        (not_undone, "shipped branch 1"),
        (other_answer, "told aborted"),
        (not_carried_out, "its state is committing"),
        (forgotten, "the log says nothing"),
        (unmarked, "rows and markers differ"),
        (early, "1.000 s early"),
        (early_and_never_there, "1.000 s early"),
        (pulled_though_it_asked, "1.000 s early"),
        (late, "late:"),
    ],
)
def test_what_is_wrong_is_found(spoil: Callable[[Rows], None], said: str) -> None:
    rows = good()
    spoil(rows)
    assert any(said in line for line in wrong(rows)), wrong(rows)
