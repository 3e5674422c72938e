"""The test's own way to start commands: what it starts is as if it had been started from nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forge import Forge, Forked
from txcoord.testing.processes import start_process
from txcoord.testing.servers import await_end

_ENVIRONMENT = {"NAME": "value", "LC_CTYPE": "C.UTF-8"}
_SHOW = """
import os, random, signal, sys
print(sys.argv[1:], os.getcwd(), os.environ, os.getsid(0) == os.getpid(), sorted(os.listdir("/proc/self/fd"))[:3])
print(len(os.listdir("/proc/self/fd")), sys.stdin.read(), signal.getsignal(signal.SIGCHLD), __name__, flush=True)
print("wrong", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    made = Forge(sys.executable, ("json",))
    yield made
    made.close()


def _start(forge: Forge, folder: Path, program: str, *arguments: str) -> Forked:
    with (folder / "out").open("wb") as out, open(os.devnull, "rb") as nothing:
        return forge.start(
            ["-c", program, *arguments],
            stdin=nothing.fileno(),
            stdout=out.fileno(),
            stderr=out.fileno(),
            env=_ENVIRONMENT,
            cwd=folder,
        )


def test_it_is_as_if_it_had_been_started_from_nothing(forge: Forge, tmp_path: Path) -> None:
    assert _start(forge, tmp_path, _SHOW, "a", "b").wait(60) == 7
    forked = (tmp_path / "out").read_text()
    with (tmp_path / "out").open("wb") as out, open(os.devnull, "rb") as nothing:
        process = start_process(
            [sys.executable, "-c", _SHOW, "a", "b"],
            stdin=nothing.fileno(),
            stdout=out.fileno(),
            stderr=out.fileno(),
            env=_ENVIRONMENT,
            cwd=tmp_path,
        )
    assert process.wait(60) == 7
    assert forked == (tmp_path / "out").read_text()


def test_signals_and_exit_codes(forge: Forge, tmp_path: Path) -> None:
    waits = "import signal; signal.sigwait([signal.SIGUSR1])"
    killed, left = (_start(forge, tmp_path, waits) for _ in range(2))
    assert killed.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        killed.wait(0)
    waiting = threading.Thread(target=killed.wait)
    waiting.start()
    assert killed.poll() is None  # Who waits keeps nobody from asking.
    killed.kill()
    waiting.join(60)
    assert killed.wait(60) == killed.poll() == -signal.SIGKILL
    killed.kill()  # nobody else may have its number by now
    assert left.poll() is None
    left.kill()
    assert left.wait(60) == -signal.SIGKILL
    raised = _start(forge, tmp_path, "raise SystemError('so')")
    assert raised.wait(60) == 1
    assert "SystemError: so" in (tmp_path / "out").read_text()


def test_they_end_with_who_started_them(tmp_path: Path) -> None:
    forge = Forge(sys.executable, ())
    started = _start(forge, tmp_path, "import time; time.sleep(3600)")
    forge.close()
    assert await_end([started.pid])
    assert started.wait(60) == -signal.SIGKILL
