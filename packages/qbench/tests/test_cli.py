"""The command line, as a user meets it: in a process of its own."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import mlflow
import pytest

from qbench import __version__
from qbench.table import table_names


def qbench(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qbench", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "140", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reduced run of two datasets."""
    folder = tmp_path_factory.mktemp("runs")
    done = qbench(
        "run",
        "uci",
        "--quick",
        "--only",
        "dataset=wine,iris",
        "--only",
        "model=linear,rank1",
        "--out",
        str(folder),
    )
    assert done.returncode == 0, done.stderr
    assert "12 trials run" in done.stdout
    assert "REDUCED RUN" in done.stdout
    return folder


def test_list_names_every_table_and_answers_at_once(tmp_path: Path) -> None:
    # As installed: with compiled modules, wherever the environment of the tests forbids them.
    kept = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}

    def processor_seconds(*arguments: str) -> tuple[float, str]:
        """Of the processor, for how long it takes on the clock depends on what else runs."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *arguments], env=kept, capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout

    listed, floor = [], []
    for _ in range(4):  # the first compiles
        seconds, stdout = processor_seconds("-m", "qbench", "list")
        listed.append(seconds)
        assert all(name in stdout for name in table_names())
        floor.append(processor_seconds("-c", "import pydantic, rich.table, typer, yaml")[0])
    # 4 times its libraries on an AMD EPYC (0.55 s to 0.14); torch alone would be 15 times.
    assert min(listed) < 6 * min(floor)


def test_list_as_json_has_the_axes() -> None:
    tables = {table["table"]: table for table in json.loads(qbench("list", "--json").stdout)}
    assert list(tables) == table_names()
    uci = tables["uci"]
    assert uci["trials"] == 640
    assert uci["axes"]["scaling"] == ["maxabs", "raw", "minmax", "standard"]


def test_list_status_and_report_import_no_mlflow_and_list_no_torch(out: Path) -> None:
    code = (
        "import sys; from qbench.cli import app; app(['list'], standalone_mode=False); "
        "sys.exit(str({'torch', 'mlflow', 'sklearn'} & set(sys.modules)) if "
        "{'torch', 'mlflow', 'sklearn'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = ["--out", str(out)]
    for arguments in (["status", *there], ["report", "uci", "--quick", *there]):
        code = (
            "import sys; sys.modules['mlflow'] = None; from qbench.cli import app; "
            f"app({arguments!r}, standalone_mode=False)"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "uci" in done.stdout or "four small datasets" in done.stdout


def test_version_and_the_entry_point() -> None:
    assert qbench("--version").stdout == f"qbench {__version__}\n"
    script = Path(sys.executable).with_name("qbench")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"qbench {__version__}\n"


@pytest.mark.parametrize("command", ["list", "run", "report"])
def test_help_shows_a_real_example(command: str) -> None:
    done = qbench(command, "--help")
    assert f"Example: qbench {command}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "ucci"], "unknown table 'ucci': did you mean 'uci'? Allowed: "),
        (["report", "xxor"], "unknown table 'xxor': did you mean 'xor'?"),
        (["rn", "uci"], "No such command 'rn'"),
        (["run", "uci", "--seed", "3"], "No such option: --seed"),
        (["run", "uci", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["run", "uci", "--device", "tpu"], "Invalid value for '--device'"),
        (
            ["run", "uci", "--only", "dataset=whine"],
            "unknown dataset 'whine': did you mean 'wine'?",
        ),
        (["run", "uci", "--only", "datset=wine"], "unknown axis 'datset': did you mean 'dataset'?"),
        (["run", "uci", "--only", "wine"], "'wine' is not of the form AXIS=VALUE"),
        (["run", "uci", "--axis", "scaling=max"], "unknown scaling 'max'"),
        (["run", "uci", "--axis", "dataset=wine"], "use --only dataset=wine for the grid"),
        (["run", "uci", "--out", "/dev/null/runs"], "cannot write to '/dev/null/runs'"),
        (
            ["run", "uci", "--budget"],
            "table uci has no recipe for --budget: combined, neurons, relinear, upgrade have one. "
            "Leave it out, or give --quick",
        ),
        (
            ["run", "neurons", "--budget", "--only", "dataset=digits32"],
            "table neurons has nothing of this in its recipe for --budget: leave that out, and it "
            "is run in full",
        ),
        (
            ["report", "relinear", "--quick", "--budget"],
            "--quick and --budget are two kinds of reduced runs: give one",
        ),
        (
            ["report", "relinear", "--budget", "--out", "nowhere"],
            "no reduced results of table 'relinear' in 'nowhere': make them with qbench run "
            "relinear --budget --out nowhere",
        ),
        (["report", "uci", "--out", "nowhere"], "no results of table 'uci' in 'nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = qbench(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("qbench: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_leaves_results_a_report_figures_and_a_store(out: Path) -> None:
    assert len(list((out / "uci").glob("*/result.json"))) == 12
    assert (out / "mlflow.db").stat().st_size > 0
    folder = out / "uci"
    assert (folder / "report-quick.html").read_text().startswith("<!doctype html>")
    assert json.loads((folder / "report-quick.json").read_text())["reduced"] == "quick"
    assert {path.suffix for path in (folder / "figures-quick").iterdir()} == {".png", ".svg"}
    assert not (folder / "report.html").exists()


def test_a_second_run_finds_everything_there(out: Path) -> None:
    done = qbench(
        "run",
        "uci",
        "--quick",
        "--only",
        "dataset=wine,iris",
        "--only",
        "model=linear,rank1",
        "--out",
        str(out),
    )
    assert done.returncode == 0
    assert "0 trials run" in done.stdout
    assert "12 were there already" in done.stdout


def test_the_report_as_json_is_the_file(out: Path) -> None:
    done = qbench("report", "uci", "--quick", "--json", "--out", str(out))
    assert json.loads(done.stdout) == json.loads((out / "uci" / "report-quick.json").read_text())


def test_a_full_report_is_not_made_from_a_reduced_run(out: Path) -> None:
    done = qbench("report", "uci", "--out", str(out))
    assert done.returncode == 2
    assert "no results of table 'uci'" in done.stderr
    assert "--quick" in done.stderr


ON_A_BUDGET = """
import sys
import qbench.cli, qbench.commands_records, qbench.commands_run
from qbench.table import parse_table
table = parse_table(sys.argv.pop(1), "uci.yaml")
for module in (qbench.cli, qbench.commands_records, qbench.commands_run):
    module.load_table = lambda name: table
qbench.cli.main()
"""


@pytest.mark.filterwarnings("default")  # MLflow and what it imports warn as they like
def test_a_run_on_a_budget_says_so_everywhere_and_stands_beside_the_quick_one(
    tmp_path: Path,
) -> None:
    uci = (resources.files("qbench") / "tables" / "uci.yaml").read_text(encoding="utf-8")
    less = "budget: {seeds: 1, recipe: {epochs: 3}, where: {dataset: [iris]}}\n"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ON_A_BUDGET, uci + less, *arguments, "--out", "runs"],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "140", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    only = ("--only", "model=linear,rank1")
    assert "12 trials run" in run("run", "uci", "--quick", *only, "--only", "dataset=iris,wine")
    shown = run("run", "uci", "--budget", *only)
    assert "2 trials run" in shown  # of the one dataset that it is for
    assert "REDUCED RUN: 3 steps instead of 1000 and 1 seed instead of 10" in shown
    folder = tmp_path / "runs" / "uci"
    for name, kind in (("report-quick.json", "quick"), ("report-budget.json", "budget")):
        report = json.loads((folder / name).read_text(encoding="utf-8"))
        assert (report["reduced"], report["command"].endswith(f" --{kind}")) == (kind, True)
    assert not (folder / "report.json").exists()
    assert (folder / "figures-budget").is_dir()
    assert "REDUCED RUN" in (folder / "report-budget.html").read_text(encoding="utf-8")
    status = run("status", "uci")
    assert "uci --quick" in status
    assert "uci --budget" in status
    runs = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db").search_runs(
        ["1"], "tags.`quadnets.reduced` = 'budget'"
    )
    assert len(runs) == 2
    assert {run.info.run_name.split()[-1] for run in runs} == {"budget"}


def test_a_report_that_cannot_be_written_is_one_sentence(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    (folder / "uci" / "report-quick.json").unlink()
    (folder / "uci" / "report-quick.json").mkdir()
    done = qbench("report", "uci", "--quick", "--out", str(folder))
    assert done.returncode == 2
    assert done.stderr.startswith("qbench: Is a directory (")
    assert "repair that, run again" in done.stderr
    assert done.stderr.count("\n") == 1


def test_compiling_without_a_compiler_is_one_sentence_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbench", "run", "uci", "--quick", "--compile", "--out", tmp_path],
        # a cache of its own: what was compiled before needs no compiler
        env={
            **os.environ,
            "CXX": "/nowhere/c++",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]  # torch may have logged that there is no CUDA
    assert said.startswith("qbench: --compile: torch cannot compile here (No working C++ compiler ")
    assert said.endswith("'/nowhere/c++')); leave it out, or install a C++ compiler")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("result.json")) == []


def test_what_is_printed_to_go_on_is_the_command_that_was_stopped(tmp_path: Path) -> None:
    arguments = ["run", "uci", "--only", "dataset=wine,iris", "--seeds", "1", "--out", "my runs"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qbench", *arguments],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # what starts the tests may ignore Ctrl-C, as a shell does for what runs in the background
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("result.json")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    _, found, command = errors.partition("To go on: ")
    assert found
    assert shlex.split(command) == ["qbench", *arguments]


def test_completion_offers_tables() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("qbench")],
        env={
            **os.environ,
            "_QBENCH_COMPLETE": "complete_bash",
            "COMP_WORDS": "qbench run u",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [name for name in table_names() if name.startswith("u")]
