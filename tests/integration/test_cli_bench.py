"""`txcoord bench` in short: xa works with each pair of databases, each driver and each log; tcc, saga and hung
end without an error. Time proves nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli_support import Desk
from tests.support.redis_server import RedisServer
from txcoord.cli import bench
from txcoord.cli.bench.drivers import Drivers, WrongDrivers


@pytest.mark.parametrize(
    ("databases", "driver", "log", "used"),
    [
        ("postgres,mariadb", "", "sqlite", "asyncpg,asyncmy"),
        ("mariadb,postgres", "psycopg", "mariadb", "pymysql,psycopg"),
        ("postgres,mariadb", "psycopg_async,aiomysql", "postgresql", "psycopg_async,aiomysql"),
    ],
)
def test_two_contenders_without_an_error(
    tmp_path: Path, databases: str, driver: str, log: str, used: str
) -> None:
    options = ["--databases", databases, "--log", log, "--seconds", "0.5", "--concurrency", "2"]
    options += ["--driver", driver] if driver else []
    rows = Desk(tmp_path).json("bench", "xa", *options)
    assert [(row["kind"], row["errors"]) for row in rows] == [("xa", 0), ("bare-2pc", 0)]
    assert {(row["databases"], row["drivers"], row["log"]) for row in rows} == {(databases, used, log)}


OF_XA = {"kind", "concurrency", "tps", "p50_ms", "p99_ms", "errors", "ratio", "log"}


def test_tcc_with_participants_that_only_answer(tmp_path: Path) -> None:
    rows = Desk(tmp_path).json("bench", "tcc", "--seconds", "0.5", "--concurrency", "1,64")
    assert [(row["kind"], row["concurrency"], row["errors"]) for row in rows] == [
        (contender, callers, 0) for callers in (1, 64) for contender in ("tcc", "bare-grpc")
    ]
    for row in rows:
        assert row.keys() >= OF_XA
        assert row["tps"] > 0
        assert row["cpu_ms"].keys() == {"callers", "coordinator", "participants"}
    assert all(row["ratio"] == 1.0 for row in rows[1::2])


def test_sagas_with_participants_that_only_answer() -> None:
    rows: list[Any] = []
    assert bench.called("saga", [64], 0.5, "sqlite", None, lambda line: rows.append(json.loads(line))) == 0
    assert [(row["kind"], row["errors"]) for row in rows] == [("saga", 0), ("bare-grpc", 0)]
    assert all(row.keys() >= OF_XA and row["tps"] > 0 for row in rows)


def test_beside_participants_that_hang_nothing_fails() -> None:
    rows: list[Any] = []
    assert bench.hung(4, [2], 0.5, "sqlite", lambda line: rows.append(json.loads(line))) == 0
    assert [(row["kind"], row["errors"]) for row in rows] == [("beside-hung", 0), ("alone", 0)]
    assert (rows[0]["hung"], rows[0]["waiting"]) == (4, 200)
    assert rows[0]["ratio"] > 0


def test_beside_endpoints_of_no_use_nothing_fails() -> None:
    rows: list[Any] = []
    assert bench.notify(10, [2], 0.5, "sqlite", lambda line: rows.append(json.loads(line))) == 0
    assert [(row["kind"], row["errors"]) for row in rows] == [("beside-bad", 0), ("alone", 0)]
    assert (rows[0]["well"], rows[0]["bad"]) == (7, 4)
    assert rows[0]["told_bad"] > 40
    assert rows[0]["ratio"] > 0


def test_beside_the_same_without_kafka_and_redis(redis_server: RedisServer) -> None:
    rows: list[Any] = []
    nobody = "127.0.0.1:1"  # Kafka may be away: nothing needs it here.
    tell = rows.append
    assert bench.shared(nobody, redis_server.url, False, [16], 0.5, "sqlite", tell) == 0
    found = [json.loads(row) for row in rows]
    assert [(row["kind"], row["errors"]) for row in found] == [("shared", 0), ("alone", 0)]
    assert all(row["ratio"] > 0 and row["cpu_ms"].keys() == {"coordinator"} for row in found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--driver", "oracledb"], "the drivers are asyncpg"),
        (["--driver", "psycopg,asyncmy"], "some in threads"),
        (["--driver", "asyncmy"], "no database here is on mariadb"),
        (["--driver", "asyncpg,psycopg_async"], "one for each kind"),
        (["--databases", "postgres"], "two of postgres, mariadb"),
        (["--databases", "postgres,oracle"], "two of postgres, mariadb"),
        (["--log", "redis"], "sqlite, postgresql, mariadb"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, options: list[str], said: str) -> None:
    assert said in Desk(tmp_path).run("bench", "xa", *options, code=2).stderr


def test_drivers_of_the_same_kind_fill_what_is_not_named() -> None:
    both = ("postgres", "mariadb")
    for names, of_postgres, of_mariadb, threads in [
        ([], "asyncpg", "asyncmy", False),
        (["aiomysql"], "asyncpg", "aiomysql", False),
        (["pymysql"], "psycopg", "pymysql", True),
    ]:
        assert Drivers.chosen(names, both) == Drivers(of_postgres, of_mariadb, threads)
    for names in itertools.permutations(["asyncpg", "pymysql"]):
        with pytest.raises(WrongDrivers):
            Drivers.chosen(names, both)
