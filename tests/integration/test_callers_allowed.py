"""Whom callers call: allowed addresses, participants by name, TLS and tokens. Over real gRPC and HTTP."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.acceptance_http import serving_asgi
from tests.support.authority import Authority
from tests.support.callers import (
    Reply,
    Seen,
    Service,
    answers,
    endpoints,
    over_grpc,
    over_the_web,
    request,
)
from txcoord.adapters.calling.any_ import AnyCaller
from txcoord.adapters.calling.credentials import Tls, TokenFile
from txcoord.config import load
from txcoord.core.action import Action, AnswerKind, Op
from txcoord.core.targets import Targets
from txcoord.wiring import Node
from txcoord.wiring.errors import StartError
from txcoord_client._pb import participant_pb2_grpc

SERVINGS = pytest.mark.parametrize("serving", [over_grpc, over_the_web], ids=["grpc", "http"])


@asynccontextmanager
async def caller_to(targets: Targets, **options: Any) -> AsyncIterator[AnyCaller]:
    caller = AnyCaller(node="n1", targets=targets, **options)
    try:
        yield caller
    finally:
        await caller.close()


def by_name(target: str, host: str) -> str:
    return target.replace("127.0.0.1", host)


@SERVINGS
async def test_what_a_name_leads_to_is_looked_at(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {
        "inside.example": "127.0.0.1",
        "rebound.example": "127.0.0.1",
        "metadata.example": "169.254.169.254",
    }
    real = socket.getaddrinfo

    def looked_up(host: Any, *arguments: Any, **named: Any) -> Any:
        return real(places.get(host, host), *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    confirm = request("1", Op.CONFIRM)
    async with serving() as target, caller_to(Targets(["inside.example", "10.0.0.0/8"])) as caller:
        assert (await answers(caller, by_name(target, "inside.example"), confirm))[
            "1"
        ].kind is AnswerKind.DONE
        for host in ("rebound.example", "127.0.0.1"):
            answer = (await answers(caller, by_name(target, host), confirm))["1"]
            assert answer.kind is AnswerKind.FAILED
            assert answer.reason.startswith(f"TARGET_NOT_ALLOWED: this coordinator does not call {host}:")
    async with caller_to(Targets(["*"])) as caller:
        for host in ("metadata.example", "169.254.169.254"):
            answer = (await answers(caller, by_name(target, host), confirm))["1"]
            assert answer.reason.startswith("TARGET_NOT_ALLOWED:")
            assert "never called" in answer.reason


@SERVINGS
async def test_a_name_that_cannot_be_looked_up_for_a_while(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirm = request("1", Op.CONFIRM)
    async with serving() as target, caller_to(Targets(["localhost"])) as caller:
        target = by_name(target, "localhost")
        assert (await answers(caller, target, confirm))["1"].kind is AnswerKind.DONE

        def away(*_: Any, **__: Any) -> Any:
            raise socket.gaierror(-3, "try again")

        monkeypatch.setattr(socket, "getaddrinfo", away)
        caller._dialling.forget("localhost", int(target.rpartition(":")[2]))
        for _ in range(3):
            assert (await answers(caller, target, confirm))["1"].kind is AnswerKind.DONE


@SERVINGS
async def test_a_name_has_several_addresses(serving: Any) -> None:
    async with serving() as dead:
        pass
    async with serving() as living, caller_to(Targets(named={"stock": [dead, living]})) as caller:
        # Whoever is away may be passed over at once, but not within one attempt of a first call.
        found = await answers(caller, "stock", request("1", Op.CONFIRM), request("2", Op.TRY))
        assert found["1"].kind is AnswerKind.DONE
        assert found["2"].reason.startswith("UNAVAILABLE")
        assert (await answers(caller, "stock", request("2", Op.TRY)))["2"].kind is AnswerKind.DONE
        # One that does not answer comes last the next time; of others nothing is known.
        found = await answers(caller, "stock", request("slow", Op.CONFIRM), timeout_s=0.3)
        assert found["slow"].reason.startswith("TIMED_OUT")
        assert [str(t) for t in caller._in_order(caller._targets.named["stock"])] == [dead, living]
        assert (await answers(caller, "other", request("1", Op.CONFIRM)))["1"].reason.startswith("UNKNOWN")


async def test_a_token_for_those_that_are_named(tmp_path: Path) -> None:
    seen: list[str] = []
    file = tmp_path / "token"
    file.write_text("secret\n")

    async def confirm(asked: Seen) -> Reply:
        seen.append(asked.headers.get("authorization", ""))
        return 200, {}, b""

    async def method(_: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()).get("authorization", ""))
        return b""

    own = {"Authorization": "its own"}
    over_http = request("1", Op.CONFIRM, Action("/try", commit_operation="/confirm", headers=own))
    over_rpc = request("1", Op.CONFIRM, Action("/shop.Stock/Confirm", headers=own))
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(over_the_web({"/confirm": confirm, "/x/confirm": confirm}))
        rpc = await stack.enter_async_context(over_grpc({"Confirm": method}))
        targets = Targets(["loopback"], {"stock": [web], "coupons": [rpc]})
        tokens = {"stock": TokenFile(file), "coupons": TokenFile(file)}
        caller = await stack.enter_async_context(caller_to(targets, tokens=tokens))
        for target, asked in (("stock", over_http), (web, over_http), ("coupons", over_rpc), (rpc, over_rpc)):
            assert (await answers(caller, target, asked))["1"].kind is AnswerKind.DONE
        assert seen == ["Bearer secret"] * 4
        # What a client has made up gets none.
        assert (await answers(caller, f"{web}/x", over_http))["1"].kind is AnswerKind.DONE
        assert seen[4:] == [""]
    file.write_text("two words")
    with pytest.raises(ValueError, match="no token"):
        TokenFile(file).token()


async def test_headers_that_are_not_a_clients_to_send() -> None:
    seen: list[set[str]] = []

    async def confirm(asked: Seen) -> Reply:
        seen.append(set(asked.headers))
        return 200, {}, b""

    async def method(_: bytes, context: Any) -> bytes:
        seen.append({key for key, _ in context.invocation_metadata()})
        return b""

    bad = {
        "Cookie",
        "forwarded",
        "X-Forwarded-For",
        "x_forwarded_for",
        "x-real-ip",
        "X-User",
        "txcoord_tx_id",
    }
    given = dict.fromkeys([*bad, "X-Usual"], "me")
    over_http = request("1", Op.CONFIRM, Action("/try", commit_operation="/confirm", headers=given))
    over_rpc = request("1", Op.CONFIRM, Action("/shop.Stock/Confirm", headers=given))
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(over_the_web({"/confirm": confirm}))
        rpc = await stack.enter_async_context(over_grpc({"Confirm": method}))
        targets = Targets(["loopback"], {"stock": [web]}, ["x-user"])
        caller = await stack.enter_async_context(caller_to(targets))
        for target, asked in (("stock", over_http), (web, over_http), (rpc, over_rpc)):
            assert (await answers(caller, target, asked))["1"].kind is AnswerKind.DONE
    assert len(seen) == 3
    for headers in seen:
        assert {"x-usual", "tenant", "txcoord-tx-id"} <= headers
        assert not {name.lower() for name in bad} & headers


@asynccontextmanager
async def over_grpc_tls(pair: Path, ca: Path) -> AsyncIterator[str]:
    server = grpc.aio.server()
    participant_pb2_grpc.add_ParticipantServiceServicer_to_server(Service(), server)
    data = pair.read_bytes()
    credentials = grpc.ssl_server_credentials([(data, data)], ca.read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"grpcs://127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def over_https(pair: Path, ca: Path) -> AsyncIterator[str]:
    options = {"ssl_certfile": str(pair), "ssl_keyfile": str(pair), "ssl_ca_certs": str(ca)}
    app = endpoints({})
    async with serving_asgi(app, leave=True, ssl_cert_reqs=ssl.CERT_REQUIRED, **options) as address:
        yield address


@pytest.mark.parametrize("serving", [over_grpc_tls, over_https], ids=["grpc", "http"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_both_ends_are_who_they_say(serving: Any, host: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other")
    anybody = Targets(["*"])
    me = authority.issue("coordinator")
    confirm = request("1", Op.CONFIRM)
    async with serving(authority.issue("stock"), authority.ca) as target:
        target = by_name(target, host)
        async with caller_to(anybody, tls=Tls(authority.ca, me, me)) as caller:
            caller.check()
            assert (await answers(caller, target, confirm))["1"].kind is AnswerKind.DONE
        for tls in (
            Tls(authority.ca),
            Tls(stranger.ca, me, me),
            Tls(authority.ca, stranger.issue("coordinator")),
        ):
            async with caller_to(anybody, tls=tls) as caller:
                assert (await answers(caller, target, confirm))["1"].kind is AnswerKind.FAILED
        async with caller_to(anybody, tls=Tls(authority.ca, me)) as caller:
            assert (await answers(caller, target, confirm))["1"].kind is AnswerKind.DONE
            other = target.replace(host, "127.0.0.2")
            assert (await answers(caller, other, confirm))["1"].kind is AnswerKind.FAILED
    me.write_text("nothing")
    with pytest.raises(OSError, match="PEM"):
        AnyCaller(node="n1", tls=Tls(authority.ca, me)).check()


async def test_a_node_does_not_start_with_what_it_cannot_show(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    for options in (
        {"targets": {"ca_file": file}},
        {"participants": {"stock": {"addresses": "grpc://a:1", "token_file": tmp_path / "empty"}}},
    ):
        (tmp_path / "empty").write_text("\n")
        with pytest.raises(StartError, match="cannot be used") as error:
            await Node(load(listen="127.0.0.1:0", **options)).start()
        assert error.value.reason == "BAD_CREDENTIALS"
