"""Makes the synchronous SDK from the asynchronous one.

    python scripts/lib/gensync.py [--check]

Each module named here is read from `txcoord_client`, its words are replaced, and it is written under the same name
below `txcoord_client/sync`. What cannot be said in both ways is in modules written by hand on either side
(`_aio`, `_wire`, `_admission`, `_enlisting`, `_participants`, `_serving` and how it is reached, `_xa/sa`,
`_xa/kinds`, `_db/kinds`); the others are shared.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[2] / "clients/python/txcoord_client"
MODULES = (
    "_answered",
    "_answering",
    "_attached",
    "_barrier",
    "_block",
    "_db/hands",
    "_db/redis_",
    "_db/sources",
    "_delivered",
    "_deliveries",
    "_finish",
    "_joining",
    "_keeping",
    "_local",
    "_runs",
    "_runtime",
    "_sending",
    "_sources",
    "_tries",
    "_xa/branch",
    "_xa/dialect",
    "_xa/direct",
    "_xa/held",
    "_xa/known",
    "_xa/mariadb",
    "_xa/postgresql",
    "_xa/raw",
    "_xa/sqlalchemy_",
    "coordinator",
    "inbox",
    "participant",
    "sagas",
    "transaction",
)
HEAD = "# Made from {name} by scripts/sync; to change it, change that.\n"
# In this order. Comments and docstrings are meant as well.
WORDS = (
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"__aenter__", "__enter__"),
    (r"__aexit__", "__exit__"),
    (r"\bAsync(Engine|Connection|Session|ContextManager|Iterator|Generator)\b", r"\1"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\bAbstractAsyncContextManager\b", "AbstractContextManager"),
    (r"Callable\[(\[[^][]*\]|\.\.\.|P), Awaitable\[(\w+)\]\]", r"Callable[\1, \2]"),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\ban async\b", "a"),
    (r"\basync function", "function"),
)


def main() -> None:
    check = "--check" in sys.argv
    stale = []
    for module in MODULES:
        source = HERE / f"{module}.py"
        if not source.exists():
            continue
        made = convert(module, source.read_text())
        target = HERE / "sync" / f"{module}.py"
        if target.exists() and target.read_text() == made:
            continue
        stale.append(module)
        if not check:
            target.parent.mkdir(exist_ok=True)
            target.write_text(made)
    if check and stale:
        sys.exit(f"scripts/sync: not made from the present sources: {', '.join(stale)}. Run scripts/sync")


def convert(module: str, text: str) -> str:
    """The synchronous form of a module."""
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text)
    text = re.sub(
        r"^( *)from (\.+)([\w.]*) import (\([^)]*\)|[^\n]*)",
        lambda m: _import(module, m),
        text,
        flags=re.MULTILINE,
    )
    text = HEAD.format(name=f"txcoord_client/{module}.py") + text
    return _formatted(text)


def _import(module: str, match: re.Match[str]) -> str:
    """A relative import: of a module that is made, or written beside, it stays; else it leads to the shared one."""
    indent, dots, path, names = match.groups()
    folder = Path(module).parent
    for _ in range(len(dots) - 1):
        folder = folder.parent
    base = folder / path.replace(".", "/") if path else folder
    up = "." * (len(Path("sync", module).parts))
    shared_path = ".".join(base.parts)
    if path and not (HERE / base).is_dir():
        if _is_here(base):
            return match.group(0)
        return f"{indent}from {up}{shared_path} import {names}"
    # From a package: each name is a module of its own, or the package's.
    here, shared = [], []
    for name in (n.strip() for n in names.strip("()").split(",")):
        if name:
            (here if _is_here(base / name.split(" as ")[0]) else shared).append(name)
    lines = []
    if here:
        lines.append(f"{indent}from {dots}{path} import {', '.join(here)}")
    if shared:
        lines.append(f"{indent}from {up}{shared_path} import {', '.join(shared)}")
    return "\n".join(lines)


def _is_here(path: Path) -> bool:
    return path.as_posix() in MODULES or (HERE / "sync" / f"{path}.py").exists()


def _formatted(text: str) -> str:
    for arguments in (["check", "-q", "--fix-only", "--select", "I,F401,UP"], ["format", "-q"]):
        done = subprocess.run(
            ["ruff", *arguments, "--stdin-filename", str(HERE / "sync/made.py"), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        text = done.stdout
    return text


main()
