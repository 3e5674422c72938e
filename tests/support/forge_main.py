"""The process that forks commands for `tests.support.forge`: a program, not imported.

It has loaded what commands need, and nothing of it runs: no thread, no loop, no connection. A request is JSON over a
socket that keeps messages apart, with four descriptors: the standard ones, and one on which the process id and later
the exit code are told. A process that was forked is as one that was started: its own session, environment and
folder, no descriptor of others, and it ends when this one does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys

_MOST = 1 << 20
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def _forge(requests: socket.socket) -> list[str]:
    """Fork what is asked for. Returns in what was forked, with its command; ends this process when nobody can ask."""
    told: dict[int, int] = {}
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, wake], [], [])
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                wake.recv(4096)
            _reap(told)
        if requests not in ready:
            continue
        data, descriptors, _, _ = socket.recv_fds(requests, _MOST, 4)
        if not data:
            os._exit(0)
        wanted = json.loads(data)
        here = os.getpid()
        pid = os.fork()
        if not pid:
            return _become(wanted, descriptors, here)
        tell = descriptors.pop()
        told[pid] = tell
        _tell(tell, pid)
        for descriptor in descriptors:
            os.close(descriptor)


def _reap(told: dict[int, int]) -> None:
    while told:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        tell = told.pop(pid)
        _tell(tell, os.waitstatus_to_exitcode(status))
        os.close(tell)


def _tell(descriptor: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it
        os.write(descriptor, f"{number}\n".encode())


def _become(wanted: dict[str, object], descriptors: list[int], parent: int) -> list[str]:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it had died before that was said
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for target, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, target)
    os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    os.chdir(str(wanted["cwd"]))
    os.environ.clear()
    os.environ.update(wanted["env"])  # type: ignore[call-overload]
    return list(wanted["command"])  # type: ignore[call-overload]


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared stays shared
    command = _forge(socket.socket(fileno=int(sys.argv[1])))
    # What remains is as if the interpreter had just been started with -c or -m.
    how, what, *arguments = command
    if how == "-c":
        sys.argv = ["-c", *arguments]
        sys.path.insert(0, "")
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = ["-m", *arguments]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(what, run_name="__main__", alter_sys=True)
