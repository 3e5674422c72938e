"""What takes long to import is imported by those only who use it."""

from __future__ import annotations

import subprocess
import sys

_HEAVY = (
    "aiohttp", "aiokafka", "aiosqlite", "alembic", "asyncmy", "asyncpg", "cryptography", "fastapi", "prometheus_client",
    "psycopg", "pymysql", "redis", "rich", "sqlalchemy", "sqlalchemy.orm", "structlog", "uvicorn",
)  # fmt: skip

_CLIENT = """
import sys
from txcoord.cli import app
for command in ("tx list", "tx show t", "health", *(f"{group} list" for group in ("parked", "target", "node"))):
    try:
        app([*command.split(), "--address", "127.0.0.1:1"])
    except SystemExit as left:
        assert left.code == 4, (command, left.code)
"""
_NODE = """
import sys
from txcoord.config import Settings
from txcoord.wiring import Node
Node(Settings(log={"url": "%s"}, resources={"a": {"url": "%s"}}))
"""


def _loaded(program: str) -> set[str]:
    """Which of the heavy ones a new process has, that has run this."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nprint(*sys.modules)"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(_HEAVY) & set(done.stdout.split())


def test_a_command_that_only_asks_a_coordinator() -> None:
    assert _loaded(_CLIENT) == set()


def test_a_node_has_the_drivers_that_its_settings_name() -> None:
    always = {"prometheus_client", "rich", "sqlalchemy", "structlog"}
    assert _loaded(_NODE % ("sqlite+aiosqlite:///log.db", "postgresql://a/b")) == {*always, "asyncpg"}
    assert _loaded(_NODE % ("mysql+asyncmy://a/log", "mysql://a/b")) == {
        *always, "asyncmy", "cryptography", "sqlalchemy.orm",
    }  # fmt: skip
