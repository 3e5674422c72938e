"""What facts about a database mean: those that no server here can be made to show, and the wording of all."""

from __future__ import annotations

import socket
import ssl
from datetime import timedelta

import asyncpg
import pytest

from txcoord.adapters.xa import checks, checks_mariadb_connect, checks_postgresql_connect
from txcoord.adapters.xa.checks import Expectations, Finding
from txcoord.adapters.xa.checks_mariadb import grants
from txcoord.adapters.xa.checks_mariadb_connect import Refused
from txcoord.adapters.xa.checks_mariadb_judge import MariaDBFacts
from txcoord.adapters.xa.checks_mariadb_judge import judge as judge_mariadb
from txcoord.adapters.xa.checks_mariadb_judge import judge_log as judge_mariadb_log
from txcoord.adapters.xa.checks_postgresql_connect import Door
from txcoord.adapters.xa.checks_postgresql_judge import PostgresFacts
from txcoord.adapters.xa.checks_postgresql_judge import judge as judge_postgresql
from txcoord.adapters.xa.checks_postgresql_judge import judge_log as judge_postgresql_log
from txcoord.adapters.xa.mariadb_session import Address
from txcoord.config import Settings
from txcoord.wiring.diagnosis import clocks
from txcoord_client.protocol import reasons
from txcoord_client.protocol.mariadb import Flavour

EXPECTED = Expectations("orders", ("abcdefghjk",))
GOOD = {
    "log_bin": "OFF",
    "innodb_flush_log_at_trx_commit": "1",
    "innodb_doublewrite": "ON",
    "default_storage_engine": "InnoDB",
    "read_only": "OFF",
    "wsrep_on": "OFF",
    "wait_timeout": "28800",
    "xa_detach_on_prepare": "ON",
}
GOOD_PG = {"max_prepared_transactions": "200", "server_version": "18.6", "server_version_num": "180006"}


def wrong(found: list[Finding]) -> list[Finding]:
    return [f for f in found if f.severity != checks.OK]


def only(found: list[Finding]) -> Finding:
    (one,) = wrong(found)
    return one


def maria(
    version: str = "10.11.19-MariaDB", flavour: Flavour | None = Flavour.MARIADB, **settings: str
) -> MariaDBFacts:
    return MariaDBFacts(flavour, version, {**GOOD, **settings}, identity="a" * 32)


def test_a_good_database_has_nothing_wrong() -> None:
    assert wrong(judge_mariadb(maria(), EXPECTED)) == []
    assert wrong(judge_mariadb(maria("8.0.30", Flavour.MYSQL), EXPECTED)) == []
    assert wrong(judge_postgresql(PostgresFacts(GOOD_PG, identity="a" * 32), EXPECTED)) == []


# ---- what is refused ----


def test_galera_is_refused() -> None:
    finding = only(judge_mariadb(maria(wsrep_on="ON", wsrep_cluster_name="shop"), EXPECTED))
    assert (finding.reason, finding.severity, finding.refused) == (reasons.GALERA, "error", True)
    assert "node of the Galera cluster 'shop'" in finding.fact
    assert "does not support XA" in finding.means
    # As a log as well.
    assert only(judge_mariadb_log(maria(wsrep_on="ON"))).reason == reasons.GALERA


def test_a_group_of_mysql_is_refused() -> None:
    facts = maria("8.4.0", Flavour.MYSQL, group_replication_group_name="8a94f357-aab4-11df-86ab-c80aa9429562")
    finding = only(judge_mariadb(facts, EXPECTED))
    assert (finding.reason, finding.refused) == (reasons.GROUP_REPLICATION, True)
    assert "8a94f357" in finding.fact


@pytest.mark.parametrize(
    ("version", "flavour", "said"),
    [
        ("10.5.29-MariaDB", Flavour.MARIADB, "this is MariaDB 10.5.29; txcoord needs MariaDB 10.6 or newer"),
        ("8.0.29", Flavour.MYSQL, "this is MySQL 8.0.29; txcoord needs MySQL 8.0.30 or newer"),
        ("5.7.44-log", Flavour.MYSQL, "this is MySQL 5.7.44; txcoord needs MySQL 8.0.30 or newer"),
        (
            "8.0.11-TiDB-v7.5.0",
            None,
            "a server that calls itself 8.0.11-TiDB-v7.5.0 is neither MariaDB nor MySQL",
        ),
    ],
)
def test_old_and_strange_servers_are_refused(version: str, flavour: Flavour | None, said: str) -> None:
    finding = only(judge_mariadb(maria(version, flavour), EXPECTED))
    assert (finding.reason, finding.refused, finding.fact) == (reasons.VERSION_UNSUPPORTED, True, said)


def test_an_old_postgresql_is_refused() -> None:
    facts = PostgresFacts(
        {**GOOD_PG, "server_version": "14.12", "server_version_num": "140012"}, identity="a" * 32
    )
    finding = only(judge_postgresql(facts, EXPECTED))
    assert (finding.reason, finding.refused) == (reasons.VERSION_UNSUPPORTED, True)
    assert finding.fact == "this is PostgreSQL 14.12; txcoord needs PostgreSQL 15 or newer"


def test_a_server_that_rolls_back_at_disconnect_is_refused() -> None:
    finding = only(judge_mariadb(maria(legacy_xa_rollback_at_disconnect="ON"), EXPECTED))
    assert (finding.reason, finding.refused) == (reasons.XA_ROLLBACK_AT_DISCONNECT, True)
    assert "SET GLOBAL legacy_xa_rollback_at_disconnect = OFF;" in finding.remedy


# ---- risks ----


def test_semi_synchronous_replicas_that_may_fall_back_are_a_risk() -> None:
    def found(timeout_ms: int) -> list[Finding]:
        facts = maria("9.7.0", Flavour.MYSQL, rpl_semi_sync_source_timeout=str(timeout_ms))
        return wrong(judge_mariadb(MariaDBFacts(facts.flavour, facts.version, facts.settings,
                                                identity="a" * 32, replicas=2, semi_sync=2), EXPECTED))  # fmt: skip

    assert "gives up after 10000 ms" in only(found(10_000)).fact
    assert "SET GLOBAL rpl_semi_sync_source_timeout = 4294967295;" in only(found(10_000)).remedy
    assert found(4_294_967_295) == []


def test_many_prepared_branches_of_each_kind() -> None:
    minute = 60_000_000
    own = checks.Prepared(f"txc1.abcdefghjk.0.{'1' * 32}.1", "", 90 * minute)
    found = checks.old_prepared(EXPECTED, [own, own], lambda one: "", "they keep their locks")
    assert only(found).fact.startswith(
        "2 transactions of txcoord prepared for up to 90 min: txc1.abcdefghjk."
    )
    # Without the log nobody is told that they are another log's.
    assert (
        "of txcoord prepared" in only(checks.old_prepared(Expectations("x"), [own], lambda one: "", "")).fact
    )


@pytest.mark.parametrize(
    ("seconds", "reason", "severity"),
    [
        (0.0, "", ""),
        (-1.9, "", ""),
        (2.5, "CLOCK_OFF", "warning"),
        (-90, "CLOCK_OFF", "warning"),
        (36, "CLOCK_OFF", "error"),
    ],
)
def test_clocks(seconds: float, reason: str, severity: str) -> None:
    found = clocks(int(seconds * 1_000_000), Settings())
    assert [(f.reason, f.severity) for f in found] == ([(reason, severity)] if reason else [])
    if found:
        assert ("ahead of the log's" if seconds > 0 else "behind the log's") in found[0].fact


def test_a_shorter_deadline_makes_an_idle_timeout_harmless() -> None:
    facts = PostgresFacts({**GOOD_PG, "idle_in_transaction_session_timeout": "20000"}, identity="a" * 32)
    assert only(judge_postgresql(facts, EXPECTED)).reason == reasons.IDLE_TIMEOUT
    short = Expectations("orders", open_us=timedelta(seconds=10) // timedelta(microseconds=1))
    assert wrong(judge_postgresql(facts, short)) == []


def test_what_is_lost_with_a_log_are_decisions() -> None:
    facts = PostgresFacts({**GOOD_PG, "fsync": "off", "synchronous_commit": "off"}, standbys=1)
    assert [f.reason for f in judge_postgresql_log(facts)] == [
        reasons.DURABILITY,
        reasons.ASYNCHRONOUS_STANDBYS,
    ]
    assert all("decisions may be gone" in f.means for f in judge_postgresql_log(facts))
    found = judge_mariadb_log(maria(innodb_flush_log_at_trx_commit="0", log_bin="ON", sync_binlog="0"))
    assert [f.reason for f in found] == [reasons.DURABILITY, reasons.DURABILITY]
    assert all("decisions may be gone" in f.means for f in found)


def test_marks_in_names_do_no_harm() -> None:
    facts = PostgresFacts(GOOD_PG, role='a"{b}', identity="a" * 32, lacking={"txcoord_marker": ("INSERT",)})
    assert only(judge_postgresql(facts, EXPECTED)).remedy == ['GRANT INSERT ON txcoord_marker TO "a""{b}";']
    assert "GRANT SELECT ON `a``b`.txcoord_identity TO 'x'@'%';" in grants(
        "'x'@'%'", "'y'@'%'", "a`b", Flavour.MYSQL
    )


def test_a_finding_in_one_line() -> None:
    finding = checks.error("CODE", "a fact", "it means this", "DO THIS;", "# or that")
    assert str(finding) == "CODE: a fact. It means this. Mend it: DO THIS; # or that"


# ---- who cannot be reached ----


@pytest.mark.parametrize(
    ("trouble", "reason", "said"),
    [
        (asyncpg.InvalidPasswordError("no"), "RESOURCE_CREDENTIALS", "ALTER ROLE"),
        (asyncpg.CannotConnectNowError("starting up"), "RESOURCE_UNREACHABLE", "just now"),
        (asyncpg.TooManyConnectionsError("full"), "RESOURCE_UNREACHABLE", "max_connections"),
        (ConnectionRefusedError(111, "no"), "RESOURCE_UNREACHABLE", "nothing listens at db.example:5433"),
        (TimeoutError(), "RESOURCE_UNREACHABLE", "does not answer in time"),
        (socket.gaierror(-2, "no"), "RESOURCE_UNREACHABLE", "no machine named 'db.example'"),
        (ssl.SSLError("odd"), "RESOURCE_TLS", "TLS with db.example:5433 failed"),
        (ConnectionError("server rejected SSL upgrade"), "RESOURCE_UNREACHABLE", "another product"),
    ],
)
def test_why_postgresql_does_not_answer(trouble: Exception, reason: str, said: str) -> None:
    door = Door.of("postgresql+asyncpg://ada:hunter2@db.example:5433/shop")
    assert (door.user, door.host, door.port, door.database) == ("ada", "db.example", 5433, "shop")
    finding = checks_postgresql_connect.explain(trouble, door, "orders")
    assert finding.reason == reason
    assert said in str(finding)
    assert "hunter2" not in str(finding)


def test_tls_that_only_the_url_has() -> None:
    door = Door.of("postgresql://ada@db.example:5433/shop?sslmode=require")
    trouble = ConnectionError("PostgreSQL server rejected SSL upgrade")
    finding = checks_postgresql_connect.explain(trouble, door, "orders")
    assert (finding.reason, "speaks no TLS" in finding.fact) == ("RESOURCE_TLS", True)


def test_a_url_with_several_hosts() -> None:
    door = Door.of("postgresql://ada@one:5433,two:5434/shop?target_session_attrs=read-write")
    assert (door.host, door.port) == ("one", 5433)
    assert Door.of("postgresql:///shop?host=/tmp&port=6432").port == 6432


@pytest.mark.parametrize(
    ("errno", "cause", "reason", "said"),
    [
        (1130, None, "RESOURCE_CREDENTIALS", "lets this machine not in"),
        (1129, None, "RESOURCE_CREDENTIALS", "FLUSH HOSTS;"),
        (1040, None, "RESOURCE_UNREACHABLE", "max_connections"),
        (1047, None, "RESOURCE_UNREACHABLE", "db.example:3307"),
        (1053, None, "RESOURCE_UNREACHABLE", "stops just now"),
        (3159, None, "RESOURCE_TLS", "wants TLS, and the URL has none"),
        (1142, None, "NOT_PERMITTED", "--print-sql"),
        (2003, TimeoutError(), "RESOURCE_UNREACHABLE", "does not answer in time"),
        (2013, None, "RESOURCE_UNREACHABLE", "db.example:3307"),
    ],
)
def test_why_mariadb_does_not_answer(errno: int, cause: Exception | None, reason: str, said: str) -> None:
    trouble = Refused(errno, "text")
    trouble.__cause__ = cause
    address = Address.of("mariadb://ada:hunter2@db.example:3307/shop")
    finding = checks_mariadb_connect.explain(trouble, address, "orders")
    assert finding.reason == reason
    assert said in str(finding)
    assert "hunter2" not in str(finding)
