"""The command line: ``qbench list | run | status | report | sync | data | export | leaderboard |
doctor``.

Every command calls the library and prints.
"""

import io
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from qbench import __version__
from qbench.commands_data import Data, data_app
from qbench.commands_doctor import doctor
from qbench.commands_leaderboard import leaderboard_app
from qbench.commands_options import Out, TableName, asked_reduction
from qbench.commands_records import status, sync
from qbench.commands_run import run
from qbench.errors import UserError, without_password
from qbench.launch import let_the_first_speak
from qbench.report.wording import format_duration
from qbench.table import Table, load_table, table_names

# torch, scikit-learn and matplotlib are imported by the commands that need them: `list` answers at
# once.

app = typer.Typer(
    help="Rerun the papers on quadratic networks: every claim beside its measurement.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(leaderboard_app, name="leaderboard")
app.command(epilog="Example: qbench run uci --only dataset=wine,iris --axis scaling=all")(run)
app.command(epilog="Example: qbench status uci --watch")(status)
app.command(epilog="Example: qbench sync --to http://localhost:5000")(sync)
app.command(epilog="Example: qbench doctor --data ~/data")(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Rerun the papers on quadratic networks: every claim beside its measurement."""


@app.command("list", epilog="Example: qbench list --json")
def list_tables(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the tables: what each shows, its number of trials, and what all of them cost.

    Hours here come from a calibration of a few seconds, made the first time and kept in
    ~/.cache/quadnets/rates.json; those on an A100 from its data sheet.
    """
    from qbench.cost import A100, A100_UTILISATION, calibrate, known_rates, stored_costs

    rates = known_rates()
    if rates is None:
        typer.echo("qbench: measuring this machine once, for a few seconds", err=True)
        rates = calibrate()
    costs = stored_costs()
    tables = [load_table(name) for name in table_names()]
    if as_json:
        described = [
            {
                **_described(table),
                "multiply_adds": costs[table.id].multiply_adds,
                "hours_here": costs[table.id].hours(rates),
                "hours_a100": costs[table.id].hours(A100),
            }
            for table in tables
        ]
        typer.echo(json.dumps(described, indent=1))
        return
    grid = Grid()
    grid.add_column("table", no_wrap=True)
    grid.add_column("what it shows, and what is left open")
    grid.add_column("trials", justify="right")
    grid.add_column("multiply-adds", justify="right")
    grid.add_column("here", justify="right", no_wrap=True)
    grid.add_column("A100", justify="right", no_wrap=True)
    for table in tables:
        trials = table.size * table.seeds
        open_choices = f"\n[dim]open: {', '.join(table.unstated)}[/dim]" if table.unstated else ""
        what = f"{table.title}\n[dim]{table.paper}: {table.shows}[/dim]{open_choices}"
        cost = costs[table.id]
        hours = [format_duration(3600 * cost.hours(machine)) for machine in (rates, A100)]
        grid.add_row(table.id, what, str(trials), f"{cost.multiply_adds:.0e}", *hours)
        grid.add_section()
    Console().print(grid)
    typer.echo(
        "Time to run a whole table, all seeds under the default choices: here, estimated from a "
        "calibration of seconds; on\none A100, from its data sheet, float32 at "
        f"{A100_UTILISATION:.0%} of its peak. --quick runs any table in minutes, --budget some of "
        f"weeks in hours:\n{', '.join(table.id for table in tables if table.budget)}."
    )


def _described(table: Table) -> dict[str, object]:
    return {
        "table": table.id,
        "version": table.version,
        "title": table.title,
        "paper": table.paper,
        "shows": table.shows,
        "axes": {axis: list(values) for axis, values in table.axes.items()},
        "defaults": table.defaults,
        "seeds": table.seeds,
        "trials": table.size * table.seeds,
    }


@app.command(epilog="Example: qbench report uci --json")
def report(
    table: TableName,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Out = Path("runs"),
    quick: Annotated[bool, typer.Option("--quick", help="Report the run of minutes.")] = False,
    budget: Annotated[bool, typer.Option("--budget", help="Report the run of hours.")] = False,
) -> None:
    """Report what has been run of a table: claims, means, tests and figures."""
    loaded = load_table(table)

    from qbench.report.files import report_of, write_report
    from qbench.report.numbers import to_json
    from qbench.report.terminal import print_report
    from qbench.trial import RunFolder

    folder = RunFolder(out, loaded)
    reduced = asked_reduction(loaded, quick=quick, budget=budget)
    made, results = report_of(folder, reduced=reduced)
    if as_json:
        typer.echo(json.dumps(to_json(made), indent=1, allow_nan=False))
        return
    console = Console()
    print_report(made, console)
    with console.status("drawing the figures"):
        page = write_report(made, results, folder)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: qbench export 3f0a9c --to weights")
def export(
    key: Annotated[
        str | None,
        typer.Argument(help="A trial's key, or its beginning; without one, all are listed."),
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder for the weights and their record.")] = Path(
        "weights"
    ),
    tag: Annotated[
        str | None,
        typer.Option(
            help="What tells these weights from others; by default such as digits, or "
            "relinear_digits where ReLinear trained them."
        ),
    ] = None,
    out: Out = Path("runs"),
    data: Data = None,
) -> None:
    """Write a trial's weights to a folder that qzoo bundle and qzoo publish take.

    The written file's accuracy is measured anew, and has to be what a trial in float32 recorded.
    """
    from qbench import export as exporting

    if key is None:
        for result in exporting.exportable(out):
            typer.echo(exporting.described(result))
        return
    record = exporting.export(out, key, to, tag=tag, root=data)
    measured = record.evaluation
    accuracy = f"{measured.top1:.2f} % of {measured.images} test images" if measured else "-"
    typer.echo(
        f"{record.name} in {to}: {accuracy}, {record.size / 1e6:.1f} MB.\n"
        f"Into the package: qzoo bundle {shlex.quote(str(to))}; onto the Hub: qzoo publish "
        f"{shlex.quote(str(to))}"
    )


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ? for letters that a terminal does not have
    # what a scheduler sends before it kills: ended as by Ctrl-C, what is recorded is said
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(
            f"{error.strerror or error}{where}; what was finished is kept: repair that, run again"
        )
    except Exception as error:
        # typer's usage errors share no public base class over the versions; they all format
        # themselves
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        _fail(str(format_message()))
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    # the help, which stands for a missing command, says nothing more
    let_the_first_speak()
    if message.strip():
        typer.echo(f"qbench: {without_password(' '.join(message.split()))}", err=True)
    sys.exit(2)
