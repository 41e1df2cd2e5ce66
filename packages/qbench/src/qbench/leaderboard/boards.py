"""The boards, and the datasets that each compares on."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qbench.errors import UserError, unknown


@dataclass(frozen=True)
class Board:
    """What entries are compared on: each of its ``datasets`` is ranked by itself.

    ``title`` is what it is called, ``about`` what a reader should know.

    >>> BOARDS["cifar10"].datasets
    ('cifar10',)
    """

    title: str
    datasets: tuple[str, ...]
    about: str


BOARDS: Mapping[str, Board] = MappingProxyType(
    {
        "mnist": Board("MNIST", ("mnist",), "Handwritten digits, 10 000 test images."),
        "fmnist": Board("Fashion-MNIST", ("fmnist",), "Articles of clothing, 10 000 test images."),
        "cifar10": Board("CIFAR-10", ("cifar10",), "Photographs, 10 000 test images."),
        "uci": Board(
            "UCI",
            ("iris", "wine", "wisconsin", "digits", "digits32"),
            "Small tables, of which each seed draws its own test part; and the digits as images of "
            "32×32, with a fixed test part.",
        ),
    }
)
"""Every board by name."""


def all_datasets() -> list[str]:
    """The datasets of all boards, in their order."""
    return [dataset for board in BOARDS.values() for dataset in board.datasets]


def board_of(dataset: str) -> str:
    """The board that a dataset belongs to.

    Raises ``UserError`` for a dataset of no board.

    >>> board_of("wine")
    'uci'
    """
    for name, board in BOARDS.items():
        if dataset in board.datasets:
            return name
    raise UserError(
        f"{dataset} belongs to no board: the leaderboard compares on {', '.join(all_datasets())}"
    )


def get_board(name: str) -> Board:
    """The board of that name.

    Raises ``UserError`` naming near matches for another name.
    """
    if name not in BOARDS:
        raise unknown("board", name, BOARDS)
    return BOARDS[name]
