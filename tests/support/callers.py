"""Participants for the tests of callers: bare services, over gRPC and over HTTP, without any of the SDK's code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from tests.support.acceptance_http import serving_asgi
from txcoord.core.action import Action, Answer, Op
from txcoord.core.model import Branch, BranchState, Kind, Tx
from txcoord.ports import Caller, CallRequest
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client._pb import participant_pb2_grpc
from txcoord_client.protocol import over_http

TX = Tx(
    "0" * 31 + "7",
    "shop",
    9,
    "order-1",
    headers={"Tenant": "7", "bad key": "x", "zwei": "\u4e8c", "grpc-x": "y", "Host": "evil", "te": "x"},
)
SDK = Action("stock.Reserve")


def request(number: str, op: Op, action: Action = SDK, **more: Any) -> CallRequest:
    branch = Branch(number, Kind.TCC, BranchState.FINISHING, "grpc://x", action=action, payload=b"p", **more)
    return CallRequest(TX, branch, op, 3, 0)


def confirms(count: int) -> list[CallRequest]:
    return [request(str(n), Op.CONFIRM) for n in range(1, count + 1)]


async def answers(
    caller: Caller, target: str, *requests: CallRequest, timeout_s: float = 5.0
) -> dict[str, Answer]:
    return {r.branch.id: a async for r, a in caller.call(target, requests, timeout_s)}


async def served(asked: pb.ExecuteRequest) -> AsyncIterator[pb.ExecuteResponse]:
    """Answers branch by branch, the slow one not at all."""
    for action in asked.actions:
        if action.branch == "slow":
            await asyncio.Event().wait()
        if action.branch == "gone":
            return
        kind = c.ANSWER_KIND_REFUSED if action.branch == "no" else c.ANSWER_KIND_DONE
        answer = c.BranchAnswer(
            tx_id=asked.contexts[action.context].tx_id,
            branch=action.branch,
            op=action.op,
            attempt=action.attempt,
            kind=kind,
            result=action.payload if action.branch != "huge" else b"x" * 5 * 2**20,
            reason="NO" if kind == c.ANSWER_KIND_REFUSED else "",
        )
        yield pb.ExecuteResponse(answers=[answer])


class Service(participant_pb2_grpc.ParticipantServiceServicer):
    async def Execute(self, request: pb.ExecuteRequest, context: Any) -> AsyncIterator[pb.ExecuteResponse]:
        async for response in served(request):
            yield response


@asynccontextmanager
async def over_grpc(methods: Mapping[str, Callable[[bytes, Any], Any]] | None = None) -> AsyncIterator[str]:
    """``methods`` are those of ``shop.Stock``."""
    server = grpc.aio.server()
    participant_pb2_grpc.add_ParticipantServiceServicer_to_server(Service(), server)
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in (methods or {}).items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Stock", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        await server.stop(0)


@dataclass
class Seen:
    """A request that an endpoint has had."""

    path: str
    headers: dict[str, str]
    body: bytes


Reply = tuple[int, dict[str, str], bytes]
Endpoint = Callable[[Seen], Awaitable[Reply]]


async def _sdk(scope: Any, body: bytes, send: Any) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", over_http.REPLY_TYPE.encode())],
        }
    )
    async for response in served(pb.ExecuteRequest.FromString(body)):
        # Cut anywhere: an answer need not come in one piece.
        data = over_http.frame(response.SerializeToString())
        for part in (data[:1], data[1:]):
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


def endpoints(paths: Mapping[str, Endpoint]) -> Any:
    """An ASGI application: the SDK's own endpoint, and others."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == over_http.PATH:
            await _sdk(scope, bytes(body), send)
            return
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        status, out, reply = await paths[scope["path"]](Seen(scope["path"], headers, bytes(body)))
        raw = [(k.encode(), v.encode()) for k, v in out.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": reply})

    return app


@asynccontextmanager
async def over_the_web(paths: Mapping[str, Endpoint] | None = None) -> AsyncIterator[str]:
    """``paths`` are those of a service without the SDK."""
    async with serving_asgi(endpoints(paths or {}), leave=True) as address:
        yield address
