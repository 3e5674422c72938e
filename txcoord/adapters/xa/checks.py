"""What can be wrong with a resource, whatever its engine: findings, and the rules that all databases share.

Each engine has a module ``checks_<engine>`` beside this one. It collects facts on a connection, and judges them in a
pure function, so that what cannot be produced in a test can still be judged there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from txcoord_client.protocol import marker, reasons

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(slots=True)
class Finding:
    """One thing that was looked at."""

    reason: str
    """A stable code (``protocol.reasons``); where all is well, the lower-case name of what was looked at."""
    severity: str
    """``ok``; ``warning``: a risk, which is named; ``error``: XA cannot work here, or is not safe."""
    fact: str
    """What was seen."""
    means: str = ""
    """Why it matters."""
    remedy: list[str] = field(default_factory=list)
    """Commands that mend it, a line each; a line that begins with ``#`` or ``--`` is a remark, and so is a command that
    a person has to think about first."""
    refused: bool = False
    """A coordinator does nothing on such a database until it is mended."""
    fixed: bool = False
    """It was mended just now."""

    def __str__(self) -> str:
        """All of it in one line, as a log has it."""
        said = f"{self.reason}: {self.fact}"
        if self.means:
            said += f". {self.means[0].upper()}{self.means[1:]}"
        if self.remedy:
            said += f". Mend it: {' '.join(self.remedy)}"
        return said


def ok(what: str, fact: str) -> Finding:
    """Looked at, and well."""
    return Finding(what, OK, fact)


def warning(reason: str, fact: str, means: str, *remedy: str) -> Finding:
    """It works, with a risk."""
    return Finding(reason, WARNING, fact, means, list(remedy))


def error(reason: str, fact: str, means: str, *remedy: str, refused: bool = False) -> Finding:
    """It does not work, or is not safe."""
    return Finding(reason, ERROR, fact, means, list(remedy), refused)


BRANCHES = (
    "a branch that was prepared or committed may be gone: the transaction is then committed in other databases and "
    "lost in this one"
)
DECISIONS = (
    "decisions may be gone: what was committed in one database is then rolled back in another, and callers were told "
    "otherwise"
)
"""What is lost with a resource, and with a log."""


class CannotConnect(Exception):
    """The database cannot be asked; ``finding`` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.fact)
        self.finding = finding


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the judge has to know of the coordinator."""

    name: str
    """Of the resource, for commands in remedies."""
    log_ids: tuple[str, ...] = ()
    """This log's own, and those of its earlier incarnations; empty when the log could not be asked."""
    old_us: int = 600_000_000
    """A prepared transaction that is older than this is worth a word."""
    open_us: int = 30_000_000
    """How long an open branch may be idle, as services use it: the default deadline."""
    executes: str = ""
    """The role under which best-effort SQL is run on it; empty: none is."""

    @property
    def url_variable(self) -> str:
        """The variable with the resource's URL."""
        return f"TXCOORD_RESOURCES__{self.name}__URL"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared transaction that has been there for long."""

    name: str
    owner: str
    age_us: int
    ours: bool = True
    """Is it a branch of txcoord?"""


class Facts(Protocol):
    """What is asked of every database."""

    @property
    def product(self) -> str:
        """As people call it, with its version."""
        ...

    @property
    def version(self) -> str:
        """As the server tells it."""
        ...

    @property
    def identity(self) -> str:
        """Of its identity row; empty without one that can be read."""
        ...

    @property
    def has_marker(self) -> bool:
        """Is the marker table there?"""
        ...

    @property
    def offset_us(self) -> int:
        """Its clock minus this machine's, microseconds."""
        ...


class Examiner(Protocol):
    """A connection on which one database is looked at, and made ready."""

    engine: str

    async def collect(self, *, thorough: bool = True) -> Facts:
        """Ask everything; what costs the server more, and is no danger, only if ``thorough``. Raises CannotConnect."""
        ...

    def judge(self, facts: Any, expected: Expectations) -> list[Finding]:
        """What the facts mean."""
        ...

    def judge_log(self, facts: Any) -> list[Finding]:
        """What they mean for a log: does its server keep what it confirms?"""
        ...

    async def make_tables(self, identity: str) -> None:
        """Make the tables, and give it this identity unless it has one. Raises CannotConnect."""
        ...

    def sql(self, identity: str) -> list[str]:
        """The statements of ``make_tables``, for a person to run."""
        ...

    async def grants(self, service: str) -> list[str]:
        """What the coordinator's role (that of the URL) and a service's need, as statements with remarks.

        Connects if that is possible and helps; else the URL has to do.
        """
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


# ---- what every database can have wrong ----


def tables(
    expected: Expectations,
    *,
    identity_table: bool,
    identity: str,
    has_marker: bool,
    lacking: Mapping[str, Sequence[str]],
    grant: Callable[[str, str], str],
) -> list[Finding]:
    """The two tables and the rights on them. ``grant`` makes a statement from rights and table."""
    out = []
    fix = f"txcoord resource check {expected.name} --fix"
    by_hand = f"# or let a DBA run what this prints: txcoord resource check {expected.name} --print-sql"
    denied = {table: rights for table, rights in lacking.items() if rights}
    readable = not denied.get(marker.IDENTITY_TABLE)
    if not identity_table or (readable and not identity):
        what = "has no txcoord tables yet" if not identity_table else f"has no row in {marker.IDENTITY_TABLE}"
        out.append(
            error(
                reasons.RESOURCE_NOT_PREPARED,
                f"the database {what}",
                "it has no identity, so nothing is done on it",
                fix,
                by_hand,
            )
        )
    elif not has_marker:
        out.append(
            error(
                reasons.RESOURCE_NOT_PREPARED,
                f"there is an identity ({identity}), but no table {marker.TABLE}",
                "every transaction would fail, and of what was committed before nobody can tell",
                "# if it was renamed, name it back: it proves what was committed; else:",
                fix,
            )
        )
    for table, rights in denied.items():
        out.append(
            error(
                reasons.NOT_PERMITTED,
                f"this role may not {', '.join(rights)} on {table}",
                "the coordinator can neither prove nor fence what is committed here",
                grant(", ".join(rights), table),
            )
        )
    if not out:
        out.append(ok("tables", f"txcoord tables are there; identity {identity}"))
    return out


def old_prepared(
    expected: Expectations, left: Sequence[Prepared], finish: Callable[[Prepared], str], harm: str
) -> list[Finding]:
    """Prepared transactions that nobody has finished for long, oldest first. ``finish`` makes a statement."""
    out = []
    of_log = tuple(f"txc1.{log_id}." for log_id in expected.log_ids)
    groups: dict[str, list[Prepared]] = {"ours": [], "strange": [], "foreign": []}
    for one in left:
        if not one.ours:
            groups["foreign"].append(one)
        elif of_log and not one.name.startswith(of_log):
            groups["strange"].append(one)
        else:
            groups["ours"].append(one)
    if found := groups["ours"]:
        out.append(
            warning(
                reasons.PREPARED_OLD,
                f"{_branches(found)} of txcoord prepared for {_age(found)}: {found[0].name}",
                harm,
                "# what they wait for:",
                f"txcoord tx show {_tx_id(found[0].name)}",
                "txcoord tx list 'state = COMMITTING|ABORTING'",
            )
        )
    if found := groups["strange"]:
        out.append(
            warning(
                reasons.PREPARED_OLD,
                f"{_branches(found)} of another txcoord log prepared for {_age(found)}: {found[0].name}",
                f"this log knows nothing of them and leaves them alone; {harm}",
                f"# start the coordinator of the log {found[0].name.split('.')[1]}; if that log is gone for good,",
                "# look in every database for the transaction's marker, and finish it by hand, the same way everywhere",
            )
        )
    if found := groups["foreign"]:
        out.append(
            warning(
                reasons.PREPARED_FOREIGN,
                f"{_branches(found)} of somebody else prepared for {_age(found)}: {found[0].name}"
                + (f" of {found[0].owner}" if found[0].owner else ""),
                f"txcoord never touches them; {harm}",
                "# ask whoever prepared it; if nobody will finish it:",
                f"-- {finish(found[0])}",
            )
        )
    return out


def _branches(found: Sequence[Prepared]) -> str:
    return "1 transaction" if len(found) == 1 else f"{len(found)} transactions"


def _age(found: Sequence[Prepared]) -> str:
    minutes = found[0].age_us // 60_000_000
    said = f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
    return said if len(found) == 1 else f"up to {said}"


def _tx_id(xid: str) -> str:
    parts = xid.split(".")
    return parts[3] if len(parts) > 3 else xid
