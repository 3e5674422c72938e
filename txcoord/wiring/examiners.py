"""Which module looks at which database."""

from __future__ import annotations

from ..adapters.xa.checks import Examiner
from ..adapters.xa.checks_postgresql import PostgresExaminer
from ..adapters.xa.checks_postgresql_connect import Door
from ..config import LogSettings, ResourceSettings


def examiner(name: str, resource: ResourceSettings) -> Examiner:
    """What looks at the database of this resource; not connected yet."""
    url = resource.url.get_secret_value()
    return PostgresExaminer(Door.of(url), name, resource.timeout.total_seconds())


def log_examiner(log: LogSettings) -> Examiner:
    """What looks at the server of a log that is no file."""
    return PostgresExaminer(Door.of(log.url.get_secret_value()), "log", log.statement_timeout.total_seconds())
