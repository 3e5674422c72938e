"""The pytest plugin: the fixture ``txcoord``. Nothing of txcoord is imported before a test asks for it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .inprocess import Txcoord

_HERE: pytest.StashKey[Any] = pytest.StashKey()
_FAILED: pytest.StashKey[bool] = pytest.StashKey()


@pytest.fixture
def txcoord(request: pytest.FixtureRequest) -> Iterator[Txcoord]:
    """A coordinator in the process of this test: no port, no database, virtual time, failures and crashes on demand."""
    from .inprocess import Txcoord

    with Txcoord() as found:
        request.node.stash[_HERE] = found
        yield found
        if not request.node.stash.get(_FAILED, False):
            found.assert_all_used()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails tells what its transactions went through."""
    report = yield
    found = item.stash.get(_HERE, None)
    if found is not None and report.failed and call.when == "call":
        item.stash[_FAILED] = True
        if not hasattr(call.excinfo and call.excinfo.value, "tells_the_story"):
            report.sections.append(("txcoord", found.story()))
    return report
