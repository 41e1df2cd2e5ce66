"""``qbench run``: what is missing of a table is trained, recorded and reported."""

import atexit
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from qbench.commands_data import Data
from qbench.commands_options import Out, TableName, asked_reduction
from qbench.errors import UserError, without_password
from qbench.frozen import Scalar
from qbench.launch import is_first, is_launched
from qbench.progress import progress
from qbench.table import Cell, Reduction, Table, load_table

if TYPE_CHECKING:
    from qbench.block import Block, Setting
    from qbench.publish import Publisher
    from qbench.trial import RunFolder


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
    _check_one_executor(ray, jobs)
    loaded = load_table(table)
    reduced = asked_reduction(loaded, quick=quick, budget=budget)
    cells = _cells(loaded, reduced, only or (), axis or (), precision)
    number = seeds or loaded.usual_seeds(reduced)

    from qbench.trial import RunFolder

    folder = RunFolder(out, loaded, create=True)
    atexit.register(folder.give_up)  # a run that is refused leaves no empty folder

    from qbench.block import Setting, plan
    from qbench.executors import take_part
    from qbench.machine import check_compile, check_data, check_device
    from qbench.publish import Publisher, default_uri
    from qbench.report.files import report_of, write_report  # before it trains for hours, not after
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
    there = sum(folder.has(cell, seed) for cell in cells for seed in range(number))
    started = time.perf_counter()
    targets = [default_uri(out), *([tracking_uri] if tracking_uri else [])]
    publisher = Publisher(out, targets, table)
    try:
        publisher.send(folder)
        blocks = plan(folder, cells, number)
        done = _train(folder, blocks, setting, _executor(jobs, ray), publisher, console, started)
    except KeyboardInterrupt:
        publisher.end()
        _say_stopped(folder, sys.argv[1:])
        raise typer.Exit(130) from None
    if done.trials or there or not done.failed:  # else there is nothing to report
        report, results = report_of(folder, reduced=reduced)
        page = write_report(report, results, folder)
        print_report(report, console)
        server = f"{without_password(tracking_uri)}, or " if tracking_uri else ""
        mlflow_ui = f"{server}mlflow ui --backend-store-uri {shlex.quote(default_uri(out))}"
        console.print(
            f"{done.trials} trials run in {done.trained:.0f} s, {there} were there already"
            + ("" if done.problem else f"; another {done.recorded:.0f} s until all were in MLflow")
            + f".\nReport: {page}\nMLflow: {mlflow_ui}  (then: Model training, {table}, Runs)",
            highlight=False,
            markup=False,  # an address may have [ ] in it
            soft_wrap=True,
        )
    _say_problems(done, folder, len(blocks))
    if done.failed:
        raise typer.Exit(1)


def _check_one_executor(ray: str | None, jobs: int | None) -> None:
    if ray is not None and jobs is not None:
        raise UserError(
            f"--jobs {jobs} is for processes of this machine, --ray {ray} for a cluster: give one"
        )
    if is_launched() and (ray is not None or jobs is not None):
        raise UserError(
            "torchrun has started several processes, which train each block together: leave out "
            "--jobs and --ray"
        )


def _executor(jobs: int | None, ray: str | None) -> Callable[..., Any]:
    """What runs the blocks."""
    from qbench.executors import run_blocks, run_on_processes, run_on_ray, run_together

    if ray is not None:
        return partial(run_on_ray, address=ray)
    if is_launched():
        return run_together
    return run_blocks if jobs is None else partial(run_on_processes, jobs=jobs)


def _cells(
    table: Table,
    reduced: Reduction | None,
    only: Sequence[str],
    axis: Sequence[str],
    precision: str | None,
) -> list[Cell]:
    """The cells that the options name."""
    if precision and "precision" not in table.axes:
        raise UserError(
            f"table {table.id} is trained in {table.recipe.precision}, which is no choice of it: "
            f"leave out --precision {precision}"
        )
    chosen = [*axis, *([f"precision={precision}"] if precision else [])]
    cells = list(
        table.cells(
            _axis_values(table, only), _axis_values(table, chosen, choices=True), reduced=reduced
        )
    )
    if not cells:
        raise UserError(
            f"table {table.id} has nothing of this in its recipe for --{reduced}: leave that out, "
            "and it is run in full"
        )
    return cells


def _axis_values(
    table: Table, options: Sequence[str], *, choices: bool = False
) -> dict[str, tuple[Scalar, ...]]:
    """``AXIS=VALUE,…`` options as values by axis; ``all`` stands for every value of a choice."""
    chosen: dict[str, tuple[Scalar, ...]] = {}
    for option in options:
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


@dataclass
class _Done:
    """What a run did: trials trained, blocks that failed and why, seconds of training and of
    waiting for MLflow after it, and what MLflow lacks."""

    trials: int = 0
    failed: list[str] = field(default_factory=list)
    trained: float = 0.0
    recorded: float = 0.0
    problem: str = ""


def _train(
    folder: "RunFolder",
    blocks: Sequence["Block"],
    setting: "Setting",
    run_all: Callable[..., Any],
    publisher: "Publisher",
    console: Console,
    started: float,
) -> _Done:
    """Train the blocks, and record each as it ends; ``started`` is when the run began."""
    done = _Done()

    def fail(block: "Block", reason: str) -> None:
        done.failed.append(f"{block.cell}: {reason}")
        console.print(f"failed: {done.failed[-1]}", style="red")

    with progress(blocks, console) as on_progress:
        for _, results in run_all(
            folder, blocks, setting=setting, on_progress=on_progress, on_failure=fail
        ):
            done.trials += len(results)
            publisher.send(folder, results)
    # what a worker wrote that was lost before it said so, and what others start from
    publisher.send(folder)
    trained = time.perf_counter()
    with console.status("recording the last results in MLflow"):
        done.problem = publisher.close()
    done.trained, done.recorded = trained - started, time.perf_counter() - trained
    return done


def _say_problems(done: _Done, folder: "RunFolder", blocks: int) -> None:
    if done.failed:
        typer.echo(
            f"qbench: {len(done.failed)} of {blocks} blocks failed: {'; '.join(done.failed[:5])}"
            f"{'; …' if len(done.failed) > 5 else ''}. qbench status {folder.table.id} says more; "
            "the same command tries them again.",
            err=True,
        )
    if done.problem:
        typer.echo(
            f"qbench: not all is recorded in MLflow ({done.problem}); the results are safe in "
            f"{folder.path}, and the next run records them.",
            err=True,
        )


def _say_stopped(folder: "RunFolder", arguments: Sequence[str]) -> None:
    there = len(list(folder.path.glob("*/result.json")))
    shown = [without_password(argument) for argument in arguments]
    hidden = "" if shown == list(arguments) else " (with the password in place of ***)"
    typer.echo(
        f"\nqbench: stopped; {there} trials are recorded in {folder.path}. "
        f"To go on: qbench {shlex.join(shown)}{hidden}",
        err=True,
    )
