"""What a node shows to whoever connects, and whom it lets in."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from ..api.tls import ServerTls, what_is_wrong
from ..api.tokens import Tokens
from ..config import Settings
from .errors import ExitCode, StartError

_LOOK_S = 1.0


class Entrance:
    """TLS and tokens of all APIs of a node, as its settings say; their files may change at any time."""

    def __init__(self, settings: Settings) -> None:
        tls, file = settings.tls, settings.auth.token_file
        self._tls_files = (tls.cert_file or Path(), tls.key_file, tls.client_ca_file)
        self.tls = ServerTls(*self._tls_files) if tls.cert_file else None
        self.tokens = Tokens(file) if file is not None else None

    def load(self) -> None:
        """Read the files. Raises StartError for those that cannot be used."""
        try:
            if self.tls is not None:
                self.tls.load()
        except (OSError, ValueError) as error:
            text = what_is_wrong(error, *self._tls_files)
            raise StartError(ExitCode.CONFIG, "BAD_CREDENTIALS", text) from error
        try:
            if self.tokens is not None:
                self.tokens.load()
        except (OSError, ValueError) as error:
            raise StartError(ExitCode.CONFIG, "BAD_CREDENTIALS", f"auth.token_file: {error}") from error

    async def keep(self) -> None:
        """Look for ever whether the files have changed."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.refresh()

    def refresh(self) -> None:
        """Look once."""
        if self.tls is not None:
            self.tls.refresh()
        if self.tokens is not None:
            self.tokens.refresh()


def may_listen(host: str, port: int, option: str = "--listen") -> None:
    """Refuse an address that is taken before anything of the log is touched."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), port))
    except OSError as error:
        raise StartError(
            ExitCode.UNAVAILABLE,
            "ADDRESS_IN_USE",
            f"cannot listen on {host}:{port}: {error.strerror or error}. Is another coordinator running there? "
            f"Choose another with {option}",
        ) from error
