"""Two participants for the acceptance tests: stock on the first database of a site, coupons on the second.

What each does it writes into its own database as a note, ``<op> <operation> <body>``, so that what is done twice is
there twice. What it answers, a test says beforehand.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.support.acceptance import INSERT, Db, Site
from tests.support.acceptance_http import serving_asgi
from txcoord_client import Coordinator, Participant, Pending, Refused

Step = Callable[[], Any]


@dataclass
class Hold:
    """What a try gives back."""

    body: str
    n: int


@dataclass
class Script:
    """What a participant's next calls do, and which it has had."""

    next: dict[str, list[Step]] = field(default_factory=lambda: defaultdict(list))
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Op and body, in order."""
    headers: list[dict[str, str]] = field(default_factory=list)

    async def play(self, op: str, body: str) -> None:
        self.seen.append((op, body))
        steps = self.next[f"{op} {body}"] or self.next[op]
        if steps:
            done = steps.pop(0)()
            if asyncio.iscoroutine(done) or isinstance(done, asyncio.Future):
                await done

    def ops(self, body: str) -> list[str]:
        """What was called for one body, in order."""
        return [op for op, b in self.seen if b == body]


def refuse(reason: str = "OUT_OF_STOCK") -> Step:
    def step() -> None:
        raise Refused(reason, "there is no more", left=0)

    return step


def pend(seconds: float = 0.05) -> Step:
    def step() -> None:
        raise Pending(retry_after=seconds)

    return step


def fail() -> None:
    raise RuntimeError("this service has a bug")


class Service:
    """One participant with one TCC operation, ``Reserve``."""

    def __init__(self, name: str, db: Db) -> None:
        self.name = name
        self.db = db
        self.script = Script()
        self.engine: AsyncEngine = create_async_engine(db.url, pool_size=10, max_overflow=0)
        self.participant = Participant(name, db=self.engine)
        self.reserve = self._reserve()

    def _reserve(self) -> Any:
        script = self.script

        async def note(db: Any, op: str, body: str) -> None:
            await db.execute(text(INSERT), {"body": f"{op} {body}"})

        class Reserve:
            async def attempt(self, db: Any, *, body: str, n: int = 1) -> Hold:
                await note(db, "try", body)
                await script.play("try", body)
                return Hold(body, n)

            async def confirm(self, db: Any, hold: Hold) -> None:
                await note(db, "confirm", hold.body)
                await script.play("confirm", hold.body)

            async def cancel(self, db: Any, hold: Hold) -> None:
                await note(db, "cancel", hold.body)
                await script.play("cancel", hold.body)

        return self.participant.tcc(Reserve)

    def action(self, name: str, *, undo: bool = True, takes: str = "") -> Any:
        """A step of a saga. It returns its name and what the step before, called ``takes``, returned."""
        script = self.script

        async def work(db: Any, op: str, body: str) -> None:
            await db.execute(text(INSERT), {"body": f"{op} {name} {body}"})
            await script.play(f"{op} {name}", body)

        if takes:

            async def act(db: Any, **given: Any) -> Any:
                await work(db, "action", given["body"])
                return {"body": given["body"], "step": name, "saw": given[takes]}

        else:

            async def act(db: Any, **given: Any) -> Any:
                await work(db, "action", given["body"])
                return {"body": given["body"], "step": name}

        parameters = [inspect.Parameter("db", inspect.Parameter.POSITIONAL_ONLY)]
        parameters += [inspect.Parameter(p, inspect.Parameter.KEYWORD_ONLY) for p in ("body", takes) if p]
        act.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        act.__name__ = name
        action = self.participant.action(act)
        if undo:

            async def compensate(db: Any, result: dict[str, Any]) -> None:
                await work(db, "compensate", result["body"])

            action.compensate(compensate)
        return action

    def message(self, name: str = "told") -> Any:
        """One that takes messages."""
        script = self.script

        async def take(db: Any, *, body: str) -> None:
            await db.execute(text(INSERT), {"body": f"message {name} {body}"})
            await script.play(f"message {name}", body)

        take.__name__ = name
        return self.participant.message(take)

    def steps(self, body: str) -> list[str]:
        """What its steps have done for one body, in the order in which they were called."""
        called = [op for op, b in self.script.seen if b == body]
        return [op for op in dict.fromkeys(called) for _ in range(self.db.count(f"{op} {body}"))]

    def notes(self, body: str) -> list[str]:
        """What it has done for one body, for everybody to see."""
        ops = ("try", "confirm", "cancel", "action", "compensate")
        return [op for op in ops for _ in range(self.db.count(f"{op} {body}"))]


class Shop:
    """Both, on one gRPC server, and the SDK of whoever calls them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.stock = Service("stock", site.accounts)
        self.coupons = Service("coupons", site.ledger)
        self.server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def services(self) -> tuple[Service, Service]:
        return self.stock, self.coupons

    async def serve(self) -> None:
        """Start, on the port that it had before."""
        self.server = grpc.aio.server()
        self.stock.participant.add_to(self.server, self.coupons.participant)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def leave(self) -> None:
        """As if it had died."""
        if self.server is not None:
            await self.server.stop(0)
            self.server = None

    @property
    def address(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def coordinator(self, **options: Any) -> Coordinator:
        return Coordinator(
            self.site.address,
            participants={"stock": self.address, "coupons": self.address},
            resources={"accounts": self.stock.engine, "ledger": self.coupons.engine},
            **options,
        )

    def notes(self, body: str) -> tuple[list[str], list[str]]:
        """What both have done for one body."""
        return self.stock.notes(body), self.coupons.notes(body)


class WebShop(Shop):
    """Both, in one application of FastAPI."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._stack = AsyncExitStack()

    async def serve(self) -> None:
        app = FastAPI()
        app.include_router(self.stock.participant.fastapi(others=[self.coupons.participant]), prefix="/shop")
        url = await self._stack.enter_async_context(serving_asgi(app, port=self.port, leave=True))
        self.port = int(url.rpartition(":")[2])

    async def leave(self) -> None:
        await self._stack.aclose()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/shop"


@asynccontextmanager
async def shop_on(site: Site, kind: type[Shop] = Shop) -> AsyncIterator[Shop]:
    """Both services, closed in the end."""
    shop = kind(site)
    await shop.serve()
    try:
        yield shop
    finally:
        await shop.leave()
        for service in shop.services:
            await service.engine.dispose()
