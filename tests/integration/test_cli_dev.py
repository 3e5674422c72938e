"""`txcoord dev`: nothing to set up, and nothing lost by stopping it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.cli_support import Desk, Service, clean_environment, until
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import TXCOORD, Managed, free_port, serving
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb


@dataclass
class Dev:
    """A `txcoord dev` in a folder."""

    process: Managed

    @property
    def printed(self) -> str:
        return self.process.log.read_text()

    @property
    def address(self) -> str:
        return self.process.address

    def urls(self) -> dict[str, str]:
        return dict(re.findall(r"^  resource  (\S+)  (\S+)$", self.printed, re.MULTILINE))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Dev]]:
    started: list[Managed] = []

    def run(*arguments: str, folder: Path = tmp_path, port: int = 0) -> Dev:
        address = f"127.0.0.1:{port or free_port()}"
        number = len(started)
        process = Managed(
            "dev",
            [*TXCOORD, "dev", "--listen", address, *arguments],
            log=folder / f"dev{number}.log",
            env={},
            address=address,
            cwd=folder,
        )
        started.append(process)
        process.start()
        until(lambda: "Ctrl-C" in process.tail(10_000), "it has said that it is ready")
        return Dev(process)

    yield run
    for process in started:
        process.stop()


def test_it_says_all_that_a_newcomer_needs(start: Callable[..., Dev], tmp_path: Path) -> None:
    dev = start()
    took = re.search(r"is ready after (\d+\.\d) s", dev.printed)
    assert took is not None
    print(f"ready after {took[1]} s")  # Measured, not asserted: the machine may be busy.
    assert f"address   {dev.address}" in dev.printed
    assert f"data      {tmp_path / '.txcoord'}" in dev.printed
    assert f'coord = Coordinator("{dev.address}")' in dev.printed
    url = re.search(r"http      (http://127\.0\.0\.1:\d+) ", dev.printed)
    assert url is not None
    with urllib.request.urlopen(f"{url[1]}/readyz") as answer:
        assert answer.status == 200
    assert "--with-postgres 2" in dev.printed
    assert (tmp_path / ".txcoord" / "dev.db").exists()
    assert dev.process.stop() == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that all may enter: as root, PostgreSQL runs as nobody."""
    folder = Path(tempfile.mkdtemp(prefix="txcoord-test-dev-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_what_was_committed_is_there_after_a_restart(open_folder: Path, start: Callable[..., Dev]) -> None:
    dev = start("--with-postgres", "2", folder=open_folder)
    urls = dev.urls()
    assert set(urls) == {"db1", "db2"}
    port = int(urls["db1"].rpartition("/")[0].rpartition(":")[2])
    work = Service(dev.address).new()
    server = _client_of(open_folder, port)
    for name, url in urls.items():
        work.prepare(name, server, url)
    assert work.commit().state == c.STATE_COMMITTED
    dev.process.kill9()
    # Names and URLs are those of before, so that what was configured elsewhere still fits.
    again = start("--with-postgres", "2", folder=open_folder)
    assert again.urls() == urls
    # Its end was written lazily and may be lost with the kill; the decision is not.
    request = pb.GetRequest(tx_id=work.tx_id)
    service = Service(again.address)
    assert service.stub.Get(request, timeout=10).transaction.outcome.decision == c.DECISION_COMMIT
    until(
        lambda: service.stub.Get(request, timeout=10).transaction.outcome.state == c.STATE_COMMITTED,
        "committed, without waiting for a lease",
        patience_s=8.0,
    )
    listed = Desk(open_folder).json("resource", "list", "--address", again.address)
    assert [(r["name"], r["available"]) for r in listed] == [("db1", True), ("db2", True)]
    assert again.process.stop() == 0


def _client_of(folder: Path, port: int) -> PostgresServer:
    """psql on the server that `dev` runs; never started here."""
    data = folder / "unused"
    data.mkdir(mode=0o755)
    return PostgresServer(data, port=port)


def test_a_second_one_in_the_same_folder_says_who_has_it(start: Callable[..., Dev], tmp_path: Path) -> None:
    dev = start()
    said = Desk(tmp_path).run("dev", "--listen", "127.0.0.1:0", code=4).stderr
    assert said.startswith(
        f"txcoord: another `txcoord dev` (process {dev.process.pid} at {dev.address}) has "
    )
    assert str(tmp_path / ".txcoord") in said
    # In another folder, on another port, there is room for both.
    (tmp_path / "other").mkdir()
    other = start(folder=tmp_path / "other")
    assert serving(other.address)
    assert serving(dev.address)


def test_a_taken_port_is_said_in_one_line(start: Callable[..., Dev], tmp_path: Path) -> None:
    dev = start()
    said = Desk(tmp_path).run("dev", "--memory", "--listen", dev.address, code=4).stderr
    assert said.startswith(f"txcoord: ADDRESS_IN_USE: cannot listen on {dev.address}: ")


def test_memory_leaves_nothing_behind(start: Callable[..., Dev], tmp_path: Path) -> None:
    dev = start("--memory")
    assert "goes with this process (--memory)" in dev.printed
    folder = re.search(r"data +(\S+)", dev.printed)
    assert folder is not None
    assert Path(folder[1]).exists()
    assert dev.process.stop() == 0
    assert not Path(folder[1]).exists()
    assert not (tmp_path / ".txcoord").exists()


def test_ctrl_c_is_a_clean_end(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*TXCOORD, "dev", "--listen", "127.0.0.1:0"],
        cwd=tmp_path,
        env=clean_environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
    process.send_signal(2)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said == ""
