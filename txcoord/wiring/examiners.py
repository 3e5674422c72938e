"""Which module looks at which database."""

from __future__ import annotations

from ..adapters.xa.checks import Examiner
from ..config import LogSettings, ResourceSettings, engine_of


def examiner(name: str, resource: ResourceSettings) -> Examiner:
    """What looks at the database of this resource; not connected yet."""
    return _examiner(name, resource.url.get_secret_value(), resource.timeout.total_seconds())


def log_examiner(log: LogSettings) -> Examiner:
    """What looks at the server of a log that is no file."""
    return _examiner("log", log.url.get_secret_value(), log.statement_timeout.total_seconds())


def _examiner(name: str, url: str, timeout_s: float) -> Examiner:
    """The driver of an engine that nobody uses is not imported."""
    if engine_of(url) == "postgresql":
        from ..adapters.xa.checks_postgresql import PostgresExaminer
        from ..adapters.xa.checks_postgresql_connect import Door

        return PostgresExaminer(Door.of(url), name, timeout_s)
    from ..adapters.xa.checks_mariadb import MariaDBExaminer
    from ..adapters.xa.mariadb_session import Address

    return MariaDBExaminer(Address.of(url), name, timeout_s, scheme=url.partition(":")[0])
