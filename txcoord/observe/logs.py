"""Structured logs: one JSON object a line, with tx id and branch wherever there is one."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_NAME = "logger_name"
_FIRST = ("timestamp", "level", "event", "tx_id", "branch")


def configure(*, level: str = "INFO", json: bool = True) -> None:
    """Set the process's logging up: structlog and the standard library's loggers, on standard error."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_logger,
    ]
    last: list[Any]
    if json:
        # In this order, so that lines can be read one below the other.
        last = [structlog.processors.format_exc_info, _in_order, structlog.processors.JSONRenderer()]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24)]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger that carries its module's name."""
    # A lazy proxy: it may be made before `configure`. Its initial values may not be called "logger".
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**{_NAME: name})
    return logger


def _in_order(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: event[key] for key in _FIRST if key in event} | {
        key: value for key, value in event.items() if key not in _FIRST
    }


def _name_logger(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    record = event.get("_record")
    name = event.pop(_NAME, None) if record is None else record.name
    if name is not None:
        event["logger"] = name
    return event
