"""Which setting of TLS is wrong, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.authority import Authority
from txcoord.api.tls import ServerTls, what_is_wrong


def test_each_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    alone, empty = tmp_path / "alone.pem", tmp_path / "empty.pem"
    alone.write_text(one.read_text().partition("-----BEGIN PRIVATE")[0])
    empty.touch()
    for files, said in {
        (alone, None, None): f"tls.cert_file {alone} has no private key, and tls.key_file is not set",
        (alone, alone, None): f"tls.key_file {alone} has no private key in PEM",
        (alone, other, None): f"tls.key_file {other} has the key of another certificate than {alone}",
        (empty, one, None): f"tls.cert_file {empty} has no certificate in PEM",
        (one, None, empty): f"tls.client_ca_file {empty} has no certificate in PEM",
        (
            one,
            tmp_path / "nowhere",
            None,
        ): f"tls.key_file {tmp_path / 'nowhere'} cannot be read: No such file",
    }.items():
        with pytest.raises((OSError, ValueError)) as caught:
            ServerTls(*files).load()
        assert what_is_wrong(caught.value, *files).startswith(said)
