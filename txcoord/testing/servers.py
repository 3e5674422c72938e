"""What throw-away database servers have in common: a data folder, a port that is kept, one owner.

They refuse to run as root, or should not, so there they run as nobody; what nobody cannot reach (a checkout
or a data folder below /root) is put below the system's temporary folder instead.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
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
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Final, Self

# Child processes are started while gRPC's threads run; its fork handlers can crash the child before it execs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

log = logging.getLogger(__name__)

START_TIMEOUT: Final = 90.0


class ServerError(Exception):
    """A throw-away server could not be found or started, or refused a statement."""


class Server(ABC):
    """One database server with a data folder of its own, which outlives it.

    The port, when it isn't given, is chosen once and kept in the data folder. With `die_with_parent` the
    server is told to stop when the thread that started it ends, so also when its process is killed; without,
    it is stopped at a normal end of the process only.
    """

    product: ClassVar[str]
    error: ClassVar[type[ServerError]] = ServerError
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]]
    """What ends it in an orderly way, and how long it has for it, s: the first that works."""

    def __init__(self, data_dir: Path, *, port: int | None = None, die_with_parent: bool = False) -> None:
        self.data_dir = data_dir.absolute()
        self.die_with_parent = die_with_parent
        self.home = home_of(self.data_dir, self.product)
        self._fixed_port = port
        self._port: int | None = port
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._owner = os.getpid()

    # ---- what each kind of server is ----

    @abstractmethod
    def _init(self, new: Path) -> None:
        """Make the server's files in `new`, an empty folder that belongs to who runs the server."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What starts it."""

    @abstractmethod
    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Does it serve?"""

    @abstractmethod
    def _pid_file(self) -> Path:
        """Where a server writes its process id; first in the file."""

    # ---- what all have ----

    @property
    def data(self) -> Path:
        """The folder of the server's own files."""
        return self.home / "data"

    @property
    def port(self) -> int:
        if self._port is None:
            self._port = self._remembered_port() or self._choose_port()
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the server."""
        if self._process is None:
            raise self.error(f"the server of {self.data_dir} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        return self.home / "log"

    def start(self) -> None:
        """Start the server, with new files if the data folder has none, and wait until it is ready."""
        if self.running:
            return None
        first = self._lock is None
        self._take_lock()
        if first:
            self._end_leftover()
            if self._fixed_port is None and not bindable(self.port):
                self._port = self._choose_port()
        if not self.data.is_dir():
            new = self.home / "data.new"  # renamed when complete: a half-made one is never used
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            if user := nobody():
                os.chown(new, user.pw_uid, user.pw_gid)
            self._init(new)
            new.rename(self.data)
        for tries_left in (2, 1, 0):
            self._launch()
            try:
                return self._await_ready()
            except self.error:
                # Another server may have taken the port since it was looked at.
                free_to_move = first and self._fixed_port is None
                if not (tries_left and free_to_move) or bindable(self.port):
                    raise
                self._port = self._choose_port()
        raise AssertionError("unreachable")

    def _launch(self) -> None:
        command = self._command()
        if self.die_with_parent and (setpriv := shutil.which("setpriv")):
            command = [setpriv, "--pdeathsig", self.stop_signals[0][0].name.removeprefix("SIG"), *command]
        with self.log_file.open("ab") as out:
            # A direct child, so that it can be reaped; a session of its own, so that Ctrl-C is ours.
            self._process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **as_nobody(self.data)
            )
        _started.add(self)

    def stop(self) -> None:
        """Stop the server the fast way: open transactions are rolled back, prepared ones kept."""
        process, self._process = self._process, None
        _started.discard(self)
        if process is not None:
            for number, patience in self.stop_signals:
                if process.poll() is None:
                    process.send_signal(number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(patience)
            if process.poll() is None:
                _kill_tree(process.pid)
                process.wait()
        self._release_lock()

    def kill9(self) -> None:
        """SIGKILL to the server and all its processes; all are gone when this returns."""
        process, self._process = self._process, None
        _started.discard(self)
        if process is None:
            return
        if process.poll() is None:
            children = _kill_tree(process.pid)
            process.wait()
            await_end(children)

    def restart(self) -> None:
        """Stop the server if it runs, and start it again on the same port."""
        lock, self._lock = self._lock, None
        try:
            self.stop()
        finally:
            self._lock = lock
        self.start()

    def remove(self) -> None:
        """End the server and delete its data."""
        self.kill9()
        self.stop()
        for folder in {self.home, self.data_dir}:
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _remembered_port(self) -> int | None:
        try:
            return int((self.home / "port").read_text())
        except (OSError, ValueError):
            return None

    def _choose_port(self) -> int:
        # Below the range that outgoing connections use: theirs could take it while the server is down.
        for _ in range(100):
            port = 20000 + secrets.randbelow(12000)
            if bindable(port):
                (self.home / "port").write_text(f"{port}\n")
                return port
        raise self.error("no free port between 20000 and 32000")

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = (self.home / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise self.error(f"another process runs the server of {self.data_dir}") from None
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end_leftover(self) -> None:
        """End a server on this data folder whose owner was killed."""
        try:
            pid = int(self._pid_file().read_text().split("\n", 1)[0])
            if (state := process_state(pid)) and state[0] == "Z":
                # Nobody reaps it, and some servers would take it for alive.
                self._pid_file().unlink(missing_ok=True)
                return
            if not os.path.samefile(f"/proc/{pid}/cwd", self.data):
                return
        except (OSError, ValueError):
            return
        for number, _ in self.stop_signals:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if await_end([pid]):
                return
        raise self.error(f"process {pid} keeps {self.data_dir} and does not end")

    def _await_ready(self) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and process.poll() is None:
            if self._ready(process):
                return
            time.sleep(0.01)
        why = "ended" if process.poll() is not None else f"was not ready after {START_TIMEOUT:.0f} s"
        self.kill9()
        raise self.error(f"{self.product} {why}: {self.log_file.read_text(errors='replace')[-1500:]}")

    def _run(self, command: Sequence[str | Path], folder: Path) -> None:
        """Run a program that prepares the data folder, as who runs the server."""
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            **as_nobody(folder),
        )
        if done.returncode:
            raise self.error(f"{Path(command[0]).name} failed: {done.stdout[-2000:]}")


_started: set[Server] = set()


@atexit.register
def _stop_all() -> None:
    for server in list(_started):
        if server._owner == os.getpid():  # not in a forked child
            with contextlib.suppress(Exception):
                server.stop()


def environment(drop: Iterable[str] = ("PG", "MYSQL", "MARIADB")) -> dict[str, str]:
    """This process's environment without what would lead database programs elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tuple(drop))}
    return {**kept, "LC_ALL": "C", "PGCONNECT_TIMEOUT": "10"}


def nobody() -> pwd.struct_passwd | None:
    """Who the servers run as: None is the present user."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def as_nobody(folder: Path, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The options that make a subprocess run in `folder` as who runs the server."""
    options: dict[str, Any] = {
        "cwd": folder,
        "env": {**environment(), **(more or {})},
        "stdin": subprocess.DEVNULL,
    }
    if user := nobody():
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return options


def open_to_all(path: Path) -> bool:
    """Whether every user can read and enter `path`."""
    path = path.resolve()
    if path.stat().st_mode & 0o005 != 0o005:
        return False
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)


def shared_folder(product: str) -> Path:
    """A folder of root's below the temporary folder that all may enter."""
    folder = Path(tempfile.gettempdir()) / f"txcoord-{product.lower()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise ServerError(f"{folder} was made by someone else: remove it")
    folder.chmod(0o755)
    return folder


def copy_for_all(key_file: Path, folders: Iterable[Path], product: str) -> Path:
    """A folder that all can enter with copies of `folders`, made once for each state of `key_file`."""
    file = key_file.stat()
    key = hashlib.sha256(f"{key_file} {file.st_mtime_ns} {file.st_size}".encode()).hexdigest()[:16]
    shared = shared_folder(product)
    copy = shared / f"server-{key}"
    if copy.is_dir():
        return copy
    new = Path(tempfile.mkdtemp(dir=shared))
    for part in folders:
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
    return copy


def home_of(data_dir: Path, product: str) -> Path:
    """Where the files of `data_dir` are: there, or below the temporary folder if nobody can't enter."""
    data_dir.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or open_to_all(data_dir):
        return data_dir
    name = "data-" + hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    home = shared_folder(product) / name
    if not home.is_dir():
        log.warning("%s runs as nobody, who cannot enter %s: its data is in %s", product, data_dir, home)
        home.mkdir(mode=0o755)
        home.chmod(0o755)
    (data_dir / "location").write_text(f"{home}\n")
    return home


def bindable(port: int) -> bool:
    """Can a server listen on this port of 127.0.0.1 now?"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def process_state(pid: int) -> tuple[str, int] | None:
    """The state letter and the parent of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def await_end(pids: list[int], patience: float = 10) -> bool:
    """Wait until these processes are gone, or dead and not reaped. False: some still live."""
    deadline = time.monotonic() + patience
    while any((state := process_state(pid)) and state[0] not in "ZX" for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _kill_tree(pid: int) -> list[int]:
    # Stopped first, so that it neither forks nor tells its children anything while they are listed.
    os.kill(pid, signal.SIGSTOP)
    others = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    children = [other for other in others if (state := process_state(other)) and state[1] == pid]
    for victim in (pid, *children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    return children
