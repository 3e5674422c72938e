"""Is a target worth calling? A circuit breaker for each.

A breaker belongs to an address, not to a namespace: who is dead is dead for every tenant. It opens when the calls for
*several branches* found nobody, or heard nothing in time, and none since was answered: branches that fail for a reason
of their own never open it, however many they are, and neither does a target that is away now and then. (A ratio over a
window would have to know how many calls make one; here an answer is proof of life, and no number has to be tuned.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

_AWAY = frozenset(
    {"UNAVAILABLE", "TLS", "TIMED_OUT", "NO_ANSWER", "HTTP_502", "HTTP_503", "HTTP_504"}
    | {"SQL_2002", "SQL_2003", "SQL_2006", "SQL_2013"}  # MariaDB's client: no connection, or it is lost.
)
_AWAY_CLASSES = ("SQLSTATE_08", "SQLSTATE_57P")
_NOT_ASKED = frozenset({"CREDENTIALS", "OTHER"})


def means_away(reason: str) -> bool:
    """Does this failure of a call say that its target was not reached, or did not answer in time?"""
    code = reason.partition(":")[0]
    return code in _AWAY or code.startswith(_AWAY_CLASSES)


def not_asked(reason: str) -> bool:
    """Does it say nothing of its target, since this node could not even call it?"""
    return reason.partition(":")[0] in _NOT_ASKED


class Breaker(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    """Calls are made."""
    OPEN = "open"
    """None is made, but for a probe now and then."""
    HALF_OPEN = "half_open"
    """A probe is on its way."""


class Sign(StrEnum):
    """What a breaker is told."""

    ANSWERED = "answered"
    """The target has answered a call: done, refused, pending and an error of its own are all signs of life."""
    FAILED = "failed"
    """A call has failed, and not enough of them to be sure."""
    DEAD = "dead"
    """A call has failed, as those of several branches before it."""
    FORGOTTEN = "forgotten"
    """Nobody says any more that it is dead, and this node has seen neither that it is nor that it is not."""
    PROBED = "probed"
    """A call is made to find out."""
    PROBE_FAILED = "probe_failed"
    """That call has failed, or nothing was heard of it for too long."""


_B, _S = Breaker, Sign

BREAKER_NEXT: Mapping[tuple[Breaker, Sign], Breaker] = {
    (_B.CLOSED, _S.ANSWERED): _B.CLOSED,
    (_B.CLOSED, _S.FAILED): _B.CLOSED,
    (_B.CLOSED, _S.DEAD): _B.OPEN,
    (_B.OPEN, _S.ANSWERED): _B.CLOSED,  # By a call that was made before it opened, or by another node's.
    (_B.OPEN, _S.FAILED): _B.OPEN,
    (_B.OPEN, _S.DEAD): _B.OPEN,
    (_B.OPEN, _S.FORGOTTEN): _B.CLOSED,
    (_B.OPEN, _S.PROBED): _B.HALF_OPEN,
    (_B.OPEN, _S.PROBE_FAILED): _B.OPEN,
    (_B.HALF_OPEN, _S.ANSWERED): _B.CLOSED,
    (_B.HALF_OPEN, _S.FAILED): _B.HALF_OPEN,
    (_B.HALF_OPEN, _S.DEAD): _B.HALF_OPEN,
    (_B.HALF_OPEN, _S.PROBED): _B.HALF_OPEN,
    (_B.HALF_OPEN, _S.PROBE_FAILED): _B.OPEN,
}
"""What is not in it changes nothing: a probe of a target that has been found well meanwhile."""

Key = tuple[str, str]
"""Tx id and branch."""


@dataclass(slots=True)
class Health:
    """What a node knows of one target. It is told of every call, in the order in which they end."""

    breaker: Breaker = Breaker.CLOSED
    since_us: int = 0
    """When it opened or closed last; 0: never."""
    failing: set[Key] = field(default_factory=set)
    """Branches that have failed since the last answer; no more than are needed to be sure."""
    probe: Key | None = None
    """The branch whose call finds out."""
    probe_until_us: int = 0
    """When that call counts as lost."""
    last_error: str = ""
    last_error_us: int = 0
    heard: bool = False
    """That it is dead is what other nodes say, or have said until lately: this one has seen nothing of it."""

    @property
    def is_open(self) -> bool:
        """Are calls held back?"""
        return self.breaker is not Breaker.CLOSED

    def answered(self, now_us: int) -> bool:
        """It lives. Is that news? It is too where others have said that it is dead, and do so no more."""
        self.failing.clear()
        was_in_doubt, self.heard = self.heard and not self.is_open, False
        return self._take(Sign.ANSWERED, now_us) or was_in_doubt

    def failed(self, key: Key, reason: str, now_us: int, enough: int) -> bool:
        """A call for this branch has failed. Is the target dead from now on? ``enough`` branches have to say so."""
        self.last_error, self.last_error_us = reason, now_us
        if key == self.probe:
            self.heard = False
            self._take(Sign.PROBE_FAILED, now_us)
            return False
        if self.is_open:
            return False
        self.failing.add(key)
        self.heard = self.heard and len(self.failing) < enough
        return self._take(Sign.DEAD if len(self.failing) >= enough else Sign.FAILED, now_us)

    def found_dead(self, reason: str, now_us: int) -> bool:
        """Another node says that it is. Is that news?"""
        self.last_error = self.last_error or reason
        self.heard = self.heard or not self.is_open
        return self._take(Sign.DEAD, now_us)

    def forgotten(self, now_us: int) -> bool:
        """No node says any more that it is dead: it has answered one, or what they share was lost. Is it worth a call?
        What this node has seen itself counts until an answer."""
        if self.heard:
            self._take(Sign.FORGOTTEN, now_us)
        return self.breaker is not Breaker.HALF_OPEN

    def may_probe(self, now_us: int) -> bool:
        """Is no probe on its way? One of which nothing was heard for too long is not."""
        if self.breaker is Breaker.HALF_OPEN and now_us >= self.probe_until_us:
            self._take(Sign.PROBE_FAILED, now_us)
        return self.breaker is Breaker.OPEN

    def probed(self, key: Key, until_us: int, now_us: int) -> None:
        """The call for this branch finds out; after ``until_us`` it counts as lost."""
        self.probe, self.probe_until_us = key, until_us
        self._take(Sign.PROBED, now_us)

    def dropped(self, key: Key, now_us: int) -> None:
        """The call for this branch was not made: if it was to find out, another one may."""
        if key == self.probe:
            self._take(Sign.PROBE_FAILED, now_us)

    def _take(self, sign: Sign, now_us: int) -> bool:
        before, was_open = self.breaker, self.is_open
        self.breaker = BREAKER_NEXT.get((before, sign), before)
        if self.breaker is not Breaker.HALF_OPEN:
            self.probe = None
        if self.is_open is was_open:
            return False
        self.since_us = now_us
        self.failing.clear()
        return True
