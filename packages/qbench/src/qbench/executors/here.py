"""Blocks in this process, one after another."""

from collections.abc import Callable, Iterable, Iterator

from filelock import Timeout

from qbench.activity import reason_of
from qbench.block import Block, Setting, keep_freed_memory, run_block
from qbench.errors import UserError
from qbench.executors.dispatch import Busy, Done, Event, Failed, dispatch
from qbench.trial import Result, RunFolder


def run_blocks(
    folder: RunFolder,
    blocks: Iterable[Block],
    setting: Setting | None = None,
    on_progress: Callable[[Block, float], None] = lambda block, fraction: None,
    on_failure: Callable[[Block, str], None] = lambda block, reason: None,
) -> Iterator[tuple[Block, list[Result]]]:
    """Run blocks and write their results; yields each block with the results that it added.

    ``on_progress`` is called with the fraction of a block that is done, ``on_failure`` with the
    reason where one failed; the others are run all the same.
    """
    return dispatch(_Here(folder, setting or Setting(), on_progress), blocks, on_failure)


class _Here:
    """The pool of one worker, which is this process."""

    size = 1

    def __init__(
        self, folder: RunFolder, setting: Setting, on_progress: Callable[[Block, float], None]
    ) -> None:
        self._folder, self._setting, self._on_progress = folder, setting, on_progress
        self._next: list[tuple[Block, bool]] = []
        keep_freed_memory()

    def submit(self, block: Block, *, wait: bool) -> None:
        self._next.append((block, wait))

    def events(self) -> Iterator[Event]:
        while self._next:
            block, wait = self._next.pop()
            event = attempt(self._folder, block, self._setting, self._on_progress, wait=wait)
            if isinstance(event, Done):
                self._on_progress(block, 1.0)
            yield event


def attempt(
    folder: RunFolder,
    block: Block,
    setting: Setting,
    on_progress: Callable[[Block, float], None],
    *,
    wait: bool,
) -> Event:
    """Run a block and say what became of it.

    Raises ``UserError`` and ``OSError``, which the next block would meet as well.
    """
    try:
        results = run_block(
            folder, block, setting, lambda fraction: on_progress(block, fraction), wait=wait
        )
    except Timeout:
        return Busy(block)
    except (UserError, OSError):
        raise
    except Exception as error:
        return Failed(block, reason_of(error))
    return Done(block, results)
