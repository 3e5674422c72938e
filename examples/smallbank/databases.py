"""The bank's databases: PostgreSQL or MariaDB. The same tables and the same questions, each in its own words."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.servers import Server
from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker
from txcoord_client.protocol import postgresql as pg

_OTHER_LOG = f"txc1.vvvvvvvvvv.0.{0:012}70008{0:015}"
"""What another txcoord log has prepared is just as foreign as what anybody else has."""


class Database(ABC):
    """One of the bank's databases, on a server of its own."""

    product: ClassVar[str]
    driver: ClassVar[str]
    """Of the service that has an event loop."""
    sync_driver: ClassVar[str]
    """Of the service that has threads."""
    tx_id: ClassVar[str]
    """A marker's transaction, as text."""
    server: Server

    def __init__(self, name: str) -> None:
        self.name = name
        self.foreign: list[str] = []
        """Prepared transactions that are none of ours; they must survive everything."""

    @abstractmethod
    def url(self, driver: str = "") -> str:
        """Where it is: for the coordinator, or for a driver of SQLAlchemy's."""

    @abstractmethod
    def sql(self, text: str) -> str:
        """Run statements; the rows, a line each, columns parted by `|`."""

    @abstractmethod
    def fill(self, accounts: int, cents_each: int) -> None:
        """Money, txcoord's tables, and prepared transactions of somebody else."""

    @abstractmethod
    def prepared(self) -> list[str]:
        """The names of all prepared transactions."""

    @abstractmethod
    def unlisted(self) -> int:
        """How many transactions the database holds that its list of prepared ones does not show: in limbo, if that
        stays so while nobody works."""

    def end(self) -> dict[str, Any]:
        """Everything in it, for the checker."""
        return {
            "accounts": [[int(a), int(cents)] for a, cents in self.rows("SELECT id, balance FROM account")],
            "journal": [
                [gid, int(account), int(cents)]
                for gid, account, cents in self.rows("SELECT gid, account, delta FROM journal")
            ],
            "markers": [
                [tx.replace("-", "").lower(), int(state) == marker.DONE]
                for tx, state in self.rows(
                    f"SELECT {self.tx_id}, state FROM {marker.TABLE} WHERE op IN ('xa', 'one')"
                )
            ],
            "calls": [
                [tx.replace("-", "").lower(), branch, op, int(state) == marker.DONE]
                for tx, branch, op, state in self.rows(
                    f"SELECT {self.tx_id}, branch, op, state FROM {marker.TABLE} WHERE op NOT IN ('xa', 'one')"
                )
            ],
            "prepared": self.prepared(),
            "limbo": self.unlisted(),
        }

    def rows_of(self, gid: str) -> int:
        """How many journal rows of this payment are there now."""
        return self.number(f"SELECT count(*) FROM journal WHERE gid = '{gid}'")

    def rows(self, text: str) -> list[list[str]]:
        """The rows of a question."""
        return [line.split("|") for line in self.sql(text).splitlines()]

    def number(self, text: str) -> int:
        """The one number that answers a question."""
        return int(self.sql(text))

    def _statements(self, accounts: int, cents_each: int, text: str) -> list[str]:
        return [
            "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0))",
            f"CREATE TABLE journal (gid {text} NOT NULL, account int NOT NULL, delta bigint NOT NULL)",
            "INSERT INTO account WITH RECURSIVE n (i) AS"
            f" (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {accounts}) SELECT i, {cents_each} FROM n",
        ]


class PostgreSQL(Database):
    """A database on PostgreSQL."""

    product = "PostgreSQL"
    driver = "postgresql+asyncpg"
    sync_driver = "postgresql+psycopg"
    tx_id = "tx_id"

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.server: PostgresServer = PostgresServer(folder, die_with_parent=True)

    def url(self, driver: str = "") -> str:
        return self.server.url(driver=driver or self.driver)

    def sql(self, text: str) -> str:
        return self.server.sql(text)

    def fill(self, accounts: int, cents_each: int) -> None:
        # As `txcoord resource check --fix` does it.
        resource = [*pg.ddl(), pg.set_identity(os.urandom(16).hex())]
        self.sql("; ".join([*self._statements(accounts, cents_each, "text"), *resource]))
        self.foreign = [f"foreign-{self.name}", f"{_OTHER_LOG}.1"]
        for number, gid in enumerate(self.foreign):
            table = f"CREATE TABLE foreign_{number} (i int)"
            self.sql(f"BEGIN; {table}; PREPARE TRANSACTION '{gid}'")

    def prepared(self) -> list[str]:
        return self.sql("SELECT gid FROM pg_prepared_xacts").splitlines()

    def unlisted(self) -> int:
        return 0  # Its list is what it holds.


class MariaDB(Database):
    """A database on MariaDB."""

    product = "MariaDB"
    driver = "mysql+asyncmy"
    sync_driver = "mysql+pymysql"
    tx_id = "hex(tx_id)"

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.server: MariaDBServer = MariaDBServer(folder, die_with_parent=True)

    def url(self, driver: str = "") -> str:
        return self.server.url(self.name, driver or self.driver)

    def sql(self, text: str) -> str:
        return self.server.sql(text, self.name)

    def fill(self, accounts: int, cents_each: int) -> None:
        self.server.create_database(self.name)
        resource = [*my.ddl(), my.set_identity(os.urandom(16).hex())]
        foreign = "CREATE TABLE foreign_rows (i int PRIMARY KEY)"
        self.sql("; ".join([*self._statements(accounts, cents_each, "varchar(48)"), *resource, foreign]))
        others = [(f"foreign-{self.name}", "b", 1), (_OTHER_LOG, "1@9999999", my.FORMAT_ID)]
        self.foreign = [f"{gtrid}.{bqual}" for gtrid, bqual, _ in others]
        for number, (gtrid, bqual, kind) in enumerate(others):
            xid = f"'{gtrid}', '{bqual}', {kind}"
            insert = f"INSERT INTO foreign_rows VALUES ({number})"
            self.sql(f"XA START {xid}; {insert}; XA END {xid}; XA PREPARE {xid}")

    def prepared(self) -> list[str]:
        return [f"{gtrid.decode()}.{bqual.decode()}" for _, gtrid, bqual in self.server.prepared()]

    def unlisted(self) -> int:
        held = self.number("SELECT count(*) FROM information_schema.INNODB_TRX")
        return max(held - len(self.prepared()), 0)


def make(product: str, name: str, folder: Path) -> Database:
    """A database whose server is not started yet; ``product`` is postgresql or mariadb."""
    folder.mkdir(mode=0o755)
    return (MariaDB if product == "mariadb" else PostgreSQL)(name, folder)
