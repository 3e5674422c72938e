"""The inbox of a receiver: a message that comes more than once acts once, whoever sends it.

    inbox = Inbox("orders", db=engine)

    @inbox
    async def paid(db, order: int) -> None:
        await db.execute(update(...))

    took = await paid(message_id, order=7)

The row that says so is written in the transaction of the work, so neither is there without the other. For consumers of
Kafka and handlers of HTTP alike; for what a coordinator delivers to a ``Participant``, its barrier does the same.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ._db import kinds
from ._db.hands import Hand, noticing_rollbacks, rolled_back
from .errors import Refused, Rejected
from .protocol import inbox, reasons

__all__ = ["Inbox", "Took", "id_of"]

T = TypeVar("T")
_PRUNED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Took(Generic[T]):
    """What became of a message. All of these are final: consume it, commit its offset, answer its sender."""

    first: bool
    """Was it done now, and not before?"""
    refused: str = ""
    """The reason code of the business no; empty: it was done."""
    result: T | None = None
    """What the work returned, where it was done now."""

    @property
    def status(self) -> int:
        """As an HTTP handler answers it: 204, or 409 for a no, at which a coordinator parks it at once."""
        return 409 if self.refused else 204


def id_of(record: Any) -> str:
    """The id of a record that a consumer of Kafka has: that of the message (``txcoord-message-id``), else of the
    CloudEvent (``ce_id``), which are the same when their sender repeats itself; else its place."""
    headers = dict(record.headers or ())
    own = headers.get("txcoord-message-id") or headers.get("ce_id")
    return own.decode() if own else f"{record.topic}/{record.partition}/{record.offset}"


class Inbox:
    """Of one source of messages, in one database. ``source``: the receiver's own name for it; ids are unique within it.
    ``db``: as for a Participant. Raises Rejected for what is none of both."""

    def __init__(self, source: str, db: Any) -> None:
        try:
            self.source = inbox.checked_source(source)
        except ValueError as error:
            raise Rejected(str(error), reason=reasons.BAD_REQUEST) from None
        self._source = kinds.source_of(db)

    def __call__(self, work: Callable[..., Awaitable[T]]) -> Callable[..., Any]:
        """Decorate a function of ``db`` and arguments: it is then called with the message's id and the arguments."""

        @functools.wraps(work)
        async def once(message_id: str, /, *args: Any, **kwargs: Any) -> Took[T]:
            return await self.take(message_id, work, *args, **kwargs)

        parameters = list(inspect.signature(work).parameters.values())
        if not parameters:
            raise Rejected(f"{work.__name__} takes no db: the transaction of its work is its first argument")
        return once

    async def take(
        self, message_id: str, work: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any
    ) -> Took[T]:
        """Do ``work(db, ...)`` unless this message was taken before.

        A business no (``Refused``) undoes the work, is remembered, and is the answer from then on: it is never tried
        again by itself. Anything else that the work raises undoes it too and is raised: a failure, to be tried again.
        Raises Rejected for a message without an id, for a database that has no inbox, and where the transaction was
        rolled back and the work has not told.
        """
        key = self._key(message_id)
        try:
            async with self._source.begin() as db:
                hand, statements = await self._hand(db)
                if not await hand.run(statements.enter(self.source, key, inbox.DONE, "")):
                    return await self._before(hand, statements, key)
                result = await work(db, *args, **kwargs)
                # As the barrier does: an error that the work has swallowed is none of the COMMIT's.
                with noticing_rollbacks():
                    there = await hand.row(statements.read(self.source, key))
                if there is None:
                    raise rolled_back()
        except Refused as no:
            return await self._remember(key, inbox.code_of(no.reason))
        return Took(True, "", result)

    async def _remember(self, key: str, code: str) -> Took[Any]:
        async with self._source.begin() as db:
            hand, statements = await self._hand(db)
            if not await hand.run(statements.enter(self.source, key, inbox.REFUSED, code)):
                # Somebody else has done it meanwhile, or was refused as well.
                return await self._before(hand, statements, key)
        return Took(True, code)

    async def _before(self, hand: Hand, statements: inbox.Statements, key: str) -> Took[Any]:
        row = await hand.row(statements.read(self.source, key))
        return Took(False, str(row[1]) if row is not None and row[0] == inbox.REFUSED else "")

    async def refused(self, message_id: str) -> str:
        """The reason with which this message was refused; empty: it was not."""
        async with self._source.begin() as db:
            hand, statements = await self._hand(db)
            return (await self._before(hand, statements, self._key(message_id))).refused

    async def prune(self, keep_days: int = 30) -> int:
        """Delete a small batch of what is older; how many rows it was. What comes again later than that acts again."""
        if keep_days < 1:
            raise Rejected("keep_days is at least 1", reason=reasons.BAD_REQUEST)
        async with self._source.begin() as db:
            hand, statements = await self._hand(db)
            return await hand.run(statements.prune(self.source, keep_days * inbox.DAY_US, _PRUNED_AT_ONCE))

    async def make_table(self) -> None:
        """Make ``txcoord_inbox`` where there is none."""
        async with self._source.begin() as db:
            hand, statements = await self._hand(db)
            await hand.run(statements.ddl)

    def _key(self, message_id: str) -> str:
        try:
            return inbox.key_of(message_id)
        except ValueError as error:
            raise Rejected(str(error), reason=reasons.BAD_REQUEST) from None

    async def _hand(self, db: Any) -> tuple[Hand, inbox.Statements]:
        hand = kinds.hand_of(db)
        found = inbox.BY_FAMILY.get(hand.family)
        if found is None:
            raise Rejected(f"the inbox works on PostgreSQL, MariaDB, MySQL and SQLite, not on {hand.family}")
        await hand.refuse_autocommit()
        return hand, found
