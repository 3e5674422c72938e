"""TLS of what listens. The certificate and its key are read again when their files change."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from ..observe import logs

log = logs.get("txcoord.tls")


def what_is_wrong(error: Exception, cert: Path, key: Path | None, client_ca: Path | None) -> str:
    """Why they cannot be used, with the setting that is to be mended."""
    found = {"tls.cert_file": cert, "tls.key_file": key, "tls.client_ca_file": client_ca}
    for setting, file in found.items():
        if file is None:
            continue
        try:
            content = file.read_bytes()
        except OSError as trouble:
            return f"{setting} {file} cannot be read: {trouble.strerror}"
        if setting != "tls.key_file" and b"BEGIN " + b"CERTIFICATE" not in content:
            return f"{setting} {file} has no certificate in PEM"
    holder = key or cert
    content = holder.read_bytes()
    if b"PRIVATE KEY-----" not in content:
        if key is None:
            return f"tls.cert_file {cert} has no private key, and tls.key_file is not set"
        return f"tls.key_file {key} has no private key in PEM"
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return f"tls.{'key' if key else 'cert'}_file {holder} has the key of another certificate than {cert}"
    if b"ENCRYPTED" in content:
        return f"the private key in {holder} is encrypted: only one without a passphrase can be used"
    return f"tls.cert_file {cert}, tls.key_file {holder}: {error}"


class ServerTls:
    """One certificate for all APIs of a node. ``client_ca``: whoever has signed the certificate that each client then
    must have; it is read once."""

    def __init__(self, cert: Path, key: Path | None = None, client_ca: Path | None = None) -> None:
        self._cert = cert
        self._given = (cert, key, client_ca)
        self._key = key or cert
        self._client_ca = client_ca
        self._seen: tuple[object, ...] = ()
        self._pair = b"", b""
        self._authorities: bytes | None = None
        self._context: ssl.SSLContext | None = None
        self._serial = 0

    def load(self) -> None:
        """Read the files. Raises OSError (ssl.SSLError is one) for those that cannot be used."""
        seen = self._stat()
        if self._context is None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._client_ca)
            context.set_alpn_protocols(["http/1.1"])
            if self._client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                self._authorities = self._client_ca.read_bytes()
        else:
            context = self._context
            # In one that nobody uses first: a pair that does not fit would stay half loaded.
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(self._cert, self._key)
        pair = self._key.read_bytes(), self._cert.read_bytes()
        context.load_cert_chain(self._cert, self._key)
        self._seen, self._context, self._pair = seen, context, pair
        self._serial += 1

    def refresh(self) -> None:
        """Read them again if they have changed; what cannot be used changes nothing, and is logged."""
        try:
            if (seen := self._stat()) == self._seen:
                return
            self._seen = seen
            self.load()
        except OSError as error:
            log.error("tls.not_read", file=str(self._cert), reason=what_is_wrong(error, *self._given))
        else:
            log.info("tls.read", file=str(self._cert))

    def _stat(self) -> tuple[object, ...]:
        found = [file.stat() for file in (self._cert, self._key)]
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    @property
    def context(self) -> ssl.SSLContext:
        """For HTTP: connections that come later have the certificate that was read last."""
        assert self._context is not None
        return self._context

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC: the same."""
        given = self._serial

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if given == self._serial:
                return None
            given = self._serial
            return self._configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            changed,  # type: ignore[arg-type]  # None: as before
            require_client_authentication=self._client_ca is not None,
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([self._pair], self._authorities)
