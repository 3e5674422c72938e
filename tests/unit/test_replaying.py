"""Replay: which branches of a job may be taken, group by group of its canary."""

from __future__ import annotations

from dataclasses import replace

from txcoord.core.replaying import ItemState, Order, Replay, next_canary, over, room, stopped

PLENTY = 1e9
W, K, S, F = ItemState.WAITING, ItemState.TAKEN, ItemState.SUCCEEDED, ItemState.FAILED


def at(job: Replay, **counts: int) -> Replay:
    """The job when it has so many items of each kind, at the group that follows from it."""
    job = replace(job, counts={ItemState(name): count for name, count in counts.items()})
    return replace(job, canary_step=next_canary(job))


JOB = Replay("1", "shop", Order("parked", canary=(1, 5, 20)), "ann", "it is back", listed=True)


def test_each_group_ends_well_before_the_next_begins() -> None:
    job = at(JOB, waiting=100)
    assert (job.canary_step, room(job, PLENTY)) == (0, 1)
    job = at(job, waiting=99, taken=1)
    assert (job.canary_step, room(job, PLENTY)) == (0, 0)
    job = at(job, waiting=99, succeeded=1)
    assert (job.canary_step, room(job, PLENTY)) == (1, 5)
    job = at(job, waiting=94, taken=1, succeeded=5)
    assert (job.canary_step, room(job, PLENTY)) == (1, 0)
    job = at(job, waiting=94, succeeded=6)
    assert (job.canary_step, room(job, PLENTY)) == (2, 20)
    job = at(job, waiting=74, succeeded=26)
    assert (job.canary_step, job.group) == (3, None)
    assert room(job, PLENTY) == 74  # At full pace.
    assert room(replace(job, order=replace(job.order, rate_per_s=10.0)), 7.9) == 7
    assert not over(job)
    assert over(at(job, succeeded=100))


def test_what_is_refused_is_no_part_of_a_group() -> None:
    job = at(JOB, waiting=98, refused=1, taken=1)
    assert (job.canary_step, room(job, PLENTY)) == (0, 0)
    assert room(at(job, waiting=98, refused=1, succeeded=1), PLENTY) == 5


def test_one_that_fails_stops_a_group_and_it_is_resumed_where_it_was() -> None:
    job = at(JOB, waiting=94, succeeded=3, failed=3)
    assert job.canary_step == 1
    assert stopped(job, 0, "HTTP_500").startswith("canary 5: 3 failed: HTTP_500")
    assert stopped(at(JOB, waiting=94, succeeded=3, taken=3), 1, "HTTP_500")  # On its way, but failed once.
    again = job.begun_again()
    assert not stopped(again, 0, "")
    assert (again.canary_step, room(again, PLENTY)) == (1, 5)  # A whole group of that size, of others.
    again = at(again, waiting=89, succeeded=8, failed=3)
    assert (again.canary_step, room(again, PLENTY)) == (2, 20)


def test_at_full_pace_only_so_many_failures_stop_it() -> None:
    job = at(replace(JOB, order=Order("parked", max_failures=3)), waiting=50, failed=2)
    assert not stopped(job, 0, "x")
    assert stopped(job, 1, "x").startswith("3 failed, 3 were allowed")
    assert not stopped(at(JOB, waiting=50, succeeded=26, failed=9), 0, "x")
