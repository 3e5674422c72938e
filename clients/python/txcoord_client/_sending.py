"""``coord.local`` and ``coord.attach``: messages that go with a local transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ._answered import AnsweredLocal, check_same
from ._attached import Attached
from ._block import Scope
from ._local import Local
from ._sources import Resources
from .errors import Rejected
from .participant import Participant
from .protocol import reasons


class Sending:
    """Begins them; the Coordinator has the rest."""

    _resources: Resources

    def begin(
        self,
        name: str = ...,
        *,
        gid: str = ...,
        timeout: float | timedelta | None = ...,
        labels: Mapping[str, str] | None = ...,
        headers: Mapping[str, str] | None = ...,
        resources: list[str] = ...,
        wait: str = ...,
    ) -> Scope:
        raise NotImplementedError

    def local(
        self,
        target: Any,
        *,
        resource: str = "",
        answered_by: Participant | None = None,
        name: str = "local",
        gid: str = "",
        timeout: float | timedelta | None = None,
        labels: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: str = "committed",
    ) -> Local:
        """``async with coord.local(engine) as tx: await tx.db.execute(…); tx.message(target, body)``: one local
        transaction, and messages that leave exactly when it has committed, whatever dies in between.

        ``target`` and ``resource``: as in :meth:`Transaction.xa`; the coordinator has to know the database, since it
        asks there when this process has gone. The local transaction must have ended by the deadline (``timeout``).
        The rest is as in :meth:`begin`. Inside a transaction it becomes a part of that one, and ends with it.
        ``tx.message`` raises Rejected inside of a savepoint of ``tx.db``, whose rollback would not take it back.

        ``answered_by``: a participant of this service whose ``db`` the target is, and which is served at its address in
        ``Coordinator(participants=…)``. Then the coordinator need not know the database: it asks the participant. No
        ``gid`` then, and no transaction around it.

        Entering raises UnknownResource for a database that the coordinator does not know, and what entering
        :meth:`begin` raises; leaving raises what leaving that raises.
        """
        if answered_by is not None:
            if target is not answered_by.db:
                raise Rejected(f"answered_by={answered_by.name!r}: its own db is needed, and no other")
            if gid or resource:
                raise Rejected(
                    "answered_by: neither a gid nor a resource goes with it", reason=reasons.NOT_SUPPORTED
                )
            own = self.begin(name, timeout=timeout, labels=labels, headers=headers, wait=wait)
            home: Any = self
            return AnsweredLocal(home, own, answered_by)
        source = self._resources.source(target, resource)
        scope = self.begin(
            name,
            gid=gid,
            timeout=timeout,
            labels=labels,
            headers=headers,
            resources=[source.resource],
            wait=wait,
        )
        return Local(scope, target, source.resource)

    def attach(
        self,
        db: Any,
        *,
        resource: str = "",
        answered_by: Participant | None = None,
        name: str = "attached",
        timeout: float | timedelta | None = None,
        labels: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Attached:
        """``async with coord.attach(session) as tx: tx.message(target, body)`` inside a transaction that you own and
        commit: the messages leave when it has, and not at all when it, or a savepoint around the block, was rolled
        back.

        ``db``: a session or connection of SQLAlchemy, or a driver's, in a transaction; ``resource``: the name of its
        database, where ``Coordinator(resources=…)`` does not say it. They leave at once after the outermost commit of a
        session; after that of a connection call ``await tx.settle()``, else they leave at the deadline (``timeout``),
        by which the transaction must have ended. Inside a global transaction ``db`` has to be one of its branches
        (``g.xa``), and the messages go with the whole; to a transaction besides attach inside ``coord.outside()``.
        ``answered_by``: as in :meth:`local`; ``db`` is of that participant's engine or pool.

        Entering raises Rejected inside a global transaction that ``db`` is no branch of.
        Leaving the block raises Unavailable or Rejected when they could not be made durable (roll back then), and
        ResourceMismatch for another database than the coordinator means.
        """
        if answered_by is not None:
            check_same(db, answered_by)
        named = "" if answered_by is not None else self._resources.source(db, resource).resource
        scope = self.begin(name, timeout=timeout, labels=labels, headers=headers)
        home: Any = self
        return Attached(home, scope, db, named, answered_by)
