"""`txcoord serve`: how a coordinator process starts, refuses to start, stops, and comes back."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.integration.cli_support import Desk, Service, resource, until
from tests.support.databases import Databases, database_of, prepared
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, free_port, run_txcoord, serving
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb

QUICK = {"RECOVERY__SCAN_INTERVAL": "300ms", "RECOVERY__GRACE": "500ms"}


def new_node(folder: Path, urls: dict[str, str], **options: str) -> Managed:
    """A coordinator over made-ready databases, not started."""
    log_url = options.pop("log_url", None)
    node = coordinator(folder, resources=urls, log_url=log_url, settings={**QUICK, **options})
    run_txcoord("migrate", env=node.env, cwd=folder)
    run_txcoord("resource", "check", "--fix", env=node.env, cwd=folder)
    return node


def events(node: Managed) -> list[dict[str, object]]:
    return [json.loads(line) for line in node.log.read_text().splitlines() if line.startswith("{")]


def logged(node: Managed, event: str) -> list[dict[str, object]]:
    return [e for e in events(node) if e["event"] == event]


# ---- it stops cleanly, and comes back ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(
    number: int, pg18: PostgresServer, pg_database: Databases, tmp_path: Path
) -> None:
    urls = {"accounts": pg_database(pg18), "ledger": pg_database(pg18)}
    node = new_node(tmp_path, urls)
    node.start()
    service = Service(node.address)
    # A client that stays connected must not keep the coordinator from leaving.
    session = service.stub.Session(iter([]))
    work = service.new()
    for name, url in urls.items():
        work.prepare(name, pg18, url)
    assert work.commit(c.WAIT_LEVEL_DECIDED).decision == c.DECISION_COMMIT
    begun = time.monotonic()
    node.signal(number)
    assert node.wait(30) == 0, node.tail()
    assert time.monotonic() - begun < 8, "it did not wait for the whole drain limit"
    session.cancel()
    # Phase two was carried out before it left.
    assert prepared(pg18, urls["accounts"]) == prepared(pg18, urls["ledger"]) == []
    assert logged(node, "node.stopped")
    # What was lazy was flushed: the end is in the log.
    node.start()
    service = Service(node.address)
    found = service.stub.Get(pb.GetRequest(tx_id=work.tx_id), timeout=10).transaction
    assert found.outcome.state == c.STATE_COMMITTED
    assert node.stop() == 0


def test_killed_in_phase_two_it_comes_back_and_finishes(
    pg_server: Callable[..., PostgresServer], pg18: PostgresServer, pg_database: Databases, tmp_path: Path
) -> None:
    own = pg_server()
    servers = {"accounts": pg18, "ledger": own}
    urls = {name: pg_database(server) for name, server in servers.items()}
    node = new_node(tmp_path, urls)
    node.start()
    work = Service(node.address).new()
    for name, url in urls.items():
        work.prepare(name, servers[name], url)
    own.kill9()
    assert work.commit(c.WAIT_LEVEL_DECIDED).decision == c.DECISION_COMMIT
    node.kill9()
    # The database is still away: the node starts all the same, and finishes when it is back.
    node.start()
    service = Service(node.address)
    own.start()
    until(
        lambda: (
            service.stub.Get(pb.GetRequest(tx_id=work.tx_id), timeout=10).transaction.outcome.state
            == c.STATE_COMMITTED
        ),
        "committed in the end",
    )
    assert prepared(own, urls["ledger"]) == []
    assert node.stop() == 0


def test_with_a_dead_database_it_still_leaves_at_its_limit(
    pg_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    own = pg_server()
    own.create_database("ledger")
    node = new_node(tmp_path, {"ledger": own.url("ledger")}, NODE__DRAIN_TIMEOUT="1s")
    node.start()
    work = Service(node.address).new()
    xid = work.prepare("ledger", own, own.url("ledger"))
    own.kill9()
    work.commit(c.WAIT_LEVEL_DECIDED)
    assert node.stop(15) == 0
    assert logged(node, "node.left_to_others")[0]["rows"] == 1
    own.start()
    assert prepared(own, own.url("ledger")) == [xid]
    node.start()
    until(lambda: prepared(own, own.url("ledger")) == [], "finished after the restart")
    assert node.stop() == 0


# ---- it refuses to start, in one line ----


def desk_of(node: Managed) -> Desk:
    return Desk(node.log.parent, dict(node.env))


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, text
    return lines[0].removeprefix("txcoord: ")


def test_swapped_urls_are_refused(pg18: PostgresServer, pg_database: Databases, tmp_path: Path) -> None:
    urls = {"accounts": pg_database(pg18), "ledger": pg_database(pg18)}
    node = new_node(tmp_path, urls)
    identities = [d["identity"] for d in desk_of(node).json("resource", "check")]
    swapped = {**resource("accounts", urls["ledger"]), **resource("ledger", urls["accounts"])}
    said = one_line(desk_of(node).run("serve", code=3, **swapped).stderr)
    assert said.startswith("RESOURCE_MISMATCH: resource 'accounts': ")
    assert all(identity in said for identity in identities)
    assert "look swapped" in said


def test_another_database_than_before_is_refused(
    pg18: PostgresServer, pg_database: Databases, tmp_path: Path
) -> None:
    node = new_node(tmp_path, {"accounts": pg_database(pg18)})
    other = resource("accounts", pg_database(pg18))
    Desk(tmp_path, {"TXCOORD_LOG__URL": "sqlite:///else.db", **other}).run("migrate")
    Desk(tmp_path, {"TXCOORD_LOG__URL": "sqlite:///else.db", **other}).run("resource", "check", "--fix")
    said = one_line(desk_of(node).run("serve", code=3, **other).stderr)
    assert said.startswith("RESOURCE_MISMATCH: ")
    assert "txcoord resource check accounts --replace-identity" in said


def test_one_database_under_two_names_is_refused(
    pg18: PostgresServer, pg_database: Databases, tmp_path: Path
) -> None:
    url = pg_database(pg18)
    node = new_node(tmp_path, {"accounts": url})
    # The settings cannot see that 127.1 is the same host.
    said = one_line(
        desk_of(node).run("serve", code=3, **resource("twin", url.replace("127.0.0.1", "127.1"))).stderr
    )
    assert said.startswith("RESOURCE_MISMATCH: resource 'twin': it has the identity ")
    assert "'accounts'" in said


def test_wrong_settings_are_all_shown(tmp_path: Path) -> None:
    desk = Desk(
        tmp_path, {**resource("a", "sqlite:///a.db"), "TXCOORD_LISTEN": "0.0.0.0:1", "TXCOORD_X": "1"}
    )
    said = desk.run("serve", code=3).stderr.splitlines()
    assert len(said) == 3
    assert "txcoord: TXCOORD_RESOURCES__a__URL: SQLite cannot take part in XA" in "\n".join(said)


def test_the_log_must_be_there(tmp_path: Path) -> None:
    free = {"TXCOORD_LISTEN": f"127.0.0.1:{free_port()}"}  # somebody may have the default port
    said = one_line(Desk(tmp_path, free).run("serve", code=5).stderr)
    assert said.startswith("SCHEMA_MISMATCH: there is no log at ")
    assert "txcoord migrate" in said
    down = {**free, "TXCOORD_LOG__URL": "postgresql://u:hunter2@127.0.0.1:1/log"}
    for command in ("serve", "migrate"):
        said = one_line(Desk(tmp_path, down).run(command, code=4).stderr)
        assert said.startswith("LOG_UNAVAILABLE: the log cannot be used: ")
        assert "hunter2" not in said


def test_a_newer_and_an_older_schema_are_refused(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"TXCOORD_LISTEN": f"127.0.0.1:{free_port()}"})
    assert desk.run("migrate").stderr.startswith("log sqlite+aiosqlite:///txcoord.db: schema none -> ")
    assert "is current" in desk.run("migrate").stderr
    with sqlite3.connect(tmp_path / "txcoord.db") as db:
        db.execute("UPDATE txcoord_revision SET version_num = '9999'")
    for command in ("serve", "migrate"):
        said = one_line(desk.run(command, code=5).stderr)
        assert "written by a newer txcoord: its schema is 9999" in said


def test_one_address_and_one_log_on_sqlite_for_one_node(tmp_path: Path) -> None:
    node = new_node_without_resources(tmp_path)
    node.start()
    said = one_line(desk_of(node).run("serve", code=4).stderr)
    assert said.startswith(f"ADDRESS_IN_USE: cannot listen on {node.address}: ")
    said = one_line(desk_of(node).run("serve", "--listen", f"127.0.0.1:{free_port()}", code=4).stderr)
    assert said.startswith("LOG_IN_USE: ")
    assert f"(process {node.pid})" in said
    node.kill9()
    node.start()  # A killed one leaves nothing that is in the way.
    assert node.stop() == 0


def new_node_without_resources(folder: Path, **options: str) -> Managed:
    node = coordinator(folder, resources={}, settings=options)
    run_txcoord("migrate", env=node.env, cwd=folder)
    return node


# ---- it starts in spite of resources in trouble, and takes them up when they are mended ----


def test_resources_in_trouble_are_taken_up_when_mended(
    pg_server: Callable[..., PostgresServer], pg18: PostgresServer, pg_database: Databases, tmp_path: Path
) -> None:
    own = pg_server()
    own.create_database("ledger")
    urls = {
        "accounts": pg_database(pg18),
        "bare": pg_database(pg18),
        "ledger": own.url("ledger"),
        "secret": pg_database(pg18).replace("postgres@", "nobody_here:hunter2@"),
    }
    node = coordinator(tmp_path, resources=urls, settings=QUICK)
    desk = desk_of(node)
    desk.run("migrate")
    desk.run("resource", "check", "--fix", "accounts", "ledger")
    own.stop()
    node.start()
    service = Service(node.address)

    def problems() -> dict[str, str]:
        answer = service.stub.Hello(pb.HelloRequest(), timeout=10)
        return {r.name: r.problem for r in answer.resources}

    seen = problems()
    assert seen["accounts"] == ""
    assert seen["ledger"].startswith("RESOURCE_UNREACHABLE: ")
    assert seen["bare"].startswith("RESOURCE_NOT_PREPARED: ")
    assert "txcoord resource check bare --fix" in seen["bare"]
    assert seen["secret"].startswith("RESOURCE_CREDENTIALS: cannot log in: ")
    assert "hunter2" not in node.tail(100_000)
    # Others are served meanwhile.
    work = service.new()
    work.prepare("accounts", pg18, urls["accounts"])
    assert work.commit().state == c.STATE_COMMITTED
    own.start()
    desk.run("resource", "check", "--fix", "bare")
    until(lambda: problems()["ledger"] == problems()["bare"] == "", "both are taken up")
    work = service.new()
    work.prepare("ledger", own, urls["ledger"])
    work.prepare("bare", pg18, urls["bare"])
    assert work.commit().state == c.STATE_COMMITTED
    assert node.stop() == 0


def test_a_database_that_turns_out_to_be_another_is_never_touched(
    pg_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    """Away at the start, and when it answers it is another database: nothing of it may be judged."""
    own = pg_server()
    own.create_database("one")
    own.create_database("two")
    node = new_node(tmp_path, {"ledger": own.url("one")})
    Desk(tmp_path, {"TXCOORD_LOG__URL": "sqlite:///else.db", **resource("ledger", own.url("two"))}).run(
        "migrate"
    )
    Desk(tmp_path, {"TXCOORD_LOG__URL": "sqlite:///else.db", **resource("ledger", own.url("two"))}).run(
        "resource", "check", "--fix"
    )
    own.stop()
    node.env["TXCOORD_RESOURCES__ledger__URL"] = own.url("two")
    node.start()
    service = Service(node.address)
    # An orphan of this very log, past its deadline: the scanner would roll it back if it trusted the database.
    work = service.new(timeout_s=1.0)
    own.start()
    xid = work.prepare("ledger", own, own.url("two"))
    until(lambda: any("RESOURCE_MISMATCH" in str(e.get("problem")) for e in events(node)), "noticed")
    now_us = service.stub.Hello(pb.HelloRequest(), timeout=10).log_time_us
    until(
        lambda: service.stub.Hello(pb.HelloRequest(), timeout=10).log_time_us > now_us + 3_000_000,
        "past deadline, grace and some scans",
    )
    assert prepared(own, own.url("two")) == [xid]
    own.sql(f"ROLLBACK PREPARED '{xid}'", database_of(own.url("two")))
    assert node.stop() == 0


# ---- readiness, profile ----


def test_it_is_ready_only_while_the_log_answers(
    pg_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    own = pg_server()
    own.create_database("log")
    node = new_node_without_resources(tmp_path, LOG__URL=own.url("log"), LOG__STATEMENT_TIMEOUT="2s")
    node.start()
    own.kill9()
    until(lambda: not serving(node.address), "not ready without its log")
    with pytest.raises(grpc.RpcError) as caught:
        Service(node.address).stub.Get(pb.GetRequest(gid="x"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    assert "LOG_UNAVAILABLE" in caught.value.details()  # type: ignore[attr-defined]
    own.start()
    until(lambda: serving(node.address), "ready again")
    assert node.stop() == 0


def test_a_profile_is_written_at_the_end(tmp_path: Path) -> None:
    node = new_node_without_resources(tmp_path)
    node.env["TXCOORD_PROFILE"] = str(tmp_path / "profile")
    node.start()
    assert node.stop() == 0
    assert (tmp_path / "profile").stat().st_size > 1000


def test_an_unknown_failpoint_is_refused(tmp_path: Path) -> None:
    node = new_node_without_resources(tmp_path)
    said = one_line(desk_of(node).run("serve", code=3, TXCOORD_FAILPOINTS="nowhere=kill").stderr)
    assert said == "BAD_FAILPOINT: TXCOORD_FAILPOINTS: no failpoint is called 'nowhere'"
