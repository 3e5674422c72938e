"""Replay: a job on the server that retries what is parked, at a pace, once each, whoever dies on the way."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from tests.acceptance.conftest import NewSite
from tests.support.acceptance import Site, eventually, new_gid
from tests.support.acceptance_participants import Shop, refuse, shop_on
from tests.support.acceptance_wire import refused
from txcoord_client import Coordinator
from txcoord_client._pb import admin_pb2 as pb
from txcoord_client._pb import admin_pb2_grpc as rpc

COUNT = int(os.environ.get("REPLAYS", "30"))
RATE = 200.0
S = 1_000_000
BY = pb.Audit(actor="ann", reason="the warehouse is back")


@dataclass
class Desk:
    """An operator, and services whose confirm was refused."""

    shop: Shop
    coord: Coordinator
    site: Site
    mark: str

    admin: Any = None

    async def park(self, count: int = 1, *, times: int = 1) -> list[str]:
        """So many transactions with a parked branch; the bodies of their notes."""
        bodies = [f"{self.mark}-{i}" for i in range(count)]
        room = asyncio.Semaphore(8)

        async def one(body: str) -> None:
            self.shop.stock.script.next[f"confirm {body}"] = [refuse() for _ in range(times)]
            async with room, self.coord.begin(self.mark, gid=body, wait="decided") as g:
                await g.tcc(self.shop.stock.reserve, body=body)

        await asyncio.gather(*map(one, bodies))

        async def parked() -> bool:
            groups = (
                await self.admin.ListParkedGroups(pb.ListParkedGroupsRequest(filter=self.filter))
            ).groups
            return sum(g.count for g in groups) == count

        await eventually(parked, what="all are parked", within=120)
        return bodies

    @property
    def filter(self) -> str:
        return f'name = "{self.mark}"'

    async def start(self, **more: Any) -> Any:
        request = pb.StartReplayRequest(**{"audit": BY, "filter": self.filter, **more})
        return (await self.admin.StartReplay(request)).replay

    async def get(self, job: Any) -> Any:
        return (await self.admin.GetReplay(pb.GetReplayRequest(id=job.id))).replay

    async def until(self, job: Any, *states: int) -> Any:
        async def ended() -> Any:
            found = await self.get(job)
            return found if found.state in states else None

        return await eventually(ended, what="the job has ended", within=60)

    async def items(self, job: Any) -> list[Any]:
        return list(
            (await self.admin.ListReplayItems(pb.ListReplayItemsRequest(id=job.id, page_size=1000))).effects
        )

    async def audits(self, job: Any) -> list[Any]:
        found: list[Any] = []
        token = ""
        while True:
            page = await self.admin.ListAudit(
                pb.ListAuditRequest(filter=f'replay_id = "{job.id}"', page_size=500, page_token=token)
            )
            found.extend(page.entries)
            token = page.next_page_token
            if not token:
                return found

    def confirmed(self, bodies: list[str]) -> list[int]:
        return [self.shop.stock.notes(body).count("confirm") for body in bodies]


@pytest.fixture
async def desk(site: Site) -> AsyncIterator[Desk]:
    async with shop_on(site) as shop, shop.coordinator() as coord:
        channel = grpc.aio.insecure_channel(site.address)
        yield Desk(shop, coord, site, new_gid("replay"), rpc.AdminServiceStub(channel))
        await channel.close()


async def test_each_once_at_its_rate_and_all_of_it_is_audited(desk: Desk) -> None:
    bodies = await desk.park(COUNT)
    began = time.monotonic()
    job = await desk.until(await desk.start(rate_per_s=RATE), pb.REPLAY_STATE_DONE)
    took = time.monotonic() - began
    print(f"{COUNT} branches in {took:.1f} s")
    assert took >= COUNT / RATE - 1
    assert (job.taken, job.succeeded, job.failed_again, job.refused) == (COUNT, COUNT, 0, 0)
    assert desk.confirmed(bodies) == [1] * COUNT
    audits = await desk.audits(job)
    assert sorted(a.action for a in audits) == ["replay.start", *["retry"] * COUNT]
    assert {(a.actor, a.reason) for a in audits} == {("ann", "the warehouse is back")}
    assert {i.effect for i in await desk.items(job)} == {"succeeded"}


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(desk: Desk) -> None:
    bodies = await desk.park(2)
    dry = pb.Audit(actor="ann", reason="just looking", dry_run=True)
    job = await desk.until(await desk.start(audit=dry), pb.REPLAY_STATE_DONE)
    assert job.taken == 0
    said = await desk.items(job)
    assert [(i.effect, i.branch) for i in said] == [("would be retried", "1")] * 2
    assert desk.confirmed(bodies) == [0, 0]
    with refused("FAILED_PRECONDITION", "BAD_REQUEST", "dry run"):
        await desk.admin.ResumeReplay(pb.ResumeReplayRequest(id=job.id, audit=BY))


async def test_a_canary_that_fails_stops_it_and_it_is_resumed(desk: Desk) -> None:
    bodies = await desk.park(5, times=2)
    job = await desk.until(await desk.start(canary=[1, 3]), pb.REPLAY_STATE_STOPPED)
    assert (job.taken, job.failed_again, job.canary_step) == (1, 1, 0)
    assert "OUT_OF_STOCK" in job.message
    assert sum(desk.confirmed(bodies)) == 0
    for script in desk.shop.stock.script.next.values():
        script.clear()  # Now it is well.
    await desk.admin.ResumeReplay(pb.ResumeReplayRequest(id=job.id, audit=BY))
    job = await desk.until(job, pb.REPLAY_STATE_DONE)
    assert (job.taken, job.succeeded, job.failed_again) == (5, 4, 1)
    # The canary itself is for the next one: it failed again, and is not taken twice by one job.
    groups = (await desk.admin.ListParkedGroups(pb.ListParkedGroupsRequest(filter=desk.filter))).groups
    assert [(g.count, g.failed_again, g.reason) for g in groups] == [
        (1, 1, "REFUSED_IN_PHASE_TWO: OUT_OF_STOCK")
    ]
    again = await desk.until(await desk.start(filter=groups[0].filter), pb.REPLAY_STATE_DONE)
    assert again.succeeded == 1
    assert desk.confirmed(bodies) == [1] * 5


async def test_cancelled_in_the_middle_and_resumed(desk: Desk) -> None:
    bodies = await desk.park(12)
    job = await desk.start(rate_per_s=4.0)

    async def some() -> bool:
        return (await desk.get(job)).succeeded >= 2

    await eventually(some, what="some are done")
    await desk.admin.CancelReplay(pb.CancelReplayRequest(id=job.id, audit=BY))
    stopped = await desk.get(job)
    assert stopped.state == pb.REPLAY_STATE_CANCELLED
    assert stopped.taken < 12
    await desk.admin.ResumeReplay(pb.ResumeReplayRequest(id=job.id, audit=BY, rate_per_s=500.0))
    done = await desk.until(job, pb.REPLAY_STATE_DONE)
    assert done.succeeded + done.failed_again == done.taken == 12
    assert desk.confirmed(bodies) == [1] * 12
    orders = [a.action for a in await desk.audits(job)]
    assert sorted(set(orders)) == ["replay.cancel", "replay.resume", "replay.start", "retry"]
    assert orders.count("retry") == 12


async def test_bad_requests_are_refused_before_anything_is_written(desk: Desk) -> None:
    with refused("INVALID_ARGUMENT", "BAD_REQUEST", "actor and a reason"):
        await desk.start(audit=pb.Audit(actor="ann"))
    with refused("INVALID_ARGUMENT", "BAD_REQUEST", "filter"):
        await desk.start(filter="nonsense ~ 1")
    with refused("INVALID_ARGUMENT", "BAD_REQUEST", "canary"):
        await desk.start(canary=[1, 0])
    with refused("NOT_FOUND", "NOT_FOUND"):
        await desk.get(pb.Replay(id="0" * 32))


async def test_the_command_line(desk: Desk) -> None:
    bodies = await desk.park(3)

    def txcoord(*arguments: str) -> str:
        return desk.site.txcoord(*arguments)

    listed = await asyncio.to_thread(txcoord, "parked", "list", desk.filter, "--json")
    group = json.loads(listed)
    assert (group["count"], group["kind"], group["failed_again"]) == (3, "tcc", 0)
    shown = await asyncio.to_thread(txcoord, "parked", "show", desk.filter)
    assert all(body in shown for body in bodies)
    assert "OUT_OF_STOCK" in shown
    dry = await asyncio.to_thread(
        txcoord, "replay", "start", bodies[0], "--reason", "look", "--dry-run", "--json"
    )
    assert json.loads(dry)["effect"] == "would be retried"
    done = await asyncio.to_thread(
        txcoord, "replay", "start", "--target", group["target"], "--since", "1h", "--filter", desk.filter,
        "--canary", "1,2", "--reason", "it is back", "--yes", "--json",
    )  # fmt: skip
    job = json.loads(done)
    assert (job["state"], job["succeeded"]) == ("DONE", 3)
    assert desk.confirmed(bodies) == [1] * 3
    assert job["id"] in await asyncio.to_thread(txcoord, "replay", "list")
    assert "succeeded" in await asyncio.to_thread(txcoord, "replay", "show", job["id"], "--items")


@pytest.mark.parametrize("moment", ["replay.before_order", "replay.after_order"])
async def test_it_survives_the_node_that_runs_it(new_site: NewSite, moment: str) -> None:
    site = new_site(settings={"RECOVERY__LEASE": "1s"})
    async with shop_on(site) as shop, shop.coordinator() as coord:
        async with grpc.aio.insecure_channel(site.address) as channel:
            desk = Desk(shop, coord, site, new_gid("replay"), rpc.AdminServiceStub(channel))
            bodies = await desk.park(6)
            await asyncio.to_thread(site.restart, f"{moment}=kill@3")
        async with grpc.aio.insecure_channel(site.address) as channel:
            desk.admin = rpc.AdminServiceStub(channel)
            job = await desk.start(rate_per_s=RATE)
            await eventually(lambda: not site.coordinator.running, within=40, what=f"it died at {moment}")
            await asyncio.to_thread(site.restart)
        async with grpc.aio.insecure_channel(site.address) as channel:
            desk.admin = rpc.AdminServiceStub(channel)
            job = await desk.until(job, pb.REPLAY_STATE_DONE)
            assert job.taken + job.refused == 6
            assert desk.confirmed(bodies) == [1] * 6
            assert [a.action for a in await desk.audits(job)].count("retry") == 6
