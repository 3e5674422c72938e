"""Asking a database whether it has committed a transaction in one phase."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.errors import Refusal, Refused
from ..core.events import DeadlinePassed, OnePhaseDone, Probe, Rollback
from ..core.model import Tx, Windows
from ..ports import Clock, Failpoints, Finisher, Probed, ResourceTrouble

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
    ) -> None:
        self._finishers = finishers
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
            finisher = self._finishers.get(name)
            if finisher is None:
                raise Refused(
                    Refusal(
                        "FAILED_PRECONDITION",
                        "UNKNOWN_RESOURCE",
                        f"resource {name!r} is not configured here, so it cannot be asked",
                        False,
                        {"resource": name},
                    )
                )
            await self._failpoints.reach("probe.before")
            # The sweep comes back: one whose local transaction is still open must not keep it from all others.
            times = 1 if isinstance(event, DeadlinePassed) else _ASKED_AT_MOST
            answer = await self._ask_one(finisher, tx.tx_id, not_after_us, times)
            await self._failpoints.reach("probe.after")
            if answer is Probed.COMMITTED:
                return False, OnePhaseDone(tx)
            if answer is Probed.TOO_LATE:
                raise Refused(
                    Refusal("FAILED_PRECONDITION", "EXPIRED", "too long after the deadline to tell", False)
                )
        return True, None

    async def _ask_one(self, finisher: Finisher, tx_id: str, not_after_us: int, times: int) -> Probed:
        for asked in range(times):
            if asked:
                await self._clock.sleep(self._interval_s)
            try:
                answer = await finisher.probe_one_phase(tx_id, not_after_us)
            except ResourceTrouble as trouble:
                raise Refused(
                    Refusal(
                        "UNAVAILABLE",
                        trouble.reason,
                        str(trouble),
                        False,
                        {"resource": finisher.name},
                        500_000,
                    )
                ) from trouble
            if answer is not Probed.OPEN:
                return answer
        raise Refused(
            Refusal(
                "UNAVAILABLE",
                "IN_PROGRESS",
                f"the local commit on {finisher.name!r} is still open: ask again",
                False,
                {"resource": finisher.name},
                1_000_000,
            )
        )
