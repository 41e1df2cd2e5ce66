"""What several test files share: a table that was really run."""

from collections.abc import Callable

import pytest

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
