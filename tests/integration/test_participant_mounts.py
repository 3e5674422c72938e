"""A participant, of either kind, behind ASGI applications: the same as a caller sees it, wherever it is mounted."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.test import override_settings
from django.urls import include, path
from fastapi import Depends, FastAPI, Header, HTTPException
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tests.support.acceptance_http import serving_asgi
from tests.support.callers import SDK, TX, answers, confirms, request
from txcoord.adapters.calling.any_ import AnyCaller
from txcoord.core.action import Action, Answer, AnswerKind, Op
from txcoord.ports import NotAnswered, Probed
from txcoord_client import _serving_http
from txcoord_client._answers import Answer as Said
from txcoord_client._answers import Call
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client.protocol import over_http
from txcoord_client.sync import _serving_http as sync_http


def _committed(tx_id: str, branch: str) -> pb.QueryBackAnswer:
    return pb.QueryBackAnswer(tx_id=tx_id, branch=branch, verdict=pb.QUERY_BACK_VERDICT_COMMITTED)


class Echo:
    """Answers the payload; one call waits for others."""

    name = "stock"
    concurrency = 20
    _tokens = ()

    def __init__(self) -> None:
        self._operations = {SDK.operation: None}
        self.gone = threading.Event()
        self.running = 0
        self.most = 0

    async def query_back(self, tx_id: str, branch: str, identity: str) -> pb.QueryBackAnswer:
        return _committed(tx_id, branch)

    def under_way(self, call: Call) -> Said | None:
        return None

    async def execute(self, call: Call) -> Said:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await (asyncio.Event().wait() if call.branch == "slow" else asyncio.sleep(0))
        finally:
            self.running -= 1
            self.gone.set()
        return Said.done(call.payload)


class SyncEcho(Echo):
    def execute(self, call: Call) -> Said:  # type: ignore[override]
        return Said.done(call.payload)

    def query_back(self, tx_id: str, branch: str, identity: str) -> pb.QueryBackAnswer:  # type: ignore[override]
        return _committed(tx_id, branch)


async def shop(_: Any) -> PlainTextResponse:
    return PlainTextResponse("a shop")


def check(x_key: Annotated[str, Header()] = "") -> None:
    if x_key != "7":
        raise HTTPException(403)


def apps(http: Any, echo: Any) -> dict[str, tuple[Any, str]]:
    """Applications, and the paths of their participant's address."""
    mounted = Starlette(routes=[Route("/shop", shop), Mount("/stock", http.asgi([echo], None))])
    around = http.asgi([echo], Starlette(routes=[Route("/shop", shop)]))
    api = FastAPI()
    api.include_router(http.fastapi([echo]), prefix="/api")
    behind = Starlette(routes=[Mount("/stock", http.asgi([echo], None))])

    async def passes(asked: Any, call_next: Any) -> Any:
        return await call_next(asked)

    behind.add_middleware(BaseHTTPMiddleware, dispatch=passes)
    return {
        "alone": (http.asgi([echo], None), ""),
        "mounted": (mounted, "/stock"),
        "around": (around, ""),
        "fastapi": (api, "/api"),
        "behind a middleware": (behind, "/stock"),
    }


@pytest.fixture
async def caller() -> AsyncIterator[AnyCaller]:
    caller = AnyCaller(node="n1")
    yield caller
    await caller.close()


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("which", apps(_serving_http, Echo()))
async def test_mounts(which: str, kind: str, caller: AnyCaller) -> None:
    http, echo = (_serving_http, Echo()) if kind == "async" else (sync_http, SyncEcho())
    app, below = apps(http, echo)[which]
    async with serving_asgi(app, leave=True, lifespan="auto") as url:
        found = await answers(caller, url + below, *confirms(30))
        assert set(found.values()) == {Answer(AnswerKind.DONE, b"p")}
        assert await caller.query_back(url + below, "stock", TX, 5.0) is Probed.COMMITTED
        with pytest.raises(NotAnswered, match="NO_VERDICT: which participant is asked"):
            await caller.query_back(url + below, "coupons", TX, 5.0)
        async with httpx.AsyncClient(base_url=url) as web:
            if which in ("mounted", "around"):
                assert (await web.get("/shop")).text == "a shop"
            assert (await web.get(below + over_http.PATH)).status_code == 405
            assert (await web.get(below + over_http.QUERY_BACK_PATH)).status_code == 405
            assert (await web.get("/nothing")).status_code == 404
    if kind == "async":
        assert echo.most <= echo.concurrency


async def test_answers_come_one_by_one_and_hung_calls_end_with_their_caller(caller: AnyCaller) -> None:
    echo = Echo()
    async with serving_asgi(_serving_http.asgi([echo], None), leave=True) as url:
        asked = [request("1", Op.CONFIRM), request("slow", Op.CONFIRM)]
        found: dict[str, Answer] = {}
        async for request_, answer in caller.call(url, asked, 0.5):
            if not found:
                assert echo.running == 1, "the other one is still on its way"
            found[request_.branch.id] = answer
        assert found["1"].kind is AnswerKind.DONE
        assert found["slow"].reason.startswith("TIMED_OUT")
        while echo.running:  # noqa: ASYNC110 - to the test's own limit
            await asyncio.sleep(0.01)


async def test_what_a_router_requires_is_required(caller: AnyCaller) -> None:
    app = FastAPI()
    app.include_router(_serving_http.fastapi([Echo()]), dependencies=[Depends(check)])
    async with serving_asgi(app, leave=True) as url:
        found = await answers(caller, url, request("1", Op.CONFIRM))
        assert found["1"].reason.startswith("HTTP_403")
        found = await answers(
            caller,
            url,
            request("1", Op.CONFIRM, Action("/txcoord/v1/execute", headers={"x-key": "7"})),
        )
        assert found["1"].reason.startswith("HTTP_415")


async def test_an_asynchronous_view_of_django(caller: AnyCaller) -> None:
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="", SECRET_KEY="x", DATABASES={}, DEBUG=False)
    urls: Any = types.ModuleType("urls")
    urls.urlpatterns = [path("stock/", include(_serving_http.django_urls([Echo()])))]
    with override_settings(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"]):
        async with serving_asgi(get_asgi_application(), leave=True) as url:
            found = await answers(caller, f"{url}/stock", *confirms(30))
            assert set(found.values()) == {Answer(AnswerKind.DONE, b"p")}
            assert await caller.query_back(f"{url}/stock", "", TX, 5.0) is Probed.COMMITTED
            async with httpx.AsyncClient(base_url=url) as web:
                assert (await web.get(f"/stock{over_http.PATH}")).status_code == 405
