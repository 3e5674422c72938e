# Made from txcoord_client/_db/redis_.py by scripts/sync; to change it, change that.
"""Participants whose state is in Redis: one script with the marker, the result and the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..._answers import Call
from ...errors import Refused, Rejected
from ...protocol import barrier, reasons
from ...protocol import redis as scripts
from .sources import Source


class Repeated(Exception):
    """Somebody else has made the same call meanwhile."""

    def __init__(self, result: bytes) -> None:
        self.result = result


class RedisWork:
    """What the service's code gets as ``db``.

    :meth:`run` says what is to be changed: once, and it is done with the marker in one script when the function has
    returned. ``client`` is the client itself, for looking at what decides nothing.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._script: str | None = None
        self._keys: Sequence[str] = ()
        self._args: Sequence[Any] = ()
        self._entered: tuple[Call, int] | None = None
        self._result = b""

    def run(self, script: str, keys: Sequence[str] = (), args: Sequence[Any] = ()) -> None:
        """Run this Lua script, the body of a function of ``KEYS`` and ``ARGV``, in the end. ``return {refused =
        'REASON'}`` in it, before it has written anything, is a business no. Raises Rejected the second time."""
        if self._script is not None:
            raise Rejected("one call runs one script: put both into one", reason=reasons.NOT_SUPPORTED)
        self._script, self._keys, self._args = script, keys, args

    def enter(self, call: Call, keep_days: int) -> tuple[bool, bytes]:
        """Is the work to be done now; and what the first call, or this one, has returned. Raises Refused, Rejected."""
        self._entered = call, keep_days
        entered = self._read(self.client.eval(scripts.LOOK, 1, *self._arguments()))
        if not entered[0]:
            self._entered = None  # There is nothing to finish.
        return entered

    def keep(self, result: bytes) -> None:
        """Keep what the try or action returned."""
        self._result = result

    def finish(self) -> None:
        """Do it. Raises Refused; Repeated where it was done meanwhile; the client's error."""
        if self._entered is None:
            return
        key, *given = self._arguments()
        keys = [key, *self._keys]
        said = self.client.eval(
            scripts.act(self._script or ""), len(keys), *keys, *given, self._result, *self._args
        )
        if _text(said[0]) == "refused":
            raise Refused(_text(said[1]))
        if _text(said[0]) != "done":
            raise Repeated(self._read(said)[1])

    def _arguments(self) -> list[Any]:
        assert self._entered is not None
        call, keep_days = self._entered
        known = barrier.known_until_us(call.tx_id, keep_days) if keep_days else 0
        return [
            scripts.key(call.tx_id, call.branch),
            call.op,
            barrier.FIRST.get(call.op, call.op),
            int(call.op in barrier.UNDOING),
            call.not_after_us,
            keep_days * 86_400,
            known,
        ]

    def _read(self, said: Sequence[Any]) -> tuple[bool, bytes]:
        assert self._entered is not None
        call = self._entered[0]
        what, value = _text(said[0]), _bytes(said[1])
        if what == "first":
            return True, value
        if what == "empty":
            return False, b""
        if what == "late":
            raise Refused(reasons.DEADLINE, f"the {call.op} came after its transaction's deadline")
        if what == "absent":
            raise barrier_lost(call)
        if what == "forgotten":
            raise forgotten(call)
        if value[:1] == scripts.TOMBSTONE.encode():
            raise Refused(reasons.DECIDED, f"the {call.op} came after it was undone")
        if value[:1] == scripts.BEGUN.encode():
            raise Rejected(
                f"branch {call.branch} of {call.tx_id}: a script has failed in its middle, and Redis undoes nothing. "
                f"Look at the data, then set the field of {scripts.key(call.tx_id, call.branch)} to D or delete it",
                reason=reasons.SCRIPT_FAILED,
            )
        return False, value[1:]


def barrier_lost(call: Call) -> Rejected:
    """A confirm whose try is not there: its database has lost what it had promised, or the call came to another."""
    return Rejected(
        f"branch {call.branch} of {call.tx_id}: there is no marker of its {barrier.FIRST[call.op]}",
        reason=reasons.NOT_FOUND,
    )


def forgotten(call: Call) -> Rejected:
    """No marker is there, and it may have been pruned."""
    return Rejected(
        f"{call.tx_id} began longer ago than markers are kept: whether its {call.op} was made is not known any more",
        reason=reasons.EXPIRED,
    )


class RedisSource(Source):
    """A client of redis."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._looked = False

    @contextmanager
    def begin(self) -> Iterator[RedisWork]:
        if not self._looked:
            self._look()
        work = RedisWork(self._client)
        yield work
        work.finish()

    def _look(self) -> None:
        """Markers must not be thrown away for want of room. Raises Rejected."""
        info = self._client.info("memory")
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if int(info.get("maxmemory", 0)) and policy != "noeviction":
            raise Rejected(
                f"this Redis has maxmemory-policy {policy}: it would drop markers. Set it to noeviction",
                reason=reasons.MARKER_UNSAFE,
            )
        self._looked = True


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode()
