"""A database on MariaDB or MySQL, for the acceptance tests: the words of ``acceptance.Db``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.support.acceptance import Db, Site, eventually
from tests.support.databases import database_of
from txcoord.testing.mariadb import MariaDBServer, MySQLServer

AnyServer = MariaDBServer | MySQLServer


@dataclass(frozen=True)
class MariaDb(Db):
    """One database, looked at past everybody."""

    server: AnyServer  # type: ignore[assignment]

    def sql(self, statement: str) -> str:
        return self.server.sql(statement, database_of(self.url))

    def make_table(self) -> None:
        # Without a key: what is done twice shall be there twice.
        self.sql("CREATE TABLE note (body varchar(200) NOT NULL, KEY (body)) ENGINE=InnoDB")

    def prepared(self, tx_id: str = "") -> list[str]:
        names = (
            f"{g.decode('ascii', 'replace')}.{b.decode('ascii', 'replace')}"
            for _, g, b in self.server.prepared()
        )
        return sorted(name for name in names if tx_id in name)

    @property
    def holds(self) -> bool:
        """Must the session that prepared finish?"""
        return isinstance(self.server, MariaDBServer)

    def status(self, name: str) -> int:
        """A counter of the whole server."""
        return int(self.sql(f"SHOW GLOBAL STATUS LIKE '{name}'").split("|")[1])

    def limbo(self) -> int:
        """How many transactions InnoDB holds prepared that the server does not list, nor any session."""
        return max(0, self.transactions_of(0) - len(self.server.prepared()))

    def transactions_of(self, connection_id: int) -> int:
        """How many transactions of this session InnoDB has; 0: of none any more."""
        # InnoDB makes that table anew only when nobody has read it for 0.1 s: who asks again must not be too fast.
        self.sql("DO SLEEP(0.15)")
        return int(
            self.sql(
                f"SELECT count(*) FROM information_schema.INNODB_TRX WHERE trx_mysql_thread_id = {connection_id}"
            )
        )


def maria(site: Site) -> MariaDb:
    assert isinstance(site.ledger, MariaDb)
    return site.ledger


def holds(site: Site) -> bool:
    return maria(site).holds


async def all_or_nothing(site: Site, body: str, tx_id: str, committed: bool) -> None:
    """Once nothing is left prepared, it is in both databases or in none, and nothing is in limbo."""
    # In threads: sessions that wait for the decision do so in this loop, and would hear of it late.
    await eventually(lambda: asyncio.to_thread(lambda: not site.prepared(tx_id)), within=40)
    assert await asyncio.to_thread(site.counts, body) == ((1, 1) if committed else (0, 0))
    await eventually(lambda: asyncio.to_thread(lambda: maria(site).limbo() == 0))
