"""The families of models, and the colour of each."""

from qbench.architecture import ModelSpec
from qbench.report.drawing import BLUE, GREEN, ORANGE, PINK

FAMILIES = {
    "linear": "#3d444d",
    "dense form": BLUE,
    "low-rank form": ORANGE,
    "affine form": GREEN,
    "signed form": "#8a5a00",
    "linear network": "#56748c",
    "quadratic network": PINK,
}
"""The colour of each family."""


def family_of(model: ModelSpec) -> str:
    """The family of a model.

    >>> family_of(ModelSpec(kind="low_rank", rank=2, signed=True))
    'signed form'
    >>> family_of(ModelSpec(kind="mlp", hidden=(8,), activation="square"))
    'quadratic network'
    """
    if model.kind == "zoo":
        plain = model.name.startswith("cifar_resnet") and model.quadratize is None
        plain = model.options.get("neuron", "linear" if plain else "quadratic") == "linear"
        return "linear network" if plain else "quadratic network"
    if model.kind == "mlp":
        return "linear network" if model.hidden_neuron == "linear" else "quadratic network"
    if model.affine or model.signed:
        return "affine form" if model.affine else "signed form"
    return {"linear": "linear", "dense": "dense form", "low_rank": "low-rank form"}[model.kind]


def short(name: str, longest: int = 24) -> str:
    """A name that leaves room for the figure: of so many characters at most.

    >>> short("a-name-of-more-than-twenty-four-characters")
    'a-name-of-more-than-twe…'
    """
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
