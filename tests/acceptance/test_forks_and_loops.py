"""Forks, loops and threads: gunicorn --preload, Celery prefork, two loops in a row, run_in_executor. Nothing hangs, and
nothing is committed locally that was meant to be part of a transaction."""

# ruff: noqa: PT012, SIM117 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import celery
import httpx
import pytest
import requests
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.acceptance import INSERT, ROOT, Client, Site, new_gid
from tests.support.acceptance_sync import SyncClient, soon, sync_client
from txcoord.testing.processes import Managed, free_port
from txcoord_client import Coordinator, NoTransaction

FORKED = "FORKED_AFTER_USE"


class Forking:
    """A parent that forks its workers."""

    def __init__(self, site: Site, folder: Path, *, parent_uses: bool) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._env = {
            "SERVICE_COORDINATOR": site.address,
            "SERVICE_DATABASES": json.dumps(
                {db.name: db.url.replace("+asyncpg", "+psycopg") for db in site.databases}
            ),
            "SERVICE_PARENT_USES": "1" if parent_uses else "",
        }

    def gunicorn(self) -> Managed:
        options = ["--preload", "--workers=2", "--threads=2", f"--bind=127.0.0.1:{self.port}"]
        return self._process(["gunicorn", *options, "tests.support.forked_service:application"])

    def celery(self) -> Managed:
        for name in ("queue", "results", "control"):
            (self.folder / name).mkdir()
        self._env["SERVICE_FOLDER"] = str(self.folder)
        options = ["--pool=prefork", "--concurrency=2", "--without-gossip", "--without-mingle"]
        return self._process(["celery", "-A", "tests.support.forked_service", "worker", *options])

    def _process(self, command: list[str]) -> Managed:
        return Managed(
            command[0],
            [sys.executable, "-m", *command],
            log=self.folder / f"{command[0]}.log",
            env={**self._env, "PYTHONPATH": str(ROOT)},
            address=f"127.0.0.1:{self.port}",
            cwd=ROOT,
        )


class Gone(Exception):
    """Of a child."""


@pytest.fixture(params=[False, True], ids=["parent idle", "parent used it"])
def forking(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Forking:
    return Forking(site, tmp_path, parent_uses=request.param)


@pytest.fixture
def running() -> Iterator[list[Managed]]:
    """What is put here is stopped in the end."""
    processes: list[Managed] = []
    yield processes
    for process in processes:
        process.stop()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).text == "ready"
    except requests.ConnectionError:
        return False


def started(process: Managed, running: list[Managed], ready: Any) -> None:
    running.append(process)
    process.start(wait_s=0)
    try:
        soon(lambda: ready() or not process.running, within=40)
    finally:
        assert process.running, process.tail()


# ---- forks ----


def test_gunicorn_preload(site: Site, forking: Forking, running: list[Managed], request: Any) -> None:
    used = "used" in request.node.callspec.id
    started(forking.gunicorn(), running, lambda: answers(forking.url))
    body = new_gid()
    replies = [requests.get(f"{forking.url}/{body}", timeout=20) for _ in range(4)]
    if used:
        assert {r.status_code for r in replies} == {500}
        assert all(FORKED in r.text for r in replies)
        assert site.counts(body) == (0, 0), "never done without the transaction"
    else:
        assert [r.text.split(" by ")[0] for r in replies] == ["written"] * 4
        assert site.counts(body) == (4, 4)


def test_gunicorn_preload_in_a_callers_transaction(
    site: Site, forking: Forking, running: list[Managed], request: Any
) -> None:
    used = "used" in request.node.callspec.id
    started(forking.gunicorn(), running, lambda: answers(forking.url))
    body = new_gid()
    with sync_client(site) as client, httpx.Client() as bare:
        transport = client.coord.httpx_transport(propagate_to="127.0.0.1")
        with httpx.Client(transport=transport) as http:
            if used:
                with pytest.raises(Exception, match=FORKED), client.coord.begin("order"):
                    reply = http.get(f"{forking.url}/{body}")
                    assert (reply.status_code, reply.json()["reason"]) == (500, FORKED)
            else:
                with client.coord.begin("order"):
                    assert http.get(f"{forking.url}/{body}").text.startswith("written")
        assert bare.get(forking.url).text == "ready"
    assert site.counts(body) == ((0, 0) if used else (1, 1))


def test_celery_prefork(site: Site, forking: Forking, running: list[Managed], request: Any) -> None:
    used = "used" in request.node.callspec.id
    started(forking.celery(), running, lambda: True)
    app = celery.Celery(broker="filesystem://", backend=f"file://{forking.folder}/results")
    queue = str(forking.folder / "queue")
    app.conf.broker_transport_options = {
        "data_folder_in": queue,
        "data_folder_out": queue,
        "control_folder": str(forking.folder / "control"),
    }
    body = new_gid()
    tasks = [app.send_task("write", [body]) for _ in range(3)]
    try:
        said = [task.get(timeout=50, propagate=False, interval=0.1) for task in tasks]
    except celery.exceptions.TimeoutError:
        pytest.fail(running[0].tail())
    finally:
        app.close()
    if used:
        assert all(FORKED in str(error) for error in said), said
        assert site.counts(body) == (0, 0)
    else:
        assert [str(s).split(" by ")[0] for s in said] == ["written"] * 3
        assert site.counts(body) == (3, 3)


def test_a_fork_inside_of_a_transaction_cannot_go_on_with_it(site: Site) -> None:
    """Its connections are the parent's: two processes on one connection would mix up both."""
    body = new_gid()
    with sync_client(site) as client:
        with client.coord.begin("order") as g:
            client.write(g, client.accounts, body)
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                try:
                    client.write(g, client.accounts, body)
                    os.write(writer, b"it worked")
                except BaseException as error:
                    os.write(writer, type(error).__name__.encode())
                finally:
                    os._exit(0)
            os.close(writer)
            assert os.waitpid(child, 0) == (child, 0)
            assert os.read(reader, 100) == b"ForkedAfterUse"
            os.close(reader)
            client.write(g, client.ledger, body)
    assert site.counts(body) == (1, 1)


@pytest.mark.parametrize("how", ["leaves it", "raises"])
def test_a_fork_that_leaves_the_block_ends_nothing(site: Site, how: str) -> None:
    """Neither ROLLBACK nor PREPARE is sent on the parent's connections."""
    body = new_gid()
    with sync_client(site) as client:
        reader, writer = os.pipe()
        parent = os.getpid()
        said = ""
        try:
            with client.coord.begin("order") as g:
                client.write(g, client.accounts, body)
                client.write(g, client.ledger, body)
                child = os.fork()
                if child:
                    os.close(writer)
                    assert os.waitpid(child, 0) == (child, 0)
                    assert os.read(reader, 100).decode() == (
                        "ForkedAfterUse" if how == "leaves it" else "Gone"
                    )
                    os.close(reader)
                elif how == "raises":
                    raise Gone
            said = "it committed"
        except BaseException as error:
            if os.getpid() == parent:
                raise
            said = type(error).__name__
        finally:
            if os.getpid() != parent:
                os.write(writer, said.encode())
                os._exit(0)
    assert site.counts(body) == (1, 1)


# ---- loops ----


@pytest.mark.parametrize("closes", [True, False])
def test_two_loops_in_a_row(site: Site, closes: bool) -> None:
    body = new_gid()
    engines = {db.name: create_async_engine(db.url, poolclass=NullPool) for db in site.databases}
    coord = Coordinator(site.address, resources=engines)

    async def work() -> str:
        async with coord.begin("again") as g:
            for engine in engines.values():
                async with g.xa(engine) as db:
                    await db.execute(text(INSERT), {"body": body})
        if closes:
            await coord.close()
        assert g.outcome is not None
        return g.outcome.state

    assert [asyncio.run(asyncio.wait_for(work(), 20)) for _ in range(3)] == ["COMMITTED"] * 3
    assert site.counts(body) == (3, 3)


async def test_the_synchronous_sdk_in_an_executor(site: Site) -> None:
    body = new_gid()
    with sync_client(site) as client:

        def work() -> str:
            with client.coord.begin("order") as g:
                client.write(g, client.accounts, body)
                client.write(g, client.ledger, body)
            assert g.outcome is not None
            return g.outcome.state

        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            done = await asyncio.gather(*(loop.run_in_executor(None, work) for _ in range(8)))
    assert set(done) == {"COMMITTED"}
    assert site.counts(body) == (8, 8)


# ---- threads ----


async def test_run_in_executor_leaves_the_transaction_behind_and_says_so(site: Site, client: Client) -> None:
    """asyncio does not take the context along there."""
    async with client.coord.begin("order"):
        with pytest.raises(NoTransaction):
            await asyncio.get_running_loop().run_in_executor(None, client.coord.xa, client.accounts)
        assert await asyncio.to_thread(lambda: client.coord.current) is client.coord.current


def test_a_thread_of_a_pool_joins_with_the_context_and_only_then(site: Site) -> None:
    body = new_gid()

    def work(client: SyncClient) -> None:
        with client.coord.xa(client.ledger) as db:
            db.execute(text(INSERT), {"body": body})

    with sync_client(site) as client, ThreadPoolExecutor(1) as pool:
        with client.coord.begin("order") as g:
            client.write(g, client.accounts, body)
            with pytest.raises(NoTransaction):
                pool.submit(work, client).result()
            inside = functools.partial(contextvars.copy_context().run, work, client)
            pool.submit(inside).result()
        assert site.counts(body) == (1, 1)
        with pytest.raises(NoTransaction):
            pool.submit(inside).result()  # The transaction that it remembers has ended.
    assert site.counts(body) == (1, 1)
