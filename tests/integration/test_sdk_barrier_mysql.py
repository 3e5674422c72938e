"""The barrier on MySQL: those of its tests that hang on how a database waits, counts and tells the time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.test_sdk_barrier import (
    place,
    test_a_cancel_waits_for_a_try_that_hangs,
    test_after_its_deadline_a_try_is_refused,
    test_empty_then_late,
    test_old_markers_are_pruned_by_age,
    test_once,
    test_the_same_call_twice_at_a_time,
)
from tests.support.barrier_drivers import MAKERS, Place
from tests.support.barrier_stores import Store
from txcoord.testing.mariadb import MySQLServer

__all__ = [
    "place",
    "test_a_cancel_waits_for_a_try_that_hangs",
    "test_after_its_deadline_a_try_is_refused",
    "test_empty_then_late",
    "test_old_markers_are_pruned_by_age",
    "test_once",
    "test_the_same_call_twice_at_a_time",
]


@pytest.fixture(scope="module")
def mariadb(mysql: MySQLServer) -> MySQLServer:
    """What stands in the place of MariaDB."""
    return mysql


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    async with MAKERS["asyncmy_pool"](place) as store:
        yield store
