"""Throw-away MariaDB and MySQL servers, for tests, the bench and the demo.

The programs are the machine's own (MariaDB), or what `scripts/test` unpacks into the checkout's `.cache`, or
what TXCOORD_MARIADB and TXCOORD_MYSQL name: a folder like the root of a machine that has `usr/sbin/mariadbd`.
They listen on 127.0.0.1 alone, and root has no password there: not for real data.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import time
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from .servers import Server, ServerError, copy_for_all, nobody, open_to_all

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_LIBRARIES: Final = f"{platform.machine()}-linux-gnu"
_LOCK_WAIT: Final = 1205

DEFAULT_SETTINGS: Final[Mapping[str, str]] = {
    "innodb-flush-log-at-trx-commit": "1",
    "innodb-buffer-pool-size": "64M",
    "max-connections": "300",
    "performance-schema": "OFF",
}


class MariaDBError(ServerError):
    """A throw-away MariaDB or MySQL server could not be found or started, or refused a statement."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code
        """The server's error number; 0 when it isn't the server that said it."""


class _MySQLFamily(Server):
    """What MariaDB's server and MySQL's have in common."""

    error: ClassVar = MariaDBError
    stop_signals: ClassVar = ((signal.SIGTERM, 30.0),)
    variable: ClassVar[str]
    """The environment variable that names where the programs are."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        die_with_parent: bool = False,
    ) -> None:
        super().__init__(data_dir, port=port, die_with_parent=die_with_parent)
        self.settings = {**DEFAULT_SETTINGS, **self._defaults(), **(settings or {})}
        self.root = self._for_all(self.find())

    @classmethod
    @abstractmethod
    def find(cls) -> Path:
        """The folder that has `usr/sbin` with the server in it. Raises MariaDBError: what to do."""

    @classmethod
    @abstractmethod
    def _for_all(cls, root: Path) -> Path: ...

    @abstractmethod
    def _defaults(self) -> Mapping[str, str]: ...

    @abstractmethod
    def _program(self) -> list[str]: ...

    @property
    def version(self) -> str:
        """What the server calls its version, such as 10.11.14-MariaDB."""
        return self.sql("SELECT VERSION()")

    def url(self, database: str = "mysql", driver: str = "mysql+asyncmy") -> str:
        return f"{driver}://root@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str | None = "mysql", **options: Any) -> Any:
        """A new PyMySQL connection of root's, with autocommit; `options` are PyMySQL's."""
        pymysql = _pymysql()
        values = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "root",
            "database": database,
            "autocommit": True,
            "charset": "utf8mb4",
            "connect_timeout": 10,
            "ssl_disabled": True,
        }
        return pymysql.connect(**{**values, **options})

    def sql(self, text: str, database: str | None = "mysql") -> str:
        """Run statements in one session and return the rows of all, a line each, columns parted by `|`."""
        pymysql = _pymysql()
        lines: list[str] = []
        try:
            with (
                self.connect(database, client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute(text)
                while True:
                    lines += ("|".join(map(_shown, row)) for row in cursor.fetchall())
                    if not cursor.nextset():
                        return "\n".join(lines)
        except pymysql.MySQLError as error:
            code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
            raise MariaDBError(f"{code}: {error.args[-1] if error.args else error}", code) from error

    def create_database(self, name: str) -> None:
        self.sql(f"CREATE DATABASE {_quoted(name)} CHARACTER SET utf8mb4")

    def end_sessions(self, database: str) -> None:
        """KILL all sessions in this database, and wait until they are gone."""
        query = f"SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '{database}'"
        while ids := self.sql(query).split():
            for number in ids:
                with contextlib.suppress(MariaDBError):  # it may be gone
                    self.sql(f"KILL {number}")
            time.sleep(0.01)

    def drop_database(self, name: str) -> None:
        """Drop a database with its connections. Prepared transactions that stand in the way are rolled back,
        of whatever database: nothing tells which one a branch is in."""
        self.end_sessions(name)
        drop = f"SET lock_wait_timeout = 1, innodb_lock_wait_timeout = 1; DROP DATABASE IF EXISTS {_quoted(name)}"
        for mend in (self._roll_back_prepared, self._restart_hard):
            try:
                self.sql(drop)
            except MariaDBError as error:
                if error.code != _LOCK_WAIT:
                    raise
                mend()
            else:
                return
        self.sql(drop)

    def prepared(self) -> list[tuple[int, bytes, bytes]]:
        """Every prepared branch that XA RECOVER lists: format, gtrid, bqual."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("XA RECOVER")
            rows = cursor.fetchall()
        found = []
        for kind, gtrid, bqual, data in rows:
            raw = data if isinstance(data, bytes) else data.encode()
            found.append((kind, raw[:gtrid], raw[gtrid : gtrid + bqual]))
        return sorted(found)

    def _roll_back_prepared(self) -> None:
        for kind, gtrid, bqual in self.prepared():
            self.sql(f"XA ROLLBACK X'{gtrid.hex()}', X'{bqual.hex()}', {kind}")

    def _restart_hard(self) -> None:
        # A transaction in limbo holds its locks, unlisted, until the next start.
        self.kill9()
        self.start()
        self._roll_back_prepared()

    def _pid_file(self) -> Path:
        return self.data / "server.pid"

    def _temporary(self) -> Path:
        # One of its own: a server that starts deletes the temporary tables of all that share its folder.
        folder = self.home / "tmp"
        folder.mkdir(mode=0o700, exist_ok=True)
        if user := nobody():
            os.chown(folder, user.pw_uid, user.pw_gid)
        return folder

    def _options(self) -> dict[str, str]:
        return {
            "datadir": str(self.data),
            "socket": str(self.data / "s.sock"),
            "pid-file": str(self._pid_file()),
            "bind-address": "127.0.0.1",
            "port": str(self.port),
            "init-file": str(self.home / "start.sql"),
            "tmpdir": str(self._temporary()),
            **self.settings,
        }

    def _command(self) -> list[str]:
        # Root comes over TCP, where names are not looked up.
        statements = (
            "CREATE USER IF NOT EXISTS 'root'@'127.0.0.1'",
            "GRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION",
        )
        file = self.home / "start.sql"
        file.write_text("".join(f"{statement};\n" for statement in statements))
        file.chmod(0o644)
        return [
            *self._program(),
            "--no-defaults",
            "--skip-name-resolve",
            f"--basedir={self.root / 'usr'}",
            *(f"--{name}={value}" for name, value in self._options().items()),
        ]

    def _ready(self, _: subprocess.Popen[bytes]) -> bool:
        pymysql = _pymysql()
        with (
            contextlib.suppress(pymysql.MySQLError, OSError),
            self.connect() as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT @@pid_file")
            # Not another server that has just taken the port.
            return bool(cursor.fetchone() == (str(self._pid_file()),))
        return False


class MariaDBServer(_MySQLFamily):
    """One MariaDB server with a data folder of its own, which outlives it; see `Server`."""

    product: ClassVar = "MariaDB"
    variable: ClassVar = "TXCOORD_MARIADB"

    @classmethod
    def find(cls) -> Path:
        candidates = [Path("/"), _CHECKOUT / ".cache" / "mariadb" / "root"]
        if named := os.environ.get(cls.variable):
            candidates = [Path(named)]
        for root in candidates:
            if (root / "usr/sbin/mariadbd").exists() and (root / "usr/bin/mariadb-install-db").exists():
                return root
        raise MariaDBError(
            "no MariaDB server here: run scripts/test once, which unpacks one, or install Debian's "
            f"mariadb-server-core and mariadb-client-core, or set {cls.variable}"
        )

    @classmethod
    def _for_all(cls, root: Path) -> Path:
        if os.geteuid() != 0 or open_to_all(root / "usr/sbin/mariadbd"):
            return root
        folders = [root / name for name in ("usr", "lib", "etc")]
        return copy_for_all(root / "usr/sbin/mariadbd", folders, cls.product)

    def _libraries(self) -> dict[str, str]:
        if self.root == Path("/"):
            return {}
        folders = (self.root / "usr/lib" / _LIBRARIES, self.root / "lib" / _LIBRARIES)
        return {"LD_LIBRARY_PATH": ":".join(map(str, folders))}

    def _defaults(self) -> Mapping[str, str]:
        return {"innodb-log-file-size": "32M"}

    def _init(self, new: Path) -> None:
        command = [
            "env",
            *(f"{name}={value}" for name, value in self._libraries().items()),
            str(self.root / "usr/bin/mariadb-install-db"),
            "--no-defaults",
            f"--basedir={self.root / 'usr'}",
            f"--datadir={new}",
            f"--tmpdir={self._temporary()}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            "--innodb-log-file-size=32M",
        ]
        self._run(command, new)

    def _program(self) -> list[str]:
        libraries = [f"{name}={value}" for name, value in self._libraries().items()]
        program = str(self.root / "usr/sbin/mariadbd")
        return ["env", *libraries, program] if libraries else [program]


class MySQLServer(_MySQLFamily):
    """One MySQL server with a data folder of its own, which outlives it; see `Server`."""

    product: ClassVar = "MySQL"
    variable: ClassVar = "TXCOORD_MYSQL"

    @classmethod
    def find(cls) -> Path:
        root = Path(os.environ.get(cls.variable) or _CHECKOUT / ".cache" / "mysql" / "root")
        if (root / "usr/sbin/mysqld").exists():
            return root
        raise MariaDBError(
            f"no MySQL server here: run scripts/test once, which unpacks one if it can, or set {cls.variable}"
        )

    @classmethod
    def _for_all(cls, root: Path) -> Path:
        if os.geteuid() != 0 or open_to_all(root / "usr/sbin/mysqld"):
            return root
        folders = [root / name for name in ("usr", "lib64", "etc")]
        return copy_for_all(root / "usr/sbin/mysqld", folders, cls.product)

    def _defaults(self) -> Mapping[str, str]:
        return {
            "innodb-redo-log-capacity": "32M",
            "mysqlx": "OFF",
            "secure-file-priv": "NULL",
            "skip-log-bin": "ON",
        }

    def _init(self, new: Path) -> None:
        command = [
            *self._program(),
            "--no-defaults",
            f"--basedir={self.root / 'usr'}",
            f"--datadir={new}",
            f"--tmpdir={self._temporary()}",
            f"--lc-messages-dir={self.root / 'usr/share/mysql'}",
            "--initialize-insecure",
        ]
        self._run(command, new)

    def _options(self) -> dict[str, str]:
        return {**super()._options(), "lc-messages-dir": str(self.root / "usr/share/mysql")}

    def _program(self) -> list[str]:
        program = self.root / "usr/sbin/mysqld"
        # One from another Debian brings its libc along, and is started by that one's loader.
        loaders = sorted(self.root.glob("usr/lib64/ld-linux-*.so.*")) if self.root != Path("/") else []
        if not loaders:
            return [str(program)]
        return [str(loaders[0]), "--library-path", str(self.root / "usr/lib" / _LIBRARIES), str(program)]


def _pymysql() -> Any:
    try:
        import pymysql.constants.CLIENT
    except ImportError:
        raise MariaDBError("PyMySQL is needed to talk to the server: pip install PyMySQL") from None
    return pymysql


def _shown(value: object) -> str:
    if value is None:
        return ""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
