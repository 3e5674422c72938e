"""Runs TLC, the model checker of TLA+, and says what it found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
_LARGE = ("-XX:+UseParallelGC",)
_SMALL = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_CONSTANT = re.compile(r"^\s*(\w+)\s*=\s*(.+?)\s*$")
_VIOLATED = (
    re.compile(r"Invariant (\w+) is violated"),
    re.compile(r"Action property (\w+) is violated"),
    re.compile(r"Action property line .* of module (\w+) is violated"),
    re.compile(r"(Temporal properties) were violated"),
)
_STEP = re.compile(r"^State \d+: <(\w+) line", re.M)


class TlcFailed(Exception):
    """TLC could not be had, or did not end as a checker ends."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What TLC found."""

    module: str
    config: str
    states: int
    distinct: int
    violated: str
    """The invariant or property that does not hold; empty: all hold in all states."""
    trace: tuple[str, ...]
    """The actions that lead there."""
    seconds: float
    output: str


@cache
def tools() -> tuple[str, str]:
    """Java and the jar, brought by scripts/lib/tlc.sh. Raises TlcFailed."""
    script = '. "$root/scripts/lib/env.sh"; . "$root/scripts/lib/tlc.sh"; need_tlc; printf "%s\\n" "$java" "$tlc_jar"'
    found = subprocess.run(
        ["sh", "-euc", script],
        env={**os.environ, "root": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = found.stdout.splitlines()
    if found.returncode or len(lines) < 2:
        raise TlcFailed(f"TLC cannot be had: {found.stderr.strip() or found.stdout.strip()}")
    return lines[-2], lines[-1]


def constants(config: str) -> dict[str, str]:
    """The constants that a configuration sets, as text."""
    out: dict[str, str] = {}
    inside = False
    for line in config.splitlines():
        if line.startswith("CONSTANT"):
            inside = True
        elif line and not line[0].isspace():
            inside = False
        elif inside and (match := _CONSTANT.match(line)):
            out[match[1]] = match[2]
    return out


def with_constants(config: str, changed: Mapping[str, str]) -> str:
    """The same configuration with other values. Raises KeyError for a constant that it does not set."""
    known = constants(config)
    for name, value in changed.items():
        if name not in known:
            raise KeyError(name)
        config = re.sub(rf"^(\s+{name}\s*=\s*).+$", lambda m, v=value: m[1] + v, config, count=1, flags=re.M)
    return config


def check(
    module: str,
    config: str = "",
    *,
    changed: Mapping[str, str] | None = None,
    workers: int = 1,
    large: bool = False,
    options: Sequence[str] = (),
    within_s: float = 600.0,
) -> Checked:
    """Check ``module`` with ``config`` (a .cfg beside it; default: of its own name). Raises TlcFailed.

    ``large``: it has so many states that they are worth the time that Java takes to make itself fast.
    """
    java, jar = tools()
    config = config or module
    text = with_constants((HERE / f"{config}.cfg").read_text(), changed or {})
    with tempfile.TemporaryDirectory(prefix="txcoord-tlc-") as folder:
        for path in HERE.glob("*.tla"):
            shutil.copy(path, folder)
        Path(folder, "Checked.cfg").write_text(text)
        command = [java, *(_LARGE if large else _SMALL), "-cp", jar, "tlc2.TLC"]
        command += ["-workers", str(workers), "-metadir", f"{folder}/meta", "-config", "Checked.cfg"]
        started = time.monotonic()
        try:
            ran = subprocess.run(
                [*command, *options, f"{module}.tla"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=within_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TlcFailed(f"{module} with {config}: not done within {within_s:.0f} s") from error
        seconds = time.monotonic() - started
    return _read(module, config, ran.stdout, seconds)


def _read(module: str, config: str, output: str, seconds: float) -> Checked:
    violated = next((m[1] for pattern in _VIOLATED if (m := pattern.search(output))), "")
    counts = re.findall(r"^([\d,]+) states generated, ([\d,]+) distinct states found", output, re.M)
    if not counts or not (violated or "No error has been found" in output):
        raise TlcFailed(f"{module} with {config}: TLC says\n{output[-4000:]}")
    states, distinct = (int(n.replace(",", "")) for n in counts[-1])
    return Checked(module, config, states, distinct, violated, tuple(_STEP.findall(output)), seconds, output)


# ---- what a module says of itself ----

_TABLE_ROW = re.compile(r"^\(\* (.{18}) (.*)\*\)$", re.M)
_DEFINED = re.compile(r"^(\w+)(?:\([^)]*\))? ==", re.M)
_FILE = re.compile(r"\b[\w/]+\.py\b")


def rules(text: str) -> set[str]:
    """The rules that a module can break."""
    return set(re.findall(r'Broke\("(\w+)"\)', text))


def actions(text: str) -> set[str]:
    """The actions of a module: what ``Next`` is made of, and says what stays as it is."""
    body = text.split("\nNext ==", 1)[1].split("\n\nSpec ==", 1)[0]
    used = set(re.findall(r"\w+", body))
    parts = _DEFINED.split(text)
    return {name for name, what in zip(parts[1::2], parts[2::2], strict=True) if name in used and "'" in what}


def table(text: str) -> dict[str, str]:
    """The table at the head of a module: actions, and where they are in the code."""
    head = text.split("EXTENDS", 1)[0].split("(* " + "-" * 18 + " ", 1)[1]
    rows: dict[str, str] = {}
    last = ""
    for names, where in _TABLE_ROW.findall(head):
        if names.strip():
            last = names.strip()
            rows[last] = where.strip()
        else:
            rows[last] += " " + where.strip()
    return rows


def explained(text: str) -> set[str]:
    """The actions that the table explains."""
    return {name for names in table(text) for name in names.split(", ")}


def files(text: str) -> set[str]:
    """The files of code that the table names."""
    head = text.split("EXTENDS", 1)[0]
    return set(_FILE.findall(head))
