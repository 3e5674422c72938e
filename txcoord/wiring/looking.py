"""Looking at a resource for whoever asks the coordinator."""

from __future__ import annotations

from collections.abc import Sequence

from ..api.grpc.checking import Found, Looked
from ..config import Settings
from ..ports import Log
from .diagnosis import diagnose, look_at_log


async def look(name: str, settings: Settings, log: Log, log_ids: Sequence[str]) -> Looked | None:
    """What is right and wrong with the resource of that name; None: there is none. Raises LogUnavailable."""
    if name not in settings.resources:
        return None
    seen = await diagnose(name, settings, await look_at_log(log, log_ids))
    return Looked(
        name,
        seen.url,
        seen.identity,
        seen.version,
        [
            Found(one.reason, one.severity, one.fact + (f": {one.means}" if one.means else ""), one.remedy)
            for one in seen.findings
        ],
    )
