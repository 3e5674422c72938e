"""The HTTP API for tests: a node in this process, a client that checks every answer against the API's description, and
a service that knows nothing of us as participant."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web
from openapi_schema_validator import OAS31Validator

from txcoord.adapters.sql.migrate import migrate
from txcoord.config import Settings
from txcoord.wiring import Node

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = json.loads((ROOT / "txcoord" / "api" / "http" / "openapi.json").read_text())


@asynccontextmanager
async def http_node(folder: Path, **settings: Any) -> AsyncIterator[Node]:
    """A node with a log of its own."""
    url = f"sqlite+aiosqlite:///{folder}/log.db"
    await migrate(url)
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "http_address": "127.0.0.1:0",
        "log": {"url": url},
        "backoff": {"first": "20ms", "cap": "100ms"},
        "node": {"drain_timeout": "200ms"},
        "targets": {"allow": "*"},
        **settings,
    }
    async with Node(Settings(**values)) as node:
        yield node


def check(method: str, path: str, answer: httpx.Response) -> None:
    """An answer is as the API's description says."""
    for template, item in DOCUMENT["paths"].items():
        if not re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) or method.lower() not in item:
            continue
        told = item[method.lower()]["responses"]
        content = told.get(str(answer.status_code), DOCUMENT["components"]["responses"]["problem"])["content"]
        kind, told_as = answer.headers["content-type"], next(iter(content))
        assert kind == told_as, answer.text
        schema = {**content[kind]["schema"], "components": DOCUMENT["components"]}
        errors = [
            f"{error.json_path}: {error.message}"
            for error in OAS31Validator(schema).iter_errors(answer.json())
        ]
        assert not errors, errors


class Api:
    """What curl is to a person."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, trust_env=False, timeout=20)

    async def call(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """One request. The answer is as the API is described."""
        answer = await self.http.request(method, path, json=body, headers=headers)
        check(method, path.partition("?")[0], answer)
        return answer

    async def get(self, path: str, expect: int = 200, **headers: str) -> Any:
        answer = await self.call("GET", path, headers=headers)
        assert answer.status_code == expect, answer.text
        return answer.json()

    async def post(self, path: str, body: Any = None, expect: int = 200, **headers: str) -> Any:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.call("POST", path, {} if body is None else body, headers=names)
        assert answer.status_code == expect, answer.text
        return answer.json()


@asynccontextmanager
async def api_of(node: Node) -> AsyncIterator[Api]:
    api = Api(node.http_url)
    try:
        yield api
    finally:
        await api.http.aclose()


@dataclass
class PlainService:
    """Any service with endpoints, without the SDK: ``POST /<name>``."""

    target: str = ""
    calls: list[tuple[str, Any, Mapping[str, str]]] = field(default_factory=list)
    """Path, JSON and headers of each call."""
    refuse: set[str] = field(default_factory=set)
    """Paths that say no."""
    fail: set[str] = field(default_factory=set)
    """Paths that have a bug."""
    answers: Callable[[Any], Any] | None = None
    """Instead: what it says to what it is given."""

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.calls]

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.calls.append((request.path, await self._json(request), request.headers))
        if request.path in self.refuse:
            return web.json_response({"reason": "SOLD_OUT"}, status=409)
        if request.path in self.fail:
            return web.Response(status=500)
        if self.answers is not None and request.path == "/txcoord/v1/query-back":
            return web.json_response(await asyncio.to_thread(self.answers, self.calls[-1][1]))
        return web.Response(text=json.dumps({"did": request.path}) + "\n", content_type="application/json")

    @staticmethod
    async def _json(request: web.BaseRequest) -> Any:
        return json.loads(await request.read())

    def step(self, number: str, name: str, *after: str, **more: Any) -> dict[str, Any]:
        """A step of a saga."""
        action = {
            "target": self.target,
            "operation": f"/{name}",
            "abortOperation": f"/un{name}",
            "payloadJson": {"order": 7},
            **more,
        }
        return {"id": number, "kind": "KIND_SAGA", "name": name, "after": list(after), "action": action}

    def tcc(self, number: str) -> dict[str, Any]:
        """A branch whose try the caller makes."""
        action = {
            "target": self.target,
            "operation": "/reserve",
            "commitOperation": "/confirm",
            "abortOperation": "/cancel",
            "payloadJson": {"sku": "book", "n": 1},
        }
        return {"id": number, "kind": "KIND_TCC", "action": action}


@asynccontextmanager
async def plain_service() -> AsyncIterator[PlainService]:
    """It, listening."""
    service = PlainService()
    runner = web.ServerRunner(web.Server(service.answer, access_log=None))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.target = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield service
    finally:
        await runner.cleanup()
