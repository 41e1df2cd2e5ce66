"""Blocks one after another, each by all the processes that ``torchrun`` has started together."""

from collections.abc import Callable, Iterable, Iterator

from qbench.activity import reason_of
from qbench.block import Block, Setting, follow, keep_freed_memory
from qbench.distributed import join, leave, told
from qbench.errors import UserError
from qbench.executors.dispatch import Done, Failed
from qbench.executors.here import attempt
from qbench.table import Table
from qbench.trial import Result, RunFolder


def run_together(
    folder: RunFolder,
    blocks: Iterable[Block],
    setting: Setting | None = None,
    on_progress: Callable[[Block, float], None] = lambda block, fraction: None,
    on_failure: Callable[[Block, str], None] = lambda block, reason: None,
) -> Iterator[tuple[Block, list[Result]]]:
    """Run blocks as the first of torchrun's processes, while the others :func:`take_part`.

    It alone holds locks, reads and writes. A block that fails ends the run, for the processes may
    then wait for one another; what is recorded stays, and the block goes on from its checkpoint.
    """
    setting = setting or Setting()
    keep_freed_memory()
    join(setting.device)
    for block in blocks:
        event = attempt(folder, block, setting, on_progress, wait=True)
        if isinstance(event, Failed):
            on_failure(block, event.reason)
            return
        if isinstance(event, Done):
            on_progress(block, 1.0)
            yield block, event.results
    told(None)
    leave()


def take_part(table: Table, setting: Setting) -> None:
    """Train what the first of torchrun's processes trains, until it has no more."""
    keep_freed_memory()
    try:
        join(setting.device)
        follow(table, setting)
        leave()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"a process beside the first: {reason_of(error)}") from error
