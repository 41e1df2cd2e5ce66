"""The command line: ``qzoo list | info | download | verify | export | bundle | publish | run``.

Every command calls the library and prints.
"""

import io
import json
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import qcore
from qzoo.architectures import ARCHITECTURES, DIQNNS, get_architecture
from qzoo.bundle import bundle
from qzoo.card import facts
from qzoo.cost import cost, rounded
from qzoo.errors import WeightsError
from qzoo.evaluation import verify
from qzoo.export import export
from qzoo.hub import location, weights_file
from qzoo.index import FOLDER, get_provenance, weights_of
from qzoo.publish import publish

app = typer.Typer(
    help="Quadratic networks for timm.", no_args_is_help=True, pretty_exceptions_enable=False
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Weights = Annotated[str, typer.Argument(help="Weights, as qzoo list shows them.")]
Folder = Annotated[
    Path, typer.Argument(help="A folder with model.safetensors and provenance.json.")
]
Data = Annotated[Path | None, typer.Option("--data", help="The folder that holds the datasets.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Replace other weights that have the name.")
]


@contextmanager
def _one_sentence() -> Iterator[None]:
    """End a user's mistake with one line on standard error and exit status 2."""
    try:
        yield
    except (WeightsError, ValueError, ModuleNotFoundError) as error:
        message = str(error)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        message = f"{error.strerror or error}{where}"
    else:
        return
    typer.echo(f"qzoo: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qzoo {version('quadnets-zoo')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Quadratic networks for timm."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ? for letters that a terminal does not have


@app.command("list", epilog='Example: qzoo list "*_rank*"')
@_one_sentence()
def list_models(
    pattern: Annotated[str, typer.Argument(help="Only names that match, * for anything.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the models: parameters, multiply-adds for an image of its size, and weights."""
    names = [name for name in ARCHITECTURES if fnmatch(name, pattern)]
    if not names:
        get_architecture(pattern)
    rows = [_described(name) for name in names]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    grid = Table()
    grid.add_column("model", no_wrap=True)
    grid.add_column("parameters", justify="right")
    grid.add_column("multiply-adds", justify="right")
    grid.add_column("weights")
    for row in rows:
        grid.add_row(
            row["model"],
            f"{row['parameters']:,}",
            rounded(row["multiply_adds"]),
            "\n".join(_weights(row["model"])) or "-",
        )
    Console().print(grid)


@app.command(epilog="Example: qzoo info qresnet20")
@_one_sentence()
def info(
    name: Annotated[str, typer.Argument(help="A model or weights; see qzoo list.")],
    as_json: AsJson = False,
) -> None:
    """Show one model, what it costs, how to make it; or one file of weights, where it is from."""
    code = "import qzoo, timm; timm.create_model"
    if "." in name:
        row = get_provenance(name)
        record = {"name": row.name, "location": location(row), **row.model_dump(mode="json")}
        shown = {"weights": row.name, **dict(facts(row)), "location": location(row)}
        shown["make it"] = f'{code}("{row.name}", pretrained=True)'
    else:
        record = _described(name)
        shown = {
            **record,
            "weights": "\n".join(_weights(name)) or "none yet",
            "parameters": f"{record['parameters']:,}",
            "multiply_adds": f"{record['multiply_adds']:,}",
            "make it": f'{code}("{name}")',
        }
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    grid = Table(show_header=False, box=None)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in shown.items():
        grid.add_row(key.replace("_", " "), Text(str(value)))
    Console().print(grid)


@app.command(epilog="Example: qzoo download qresnet20.relinear_c10")
@_one_sentence()
def download(
    names: Annotated[list[str], typer.Argument(help="Weights, as qzoo list shows them.")],
    cache_dir: Annotated[
        Path | None, typer.Option(help="The Hub's cache; by default where HF_HOME says.")
    ] = None,
) -> None:
    """Get weights for a time without a network; print where each file lies."""
    for row in [get_provenance(name) for name in names]:
        typer.echo(weights_file(row, cache_dir))


@app.command("verify", epilog="Example: qzoo verify qresnet20.relinear_c10 --data data")
@_one_sentence()
def verify_weights(
    name: Weights,
    data: Annotated[Path, typer.Option("--data", help="The folder that holds the datasets.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 256,
    device: Annotated[str | None, typer.Option(help="Where to compute, such as cuda.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 0,
    download_data: Annotated[
        bool, typer.Option("--download", help="Let torchvision download the dataset.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of weights; exit with 1 where the index says otherwise by over 0.05."""
    found = verify(
        name,
        data,
        batch_size=batch_size,
        device=device,
        workers=workers,
        download=download_data,
        progress=sys.stderr.isatty(),
    )
    known, measured = found
    if as_json:
        record = {
            "index": known.model_dump(),
            "measured": measured.model_dump(),
            "holds": found.holds,
        }
        typer.echo(json.dumps(record, indent=1))
    else:
        typer.echo(
            f"{name}: {measured.top1:.2f} % of {measured.images} images of {measured.dataset} "
            f"({measured.split}); the index says {known.top1:.2f} % of {known.images}: "
            + ("it holds" if found.holds else f"it does not hold ({found.difference:+.2f} points)")
        )
    if not found.holds:
        raise typer.Exit(1)


@app.command("export", epilog="Example: qzoo export qresnet20.relinear_c10 qresnet20.onnx")
@_one_sentence()
def export_onnx(
    name: Weights,
    path: Annotated[Path, typer.Argument(help="The ONNX file.")],
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Of a model's name: random weights.")
    ] = False,
) -> None:
    """Write a network as ONNX, and compare its outputs in onnxruntime with torch's."""
    if ":" not in name:  # hf-hub: and local-dir: are timm's
        get_architecture(name.split(".")[0])
    distance = export(timm.create_model(name, pretrained=not untrained), path)
    typer.echo(f"{path}: logits as in torch to {distance:.1e} of the largest")


@app.command("bundle", epilog="Example: qzoo bundle folder --dtype float16 --data data")
@_one_sentence()
def bundle_weights(
    folder: Folder,
    into: Annotated[
        Path, typer.Option(help="The folder with index.json.", show_default="the package's own")
    ] = FOLDER,
    dtype: Annotated[
        Literal["float16", "bfloat16"] | None,
        typer.Option(help="Store in half the bytes, if as accurate; needs --data."),
    ] = None,
    data: Data = None,
    hub_only: Annotated[
        bool, typer.Option("--hub-only", help="Only the index; the file is on the Hub.")
    ] = False,
    replace: Replace = False,
) -> None:
    """Take a folder's weights into the package and its index."""
    row = bundle(folder, into=into, dtype=dtype, root=data, hub_only=hub_only, replace=replace)
    place = "the index, its file on the Hub" if hub_only else into
    typer.echo(f"{row.name}: {row.size:,} bytes in {place}")


@app.command("publish", epilog="Example: qzoo publish folder --dry-run")
@_one_sentence()
def publish_weights(
    folder: Folder,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the difference to what is there.")
    ] = False,
    replace: Replace = False,
) -> None:
    """Write config.json and the model card into a folder, and push it to the Hub."""
    found = publish(folder, dry_run=dry_run, replace=replace)
    if found.changes is None:
        typer.echo(
            f"{folder} is ready for {found.repository}, and nothing was pushed, for there is no "
            "token: `hf auth login`, or set HF_TOKEN, and publish it again"
        )
        return
    for change in found.changes:
        typer.echo(f"{change.kind:>7}  {change.path}")
        if dry_run and change.difference:
            typer.echo(change.difference)
    changed = any(change.kind != "same" for change in found.changes)
    done = "would be pushed to" if dry_run else "pushed to"
    typer.echo(
        f"{done} {found.repository}" if changed else f"{found.repository} has it all already"
    )


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
        with _one_sentence():
            raise ValueError(
                f"{script} is no file: give the path of a script, such as a copy of timm's train.py"
            )
    sys.argv = [str(script), *context.args]
    sys.path.insert(0, str(script.resolve().parent))  # as Python does for a script
    runpy.run_path(str(script), run_name="__main__")


def _described(name: str) -> dict[str, Any]:
    """A model, for people and for JSON."""
    row = get_architecture(name)
    head = row.get("head", "linear")
    if name in DIQNNS:
        channels, kernel, stride = row.get("convolution", (0, 0, 0))
        shown = f"{channels} channels, kernel {kernel}, stride {stride}" if channels else "none"
        trunk: dict[str, Any] = {"convolution": shown}
    else:
        neuron = qcore.get_neuron(row.get("neuron", "quadratic"))
        formula = neuron.normalised_formula if row.get("rms_norm") else neuron.formula
        trunk = {
            "neuron": f"{neuron.name}: {formula}",
            "blocks_per_stage": list(row["depths"]),
            "channels": list(row["widths"]),
            "shortcut": f"option {row['shortcut']}",
            "residual": row.get("residual", "plain"),
        }
    return {
        "model": name,
        **trunk,
        "head": f"{head}, rank {row['rank']}" if head == "low_rank" else head,
        **cost(name)._asdict(),
        "weights": [row.name for row in weights_of(name)],
    }


def _weights(model: str) -> list[str]:
    """The tags of a model's weights, and how accurate they are."""
    found = []
    for row in weights_of(model):
        known = [f"{row.evaluation.top1:.2f} %"] if row.evaluation else []
        known += ["reduced run"] * row.reduced
        found.append(f"{row.tag} ({', '.join(known)})" if known else row.tag)
    return found
