"""A coordinator process, PostgreSQL databases and a client that has nothing but HTTP: deaths in between."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import NewSite
from tests.support.acceptance import Site, eventually, new_gid
from tests.support.http_api import Api
from txcoord.testing.processes import free_port
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol.xid import Xid

TX = "/v1/transactions"


async def prepared(api: Api, site: Site, gid: str) -> list[dict[str, Any]]:
    """Begin, and work in both databases by hand, prepared as the SDK does it: the branches, with their votes."""
    hello = await api.get("/v1/hello")
    # A deadline that no slow machine meets.
    body = {"spec": {"name": "pay"}, "deadlineUs": int(hello["logTimeUs"]) + 600_000_000}
    begun = (await api.post(TX, body, expect=201, Idempotency_Key=gid))["outcome"]
    branches = []
    for number, db in enumerate(site.databases, 1):
        deadline_us = int(begun["deadlineUs"])
        xid = str(Xid(hello["logId"], deadline_us, begun["txId"], str(number)))
        until_us = deadline_us + int(hello["limits"]["graceUs"])
        db.sql(
            f"BEGIN; {pg.START_GUARD}; INSERT INTO note VALUES ('{gid}');"
            f" {pg.prepare(begun['txId'], str(number), xid, until_us)};"
        )
        part = {"resource": db.name, "xid": xid}
        branches.append({"id": str(number), "kind": "KIND_XA", "vote": "VOTE_PREPARED", "xa": part})
    return branches


@pytest.mark.timeout(120)
async def test_the_coordinator_dies_at_the_decision_and_the_same_request_is_sent_again(
    new_site: NewSite,
) -> None:
    address = f"127.0.0.1:{free_port()}"
    site = new_site(settings={"HTTP_ADDRESS": address})
    api = Api(f"http://{address}")
    try:
        gid = new_gid()
        branches = await prepared(api, site, gid)
        body = {"branches": branches}
        refused = await api.post(
            f"{TX}/{gid}/commit", {"branches": [{**branches[0], "xa": {"resource": "x"}}]}, 409
        )
        assert (refused["reason"], refused["facts"]["resource"]) == ("UNKNOWN_RESOURCE", "x")
        await asyncio.to_thread(site.restart, "commit.after_write=kill")
        with pytest.raises(httpx.TransportError):
            await api.post(f"{TX}/{gid}/commit", body)
        await eventually(lambda: not site.coordinator.running)
        assert site.counts(gid) == (0, 0)
        await asyncio.to_thread(site.restart)
        outcome = (await api.post(f"{TX}/{gid}/commit", body))["outcome"]
        assert (outcome["state"], outcome["decision"]) == ("STATE_COMMITTED", "DECISION_COMMIT")
        assert site.counts(gid) == (1, 1)
        assert site.prepared() == []
        assert await asyncio.to_thread(site.coordinator.stop) == 0
        events = site.coordinator.log.read_text()
        assert f"http://{address}" in events
    finally:
        await api.http.aclose()
