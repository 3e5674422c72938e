"""The part of docs/explanation/model.md that comes from the modules: ``python -m tests.model.page`` writes it."""

from __future__ import annotations

from . import tlc

PAGE = tlc.ROOT / "docs" / "explanation" / "model.md"
MODULES = ("XaCommit", "Enlist", "OnePhase", "TakeOver", "Holder", "Barrier", "Xa")
_START, _END = "<!-- from the modules -->\n", "<!-- until here -->\n"


def generated() -> str:
    """What each action is."""
    parts = []
    for module in MODULES:
        rows = tlc.table((tlc.HERE / f"{module}.tla").read_text())
        parts.append(f"### {module}\n\n| action | what it is |\n|---|---|\n")
        for names, where in rows.items():
            actions = ", ".join(f"`{name}`" for name in names.split(", "))
            parts.append(f"| {actions} | {where} |\n")
        parts.append("\n")
    return "".join(parts)


def main() -> None:
    """Write it."""
    text = PAGE.read_text()
    before, rest = text.split(_START, 1)
    _, after = rest.split(_END, 1)
    PAGE.write_text(f"{before}{_START}\n{generated()}{_END}{after}")


if __name__ == "__main__":
    main()
