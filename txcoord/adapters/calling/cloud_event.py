"""A delivery as a CloudEvent (1.0), whichever way it goes."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

from ...core.action import Event
from ...ports import CallRequest
from . import http_plain

STRUCTURED = "application/cloudevents+json"


def attributes(event: Event, request: CallRequest) -> dict[str, str]:
    """Its attributes, those that are not empty."""
    at = datetime.fromtimestamp(request.tx.decided_us / 1_000_000, UTC)
    said = {
        "specversion": "1.0",
        "id": request.message_id,
        "type": event.type,
        "source": event.source or f"txcoord:{request.tx.namespace}",
        "time": at.isoformat().replace("+00:00", "Z"),
        "subject": event.subject,
        "dataschema": event.data_schema,
        **event.extensions,
    }
    return {name: value for name, value in said.items() if value}


def structured(said: dict[str, str], kind: str, body: bytes) -> bytes:
    """One JSON text of all, with the data in it; ``kind``: the content type of the data."""
    whole: dict[str, object] = {**said, "datacontenttype": kind}
    media = http_plain.media_type(kind)
    try:
        if media != "application/json" and not media.endswith("+json"):
            raise ValueError(media)
        whole["data"] = json.loads(body) if body else None
    except (ValueError, RecursionError):
        whole["data_base64"] = base64.b64encode(body).decode()
    return json.dumps(whole, ensure_ascii=False).encode()
