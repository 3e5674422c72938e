"""Announcements as CloudEvents 1.0, in structured JSON (CNCF)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from ...core.announcing import TARGET_DISABLED
from ...core.model import Topic
from ...outgoing import Outgoing, Record

HEADERS = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def record_of(log_id: str, out: Outgoing, topic: Topic) -> Record:
    """The event; its key is the tx id."""
    a = out.announcement
    head = json.dumps(
        {
            "specversion": "1.0",
            "id": f"{out.tx_id}.{a.epoch}.{a.seq}",
            "source": f"/txcoord/{log_id}",
            "type": f"txcoord.{a.what}",
            # What is about a target names it; its tx id is nobody's.
            "subject": json.loads(a.data)["target"] if a.what == TARGET_DISABLED else out.tx_id,
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
