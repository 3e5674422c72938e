"""Many orders at once through two services, while replies and votes are lost on the way: each order is in all three
databases or in none, as its caller was told."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from tests.support.acceptance import INSERT, Site, client_of, eventually, new_gid
from tests.support.acceptance_http import Between, asgi_app, serving_asgi, serving_wsgi
from tests.support.acceptance_sync import sync_client
from txcoord_client import Aborted, ResourceBusy

ORDERS = 60


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1, 2])
async def test_orders_are_done_in_all_databases_or_in_none(site: Site, seed: int) -> None:
    chance = random.Random(seed)

    def meddle(number: int, headers: dict[str, str]) -> dict[str, str] | None:
        draw = chance.random()
        if draw < 0.1:
            return None
        if draw < 0.2:
            headers.pop("txcoord-vote", None)
        return headers

    async with AsyncExitStack() as stack:
        threads = stack.enter_context(sync_client(site))
        caller = await stack.enter_async_context(client_of(site))
        callee = await stack.enter_async_context(client_of(site))

        def by_threads(environ: Any, start_response: Any) -> Any:
            order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            with threads.coord.xa(threads.ledger) as db:
                db.execute(text(INSERT), {"body": order["body"]})
            start_response("409 No" if order["no"] else "200 OK", [("Content-Type", "text/plain")])
            return [b"done"]

        async def by_tasks(order: dict[str, Any]) -> Any:
            async with callee.coord.xa(callee.ledger) as db:
                await db.execute(text(INSERT), {"body": order["body"]})
            return "done"

        urls = (
            stack.enter_context(serving_wsgi(threads.coord.wsgi(by_threads))),
            await stack.enter_async_context(serving_asgi(callee.coord.asgi(asgi_app(by_tasks)))),
        )
        ways = [
            (await stack.enter_async_context(Between(int(url.rpartition(":")[2]), meddle))).url
            for url in urls
        ]
        transport = caller.coord.httpx_transport(propagate_to="127.0.0.1")
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport))

        async def order(body: str, no: bool) -> str:
            try:
                async with caller.coord.begin("order", timeout=10) as g:
                    await caller.write(g, caller.accounts, body)
                    calls = (http.post(way, json={"body": body, "no": no}) for way in ways)
                    await asyncio.gather(*calls, return_exceptions=True)  # Whatever they say.
            except (Aborted, ResourceBusy) as error:
                return error.reason
            assert g.outcome is not None
            return str(g.outcome.state)

        bodies = [new_gid() for _ in range(ORDERS)]
        told = await asyncio.gather(*(order(body, chance.random() < 0.1) for body in bodies))
    await eventually(lambda: not site.prepared(), within=40)
    for body, said in zip(bodies, told, strict=True):
        assert site.counts(body) == ((1, 2) if said == "COMMITTED" else (0, 0)), (body, said)
    assert {"COMMITTED", "VOTE_MISSING"} <= set(told)
