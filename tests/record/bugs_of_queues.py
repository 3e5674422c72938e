"""Bugs of what waits for its time: deliveries, breakers, hand-offs and take-overs."""

from __future__ import annotations

from .entry import Bug, Edit

_REVIEW = "a review of the whole change, with a test for each doubt on virtual time"
_ENGINE = (
    "Engine: a claim or an order and the news of one who is cut off never mean one epoch; the end of a delivery cannot "
    "be written over; what was handed off until later is nobody's lease; open local transactions hold up no probes; a "
    "plan that was decided elsewhere is let go of"
)
_ANSWERS = "txcoord/core/answers.py"

OF_QUEUES = (
    Bug(
        "put-off-forgotten",
        "A message was due while its receiver was paused, or its breaker open. It was put off, and as its transaction "
        "had ended already that was no change: nobody called it again before the node's next start.",
        _REVIEW,
        "A delivery that is put off comes back: a breaker or a pause had forgotten it",
        (
            Edit(
                _ANSWERS,
                "(tx.ended and not branch.kind.is_delivery):\n        return Verdict(tx)\n    if event.attempt",
                "tx.ended:\n        return Verdict(tx)\n    if event.attempt",
            ),
        ),
        "tests/unit/test_engine_deliveries.py -k put_off_is_not_forgotten",
    ),
    Bug(
        "pulled-forward-early",
        "A message that was to be delivered tomorrow was handed off. The breaker of its receiver opened and closed, "
        "and it was delivered at once, with all that had waited for the receiver; so was what a participant had asked "
        "to be called for later.",
        _REVIEW,
        "Drain: what has a time of its own keeps it when its target is back",
        (
            Edit(
                "txcoord/adapters/sql/waiting.py",
                "    return (*_waits(), branch.c.resource == target, or_(*held, failed))\n",
                "    return (*_waits(), branch.c.resource == target)\n",
            ),
        ),
        "tests/contract/test_log_waiting.py -k target_itself",
        services=True,
    ),
    Bug(
        "one-epoch-twice",
        "A node was cut off from the log. Its last answer had raised the epoch of a row in its memory, a take-over "
        "raised it in the log: the same number. When it was back, its news passed for the new owner's, and after them "
        "the new owner's own: what had ended was opened again, and sent twice more.",
        _REVIEW,
        _ENGINE,
        (Edit("txcoord/core/model.py", "TAKEN = 10\n", "TAKEN = 1\n"),),
        "tests/unit/test_engine_fencing.py -k cut_off",
    ),
    Bug(
        "order-over-an-end",
        "An operator skipped a delivery in the moment in which it was done. The end of a delivery raised no epoch, so "
        "the order was written over it: a message that had been delivered was told as skipped, or was delivered again.",
        _REVIEW,
        _ENGINE,
        (
            Edit(
                _ANSWERS,
                "    if (new.ended and not tx.ended) or (new.ended_us and not tx.ended_us):\n",
                "    if new.ended and not tx.ended:\n",
            ),
        ),
        "tests/unit/test_engine_fencing.py -k written_over_its_end",
    ),
    Bug(
        "due-time-as-lease",
        "What is handed off says in its row when it is overdue, where others say how long their lease is. Whoever "
        "wanted it back, or gave an order, had until then a lease for up to thirty days: had it died in the next "
        "seconds, nobody would have taken over.",
        _REVIEW,
        _ENGINE,
        (
            Edit(
                "txcoord/testing/memory_log.py",
                "old.lease_until_us if new.owner and old.owner else 0",
                "old.lease_until_us if new.owner else 0",
            ),
        ),
        "tests/unit/test_engine_fencing.py -k handed_off",
    ),
)
