"""Prints the versions of what the SDK works with, as they are installed for the interpreter that runs this."""

import platform
from importlib.metadata import version

PACKAGES = (
    "grpcio", "protobuf", "SQLAlchemy", "asyncpg", "psycopg", "PyMySQL", "aiomysql", "asyncmy", "httpx", "requests",
    "FastAPI", "Starlette", "Flask", "Flask-SQLAlchemy", "Django", "gunicorn", "celery", "redis",
    "aiosqlite",
)  # fmt: skip

if __name__ == "__main__":
    print(f"Python {platform.python_version()}:", ", ".join(f"{name} {version(name)}" for name in PACKAGES))
