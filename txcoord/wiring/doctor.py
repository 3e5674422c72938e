"""What is wrong with the whole: settings, log, resources. The coordinator that runs is asked by the command."""

from __future__ import annotations

import asyncio

from txcoord_client.protocol import reasons

from ..adapters.sql.log import SqlLog
from ..adapters.xa.checks import ERROR, CannotConnect, Finding, error, ok, warning
from ..config import Settings, is_loopback, microseconds, redacted, split_listen
from ..ports import LogUnavailable
from . import services
from .diagnosis import Diagnosis, LogSeen, diagnose, look_at_log, twins
from .errors import StartError
from .examiners import log_examiner
from .parts import connect, log_file, open_log


async def examine(settings: Settings) -> list[Diagnosis]:
    """Look at the settings, the log and every resource."""
    log = open_log(settings)
    of_log, seen = await _log(settings, log)
    try:
        resources = await asyncio.gather(*(diagnose(name, settings, seen) for name in settings.resources))
    finally:
        if seen is not None:
            await log.close()
    twins(resources)
    return [_settings(settings), of_log, *resources, *await services.look(settings)]


def _settings(settings: Settings) -> Diagnosis:
    found = Diagnosis("settings", "")
    count = len(settings.resources)
    if not count:
        found.findings.append(
            error(
                reasons.UNKNOWN_RESOURCE,
                "no resource is in the settings",
                "no database can take part in a transaction",
                "export TXCOORD_RESOURCES__orders__URL='postgresql://USER:PASSWORD@HOST:5432/DATABASE'",
            )
        )
    else:
        found.findings.append(ok("settings", f"they can be read; resources: {', '.join(settings.resources)}"))
    for address, variable, better in (
        (settings.listen, "TXCOORD_LISTEN", "127.0.0.1:7070"),
        (settings.http_address, "TXCOORD_HTTP_ADDRESS", "127.0.0.1:7071"),
    ):
        secured = settings.tls.cert_file is not None and settings.auth.token_file is not None
        if not address or secured or is_loopback(split_listen(address)[0]):
            continue
        missing = (
            "tokens" if settings.tls.cert_file else "TLS" if settings.auth.token_file else "TLS and tokens"
        )
        found.findings.append(
            warning(
                reasons.OPEN_TO_ALL,
                f"the coordinator listens on {address}, without {missing}",
                "whoever is on the way, or can connect, can commit and abort anything",
                "# set tls.cert_file and auth.token_file, or listen on this machine alone:",
                f"export {variable}={better}",
            )
        )
    return found


async def _log(settings: Settings, log: SqlLog) -> tuple[Diagnosis, LogSeen | None]:
    found = Diagnosis("log", redacted(settings.log.url.get_secret_value()))
    try:
        identity = await connect(log, settings)
    except StartError as trouble:
        found.findings.append(_unusable(trouble))
        return found, None
    try:
        seen = await look_at_log(log, (identity.log_id, *identity.earlier_log_ids))
    except LogUnavailable as trouble:
        await log.close()
        found.findings.append(
            Finding(
                reasons.LOG_UNAVAILABLE, ERROR, f"it stopped answering: {trouble}", "nothing can be decided"
            )
        )
        return found, None
    found.identity = identity.log_id
    found.findings.append(ok("log", f"it answers, and its schema is current; log id {identity.log_id}"))
    found.findings += await _server(settings)
    found.findings += _here(seen.offset_us, settings)
    return found, seen


def _unusable(trouble: StartError) -> Finding:
    if trouble.reason == reasons.SCHEMA_MISMATCH:
        return error(
            trouble.reason,
            trouble.message,
            "no coordinator starts on it",
            "txcoord migrate",
            "# if that refuses: the log was written by a newer version; install that one",
        )
    return error(
        trouble.reason,
        trouble.message,
        "nothing can be decided, and what is prepared waits",
        "# is its server up, and is TXCOORD_LOG__URL right?",
    )


async def _server(settings: Settings) -> list[Finding]:
    """Does the log's server keep what it confirms?"""
    if log_file(settings) is not None:
        return []
    eyes = log_examiner(settings.log)
    try:
        return eyes.judge_log(await eyes.collect())
    except CannotConnect as trouble:
        return [trouble.finding]
    finally:
        await eyes.close()


def _here(offset_us: int, settings: Settings) -> list[Finding]:
    """This machine's clock against the log's."""
    if abs(offset_us) <= microseconds(settings.node.clock_tolerance):
        return [ok("clock", f"this machine's clock is {abs(offset_us) / 1000:.0f} ms from the log's")]
    way = "behind" if offset_us > 0 else "ahead of"
    return [
        error(
            reasons.CLOCK_OFF,
            f"this machine's clock is {abs(offset_us) / 1_000_000:.1f} s {way} the log's",
            "a coordinator here neither scans for orphans nor takes over what others left",
            "# is it kept by NTP?",
            "timedatectl status",
        )
    ]
