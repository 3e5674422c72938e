"""Settings for commands, and `txcoord config show`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console

if TYPE_CHECKING:
    from ..config import Settings

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="TXCOORD_CONFIG", help="TOML file; default txcoord.toml if it is there."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, one object a line.")]

app = typer.Typer(no_args_is_help=True, help="Look at the settings.")


def load(file: Path | None, **options: Any) -> Settings:
    """The settings, or an end with every problem, a line each."""
    from ..config import ConfigError, load

    try:
        return load(file, **{name: value for name, value in options.items() if value is not None})
    except ConfigError as error:
        console.fail(console.CONFIG, *error.problems)


@app.command()
def show(config: ConfigFile = None, json: Json = False) -> None:
    """Show every setting as it is now; passwords are hidden."""
    from pydantic import SecretStr

    from ..config import leaves, redacted, show_duration

    def text(value: object) -> object:
        if isinstance(value, SecretStr):
            secret = value.get_secret_value()
            return redacted(secret) if "://" in secret else "***"
        if isinstance(value, Path) or value is None:
            return str(value or "")
        return show_duration(value) if isinstance(value, timedelta) else value

    values = {key: text(value) for key, value in leaves(load(config))}
    if json:
        console.emit(values)
        return
    for key, value in values.items():
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        console.out(f"{key} = {shown}".rstrip())


@app.command()
def variables() -> None:
    """List the variables that can be set."""
    from ..config import variables

    for name, text in variables().items():
        console.out(f"{name:<42}  {text}".rstrip())
