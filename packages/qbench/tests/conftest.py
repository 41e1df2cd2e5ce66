"""What several test files share: a table that was really run, a server that can be killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.report.numbers import Report, build_report
from qbench.table import load_table
from qbench.trial import Result, RunFolder


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--kills N``: how many random instants a run is killed at; 20 take minutes."""
    parser.addoption("--kills", type=int, default=5, help="random instants to kill a run at")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """Random instants to kill a run at."""
    return int(request.config.getoption("--kills"))


@pytest.fixture(scope="session")
def run_table(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Report, list[Result]]]:
    """Run the cells of a table and report them: the report, and the results behind it."""

    def run(table_id: str, seeds: int, **chosen) -> tuple[Report, list[Result]]:
        table = load_table(table_id)
        folder = RunFolder(tmp_path_factory.mktemp(table_id), table, create=True)
        cells = list(table.cells(**chosen))
        for _ in run_blocks(folder, plan(folder, cells, seeds)):
            pass
        results = list(folder.results(cells))
        return build_report(table, cells, results), results

    return run


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder with MNIST, Fashion-MNIST and CIFAR-10, where the environment names one."""
    root = os.environ.get("QBENCH_DATA")
    if not root:
        pytest.skip("QBENCH_DATA names no folder with real images")
    return Path(root)


class MlflowServer:
    """A server on a free port of this machine, with its store in ``home``.

    Killed and started again it has the same address and the same store.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.store = f"sqlite:///{home / 'server.db'}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "MlflowServer":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self, largest: int | None = None) -> None:
        """Start it, able to write no file above ``largest`` bytes, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", self.store, "--default-artifact-root", str(self._home)]
        if largest is not None:
            command = ["prlimit", f"--fsize={largest}", *command]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)  # noqa: S310 - our own
                return
            except OSError:
                assert self._process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)

    def pause(self, seconds: float) -> None:
        """Let it answer nothing for some time, and then go on with what it was asked."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it and all that it started at once, as a power cut does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)
            self._process = None


@pytest.fixture(scope="session")
def mlflow_server() -> type[MlflowServer]:
    """A server in a folder: ``with mlflow_server(home) as server``."""
    return MlflowServer


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real browser; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page opened from its file or address, with all that it asked for and complained about."""

    def __init__(self, browser: Browser, where: Path | str, **options) -> None:
        self.page: Page = browser.new_page(**options)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.route("**/*", self._watch)
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(where.as_uri() if isinstance(where, Path) else where)

    def _watch(self, route: Route) -> None:
        self.requests.append(route.request.url)
        if route.request.url.startswith(("file:", "http://127.0.0.1:")):
            route.continue_()
        else:
            route.abort()


@pytest.fixture
def visit(browser: Browser) -> Callable[..., Visit]:
    """Open a page in a real browser: ``visit(path, viewport=…)``."""
    return partial(Visit, browser)
