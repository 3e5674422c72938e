"""Best-effort SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..config import Settings, engine_of, items
from ..core.statements import PREFIX
from .resources import Resources

if TYPE_CHECKING:
    from ..adapters.calling.sql_ import SqlCaller

_DRIVERS = {"postgresql": "postgresql+asyncpg", "mariadb": "mysql+asyncmy"}


def driver_url(url: str) -> str:
    """As SQLAlchemy takes it."""
    return f"{_DRIVERS[engine_of(url)]}:{url.partition(':')[2]}"


def executes(settings: Settings) -> Mapping[str, frozenset[str]]:
    """On which resources statements are run, and for which namespaces."""
    return {
        name: frozenset(items(found.execute_namespaces))
        for name, found in settings.resources.items()
        if found.execute_url is not None
    }


def widths(settings: Settings) -> Mapping[str, int]:
    """By target, how many units there are connections for."""
    return {f"{PREFIX}{name}": settings.resources[name].width for name in executes(settings)}


def sql(settings: Settings, resources: Resources) -> SqlCaller | None:
    """What runs them; None: nothing does."""
    allowed = executes(settings)
    if not allowed:
        return None
    from ..adapters.calling.sql_ import Executed, SqlCaller

    made = {}
    for name, namespaces in allowed.items():
        url = settings.resources[name].execute_url
        assert url is not None
        text = url.get_secret_value()
        made[name] = Executed(
            driver_url(text),
            namespaces,
            settings.resources[name].width,
        )
    return SqlCaller(made, resources.expected_identity)
