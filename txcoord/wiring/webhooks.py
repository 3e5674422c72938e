"""Notifications over HTTP."""

from __future__ import annotations

from ..adapters.calling.webhooks import SecretFile, Webhooks
from ..config import Settings, items
from ..core.targets import Targets


def webhooks(settings: Settings, called: Targets) -> Webhooks:
    """Whom they are sent to, and what signs them."""
    return Webhooks(
        settings.notified(called),
        [
            SecretFile(found.file, items(found.hosts), f"webhook_secrets.{name}.file")
            for name, found in settings.webhook_secrets.items()
        ],
    )
