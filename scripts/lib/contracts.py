"""Contract types of our own for import-linter (pyproject.toml names them)."""

import sys
from typing import Any

from importlinter import Contract, ContractCheck, fields, output


def _inside(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


class PureContract(Contract):
    """The source modules import nothing but themselves and the standard library, less what is forbidden.

    With `others = True` other packages are allowed, and only the forbidden ones are not.
    """

    type_name = "pure"

    source_modules = fields.ListField(subfield=fields.StringField())
    forbidden = fields.ListField(subfield=fields.StringField())
    others = fields.BooleanField(required=False, default=False)

    def check(self, graph: Any, verbose: bool) -> ContractCheck:
        sources: list[str] = self.source_modules
        broken = [
            (module, imported)
            for module in sorted(graph.modules)
            if _inside(module, sources)
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if not _inside(imported, sources) and not self._allowed(imported)
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def _allowed(self, imported: str) -> bool:
        if _inside(imported, self.forbidden):
            return False
        return self.others or imported.partition(".")[0] in sys.stdlib_module_names

    def render_broken_contract(self, check: ContractCheck) -> None:
        for module, imported in check.metadata["broken"]:
            output.print_error(f"{module} imports {imported}")


class AcyclicContract(Contract):
    """No module imports itself through others."""

    type_name = "acyclic"

    packages = fields.ListField(subfield=fields.StringField())

    def check(self, graph: Any, verbose: bool) -> ContractCheck:
        left = {
            module: {m for m in graph.find_modules_directly_imported_by(module) if _inside(m, self.packages)}
            for module in graph.modules
            if _inside(module, self.packages)
        }
        # Take away what imports nothing that is left; what remains is on a cycle or leads to one.
        while done := {module for module, imported in left.items() if not imported & left.keys()}:
            left = {module: imported for module, imported in left.items() if module not in done}
        # From the other end, so that the cycles alone remain.
        while done := left.keys() - set().union(*left.values()):
            left = {module: imported for module, imported in left.items() if module not in done}
        return ContractCheck(
            kept=not left, metadata={"cycle": {m: sorted(i & left.keys()) for m, i in left.items()}}
        )

    def render_broken_contract(self, check: ContractCheck) -> None:
        for module, imported in sorted(check.metadata["cycle"].items()):
            output.print_error(f"{module} imports {', '.join(imported)}")
