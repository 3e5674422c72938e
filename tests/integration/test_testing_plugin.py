"""The pytest plugin in a project of somebody else: with pytest-asyncio, anyio, threads, and under xdist."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

_PROJECT = """
import pytest
from txcoord_client import Coordinator, Participant, sync

stock = Participant("stock")
coord = Coordinator("dns:///txcoord:7070")


@stock.tcc
class Reserve:
    async def attempt(self, db): ...
    async def confirm(self, db): ...
    async def cancel(self, db): ...


async def checkout(gid):
    async with coord.begin(gid=gid) as g:
        await g.tcc(Reserve)


@pytest.fixture(autouse=True)
def stubs(txcoord):
    txcoord.stub("stock")


@pytest.mark.asyncio
@pytest.mark.parametrize("n", range(4))
async def test_asyncio(txcoord, n):
    txcoord.crash_after("decision")
    await checkout("the-same-gid")  # each test has a log of its own
    txcoord.assert_committed()


@pytest.mark.anyio
async def test_anyio(txcoord, anyio_backend_name):
    txcoord.fail("stock.confirm", times=3)
    await checkout("the-same-gid")
    await txcoord.settle("1h")
    txcoord.assert_committed()


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_threads(txcoord):
    with sync.Coordinator().begin(gid="the-same-gid"):
        pass
    txcoord.assert_committed("the-same-gid")


@pytest.mark.asyncio
async def test_that_fails(txcoord):
    await checkout("a-gid")
    assert txcoord.state() == "ABORTED"


@pytest.mark.asyncio
async def test_whose_fault_never_comes(txcoord):
    txcoord.fail("stock.cancel")
    await checkout("a-gid")
"""


def test_a_project_under_xdist(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\nasyncio_default_fixture_loop_scope = 'function'\n")
    pytester.makepyfile(_PROJECT)
    result = pytester.runpytest_subprocess("-n", "2", "-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=7, failed=1, errors=1)
    result.stdout.fnmatch_lines(["E*AssertionError: never came to pass: txcoord.fail('stock.cancel')"])
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: assert 'COMMITTED' == 'ABORTED'*",
            "*-- txcoord --*",
            "a-gid is COMMITTED: commit was decided by client",
            "*stock.Reserve confirm: done",
        ]
    )


def test_pytest_starts_without_txcoord_where_nobody_asks_for_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_was_imported():
            assert not [m for m in sys.modules if m.startswith(("txcoord_client", "grpc", "txcoord.engine"))]
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio").assert_outcomes(passed=1)


_HANGS = """
import asyncio
import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from txcoord_client import Coordinator, Participant, Refused


@pytest.mark.asyncio
async def test_that_fails_while_it_is_cancelled(txcoord, tmp_path):
    stock = Participant("stock", db=create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/stock.db"))
    cancelling = asyncio.Event()

    @stock.tcc
    class Reserve:
        async def attempt(self, db): ...
        async def confirm(self, db): ...
        async def cancel(self, db):
            cancelling.set()
            await asyncio.Event().wait()

    await stock.make_table()
    txcoord.serve(stock)
    with pytest.raises(Refused):
        async with Coordinator().begin("checkout", gid="a-gid") as g:
            await g.tcc(Reserve)
            raise Refused("OUT_OF_STOCK")
    await cancelling.wait()
    raise AssertionError("here")


def test_between_two_runs_of_a_loop(txcoord, tmp_path):
    stock = Participant("stock", db=create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/stock.db"))
    calls, confirming = [], asyncio.Event()

    @stock.tcc
    class Reserve:
        async def attempt(self, db): ...
        async def confirm(self, db):
            calls.append("confirm")
            if len(calls) == 1:
                confirming.set()
                await asyncio.Event().wait()
        async def cancel(self, db): ...

    async def begun():
        await stock.make_table()
        txcoord.serve(stock)
        async def commit():
            async with Coordinator().begin("checkout", gid="a-gid") as g:
                await g.tcc(Reserve)
        asyncio.ensure_future(commit())
        await confirming.wait()

    with asyncio.Runner() as runner:
        runner.run(begun())
        assert txcoord.state() == "COMMITTING"
        assert [c.op for c in txcoord.calls()] == ["try"]
        txcoord.advance_sync("40s")  # The call is given up meanwhile.
        assert "confirm" in txcoord.story()
"""


def test_a_test_that_ends_while_a_participant_is_called(pytester: pytest.Pytester) -> None:
    """Its loop runs no more: whatever waited for that call would wait for ever."""
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\nasyncio_default_fixture_loop_scope = 'function'\n")
    pytester.makepyfile(_HANGS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=50)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*-- txcoord --*", "a-gid (checkout) is ABORTING: *"])
