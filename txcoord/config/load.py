"""Reading settings: variables, file, options of the command line; every problem at once, in plain words."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsError

from .model import Settings
from .values import PREFIX

DEFAULT_FILE = "txcoord.toml"

OTHER_VARIABLES = frozenset(
    {"CONFIG", "ADDRESS", "NAMESPACE", "ACTOR", "FAILPOINTS", "PROFILE", "VENV", "MARIADB", "MYSQL", "PYTHON"}
    | {"CA_FILE", "CERT_FILE", "KEY_FILE", "TOKEN_FILE", "TOKEN_OVER_PLAINTEXT"}
)
"""Variables with our prefix that are no settings: read by the command line, by the SDK, by tests and by the scripts."""

# A Kubernetes service named "txcoord" puts these into every pod of its namespace.
_KUBERNETES = re.compile(r"(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)")


class ConfigError(Exception):
    """The settings cannot be used; every problem is in ``problems``, a line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(file: Path | None = None, **options: Any) -> Settings:
    """The settings of this process. ``options`` are those of the command line. Raises ConfigError."""
    path = _find(file)
    table, problems = _read(path)
    unknown = _unknown_variables(os.environ)
    problems += unknown.values()

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[Any, ...]:
            return (init_settings, env_settings, lambda: table)

    try:
        settings = Loaded(**options)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            source = _source(_path(item), path, options)
            if source not in unknown:
                problems.append(f"{source}: {_text(item)}")
    except SettingsError:
        problems.append(_scalar_for_a_table(os.environ))
    if problems:
        raise ConfigError(problems)
    return settings


def variables() -> dict[str, str]:
    """Every variable, with what it is for; a resource's have ``<name>`` in it."""
    return {
        PREFIX + "__".join(path).upper().replace("<NAME>", "<name>"): text for path, text in _known(Settings)
    }


def _find(file: Path | None) -> Path | None:
    named = file or (Path(os.environ[PREFIX + "CONFIG"]) if os.environ.get(PREFIX + "CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError([f"{named}: there is no such file"])
        return named
    default = Path(DEFAULT_FILE)
    return default if default.is_file() else None


def _read(path: Path | None) -> tuple[dict[str, Any], list[str]]:
    if path is None:
        return {}, []
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), []
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return {}, [f"{path}: is no TOML: {error}"]
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error


def _known(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, field in model.model_fields.items():
        path = (*above, field.alias or name)
        kind = field.annotation
        if get_origin(kind) is dict:
            kind, path = get_args(kind)[1], (*path, "<name>")
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _known(kind, path)
        else:
            yield path, field.description or ""


def _unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    known = [path for path, _ in _known(Settings)]
    problems = {}
    for variable in sorted(environ):
        if not variable.upper().startswith(PREFIX):
            continue
        rest = variable[len(PREFIX) :].upper()
        if rest in OTHER_VARIABLES or _KUBERNETES.fullmatch(rest):
            continue
        parts = tuple(rest.lower().split("__"))
        if any(_matches(parts, path) for path in known) or any(path[: len(parts)] == parts for path in known):
            continue  # A table's own name is refused with a better text.
        problems[variable] = f"{variable}: there is no such setting{_nearest(parts, known, variable_name)}"
    return problems


def _matches(parts: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(parts) == len(path) and all(a == b or b == "<name>" for a, b in zip(parts, path, strict=True))


def _nearest(
    parts: tuple[str, ...], known: list[tuple[str, ...]], show: Callable[[tuple[str, ...]], str]
) -> str:
    # A resource's name is whatever the user called it.
    named = [
        tuple(parts[i] if part == "<name>" and i < len(parts) else part for i, part in enumerate(path))
        for path in known
    ]
    by_text = {"__".join(path): path for path in named}
    found = difflib.get_close_matches("__".join(parts), by_text, n=1, cutoff=0.6)
    return f"; did you mean {show(by_text[found[0]])}?" if found else "; `txcoord config show` lists all"


def variable_name(path: tuple[str, ...]) -> str:
    """The variable of a setting."""
    if path[0] in ("resources", "participants", "webhook_secrets") and len(path) == 3:
        return f"{PREFIX}{path[0].upper()}__{path[1]}__{path[2].upper()}"
    return PREFIX + "__".join(path).upper()


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(path)


_TEXTS = {
    "missing": "is missing",
    "bool_parsing": "true or false is expected",
    "bool_type": "true or false is expected",
    "int_parsing": "a whole number is expected",
    "int_type": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_parsing": "a number is expected",
    "string_type": "a text is expected",
    "secret_str": "a text is expected",
    "model_type": "a table of settings is expected, not a single value",
    "model_attributes_type": "a table of settings is expected, not a single value",
    "dict_type": "a table is expected: one entry for each",
}


_PATHS = ("/", "./", "../", "~")


def _path(error: Any) -> tuple[str, ...]:
    return tuple(str(part) for part in error["loc"] if part != "[key]")


def _text(error: Any) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        known = [path for path, _ in _known(Settings)]
        return "there is no such setting" + _nearest(_path(error), known, _dotted)
    if kind == "literal_error":
        return f"one of {error['ctx']['expected']} is expected"
    if kind in ("greater_than_equal", "less_than_equal", "greater_than", "less_than"):
        return str(error["msg"]).replace("Input should", "must")
    if kind == "path_not_file":
        # What does not look like a path may be the secret itself, set where its file is expected.
        given = str(error["input"])[:200]
        return f"{given}: there is no such file" if given.startswith(_PATHS) else "there is no such file"
    return _TEXTS.get(kind) or str(error["msg"]).removeprefix("Value error, ")


def _source(path: tuple[str, ...], file: Path | None, options: Mapping[str, Any]) -> str:
    """Where a setting came from: what the user has to change."""
    if path and path[0] in options:
        return f"--{path[0].replace('_', '-')}"
    variable = variable_name(path) if path else PREFIX
    by_upper = {name.upper(): name for name in os.environ}
    if variable.upper() in by_upper:
        return by_upper[variable.upper()]
    inside = [name for upper, name in by_upper.items() if upper.startswith(variable.upper() + "__")]
    where = _dotted(path)
    if len(inside) == 1 and file is None:
        return f"{where} ({inside[0]})"
    return f"{file}: {where}" if file is not None and not inside else where


def _scalar_for_a_table(environ: Mapping[str, str]) -> str:
    tables = {path[0] for path, _ in _known(Settings) if len(path) > 1}
    for variable in sorted(environ):
        first = variable[len(PREFIX) :].lower()
        if variable.upper().startswith(PREFIX) and first in tables:
            example = next(variable_name(p) for p, _ in _known(Settings) if p[0] == first and len(p) > 1)
            return f"{variable}: {first} is a table, set what is in it, such as {example}"
    return "a variable cannot be read"
