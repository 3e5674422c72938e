"""The README's example and the quickstarts, run as they are written against `txcoord dev --with-postgres 2`, by someone
who has read nothing else. Only the addresses differ, since 7070 and 8000 may be taken here."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.support.acceptance import ROOT
from txcoord.testing.processes import TXCOORD, Managed, free_port

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ADDRESS = "127.0.0.1:7070"


def blocks(page: str, language: str) -> list[str]:
    """The code of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [code for found, code in _FENCE.findall(text) if found == language]


@dataclass
class Newcomer:
    """Somebody in a folder, with a `txcoord dev` in another terminal."""

    folder: Path
    address: str
    urls: Mapping[str, str]

    def save(self, name: str, code: str) -> None:
        if _ADDRESS in code:
            code = code.replace(_ADDRESS, self.address)
        (self.folder / name).write_text(code)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={"DB1": self.urls["db1"], "DB2": self.urls["db2"], "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, *arguments)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    folder = tmp_path_factory.mktemp("newcomer")
    address = f"127.0.0.1:{free_port()}"
    dev = Managed(
        "dev",
        [*TXCOORD, "dev", "--memory", "--with-postgres", "2", "--listen", address],
        log=folder / "dev.log",
        address=address,
        cwd=folder,
    )
    dev.start()
    try:
        until = time.monotonic() + 20
        while "Ctrl-C" not in dev.tail() and time.monotonic() < until:  # what it prints last
            time.sleep(0.02)
        printed = dict(re.findall(r"^  resource  (\S+)  (\S+)$", dev.tail(10_000), re.MULTILINE))
        assert sorted(printed) == ["db1", "db2"], dev.tail()
        yield Newcomer(folder, address, printed)
    finally:
        dev.stop()


async def _value(url: str, query: str) -> object:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_the_readmes_example_commits_across_two_databases(newcomer: Newcomer) -> None:
    [code, *_] = blocks("README.md", "python")
    newcomer.save("transfer.py", code)
    balance = "SELECT balance FROM account WHERE id = 1"
    for times in (1, 2):
        done = newcomer.python("transfer.py", newcomer.urls["db1"], newcomer.urls["db2"])
        assert (done.returncode, done.stdout, done.stderr) == (0, "COMMITTED\n", "")
        assert await _value(newcomer.urls["db1"], balance) == 100 - 10 * times
        assert await _value(newcomer.urls["db2"], balance) == 100 + 10 * times


async def test_the_readmes_promise_of_a_rollback(newcomer: Newcomer) -> None:
    """*Raise an exception in the second block: the first database is rolled back as well.*"""
    [code, *_] = blocks("README.md", "python")
    before = "            async with g.xa(db2) as db:\n"
    assert before in code
    newcomer.save("oops.py", code.replace(before, before + "                raise ValueError('oops')\n"))
    balance = "SELECT coalesce(max(balance), 100) FROM account WHERE id = 1"
    found = [await _value(newcomer.urls[name], balance) for name in ("db1", "db2")]
    done = newcomer.python("oops.py", newcomer.urls["db1"], newcomer.urls["db2"])
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: oops")
    assert [await _value(newcomer.urls[name], balance) for name in ("db1", "db2")] == found


@pytest.mark.timeout(180)
def test_the_quickstart_over_two_databases(newcomer: Newcomer) -> None:
    setup, buy = blocks("docs/quickstart-databases.md", "python")[:2]
    newcomer.save("setup.py", setup)
    newcomer.save("buy.py", buy)
    assert newcomer.python("setup.py").returncode == 0
    shell = "\n".join(blocks("docs/quickstart-databases.md", "sh"))
    commands = re.findall(r"^\.venv/bin/python (buy\.py .*?)(?: +# (.*))?$", shell, re.MULTILINE)
    assert len(commands) >= 5
    for command, comment in commands:
        done = newcomer.python(*command.split())
        printed = done.stdout + done.stderr
        # The comment beside a command says what it prints; the first one's is in the text.
        expected = (comment or "COMMITTED").split(",")[0].split(":")[0]
        assert expected in printed, (command, printed)
        assert done.returncode == (1 if "Error" in expected else 0), printed
    looks = re.findall(r"^\./scripts/txcoord (tx .*)$", shell, re.MULTILINE)
    assert looks == ["tx list", "tx show order-3"]
    listed, shown = [newcomer.run(*TXCOORD, *look.split(), "--address", newcomer.address) for look in looks]
    assert (listed.returncode, shown.returncode) == (0, 0), listed.stderr + shown.stderr
    assert "order-3" in listed.stdout
    assert "order-1" in listed.stdout
    assert "time line" in shown.stdout
    assert "decided commit by client" in shown.stdout


_TOOLS = {
    "python": [sys.executable],
    "pytest": [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
    "txcoord": list(TXCOORD),
}


@pytest.mark.timeout(180)
def test_the_quickstart(newcomer: Newcomer) -> None:
    service, checkout, test = blocks("docs/quickstart.md", "python")
    code = [line for line in (service + checkout).splitlines() if line.strip()]
    assert len(code) <= 40
    port = free_port()
    newcomer.save("service.py", service)
    newcomer.save("checkout.py", checkout.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    again = test[test.index("@pytest.mark.asyncio") :].replace("def test_", "def test_again_")
    newcomer.save("test_checkout.py", test)
    newcomer.save("test_twice.py", f"{test}\n{again}".replace("n=1", "n=5"))
    uvicorn = Managed(
        "uvicorn",
        [sys.executable, "-m", "uvicorn", "service:app", "--port", str(port)],
        log=newcomer.folder / "uvicorn.log",
        address=f"127.0.0.1:{port}",
        cwd=newcomer.folder,
    )
    uvicorn.start(wait_s=0)
    try:
        until = time.monotonic() + 30
        while "Uvicorn running" not in uvicorn.tail() and time.monotonic() < until:
            time.sleep(0.02)
        shell = "\n".join(blocks("docs/quickstart.md", "sh"))
        commands = re.findall(r"^\.venv/bin/(\w+) (.*?) +# (.*)$", shell, re.MULTILINE)
        assert [tool for tool, *_ in commands] == [
            "python",
            "python",
            "python",
            "txcoord",
            "txcoord",
            "pytest",
        ]
        for tool, arguments, expected in commands:
            where = ["--address", newcomer.address] if tool == "txcoord" else []
            done = newcomer.run(*_TOOLS[tool], *arguments.split(), *where)
            # The comment beside a command says what it prints.
            assert expected in done.stdout + done.stderr, (arguments, done.stdout + done.stderr)
        # Each test has all five, and none of the running service's.
        twice = newcomer.run(*_TOOLS["pytest"], "test_twice.py")
        assert "2 passed" in twice.stdout, twice.stdout
        stock = sqlite3.connect(newcomer.folder / "stock.db")
        assert stock.execute("SELECT free, sold FROM item").fetchall() == [(3, 2)]
        stock.close()
    finally:
        uvicorn.stop()
