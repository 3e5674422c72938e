"""Which addresses of participants are addresses, and which of them are called."""

from __future__ import annotations

import pytest

from txcoord.api.grpc.targets import known_as
from txcoord.core.targets import ANYBODY, Target, Targets, is_path
from txcoord_client._pb import admin_pb2 as pb


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("grpc://stock:9000", "grpc://stock:9000"),
        ("grpcs://Stock.Internal.:9000", "grpcs://stock.internal:9000"),
        ("http://stock", "http://stock:80"),
        ("https://stock/a/b/", "https://stock:443/a/b"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://10.0.0.1:8000/%20", "http://10.0.0.1:8000/%20"),
    ],
)
def test_addresses(text: str, seen: str) -> None:
    assert str(Target.parse(text)) == seen


@pytest.mark.parametrize(
    "text",
    [
        "", "stock", "stock:9000", "grpc://stock", "grpc://stock:0", "grpc://stock:99999", "grpc://stock:9000/x",
        "grpc://unix:/run/docker.sock", "unix:///x", "ftp://stock", "http://", "http://a b", "http://user@stock",
        "http://user:p@stock", "http://stock?x=1", "http://stock/x?y", "http://stock#x", "http://stock/../x",
        "http://stock/%2e%2E/x", "http://stock/a%2fb", "http://stock//x", "http://stock/a\r\nb", "http://stock/%0d%0a",
        "http://2130706433", "http://127.1:8000", "http://0177.0.0.1", "http://[::1", "http://[fe80::1%25eth0]",
        "http://stock:8000\n", "http://\u017ftock", "http://" + "x" * 300,
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert Target.parse(text) is None
    why = ANYBODY.why_not(text)
    assert why is not None
    assert why.reason == "UNKNOWN_PARTICIPANT"


def test_paths() -> None:
    assert all(map(is_path, ["/x", "/x/y", "/", "/x?y=1&z=a/b", "/x%20y"]))
    assert not any(
        map(
            is_path,
            [
                "",
                "x",
                "//x",
                "/../x",
                "/x/..",
                "/%2e%2e/x",
                "/x#y",
                "/x y",
                "/x\n",
                "/a%5cb",
                "/..;/x",
                "/a/.;v=1",
                "/%2e.%3B/x",
            ],
        )
    )


NAMED = Targets(
    ["stock.internal:8080", "*.shop.internal", "10.1.0.0/16"], {"stock": ["grpc://pay:1", "http://8.8.8.8"]}
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stock", ""),
        ("coupons", "UNKNOWN_PARTICIPANT"),
        ("grpc://pay:1", ""),
        ("http://8.8.8.8", ""),
        ("http://8.8.8.8:80", ""),
        ("http://8.8.8.8/x", "TARGET_NOT_ALLOWED"),
        ("https://8.8.8.8", "TARGET_NOT_ALLOWED"),
        ("http://10.1.2.3", ""),
        ("http://10.2.2.3", "TARGET_NOT_ALLOWED"),
        ("http://127.0.0.1", "TARGET_NOT_ALLOWED"),
        ("http://[::ffff:10.1.2.3]", ""),
        ("http://[::ffff:8.8.4.4]", "TARGET_NOT_ALLOWED"),
        ("http://stock.internal:8080", ""),
        ("http://anything", ""),  # It may be in 10.1.0.0/16: seen when it is looked up.
    ],
)
def test_whom_clients_may_name(text: str, reason: str) -> None:
    why = NAMED.why_not(text)
    assert (why.reason if why is not None else "") == reason


@pytest.mark.parametrize(
    ("host", "port", "address", "allowed"),
    [
        ("stock.internal", 8080, "8.8.8.8", True),
        ("stock.internal", 8081, "8.8.8.8", False),
        ("a.shop.internal", 1, "8.8.8.8", True),
        ("shop.internal", 1, "8.8.8.8", False),
        ("evilshop.internal", 1, "8.8.8.8", False),
        ("anything", 1, "10.1.255.255", True),
        ("anything", 1, "10.2.0.0", False),
        ("pay", 1, "8.8.8.8", True),
        ("pay", 2, "8.8.8.8", False),
        ("anything", 1, "64:ff9b::a01:203", True),
        ("anything", 1, "no address", False),
    ],
)
def test_what_is_dialled(host: str, port: int, address: str, allowed: bool) -> None:
    assert (
        NAMED.why_not_dialled(host, port, address, own=host == "pay" and NAMED.is_own(host, port)) is None
    ) is allowed


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1",
     "::169.254.169.254", "::ffff:0:169.254.169.254",
     "fe80::1%eth0", "0.0.0.0", "::", "100.100.100.200", "168.63.129.16", "224.0.0.1", "2002:a9fe:a9fe::"],
)  # fmt: skip
def test_never_called(address: str) -> None:
    everything = Targets(["*", "0.0.0.0/0", "::/0", "loopback"], {"it": ["http://metadata"]})
    for host in ("metadata", "anything", address):
        why = everything.why_not_dialled(host, 80, address)
        assert why is not None
        assert why.reason == "TARGET_NOT_ALLOWED"
    if "%" not in address:
        assert (
            everything.why_not(f"http://[{address}]" if ":" in address else f"http://{address}") is not None
        )


def test_loopback() -> None:
    local = Targets(["loopback"])
    for text in (
        "http://127.0.0.1:1",
        "grpc://127.8.8.8:1",
        "http://[::1]:1",
        "http://localhost",
        "http://a.localhost",
    ):
        assert local.why_not(text) is None
    for text in ("http://10.0.0.1", "http://stock.internal", "http://localhost.evil.example"):
        why = local.why_not(text)
        assert why is not None
        assert why.reason == "TARGET_NOT_ALLOWED"
        assert "TXCOORD_TARGETS__ALLOW" in why.message
    assert local.why_not_dialled("rebound.example", 80, "127.0.0.1") is None
    assert Targets().why_not_dialled("rebound.example", 80, "127.0.0.1") is not None


@pytest.mark.parametrize("entry", ["", "a b", "10.0.0.1/8", "http://x", "*.*.x", "x:99999", "x:y", "a/b"])
def test_what_is_no_entry(entry: str) -> None:
    with pytest.raises(ValueError, match=r"no host|no network"):
        Targets([entry])


@pytest.mark.parametrize(
    "header",
    ["authorization", "Cookie", "X-Forwarded-For", "x_forwarded_for", "Proxy_Authorization", "X.Real.IP",
     "x-user", "X-User-Id", "client-cert-chain", "X-HTTP-Method-Override"],
)  # fmt: skip
def test_headers_that_clients_may_not_send(header: str) -> None:
    assert Targets(reserved=["X-User", "x-user-*"]).reserves(header)


def test_other_headers() -> None:
    for header in ("traceparent", "x-users", "x-tenant", "authorizations", "idempotency-key"):
        assert not Targets(reserved=["x-user", "x-user-*"]).reserves(header), header
    for text in ("*", "x user", "-x", "x*y"):
        with pytest.raises(ValueError, match="no header's name"):
            Targets(reserved=[text])


def test_a_target_that_an_operator_means() -> None:
    live = {"stock": [pb.TargetInstance(address="grpc://10.0.0.1:7000")]}
    known = {"https://partner.example", "http://shop:8000/api", "stock", "sql:reporting"}
    for said, meant in {
        "stock": "stock",
        "sql:reporting": "sql:reporting",
        "https://partner.example/hooks/orders": "https://partner.example",
        "https://PARTNER.example:443": "https://partner.example",
        "http://shop:8000/api/": "http://shop:8000/api",
        "grpc://10.0.0.1:7000": "stock",
        "http://shop:8001": None,
        "sql:other": None,
    }.items():
        assert known_as(said, known, live) == meant, said
