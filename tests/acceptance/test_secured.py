"""TLS and bearer tokens: who may do what, over gRPC, HTTP, with the SDK and from the command line."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.cli_support import Desk
from tests.support.acceptance import new_gid
from tests.support.authority import Authority
from tests.support.http_api import http_node
from txcoord.wiring import Node
from txcoord_client import TLS, Coordinator, Rejected, Token, sync
from txcoord_client._pb import admin_pb2, admin_pb2_grpc, coordinator_pb2, coordinator_pb2_grpc
from txcoord_client.protocol import reasons

WORDS = {name: f"{name}-secret-0123456789" for name in ("viewer", "shop", "till", "operator", "admin")}
LINES = f"""
# name role namespace token
viewer    viewer    *     {WORDS["viewer"]}
shop      client    shop  {WORDS["shop"]}
till      operator  shop  {WORDS["till"]}
operator  operator  *     {WORDS["operator"]}
admin     admin     *     {WORDS["admin"]}
"""


@dataclass
class House:
    """A node behind TLS, and what its clients need."""

    node: Node
    authority: Authority
    folder: Path

    @property
    def tls(self) -> TLS:
        return TLS(self.authority.ca, self.folder / "client.pem")

    def coordinator(self, who: str, namespace: str = "shop") -> Coordinator:
        token = Token(WORDS[who]) if who else None
        return Coordinator(self.node.address, namespace=namespace, tls=self.tls, auth=token)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self.node.address, self.tls.credentials())

    def http(self, who: str = "") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {WORDS[who]}"} if who else {}
        context = ssl.create_default_context(cafile=self.authority.ca)
        context.load_cert_chain(self.folder / "client.pem")
        return httpx.AsyncClient(base_url=self.node.http_url, verify=context, headers=headers)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    authority = Authority(tmp_path)
    authority.issue("client")
    tokens = tmp_path / "tokens"
    tokens.write_text(LINES)
    tls = {"cert_file": authority.issue("server"), "client_ca_file": authority.ca}
    async with http_node(tmp_path, tls=tls, auth={"token_file": tokens}) as node:
        yield House(node, authority, tmp_path)


def meta(who: str) -> Any:
    return (("authorization", f"Bearer {WORDS[who]}"),) if who else ()


async def code_of(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def test_each_role_may_do_what_it_is_for(house: House) -> None:
    async with house.channel() as channel:
        coordinator: Any = coordinator_pb2_grpc.CoordinatorServiceStub(channel)
        admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        hello = coordinator_pb2.HelloRequest(namespace="shop")
        begin = coordinator_pb2.BeginRequest(namespace="shop", gid="x")
        resources = admin_pb2.ListResourcesRequest(namespace="shop")
        park = admin_pb2.ParkRequest(namespace="shop")
        drain = admin_pb2.DrainNodeRequest(namespace="shop")
        no, refused = "PERMISSION_DENIED", "INVALID_ARGUMENT"  # Let in, and refused for what they lack.
        expected = {
            "": ["UNAUTHENTICATED"] * 5,
            "viewer": ["OK", no, "OK", no, no],
            "shop": ["OK", "OK", "OK", no, no],
            "operator": ["OK", no, "OK", refused, no],
            "admin": ["OK", "OK", "OK", refused, refused],
        }
        for who, codes in expected.items():
            assert [
                await code_of(coordinator.Hello(hello, metadata=meta(who))),
                await code_of(coordinator.Begin(begin, metadata=meta(who))),
                await code_of(admin.ListResources(resources, metadata=meta(who))),
                await code_of(admin.Park(park, metadata=meta(who))),
                await code_of(admin.DrainNode(drain, metadata=meta(who))),
            ] == codes, who
        other = coordinator_pb2.HelloRequest(namespace="bank")
        assert await code_of(coordinator.Hello(other, metadata=meta("shop"))) == no
        # Whoever watches over nodes needs no token.
        health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1


async def test_who_is_of_one_namespace_sees_and_rules_nothing_of_all(house: House) -> None:
    who = {"namespace": "shop", "audit": admin_pb2.Audit(actor="ann", reason="new disks")}
    target = "grpc://127.0.0.1:7000"
    limits = admin_pb2.TargetLimits(rate_per_s=5)
    trail = admin_pb2.ListAuditRequest(namespace="shop", filter=f"target = {target}")
    async with house.channel() as channel:
        admin: Any = admin_pb2_grpc.AdminServiceStub(channel)

        async def codes(who_: str) -> set[str]:
            calls = [
                admin.PauseTarget(
                    admin_pb2.PauseTargetRequest(target=target, force=True, **who), metadata=meta(who_)
                ),
                admin.ResumeTarget(admin_pb2.ResumeTargetRequest(target=target, **who), metadata=meta(who_)),
                admin.LimitTarget(
                    admin_pb2.LimitTargetRequest(target=target, limits=limits, force=True, **who),
                    metadata=meta(who_),
                ),
                admin.ListTargets(admin_pb2.ListTargetsRequest(namespace="shop"), metadata=meta(who_)),
                admin.ListNodes(admin_pb2.ListNodesRequest(namespace="shop"), metadata=meta(who_)),
                admin.ListAudit(trail, metadata=meta(who_)),
                admin.ListAudit(
                    admin_pb2.ListAuditRequest(namespace="shop", filter="node = n1"), metadata=meta(who_)
                ),
            ]
            return {await code_of(call) for call in calls}

        assert await codes("till") == {"PERMISSION_DENIED"}
        assert await codes("operator") == {"OK"}
        found = (await admin.ListAudit(trail, metadata=meta("operator"))).entries
        assert {(e.actor, e.reason) for e in found} == {("ann (token operator)", "new disks")}
        assert len(found) == 3
        elsewhere = admin_pb2.ListTargetsRequest(namespace="/")
        assert await code_of(admin.ListTargets(elsewhere, metadata=meta("operator"))) == "INVALID_ARGUMENT"


async def test_replays_payloads_and_the_audit_trail(house: House) -> None:
    said = admin_pb2.Audit(actor="ann", reason="it is back")
    who = {"namespace": "shop", "audit": said}
    one = admin_pb2.Selector(gid="x", branches=["1"])
    async with house.channel() as channel:
        admin: Any = admin_pb2_grpc.AdminServiceStub(channel)

        async def orders(who_: str) -> list[str]:
            of = {"metadata": meta(who_)}
            return [
                await code_of(admin.StartReplay(admin_pb2.StartReplayRequest(filter="parked", **who), **of)),
                await code_of(admin.CancelReplay(admin_pb2.CancelReplayRequest(id="x", **who), **of)),
                await code_of(admin.ResumeReplay(admin_pb2.ResumeReplayRequest(id="x", **who), **of)),
                await code_of(admin.Retry(admin_pb2.RetryRequest(selector=one, payload=b"{}", **who), **of)),
            ]

        async def looks(who_: str, namespace: str) -> list[str]:
            of: dict[str, Any] = {"metadata": meta(who_)}
            ns = {"namespace": namespace}
            return [
                await code_of(admin.GetReplay(admin_pb2.GetReplayRequest(id="x", **ns), **of)),
                await code_of(admin.ListReplays(admin_pb2.ListReplaysRequest(**ns), **of)),
                await code_of(admin.ListParkedGroups(admin_pb2.ListParkedGroupsRequest(**ns), **of)),
                await code_of(admin.ListAudit(admin_pb2.ListAuditRequest(**ns), **of)),
            ]

        no = "PERMISSION_DENIED"
        assert await orders("") == await looks("", "shop") == ["UNAUTHENTICATED"] * 4
        assert await orders("viewer") == await orders("shop") == [no] * 4
        assert await orders("till") == ["OK", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND"]
        assert await looks("viewer", "shop") == await looks("till", "shop") == ["NOT_FOUND", "OK", "OK", "OK"]
        assert await looks("till", "bank") == [no] * 4
        await admin.PauseTarget(
            admin_pb2.PauseTargetRequest(target="grpc://127.0.0.1:7001", force=True, **who),
            metadata=meta("operator"),
        )

        async def trail(who_: str) -> set[str]:
            request = admin_pb2.ListAuditRequest(namespace="shop")
            return {e.action for e in (await admin.ListAudit(request, metadata=meta(who_))).entries}

        # What is of no namespace shows only to whoever may see all.
        assert await trail("till") == {"replay.start"}
        assert await trail("operator") >= {"replay.start", "target.pause"}


async def test_the_sdk_shows_its_token(house: House) -> None:
    async with house.coordinator("shop") as coord, coord.begin("order", gid=(gid := new_gid())) as g:
        pass
    assert g.outcome.state == "COMMITTED"
    async with house.coordinator("viewer") as viewer:
        assert await viewer.get(gid) is not None
        with pytest.raises(Rejected) as no:
            async with viewer.begin("order", gid=new_gid()):
                raise AssertionError("it began")
        assert no.value.reason == reasons.FORBIDDEN
        assert no.value.definite
    async with house.coordinator("") as nobody:
        with pytest.raises(Rejected) as refused:
            await nobody.get(gid)
        assert refused.value.reason == reasons.UNAUTHENTICATED
        assert refused.value.definite
    async with house.coordinator("shop", "bank") as elsewhere:
        with pytest.raises(Rejected, match="namespace 'bank'"):
            await elsewhere.get(gid)


async def test_a_token_that_is_taken_away_ends_open_sessions(house: House) -> None:
    async with house.coordinator("shop") as coord:
        assert await coord.get("nothing") is None
        file = house.folder / "tokens"
        file.write_text("nonsense\n" + LINES)
        house.node.entrance.refresh()
        assert await coord.get("nothing") is None, "a file that cannot be read changes nothing"
        file.write_text("\n".join(line for line in LINES.splitlines() if "shop" not in line))
        house.node.entrance.refresh()
        with pytest.raises(Rejected) as refused:
            await coord.get("nothing")
        assert refused.value.reason == reasons.UNAUTHENTICATED


async def test_over_http(house: House) -> None:
    async with house.http() as client:
        answer = await client.get("/v1/transactions")
        assert answer.status_code == 401
        assert answer.json()["reason"] == reasons.UNAUTHENTICATED
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await client.get("/readyz")).status_code == 200
    async with house.http("viewer") as client:
        assert (await client.get("/v1/transactions")).status_code == 200
        answer = await client.post("/v1/transactions", json={"gid": new_gid()})
        assert (answer.status_code, answer.json()["reason"]) == (403, reasons.FORBIDDEN)
    async with house.http("shop") as client:
        answer = await client.post("/v1/transactions?namespace=shop", json={"gid": new_gid()})
        assert answer.status_code == 201
        answer = await client.get("/v1/transactions")
        assert answer.status_code == 403, "its namespace is another one"


async def test_a_certificate_can_be_exchanged(house: House) -> None:
    async def serial() -> object:
        async with house.http() as client, client.stream("GET", "/readyz") as answer:
            return (
                answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()["serialNumber"]
            )

    async def over_grpc() -> None:
        async with house.coordinator("admin") as coord:
            assert await coord.get("nothing") is None

    before = await serial()
    await over_grpc()
    (house.folder / "server.pem").write_text("no certificate")
    house.node.entrance.refresh()
    assert await serial() == before
    (house.folder / "stranger").mkdir()
    stranger = Authority(house.folder / "stranger")
    stranger.issue("server").rename(house.folder / "server.pem")
    house.node.entrance.refresh()
    house.authority.ca = stranger.ca  # What its clients believe from now on.
    assert await serial() != before
    await over_grpc()


async def test_without_a_clients_certificate_nobody_gets_in(house: House) -> None:
    context = ssl.create_default_context(cafile=house.authority.ca)
    async with httpx.AsyncClient(base_url=house.node.http_url, verify=context) as client:
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            await client.get("/readyz")
    bare = grpc.ssl_channel_credentials(house.authority.ca.read_bytes())
    async with grpc.aio.secure_channel(house.node.address, bare) as channel:
        stub: Any = coordinator_pb2_grpc.CoordinatorServiceStub(channel)
        hello = stub.Hello(coordinator_pb2.HelloRequest(), metadata=meta("admin"), timeout=10)
        assert await code_of(hello) == "UNAVAILABLE"


async def test_the_command_line_and_the_synchronous_sdk(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:

    (house.folder / "word").write_text(WORDS["operator"] + "\n")
    pair = str(house.folder / "client.pem")
    desk = Desk(house.folder, {"TXCOORD_ADDRESS": house.node.address, "TXCOORD_CERT_FILE": pair})
    ca = ("--ca-file", str(house.authority.ca))
    done = await asyncio.to_thread(desk.run, "tx", "list", *ca, "--token-file", str(house.folder / "word"))
    assert "no transaction" in done.stderr
    (house.folder / "stranger").mkdir()
    stranger = str(Authority(house.folder / "stranger").ca)
    for command in ("health", "tx"):
        more = ("list",) if command == "tx" else ()
        done = await asyncio.to_thread(desk.run, command, *more, "--ca-file", stranger, code=4)
        assert "certificate of the coordinator" in done.stderr
        assert "is not accepted" in done.stderr
    done = await asyncio.to_thread(desk.run, "health", *ca)
    assert done.stdout == "SERVING\n"
    done = await asyncio.to_thread(lambda: desk.run("resource", "list", *ca, code=6))
    assert reasons.UNAUTHENTICATED in done.stderr
    for name, value in (("CA_FILE", str(house.authority.ca)), ("CERT_FILE", pair), ("TOKEN_FILE", "word")):
        monkeypatch.setenv(f"TXCOORD_{name}", str(house.folder / value))

    def ask() -> None:
        with sync.Coordinator(house.node.address) as coord:
            assert coord.get("nothing") is None

    await asyncio.to_thread(ask)


def test_a_token_does_not_travel_in_the_clear() -> None:
    token = Token(WORDS["shop"])
    assert WORDS["shop"] not in repr(token)
    for address in ("127.0.0.1:7070", "localhost:7070", "[::1]:7070", "dns:///localhost:7070"):
        Coordinator(address, auth=token)
    for address in (
        "10.0.0.1:7070",
        "127.0.0.1:7070,txcoord:7070",
        "dns:///txcoord:7070",
        "localhost.evil:1",
    ):
        with pytest.raises(Rejected, match="without TLS"):
            Coordinator(address, auth=token)
        Coordinator(address, auth=Token(WORDS["shop"], over_plaintext=True))
        Coordinator(address, auth=token, tls=TLS())
    with pytest.raises(Rejected) as short:
        Token("hunter2")
    assert "hunter2" not in str(short.value)
