"""Announcements as CloudEvents 1.0, in structured JSON (CNCF)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from ...core.model import Topic
from ...outgoing import Outgoing, Record

HEADERS = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def record_of(log_id: str, out: Outgoing, topic: Topic) -> Record:
    """The event; its key is the tx id."""
    a = out.announcement
    # All that is put in here is digits, hexadecimal, or one of our own words; a branch is a path of numbers.
    head = json.dumps(
        {
            "specversion": "1.0",
            "id": f"{out.tx_id}.{a.epoch}.{a.seq}",
            "source": f"/txcoord/{log_id}",
            "type": f"txcoord.{a.what}",
            "subject": out.tx_id,
            "time": rfc3339(a.at_us),
            "datacontenttype": "application/json",
            "sequence": f"{a.epoch:010}{a.seq:05}",
        },
        separators=(",", ":"),
    )
    # The data is JSON already: it is not read to be written again.
    return Record(topic, out.tx_id, f'{head[:-1]},"data":{a.data}}}'.encode(), HEADERS)


def rfc3339(at_us: int) -> str:
    """UTC, to the microsecond."""
    at = _EPOCH + timedelta(microseconds=at_us)
    return f"{at.isoformat(timespec='microseconds')[:-6]}Z"  # Not +00:00.
