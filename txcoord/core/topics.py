"""Topics of Kafka that messages and notifications are put on, as they are written, and who may."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .targets import NOT_ALLOWED, NotAllowed

PREFIX = "topic:"
OPERATION = "topic"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,243}", re.ASCII)
"""Kafka has 249 characters; with its prefix a target has 250."""
_ENTRY = re.compile(
    r"(?:(?P<namespace>\*|[A-Za-z0-9_.-]{1,64})/)?(?P<name>[A-Za-z0-9._-]{1,242}\*?|\*)", re.ASCII
)


def is_topic(name: str) -> bool:
    """May a topic have this name?"""
    return bool(_NAME.fullmatch(name)) and name not in (".", "..")


class Topics:
    """On which topics something may be put. ``allow``: a topic, or the beginning of several with ``*`` after it;
    before it ``namespace/``, or ``*/`` for all namespaces: without it, it is for the namespace ``default``.
    ``own``: what the names of txcoord's own topics begin with. Raises ValueError for what is none of them."""

    def __init__(self, allow: Iterable[str] = (), *, own: str = "", there: bool = False) -> None:
        self._there = there
        self._own = own
        self._allowed: list[tuple[str, str]] = []
        for entry in allow:
            found = _ENTRY.fullmatch(entry)
            if found is None:
                raise ValueError(
                    f"{entry[:80]!r} is no topic (orders.paid), beginning of topics (orders.*) or one of these of a "
                    "namespace (shop/orders.*, */audit)"
                )
            self._allowed.append((found["namespace"] or "default", found["name"]))

    def why_not(self, target: str, namespace: str) -> NotAllowed | None:
        """Why nothing of this namespace is put there; None: it is."""
        name = target.removeprefix(PREFIX)
        if not is_topic(name):
            return NotAllowed(
                NOT_ALLOWED, f"{name[:80]!r} is no name of a topic: 1 to 243 characters of [A-Za-z0-9._-]"
            )
        if not self._there:
            return NotAllowed(
                NOT_ALLOWED,
                f"topic {name!r}: this coordinator has no Kafka: set kafka.bootstrap_servers and kafka.topics",
            )
        if name.startswith("__") or (self._own and name.startswith(f"{self._own}.")):
            return NotAllowed(NOT_ALLOWED, f"topic {name!r} belongs to Kafka or to txcoord itself")
        for owner, allowed in self._allowed:
            fits = name.startswith(allowed[:-1]) if allowed.endswith("*") else name == allowed
            if fits and owner in ("*", namespace):
                return None
        entry = name if namespace == "default" else f"{namespace}/{name}"
        return NotAllowed(
            NOT_ALLOWED,
            f"namespace {namespace!r} may put nothing on topic {name!r}: add {entry} to kafka.topics "
            "(TXCOORD_KAFKA__TOPICS)",
        )


NO_TOPICS = Topics()
