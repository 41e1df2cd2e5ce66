"""One session per package, each in an environment with that package and those below it alone.

``uv run nox`` runs everything that must pass before a change lands; ``nox -l`` lists the sessions.
"""

import shutil
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "types", "qcore", "qzoo", "timm", "qbench", "docs"]
nox.options.error_on_external_run = True

ROOT = Path(__file__).parent
# each package with those below it, in the order of their imports
STACK = ("qcore", "qzoo", "qbench")
TIMM_SAMPLE = (
    *("qresnet20", "qresnet20_rezero", "qresnet10", "cifar_resnet20_rank2"),
    *("diqnn_rank2", "diqnn_conv"),
)
DISTRIBUTIONS = {"qcore": "quadnets-core", "qzoo": "quadnets-zoo", "qbench": "quadnets-bench"}


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint rules, and the direction of imports."""
    session.install("-c", constraints(session), "ruff", "import-linter", "pytest", "pyyaml")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("pytest", "tests")


@nox.session
def types(session: nox.Session) -> None:
    """The type checker, strict, over all three packages."""
    session.run_install(
        "uv",
        "sync",
        "--quiet",
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
        external=True,
    )
    session.run("mypy")


@nox.session
def qcore(session: nox.Session) -> None:
    """quadnets-core alone: torch, and no timm."""
    # numpy, too: torch warns without it, and warnings are errors
    needs = ("hypothesis", "numpy", "onnxruntime", "onnxscript", "safetensors")
    check_package(session, "qcore", *needs, absent=("timm", "qzoo", "qbench"))


@nox.session
def qzoo(session: nox.Session) -> None:
    """quadnets-zoo on quadnets-core with the extra for ONNX, and no mlflow."""
    onnx = ("onnx", "onnxruntime", "onnxscript")
    check_package(session, "qzoo", "hypothesis", *onnx, absent=("mlflow", "qbench"))


@nox.session
def timm(session: nox.Session) -> None:
    """timm's own tests of models, on ours: a sample, or all of them with ``-- --all`` (10 min)."""
    wheels = build_wheels(session, STACK[:2])
    session.install("-c", constraints(session), "pip", "pytest", "pytest-timeout", *wheels)
    version = session.run("python", "-c", "import timm; print(timm.__version__)", silent=True)
    folder = Path(session.create_tmp())
    # its tests are in the source distribution alone
    options = ("--quiet", "--no-deps", "--no-binary=:all:", "--dest", str(folder))
    session.run("python", "-m", "pip", "download", *options, f"timm=={version.strip()}")
    source = folder / f"timm-{version.strip()}"
    shutil.unpack_archive(f"{source}.tar.gz", folder)
    sample = "" if "--all" in session.posargs else ",".join(TIMM_SAMPLE)
    session.run(
        "pytest",
        "-p",
        "timm_plugin",
        "-c",
        f"{source}/pyproject.toml",
        "--disable-warnings",
        f"{source}/tests/test_models.py",
        env={"PYTHONPATH": "packages/qzoo/tests", "QZOO_MODELS": sample},
    )


@nox.session
def qbench(session: nox.Session) -> None:
    """quadnets-bench on both: real MLflow, real files, a real browser."""
    browser = ("playwright", "axe-playwright-python")
    check_package(session, "qbench", "hypothesis", "ray", *browser)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, warnings as errors; its tutorials run, and so does every other example."""
    session.install(
        "-c",
        constraints(session),
        "furo",
        "latex2mathml",
        "myst-parser",
        "pytest",
        "sphinx",
        "sphinx-gallery",
        *build_wheels(session, STACK),
    )
    threads = {"OMP_NUM_THREADS": "2"}
    session.run("pytest", "docs", env=threads)
    session.run("sphinx-build", "-W", "--keep-going", "-q", "docs", "docs/_build", env=threads)


@nox.session(name="release-check", default=False)
def release_check(session: nox.Session) -> None:
    """What would be released: built, checked, installed where there is nothing else, and run."""
    folder = Path(session.create_tmp()) / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    for name in STACK:
        package = ("--package", DISTRIBUTIONS[name])
        # the wheel is built from the source distribution, which so proves to be whole
        build = ("uv", "build", "--quiet", *package, "--out-dir", str(folder))
        session.run_install(*build, external=True)
    files = sorted(str(path) for path in folder.glob("*.[tw]*"))
    session.install("-c", constraints(session), "twine")
    session.run("twine", "check", "--strict", *files)
    session.install("-c", constraints(session), *[f for f in files if f.endswith(".whl")])
    session.run("python", "-c", README_RUNS, *[f"packages/{name}/README.md" for name in STACK])
    session.run("python", "-c", README_RUNS, "README.md")
    out = session.create_tmp() + "/runs"
    session.run("qbench", "run", "uci", "--quick", "--only", "dataset=iris", "--out", out)
    session.run("qbench", "report", "uci", "--quick", "--out", out)
    session.run("qzoo", "info", "qresnet20")


@nox.session(default=False)
def lowest(session: nox.Session) -> None:
    """The lowest versions that the packages allow really work: a smoke test of each."""
    pins = session.create_tmp() + "/lowest.txt"
    projects = [f"packages/{name}/pyproject.toml" for name in STACK]
    session.run_install(
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--resolution",
        "lowest-direct",
        "--no-header",
        "--no-annotate",
        *[f"--no-emit-package={name}" for name in DISTRIBUTIONS.values()],
        *projects,
        "-o",
        pins,
        external=True,
    )
    # Triton of that age imports setuptools, and does not say that it needs it
    session.install("-r", pins, "pytest", "hypothesis", "setuptools")
    session.install("--no-deps", *build_wheels(session, STACK))
    # every example of every docstring, then a table from the command line to its report
    session.run("pytest", "-o", "filterwarnings=default", "--doctest-modules", "--pyargs", *STACK)
    out = session.create_tmp() + "/runs"
    session.run("qbench", "run", "xor", "--out", out)
    session.run("qbench", "run", "uci", "--quick", "--only", "dataset=iris", "--out", out)
    session.run("python", "-c", RECORDED, out, "xor=1", "uci=33")


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of all that the packages depend on: PyPI is asked, over the network."""
    session.install("pip-audit")
    session.run("pip-audit", "--strict", "--disable-pip", "--no-deps", "-r", constraints(session))


def constraints(session: nox.Session) -> str:
    """A file with the workspace's resolved versions, which every session installs under."""
    path = session.create_tmp() + "/constraints.txt"
    session.run_install(
        "uv",
        "export",
        "--quiet",
        "--all-groups",
        "--no-hashes",
        "--no-emit-workspace",
        "--no-annotate",
        "--no-header",
        "-o",
        path,
        external=True,
        silent=True,
    )
    return path


def build_wheels(session: nox.Session, names: tuple[str, ...]) -> list[str]:
    """Build the wheels of these packages and return their paths."""
    folder = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    for name in names:
        session.run_install(
            "uv",
            "build",
            "--quiet",
            "--wheel",
            "--package",
            DISTRIBUTIONS[name],
            "--out-dir",
            str(folder),
            external=True,
        )
    return sorted(str(path) for path in folder.glob("*.whl"))


def check_package(
    session: nox.Session, package: str, *needs: str, absent: tuple[str, ...] = ()
) -> None:
    """Test a package's wheel with those below it, and prove that nothing of ``absent`` is there.

    The tests run against the installed wheels, and so do the examples in the docstrings.
    """
    below = STACK[: STACK.index(package) + 1]
    wheels = build_wheels(session, below)
    session.install(
        "-c", constraints(session), "pytest", "pytest-timeout", "pytest-xdist", *needs, *wheels
    )
    for name in absent:
        session.run("python", "-c", PROOF, name, silent=True)
    tests = f"packages/{package}/tests"
    # a process for each core, with one thread each; neighbouring tests mostly stay together and
    # share what they set up
    session.run(
        "pytest",
        "--doctest-modules",
        "--numprocesses=auto",
        "--dist=worksteal",
        "--timeout=600",  # seconds of one test: one that waits for ever says where
        "--durations=20",
        "--pyargs",
        package,
        tests,
        *session.posargs,
        env={
            "OMP_NUM_THREADS": "1",
            # hundreds of processes start, which would compile MLflow anew each (7 s, not 4) where
            # this is set
            "PYTHONDONTWRITEBYTECODE": "",
            # Ray keeps its files in no virtual environment, where nox puts all temporary ones
            "RAY_TMPDIR": tempfile.gettempdir(),
            # its workers give way to everything else: beside other tests they would take minutes
            "RAY_worker_niceness": "0",
        },
    )


README_RUNS = """
import os, re, sys, tempfile
from pathlib import Path
texts = [Path(name).read_text(encoding="utf-8") for name in sys.argv[1:]]
os.chdir(tempfile.mkdtemp())
for text in texts:
    names = {}
    for code in re.findall(r"```python\\n(.*?)```", text, re.DOTALL):
        exec(code, names)
"""

PROOF = """
import importlib.util, sys
name = sys.argv[1]
sys.exit(f"{name} can be imported here" if importlib.util.find_spec(name) else 0)
"""

RECORDED = """
import sys
from mlflow import MlflowClient
out, *expected = sys.argv[1:]
client = MlflowClient(f"sqlite:///{out}/mlflow.db")
for table, _, trials in (pair.partition("=") for pair in expected):
    experiment = client.get_experiment_by_name(table)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    complete = sum(run.data.tags.get("quadnets.complete") == "true" for run in runs)
    if complete != int(trials):
        sys.exit(f"MLflow has {complete} of the {trials} trials of {table}")
"""
