"""Bad input of whoever runs the coordinator: settings, databases and a log that are not as they must be."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.conftest import NewSite
from tests.support.acceptance import Site, client_of, eventually, new_gid
from tests.support.acceptance_wire import refused, told, wire_to
from tests.support.databases import Databases, database_of
from txcoord.adapters.sql.schema import VERSION_TABLE
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import NotReady, coordinator, run_txcoord, serving
from txcoord_client import Unavailable
from txcoord_client._pb import common_pb2 as c


async def ended(site: Site) -> tuple[int | None, str]:
    """Start the coordinator, which is to end by itself: how, and with what last line."""
    site.coordinator.kill9()
    site.coordinator.log.unlink(missing_ok=True)
    site.coordinator.start(wait_s=0)
    code = await asyncio.to_thread(site.coordinator.wait, 30)
    return code, site.coordinator.tail().strip().rsplit("\n", 1)[-1]


# ---- resources ----


async def test_swapped_urls_of_the_coordinator(new_site: NewSite) -> None:
    """It would answer "never committed" from the wrong database: it does not start."""
    site = new_site(valves=False)
    env = site.coordinator.env
    names = ("TXCOORD_RESOURCES__accounts__URL", "TXCOORD_RESOURCES__ledger__URL")
    env[names[0]], env[names[1]] = env[names[1]], env[names[0]]
    code, line = await ended(site)
    assert code == 3
    assert "RESOURCE_MISMATCH: resource 'accounts'" in line
    assert "swapped" in line
    with pytest.raises(NotReady, match="swapped"):
        site.txcoord("resource", "check")
    # One database under two names would let one scanner judge what is the other's.
    env[names[0]] = env[names[1]]
    code, line = await ended(site)
    assert code == 3
    assert "are the same database" in site.coordinator.tail()


async def test_wrong_credentials_of_the_coordinator(new_site: NewSite) -> None:
    site = new_site(start=False, valves=False)
    env = site.coordinator.env
    name = "TXCOORD_RESOURCES__ledger__URL"
    good = env[name]
    run_txcoord("migrate", env=env, cwd=site.folder)
    env[name] = good.replace("postgres@", "nobody_knows:hunter2@")
    with pytest.raises(NotReady, match='role "nobody_knows" does not exist') as caught:
        site.txcoord("resource", "check", "ledger", "--fix")
    assert "RESOURCE_CREDENTIALS" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    run_txcoord("resource", "check", "accounts", "--fix", env=env, cwd=site.folder)
    # It serves the others, says what is wrong, and goes on when it is mended.
    site.coordinator.start()
    assert 'RESOURCE_CREDENTIALS: cannot log in: role "nobody_knows"' in site.txcoord("resource", "list")
    async with wire_to(site.address) as wire:
        [info] = [r for r in wire.hello.resources if r.name == "ledger"]
        assert (info.available, info.identity) == (False, "")
        assert "RESOURCE_CREDENTIALS" in info.problem
    body = new_gid()
    async with client_of(site) as client:
        async with client.coord.begin("pay") as g:
            await client.write(g, client.accounts, body)
        assert site.counts(body) == (1, 0)
    assert "hunter2" not in site.coordinator.tail(10**6)


# ---- the log ----


async def test_log_database_down_at_the_start(new_site: NewSite, tmp_path: Path) -> None:
    site = new_site(start=False, log_url="postgresql://txcoord:hunter2@127.0.0.1:1/log")
    code, line = await ended(site)
    assert code == 4
    assert "LOG_UNAVAILABLE: the log cannot be used" in line
    assert "hunter2" not in site.coordinator.tail()
    with pytest.raises(NotReady, match="exit 4"):
        run_txcoord("migrate", env=site.coordinator.env, cwd=tmp_path)


async def test_log_that_was_never_migrated(
    new_site: NewSite, pg18: PostgresServer, pg_database: Databases
) -> None:
    site = new_site(start=False)
    code, line = await ended(site)
    assert code == 5
    assert "run `txcoord migrate`" in line
    assert not (site.folder / "coordinator.db").exists()
    site.coordinator.env["TXCOORD_LOG__URL"] = pg_database(pg18)
    code, line = await ended(site)
    assert code == 5
    assert "txcoord migrate" in line


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_log_with_a_newer_schema(
    new_site: NewSite, pg18: PostgresServer, pg_database: Databases, engine: str
) -> None:
    """Of a later version: this one says so, and neither works on it nor "mends" it."""
    url = pg_database(pg18) if engine == "postgres" else None
    site = new_site(start=False, log_url=url)
    run_txcoord("migrate", env=site.coordinator.env, cwd=site.folder)
    statement = f"UPDATE {VERSION_TABLE} SET version_num = '9999'"
    if url is not None:
        pg18.sql(statement, database_of(url))
    else:
        db = sqlite3.connect(site.folder / "coordinator.db", isolation_level=None)
        db.execute(statement)
        db.close()
    code, line = await ended(site)
    assert code == 5
    assert "SCHEMA_MISMATCH" in line
    assert "newer" in line
    with pytest.raises(NotReady, match="newer"):
        run_txcoord("migrate", env=site.coordinator.env, cwd=site.folder)


async def test_two_coordinators_on_one_sqlite_log(new_site: NewSite) -> None:
    site = new_site()
    second = coordinator(
        site.folder, resources={}, name="second", log_url=site.coordinator.env["TXCOORD_LOG__URL"]
    )
    second.start(wait_s=0)
    assert await asyncio.to_thread(second.wait, 30) == 4
    assert f"LOG_IN_USE: the log {site.folder}/coordinator.db is in use" in second.tail()
    # And on one address.
    third = coordinator(site.folder, resources={}, name="third", port=int(site.address.rsplit(":", 1)[1]))
    run_txcoord("migrate", env=third.env, cwd=site.folder)
    third.start(wait_s=0)
    assert await asyncio.to_thread(third.wait, 30) == 4
    assert "ADDRESS_IN_USE" in third.tail()


async def test_wrong_settings_are_told_all_at_once(new_site: NewSite) -> None:
    site = new_site(start=False)
    site.coordinator.env.update(
        TXCOORD_RECOVERY__GRACE="soon", TXCOORD_NO_SUCH_SETTING="1", TXCOORD_LISTEN="0.0.0.0:7070"
    )
    code, _ = await ended(site)
    assert code == 3
    for part in ("grace", "TXCOORD_NO_SUCH_SETTING", "insecure_listen"):
        assert part.lower() in site.coordinator.tail().lower()


async def test_log_database_killed_in_flight_and_back(
    pg_server: Callable[..., PostgresServer], new_site: NewSite
) -> None:
    """Clear refusals meanwhile; what was on its way is done once when it is back."""
    log = pg_server()
    site = new_site(log_url=log.url())
    async with client_of(site, call_timeout=1) as client, wire_to(site.address) as wire:
        gid = new_gid()
        waiting = wire.tx(new_gid())
        await waiting.begin()
        branch = waiting.prepare(site.accounts, "1", waiting.gid)
        async with client.coord.begin("pay", gid=gid) as g:
            await client.write_both(g, gid)
            log.kill9()
            with refused("UNAVAILABLE", "LOG_UNAVAILABLE") as refusal:
                await waiting.commit(branch)
            assert not refusal.definite, "it may have been written all the same"
            with pytest.raises(Unavailable) as caught:
                async with client.coord.begin("pay", gid=new_gid(), new=True):
                    pytest.fail("it was begun")
            assert not caught.value.definite
            # Without a gid begin needs no log.
            async with client.coord.begin("pay", new=True):
                pass
            await eventually(lambda: not serving(site.address), what="it says that it is not ready")
            log.start()
        assert g.outcome is not None
        assert (g.outcome.state, site.counts(gid)) == ("COMMITTED", (1, 1))
        await eventually(lambda: serving(site.address), what="it is ready again")
        assert told(await waiting.commit(branch)) == ("COMMITTED", "client", "")
        assert site.counts(waiting.gid) == (1, 0)

        # While it is away, what was decided goes on; and a caller who runs out of time is told so.
        body = new_gid()
        tx = wire.tx()
        branches = [tx.prepare(site.accounts, "1", body), tx.prepare(site.ledger, "2", body)]
        with site.valves["ledger"].holding(tx.tx_id) as held:
            assert told(await tx.commit(*branches, wait=c.WAIT_LEVEL_DECIDED))[0] == "COMMITTING"
            await held.reached()
            log.kill9()
        await eventually(lambda: site.counts(body) == (1, 1))
        log.start()
        assert told(await tx.reached(c.WAIT_LEVEL_COMMITTED))[0] == "COMMITTED"
