"""Statements for the coordinator to run: what is said on the wire of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from ._pb import common_pb2 as c
from .errors import Rejected

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def part_of(resource: str, statements: Iterable[tuple[str, Mapping[str, Any]]]) -> c.DeliveryPart:
    """The delivery. Raises Rejected for a parameter of a kind that is not known."""
    unit = c.SqlUnit(
        statements=[
            c.SqlStatement(
                text=text, parameters={name: value_of(value) for name, value in parameters.items()}
            )
            for text, parameters in statements
        ]
    )
    return c.DeliveryPart(target=f"sql:{resource}", sql=unit)


def value_of(value: Any) -> c.SqlValue:
    """A parameter. Raises Rejected."""
    match value:
        case None:
            return c.SqlValue(null_value=True)
        case bool():
            return c.SqlValue(bool_value=value)
        case int() if -(2**63) <= value < 2**63:
            return c.SqlValue(int_value=value)
        case float():
            return c.SqlValue(double_value=value)
        case str():
            return c.SqlValue(string_value=value)
        case bytes():
            return c.SqlValue(bytes_value=value)
        case Decimal():
            return c.SqlValue(decimal_value=str(value))
        case datetime() if value.tzinfo is not None:
            return c.SqlValue(timestamp_us=(value - _EPOCH) // timedelta(microseconds=1))
        case datetime():
            return c.SqlValue(local_timestamp_value=value.isoformat())
        case date():
            return c.SqlValue(date_value=value.isoformat())
        case time() if value.tzinfo is None:
            return c.SqlValue(time_value=value.isoformat())
        case uuid.UUID():
            return c.SqlValue(uuid_value=str(value))
    raise Rejected(
        f"{value!r} cannot be a parameter of a statement that is run later: None, bool, int, float, str, bytes, "
        "Decimal, datetime, date, time or UUID"
    )
