"""The network between the processes, and its faults: toxiproxy, one proxy for each way from a process to another.

`scripts/lib/toxiproxy.sh` makes the program; TXCOORD_TOXIPROXY names another one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from txcoord.testing.processes import Managed, NotReady, free_port

_BUILT = Path(__file__).resolve().parents[2] / ".cache" / "toxiproxy" / "toxiproxy-server"
CUT = "cut"
"""Connections are closed, new ones are refused."""
_KINDS = (CUT, "latency", "reset_peer", "timeout", "timeout")
_UP, _DOWN = "upstream", "downstream"


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a way."""

    kind: str
    streams: tuple[str, ...] = ()
    """upstream: what is sent; downstream: what is answered."""
    attributes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        facts = [f"{value} ms {name}" for name, value in self.attributes.items() if value]
        sides = {(_UP,): ["requests"], (_DOWN,): ["replies"]}.get(self.streams, [])
        return ", ".join([self.kind, *facts, *sides])


def trouble(rng: random.Random) -> Trouble:
    """One that is drawn: cut, slow, reset, or (mostly) what is sent or answered goes nowhere."""
    kind = rng.choice(_KINDS)
    side: tuple[str, ...] = rng.choice([(_UP,), (_DOWN,), (_DOWN,), (_UP, _DOWN)])
    match kind:
        case "latency":
            latency = rng.choice([20, 100, 400, 1_500])
            return Trouble(kind, side, {"latency": latency, "jitter": rng.randrange(latency)})
        case "reset_peer":
            return Trouble(kind, (_DOWN,), {"timeout": rng.choice([0, 20, 200])})
        case "timeout":
            # 0: nothing comes through, and the connection stands, until the trouble is over.
            return Trouble(kind, side, {"timeout": 0})
    return Trouble(CUT)


class Network:
    """One toxiproxy, and the ways through it. Ways are named `from>to`."""

    def __init__(self, folder: Path) -> None:
        self.ways: dict[str, str] = {}
        """Where each listens."""
        port = free_port()
        self._api = f"http://127.0.0.1:{port}"
        self._server = Managed(
            "toxiproxy",
            [str(program()), "-host", "127.0.0.1", "-port", str(port)],
            log=folder / "toxiproxy.log",
            address=f"127.0.0.1:{port}",
            env={"LOG_LEVEL": "error"},
        )

    def way(self, source: str, target: str, address: str) -> str:
        """Open a way from one to another; answers the address to use instead. Raises NotReady."""
        name = f"{source}>{target}"
        for tries_left in (4, 3, 2, 1, 0):
            listen = f"127.0.0.1:{free_port()}"
            try:
                self._ask("POST", "/proxies", {"name": name, "listen": listen, "upstream": address})
            except NotReady:  # the port has been taken meanwhile
                if not tries_left:
                    raise
            else:
                self.ways[name] = listen
                break
        return self.ways[name]

    def between(self, source: str = "", target: str = "") -> list[str]:
        """The ways from one, to one, or from one to another."""
        return [
            name
            for name in self.ways
            if source in ("", name.split(">")[0]) and target in ("", name.split(">")[1])
        ]

    def start(self) -> None:
        """Start it. Raises NotReady."""
        self._server.start(wait_s=0)
        until = time.monotonic() + 30
        while True:
            try:
                self._ask("GET", "/version")
                return
            except OSError as error:
                if time.monotonic() > until or not self._server.running:
                    raise NotReady(f"toxiproxy: {error}:\n{self._server.tail()}") from error
                time.sleep(0.02)

    def stop(self) -> None:
        """End it."""
        self._server.kill9()

    def make(self, what: Trouble, ways: Sequence[str]) -> None:
        """It begins."""
        for way in ways:
            if what.kind == CUT:
                self._ask("POST", f"/proxies/{way}", {"enabled": False})
            for stream in what.streams:
                self._ask(
                    "POST",
                    f"/proxies/{way}/toxics",
                    {
                        "name": f"{what.kind}_{stream}",
                        "type": what.kind,
                        "stream": stream,
                        "attributes": what.attributes,
                    },
                )

    def mend(self, what: Trouble, ways: Sequence[str]) -> None:
        """It is over. Raises NotReady."""
        until = time.monotonic() + 30
        for way in ways:
            while what.kind == CUT:
                try:
                    self._ask("POST", f"/proxies/{way}", {"enabled": True})
                    break
                except NotReady:  # somebody's connection has taken the port for a moment
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.05)
            for stream in what.streams:
                self._ask("DELETE", f"/proxies/{way}/toxics/{what.kind}_{stream}")

    def _ask(self, method: str, path: str, body: Any = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._api + path.replace(">", "%3E"),
            data,
            {"Content-Type": "application/json", "User-Agent": "campaign"},
            method=method,
        )
        # Not through a proxy of this machine's.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=20) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise NotReady(f"toxiproxy, {method} {path}: {error.code} {error.read().decode()}") from error


def program() -> Path:
    """The toxiproxy server. Raises NotReady where there is none."""
    named = os.environ.get("TXCOORD_TOXIPROXY")
    found = Path(named) if named else _BUILT
    if not found.exists() and not named and (on_path := shutil.which("toxiproxy-server")):
        found = Path(on_path)
    if not found.exists():
        raise NotReady(f"no toxiproxy at {found}: run scripts/campaign or scripts/test, which make one")
    return found
