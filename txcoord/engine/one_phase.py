"""Asking a database whether it has committed a transaction in one phase: itself, or a participant whose it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from ..core import answering
from ..core.errors import Refusal, Refused
from ..core.events import DeadlinePassed, OnePhaseDone, Probe, Rollback
from ..core.model import Tx, Windows
from ..ports import Answerer, Clock, Failpoints, Finisher, NotAnswered, Probed, ResourceTrouble

_ASKED_AT_MOST = 50
_ANY_TIME_US = 2**62


class Prober:
    """Asks by tombstone: what was not committed by then never will be."""

    def __init__(
        self,
        finishers: Mapping[str, Finisher],
        *,
        windows: Windows,
        clock: Clock,
        failpoints: Failpoints,
        interval_s: float,
        answerer: Answerer | None = None,
        answer_s: float = 5.0,
    ) -> None:
        self._finishers = finishers
        self._answerer = answerer
        self._answer_s = answer_s
        self._windows = windows
        self._clock = clock
        self._failpoints = failpoints
        self._interval_s = interval_s

    async def ask(
        self, tx: Tx, probe: Probe, event: Rollback | DeadlinePassed
    ) -> tuple[bool, OnePhaseDone | None]:
        """Ask every resource of the probe. All never: ``(True, None)``; one has committed it: that news.

        Raises Refused when one cannot answer: then nothing may be concluded.
        """
        # A row that is on its way keeps its markers from being pruned: what is not there then never was, however late
        # it is asked. Without that it could never end once its database was away until W.
        not_after_us = (
            _ANY_TIME_US if isinstance(event, DeadlinePassed) else self._windows.abort_until(tx.deadline_us)
        )
        for name in probe.resources or tuple(self._finishers):
            question = self._question(name, tx, not_after_us)
            await self._failpoints.reach("probe.before")
            # The sweep comes back: one whose local transaction is still open must not keep it from all others.
            times = 1 if isinstance(event, DeadlinePassed) else _ASKED_AT_MOST
            answer = await self._ask_one(name, question, times)
            await self._failpoints.reach("probe.after")
            if answer is Probed.COMMITTED:
                return False, OnePhaseDone(tx)
            if answer is Probed.TOO_LATE:
                raise Refused(
                    Refusal("FAILED_PRECONDITION", "EXPIRED", "too long after the deadline to tell", False)
                )
        return True, None

    def _question(self, name: str, tx: Tx, not_after_us: int) -> Callable[[], Awaitable[Probed]]:
        """What is asked of a resource, or of a participant. Raises Refused."""
        target = answering.target_of(name)
        if target and self._answerer is not None:
            participant = answering.participant_of(name)
            identity = answering.identity_of(name)
            return partial(self._answerer.query_back, target, participant, tx, self._answer_s, identity)
        finisher = self._finishers.get(name)
        if finisher is not None:
            return partial(finisher.probe_one_phase, tx.tx_id, not_after_us)
        raise Refused(
            Refusal(
                "FAILED_PRECONDITION",
                "UNKNOWN_PARTICIPANT" if target else "UNKNOWN_RESOURCE",
                f"participants are not called here, so {target!r} cannot be asked"
                if target
                else f"resource {name!r} is not configured here, so it cannot be asked",
                False,
                {"resource": name},
            )
        )

    async def _ask_one(self, name: str, question: Callable[[], Awaitable[Probed]], times: int) -> Probed:
        for asked in range(times):
            if asked:
                await self._clock.sleep(self._interval_s)
            try:
                answer = await question()
            except ResourceTrouble as trouble:
                raise _unavailable(trouble.reason, str(trouble), name, 500_000) from trouble
            except NotAnswered as silent:
                pause_us = silent.retry_after_us or 500_000
                raise _unavailable("NOT_ANSWERED", str(silent), name, pause_us) from silent
            if answer is not Probed.OPEN:
                return answer
        text = f"the local commit on {name!r} is still open: ask again"
        raise _unavailable("IN_PROGRESS", text, name, 1_000_000)


def _unavailable(reason: str, message: str, name: str, retry_after_us: int) -> Refused:
    return Refused(Refusal("UNAVAILABLE", reason, message, False, {"resource": name}, retry_after_us))
