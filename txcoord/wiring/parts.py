"""The parts of a node, also for commands that need only one of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.calling.any_ import AnyCaller
from ..adapters.calling.credentials import Tls, TokenFile
from ..adapters.sql.log import SqlLog
from ..api.grpc.mapping import Limits
from ..api.grpc.server import ApiSettings
from ..config import Settings, engine_of, microseconds, redacted
from ..core.model import Windows
from ..core.targets import Targets
from ..engine import failpoints
from ..ports import Failpoints, LogIdentity, LogUnavailable, SchemaMismatch
from .errors import ExitCode, StartError
from .resources import Resources
from .sql import executes, sql
from .topics import topic_caller, topics
from .webhooks import webhooks

if TYPE_CHECKING:
    from .resources import AnyFinisher


def windows(settings: Settings) -> Windows:
    """How long what may be answered."""
    return Windows(microseconds(settings.recovery.grace), microseconds(settings.retention.rows))


def open_log(settings: Settings) -> SqlLog:
    """The log, not connected yet."""
    return SqlLog(
        settings.log.url.get_secret_value(),
        windows=windows(settings),
        detail_retention_us=microseconds(settings.retention.detail),
        statement_timeout_s=settings.log.statement_timeout.total_seconds(),
    )


def log_file(settings: Settings) -> Path | None:
    """The file of a log on SQLite."""
    url = settings.log.url.get_secret_value()
    return Path(url.partition(":///")[2].partition("?")[0]) if url.startswith("sqlite") else None


def must_exist(settings: Settings) -> None:
    file = log_file(settings)
    if file is not None and not file.exists():
        raise StartError(
            ExitCode.SCHEMA,
            "SCHEMA_MISMATCH",
            f"there is no log at {file.absolute()} yet: run `txcoord migrate` (or set TXCOORD_LOG__URL)",
        )


async def connect(log_: SqlLog, settings: Settings) -> LogIdentity:
    """Connect to the log. Raises StartError that says what to do."""
    must_exist(settings)
    try:
        return await log_.open()
    except SchemaMismatch as error:
        raise StartError(ExitCode.SCHEMA, "SCHEMA_MISMATCH", _schema(settings, error)) from error
    except LogUnavailable as error:
        raise log_down(error) from error


def finisher(settings: Settings, name: str) -> AnyFinisher:
    """What finishes branches on one resource."""
    resource = settings.resources[name]
    url = resource.url.get_secret_value()
    make: type[AnyFinisher]
    if engine_of(url) == "postgresql":
        from ..adapters.xa.postgresql import PostgresFinisher as make
    else:
        from ..adapters.xa.mariadb import MariaFinisher as make
    return make(
        name,
        url,
        windows=windows(settings),
        width=resource.width,
        timeout_s=resource.timeout.total_seconds(),
    )


def caller(settings: Settings, called: Targets, resources: Resources) -> AnyCaller:
    """What calls participants."""
    targets = settings.targets
    return AnyCaller(
        node=settings.node_name,
        targets=called,
        tls=Tls(targets.ca_file, targets.cert_file, targets.key_file),
        tokens={
            name: TokenFile(participant.token_file)
            for name, participant in settings.participants.items()
            if participant.token_file is not None
        },
        webhooks=webhooks(settings, called),
        sql=sql(settings, resources),
        topics=topic_caller(settings),
    )


def failpoints_of_environment() -> Failpoints:
    try:
        return failpoints.from_environment(os.environ.get("TXCOORD_FAILPOINTS", ""))
    except ValueError as error:
        raise StartError(ExitCode.CONFIG, "BAD_FAILPOINT", f"TXCOORD_FAILPOINTS: {error}") from error


def api_settings(settings: Settings, called: Targets) -> ApiSettings:
    limits = settings.limits
    return ApiSettings(
        limits=Limits(
            payload=limits.payload,
            message=limits.message,
            operations=limits.operations,
            branches=limits.branches,
            deadline_default_us=microseconds(settings.deadline.default),
            deadline_max_us=microseconds(settings.deadline.max),
            targets=called,
            webhooks=settings.notified(called),
            executes=executes(settings),
            topics=topics(settings),
        ),
        reflection=settings.reflection,
    )


def log_down(error: LogUnavailable) -> StartError:
    """The log cannot be used; its text names the log, without secrets."""
    return StartError(ExitCode.UNAVAILABLE, "LOG_UNAVAILABLE", f"the log cannot be used: {_one_line(error)}")


def _schema(settings: Settings, error: SchemaMismatch) -> str:
    url = redacted(settings.log.url.get_secret_value())
    return f"the log {url}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
