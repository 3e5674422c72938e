"""Settings: defaults, sources, and errors that a person can act on."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from txcoord.config import ConfigError, leaves, load, parse_duration, redacted, show_duration, variables


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("TXCOORD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def problems(**options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**options)  # type: ignore[arg-type]
    return caught.value.problems


def one_problem(**options: object) -> str:
    (problem,) = problems(**options)
    return problem


def test_defaults_are_those_of_the_table() -> None:
    shown = {key: show_duration(v) if isinstance(v, timedelta) else v for key, v in leaves(load())}
    assert shown["deadline.default"] == "30s"
    assert shown["deadline.max"] == "1d"
    assert (shown["backoff.first"], shown["backoff.factor"], shown["backoff.cap"]) == ("500ms", 2.0, "1m")
    assert shown["recovery.lease"] == "10s"
    assert shown["recovery.scan_interval"] == "10s"
    assert shown["recovery.grace"] == "5s"
    # Markers outlive the row of their tx id (*Windows*, rule 5): they have no period of their own.
    assert (shown["retention.detail"], shown["retention.rows"]) == ("7d", "90d")
    limits = (shown["limits.payload"], shown["limits.message"], shown["limits.operations"])
    assert (*limits, shown["limits.branches"]) == (256 * 1024, 4 * 1024 * 1024, 1_000, 1_000)


def test_a_variable_wins_over_the_file_and_an_option_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "txcoord.toml").write_text(
        'listen = "127.0.0.1:1"\n[recovery]\ngrace = "1s"\nlease = "3s"\n'
        '[resources.Orders-1]\nurl = "postgresql://u:p@h/orders"\n'
    )
    monkeypatch.setenv("TXCOORD_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("TXCOORD_RECOVERY__GRACE", "2s")
    monkeypatch.setenv("TXCOORD_RESOURCES__checking__URL", "postgresql+asyncpg://u:p@h/checking")
    settings = load()
    assert settings.listen == "127.0.0.1:2"
    assert settings.recovery.grace == timedelta(seconds=2)
    assert settings.recovery.lease == timedelta(seconds=3)
    assert set(settings.resources) == {"Orders-1", "checking"}
    assert load(listen="127.0.0.1:3").listen == "127.0.0.1:3"


def test_the_file_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "other.toml"
    file.write_text('listen = "127.0.0.1:9"\n')
    assert load(file).listen == "127.0.0.1:9"
    monkeypatch.setenv("TXCOORD_CONFIG", str(file))
    assert load().listen == "127.0.0.1:9"
    monkeypatch.setenv("TXCOORD_CONFIG", "nowhere.toml")
    assert one_problem() == "nowhere.toml: there is no such file"
    file.write_text("listen = ")
    assert one_problem(file=file).startswith(f"{file}: is no TOML: ")


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("500ms", 500),
        ("2s", 2_000),
        ("1.5s", 1_500),
        ("1h30m", 5_400_000),
        ("7d", 604_800_000),
        ("10 m", 600_000),
    ],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == timedelta(milliseconds=milliseconds)
    assert parse_duration(show_duration(parse_duration(text))) == parse_duration(text)


@pytest.mark.parametrize("text", ["soon", "5", "-5s", "5 years", "s", ""])
def test_what_is_no_duration(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_RECOVERY__GRACE", text)
    assert one_problem().startswith("TXCOORD_RECOVERY__GRACE: ")
    assert "500ms, 2s, 10m, 24h or 7d" in one_problem()


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("TXCOORD_LISTENN", "x", "there is no such setting; did you mean TXCOORD_LISTEN?"),
        ("TXCOORD_LOG__URLL", "x", "there is no such setting; did you mean TXCOORD_LOG__URL?"),
        (
            "TXCOORD_RESOURCES__orders__URI",
            "x",
            "there is no such setting; did you mean TXCOORD_RESOURCES__orders__URL?",
        ),
        ("TXCOORD_LOG", "x", "log is a table, set what is in it, such as TXCOORD_LOG__URL"),
        ("TXCOORD_REFLECTION", "perhaps", "true or false is expected"),
        ("TXCOORD_LIMITS__OPERATIONS", "many", "a whole number is expected"),
        ("TXCOORD_LIMITS__OPERATIONS", "0", "must be greater than or equal to 1"),
        ("TXCOORD_LIMITS__PAYLOAD", "big", "'big' is no size: write it like 4096, 256KiB or 4MiB"),
        ("TXCOORD_LOG_LEVEL", "loud", "one of 'DEBUG', 'INFO', 'WARNING' or 'ERROR' is expected"),
        ("TXCOORD_LISTEN", "7070", "'7070' is no address like 127.0.0.1:7070"),
        ("TXCOORD_LISTEN", "127.0.0.1:70700", "'127.0.0.1:70700' is no address like 127.0.0.1:7070"),
    ],
)
def test_errors_name_the_setting_and_what_is_expected(
    variable: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    if variable.endswith("URI"):
        assert f"{variable}: {problem}" in problems()
    else:
        assert one_problem() == f"{variable}: {problem}"


def test_an_unknown_setting_of_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "txcoord.toml"
    file.write_text("[recovery]\ngrase = '5s'\n")
    assert (
        one_problem()
        == f"{Path('txcoord.toml')}: recovery.grase: there is no such setting; did you mean recovery.grace?"
    )


def test_all_problems_are_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_LISTENN", "x")
    monkeypatch.setenv("TXCOORD_RECOVERY__GRACE", "soon")
    monkeypatch.setenv("TXCOORD_RESOURCES__a__URL", "sqlite:///a.db")
    monkeypatch.setenv("TXCOORD_RETENTION__ROWS", "1d")
    found = problems()
    assert len(found) == 4
    assert not any("pydantic" in p or "Input should" in p for p in found)


def test_variables_of_kubernetes_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_7070_TCP_ADDR"):
        monkeypatch.setenv(f"TXCOORD_{name}", "tcp://10.0.0.1:7070")
    load()


@pytest.mark.parametrize("url", ["sqlite:///x.db", "sqlite+aiosqlite:///x.db"])
def test_sqlite_is_no_resource(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_RESOURCES__a__URL", url)
    assert one_problem().startswith("TXCOORD_RESOURCES__a__URL: SQLite cannot take part in XA: ")


@pytest.mark.parametrize(
    "second",
    [
        "postgresql://postgres@127.0.0.1:5432/x",
        "postgresql+asyncpg://other:secret@localhost/x",
        "postgres://127.0.0.1/x?application_name=y",
    ],
)
def test_one_database_has_one_name(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_RESOURCES__a__URL", "postgresql://postgres@127.0.0.1/x")
    monkeypatch.setenv("TXCOORD_RESOURCES__b__URL", second)
    assert one_problem().startswith("resources: 'a' and 'b' are the same database (127.0.0.1:5432/x)")
    assert "secret" not in one_problem()


def test_a_resource_needs_a_url_and_a_name_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "txcoord.toml").write_text(
        '[resources.a]\nwidth = 3\n[resources."a b"]\nurl = "postgresql://h/x"\n'
    )
    assert problems() == [
        "txcoord.toml: resources.a.url: is missing",
        "txcoord.toml: resources.a b: a resource's name has 1 to 63 characters of [A-Za-z0-9_.-]",
    ]


@pytest.mark.parametrize("listen", ["0.0.0.0:7070", "[::]:7070", "10.0.0.7:7070", "coordinator.example:7070"])
def test_listening_for_all_the_world_needs_a_word(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_LISTEN", listen)
    assert "TXCOORD_TLS__CERT_FILE and TXCOORD_AUTH__TOKEN_FILE" in one_problem()
    assert "TXCOORD_INSECURE_LISTEN=true" in one_problem()
    monkeypatch.setenv("TXCOORD_INSECURE_LISTEN", "true")
    assert load().listen == listen


def test_tls_and_tokens_are_a_word_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pem").touch()
    monkeypatch.setenv("TXCOORD_LISTEN", "0.0.0.0:7070")
    monkeypatch.setenv("TXCOORD_TLS__CERT_FILE", str(tmp_path / "pem"))
    assert "Set TXCOORD_AUTH__TOKEN_FILE." in one_problem()
    monkeypatch.setenv("TXCOORD_AUTH__TOKEN_FILE", str(tmp_path / "nowhere"))
    assert one_problem() == f"TXCOORD_AUTH__TOKEN_FILE: {tmp_path / 'nowhere'}: there is no such file"
    monkeypatch.setenv("TXCOORD_AUTH__TOKEN_FILE", str(tmp_path / "pem"))
    assert load().listen == "0.0.0.0:7070"
    monkeypatch.delenv("TXCOORD_TLS__CERT_FILE")
    assert "Set TXCOORD_TLS__CERT_FILE." in one_problem()
    monkeypatch.setenv("TXCOORD_TLS__KEY_FILE", str(tmp_path / "pem"))
    assert "without cert_file" in one_problem()


def test_names_of_the_http_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_HTTP_HOSTS", "txcoord, *.internal")
    assert load().http_hosts == "txcoord, *.internal"
    for bad in ("http://txcoord", "txcoord:7071", "*", "a.*"):
        monkeypatch.setenv("TXCOORD_HTTP_HOSTS", bad)
        assert "no host's name" in one_problem()


def test_http_is_guarded_likewise_and_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().http_address == ""
    monkeypatch.setenv("TXCOORD_HTTP_ADDRESS", "0.0.0.0:7071")
    assert "TXCOORD_TLS__CERT_FILE and TXCOORD_AUTH__TOKEN_FILE" in one_problem()
    monkeypatch.setenv("TXCOORD_INSECURE_LISTEN", "true")
    assert load().http_address == "0.0.0.0:7071"
    # Whoever comes from elsewhere must not make it call what only this machine reaches.
    assert load().called.why_not("http://127.0.0.1:8000") is not None
    assert load(http_address="127.0.0.1:7071").called.why_not("http://127.0.0.1:8000") is None
    monkeypatch.setenv("TXCOORD_HTTP_ADDRESS", "127.0.0.1:7070")
    assert "needs an address of its own" in one_problem()
    monkeypatch.setenv("TXCOORD_HTTP_ADDRESS", "7071")
    assert "no address like 127.0.0.1:7070" in one_problem()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:7070", "[::1]:7070", ":7070", "127.9.9.9:1"])
def test_loopback_needs_none(listen: str) -> None:
    assert load(listen=listen).listen == listen


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h:1/d", "postgresql://u:***@h:1/d"),
        ("postgresql://u:se:cr@et@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:sec/ret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:sec?ret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d?password=secret&x=1", "postgresql://u@h/d?password=***&x=1"),
        ("postgresql://h/d?x=1&sslpassword=secret", "postgresql://h/d?x=1&sslpassword=***"),
        ("sqlite+aiosqlite:///a/b.db", "sqlite+aiosqlite:///a/b.db"),
        ("nonsense", "nonsense"),
    ],
)
def test_passwords_are_hidden(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_no_password_in_errors_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_LOG__URL", "postgresql://u:hunter2@h/log")
    monkeypatch.setenv("TXCOORD_RESOURCES__a__URL", "oracle://u:hunter2@h/x")
    monkeypatch.setenv("TXCOORD_RECOVERY__GRACE", "soon")
    assert not any("hunter2" in problem for problem in problems())
    monkeypatch.setenv("TXCOORD_RESOURCES__a__URL", "postgresql://u:hunter2@h/x")
    monkeypatch.delenv("TXCOORD_RECOVERY__GRACE")
    assert "hunter2" not in repr(load())


def test_where_the_log_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, wanted in (
        ("sqlite:///x.db", "sqlite+aiosqlite:///x.db"),
        ("postgres://u@h/x", "postgresql+asyncpg://u@h/x"),
        ("postgresql+asyncpg://u@h/x", "postgresql+asyncpg://u@h/x"),
        ("mariadb://u@h/x", "mysql+asyncmy://u@h/x"),
        ("mysql+pymysql://u@h/x", "mysql+asyncmy://u@h/x"),
    ):
        monkeypatch.setenv("TXCOORD_LOG__URL", url)
        assert load().log.url.get_secret_value() == wanted
    monkeypatch.setenv("TXCOORD_LOG__URL", "oracle://u:p@h/x")
    assert "the log can be on sqlite:///file.db, postgresql://" in one_problem()
    for url in ("mysql:/foo", "postgres:/u:secret@x"):
        monkeypatch.setenv("TXCOORD_LOG__URL", url)
        assert "a URL has :// behind its scheme" in (problem := one_problem())
        assert "secret" not in problem
    monkeypatch.setenv("TXCOORD_LOG__URL", "mariadb://u:p@h")
    assert "mariadb://u:***@h' names no database" in one_problem()
    monkeypatch.setenv("TXCOORD_LOG__URL", "sqlite:///:memory:")
    assert "txcoord dev --memory" in one_problem()


def test_where_a_resource_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        "postgresql://u@h/x",
        "mariadb://u:p@h:3307/x",
        "mysql+aiomysql://u@h/x?ssl=true&ssl_ca=/ca.pem",
        "mariadb+asyncmy://u@localhost/x?unix_socket=/run/s.sock&charset=utf8mb4",
    ):
        monkeypatch.setenv("TXCOORD_RESOURCES__a__URL", url)
        assert load().resources["a"].url.get_secret_value() == url
    for url, said in (
        ("mariadb://u:p@h", "it must name the database"),
        ("mysql:/foo", "a URL has :// behind its scheme"),
        ("mysql://u:p@h/x?ssl_mode=REQUIRED", "the option 'ssl_mode' is not known"),
        ("mariadb://u:p@h:x/x", "the port is not a number"),
        ("sqlite:///x.db", "SQLite cannot take part in XA"),
    ):
        monkeypatch.setenv("TXCOORD_RESOURCES__a__URL", url)
        problem = one_problem()
        assert said in problem
        assert ":p@" not in problem


def test_every_setting_has_a_variable() -> None:
    names = set(variables())
    for key, _ in leaves(load()):
        assert "TXCOORD_" + key.upper().replace(".", "__") in names
    assert "TXCOORD_RESOURCES__<name>__URL" in names


def test_a_nodes_name_is_its_own_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(listen="127.0.0.1:1").node_name == load(listen="127.0.0.1:2").node_name
    monkeypatch.setenv("TXCOORD_LOG__URL", "postgresql://u@h/log")
    assert load(listen="127.0.0.1:1").node_name != load(listen="127.0.0.1:2").node_name
    monkeypatch.setenv("TXCOORD_NODE__NAME", "alpha")
    assert load().node_name == "alpha"


def test_whom_it_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "txcoord.toml").write_text(
        '[participants.stock]\naddresses = ["grpc://a:1", "https://b/x"]\n[targets]\nallow = ["10.0.0.0/8", "*.shop"]\n'
    )
    monkeypatch.setenv("TXCOORD_PARTICIPANTS__coupons__ADDRESSES", "http://c:1, http://d:1")
    settings = load()
    assert settings.targets.allow == "10.0.0.0/8,*.shop"
    assert {name: [str(t) for t in found] for name, found in settings.called.named.items()} == {
        "stock": ["grpc://a:1", "https://b:443/x"],
        "coupons": ["http://c:1", "http://d:1"],
    }
    assert settings.called.why_not("http://a.shop") is None
    monkeypatch.setenv("TXCOORD_TARGETS__ALLOW", "loopback")
    assert load().called.why_not("http://10.0.0.1") is not None
    monkeypatch.setenv("TXCOORD_TARGETS__RESERVED_HEADERS", "x-user, x-user-*")
    assert load().called.reserves("X-User-Id")
    for name, value, said in (
        ("TXCOORD_TARGETS__ALLOW", "10.0.0.1/8", "no network"),
        ("TXCOORD_TARGETS__CA_FILE", "nowhere.pem", "no such file"),
        ("TXCOORD_TARGETS__RESERVED_HEADERS", "x-user,*", "no header's name"),
        ("TXCOORD_PARTICIPANTS__coupons__ADDRESSES", "unix:/x", "no address"),
        ("TXCOORD_PARTICIPANTS__coupons__TOKEN_FILE", "nowhere", "no such file"),
        ("TXCOORD_PARTICIPANTS__coupons__ADDRESSES", ",", "at least one"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert said in one_problem()
    monkeypatch.setenv("TXCOORD_PARTICIPANTS__coupons__ADDRESSES", "grpc://a:1")
    assert load()
    monkeypatch.setenv("TXCOORD_PARTICIPANTS__coupons__TOKEN_FILE", str(tmp_path / "txcoord.toml"))
    assert "one address" in one_problem()


def test_whom_it_calls_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().called.why_not("http://127.0.0.1") is None
    assert load().called.why_not("http://10.0.0.1") is not None
    monkeypatch.setenv("TXCOORD_INSECURE_LISTEN", "true")
    assert load(listen="0.0.0.0:7070").called.why_not("http://127.0.0.1") is not None
