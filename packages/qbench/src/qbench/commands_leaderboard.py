"""``qbench leaderboard submit | verify | list | build | serve``."""

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table as Grid

from qbench.commands_data import Data
from qbench.commands_options import Out
from qbench.errors import UserError
from qbench.leaderboard.boards import BOARDS

leaderboard_app = typer.Typer(
    help="Claims beside what was measured here: entries, verification, a static site.",
    no_args_is_help=True,
)

Entries = Annotated[Path, typer.Option(help="Folder of the entries, one JSON file each.")]
_ENTRIES = Path("leaderboard")
_USUAL_ID = 30  # characters, which all of ours fit


@leaderboard_app.command(
    epilog='Example: qbench leaderboard submit my-weights --board cifar10 --authors "A. Author"'
)
def submit(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER|HUB-ID|NAME",
            help="A folder of weights, ORG/NAME on the Hub, or the zoo's weights by name.",
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="KEY", help="A run: the key of one of its trials.")
    ] = None,
    board: Annotated[
        str | None, typer.Option(help=f"{', '.join(BOARDS)}; by default the data's.")
    ] = None,
    accuracy: Annotated[
        float | None, typer.Option(help="The claim, in percent; by default what the record says.")
    ] = None,
    authors: Annotated[str | None, typer.Option(help="Who claims it.")] = None,
    paper: Annotated[str | None, typer.Option(help="Where it is described.")] = None,
    url: Annotated[str | None, typer.Option(help="A link, https://…")] = None,
    training_seconds: Annotated[
        float | None, typer.Option(help="What training one seed took.")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="What it was trained on.")] = None,
    title: Annotated[str | None, typer.Option(help="What the board calls it.")] = None,
    identifier: Annotated[
        str | None, typer.Option("--id", help="The entry's id; by default made of what it is.")
    ] = None,
    selection: Annotated[
        Literal["last epoch", "best on validation", "best on test"],
        typer.Option(help="Which epoch's weights were taken, and what chose them."),
    ] = "last epoch",
    entries: Entries = _ENTRIES,
    out: Out = Path("runs"),
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an entry of that id by another.")
    ] = False,
) -> None:
    """Make an entry of weights, or of a run of one of our tables; nothing is measured yet."""
    from qbench.leaderboard.entry import entry_path
    from qbench.leaderboard.submit import submit as make

    entry = make(
        source,
        entries,
        key=run,
        out=out,
        board=board,
        identifier=identifier,
        title=title,
        replace=replace,
        selection=selection,
        accuracy=accuracy,
        authors=authors,
        paper=paper,
        url=url,
        training_seconds=training_seconds,
        hardware=hardware,
    )
    typer.echo(
        f"{entry_path(entries, entry.id)}: {entry.title} claims {entry.claim.accuracy:.2f} % on "
        f"{entry.dataset}.\nMeasure it: qbench leaderboard verify {entry.id}"
    )


@leaderboard_app.command(epilog="Example: qbench leaderboard verify qresnet20-relinear-digits")
def verify(
    wanted: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Entries; by default all that are not verified."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that were verified before.")
    ] = False,
    entries: Entries = _ENTRIES,
    data: Data = None,
    seconds: Annotated[float, typer.Option(min=1, help="What one entry may take.")] = 900.0,
    memory: Annotated[float, typer.Option(min=1, help="Gigabytes that it may take.")] = 16.0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing; for entries that hold no measurement yet."),
    ] = False,
) -> None:
    """Measure entries again and write it beside the claim; exit with 1 where one does not hold.

    Weights are evaluated on the full test set, and runs run again, in a process with limits and
    without a connection.
    """
    from qbench.leaderboard.entry import find_entries, read_entries, write_entry
    from qbench.leaderboard.verify import Limits
    from qbench.leaderboard.verify import verify as measure

    every = read_entries(entries)
    chosen = list(find_entries(every, wanted)) if wanted else every
    if not wanted and not everything:
        chosen = [entry for entry in chosen if entry.verdict != "verified"]
    if not chosen:
        typer.echo("All entries are verified already: --all measures them again.")
        return
    limits = Limits(seconds=seconds, memory=int(memory * 1e9))
    console = Console(stderr=True)
    failed = 0
    for entry in chosen:
        try:
            with console.status(f"measuring {entry.id}"):
                found = measure(entry, data, limits)
        except UserError as error:
            typer.echo(f"{entry.id}: not measured: {error}")
            failed += 1
            continue
        if not dry_run:
            write_entry(found, entries)
        reason = found.measurement.reason if found.measurement else ""
        typer.echo(f"{found.id}: {found.verdict}: {reason}")
        failed += found.verdict != "verified"
        if dry_run and entry.measurement is not None:
            typer.echo(f"{entry.id}: it holds a measurement: leave that to whoever takes it in")
            failed += 1
    if failed:
        raise typer.Exit(1)


@leaderboard_app.command("list", epilog="Example: qbench leaderboard list cifar10")
def list_entries(
    board: Annotated[
        str | None, typer.Argument(help=f"{', '.join(BOARDS)}; without one, all.")
    ] = None,
    entries: Entries = _ENTRIES,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the entries of each dataset in the order of their ranks."""
    from qbench.leaderboard.boards import all_datasets, get_board
    from qbench.leaderboard.entry import read_entries
    from qbench.leaderboard.site import record_of
    from qbench.leaderboard.standings import rows_of

    datasets = get_board(board).datasets if board else all_datasets()
    rows = rows_of(datasets, read_entries(entries))
    if as_json:
        typer.echo(json.dumps([record_of(row) for row in rows], indent=1))
        return
    console = Console()
    for dataset, group in groupby(rows, key=lambda row: row.entry.dataset):
        # a grid for each, and the id folded where it must be: it is what one copies
        grid = Grid(title=dataset, title_justify="left", title_style="bold")
        grid.add_column("rank", justify="right")
        grid.add_column("entry", overflow="fold", min_width=_USUAL_ID)
        grid.add_column("accuracy", justify="right", no_wrap=True)
        grid.add_column("status")
        for row in group:
            spread = f" ± {row.std:.2f} ({row.n})" if row.std is not None else ""
            accuracy = "–" if row.accuracy is None else f"{row.accuracy:.2f}{spread}"
            status = row.entry.verdict + (", reduced" if row.entry.reduced else "")
            grid.add_row(str(row.rank or "–"), row.entry.id, accuracy, status)
        console.print(grid)


@leaderboard_app.command(epilog="Example: qbench leaderboard build --results runs --out site")
def build(
    out: Annotated[Path, typer.Option(help="Folder of the pages, which is replaced.")] = Path(
        "site"
    ),
    entries: Entries = _ENTRIES,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Reports to show: TABLE/report.json or report-budget.json in a folder as runs."
        ),
    ] = None,
) -> None:
    """Write the leaderboard as static pages, which work from a file and under any path."""
    from qbench.leaderboard.entry import read_entries
    from qbench.leaderboard.site import build as make

    every = read_entries(entries)
    pages = make(every, results, out)
    typer.echo(f"{pages} pages of {len(every)} entries: {out / 'index.html'}")


@leaderboard_app.command(epilog="Example: qbench leaderboard serve site")
def serve(
    site: Annotated[Path, typer.Argument(help="The folder that build wrote.")] = Path("site"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Show a site on this machine, at http://127.0.0.1:PORT, until you stop it."""
    if not (site / "index.html").is_file():
        raise UserError(f"{str(site)!r} holds no site: make it with qbench leaderboard build")
    handler = partial(_Quiet, directory=str(site))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used ({error.strerror}): choose another, --port 0 a free one"
        ) from error
    with server:
        typer.echo(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C stops it)")
        server.serve_forever()


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files, and says nothing of each."""

    def log_message(self, *arguments: object) -> None:
        """Nothing."""
