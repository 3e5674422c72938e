"""Every bug that the tools of this repository have found, with the edit that brings it back and the test that sees it.

An entry is added with the mend. ``edits`` takes the mend out: what stands in the file now, and what stands there
without it. Where the code around it changes the entry changes too: ``tests/unit/test_reliability.py`` sees to that.
"""

from __future__ import annotations

from .bugs_of_queues import OF_QUEUES
from .entry import Bug, Edit

MODEL = "the model (TLC)"
SIMULATION = "the simulation"
VIRTUAL = "the engine on virtual time: crashes, take-overs and hanging databases"
WIRE = "tests of the SDK's wire that lose replies"
REVIEW = "a review of the engine; tests on virtual time see it now"
ACCEPTANCE = "acceptance tests of several services and nodes"
CAMPAIGN = "the campaign: three coordinators under SIGKILL, SIGSTOP and network faults"
DATABASES = "tests on real MariaDB"
CATCH_UP = "the catch-up: best-effort SQL while MariaDB is down for a minute and coordinators are killed"
CRASH_POINTS = "the crash points, when several runs shared one MariaDB"

_WIRE = "clients/python/txcoord_client/_wire.py"
_RECOVERY = "txcoord/engine/recovery.py"
_SETTLE = "txcoord/core/settle.py"

BUGS = (
    Bug(
        "fence-after-w",
        "The scan met a prepared branch, found no row, and formed its ABORT; the node stood still. Meanwhile "
        "a commit "
        "whose statement was running landed, ended, and its row was deleted. The node woke, and its ABORT "
        "said that it "
        "was decided before W: whoever asked was told ABORTED, of a transaction that is committed.",
        MODEL,
        "A fence that is decided by W is not written after it: it would read as an outcome",
        (
            Edit(
                "txcoord/core/machine.py",
                "        not_after_us=until if now_us <= until else None,\n",
                "        not_after_us=None,\n",
            ),
        ),
        "tests/unit/test_engine_windows.py -k stalls_beyond_w",
        "./scripts/test tests/model -s -k fence_without_limit",
    ),
    Bug(
        "deadline-until-w",
        "A transaction with a gid may have been committed in one phase, so its deadline asks that database "
        "first. Was it "
        "away until W, the tombstone was refused for lateness, for ever: never decided, its gid in progress.",
        MODEL,
        "A deadline ends though its database could not be asked until W",
        (
            Edit(
                "txcoord/engine/one_phase.py",
                "_ANY_TIME_US if isinstance(event, DeadlinePassed) else self._windows.abort_until(tx.deadline_us)",
                "self._windows.abort_until(tx.deadline_us)",
            ),
        ),
        "tests/unit/test_engine_windows.py -k was_away_until_w",
        "./scripts/test tests/model -s -k deadline_probed_until_W",
    ),
    Bug(
        "limbo-beyond-w",
        "MariaDB answered OK and did nothing: the branch was in limbo, and stayed there until after W. A "
        "tombstone is "
        "refused then before it meets the lock of its key, so the branch was taken for gone and parked. After the "
        "server's restart it was prepared, held its locks, and was nobody's.",
        SIMULATION,
        "MariaDB: a branch that is in limbo beyond W is told as such, not parked as gone",
        (
            Edit(
                "txcoord/adapters/xa/mariadb.py",
                "if answer is Probed.OPEN or (answer is Probed.TOO_LATE and await self._is_held(s, x)):",
                "if answer is Probed.OPEN:",
            ),
        ),
        "tests/sim/test_found.py -k limbo",
    ),
    Bug(
        "late-report",
        "A session's process stood still until retention had stripped its transaction's row, and then "
        "reported what it "
        "had done: an alarm for a person, and nothing was wrong.",
        SIMULATION,
        "A holder that reports after retention has stripped the row raises no alarm",
        (
            Edit(
                _SETTLE,
                "if branch is None and tx.detail_pruned and event.committed is not False:",
                "if False:",
            ),
        ),
        "tests/unit/test_found_by_simulation.py",
    ),
    Bug(
        "looks-for-ever",
        "The SDK looks whether its coordinator has been silent for a second. The rest of that second could "
        "be so short "
        "that the clock does not show it: the look was repeated as fast as the processor could, until the "
        "clock went on.",
        SIMULATION,
        "Simulation: services that know each coordinator by its address, coordinators that leave in good order; all "
        "planted bugs in each run",
        (
            Edit(
                _WIRE,
                "        if loop.time() < too_long:\n"
                "            stream.timer = loop.call_at(too_long, self._look_at, stream)\n",
                "        silent = loop.time() - max(stream.heard_at, oldest.sent_at)\n"
                "        if silent < _SILENT_S:\n"
                "            stream.timer = loop.call_later(_SILENT_S - silent, self._look_at, stream)\n",
            ),
        ),
        "tests/sim/test_found.py -k silent",
    ),
    Bug(
        "never-at-rest",
        "One branch was parked, then another one of the same transaction ended: that was not written, so the row was "
        "carried out again after each restart, and never came to rest.",
        VIRTUAL,
        "The engine on virtual time, over a log in memory; what it found",
        (
            Edit(
                _SETTLE,
                "b.attempts or b.heuristic or b.state in _BY_HAND or held_back",
                "b.attempts or b.heuristic or held_back",
            ),
        ),
        "tests/unit/test_core_world.py",
    ),
    Bug(
        "refused-unread",
        "A request about a transaction that this node did not know was refused, or told EXPIRED, without a look into "
        "the log, where another node had written its outcome.",
        VIRTUAL,
        "The engine on virtual time, over a log in memory; what it found",
        (
            Edit(
                "txcoord/engine/coordinator.py",
                "unread = tx is None or self._rows.get(tx.tx_id) is tx",
                "unread = tx is not None and self._rows.get(tx.tx_id) is tx",
            ),
        ),
        "tests/unit/test_engine_commands.py tests/unit/test_engine_several.py",
    ),
    Bug(
        "one-dead-database",
        "Deadlines that need a database's answer were asked one after the other with all the rest: one database that "
        "hung held back every other deadline.",
        REVIEW,
        "Phase two, recovery, finisher: no false alarms, no stuck sweep, no doubled attempts",
        (
            Edit(
                "txcoord/engine/deadlines.py",
                "*(self._expire(tx) for tx in late if not tx.one_phase_resource)",
                "*(self._expire(tx) for tx in late)",
            ),
        ),
        "tests/unit/test_engine_recovery.py -k holds_no_other_deadline_back",
    ),
    Bug(
        "alarm-in-flight",
        "The scan listed a branch while phase two was finishing it, then read the row, which had ended: "
        "committed_but_prepared was alarmed, and nothing was wrong.",
        REVIEW,
        "Phase two, recovery, finisher: no false alarms, no stuck sweep, no doubled attempts",
        (Edit(_RECOVERY, "if item[2] not in _LATE or item[0].xid in again]", "]"),),
        "tests/unit/test_engine_recovery.py -k during_phase_two",
    ),
    Bug(
        "order-over-the-end",
        "The end of a transaction kept its epoch. An operator's order, or a late note, that was decided a "
        "moment before "
        "was written over it: what had ended was on its way again.",
        REVIEW,
        "Phase two, recovery, finisher: no false alarms, no stuck sweep, no doubled attempts",
        (Edit(_SETTLE, "        new = replace(new, epoch=tx.epoch + 1)\n", "        pass\n"),),
        "tests/unit/test_engine_waiting.py -k written_over_the_end",
    ),
    Bug(
        "restart-for-ever",
        "A node that was restarted takes its rows back. What ended meanwhile is still in the log until its lazy end "
        "record is: it was taken again and again, faster than that could be written, and the node never started.",
        "crashes on real databases",
        "A restarted node takes each of its rows back once: claiming again outran the lazy end records",
        (
            Edit(
                _RECOVERY,
                "if len(rows) < self._s.batch or not known.isdisjoint(tx.tx_id for tx in rows):",
                "if not rows:",
            ),
        ),
        "tests/unit/test_engine_recovery.py -k takes_all_its_rows_back_once",
    ),
    Bug(
        "holder-cut-short",
        "A branch that was prepared too late was finished at the second scan, whatever time its session had had: two "
        "scans that came close together ended a session that was about to do it.",
        "tests on virtual time",
        "A scan leaves a late branch to its holder for the whole of its time; what g.xa takes is said of a text too",
        (
            Edit(
                _RECOVERY,
                "if p.xid not in seen or (p.xid in before and now_us - seen[p.xid] >= hold_us)",
                "if p.xid not in seen or p.xid in before",
            ),
        ),
        "tests/unit/test_engine_holders.py -k left_to_its_holder_first",
    ),
    Bug(
        "session-number-again",
        "MariaDB gives the numbers of sessions again after a restart. A prepared branch of before was taken for one "
        "that a session of now holds: an alarm of limbo, and there was none.",
        DATABASES,
        "No false alarm of limbo after MariaDB's restart: a number of a session is given again in the "
        "server's next life",
        (
            Edit(
                "clients/python/txcoord_client/protocol/mariadb.py",
                "for x in recovered(rows) if began_us(x) > since_us}",
                "for x in recovered(rows)}",
            ),
        ),
        "tests/unit/test_protocol_mariadb.py -k limbo",
    ),
    Bug(
        "limbo-of-a-while-ago",
        "InnoDB shows its transactions as they were a moment ago. One look at them beside a fresh list alarmed limbo "
        "where a branch had just been finished.",
        DATABASES,
        "Limbo is alarmed when two scans have seen it",
        (Edit(_RECOVERY, "sure = min(found, before)", "sure = found"),),
        "tests/unit/test_engine_holders.py -k limbo_is_alarmed_once",
    ),
    Bug(
        "vote-of-another-call",
        "The vote of one call could name a branch of another: that one's was replaced in the list, and what it had "
        "prepared would not have been committed with the rest.",
        ACCEPTANCE,
        "A vote counts only for branches below its call; a thread's leaving is done whatever becomes of the waiting",
        (
            Edit(
                "clients/python/txcoord_client/transaction.py",
                'return all(branch.id.startswith(f"{number}.") for branch in vote.branches)',
                "return True",
            ),
        ),
        "tests/acceptance/test_between_services_http_no.py -k vote_for_another",
        services=True,
    ),
    Bug(
        "refused-is-not-undone",
        "A commit was sent, its reply was lost, it was sent again and refused: the SDK believed the refusal and told "
        "Aborted, though the first one may have been done.",
        WIRE,
        "SDK: a refusal says nothing of an earlier try whose answer was lost; messages keep to the "
        "coordinator's limits; "
        "waits end before their callers go; hello keeps to each caller's time",
        (
            Edit(
                _WIRE,
                "maybe_done = maybe_done or not error.definite",
                "maybe_done = not error.definite",
            ),
        ),
        "tests/unit/test_sdk_wire.py",
    ),
    Bug(
        "committed-too-early",
        "A gid whose commit was decided raised AlreadyCommitted, and nothing told that a branch was still to be "
        "finished. A service that took it for COMMITTED told its client so seconds before all of it could be seen.",
        CAMPAIGN,
        "SDK: AlreadyCommitted tells in its outcome whether every branch is finished yet",
        (Edit("clients/python/txcoord_client/_block.py", "            error.outcome = known\n", ""),),
        "tests/acceptance/test_sdk_ends.py -k commit_is_on_its_way",
        services=True,
    ),
    Bug(
        "both-start-at-once",
        "Two coordinators started at once on a new log. One found no note of a database, the other wrote it, and the "
        "first took it for that of another database: swapped URLs. It ended.",
        CAMPAIGN,
        "Several coordinators may start at once on a new log: none takes the other's note of a database for swapped "
        "URLs",
        (
            Edit(
                "txcoord/wiring/resources.py",
                "if other != name and await log_.resource_identity(other) == identity:",
                "if await log_.resource_identity(other) == identity:",
            ),
        ),
        "tests/unit/test_resources.py",
    ),
    Bug(
        "abort-unheard-elsewhere",
        "An abort without a row is known to one node only. The session of another service on MariaDB that "
        "waited for it "
        "at another coordinator heard nothing: it kept its locks until its time was over, and was killed.",
        ACCEPTANCE,
        "An abort that sessions of other services wait for is logged: they may ask another coordinator",
        (
            Edit(
                "clients/python/txcoord_client/_finish.py",
                "force_log=not sealed or held_elsewhere,",
                "force_log=not sealed,",
            ),
        ),
        "tests/acceptance/test_several_mariadb.py",
        services=True,
    ),
    Bug(
        "keep-each-other-blind",
        "Several coordinators took hung sessions of one MariaDB over, out of step. InnoDB makes its table of "
        "locks anew only when nobody has read it for 0.1 s: each kept the others from seeing anything "
        "new, and the branches "
        "stayed as they were, for good.",
        CRASH_POINTS,
        "MariaDB: coordinators that end hung sessions of one server take turns: out of step they kept each other from "
        "seeing any",
        (
            Edit(
                "txcoord/adapters/xa/mariadb_holder.py",
                "        async with self._snapshot, self._turn(s) as ours:\n",
                "        async with self._snapshot:\n            ours = True\n",
            ),
        ),
        "tests/integration/test_finisher_mariadb.py -k many_coordinators",
        services=True,
    ),
    Bug(
        "waits-no-time",
        "A session of MariaDB asks for the decision, a second at a time. Where a try had failed late in that "
        "second, it asked "
        "from then on for what was left of it: a microsecond. It asked as fast as it could, heard nothing, and was "
        "ended by the coordinator after its time.",
        "an acceptance test that failed now and then on a busy machine, until somebody looked",
        "SDK: whoever asks once more for the decision waits as long again, and storms nobody",
        (
            Edit(
                _WIRE,
                "sent.wait_us = max(min(sent.wait_us, int((left - _REPLY_S) * 1e6)), 1)",
                "request.wait_us = sent.wait_us = max(min(sent.wait_us, int((left - _REPLY_S) * 1e6)), 1)",
            ),
        ),
        "tests/unit/test_sdk_wire.py -k waits_as_long_again",
    ),
    Bug(
        "limbo-told-as-undone",
        "MariaDB answered XA ROLLBACK with OK and did nothing. Asked again, it did not know the branch: that was taken "
        "for rolled back. It held its locks, and was prepared again after the server's restart.",
        SIMULATION,
        "MariaDB: a rollback that finds nothing looks whether the branch is in limbo; a late one is seen beside a "
        "parked one",
        (
            Edit(
                "txcoord/adapters/xa/mariadb.py",
                "        if await self._is_held(s, x):\n            return await self._locked(s, x)\n"
                "        # A PREPARE",
                "        # A PREPARE",
            ),
        ),
        "tests/integration/test_finisher_mariadb.py -k guard_keeps",
        services=True,
    ),
    Bug(
        "late-beside-parked",
        "A branch was undone before its PREPARE arrived, while another one of its transaction was parked. The "
        "scan left it to phase two, which was over for it: it stayed prepared until an operator "
        "had come for the other.",
        SIMULATION,
        "MariaDB: a rollback that finds nothing looks whether the branch is in limbo; a late one is seen beside a "
        "parked one",
        (
            Edit(
                _RECOVERY,
                "known and not tx.ended and listed is not None and listed.state is not BranchState.UNDONE",
                "known and not tx.ended and listed is not None",
            ),
        ),
        "tests/unit/test_engine_recovery.py -k while_another_branch_waits",
    ),
    Bug(
        "budget-of-what-undoes",
        "A step of a saga was to be tried again once, and then given up. The same budget held for its compensation: "
        "two failures within a second, and it was parked, half undone, until a person came.",
        SIMULATION,
        "Saga: a step's retries are of its action; its compensation is asked for until it is done",
        (
            Edit(
                "txcoord/core/calling.py",
                "        own = Retry()\n    most",
                "        pass\n    most",
            ),
        ),
        "tests/unit/test_core_sagas.py -k was_given_up",
    ),
    Bug(
        "deaf-to-its-no",
        "A step of a saga inside a transaction said no, and the answer was lost on its way to the client. It asked "
        "again, as one must, and was told that nothing can enlist any more: not that a step had said no, nor which.",
        CRASH_POINTS,
        "g.saga: whoever asks again, since the answer was lost, hears how its steps have ended",
        (
            Edit(
                "txcoord/core/machine.py",
                "tx.decision is not None and event.run and _has_steps(tx, event.branches):",
                "tx.decision is not None and event.run and not tx.branches:",
            ),
        ),
        "tests/unit/test_core_sagas.py -k whose_answer_was_lost",
    ),
    Bug(
        "deaf-to-its-end",
        "A node was to end while it connected to a MariaDB. Python 3.11's asyncio.wait_for, with which the driver "
        "connects, forgets a cancel that comes in the moment of its answer. The scan then slept until its next turn, "
        "and the node waited for it: ten seconds; for a worker of phase two it would have been for ever.",
        CRASH_POINTS,
        "A node that ends cancels again what has forgotten that it was cancelled",
        (
            Edit(
                "txcoord/adapters/embedded/tasks.py",
                "await asyncio.wait(left, timeout=again_s)",
                "await asyncio.wait(left)",
            ),
        ),
        "tests/contract/test_embedded.py -k forgets_that_it_was_cancelled",
    ),
    Bug(
        "alive-by-another-number",
        "A MariaDB was down. What its client said (2003, no connection) was passed over for what the operating system "
        "had said (111, refused), which counts as an answer: the breaker took the database for alive, let everything "
        "be tried at once again and again, and notifications' ten attempts were spent within the minute.",
        CATCH_UP,
        "Best-effort SQL: a MariaDB that is away is seen to be away, and a node that has not seen it fails nobody",
        (
            Edit(
                "txcoord/adapters/calling/sql_.py",
                '        error.orig,\n        getattr(error.orig, "driver_exception", None),\n'
                '        getattr(error.orig, "__cause__", None),\n',
                '        getattr(error.orig, "driver_exception", None),\n'
                '        getattr(error.orig, "__cause__", None),\n        error.orig,\n',
            ),
            Edit("txcoord/adapters/calling/sql_.py", " or isinstance(own, OSError)", ""),
        ),
        "tests/unit/test_sql_caller.py",
    ),
    Bug(
        "whichever-is-there",
        "A node that had started while a database was away did not know yet which one it must be, though the log did: "
        "each best-effort statement failed, and an attempt was spent. And where the URL led to another database all "
        "of a sudden, statements were run there, since it was compared with what had been seen last.",
        CATCH_UP,
        "Best-effort SQL: a MariaDB that is away is seen to be away, and a node that has not seen it fails nobody",
        (
            Edit(
                "txcoord/wiring/resources.py",
                "        if known := self.by_name[name].expected_identity:\n            return known\n",
                "        return self.by_name[name].status.identity\n",
            ),
        ),
        "tests/unit/test_resources.py -k whatever_is_seen",
    ),
    *OF_QUEUES,
)
BY_NAME = {bug.name: bug for bug in BUGS}

__all__ = ["BUGS", "BY_NAME", "Bug", "Edit"]
