"""``qbench doctor``: what this machine has for qbench, and what to do about what it lacks."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from qbench.commands_data import Data
from qbench.commands_options import Out

_STYLES = {"good": "green", "lacking": "yellow", "bad": "red"}


def doctor(
    out: Out = Path("runs"),
    data: Data = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="An MLflow server to look for, beside runs/mlflow.db.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine: a verdict on everything that runs need, and what to do.

    Exit status 1 where something is bad, without which no table runs.
    """
    from qbench.doctor import examine

    console = Console()
    with console.status("looking around"):
        checks = examine(out, data, tracking_uri)
    if as_json:
        typer.echo(json.dumps([check.model_dump() for check in checks], indent=1))
    else:
        grid = Grid()
        grid.add_column("", no_wrap=True)
        grid.add_column("verdict", no_wrap=True)
        grid.add_column("found, and what to do")
        for check in checks:
            said = Text(check.found)
            if check.advice:
                said.append(f"\n{check.advice}", style=_STYLES[check.verdict])
            grid.add_row(check.what, Text(check.verdict, style=_STYLES[check.verdict]), said)
        console.print(grid)
    if any(check.verdict == "bad" for check in checks):
        raise typer.Exit(1)
