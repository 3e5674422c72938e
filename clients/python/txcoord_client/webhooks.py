"""For whoever receives notifications: was this request signed by who is believed, and is it for now?

    hook = Webhook("whsec_…")

    @app.post("/hooks/orders")
    async def orders(request: Request) -> Response:
        told = hook.verify(await request.body(), request.headers)
        ...

A notification may come more than once, always with the same ``id``: see the inbox for acting on it once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .errors import Rejected
from .protocol import webhooks
from .protocol.webhooks import NotVerified

__all__ = ["CloudEvent", "NotVerified", "Notification", "Webhook"]


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """Attributes of a CloudEvent that a notification is sent as; its id and time come from the notification.

    ``structured``: one JSON body with all of it; else the attributes are headers, and the body is the payload. An empty
    ``source`` is ``txcoord:`` and the namespace.
    """

    type: str
    source: str = ""
    subject: str = ""
    data_schema: str = ""
    structured: bool = False
    extensions: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Notification:
    """What was received, once it is verified."""

    id: str
    """The same however often it comes."""
    sent_at: datetime
    body: bytes

    def json(self) -> Any:
        """The body. Raises ValueError for what is no JSON."""
        return json.loads(self.body)


class Webhook:
    """Verifies by *Standard Webhooks* (the headers ``webhook-id``, ``-timestamp``, ``-signature``). Several secrets:
    each of them is believed, so that one can be rotated. Raises Rejected for what is no secret."""

    def __init__(self, *secrets: str, clock: Callable[[], float] = time.time) -> None:
        if not secrets:
            raise Rejected("a webhook needs a secret, such as whsec_…: unsigned requests are never believed")
        try:
            self._secrets = [webhooks.secret_of(secret) for secret in secrets]
        except ValueError as error:
            raise Rejected(str(error)) from None
        self._clock = clock

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Notification:
        """What was sent. ``body``: as it came, unparsed. Raises NotVerified: answer 401, and do nothing."""
        lower = {str(name).lower(): str(value) for name, value in headers.items()}
        message_id = webhooks.verify(self._secrets, lower, body, self._clock())
        at = datetime.fromtimestamp(int(lower[webhooks.TIMESTAMP]), UTC)
        return Notification(message_id, at, body)
