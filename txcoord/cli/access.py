"""How a command shows who calls, and whom it believes: options of every command that talks to a coordinator."""

from __future__ import annotations

import contextvars
import functools
import inspect
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console

_PROBE_S = 3.0

CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        envvar="TXCOORD_CA_FILE",
        help="TLS: who has signed the coordinator's certificate, in PEM.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", envvar="TXCOORD_TOKEN_FILE", help="A file with the bearer token to show."),
]


@dataclass(frozen=True, slots=True)
class Access:
    """What a command was given."""

    ca_file: Path | None = None
    token_file: Path | None = None


_given: contextvars.ContextVar[Access] = contextvars.ContextVar("txcoord_access", default=Access())  # noqa: B039 - frozen


def add_options(app: typer.Typer) -> None:
    """Give ``--ca-file`` and ``--token-file`` to all commands that have ``--address``."""
    for command in app.registered_commands:
        function = command.callback
        if function is not None and "address" in inspect.signature(function).parameters:
            command.callback = _with_options(function)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_options(group.typer_instance)


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function, eval_str=True)
    if "ca_file" in signature.parameters:
        return function

    @functools.wraps(function)
    def run(*arguments: Any, ca_file: Path | None, token_file: Path | None, **options: Any) -> Any:
        _given.set(Access(ca_file, token_file))
        return function(*arguments, **options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *signature.parameters.values(),
        inspect.Parameter("ca_file", keyword, default=None, annotation=CaFile),
        inspect.Parameter("token_file", keyword, default=None, annotation=TokenFile),
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def open_channel(address: str) -> Any:
    """A gRPC channel to a coordinator."""
    import grpc

    ca, cert = _given.get().ca_file, os.environ.get("TXCOORD_CERT_FILE")
    if ca is None and not cert:
        return grpc.insecure_channel(address)
    key = os.environ.get("TXCOORD_KEY_FILE") or cert
    try:
        files = [Path(file).read_bytes() if file else None for file in (ca, key, cert)]
    except OSError as error:
        console.fail(console.CONFIG, f"BAD_CREDENTIALS: {error}")
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*files))


def tls_trouble(address: str) -> str:
    """Why the coordinator there is not believed, or does not believe us; empty where TLS is not what is wrong.

    gRPC tells of the last address that it has tried only, and of TLS in the words of its library."""
    ca, cert = _given.get().ca_file, os.environ.get("TXCOORD_CERT_FILE")
    if ca is None and not cert:
        return ""
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert:
            context.load_cert_chain(cert, os.environ.get("TXCOORD_KEY_FILE") or None)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host, int(port)), timeout=_PROBE_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of the coordinator at {address} is not accepted: {error.verify_message}"
    except ssl.SSLError as error:
        return f"no TLS with {address}: {error.reason or error}"
    except (OSError, ValueError):
        return ""


def metadata(address: str) -> Sequence[tuple[str, str]]:
    """What each call brings."""
    from txcoord_client.protocol import bearer

    file = _given.get().token_file
    if file is None:
        return ()
    clear = _given.get().ca_file is None and not os.environ.get("TXCOORD_CERT_FILE")
    allowed = os.environ.get("TXCOORD_TOKEN_OVER_PLAINTEXT", "").lower() in ("true", "1", "yes", "on")
    if clear and not allowed and not bearer.stays_here(address):
        console.fail(
            console.CONFIG,
            f"BAD_CREDENTIALS: a token is not sent to {address} without TLS, where others can read it: --ca-file, or "
            "TXCOORD_TOKEN_OVER_PLAINTEXT=true if the network is yours alone",
        )
    try:
        token = bearer.checked(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        console.fail(console.CONFIG, f"BAD_CREDENTIALS: {file}: {error}")
    return ((bearer.HEADER, bearer.credentials(token)),)
