"""What the small examples share: a coordinator and services, each a process, in a folder that goes in the end."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from txcoord.testing.processes import TXCOORD, Managed, free_port

ROOT = Path(__file__).resolve().parents[1]


class Running:
    """The processes of one example."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coordinator: Managed
        self._services: list[Managed] = []

    def start_coordinator(self, *, databases: int = 0, env: Mapping[str, str] | None = None) -> str:
        """Start one, ``txcoord dev``, with so many PostgreSQL databases for XA branches; its address."""
        address = f"127.0.0.1:{free_port()}"
        with_databases = ["--with-postgres", str(databases)] if databases else []
        self.coordinator = Managed(
            "coordinator",
            [*TXCOORD, "dev", "--data", str(self.folder / "dev"), "--listen", address, *with_databases],
            log=self.folder / "coordinator.log",
            env=env,
            address=address,
            cwd=self.folder,
        )
        self.coordinator.start()
        return address

    def database(self, name: str) -> str:
        """The URL of one of its databases."""
        until = time.monotonic() + 10
        while (found := re.search(rf"resource  {name}  (\S+)", self.coordinator.tail())) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"the coordinator tells nothing of {name}:\n{self.coordinator.tail()}")
            time.sleep(0.02)
        return found[1]

    def service(self, app: str, **env: str) -> Managed:
        """Start a service of ``uvicorn``: ``examples.travel.partners:app``."""
        port = free_port()
        made = Managed(
            app,
            [sys.executable, "-m", "uvicorn", "--log-level=warning", f"--port={port}", app],
            log=self.folder / f"{app}.log",
            env={
                "DATA": str(self.folder),
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
                **env,
            },
            address=f"127.0.0.1:{port}",
            cwd=ROOT,
        )
        self._services.append(made)
        made.start(wait_s=0)
        return made

    def await_services(self) -> None:
        """Wait until each answers. Raises TimeoutError with the end of its log."""
        for service in self._services:
            until = time.monotonic() + 30
            while not _answers(service):
                if time.monotonic() > until or not service.running:
                    raise TimeoutError(f"{service.name} does not answer:\n{service.tail()}")
                time.sleep(0.02)

    def stop(self) -> None:
        """End them."""
        for process in self._services:
            process.stop()
        if hasattr(self, "coordinator"):
            self.coordinator.stop()


def _answers(service: Managed) -> bool:
    try:
        with urllib.request.urlopen(f"http://{service.address}/health", timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def running() -> Iterator[Running]:
    """All of it, gone in the end."""
    folder = Path(tempfile.mkdtemp(prefix="txcoord-example-"))
    folder.chmod(0o755)  # As root a database server runs as nobody, who has to get in.
    made = Running(folder)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
