"""A request that is sent again by somebody who has nothing but its gid."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ...core.errors import Refused
from ...core.model import Tx


async def same(request: Any, first: Awaitable[Tx], again: Callable[[str], Awaitable[Tx]]) -> Tx:
    """Ask, under a tx id that was made here if the request has none.

    The gid may have been given a tx id before. Then the request is one that is sent again: it is asked for once more
    under that one, so that the same gets the same answer, and other content is refused.
    """
    try:
        return await first
    except Refused as refused:
        known = refused.refusal.facts.get("tx_id")
        if request.tx_id or refused.refusal.code != "ALREADY_EXISTS" or not known:
            raise
        return await again(known)
