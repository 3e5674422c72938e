"""Operators' orders as they come in: which branches they are about, and what they do to deliveries."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.virtual import eventually, run
from txcoord.api import tokens
from txcoord.api.grpc.admin import AdminServicer
from txcoord.api.grpc.mapping import Limits
from txcoord.api.grpc.operations import Operations
from txcoord.core.action import Answer, AnswerKind, Delivery, Op
from txcoord.core.errors import Refused
from txcoord.core.events import Operate
from txcoord.core.model import Audit, Kind, Tx
from txcoord.core.replaying import Order, Replay, ReplayItem
from txcoord.engine.replays import Replayer
from txcoord.ports import LogUnavailable
from txcoord.testing.inprocess.node import Node
from txcoord_client._pb import admin_pb2 as pb
from txcoord_client._pb import common_pb2 as c

from .test_engine_calls import Place, a_place
from .test_engine_deliveries import committed, delivered, message, sent, state_of
from .test_engine_late_answers import report

AUDIT = Audit("ann", "gone", "any", 0)
PARTNER = 'parked AND kind = notify AND resource = "http://partner"'
GONE = 'reason = "REFUSED_IN_PHASE_TWO"'
LATER_US = 600_000_000
NEW_SHA = "a253ff09"


def desk(place: Place, node: Node, **limits: Any) -> Any:
    operations = Operations(node.coordinator, Limits(**limits), list)
    return AdminServicer(  # type: ignore[abstract]  # No aliases of targets, as in the server.
        node.coordinator,
        operations,
        list,
        now_us=place.clock.now_us,
        targets=None,  # type: ignore[arg-type]  # Nothing is asked of it.
    )


async def order(admin: Any, action: str, dry_run: bool = False, **selector: Any) -> dict[str, str]:
    """What became of which branch; the transaction itself is an empty name."""
    request = getattr(pb, f"{action.capitalize()}Request")(
        namespace="shop", audit=pb.Audit(actor="ann", reason="gone", dry_run=dry_run)
    )
    request.selector.MergeFrom(pb.Selector(**selector))
    effects, _ = await admin._operate(action, request)
    return {e.branch: e.effect for e in effects}


async def three(place: Place, node: Node) -> Tx:
    """A parked notification, a message that fails, and one for later."""
    place.participants.script["1", Op.NOTIFY] = [Answer(AnswerKind.REFUSED, reason="GONE")]
    place.participants.down.add("grpc://ware")
    later = Delivery(deliver_at_us=place.clock.now_us() + LATER_US)
    tx = place.tx()
    await committed(
        node,
        tx,
        message("1", "http://partner", Kind.NOTIFY),
        message("2", "grpc://ware"),
        message("3", "grpc://other", delivery=later),
    )
    await eventually(lambda: place.storage.row(tx.tx_id).parked == 1)
    await asyncio.sleep(30)
    return tx


def test_a_filter_is_about_the_branches_that_it_names() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx, admin = await three(place, node), desk(place, node)
            # Its transaction is found by one branch, and by another one: none of them is both.
            assert await order(admin, "skip", filter='parked AND resource = "grpc://ware"') == {"": "none"}
            assert await order(admin, "skip", True, filter=PARTNER) == {"1": "skipped"}
            assert await order(admin, "park", True, filter="kind = message") == {"2": "parked"}
            assert await order(admin, "park", True, filter=GONE) == {"": "none"}
            named = {"filter": "kind = message", "branches": ["1", "3"]}
            assert await order(admin, "park", True, **named) == {"3": "parked"}
            assert await order(admin, "retry", filter=PARTNER) == {"1": "retried"}
            row = await node.coordinator.get(tx.tx_id)
            assert row is not None
            assert [state_of(row, n) for n in "23"] == ["finishing", "finishing"]
            assert "3" not in sent(place)

    run(main())


def test_without_a_branch_an_order_is_about_what_is_parked_or_fails() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx, admin = await three(place, node), desk(place, node)
            assert await order(admin, "resolve", True, tx_id=tx.tx_id) == {"1": "resolved"}
            assert await order(admin, "park", True, tx_id=tx.tx_id) == {"2": "parked"}
            assert await order(admin, "retry", True, tx_id=tx.tx_id) == {"1": "retried", "2": "retried"}
            assert await order(admin, "skip", tx_id=tx.tx_id) == {"1": "skipped"}
            assert await order(admin, "skip", tx_id=tx.tx_id) == {"": "none"}
            row = await node.coordinator.get(tx.tx_id)
            assert row is not None
            assert [state_of(row, n) for n in "123"] == ["skipped", "finishing", "finishing"]
            assert await order(admin, "skip", tx_id=tx.tx_id, branches=["3"]) == {"3": "skipped"}

    run(main())


def test_what_is_not_parked_any_more_is_not_given_up() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx, admin = await three(place, node), desk(place, node)
            find = admin._ops.find

            async def found(*args: Any) -> Any:
                found = await find(*args)
                # Somebody else is a little faster.
                assert await order(other, "retry", tx_id=tx.tx_id, branches=["1"]) == {"1": "retried"}
                return found

            other = desk(place, node)
            admin._ops.find = found
            assert await order(admin, "skip", tx_id=tx.tx_id) == {"1": "refused"}

    run(main())


class Bodies:
    """What the participants are sent from now on, in its order."""

    def __init__(self, place: Place) -> None:
        self.seen: list[bytes] = []
        self._call = place.participants.call
        place.participants.call = self._spied  # type: ignore[method-assign,assignment]

    def _spied(self, target: str, requests: Any, timeout_s: float) -> Any:
        self.seen.extend(r.branch.sent for r in requests)
        return self._call(target, requests, timeout_s)


async def edited(place: Place, node: Node, other: Node) -> tuple[Tx, Bodies, asyncio.Event]:
    """A message whose first payload is on its way when it is parked and gets another one."""
    bodies = Bodies(place)
    held = place.participants.held["1", Op.MESSAGE] = asyncio.Event()
    tx = place.tx()
    done = await committed(node, tx, replace(message("1"), payload=b"OLD"))
    await eventually(lambda: bodies.seen == [b"OLD"])
    await other.coordinator.operate(tx.tx_id, Operate("park", "1", AUDIT))
    await other.coordinator.operate(tx.tx_id, Operate("retry", "1", AUDIT, b"NEW"))
    return done, bodies, held


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("kind", [AnswerKind.DONE, AnswerKind.REFUSED, AnswerKind.FAILED])
def test_an_answer_to_the_payload_that_was_replaced_is_none(kind: AnswerKind, elsewhere: bool) -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            other = await place.node("n2") if elsewhere else node
            place.participants.script["1", Op.MESSAGE] = [Answer(kind, reason="BAD_OLD")]
            done, bodies, held = await edited(place, node, other)
            held.set()
            ended = await delivered(other, done, 300)
            assert state_of(ended, "1") == "done"
            assert bodies.seen == [b"OLD", b"NEW"]
            if not elsewhere:
                assert node.coordinator.alarms.get("edited_too_late", 0) == (kind is AnswerKind.DONE)

    run(main())


def test_a_report_does_not_say_which_payload_it_is_about() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            later = Answer(AnswerKind.PENDING, retry_after_us=3_600_000_000)
            place.participants.script["1", Op.MESSAGE] = [
                later,
                later,
                Answer(AnswerKind.DONE, repeated=True),
            ]
            done, bodies, held = await edited(place, node, node)
            held.set()
            await eventually(lambda: bodies.seen == [b"OLD", b"NEW"])
            await report(node, done, "1", c.BRANCH_OP_MESSAGE, c.ANSWER_KIND_DONE)
            began = place.clock.monotonic()
            # It is asked again at once; and says that it had acted before.
            branch = (await delivered(node, done, 300)).branch("1")
            assert place.clock.monotonic() - began < 60
            assert bodies.seen == [b"OLD", b"NEW", b"NEW"]
            assert branch is not None
            assert branch.reason.startswith("EDITED_TOO_LATE: its receiver had acted before")
            assert node.coordinator.alarms["edited_too_late"] == 1

    run(main())


def test_what_is_retried_keeps_its_time() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx, admin = await three(place, node), desk(place, node)
            bodies = Bodies(place)
            named: dict[str, Any] = {"tx_id": tx.tx_id, "branches": ["3"]}
            for action in ("retry", "park", "retry"):
                assert "3" in await order(admin, action, **named)
            await node.coordinator.operate(tx.tx_id, Operate("park", "3", AUDIT))
            await node.coordinator.operate(tx.tx_id, Operate("retry", "3", AUDIT, b"NEW"))
            await asyncio.sleep(500)
            assert b"NEW" not in bodies.seen
            await asyncio.sleep(120)
            assert b"NEW" in bodies.seen

            tx = await three(place, node)
            named["tx_id"] = tx.tx_id
            await node.coordinator.operate(tx.tx_id, Operate("park", "3", AUDIT))
            await node.coordinator.operate(tx.tx_id, Operate("retry", "3", AUDIT, b"EARLY", early=True))
            await eventually(lambda: b"EARLY" in bodies.seen)

    run(main())


class Jobs:
    """``ports.Replays`` for one job, as far as carrying it out goes."""

    def __init__(self, place: Place, txs: list[Tx]) -> None:
        self.place = place
        self.items = {(tx.tx_id, "1"): ReplayItem(tx.tx_id, "1") for tx in txs}
        self.job = self._counted(Replay("j", "shop", Order(), "ann", "why", owner="n1", epoch=1, listed=True))
        place.storage.jobs["j"] = 1

    def _counted(self, job: Replay) -> Replay:
        return replace(job, counts=Counter(item.state for item in self.items.values()))

    async def pick(self, _id: str, states: Any, limit: int) -> list[ReplayItem]:
        return [item for item in self.items.values() if item.state in states][:limit]

    async def save(self, job: Replay, _lease_us: int, items: Any = (), new: Any = ()) -> Replay | None:
        if "j" not in self.place.storage.jobs:
            return None
        self.items.update({(item.tx_id, item.branch): item for item in items})
        return self._counted(job)


class Halt:
    """Failpoints: each order waits here."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def reach(self, name: str) -> None:
        if name == "replay.before_order":
            await self.open.wait()


async def parked_jobs(place: Place, node: Node, count: int) -> Jobs:
    place.participants.script["1", Op.MESSAGE] = [Answer(AnswerKind.REFUSED, reason="NO")] * count
    txs = [place.tx() for _ in range(count)]
    for tx in txs:
        await committed(node, tx, message("1"))
    await eventually(lambda: all(place.storage.row(tx.tx_id).parked for tx in txs))
    return Jobs(place, txs)


def test_a_cancelled_job_gives_no_order_any_more() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            jobs, halt = await parked_jobs(place, node, 20), Halt()
            before = len(sent(place))
            replayer = Replayer(node.coordinator, jobs, None, spawn=node._spawn, failpoints=halt)  # type: ignore[arg-type]
            running = node._spawn(replayer._run(jobs.job), "job")
            await asyncio.sleep(1)
            del place.storage.jobs["j"]  # And that was answered, while this node does not move.
            halt.open.set()
            await asyncio.wait([running])  # type: ignore[list-item]
            await asyncio.sleep(60)
            assert len(sent(place)) == before
            assert place.storage.audit_rows == {}

    run(main())


def test_a_job_ends_once_all_its_orders_have() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            jobs, halt = await parked_jobs(place, node, 3), Halt()
            replayer = Replayer(node.coordinator, jobs, None, spawn=node._spawn, failpoints=halt)  # type: ignore[arg-type]
            get, asked = node.coordinator.get, iter(range(3))

            async def away(tx_id: str) -> Tx | None:
                if next(asked) == 0:
                    raise LogUnavailable("the log is away")
                return await get(tx_id)

            node.coordinator.get = away  # type: ignore[method-assign]
            running = node._spawn(replayer._run(jobs.job), "job")
            await asyncio.sleep(60)
            node.coordinator.get = get  # type: ignore[method-assign]
            assert not running.done()
            halt.open.set()
            await asyncio.wait([running])  # type: ignore[list-item]
            assert len(place.storage.audit_rows) == 2

    run(main())


def test_who_only_looks_sees_no_payload(tmp_path: Path) -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx, admin = await three(place, node), desk(place, node)
            request = pb.RetryRequest(
                namespace="shop", payload=b"NEW", audit=pb.Audit(actor="ann", reason="x")
            )
            request.selector.MergeFrom(pb.Selector(tx_id=tx.tx_id, branches=["1"]))
            await admin._operate("retry", request)
            file = tmp_path / "tokens"
            words = {role: f"{role}-secret-0123456789" for role in ("viewer", "client", "operator", "admin")}
            file.write_text("".join(f"{role} {role} * {word}\n" for role, word in words.items()))
            known = tokens.Tokens(file)
            known.load()
            asked = pb.ListAuditRequest(namespace="shop", filter=f'tx_id = "{tx.tx_id}"')
            for role, word in words.items():
                with tokens.calling(known.caller(f"Bearer {word}")):
                    (entry,) = (await admin._audits(asked)).entries
                detail = json.loads(entry.detail)
                assert ("payload" in detail) is (role in ("operator", "admin"))
                assert (detail["payload_bytes"], detail["payload_sha256"][:8]) == (3, NEW_SHA)

    run(main())


def test_other_statements_are_held_to_what_statements_are() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            admin = desk(place, node, executes={"ledger": frozenset({"shop"})})
            place.participants.script["1", Op.NOTIFY] = [Answer(AnswerKind.REFUSED, reason="NO")] * 2

            async def why(resource: str, payload: bytes) -> str:
                tx = place.tx()
                await committed(node, tx, message("1", f"sql:{resource}", Kind.NOTIFY))
                await eventually(lambda: place.storage.row(tx.tx_id).parked == 1)
                request = pb.RetryRequest(namespace="shop", payload=payload)
                request.audit.MergeFrom(pb.Audit(actor="ann", reason="x", dry_run=True))
                request.selector.MergeFrom(pb.Selector(tx_id=tx.tx_id, branches=["1"]))
                try:
                    (effect,) = (await admin._operate("retry", request))[0]
                except Refused as refused:
                    return refused.refusal.message
                return str(effect.effect)

            def unit(*texts: str) -> bytes:
                return c.SqlUnit(statements=[c.SqlStatement(text=t) for t in texts]).SerializeToString()

            assert await why("ledger", unit("UPDATE entry SET n = 2")) == "retried"
            place.participants.script["1", Op.NOTIFY] = [Answer(AnswerKind.REFUSED, reason="NO")] * 5
            assert "INSERT, UPDATE" in await why("ledger", unit("UPDATE entry SET n = 2", "COMMIT"))
            assert "txcoord_" in await why("ledger", unit("DELETE FROM txcoord_marker"))
            assert "is no txcoord.v1.SqlUnit" in await why("ledger", b"{}")
            assert "between 1 and 100" in await why("ledger", b"")
            assert "no statements are run on" in await why("other", unit("UPDATE entry SET n = 2"))

    run(main())
