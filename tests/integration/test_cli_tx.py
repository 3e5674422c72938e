"""`txcoord tx` and `txcoord resource list` against a coordinator process over two real databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.cli_support import Desk, Service, until
from tests.support.databases import Databases, database_of
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, run_txcoord
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb


@dataclass
class Office:
    """A coordinator, its databases, and a desk with a terminal."""

    desk: Desk
    coordinator: Managed
    servers: dict[str, PostgresServer]
    urls: dict[str, str]
    service: Service


def open_office(folder: Path, servers: dict[str, PostgresServer], urls: dict[str, str]) -> Office:
    node = coordinator(folder, resources=urls, settings={"RECOVERY__SCAN_INTERVAL": "500ms"})
    run_txcoord("migrate", env=node.env, cwd=folder)
    run_txcoord("resource", "check", "--fix", env=node.env, cwd=folder)
    node.start()
    desk = Desk(folder, {"TXCOORD_ADDRESS": node.address, "TXCOORD_ACTOR": "ada@desk"})
    return Office(desk, node, servers, urls, Service(node.address))


@pytest.fixture(scope="module")
def office(pg18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    databases = Databases()
    servers = {"accounts": pg18, "ledger": pg18}
    urls = {name: databases(pg18) for name in servers}
    office = open_office(tmp_path_factory.mktemp("office"), servers, urls)
    yield office
    office.service.channel.close()
    office.coordinator.stop()
    databases.drop_all()


def commit_both(office: Office) -> str:
    work = office.service.new()
    for name, url in office.urls.items():
        work.prepare(name, office.servers[name], url)
    assert work.commit().state == c.STATE_COMMITTED
    return work.tx_id


def park_one(office: Office) -> str:
    """Someone rolls a prepared branch back by hand, and then commit is decided: a heuristic outcome."""
    work = office.service.new()
    work.prepare("accounts", office.servers["accounts"], office.urls["accounts"])
    xid = work.prepare("ledger", office.servers["ledger"], office.urls["ledger"])
    office.servers["ledger"].sql(f"ROLLBACK PREPARED '{xid}'", database_of(office.urls["ledger"]))
    outcome = work.commit()
    assert outcome.parked == 1
    return work.tx_id


def test_list_and_show_a_transaction(office: Office) -> None:
    tx_id = commit_both(office)
    shown = office.desk.run("tx", "list").stdout
    line = next(line for line in shown.splitlines() if tx_id in line)
    assert "COMMITTED" in line
    assert "payment" in line
    assert "2 of 2" in line
    page = office.desk.run("tx", "show", tx_id).stdout
    assert "state     COMMITTED" in page
    assert "decision  commit, by client" in page
    assert "decided commit by client" in page
    assert "accounts" in page
    assert "waits for" not in page
    (found,) = office.desk.json("tx", "show", tx_id)
    assert (found["tx_id"], found["state"], found["decided_by"]) == (tx_id, "COMMITTED", "client")
    assert [b["state"] for b in found["branches"]] == ["DONE", "DONE"]
    assert [e["event"] for e in found["timeline"]][-1] == "committed"
    # As people write a UUID.
    dashed = f"{tx_id[:8]}-{tx_id[8:12]}-{tx_id[12:16]}-{tx_id[16:20]}-{tx_id[20:]}".upper()
    assert tx_id in office.desk.run("tx", "show", dashed).stdout


def test_pages_and_filters(office: Office) -> None:
    made = [commit_both(office) for _ in range(3)]
    first = office.desk.run("tx", "list", "--limit", "2", "state = COMMITTED")
    assert first.stdout.count("COMMITTED") == 2
    token = first.stderr.split("--page ")[1].strip()
    second = office.desk.json("tx", "list", "--limit", "2", "--page", token, "state = COMMITTED")
    assert made[0] in [tx["tx_id"] for tx in second]
    everything = office.desk.json("tx", "list", "--limit", "2", "--all", 'name = "payment"')
    assert set(made) <= {tx["tx_id"] for tx in everything}
    nothing = office.desk.run("tx", "list", 'name = "other"')
    assert (nothing.stdout, nothing.stderr) == ("", "no transaction matches in namespace default\n")
    for more in ((), ("--dry-run",)):
        none = office.desk.run("replay", "start", "--target", "nobody", "--reason", "x", "--yes", *more)
        assert "nothing is parked that matches, in namespace default: for nobody" in none.stderr
    assert "DONE (dry run)" in office.desk.run("replay", "list").stdout
    bad = office.desk.run("tx", "list", "colour = red", code=6)
    assert bad.stderr.startswith("txcoord: BAD_REQUEST: filter: cannot read 'colour = red'")


def test_a_heuristic_outcome_is_shown_and_resolved_with_a_reason(office: Office) -> None:
    tx_id = park_one(office)
    page = office.desk.run("tx", "show", tx_id).stdout
    assert "state     COMMITTING (PARKED, HEURISTIC)" in page
    assert "an operator: branch 2 on ledger is parked (HEURISTIC: " in page
    assert tx_id in office.desk.run("tx", "list", "parked").stdout

    dry = office.desk.run("tx", "resolve", tx_id, "--reason", "paid by hand", "--dry-run").stdout
    assert f"{tx_id} branch 2: would be resolved" in dry
    assert "PARKED" in office.desk.run("tx", "show", tx_id).stdout
    # Nobody to ask and no --yes: nothing is done.
    refused = office.desk.run("tx", "resolve", tx_id, "--reason", "paid by hand", code=2)
    assert "Say --yes" in refused.stderr
    assert "PARKED" in office.desk.run("tx", "show", tx_id).stdout

    (effect,) = office.desk.json("tx", "resolve", tx_id, "--reason", "paid by hand", "--yes")
    assert (effect["branch"], effect["effect"]) == ("2", "resolved")
    page = office.desk.run("tx", "show", tx_id).stdout
    assert "state     COMMITTED (HEURISTIC)" in page
    assert "operator.resolve branch 2 by ada@desk: paid by hand" in page

    again = office.desk.json(
        "tx", "resolve", tx_id, "--branch", "2", "--reason", "once more", "--yes", code=6
    )
    assert again[0]["effect"] == "refused"
    assert again[0]["reason"]


def test_retry_park_and_skip(office: Office) -> None:
    tx_id = park_one(office)
    assert "retried" in office.desk.run("tx", "retry", tx_id, "--reason", "look again", "--yes").stdout
    until(lambda: office.desk.json("tx", "show", tx_id)[0]["parked"], "parked again")
    by_filter = office.desk.run("tx", "skip", "--filter", "parked", "--reason", "given up", "--yes").stdout
    assert f"{tx_id} branch 2: skipped" in by_filter
    (found,) = office.desk.json("tx", "show", tx_id)
    assert found["state"] == "COMMITTED"
    assert [b["state"] for b in found["branches"]] == ["DONE", "SKIPPED"]
    audited = [(e["event"], e["by"]) for e in found["timeline"] if e["event"].startswith("operator")]
    assert audited == [("operator.retry", "ada@desk"), ("operator.skip", "ada@desk")]


def test_a_saga_is_aborted_by_the_word_that_a_step_was_not_done(office: Office) -> None:
    work = office.service.new(timeout_s=300)
    steps = [c.Branch(id=n, kind=c.KIND_SAGA, after=after) for n, after in (("1", []), ("2", ["1"]))]
    for b in steps:
        b.action.target, b.action.operation, b.action.run_first = "grpc://127.0.0.1:9", "pack", True
    plan = pb.SubmitRequest(tx_id=work.tx_id, deadline_us=work.deadline_us, branches=steps)
    plan.wait = c.WAIT_LEVEL_ACCEPTED
    office.service.stub.Submit(plan, timeout=20)
    order = ("tx", "resolve", work.tx_id, "--not-done", "--reason", "burnt down", "--yes")
    assert "--branch" in office.desk.run(*order, code=2).stderr
    assert "NOT_PARKED" in office.desk.run(*order, "--branch", "2", code=6).stdout
    assert "step 1, pack at grpc://127.0.0.1:9" in office.desk.run("tx", "show", work.tx_id).stdout
    office.coordinator.kill9()
    office.coordinator.start()
    # It was read back: perhaps it was committed.
    assert "branch 1: asked; " in office.desk.run(*order, "--branch", "1").stdout
    assert "branch 1: aborted; " in office.desk.run(*order, "--branch", "1").stdout
    skip = ("tx", "skip", work.tx_id, "--branch", "1", "--reason", "burnt down", "--yes")
    assert "skipped" in office.desk.run(*skip).stdout
    (found,) = office.desk.json("tx", "show", work.tx_id)
    assert (found["decided_by"], found["reason"]) == ("operator", "ABORTED_BY_OPERATOR")
    audited = [e["event"] for e in found["timeline"] if e["event"].startswith("operator")]
    assert audited == ["operator.not_done", "operator.not_done", "operator.skip"]


def test_orders_need_a_reason_and_something_to_be_about(office: Office) -> None:
    assert "--reason" in office.desk.run("tx", "retry", "x", code=2).stderr
    both = office.desk.run("tx", "retry", "x", "--filter", "parked", "--reason", "y", code=2)
    assert both.stderr == "txcoord: give an ID or --filter\n"
    unknown = office.desk.run("tx", "retry", "nobody", "--reason", "y", "--yes", code=6)
    assert unknown.stderr.startswith("txcoord: NOT_FOUND: no transaction 'nobody' here")
    assert office.desk.run("tx", "show", "nobody", code=6).stderr.startswith("txcoord: NOT_FOUND: ")


def test_what_it_waits_for_while_a_database_is_down(
    pg_server: Callable[..., PostgresServer], pg18: PostgresServer, tmp_path: Path
) -> None:
    own = pg_server()
    databases = Databases()
    servers = {"accounts": pg18, "ledger": own}
    office = open_office(tmp_path, servers, {name: databases(s) for name, s in servers.items()})
    work = office.service.new()
    work.begin("order-17")
    for name, url in office.urls.items():
        work.prepare(name, servers[name], url)
    own.kill9()
    assert work.commit(c.WAIT_LEVEL_DECIDED).state == c.STATE_COMMITTING
    page = until(
        lambda: (
            p if "RESOURCE_UNREACHABLE" in (p := office.desk.run("tx", "show", "order-17").stdout) else ""
        ),
        "the failed attempt is shown",
    )
    assert "gid       order-17" in page
    assert "state     COMMITTING" in page
    assert "COMMIT PREPARED of branch 2 on ledger, again " in page
    listed = until(
        lambda: [r for r in office.desk.json("resource", "list") if not r["available"]], "trouble is seen"
    )
    assert listed[0]["name"] == "ledger"
    assert listed[0]["problem"].startswith("RESOURCE_UNREACHABLE: ")
    # Left alone by an operator, and taken up again.
    parked = office.desk.run("tx", "park", "order-17", "--reason", "the disk is being changed", "--yes")
    assert "order-17 branch 2: parked" in parked.stdout
    assert "an operator: branch 2 on ledger is parked" in office.desk.run("tx", "show", "order-17").stdout
    own.start()
    office.desk.run("tx", "retry", "order-17", "--reason", "the disk is back", "--yes")
    until(
        lambda: office.desk.json("tx", "show", "order-17")[0]["state"] == "COMMITTED", "COMMITTED in the end"
    )
    office.service.channel.close()
    assert office.coordinator.stop() == 0


def test_without_a_coordinator_there_is_one_line(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for command in (["tx", "list"], ["tx", "show", "x"], ["resource", "list"]):
        said = desk.run(*command, "--address", "127.0.0.1:1", code=4).stderr
        assert said.startswith("txcoord: no coordinator answers at 127.0.0.1:1. ")
        assert said.count("\n") == 1


def test_resources_as_the_coordinator_sees_them(office: Office) -> None:
    shown = office.desk.run("resource", "list").stdout.splitlines()
    assert shown[0].split() == ["NAME", "ENGINE", "IDENTITY", "STATE"]
    assert [line.split()[0] for line in shown[1:]] == ["accounts", "ledger"]
    assert all(line.endswith("ok") for line in shown[1:])
    assert all(r["available"] and r["identity"] for r in office.desk.json("resource", "list"))
