"""The datasets by name: what they are, without loading them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class DatasetInfo:
    """Sizes of a dataset, and where it comes from.

    ``shape`` is that of an input; ``test`` 0 where the test part is split off by the seed.
    ``words`` is what it is called, ``about`` what its samples are, ``source`` the library that has
    or downloads it. ``torchvision`` is the class of torchvision's that does, ``folder`` where its
    files lie and ``archive`` where the files do in which it is published, both under the root of
    all image data. ``timm`` is its name in timm's dataset factory, ``tag`` what weights' tags call
    it.

    >>> DATASETS["cifar10"].features
    3072
    """

    shape: tuple[int, ...]
    classes: int
    train: int
    test: int = 0
    words: str = ""
    about: str = ""
    source: str = "scikit-learn"
    torchvision: str = ""
    folder: str = ""
    archive: str = ""
    timm: str = ""
    tag: str = ""

    @property
    def features(self) -> int:
        """Numbers in an input."""
        return math.prod(self.shape)


DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {
        "iris": DatasetInfo(
            (4,), 3, 150, words="Iris", about="flowers of three species by four lengths"
        ),
        "wine": DatasetInfo(
            (13,), 3, 178, words="Wine", about="wines of three growers by chemical analyses"
        ),
        "wisconsin": DatasetInfo(
            (30,), 2, 569, words="Breast cancer Wisconsin", about="tumours by shapes of cell nuclei"
        ),
        "digits": DatasetInfo(
            (64,), 10, 1797, words="Digits", about="handwritten digits of 8×8 pixels, as a table"
        ),
        "xor": DatasetInfo(
            (2,), 2, 4, words="XOR", about="the four points (±1, ±1)", source="qbench"
        ),
        "line": DatasetInfo((1,), 1, 0, words="No data: networks of one input", source=""),
        "space": DatasetInfo((6,), 1, 0, words="No data: networks of six inputs", source=""),
        "digits32": DatasetInfo(
            (1, 32, 32),
            10,
            1437,
            360,
            words="Digits of 32×32",
            about="scikit-learn's digits as images, every pixel four by four",
            folder="digits32",
            timm="torch/image_folder",
            tag="digits",
        ),
        "mnist": DatasetInfo(
            (1, 28, 28),
            10,
            60_000,
            10_000,
            words="MNIST",
            about="handwritten digits",
            source="torchvision",
            torchvision="MNIST",
            folder="MNIST/raw",
            archive="MNIST/raw/*-ubyte.gz",
            timm="torch/mnist",
            tag="mnist",
        ),
        "fmnist": DatasetInfo(
            (1, 28, 28),
            10,
            60_000,
            10_000,
            words="Fashion-MNIST",
            about="articles of clothing",
            source="torchvision",
            torchvision="FashionMNIST",
            folder="FashionMNIST/raw",
            archive="FashionMNIST/raw/*-ubyte.gz",
            timm="torch/fashion_mnist",
            tag="fmnist",
        ),
        "cifar10": DatasetInfo(
            (3, 32, 32),
            10,
            50_000,
            10_000,
            words="CIFAR-10",
            about="photographs of animals and vehicles",
            source="torchvision",
            torchvision="CIFAR10",
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            timm="torch/cifar10",
            tag="c10",
        ),
    }
)
"""Every dataset that a table can name."""
