# Made from txcoord_client/_local.py by scripts/sync; to change it, change that.
"""``coord.local(engine)``: a local transaction and the messages that go with it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

from .. import _savepoints
from .transaction import Transaction, XaBlock


class Block(Protocol):
    """A Scope."""

    def __enter__(self) -> Transaction: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Local:
    """``with coord.local(engine) as tx: tx.db.execute(...); tx.message(target, body)``.

    Its end makes the messages durable at the coordinator, then commits the local transaction with its marker; then they
    leave. Whatever dies in between, they leave exactly when the local transaction has committed.
    """

    def __init__(self, scope: Block, target: Any, resource: str) -> None:
        self._scope = scope
        self._target = target
        self._resource = resource
        self._block: XaBlock | None = None
        self._transaction: Transaction | None = None
        self.db: Any = None
        """The connection, or the session that was given."""
        self._depth = 0

    @property
    def transaction(self) -> Transaction:
        """The transaction that it is, for its ``tx_id``, ``outcome`` and the rest."""
        assert self._transaction is not None
        return self._transaction

    def message(self, target: Any, body: Any = None, **more: Any) -> str:
        """As :meth:`Transaction.message`. Raises Rejected inside of a savepoint of ``db``, as far as that tells."""
        _savepoints.refuse(self.db, self._depth)
        return self.transaction.message(target, body, **more)

    def notify(self, target: Any, body: Any = None, **more: Any) -> str:
        """As :meth:`Transaction.notify`, and as above."""
        _savepoints.refuse(self.db, self._depth)
        return self.transaction.notify(target, body, **more)

    def __enter__(self) -> Self:
        self._transaction = self._scope.__enter__()
        try:
            self._block = self._transaction.xa(self._target, resource=self._resource)
            self.db = self._block.__enter__()
            self._depth = _savepoints.depth(self.db)
        except BaseException as error:
            self._scope.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._block is not None
        self._block.__exit__(kind, error, trace)
        self._scope.__exit__(kind, error, trace)
