"""What a table trains, as data."""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from qbench.errors import shown
from qbench.frozen import Count, Frozen


class Convolution(Frozen):
    """One convolution without padding, with bias, and ReLU: in front of a classifier."""

    channels: Count
    kernel: Count
    stride: Count = 1

    def outputs(self, shape: tuple[int, ...]) -> int:
        """Numbers that it makes of an image of ``shape`` ``(C, H, W)``.

        >>> Convolution(channels=8, kernel=5, stride=3).outputs((1, 28, 28))
        512
        """
        sides = ((side - self.kernel) // self.stride + 1 for side in shape[1:])
        return self.channels * math.prod(sides)


FIELDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "linear": frozenset({"convolution", "norm"}),
        "dense": frozenset({"affine", "convolution", "norm"}),
        "low_rank": frozenset({"rank", "signed", "affine", "convolution", "norm"}),
        "mlp": frozenset(
            {
                "hidden",
                "neuron",
                "neuron_rank",
                "bias",
                "activation",
                "as_large_as",
                "convolution",
                "norm",
            }
        ),
        "zoo": frozenset({"name", "depth", "options", "quadratize", "after", "norm"}),
    }
)
"""The fields that only some kinds of models have."""


# options by which timm reads files, or fetches them
_LOADING = frozenset(
    {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
)


class ModelSpec(Frozen):
    """A model of a table: a classifier on flattened inputs, or a network.

    Kinds: ``linear``, without bias; ``dense``, one quadratic form per class; ``low_rank``, each of
    rank ``rank``. ``mlp``: layers of ``hidden`` neurons, linear unless ``neuron`` says which, each
    followed by an ``activation``, of which ``square`` is z², and a linear output; wider by one
    factor where it is to be ``as_large_as``, in parameters, one of another neuron, or a ``dense``
    or ``low_rank`` classifier on the same inputs. These four may stand behind a ``convolution``.
    ``zoo``: a model of timm's or the zoo's by ``name``, in which
    ``{depth}`` stands for ``depth``, made with ``options``; ``quadratize`` names the neuron that
    its convolutions become.

    A ``norm`` divides by a root mean square, each sample's own, and has no parameters: ``input``,
    not of kind ``zoo``, the features, behind the convolution, before the first layer or form;
    ``layers``, of kind ``mlp``, what each of its layers sees, the output's as well; ``quadratic``,
    of kinds ``mlp`` and ``zoo``, what the quadratic branches of each neuron see, all channels and
    pixels of an image together, x² by its own.

    ``after`` names the model of the same table, trained with the same seed, from whose weights this
    one starts. ``start`` gives parameters at the start by name; without it they are drawn from the
    seed. ``recipe`` is what this model changes in the table's, ``on`` what it is on a dataset:
    fields that replace these, or a whole model of another kind; never a recipe. A network's weights
    are drawn, or those of ``after``; they never come from a file.

    >>> ModelSpec(kind="low_rank", rank=2).kind
    'low_rank'
    """

    kind: Literal["linear", "dense", "low_rank", "mlp", "zoo"]
    rank: Count | None = None
    signed: bool = False
    affine: bool = False
    convolution: Convolution | None = None
    norm: Literal["input", "layers", "quadratic"] | None = None
    hidden: tuple[Count, ...] = ()
    neuron: str = "linear"
    neuron_rank: Count | None = None
    bias: bool = True
    activation: Literal["relu", "square", "identity"] = "relu"
    as_large_as: "str | ModelSpec | None" = None
    name: str = ""
    depth: Count | None = None
    options: dict[str, Any] = Field(default={})
    quadratize: str | None = None
    after: str | None = None
    start: dict[str, Any] = Field(default={})
    recipe: dict[str, Any] = Field(default={})
    on: dict[str, dict[str, Any]] = Field(default={})

    @model_validator(mode="after")
    def _fits(self) -> "ModelSpec":
        if (self.kind == "low_rank") != (self.rank is not None):
            raise ValueError("rank belongs to kind low_rank, and only to it")
        if self.kind == "linear" and self.affine:
            raise ValueError("affine belongs to quadratic forms, not to kind linear")
        for field in sorted(frozenset().union(*FIELDS.values()) - FIELDS[self.kind]):
            if getattr(self, field) != type(self).model_fields[field].default:
                homes = [kind for kind, fields in FIELDS.items() if field in fields]
                raise ValueError(f"{field} belongs to kind {' or '.join(homes)}, not {self.kind}")
        if self.kind == "zoo" and not self.name:
            raise ValueError("kind zoo needs a name")
        if self.kind == "mlp" and not self.hidden:
            raise ValueError("kind mlp needs hidden, the widths of its hidden layers")
        if self.activation == "square" and (self.neuron != "linear" or not self.bias or self.norm):
            raise ValueError(
                "activation: square makes each layer one of neurons squared_output, with their "
                "biases and without a norm: leave out neuron, bias and norm"
            )
        if self.norm == "quadratic" and self.kind != "zoo" and self.neuron == "linear":
            raise ValueError(
                "norm: quadratic is of the branches of a quadratic neuron: give kind mlp a neuron, "
                "or choose input"
            )
        if self.norm == "layers" and self.kind not in ("mlp", "zoo"):
            raise ValueError(
                f"norm: layers is of the layers of kind mlp, and kind {self.kind} has one: "
                "choose input"
            )
        if self.norm in ("input", "layers") and self.kind == "zoo":
            raise ValueError(
                f"norm: {self.norm} is not for kind zoo, whose networks have norms of their own: "
                "choose quadratic, or leave it out"
            )
        if isinstance(self.as_large_as, ModelSpec):
            self.as_large_as._check_form()
        if not re.fullmatch(r"[\w.{}-]*", self.name):
            raise ValueError(
                f"name: {shown(self.name)} is no name of a registered network: give one of timm's "
                "or the zoo's, such as qresnet20"
            )
        for option in sorted(_LOADING & self.options.keys()):
            raise ValueError(
                f"options: {option} is not for a table, in which weights are drawn or come from "
                "the model named by after: leave it out"
            )
        if "rms_norm" in self.options or self.name.endswith("_rms"):
            raise ValueError(
                "a network of normalised quadratic branches has norm: quadratic in a table, not a "
                "name with _rms or an option"
            )
        for dataset, changes in self.on.items():
            for field in ("on", "after"):
                if field in changes:
                    raise ValueError(
                        f"on: {dataset} has {field!r}, which is the same on every dataset: put it "
                        f"beside this on, or leave it out"
                    )
            if "recipe" in changes:
                raise ValueError(
                    f"on: {dataset} has a recipe, and a model has the same one on every dataset: "
                    f"put what {dataset} changes under dataset: {{{dataset}: {{recipe: …}}}} of "
                    "the grid"
                )
        return self

    def _check_form(self) -> None:
        """Whether this can be what another model is as large as."""
        plain = self.model_copy(update={"rank": None, "signed": False, "affine": False})
        if self.kind not in ("dense", "low_rank") or plain != ModelSpec.model_construct(
            kind=self.kind
        ):
            raise ValueError(
                "as_large_as: a classifier is kind dense or low_rank with rank, signed and affine "
                "alone; a convolution before it is that of the model which is as large"
            )

    @property
    def hidden_neuron(self) -> str:
        """The neuron of hidden layers: a linear one with the activation z² is ``squared_output``.

        >>> ModelSpec(kind="mlp", hidden=(8,), activation="square").hidden_neuron
        'squared_output'
        """
        return "squared_output" if self.activation == "square" else self.neuron

    @property
    def full_name(self) -> str:
        """The zoo's name, with the depth filled in.

        >>> ModelSpec(kind="zoo", name="qresnet{depth}_compact", depth=56).full_name
        'qresnet56_compact'
        """
        return self.name.replace("{depth}", str(self.depth))


_DIQNN_CONVOLUTION = Convolution(channels=8, kernel=5, stride=3)
_DIQNN_RANKS = 10


def diqnn_name(spec: ModelSpec) -> str | None:
    """The zoo's name of a quadratic form of 28×28 pixels; None where the zoo has no such network.

    >>> diqnn_name(ModelSpec(kind="low_rank", rank=4)), diqnn_name(ModelSpec(kind="linear"))
    ('diqnn_rank4', None)
    """
    if spec.kind not in ("dense", "low_rank") or spec.signed or spec.affine or spec.norm:
        return None
    if spec.convolution not in (None, _DIQNN_CONVOLUTION) or (spec.rank or 1) > _DIQNN_RANKS:
        return None
    behind = "_conv" if spec.convolution is not None else ""
    return f"diqnn{behind}" if spec.rank is None else f"diqnn{behind}_rank{spec.rank}"


def normed_name(spec: ModelSpec) -> str | None:
    """The zoo's name of a network with a norm of what its quadratic branches see; None where it is
    made by an option or by surgery.

    >>> normed_name(ModelSpec(kind="zoo", name="qresnet{depth}", depth=56, norm="quadratic"))
    'qresnet56_rms'
    """
    # with torch and timm, which a list of tables does without
    from qzoo.architectures import CIFAR_QRESNETS

    name = f"{spec.full_name}_rms"
    return name if spec.quadratize is None and name in CIFAR_QRESNETS else None
