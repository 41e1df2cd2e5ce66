"""The command line: ``qzoo list | info | run``. Every command calls the library and prints."""

import json
import runpy
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import qcore
from qzoo.cost import cost
from qzoo.models.architectures import ARCHITECTURES, get_architecture

app = typer.Typer(
    help="Quadratic networks for timm.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command("list", epilog='Example: qzoo list "*_rank*"')
def list_models(
    pattern: Annotated[str, typer.Argument(help="Only names that match, * for anything.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models: parameters, multiply-adds for a 32×32 image, and weights."""
    names = [name for name in ARCHITECTURES if fnmatch(name, pattern)]
    if not names:
        _found(pattern)
    if as_json:
        typer.echo(json.dumps([_described(name) for name in names], indent=1))
        return
    grid = Table()
    grid.add_column("model", no_wrap=True)
    grid.add_column("parameters", justify="right")
    grid.add_column("multiply-adds", justify="right")
    grid.add_column("weights")
    for name in names:
        of_name = cost(name)
        weights = ", ".join(_described(name)["weights"]) or "-"
        grid.add_row(
            name, f"{of_name.parameters:,}", f"{of_name.multiply_adds / 1e6:,.0f} M", weights
        )
    Console().print(grid)


@app.command(epilog="Example: qzoo info qresnet20")
def info(
    name: Annotated[str, typer.Argument(help="A model's name; see qzoo list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show one model: how it is built, what it costs, how to make it."""
    _found(name)
    described = _described(name)
    if as_json:
        typer.echo(json.dumps(described, indent=1))
        return
    grid = Table(show_header=False, box=None)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for key, value in described.items():
        shown = ", ".join(value) or "none yet" if key == "weights" else value
        grid.add_row(key.replace("_", " "), f"{shown:,}" if isinstance(shown, int) else str(shown))
    grid.add_row("make it", f'import qzoo, timm; timm.create_model("{name}")')
    Console().print(grid)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,  # all that follows the script is its own
    },
    epilog="Example: qzoo run train.py data --model qresnet20 --epochs 10",
)
def run(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(help="A script, such as your copy of timm's train.py.")],
) -> None:
    """Run a script that makes models by name, with the zoo's registered; the rest goes to it."""
    if not script.is_file():
        typer.echo(
            f"{script} is no file: give the path of a script, such as a copy of timm's train.py",
            err=True,
        )
        raise typer.Exit(2)
    import qzoo  # noqa: F401 - registers the models

    sys.argv = [str(script), *context.args]
    sys.path.insert(0, str(script.resolve().parent))  # as Python does for a script
    runpy.run_path(str(script), run_name="__main__")


def _described(name: str) -> dict[str, Any]:
    row = ARCHITECTURES[name]
    neuron = qcore.get_neuron(row.get("neuron", "quadratic"))
    head = row.get("head", "linear")
    return {
        "model": name,
        "neuron": f"{neuron.name}: {neuron.formula}",
        "blocks_per_stage": str(list(row["depths"])),
        "channels": str(list(row["widths"])),
        "shortcut": f"option {row['shortcut']}",
        "residual": row.get("residual", "plain"),
        "head": f"{head}, rank {row['rank']}" if head == "low_rank" else head,
        **cost(name)._asdict(),
        "weights": [],
    }


def _found(name: str) -> None:
    """End with one sentence where no model has this name."""
    try:
        get_architecture(name)
    except ValueError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
