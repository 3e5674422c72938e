"""Every block of code in the docs runs, or is checked as far as it can be.

- ``python``: run, page by page, in the order of the page. Functions that a page only defines are called in ``THEN``,
  on the fixture ``txcoord`` and real PostgreSQL. Pages that need more have tests of their own (``ELSEWHERE``).
- ``sh``: our commands and scripts have these subcommands and options. Others are named in ``OTHERS``.
- ``toml``, ``sql``, ``mermaid``, ``ini``: see below.
- ``text``: what is printed, and pictures. A block without a language is refused.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import json
import re
import shlex
import tomllib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import click
import pytest
import typer.main
from sqlalchemy import Text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.support.databases import Databases, database_of
from tests.unit.test_docs import PAGES, ROOT, name_of
from txcoord.config import Settings
from txcoord.testing import Txcoord
from txcoord.testing.postgres import PostgresServer
from txcoord_client import OutcomeUnknown, Participant, Refused
from txcoord_client.protocol import postgresql

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PG_URL = re.compile(r"postgresql\+asyncpg://[\w.@-]+/(\w+)")
_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
ALL = sorted({*PAGES, *(ROOT / "examples").rglob("*.md")})
LANGUAGES = {"python", "sh", "sql", "toml", "ini", "json", "mermaid", "text", "http", "yaml"}
ELSEWHERE = {
    "README.md": "tests/acceptance/test_readme.py",
    "docs/quickstart.md": "tests/acceptance/test_readme.py",
    "docs/quickstart-databases.md": "tests/acceptance/test_readme.py",
    "docs/explanation/barrier.md": "tests/integration/test_barrier_page.py",
    "docs/how-to/curl.md": "tests/acceptance/test_http_docs.py",
    "docs/reference/participants.md": "tests/acceptance/test_participants_plain.py",
}
PYTHON = {"python", "pip", "pytest", "uvicorn"}
OTHERS = {
    "pip",
    "python3",
    "psql",
    "mariadb",
    "docker",
    "kill",
    "curl",
    "uv",
    "openssl",
    "export",
    "set",
    "cd",
    "jq",
    "sha256sum",
    "tr",
}


def blocks(page: Path, language: str) -> list[str]:
    return [
        code
        for found, code in _FENCE.findall(page.read_text(encoding="utf-8"))
        if found.split()[:1] == [language]
    ]


def having(language: str) -> Any:
    return pytest.mark.parametrize("page", [p for p in ALL if blocks(p, language)], ids=name_of)


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    said = [found for found, _ in _FENCE.findall(page.read_text(encoding="utf-8"))]
    assert not [s for s in said if s.split()[:1] == [] or s.split()[0] not in LANGUAGES]


def elsewhere(page: Path) -> bool:
    """Is its code run by another test?"""
    where = ELSEWHERE.get(name_of(page))
    if where is not None:
        assert page.name in (ROOT / where).read_text(encoding="utf-8")
    return where is not None


# ---- python ----


@dataclass
class World:
    """Where a page's code runs."""

    txcoord: Txcoord
    url: Callable[[str], str]
    """Of a database, by the name that the page calls it; a resource of that name, with the marker table."""
    sql: Callable[..., str]
    ns: dict[str, Any]


@pytest.fixture
def world(txcoord: Txcoord, request: pytest.FixtureRequest) -> World:
    made: dict[str, str] = {}

    def url(name: str) -> str:
        if name not in made:
            server: PostgresServer = request.getfixturevalue("pg18")
            databases: Databases = request.getfixturevalue("pg_database")
            made[name] = databases(server, "postgresql+asyncpg")
            for statement in (*postgresql.ddl(), postgresql.set_identity(uuid.uuid4().hex)):
                server.sql(statement, database=database_of(made[name]))
            txcoord.resource(name, made[name])
        return made[name]

    def sql(name: str, statement: str) -> str:
        server: PostgresServer = request.getfixturevalue("pg18")
        return server.sql(statement, database=database_of(url(name)))

    return World(txcoord, url, sql, {"__name__": "page"})


async def run(page: Path, world: World) -> None:
    """Run all blocks of a page, one after the other, as one module."""
    for number, code in enumerate(blocks(page, "python"), 1):
        code = _PG_URL.sub(lambda found: world.url(found[1]), code)
        compiled = compile(code, f"{name_of(page)}, block {number}", "exec", flags=_AWAIT, dont_inherit=True)
        result = eval(compiled, world.ns)
        if inspect.isawaitable(result):
            await result


async def tcc(w: World) -> None:
    w.sql("stock", "CREATE TABLE item (sku text, free int, held int); INSERT INTO item VALUES ('a', 5, 0)")
    w.txcoord.serve(w.ns["stock"])
    await w.ns["order"]("a", 2)
    w.txcoord.assert_committed()
    w.txcoord.assert_effects_once()
    with pytest.raises(Refused):
        await w.ns["order"]("a", 9)
    await w.txcoord.settle()
    assert w.sql("stock", "SELECT free, held FROM item") == "3|0"
    await w.ns["engine"].dispose()


async def saga(w: World) -> None:
    w.sql("ship", "CREATE TABLE parcel (order_id text, gone bool)")
    w.txcoord.serve(w.ns["ship"])
    w.txcoord.stub("shop")
    assert await w.ns["deliver"]("order-1") == {"order": "order-1"}
    await w.ns["order"]("order-2")
    w.txcoord.fail("ship.callback", times=2)
    await w.ns["deliver_and_forget"]("order-3")
    await w.txcoord.settle()
    assert [call.answer for call in w.txcoord.calls("ship.shipped")] == ["failed", "failed", "done"]
    w.txcoord.assert_committed()
    w.txcoord.assert_effects_once()
    assert w.sql("ship", "SELECT order_id, gone FROM parcel ORDER BY 1") == "order-1|t\norder-2|\norder-3|t"
    await w.ns["engine"].dispose()


async def which_kind(w: World) -> None:
    from txcoord_client import Participant
    from txcoord_client import saga as flow

    w.sql("bank", "CREATE TABLE account (id int, cents int); INSERT INTO account VALUES (1, 900)")
    shop = Participant("shop")

    @shop.tcc
    class Reserve:
        async def attempt(self, db: Any, *, n: int) -> None: ...
        async def confirm(self, db: Any) -> None: ...
        async def cancel(self, db: Any) -> None: ...

    @shop.action
    async def pack(db: Any, *, order: str) -> None: ...

    @pack.compensate
    async def unpack(db: Any) -> None: ...

    w.txcoord.stub("shop")
    bank = create_async_engine(w.url("bank"))
    async with w.txcoord.coordinator(resources={"bank": bank}) as coord:
        await w.ns["checkout"](coord, bank, Reserve, flow("ship").step(pack), "order-1", 200)
        w.txcoord.refuse("shop.action", "NO_COURIER")
        with pytest.raises(Refused):
            await w.ns["checkout"](coord, bank, Reserve, flow("ship").step(pack), "order-2", 200)
        await w.txcoord.settle()
    w.txcoord.assert_committed("order-1")
    w.txcoord.assert_aborted("order-2", reason="NO_COURIER")
    w.txcoord.assert_effects_once()
    assert w.sql("bank", "SELECT cents FROM account") == "700"
    await bank.dispose()


async def with_an_engine(w: World, *calls: Callable[[Any, Any], Awaitable[Any]]) -> None:
    engine = create_async_engine(w.url("orders"))
    async with w.txcoord.coordinator(resources={"orders": engine}) as coord:
        for call in calls:
            await call(coord, engine)
    await engine.dispose()


async def retry_with_gid(w: World) -> None:
    async def pay(coord: Any, engine: Any) -> None:
        assert await w.ns["pay"](coord, engine, "order-1") == "done"
        assert await w.ns["pay"](coord, engine, "order-1") == "done before"
        assert await w.ns["checkout"](coord, "order-2") == {"receipt": 7}
        assert await w.ns["checkout"](coord, "order-2") == {"receipt": 7}

    await with_an_engine(w, pay)


async def outcome_unknown(w: World) -> None:
    w.sql("orders", "CREATE TABLE t (n int)")

    async def pay(coord: Any, engine: Any) -> None:
        w.txcoord.crash_before("decision", restart=False)
        with pytest.raises(OutcomeUnknown):
            await w.ns["pay"](coord, engine, "order-1")
        w.txcoord.restart()

    await with_an_engine(w, pay)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(Text, primary_key=True)


def _kept(make: Any, into: list[Any], url: str) -> Any:
    into.append(make(url))
    return into[-1]


async def sessions_and_drivers(w: World) -> None:
    w.sql("orders", "CREATE TABLE orders (id text); CREATE TABLE audit (what text)")

    async def all_of_it(coord: Any, engine: Any) -> None:
        await w.ns["place"](coord, engine, Order(id="order-41"))
        async with coord.begin():
            await w.ns["debit"](coord, engine, 1, 100)
            await w.ns["audit"](coord, engine, "a debit")

    await with_an_engine(w, all_of_it)
    mains = [
        code for code in blocks(ROOT / "docs/how-to/sessions-and-drivers.md", "python") if "def main" in code
    ]
    for code in mains:
        ns: dict[str, Any] = {}
        exec(code, ns)
        engines: list[Any] = []
        ns["create_engine"] = functools.partial(_kept, ns.get("create_engine"), engines)
        url = w.url("orders").replace("+asyncpg", "")
        w.sql("orders", "DELETE FROM orders WHERE id = 'order-42'")
        main = ns["main"]
        if inspect.iscoroutinefunction(main):
            await main(url)
        else:
            await asyncio.to_thread(main, url.replace("postgresql://", "postgresql+psycopg://"))
        for engine in engines:
            engine.dispose()
        assert w.sql("orders", "SELECT count(*) FROM orders WHERE id = 'order-42'") == "1"
    assert w.sql("orders", "SELECT what FROM audit") == "a debit"


async def readme_of_the_sdk(w: World) -> None:
    w.sql("accounts", "CREATE TABLE account (id int, balance int); INSERT INTO account VALUES (1, 100)")
    w.sql("orders", "CREATE TABLE orders (id text, cents int)")
    await w.ns["buy"]("order-1", 1, 30)
    w.txcoord.assert_committed("order-1")
    assert (
        w.sql("accounts", "SELECT balance FROM account"),
        w.sql("orders", "SELECT cents FROM orders"),
    ) == ("70", "30")
    await w.ns["accounts"].dispose()
    await w.ns["orders"].dispose()


shop = Participant("shop")


@shop.tcc
class Reserve:
    async def attempt(self, db: Any) -> None: ...
    async def confirm(self, db: Any) -> None: ...
    async def cancel(self, db: Any) -> None: ...


GIVEN: dict[str, Callable[[World], dict[str, Any]]] = {
    "docs/concepts.md": lambda w: {"coord": w.txcoord.coordinator()},
    "docs/how-to/saga.md": lambda w: {"Reserve": Reserve, "Coupon": Reserve},
}
"""What a page's code has not made itself."""


async def the_tests_of_the_page(w: World) -> None:
    tests = [f for name, f in w.ns.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        with Txcoord() as its_own:
            await test(its_own)
            its_own.assert_all_used()


THEN: dict[str, Callable[[World], Awaitable[None]]] = {
    "clients/python/README.md": readme_of_the_sdk,
    "docs/which-kind.md": which_kind,
    "docs/how-to/outcome-unknown.md": outcome_unknown,
    "docs/how-to/retry-with-gid.md": retry_with_gid,
    "docs/how-to/saga.md": saga,
    "docs/how-to/sessions-and-drivers.md": sessions_and_drivers,
    "docs/how-to/tcc.md": tcc,
    "docs/how-to/test-your-services.md": the_tests_of_the_page,
}
"""What is then done with what it defines. The other pages only define what the acceptance tests of that feature do."""


@having("python")
async def test_python(page: Path, world: World) -> None:
    if elsewhere(page):
        return
    if name_of(page) in GIVEN:
        world.ns.update(GIVEN[name_of(page)](world))
    await run(page, world)
    if name_of(page) in THEN:
        await THEN[name_of(page)](world)


# ---- shell ----


def _commands(code: str) -> list[list[str]]:
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"^[A-Z_]+=", words[0]):
            words = words[1:]
        pieces: list[list[str]] = [[]]
        for word in words:
            if word in ("|", "&&", ";"):
                pieces.append([])
            else:
                pieces[-1].append(word)
        found += [piece for piece in pieces if piece]
    return found


def _check_txcoord(arguments: list[str]) -> None:
    """It has this subcommand, and these options."""
    from txcoord.cli import app

    command: click.Command = typer.main.get_command(app)
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        name = arguments.pop(0)
        assert name in command.commands, name  # type: ignore[attr-defined]
        command = command.commands[name]  # type: ignore[attr-defined]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    assert not [a for a in arguments if a.startswith("-") and a.partition("=")[0] not in known], arguments


@functools.cache
def _behind_scripts() -> str:
    """The code in which their options are."""
    places = ("scripts/lib", "examples", "tests/sim", "tests/faults", "tests/record", "tests/model")
    return "".join(p.read_text(encoding="utf-8") for place in places for p in (ROOT / place).rglob("*.py"))


@having("sh")
def test_shell(page: Path) -> None:
    if name_of(page) == "docs/how-to/curl.md" and elsewhere(page):
        return
    for code in blocks(page, "sh"):
        for program, *arguments in _commands(code):
            name = program.rpartition("/")[2]
            if name == "txcoord":
                _check_txcoord(arguments)
            elif program.startswith(("./scripts/", "scripts/")):
                known = (ROOT / "scripts" / name).read_text(encoding="utf-8") + _behind_scripts()
                options = [a.partition("=")[0] for a in arguments if a.startswith("--")]
                assert not [o for o in options if o not in known], (program, options)
                paths = [a for a in arguments if a.startswith("tests/")]
                assert all((ROOT / a.partition("::")[0]).exists() for a in paths)
            elif program.startswith(".venv/bin/"):
                assert name in PYTHON
            else:
                assert name in OTHERS | PYTHON, program


# ---- the rest ----


@having("toml")
def test_toml(page: Path) -> None:
    """It is a settings file."""
    for code in blocks(page, "toml"):
        found = tomllib.loads(code)
        unknown = found.keys() - Settings.model_fields.keys()
        assert not unknown


@having("json")
def test_json(page: Path) -> None:
    """It is JSON."""
    for code in blocks(page, "json"):
        json.loads(code)


@having("sql")
async def test_sql(page: Path, pg18: PostgresServer) -> None:
    """PostgreSQL's is run, and taken back; MariaDB's has users that PostgreSQL has not."""
    for code in blocks(page, "sql"):
        if "@'%'" in code:
            continue
        connection = await asyncpg.connect(pg18.url("postgres", "postgresql"))
        transaction = connection.transaction()
        await transaction.start()
        try:
            if "GRANT app" in code:
                await connection.execute("CREATE ROLE app")
            await connection.execute(code)
        finally:
            await transaction.rollback()
            await connection.close()


@having("mermaid")
def test_mermaid(page: Path) -> None:
    """Those from the code are current (tests/unit/test_docs.py); others begin as a diagram does, and are balanced."""
    for code in blocks(page, "mermaid"):
        assert re.match(r"(stateDiagram-v2|flowchart (TD|LR)|sequenceDiagram)\n", code)
        assert all(code.count(a) == code.count(b) for a, b in ("[]", "{}", "()"))
