"""Which drivers a bench uses: all of them with an event loop, or all with threads."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DATABASES: Final = ("postgres", "mariadb")
_LOOP: Final = {
    "asyncpg": "postgres",
    "psycopg_async": "postgres",
    "asyncmy": "mariadb",
    "aiomysql": "mariadb",
}
_THREADS: Final = {"psycopg": "postgres", "pymysql": "mariadb"}
ALL: Final = (*_LOOP, *_THREADS)


class WrongDrivers(ValueError):
    """These drivers do not fit together, or not the databases; the text says why."""


@dataclass(frozen=True, slots=True)
class Drivers:
    """A driver for each kind of database."""

    postgres: str
    mariadb: str
    threads: bool
    """Do the callers run in threads, on the synchronous SDK?"""

    @classmethod
    def chosen(cls, names: Sequence[str], databases: Sequence[str]) -> Drivers:
        """These, and for a database without one a driver of the same kind. Raises WrongDrivers."""
        for name in names:
            if name not in ALL:
                raise WrongDrivers(f"{name!r}: the drivers are {', '.join(ALL)}")
        threads = any(name in _THREADS for name in names)
        known = _THREADS if threads else _LOOP
        chosen = {kind: name for name, kind in reversed(known.items())}
        for name in names:
            if name not in known:
                raise WrongDrivers(f"{' and '.join(names)}: some run in an event loop, and some in threads")
            if known[name] not in databases:
                raise WrongDrivers(f"{name!r}: no database here is on {known[name]}")
            chosen[known[name]] = name
        if len(set(names)) != len({known[name] for name in names}):
            raise WrongDrivers(f"{' and '.join(names)}: one for each kind of database")
        for kind in databases:
            package = chosen[kind].removesuffix("_async")
            if importlib.util.find_spec(package) is None:
                raise WrongDrivers(f"{chosen[kind]!r} is not installed: pip install {package}")
        return cls(**chosen, threads=threads)

    def of(self, database: str) -> str:
        """The driver for this kind of database."""
        return self.mariadb if database == "mariadb" else self.postgres

    def shown(self, databases: Sequence[str]) -> str:
        """One for each of these databases."""
        return ",".join(self.of(database) for database in databases)
