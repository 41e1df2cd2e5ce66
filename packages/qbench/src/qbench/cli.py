"""The command line: ``qbench list | run | status | report | sync | data | export | leaderboard |
doctor``.

Every command calls the library and prints.
"""

import atexit
import io
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table as Grid

from qbench import __version__
from qbench.commands_data import Data, data_app
from qbench.commands_doctor import doctor
from qbench.commands_leaderboard import leaderboard_app
from qbench.commands_records import Out, complete_table, status, sync
from qbench.errors import UserError
from qbench.frozen import Scalar
from qbench.launch import is_first, is_launched, let_the_first_speak
from qbench.report.wording import format_duration
from qbench.table import Reduction, Table, load_table, table_names

if TYPE_CHECKING:
    from rich.progress import Progress

    from qbench.block import Block
    from qbench.trial import RunFolder

# torch, scikit-learn and matplotlib are imported by the commands that need them: `list` answers at
# once.

_SECONDS_BETWEEN_LINES = 60.0  # of a run that shows no bar

app = typer.Typer(
    help="Rerun the papers on quadratic networks: every claim beside its measurement.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(leaderboard_app, name="leaderboard")
app.command(epilog="Example: qbench status uci --watch")(status)
app.command(epilog="Example: qbench sync --to http://localhost:5000")(sync)
app.command(epilog="Example: qbench doctor --data ~/data")(doctor)


TableName = Annotated[
    str, typer.Argument(help="A table's name; see qbench list.", autocompletion=complete_table)
]


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
        trials = len(list(table.cells())) * table.seeds
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
        "trials": len(list(table.cells())) * table.seeds,
    }


@app.command(epilog="Example: qbench run uci --only dataset=wine,iris --axis scaling=all")
def run(
    table: TableName,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds per cell; the table's own number by default.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=VALUE,…", help="Only these values of an axis; repeatable."),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=all|VALUE,…", help="Values of a choice the paper leaves open; repeatable."
        ),
    ] = None,
    out: Out = Path("runs"),
    tracking_uri: Annotated[
        str | None, typer.Option(help="An MLflow server to record on, beside runs/mlflow.db.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to train.")] = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(help="float32, tf32, bfloat16 or float16, where the table leaves it open."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Train through torch.compile.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Blocks at once, each in a process with its share of threads and GPUs."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="A Ray cluster for blocks, a processor each: host:port, auto, local.",
        ),
    ] = None,
    data: Data = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A reduced run of minutes, marked as such everywhere.")
    ] = False,
    budget: Annotated[
        bool,
        typer.Option(
            "--budget", help="A reduced run of hours, of tables of weeks; marked everywhere, too."
        ),
    ] = False,
) -> None:
    """Run what is missing of a table, record it in MLflow, and report."""
    if ray is not None and jobs is not None:
        raise UserError(
            f"--jobs {jobs} is for processes of this machine, --ray {ray} for a cluster: give one"
        )
    if is_launched() and (ray is not None or jobs is not None):
        raise UserError(
            "torchrun has started several processes, which train each block together: leave out "
            "--jobs and --ray"
        )
    loaded = load_table(table)
    reduced = _reduction(loaded, quick=quick, budget=budget)
    if precision and "precision" not in loaded.axes:
        raise UserError(
            f"table {table} is trained in {loaded.recipe.precision}, which is no choice of it: "
            f"leave out --precision {precision}"
        )
    chosen = [*(axis or []), *([f"precision={precision}"] if precision else [])]
    cells = list(
        loaded.cells(
            _axis_values(loaded, only), _axis_values(loaded, chosen, choices=True), reduced=reduced
        )
    )
    if not cells:
        raise UserError(
            f"table {table} has nothing of this in its recipe for --{reduced}: leave that out, and "
            "it is run in full"
        )
    number = seeds or loaded.usual_seeds(reduced)

    from qbench.trial import RunFolder

    folder = RunFolder(out, loaded, create=True)
    atexit.register(folder.give_up)  # a run that is refused leaves no empty folder

    from qbench.block import Setting, plan
    from qbench.executors import (
        run_blocks,
        run_on_processes,
        run_on_ray,
        run_together,
        take_part,
    )
    from qbench.machine import check_compile, check_data, check_device
    from qbench.publish import Publisher, default_uri
    from qbench.report.files import report_of, write_report
    from qbench.report.terminal import print_report

    console = Console(quiet=not is_first())
    note = cache(partial(console.print, style="yellow"))  # each is said once
    setting = Setting(device, data, compiled, on_note=note)
    is_here = ray in (None, "local")  # else it is for the nodes to have a device
    if is_here:
        check_device(device)
    check_data(cells, data)
    if compiled and is_here:
        check_compile(device)
    if not is_first():
        take_part(loaded, setting)
        return
    if quick and reduced is None:
        console.print(f"{table} is quick as it is: --quick changes nothing.")
    trials = 0
    failed: list[str] = []

    def fail(block: "Block", reason: str) -> None:
        failed.append(f"{block.cell}: {reason}")
        console.print(f"failed: {failed[-1]}", style="red")

    there = sum(folder.has(cell, seed) for cell in cells for seed in range(number))
    started = time.perf_counter()
    targets = [default_uri(out), *([tracking_uri] if tracking_uri else [])]
    publisher = Publisher(out, targets, table)
    try:
        publisher.send(folder)
        blocks = plan(folder, cells, number)
        with _progress(blocks, console) as on_progress:
            run_all = run_blocks if jobs is None else partial(run_on_processes, jobs=jobs)
            if ray is not None:
                run_all = partial(run_on_ray, address=ray)
            elif is_launched():
                run_all = run_together
            for _, results in run_all(
                folder,
                blocks,
                setting=setting,
                on_progress=on_progress,
                on_failure=fail,
            ):
                trials += len(results)
                publisher.send(folder, results)
        # what a worker wrote that was lost before it said so, and what others start from
        publisher.send(folder)
        trained = time.perf_counter() - started
        with console.status("recording the last results in MLflow"):
            problem = publisher.close()
    except KeyboardInterrupt:
        publisher.end()
        _stopped(folder, sys.argv[1:])
    recorded = time.perf_counter() - started - trained
    if trials or there or not failed:  # else there is nothing to report
        report, found = report_of(folder, reduced=reduced)
        page = write_report(report, found, folder)
        print_report(report, console)
        server = f"{tracking_uri}, or " if tracking_uri else ""
        mlflow_ui = f"{server}mlflow ui --backend-store-uri {shlex.quote(default_uri(out))}"
        console.print(
            f"{trials} trials run in {trained:.0f} s, {there} were there already"
            + ("" if problem else f"; another {recorded:.0f} s until all were in MLflow")
            + f".\nReport: {page}\nMLflow: {mlflow_ui}  (then: Model training, {table}, Runs)",
            highlight=False,
            markup=False,  # an address may have [ ] in it
            soft_wrap=True,
        )
    if failed:
        typer.echo(
            f"qbench: {len(failed)} of {len(blocks)} blocks failed: {'; '.join(failed[:5])}"
            f"{'; …' if len(failed) > 5 else ''}. qbench status {table} says more; the same "
            "command tries them again.",
            err=True,
        )
    if problem:
        typer.echo(
            f"qbench: not all is recorded in MLflow ({problem}); the results are safe in "
            f"{folder.path}, and the next run records them.",
            err=True,
        )
    if failed:
        raise typer.Exit(1)


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
    reduced = _reduction(loaded, quick=quick, budget=budget)
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


def _reduction(table: Table, *, quick: bool, budget: bool) -> Reduction | None:
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


def _axis_values(
    table: Table, options: Sequence[str] | None, *, choices: bool = False
) -> dict[str, tuple[Scalar, ...]]:
    """``AXIS=VALUE,…`` options as values by axis; ``all`` stands for every value of a choice."""
    chosen: dict[str, tuple[Scalar, ...]] = {}
    for option in options or []:
        name, equals, text = option.partition("=")
        if not equals or not text:
            every = f" or {name}=all" if choices else ""
            raise UserError(
                f"{option!r} is not of the form AXIS=VALUE: write {name or 'AXIS'}=VALUE,…{every}"
            )
        if choices and name in table.grid_axes:
            raise UserError(
                f"--axis is for the choices left open; use --only {option} for the grid"
            )
        values = table.axes.get(name, ()) if text == "all" else tuple(text.split(","))
        chosen[name] = (*chosen.get(name, ()), *values)
    return chosen


@contextmanager
def _progress(blocks: Sequence["Block"], console: Console) -> Iterator["_OnProgress"]:
    """A bar over all blocks with the trials done and the time left."""
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    total = sum(len(block.seeds) for block in blocks)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[trials]}/" + f"{total} trials"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=120,
        disable=not blocks or not console.is_terminal,
    )
    with bar:
        yield _OnProgress(bar, blocks, None if console.is_terminal else console)


class _OnProgress:
    """Turns the fraction of a block that is done into the bar's position; into a line a minute on
    ``plain``, which shows no bar, as a file does not."""

    def __init__(
        self, bar: "Progress", blocks: Iterable["Block"], plain: Console | None = None
    ) -> None:
        self._bar, self._plain = bar, plain
        self._started = self._said = time.monotonic()
        self._costs = {block: block.cost for block in blocks}
        self._done: dict[Block, float] = {}
        self._task = bar.add_task("", total=sum(self._costs.values()), trials=0)

    def __call__(self, block: "Block", fraction: float) -> None:
        self._done[block] = fraction
        position = sum(self._costs[b] * share for b, share in self._done.items())
        trials = sum(len(b.seeds) for b, share in self._done.items() if share >= 1)
        self._bar.update(self._task, completed=position, description=str(block.cell), trials=trials)
        now = time.monotonic()
        if self._plain is not None and now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            share = position / (sum(self._costs.values()) or 1)
            took = format_duration(now - self._started)
            self._plain.print(f"{share:.0%} after {took}: {trials} trials, at {block.cell}")


def _stopped(folder: "RunFolder", arguments: Sequence[str]) -> None:
    there = len(list(folder.path.glob("*/result.json")))
    typer.echo(
        f"\nqbench: stopped; {there} trials are recorded in {folder.path}. "
        f"To go on: qbench {shlex.join(arguments)}",
        err=True,
    )
    raise typer.Exit(130)


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
        typer.echo(f"qbench: {' '.join(message.split())}", err=True)
    sys.exit(2)
