"""The datasets by name: what they are, without loading them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class DatasetInfo:
    """Sizes of a dataset, and where it comes from.

    ``shape`` is that of an input; ``test`` 0 where the test part is split off by the seed.
    ``folder`` and ``torchvision`` say where images lie and which class of torchvision's loads them.
    """

    shape: tuple[int, ...]
    classes: int
    train: int
    test: int = 0
    words: str = ""
    torchvision: str = ""
    folder: str = ""

    @property
    def features(self) -> int:
        """Numbers in an input."""
        product = 1
        for size in self.shape:
            product *= size
        return product


DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {
        "iris": DatasetInfo((4,), 3, 150, words="Iris, with scikit-learn"),
        "wine": DatasetInfo((13,), 3, 178, words="Wine, with scikit-learn"),
        "wisconsin": DatasetInfo((30,), 2, 569, words="Breast cancer Wisconsin, with scikit-learn"),
        "digits": DatasetInfo((64,), 10, 1797, words="Handwritten digits, with scikit-learn"),
        "xor": DatasetInfo((2,), 2, 4, words="The four points of XOR"),
        "line": DatasetInfo((1,), 1, 0, words="No data: networks of one input"),
        "space": DatasetInfo((6,), 1, 0, words="No data: networks of six inputs"),
        "digits32": DatasetInfo(
            (1, 32, 32),
            10,
            1437,
            360,
            words="scikit-learn's digits as images of 32×32, every pixel four by four",
        ),
        "mnist": DatasetInfo(
            (1, 28, 28), 10, 60_000, 10_000, "MNIST", torchvision="MNIST", folder="MNIST/raw"
        ),
        "fmnist": DatasetInfo(
            (1, 28, 28),
            10,
            60_000,
            10_000,
            "Fashion-MNIST",
            torchvision="FashionMNIST",
            folder="FashionMNIST/raw",
        ),
        "cifar10": DatasetInfo(
            (3, 32, 32),
            10,
            50_000,
            10_000,
            "CIFAR-10",
            torchvision="CIFAR10",
            folder="cifar-10-batches-py",
        ),
    }
)
"""Every dataset that a table can name."""
