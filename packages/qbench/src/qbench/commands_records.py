"""``qbench status`` and ``qbench sync``: what the run folders hold, and MLflow's copy of it."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from qbench.activity import Activity
from qbench.commands_options import Out, complete_table
from qbench.errors import UserError, without_password
from qbench.report.wording import format_duration, format_value
from qbench.status import Status, statuses
from qbench.table import Table, load_table, table_names
from qbench.trial import RunFolder

_EVERY = 2.0  # seconds between two looks of --watch


def status(
    table: Annotated[
        str | None,
        typer.Argument(
            help="A table's name; without one, all that have begun.", autocompletion=complete_table
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds per cell; the table's own number by default.")
    ] = None,
    out: Out = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Look again until you stop it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what ran, what is running, what failed and why, and what is left.

    Trials are counted under the default choices and under each of the others that were run, those
    of --quick and --budget by themselves. The time left is at the pace of the trials recorded, over
    the processes running now.
    """
    tables = [load_table(name) for name in ([table] if table else table_names())]
    if as_json:
        found = [status.model_dump(mode="json") for status in _statuses(out, tables, seeds)]
        typer.echo(json.dumps(found, indent=1))
        return
    console = Console()
    if not watch:
        console.print(_render(list(_statuses(out, tables, seeds)), out, detailed=table is not None))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            shown = _render(list(_statuses(out, tables, seeds)), out, detailed=table is not None)
            live.update(shown, refresh=True)
            time.sleep(_EVERY)


def _statuses(out: Path, tables: Sequence[Table], wanted: int | None) -> Iterator[Status]:
    for table in tables:
        folder = RunFolder(out, table)
        if folder.path.is_dir():
            yield from statuses(folder, wanted)


def _render(found: Sequence[Status], out: Path, *, detailed: bool) -> RenderableType:
    if not found:
        return f"Nothing has been run in {out}: begin with qbench run uci --quick --out {out}"
    counts = {
        "diverged": [one.diverged for one in found],
        "running": [len(one.running) for one in found],
        "stopped": [len(one.stopped) for one in found],
        "failed": [len(one.failed) for one in found],
    }
    counts = {heading: of for heading, of in counts.items() if any(of)}
    grid = Grid()
    grid.add_column("table", overflow="fold")
    for heading in ("recorded", *counts, "left"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for place, one in enumerate(found):
        choices = ", ".join(f"{name}={format_value(v)}" for name, v in one.choices.items())
        grid.add_row(
            Text(f"{one.table}{f' --{one.reduced}' if one.reduced else ''}").append(
                f"\n{choices}" if choices else "", style="dim"
            ),
            f"{one.recorded} of {one.expected}",
            *(
                Text(str(of[place] or ""), style="red" if heading == "failed" else "")
                for heading, of in counts.items()
            ),
            _left(one),
        )
    blocks = [line for one in found for line in _blocks(one, out, detailed=detailed)]
    return Group(grid, *blocks)


def _left(one: Status) -> str:
    if one.recorded == one.expected:
        return "–"
    return "?" if one.left is None else format_duration(one.left)


def _blocks(one: Status, out: Path, *, detailed: bool) -> Iterator[RenderableType]:
    """What is running and what failed, a line each."""
    now = time.time()
    for activity in one.running:
        since = max(0.0, now - activity.started)  # the time of day may have been set back
        yield Text(
            f"running: {_named(one, activity)}, {activity.fraction:.0%} after "
            f"{format_duration(since)}, process {activity.pid} on {activity.host}"
        )
    for activity in one.stopped if detailed else ():
        yield Text(
            f"stopped at {activity.fraction:.0%}: {_named(one, activity)}; it goes on with "
            f"qbench run {one.table}",
            style="yellow",
        )
    for activity in one.failed:
        where = RunFolder(out, load_table(one.table)).activity_path(activity.block)
        yield Text(f"failed: {_named(one, activity)}: {activity.reason}", style="red")
        if detailed:
            yield Text(f"  its traceback is in {where}", style="dim")


def _named(one: Status, activity: Activity) -> str:
    axes = " ".join(format_value(value) for value in activity.axes.values())
    seeds = ", ".join(map(str, activity.seeds))
    return f"{one.table} {axes}, seed{'s' if len(activity.seeds) > 1 else ''} {seeds}"


def sync(
    to: Annotated[
        str, typer.Option("--to", metavar="URI", help="An MLflow server, or sqlite:///FILE.")
    ],
    out: Out = Path("runs"),
) -> None:
    """Bring an MLflow store up to date with all results of a folder, as often as you like.

    What is there already is left alone, what is there in part is completed, nothing is doubled.
    """
    folders = [RunFolder(out, load_table(name)) for name in table_names() if (out / name).is_dir()]
    results = [result for folder in folders for result in folder.recorded()]
    if not results:
        raise UserError(f"no results in {str(out)!r}: make them with qbench run, or name --out")

    from qbench.publish import publish
    from qbench.store import reason

    console = Console()
    place = without_password(to)
    try:
        with console.status(f"recording in {place}"):
            new = publish(results, to, out)
    except Exception as error:
        # whatever MLflow and what it talks through may raise: nothing here depends on it
        raise UserError(
            f"{reason(to, error)}. Nothing is lost: run the same command again."
        ) from error
    typer.echo(f"{new} trials were new to {place}, {len(results) - new} were there already.")
