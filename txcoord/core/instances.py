"""Which processes of participants are there, by what was heard of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .targets import Target

MOST = 10_000
"""Instances that are known at a time."""
_GONE_US = 60_000_000
"""One of which nothing was heard for so long after its time is forgotten,"""
_LAST_US = 86_400_000_000
"""and so long the last one of a name."""
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Instance:
    """A process of a participant, as it registered itself."""

    namespace: str
    participant: str
    """Its name, which branches use as target."""
    instance: str
    """Unique among those of its participant."""
    address: str
    version: str = ""
    """Of the service, for people."""

    @property
    def key(self) -> Key:
        """Which one it is."""
        return self.namespace, self.participant, self.instance


@dataclass(slots=True)
class _Known:
    one: Instance
    target: Target
    until_us: int
    left: bool = False


class Instances:
    """All that are known. An instance is live until ``until_us``, which each sign of life moves on.

    Where nobody of a name is live, the last one that has not left counts all the same: it may only be restarting, and
    to call nobody helps nobody.
    """

    def __init__(self) -> None:
        self._by_key: dict[Key, _Known] = {}
        self._by_name: dict[str, dict[str, dict[str, _Known]]] = {}
        """By participant, namespace and instance."""
        self._turn = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[tuple[Instance, int]]:
        """Each that has not left, and until when it is live."""
        for known in self._by_key.values():
            if not known.left:
                yield known.one, known.until_us

    def heard(self, one: Instance, until_us: int) -> bool:
        """It lives, by its own word. False where there are too many already, or its address is none."""
        target = Target.parse(one.address)
        known = self._by_key.get(one.key)
        if target is None or (known is None and len(self._by_key) >= MOST):
            return False
        if known is not None and not known.left:
            until_us = max(until_us, known.until_us)
        known = self._by_key[one.key] = _Known(one, target, until_us)
        spaces = self._by_name.setdefault(one.participant, {})
        spaces.setdefault(one.namespace, {})[one.instance] = known
        return True

    def told(self, one: Instance, until_us: int) -> None:
        """It lives, by the word of another node: one that has left stays so."""
        known = self._by_key.get(one.key)
        if known is None or not known.left:
            self.heard(one, until_us)

    def left(self, key: Key, until_us: int) -> None:
        """It has left. Until then it is remembered that it has."""
        known = self._by_key.get(key)
        if known is not None:
            known.left, known.until_us = True, until_us

    def get(self, key: Key) -> Instance | None:
        """One that is known and has not left."""
        known = self._by_key.get(key)
        return known.one if known is not None and not known.left else None

    def keep(self, now_us: int, until_us: int) -> None:
        """Nobody can be heard now: who is live stays so until then."""
        for known in self._by_key.values():
            if not known.left and known.until_us > now_us:
                known.until_us = max(known.until_us, until_us)

    def forget(self, now_us: int) -> None:
        """Those of which nothing was heard for long, and those that have left."""
        for spaces in list(self._by_name.values()):
            for instances in list(spaces.values()):
                here = [known for known in instances.values() if not known.left]
                last = max(here, key=lambda known: known.until_us, default=None)
                for known in list(instances.values()):
                    after_us = 0 if known.left else _LAST_US if known is last else _GONE_US
                    if known.until_us + after_us < now_us:
                        self._drop(known.one)

    def _drop(self, one: Instance) -> None:
        del self._by_key[one.key]
        spaces = self._by_name[one.participant]
        del spaces[one.namespace][one.instance]
        if not spaces[one.namespace]:
            del spaces[one.namespace]
        if not spaces:
            del self._by_name[one.participant]

    def is_known(self, participant: str) -> bool:
        """Has one of this name registered, in whatever namespace?"""
        return participant in self._by_name

    def places(self, namespace: str, participant: str, now_us: int) -> tuple[Target, ...]:
        """Where to call it: another one of those that are live comes first each time. None is there twice."""
        here = [k for k in self._by_name.get(participant, {}).get(namespace, {}).values() if not k.left]
        live = [known for known in here if known.until_us > now_us]
        if not live:
            live = [max(here, key=lambda known: known.until_us)] if here else []
        self._turn += 1
        first = self._turn % len(live) if live else 0
        return tuple(dict.fromkeys(known.target for known in live[first:] + live[:first]))
