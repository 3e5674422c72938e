"""The HTTP API as a user of curl sees it: each operation, on a real log, with participants that know nothing of us."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from tests.support.acceptance import eventually, new_gid
from tests.support.http_api import DOCUMENT, Api, PlainService, api_of, http_node, plain_service
from tests.support.logs import Held, until_waiting
from txcoord.wiring import Node
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._pb import coordinator_pb2_grpc as rpc

TX = "/v1/transactions"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with http_node(tmp_path) as node:
        yield node


@pytest.fixture
async def api(node: Node) -> AsyncIterator[Api]:
    async with api_of(node) as api:
        yield api


@pytest.fixture
async def shop() -> AsyncIterator[PlainService]:
    async with plain_service() as shop:
        yield shop


def state(answer: Any) -> str:
    return str(answer["outcome"]["state"]).removeprefix("STATE_")


# ---- TCC: the caller tries, the coordinator confirms or cancels ----


async def tried(api: Api, shop: PlainService, gid: str) -> None:
    """Begin, enlist, try, vote: what a caller does by hand."""
    await api.post(TX, {"gid": gid, "spec": {"name": "checkout"}}, expect=201)
    assert state(await api.post(f"{TX}/{gid}/branches", {"branches": [shop.tcc("1")]})) == "ACTIVE"
    result = (await api.http.post(f"{shop.target}/reserve", json={"sku": "book", "n": 1})).json()
    vote = {"branch": "1", "vote": "VOTE_PREPARED", "resultJson": result}
    assert state(await api.post(f"{TX}/{gid}/votes", {"votes": [vote]})) == "ACTIVE"


async def test_a_try_that_is_confirmed(api: Api, shop: PlainService) -> None:
    gid = new_gid()
    await tried(api, shop, gid)
    assert state(await api.post(f"{TX}/{gid}/commit")) == "COMMITTED"
    assert shop.paths() == ["/reserve", "/confirm"]
    _, payload, headers = shop.calls[-1]
    assert payload == {"sku": "book", "n": 1}
    assert json.loads(base64.b64decode(headers["txcoord-result-bin"])) == {"did": "/reserve"}
    assert (headers["txcoord-gid"], headers["txcoord-op"]) == (gid, "confirm")
    # The same once more: the same answer, and no second effect.
    assert state(await api.post(f"{TX}/{gid}/commit")) == "COMMITTED"
    assert shop.paths() == ["/reserve", "/confirm"]
    found = (await api.get(f"{TX}/{gid}?history"))["transaction"]
    assert (found["gid"], found["spec"]["name"]) == (gid, "checkout")
    assert found["branches"][0]["status"]["state"] == "BRANCH_STATE_DONE"
    assert found["branches"][0]["status"]["resultJson"] == {"did": "/reserve"}
    assert (await api.get(f"{TX}/{found['txId']}"))["transaction"] == found
    refused = await api.post(f"{TX}/{gid}/branches", {"branches": [shop.tcc("2")]}, expect=409)
    assert refused["reason"] == "DECIDED"


async def test_a_try_that_is_cancelled(api: Api, shop: PlainService) -> None:
    gid = new_gid()
    await tried(api, shop, gid)
    outcome = (await api.post(f"{TX}/{gid}/rollback", {"reason": "CHANGED_MIND"}))["outcome"]
    assert (outcome["state"], outcome["reason"]) == ("STATE_ABORTED", "CHANGED_MIND")
    assert shop.paths() == ["/reserve", "/cancel"]
    refused = await api.post(f"{TX}/{gid}/commit", expect=409)
    assert (refused["reason"], refused["code"]) == ("CHANGED_MIND", "FAILED_PRECONDITION")
    assert refused["outcome"]["decision"] == "DECISION_ABORT"


async def test_a_commit_without_a_vote_aborts(api: Api, shop: PlainService) -> None:
    gid = new_gid()
    await api.post(TX, {"gid": gid}, expect=201)
    await api.post(f"{TX}/{gid}/branches", {"branches": [shop.tcc("1")]})
    outcome = (await api.post(f"{TX}/{gid}/commit"))["outcome"]
    assert (outcome["decision"], outcome["reason"]) == ("DECISION_ABORT", "VOTE_MISSING")


async def test_by_tx_id_and_deadline_nothing_is_looked_up(api: Api, shop: PlainService) -> None:
    begun = (await api.post(TX, {"gid": new_gid()}, expect=201))["outcome"]
    path = f"{TX}/{begun['txId']}"
    known = {"deadlineUs": begun["deadlineUs"], "gid": begun["gid"], "begun": True}
    refused = await api.post(f"{path}/branches", {"branches": [shop.tcc("1")], **known}, expect=400)
    assert refused["facts"] == {"field": "gid"}
    del known["gid"]
    await api.post(f"{path}/branches", {"branches": [shop.tcc("1")], **known})
    vote = {**shop.tcc("1"), "vote": "VOTE_PREPARED"}
    assert state(await api.post(f"{path}/commit", {"branches": [vote], **known})) == "COMMITTED"
    assert shop.paths() == ["/confirm"]


# ---- sagas ----


async def test_a_saga(api: Api, shop: PlainService) -> None:
    plan = {"spec": {"name": "ship"}, "branches": [shop.step("1", "pack"), shop.step("2", "send", "1")]}
    gid = new_gid()
    answer = await api.call(
        "POST", "/v1/plans", plan, headers={"Idempotency-Key": f'"{gid}"', "Prefer": "respond-async"}
    )
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    outcome = answer.json()["outcome"]
    assert answer.headers["location"] == f"{TX}/{outcome['txId']}"
    assert (outcome["gid"], outcome["state"]) == (gid, "STATE_RUNNING")
    done = (await api.get(f"{TX}/{gid}/wait?timeout=10s"))["outcome"]
    assert done["state"] == "STATE_COMMITTED"
    assert {b["name"]: b["resultJson"] for b in done["branches"]} == {
        "pack": {"did": "/pack"},
        "send": {"did": "/send"},
    }
    assert shop.paths() == ["/pack", "/send"]
    # Sent again when all is over: as before, and nothing is done twice.
    again = await api.post("/v1/plans", plan, Idempotency_Key=gid)
    assert (again["outcome"]["txId"], state(again)) == (outcome["txId"], "COMMITTED")
    assert shop.paths() == ["/pack", "/send"]


async def test_a_saga_that_is_refused_is_compensated(api: Api, shop: PlainService) -> None:
    shop.refuse.add("/send")
    plan = {"gid": new_gid(), "branches": [shop.step("1", "pack"), shop.step("2", "send", "1")]}
    outcome = (await api.post("/v1/plans?timeout=10", plan))["outcome"]
    assert (outcome["state"], outcome["decidedBy"], outcome["reason"]) == (
        "STATE_ABORTED",
        "DECIDED_BY_BRANCH",
        "SOLD_OUT",
    )
    assert shop.paths() == ["/pack", "/send", "/unpack"]


@pytest.mark.parametrize("has_deadline", [False, True])
async def test_a_plan_is_nobodys_to_decide_but_may_be_stopped(
    api: Api, shop: PlainService, has_deadline: bool
) -> None:
    gid = new_gid()
    plan: dict[str, Any] = {"gid": gid, "branches": [shop.step("1", "pack")]}
    if has_deadline:
        plan["deadlineUs"] = int((await api.get("/v1/hello"))["logTimeUs"]) + 600_000_000
    shop.fail.add("/pack")
    await api.post("/v1/plans", plan, expect=202, Prefer="respond-async")
    await eventually(shop.paths)
    for what, body, reason in (
        ("commit", {}, "NOT_SUPPORTED"),
        ("branches", {"branches": [shop.tcc("2")]}, "DECIDED"),
    ):
        refused = await api.post(f"{TX}/{gid}/{what}", body, expect=409)
        assert refused["reason"] == reason, refused
    assert state(await api.post(f"{TX}/{gid}/rollback")) == "ABORTED"
    assert set(shop.paths()[:-1]) == {"/pack"}
    assert shop.paths()[-1] == "/unpack"


async def test_steps_inside_a_transaction(api: Api, shop: PlainService) -> None:
    gid = new_gid()
    await api.post(TX, {"gid": gid}, expect=201)
    body = {"run": True, "branches": [shop.step("1.1", "pack")]}
    ran = (await api.post(f"{TX}/{gid}/branches?timeout=10s", body))["outcome"]
    assert ran["branches"][0]["resultJson"] == {"did": "/pack"}
    assert state(await api.post(f"{TX}/{gid}/rollback")) == "ABORTED"
    assert shop.paths() == ["/pack", "/unpack"]


# ---- Idempotency-Key ----


async def test_a_key_is_the_gid_and_names_one_content(api: Api) -> None:
    key = new_gid()
    first = await api.post(TX, {"spec": {"name": "pay"}}, expect=201, Idempotency_Key=f'"{key}"')
    again = await api.post(TX, {"spec": {"name": "pay"}}, expect=201, Idempotency_Key=f'"{key}"')
    assert again["outcome"] == first["outcome"]
    assert first["outcome"]["gid"] == key
    for spec in ({"name": "buy"}, {"name": "pay", "labels": {"a": "b"}}):
        refused = await api.post(TX, {"spec": spec}, expect=422, Idempotency_Key=key)
        assert refused["reason"] == "CONTENT_MISMATCH"
    refused = await api.post(TX, {"gid": "another"}, expect=400, Idempotency_Key=key)
    assert refused["facts"] == {"field": "gid"}
    refused = await api.post(TX, {}, expect=400, Idempotency_Key='"no good"')
    assert refused["reason"] == "BAD_GID"
    await api.post(f"{TX}/{key}/commit")
    refused = await api.post(TX, {"spec": {"name": "pay"}}, expect=409, Idempotency_Key=key)
    assert refused["reason"] == "ALREADY_COMMITTED"
    # The same holds over gRPC for whoever has no tx ids.
    assert (await api.post(TX, {}, expect=400))["reason"] == "BAD_REQUEST"


async def test_a_key_of_a_plan_with_other_steps(api: Api, shop: PlainService) -> None:
    key = new_gid()
    await api.post("/v1/plans", {"branches": [shop.step("1", "pack")]}, Idempotency_Key=key)
    for step in (shop.step("1", "send"), shop.step("1", "pack", payloadJson={"order": 8})):
        refused = await api.post("/v1/plans", {"branches": [step]}, expect=422, Idempotency_Key=key)
        assert refused["reason"] == "CONTENT_MISMATCH"
    assert shop.paths() == ["/pack"]


async def test_a_key_many_times_at_once(node: Node, api: Api, shop: PlainService) -> None:
    key = new_gid()
    plan = {"branches": [shop.step("1", "pack")]}
    held = Held(node.log)
    many = [asyncio.ensure_future(api.post("/v1/plans", plan, Idempotency_Key=key)) for _ in range(20)]
    await until_waiting(node.log, 19)
    held.let_go()
    assert {answer["outcome"]["txId"] for answer in await asyncio.gather(*many)} == {
        many[0].result()["outcome"]["txId"]
    }
    assert shop.paths() == ["/pack"]


# ---- the same path to the log ----


async def test_a_burst_is_coalesced(node: Node, api: Api) -> None:
    before = node.log.forced_flushes
    held = Held(node.log)
    many = [asyncio.ensure_future(api.post(TX, {"gid": new_gid()}, expect=201)) for _ in range(60)]
    await until_waiting(node.log, 59)
    held.let_go()
    await asyncio.gather(*many)
    assert node.log.forced_flushes - before <= 2


async def test_http_and_grpc_are_two_doors_of_one_house(node: Node, api: Api) -> None:
    gid = new_gid()
    begun = (await api.post(TX, {"gid": gid, "namespace": "shop"}, expect=201))["outcome"]
    async with grpc.aio.insecure_channel(node.address) as channel:
        stub: Any = rpc.CoordinatorServiceStub(channel)
        found = (await stub.Get(pb.GetRequest(namespace="shop", gid=gid))).transaction
        assert found.tx_id == begun["txId"]
        again = await stub.Begin(pb.BeginRequest(namespace="shop", gid=gid))
        assert again.outcome.tx_id == begun["txId"]
    assert (await api.get(f"{TX}/{gid}", expect=404))["reason"] == "NOT_FOUND"
    assert state(await api.post(f"{TX}/{gid}/commit?namespace=shop")) == "COMMITTED"
    refused = await api.post(f"{TX}/{gid}/commit?namespace=shop", {"namespace": "other"}, expect=400)
    assert refused["facts"] == {"field": "namespace"}


# ---- waiting ----


async def test_a_wait_ends_when_it_is_so_or_when_its_time_is_over(api: Api) -> None:
    gid = new_gid()
    await api.post(TX, {"gid": gid}, expect=201)
    for query, header in (("timeout=20ms", ""), ("", "wait=0"), ("timeout=0s", "wait=30")):
        waited = await api.get(f"{TX}/{gid}/wait?{query}", expect=202, Prefer=header)
        assert (state(waited), waited["outcome"]["pending"]) == ("ACTIVE", True)
    waiting = asyncio.ensure_future(
        api.call("GET", f"{TX}/{gid}/wait?level=decided", headers={"Prefer": "wait=20"})
    )
    many = asyncio.ensure_future(api.post("/v1/wait", {"items": [{"gid": gid}], "waitUs": "20000000"}))
    await asyncio.sleep(0)
    await api.post(f"{TX}/{gid}/commit")
    answer = await waiting
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=20"
    assert state(answer.json()) == "COMMITTED"
    assert state((await many)["results"][0]) == "COMMITTED"
    assert (await api.get(f"{TX}/nobody/wait", expect=404))["reason"] == "NOT_FOUND"


async def test_whoever_leaves_while_waiting_is_forgotten_and_a_commit_goes_on(node: Node, api: Api) -> None:
    gid = new_gid()
    await api.post(TX, {"gid": gid}, expect=201)
    assert node._http is not None
    with capture_logs() as logged:
        waiting = asyncio.ensure_future(api.get(f"{TX}/{gid}/wait?timeout=60s"))
        await eventually(lambda: node._http is not None and node._http._open)
        waiting.cancel()
        await eventually(lambda: node._http is not None and not node._http._connections.connections)  # type: ignore[union-attr]
    assert not logged
    held = Held(node.log)
    commit = asyncio.ensure_future(api.post(f"{TX}/{gid}/commit"))
    await held.taken.wait()
    commit.cancel()
    await asyncio.gather(commit, return_exceptions=True)
    await eventually(lambda: node._http is not None and len(node._http._connections._known) == 0)  # type: ignore[union-attr]
    held.let_go()
    assert state(await api.get(f"{TX}/{gid}/wait?timeout=10s")) == "COMMITTED"


# ---- looking ----


async def test_pages_and_filters(api: Api) -> None:
    gids = [new_gid() for _ in range(5)]
    for gid in gids:
        await api.post(TX, {"gid": gid, "spec": {"name": "pay"}}, expect=201)
    await api.post(f"{TX}/{gids[0]}/commit")
    found, token = [], ""
    while True:
        page = await api.get(f"{TX}?pageSize=2{token}")
        found += [tx["gid"] for tx in page["transactions"]]
        if "nextPageToken" not in page:
            break
        token = f"&pageToken={page['nextPageToken']}"
    assert found == gids[::-1]
    page = await api.get(TX + '?filter=state = COMMITTED AND name = "pay"')
    assert [tx["gid"] for tx in page["transactions"]] == gids[:1]
    for query in (
        "filter=nonsense",
        "pageSize=0",
        "pageSize=x",
        "orderBy=name",
        "size=1",
        "pageSize=1&pageSize=2",
    ):
        assert (await api.get(f"{TX}?{query}", expect=400))["reason"] == "BAD_REQUEST"
    hello = await api.get("/v1/hello")
    assert hello["limits"]["maxBranches"] == 1000


async def test_its_description_is_served_and_its_examples_work(api: Api, shop: PlainService) -> None:
    assert await api.get("/openapi.json") == DOCUMENT
    assert await api.get("/livez") == {"status": "ok"}
    assert await api.get("/readyz") == {"status": "ok"}
    done = []
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in body:
                # Their participants are nowhere: nobody waits for them.
                once = (
                    "?timeout=0" if any(p.get("name") == "timeout" for p in operation["parameters"]) else ""
                )
                key = {"Idempotency-Key": "ship-7"} if operation["operationId"] == "submit" else {}
                gid = "order-9" if operation["operationId"] == "submitMessage" else "order-7"
                url = path.replace("{id}", gid) + once
                answer = await api.call(method.upper(), url, body["example"], headers=key)
                assert answer.status_code in (200, 201, 202), answer.text
                done.append(operation["operationId"])
    assert set(done) == {
        "begin",
        "enlist",
        "vote",
        "commit",
        "submit",
        "rollback",
        "wait",
        "prepareMessage",
        "submitMessage",
    }
