"""Options that several commands have, and what they mean."""

from pathlib import Path
from typing import Annotated

import typer

from qbench.errors import UserError
from qbench.table import Reduction, Table, load_table, table_names

Out = Annotated[Path, typer.Option(help="Folder of the results.")]


def complete_table(incomplete: str) -> list[str]:
    """The tables whose names begin so, for the shell."""
    return [name for name in table_names() if name.startswith(incomplete)]


TableName = Annotated[
    str, typer.Argument(help="A table's name; see qbench list.", autocompletion=complete_table)
]


def asked_reduction(table: Table, *, quick: bool, budget: bool) -> Reduction | None:
    """The reduced run that is asked for; None for a table that is quick as it is."""
    if quick and budget:
        raise UserError("--quick and --budget are two kinds of reduced runs: give one")
    if budget and table.budget is None:
        known = [name for name in table_names() if load_table(name).budget is not None]
        raise UserError(
            f"table {table.id} has no recipe for --budget: {', '.join(known)} have one. Leave it "
            "out, or give --quick"
        )
    if quick and table.quick is not None:
        return "quick"
    return "budget" if budget else None
