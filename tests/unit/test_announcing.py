"""What is announced, in which order, and that a crash anywhere neither loses nor turns it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.logs import S, active, amend, committing, decide, end, insert, operate, xa
from tests.support.virtual import eventually, run
from txcoord.adapters.events.cloudevents import record_of
from txcoord.core.action import Answer, AnswerKind, Op
from txcoord.core.announcing import announced, target_disabled
from txcoord.core.events import Operate
from txcoord.core.model import (
    Announcement,
    Audit,
    BranchState,
    Change,
    ChangeKind,
    DecidedBy,
    Decision,
    Kind,
    TargetRule,
    Topic,
    Tx,
    TxState,
)
from txcoord.engine.relay import Relay, RelaySettings
from txcoord.outgoing import Outgoing, Publishing, Record
from txcoord.ports import LogUnavailable
from txcoord.testing.memory_beside import MemoryLeases, MemoryOutbox

from . import test_engine_deliveries as deliveries
from .engine_support import Shop, a_shop
from .test_engine_calls import a_place

NOW = 1_700_000_000_000_000


def told(
    old: Tx | None, change: Change, *, events: bool = True, dead_letters: bool = True
) -> list[Announcement]:
    return list(announced(old, change, NOW, events=events, dead_letters=dead_letters).announcements)


def test_a_decision_and_an_end_are_announced_once() -> None:
    tx = active(NOW, xa("1", BranchState.READY))
    change = decide(tx, Decision.COMMIT)
    (decided,) = told(tx, change)
    assert (decided.epoch, decided.seq, decided.what) == (1, 0, "transaction.decided")
    assert (decided.at_us, decided.topics) == (change.tx.decided_us, Topic.EVENTS)
    data = json.loads(decided.data)
    assert (data["namespace"], data["gid"], data["name"]) == ("shop", tx.tx_id, "order")
    assert (data["state"], data["decision"], data["decided_by"]) == ("committing", "commit", "client")
    assert data["branches"] == [{"id": "1", "kind": "xa", "target": "accounts", "state": "ready"}]
    ended = end(change.tx)
    ended = replace(ended, tx=replace(ended.tx, epoch=2))
    (over,) = told(change.tx, ended)
    assert (over.epoch, over.seq, over.what) == (2, 9_999, "transaction.committed")
    assert not told(ended.tx, replace(ended, tx=replace(ended.tx, owner="n2")))
    assert not told(tx, amend(tx, replace(tx, labels={"a": "b"})))


def test_an_abort_that_leaves_nothing_to_do_is_both_at_once() -> None:
    tx = active(NOW)
    new = replace(
        tx,
        state=TxState.ABORTED,
        decision=Decision.ABORT,
        decided_by=DecidedBy.DEADLINE,
        reason="DEADLINE",
        epoch=1,
    )
    assert [(a.seq, a.what) for a in told(None, insert(new))] == [
        (0, "transaction.decided"),
        (9_999, "transaction.aborted"),
    ]


def test_parked_is_for_both_topics_and_comes_after_what_raised_the_epoch() -> None:
    tx = committing(NOW, xa("1", BranchState.FINISHING), xa("2", BranchState.FINISHING))
    parked = replace(tx.branches[1], state=BranchState.PARKED, attempts=3, reason="RETRIES_SPENT: x")
    new = replace(tx, branches=(tx.branches[0], parked))
    change = Change(ChangeKind.PROGRESS, new, (parked,), expected_epoch=1)
    (one,) = told(tx, change)
    assert (one.what, one.branch, one.topics) == ("branch.parked", "2", Topic.EVENTS | Topic.DEAD_LETTERS)
    assert one.epoch == 1
    assert one.seq > 9_999
    assert json.loads(one.data)["branch"] == {
        "id": "2",
        "kind": "xa",
        "target": "accounts",
        "state": "parked",
        "attempts": 3,
        "reason": "RETRIES_SPENT: x",
    }
    assert [a.topics for a in told(tx, change, events=False)] == [Topic.DEAD_LETTERS]
    assert [a.topics for a in told(tx, change, dead_letters=False)] == [Topic.EVENTS]
    assert not told(tx, change, events=False, dead_letters=False)
    assert not told(new, operate(new))
    again = replace(new, epoch=5)
    (twice,) = told(replace(tx, epoch=5), replace(change, tx=again))
    assert twice.epoch == 5


@pytest.mark.parametrize("kind", [Kind.MESSAGE, Kind.NOTIFY])
def test_a_delivery_that_is_parked_is_told_of_and_once_more_when_a_replay_fails(kind: Kind) -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node(events=True, dead_letters=True)
            no = Answer(AnswerKind.REFUSED, reason="GONE")
            place.participants.script["1", Op(kind.value)] = [no, no]
            tx = await deliveries.committed(node, place.tx(), deliveries.message("1", kind=kind))
            parked = await deliveries.delivered(node, tx)
            audit = Audit("ann", "it is back", "retry", NOW, "1", replay="job")
            place.storage.jobs["job"] = 0
            await node.coordinator.operate(tx.tx_id, Operate("retry", "1", audit))
            again = await deliveries.delivered(node, tx)
            assert [t.state for t in (parked, again)] == [TxState.COMMITTED] * 2
            outbox = MemoryOutbox(place.storage)

            async def both() -> list[Announcement]:
                found = [o.announcement for o in await outbox.take([], 100)]
                return [a for a in found if a.what == "branch.parked"]

            await node.log.settle()
            first, second = await both()
            assert (first.epoch, first.seq) < (second.epoch, second.seq)
            for told_ in (first, second):
                assert told_.topics == Topic.EVENTS | Topic.DEAD_LETTERS
                data = json.loads(told_.data)
                assert (data["state"], data["branch"]["kind"]) == ("committed", kind.value)
                assert data["branch"]["reason"] == "REFUSED_IN_PHASE_TWO: GONE"

    run(main())


def test_that_a_target_is_disabled_names_it() -> None:
    rule = TargetRule(
        "https://partner.example:443", reason="nothing has arrived", disabled_us=NOW, failing_since_us=7
    )
    record = record_of("log", Outgoing("0" * 32, target_disabled(rule)), Topic.EVENTS)
    event = json.loads(record.value)
    assert (event["type"], event["subject"]) == ("txcoord.target.disabled", rule.target)
    assert event["data"] == {
        "target": rule.target,
        "reason": rule.reason,
        "failing_since_us": 7,
        "disabled_us": NOW,
    }


def test_heuristic_is_announced_when_it_becomes_so() -> None:
    tx = committing(NOW)
    moved = replace(tx.branches[0], state=BranchState.PARKED, heuristic=True, reason="HEURISTIC: rolled back")
    change = Change(ChangeKind.PROGRESS, replace(tx, branches=(moved,)), (moved,), expected_epoch=1)
    assert [a.what for a in told(tx, change)] == ["branch.heuristic", "branch.parked"]
    resolved = replace(moved, state=BranchState.RESOLVED)
    assert not told(change.tx, replace(change, tx=replace(tx, branches=(resolved,), epoch=2)))


def test_a_step_that_is_given_up_while_its_plan_runs_is_nobodys_to_see() -> None:
    tx = active(NOW, xa("1", BranchState.RUNNING), state=TxState.RUNNING)
    new = replace(tx, branches=(xa("1", BranchState.PARKED),))
    assert not told(tx, Change(ChangeKind.AMEND, new, new.branches))


def test_an_announcement_stays_small() -> None:
    branches = [xa(str(n), BranchState.FINISHING, reason="x" * 10_000) for n in range(1_000)]
    tx = committing(NOW, *branches, labels={f"k{n}": "v" * 1_000 for n in range(100)}, reason="r" * 10_000)
    (decided,) = told(None, insert(tx))
    assert len(decided.data) < 200_000
    data = json.loads(decided.data)
    assert data["branches_left_out"] == 800
    assert len(data["labels"]) == 16


class Topics:
    """``ports.Publisher``: what is on the topics, and the ways in which a broker can fail."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.records: list[Record] = []
        self.rng = rng
        self.away = False
        self.refuse: set[str] = set()

    async def publish(self, records: Sequence[Record]) -> Sequence[tuple[Publishing, str]]:
        answers: list[tuple[Publishing, str]] = []
        for record in records:
            await asyncio.sleep(0)
            if record.key in self.refuse:
                answers.append((Publishing.REFUSED, "TOO_LARGE"))
            elif self.away or (self.rng and self.rng.random() < 0.2):
                answers.append((Publishing.AWAY, "away"))
                if self.rng and self.rng.random() < 0.5:
                    self.records.append(record)  # Its acknowledgement was lost.
            else:
                self.records.append(record)
                answers.append((Publishing.SENT, ""))
        return answers

    async def close(self) -> None:
        pass

    def seen(self, topic: Topic = Topic.EVENTS) -> dict[str, list[str]]:
        """Of each transaction, as who passes by what he has seen reads it."""
        out: dict[str, list[str]] = {}
        for record in self.records:
            text = record.value.decode()
            if record.topic is topic and text not in out.setdefault(record.key, []):
                out[record.key].append(text)
        return out


def record(out: Outgoing, topic: Topic) -> Record:
    a = out.announcement
    return Record(topic, out.tx_id, f"{a.epoch:04} {a.seq:05} {a.what}".encode())


def relay(shop: Shop, topics: Topics, name: str, alarms: list[str] | None = None, batch: int = 500) -> Relay:
    return Relay(
        MemoryOutbox(shop.storage),
        topics,
        MemoryLeases(shop.storage),
        node=name,
        clock=shop.clock,
        shown=record,
        alarm=lambda kind, *_: (alarms if alarms is not None else []).append(kind),
        settings=RelaySettings(batch=batch),
    )


async def committed(shop: Shop, count: int) -> list[Tx]:
    node = shop.node(events=True, dead_letters=True)
    out = []
    for _ in range(count):
        tx = shop.tx()
        out.append(await node.ended(await node.commit(tx, *shop.prepared(tx))))
    await node.log.settle()
    return out


def test_a_record_that_is_refused_holds_its_own_transaction_only() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            txs = await committed(shop, 5)
            topics, alarms = Topics(), list[str]()
            topics.refuse.add(txs[1].tx_id)
            one = relay(shop, topics, "n1", alarms, batch=3)
            for _ in range(6):
                await one.step()
            assert set(topics.seen()) == {tx.tx_id for tx in txs} - {txs[1].tx_id}
            assert {key[0] for key in shop.storage.outbox} == {txs[1].tx_id}
            assert alarms == ["event_refused"]
            topics.refuse.clear()
            await asyncio.sleep(61)
            await one.step()
            await one.step()
            assert [text[11:] for text in topics.seen()[txs[1].tx_id]] == [
                "transaction.decided",
                "transaction.committed",
            ]
            assert not shop.storage.outbox
            assert not shop.storage.held

    run(main())


def test_a_broker_that_is_away_loses_nothing_and_is_an_alarm_in_the_end() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            txs = await committed(shop, 3)
            topics, alarms = Topics(), list[str]()
            topics.away = True
            task = asyncio.ensure_future(relay(shop, topics, "n1", alarms).run())
            await asyncio.sleep(200)
            assert alarms == ["events_behind"]
            assert len(shop.storage.outbox) == 6
            topics.away, shop.storage.down = False, True
            await asyncio.sleep(5)
            shop.storage.down = False
            await eventually(lambda: not shop.storage.outbox)
            assert set(topics.seen()) == {tx.tx_id for tx in txs}
            task.cancel()

    run(main())


def test_one_relays_and_another_goes_on_when_it_dies() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            await committed(shop, 3)
            topics = Topics()
            first, second = relay(shop, topics, "n1"), relay(shop, topics, "n2")
            await first.step()
            assert await second.step() > 1
            assert len(topics.records) == 6
            assert shop.storage.outbox  # It dies before it has deleted them.
            await asyncio.sleep(20)
            await second.step()
            await second.step()
            assert len(topics.records) == 12
            assert not shop.storage.outbox
            assert all(len(texts) == 2 for texts in topics.seen().values())
            await second.stop()
            assert await first.step() < 1

    run(main())


async def end_all(asking: set[asyncio.Future[Tx]]) -> None:
    """Whoever asks still has gone, too."""
    for asked in asking:
        asked.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    asking.clear()


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_whatever_crashes_each_transaction_is_told_in_order_and_as_the_log_has_it(seed: int) -> None:
    """Nodes die, the log's database loses what was not synced, relays are two and die, the broker loses answers."""

    async def main() -> None:
        rng = random.Random(seed)
        async with a_shop() as shop:
            topics = Topics(rng)
            txs: dict[str, Tx] = {}
            asking: set[asyncio.Future[Tx]] = set()
            names = iter(range(1_000))
            node = shop.node(f"n{next(names)}", events=True, dead_letters=True, lease_us=S)
            await node.start()
            relays = [relay(shop, topics, f"r{n}", batch=rng.choice([1, 3, 500])) for n in range(2)]
            for _ in range(rng.randint(5, 30)):
                match rng.randrange(9):
                    case 0 | 1 | 2:
                        tx = shop.tx(gid=f"g{len(txs)}")
                        branches = shop.prepared(tx)
                        txs[tx.tx_id] = tx
                        await node.begin(tx)
                        if rng.random() < 0.3:
                            shop.a.says = rng.choice(["", "BUSY: 1"])
                        if rng.random() < 0.2:
                            shop.b.commit_by_hand(branches[1].xid)
                        asks = rng.choice([node.commit, node.rollback])
                        asked = asyncio.ensure_future(asks(tx, *branches, begun=True))
                        asking.add(asked)
                        await asyncio.wait({asked}, timeout=rng.choice([0, 60]))
                    case 3:
                        await shop.kill(node)
                        await end_all(asking)
                        if rng.random() < 0.4:
                            shop.storage.lose_unforced()
                        node = shop.node(f"n{next(names)}", events=True, dead_letters=True, lease_us=S)
                        await node.start()
                    case 4:
                        await asyncio.sleep(rng.random() * 3)
                    case 5 | 6:
                        await rng.choice(relays).step()
                    case 7:
                        shop.storage.leases.clear()  # Both lead for a while.
                        await asyncio.gather(*(one.step() for one in relays))
                    case _:
                        relays[0] = relay(shop, topics, "r0")
            await asyncio.sleep(1)
            await end_all(asking)
            shop.a.says = ""
            topics.rng = None
            await eventually(
                lambda: all(row.rests or row.decision is None for row in shop.storage.rows.values()),
                within_s=300,
            )
            await node.log.settle()
            while shop.storage.outbox:
                shop.storage.leases.clear()
                await relays[1].step()
            seen = topics.seen()
            for tx_id, row in shop.storage.rows.items():
                whats = [text[11:] for text in seen.get(tx_id, [])]
                assert seen.get(tx_id, []) == sorted(seen.get(tx_id, [])), "the order of the log"
                want = 1 if row.decision is not None else 0
                assert whats.count("transaction.decided") == want
                assert whats[:1] == ["transaction.decided"][:want]
                over = [what for what in whats if what in ("transaction.committed", "transaction.aborted")]
                assert over == ([f"transaction.{row.state.value}"] if row.ended else [])
                parked = {b.id for b in shop.storage.row(tx_id).branches if b.state is BranchState.PARKED}
                assert (whats.count("branch.parked") > 0) == bool(parked)
                assert len(topics.seen(Topic.DEAD_LETTERS).get(tx_id, [])) == whats.count("branch.parked")

    run(main())


def test_a_fence_of_the_scanner_is_no_outcome_and_is_not_told() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(events=True)
            late = replace(shop.tx(), deadline_us=1)
            fence = replace(
                late,
                state=TxState.ABORTED,
                decision=Decision.ABORT,
                decided_by=DecidedBy.SCANNER,
                decided_us=shop.clock.now_us(),
                epoch=1,
            )
            assert not node.coordinator.announced(None, insert(fence)).announcements
            timely = replace(fence, deadline_us=shop.clock.now_us())
            assert node.coordinator.announced(None, insert(timely)).announcements

    run(main())


def test_nothing_is_made_of_it_where_nobody_wants_it() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            await node.ended(await node.commit(tx, *shop.prepared(tx)))
            await node.log.settle()
            assert not shop.storage.outbox

    run(main())


def test_a_relay_says_that_the_log_is_away() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            one = relay(shop, Topics(), "n1")
            shop.storage.down = True
            with pytest.raises(LogUnavailable):
                await one.step()

    run(main())
