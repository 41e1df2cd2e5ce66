"""``qbench data list | fetch | check``: what data there is, and whether it is whole."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from qbench.catalogue import DATASETS, DatasetInfo
from qbench.errors import UserError, unknown
from qbench.report.wording import listed

if TYPE_CHECKING:
    from qbench.data.root import Fault

# torch and torchvision are imported where images are decoded or downloaded: `data list` reads files

data_app = typer.Typer(
    help="The datasets: what there is, fetching images, checking them.", no_args_is_help=True
)

_FOLDER = "digits32"  # with scikit-learn, and for readers of images also written as a folder


def _known() -> list[str]:
    """The datasets that have samples."""
    return [name for name, info in DATASETS.items() if info.train]


def _complete_dataset(incomplete: str) -> list[str]:
    return [name for name in _known() if name.startswith(incomplete)]


Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME",
        help="Datasets, as qbench data list shows them; by default all that lie in files.",
        show_default=False,
        autocompletion=_complete_dataset,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of image data; by default QBENCH_DATA, or ~/.cache/quadnets/data."),
]


@data_app.command("list", epilog="Example: qbench data list --json")
def list_datasets(
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the datasets: what they are, where they come from, and whether they are whole."""
    from qbench.data.root import data_root

    root = data_root(data)
    rows = [_described(name, DATASETS[name], root) for name in _known()]
    if as_json:
        typer.echo(json.dumps({"root": str(root), "datasets": rows}, indent=1))
        return
    grid = Grid()
    grid.add_column("dataset", no_wrap=True)
    grid.add_column("what it is")
    grid.add_column("train", justify="right", no_wrap=True)
    grid.add_column("test", justify="right", no_wrap=True)
    grid.add_column("state", min_width=23, overflow="fold")  # the longest name of a file
    for row in rows:
        info = DATASETS[str(row["dataset"])]
        shape = "×".join(map(str, info.shape)) + (" features" if len(info.shape) == 1 else "")
        state = f"{row['state']}: {row['file']}" if row["file"] else str(row["state"])
        grid.add_row(
            str(row["dataset"]),
            f"{info.words}: {info.about}\n[dim]{shape}, {info.classes} classes[/dim]",
            f"{info.train:,}",
            f"{info.test:,}" if info.test else "[dim]by seed[/dim]",
            f"{state}\n[dim]from torchvision[/dim]" if info.torchvision else state,
        )
    console = Console()
    console.print(grid)
    there = "" if root.is_dir() else ", a folder that is not there"
    console.print(f"Image data: {root}{there}", highlight=False, soft_wrap=True, markup=False)


def _described(name: str, info: DatasetInfo, root: Path) -> dict[str, object]:
    fault = _fault(name, root, decode=False)
    return {
        "dataset": name,
        "name": info.words,
        "about": info.about,
        "train": info.train,
        "test": info.test or None,
        "shape": info.shape,
        "classes": info.classes,
        "source": info.source,
        "folder": info.folder or None,
        "state": fault.state if fault else _state_without_fault(name, root),
        "file": fault.file if fault else None,
    }


def _state_without_fault(name: str, root: Path) -> str:
    info = DATASETS[name]
    if info.torchvision:
        return "whole"
    written = info.folder and (root / info.folder).is_dir()
    return f"with {info.source}" + (f", and in {info.folder}/" if written else "")


def _fault(name: str, root: Path, *, decode: bool = True) -> "Fault | None":
    """What is wrong with a dataset; an image folder that is not there is not wrong."""
    from qbench.data.root import downloadable, find_fault

    if name in downloadable():
        return find_fault(name, root)
    if decode and name == _FOLDER and (root / DATASETS[name].folder).exists():
        from qbench.data.image_folder import find_image_fault

        return find_image_fault(root)
    return None


@data_app.command(epilog="Example: qbench data check mnist cifar10 --data /data")
def check(names: Names = None, data: Data = None) -> None:
    """Compare every file of datasets with what was published; exit status 2 where one differs."""
    from qbench.data.root import data_root, fetch_command, not_whole

    chosen = _chosen(names)
    root = data_root(data)
    faults: dict[str, Fault] = {}
    for name in chosen:
        if fault := _fault(name, root):
            faults[name] = fault
            typer.echo(f"{name}: {fault.words}")
        else:
            info = DATASETS[name]
            states = [] if info.torchvision else [f"with {info.source}"]
            if info.folder and (root / info.folder).exists():
                states.append(f"whole in {root / info.folder}")
            typer.echo(f"{name}: {', '.join(states)}")
    if len(faults) == 1:
        ((name, fault),) = faults.items()
        raise not_whole(name, fault)
    if faults:
        raise UserError(
            f"{listed(faults)} are not whole under {root}: run {fetch_command(faults, root)}, or "
            "name another folder with --data or QBENCH_DATA"
        )


@data_app.command(epilog="Example: qbench data fetch mnist --data /data")
def fetch(names: Names = None, data: Data = None) -> None:
    """Download what is not whole, by torchvision; write digits32 as a folder of PNGs."""
    from qbench.data.root import data_root, downloadable
    from qbench.data.root import fetch as fetch_files

    chosen = _chosen(names)
    root = data_root(data)
    failed: dict[str, UserError] = {}
    for name in chosen:
        info = DATASETS[name]
        where = root / info.folder
        try:
            if name in downloadable():
                new = fetch_files(name, root, progress=sys.stderr.isatty())
                done = "downloaded to" if new else "was whole in"
            elif name == _FOLDER:
                from qbench.data.image_folder import write_image_folder

                done = "written to" if write_image_folder(root) else "was whole in"
            else:
                typer.echo(f"{name}: with {info.source}, nothing to fetch")
                continue
        except UserError as error:
            failed[name] = error
            typer.echo(f"{name}: not fetched")
        else:
            typer.echo(f"{name}: {done} {where}")
    if len(failed) > 1:
        first = next(iter(failed.values()))
        raise UserError(f"{listed(failed)} were not fetched; the first of them: {first}")
    for only in failed.values():
        raise only


def _chosen(names: Sequence[str] | None) -> list[str]:
    """The names asked for, each once, or all datasets that lie in files."""
    known = _known()
    for name in names or []:
        if name not in known:
            raise unknown("dataset", name, known)
    return list(dict.fromkeys(names or [name for name in known if DATASETS[name].folder]))
