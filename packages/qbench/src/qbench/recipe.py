"""How a trial is trained, as data."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from qbench.frozen import Count, Frozen

Factor = Annotated[float, Field(ge=0, le=1)]
"""From 0, the linear network, to 1, free."""


class Ramp(Frozen):
    """A factor that changes with every step of a training: from ``start``, which it is in the
    first, to ``end``, which it would be in the one after the last, in a straight line or along half
    a cosine.

    >>> Ramp(start=0, end=1).shape
    'linear'
    """

    model_config = ConfigDict(allow_inf_nan=False)

    start: Factor
    end: Factor
    shape: Literal["linear", "cosine"] = "linear"


def _form(given: object) -> str:
    """Which of the forms of a factor is meant, so that a mistake is told of that one alone."""
    if isinstance(given, Mapping | Ramp):
        return "ramp"
    return "pair" if isinstance(given, Sequence) and not isinstance(given, str) else "number"


Factors = Annotated[
    Annotated[Factor, Tag("number")]
    | Annotated[tuple[Factor, Factor], Tag("pair")]
    | Annotated[Ramp, Tag("ramp")],
    Discriminator(_form),
]
"""One of ReLinear's factors, a pair of them, for g and for b, or one for both that changes."""


class Strategy(Frozen):
    """How the quadratic parameters are held near the linear network: ReLinear, in its terms.

    Without it they train as all others. ``start`` is where they begin: at the linear ``reference``,
    or ``conventional``, where those that are 0 there, of g and b in the paper's neuron, are drawn
    as PyTorch draws a layer; all else, r among it, is as the network draws it in both. ``vary``
    names a factor, which is ``value``; where it is that of one branch, the other stays linear.
    ``gamma``, ``alpha`` and ``beta`` are numbers, pairs of them, or a :class:`Ramp`.

    >>> Strategy(lr_g=1e-5, lr_b=1e-5).relinear
    {'lr_g': 1e-05, 'lr_b': 1e-05}
    >>> Strategy(vary="gamma_g", value=0.1).relinear, Strategy(vary="gamma", value=0.1).relinear
    ({'gamma': (0.1, 0.0)}, {'gamma': 0.1})
    """

    model_config = ConfigDict(allow_inf_nan=False)
    _OWN: ClassVar = ("start", "vary", "value")  # what ReLinear does not take

    start: Literal["reference", "conventional"] = "reference"
    gamma: Factors | None = None
    alpha: Factors | None = None
    beta: Factors | None = None
    lr_g: float | None = Field(default=None, ge=0)
    lr_b: float | None = Field(default=None, ge=0)
    weight_decay: Literal["reference", "published"] | None = None
    vary: (
        Literal["gamma", "gamma_g", "gamma_b", "alpha_g", "alpha_b", "beta_g", "beta_b"] | None
    ) = None
    value: Factor | None = None

    @property
    def relinear(self) -> dict[str, Any]:
        """The arguments of :class:`qcore.ReLinear`, but for ramps, which are schedules only where
        the number of steps is known; empty for training as all others."""
        names = [name for name in type(self).model_fields if name not in self._OWN]
        given = {name: x for name in names if (x := getattr(self, name)) is not None}
        if self.vary is not None:
            factor, _, branch = self.vary.partition("_")
            values = {"": self.value, "g": (self.value, 0.0), "b": (0.0, self.value)}
            given[factor] = values[branch]
        return given

    @model_validator(mode="after")
    def _fits(self) -> "Strategy":
        if self.vary is not None and self.value is None:
            raise ValueError(f"vary: {self.vary} needs a value")
        if (self.lr_g is None) != (self.lr_b is None):
            raise ValueError("lr_g and lr_b: give both, 0 where a part is not to train, or neither")
        if self.lr_g is not None and "gamma" in self.relinear:
            raise ValueError("gamma is a factor of the rate, lr_g and lr_b are rates: give one")
        return self


class Recipe(Frozen):
    """How a trial is trained, on the cross-entropy.

    ``batch_size`` None is full-batch gradient descent: an epoch is a step; images go through the
    model 2000 at once, and batch norm sees these. ``lr`` is per step.
    ``schedule``: ``step`` multiplies it by ``factor`` at the epochs ``milestones``, ``cosine``
    takes it to 0 over all steps, ``one_cycle`` is PyTorch's. ``reduction``: the loss is the
    ``mean`` or the ``sum`` over a batch. ``margin_weight`` λ subtracts λ Δμ from it. ``clip_norm``
    bounds the norm of each seed's gradient, ``clip_by`` that of all ``gradients`` alike, or of what
    ReLinear's γ leaves of them in ``steps``. ``explosion``: a training loss of more than so
    many times the first one, or that of guessing where it is larger, counts as diverged, as one
    that is not finite always does.

    ``scaling`` is of tables, fitted on the training part alone; ``pixels`` of images: ``raw`` is 0
    to 255, ``unit`` 0 to 1, ``centred`` -1 to 1, ``standardised`` by the mean and standard
    deviation of the training images' channels, ``imagenet`` by those of ImageNet. ``test_fraction``
    splits tables; ``validation`` images are taken off the training part, by a seed of their own.
    ``train_samples`` and ``test_samples`` take the first so many of a random order, once for all:
    of reduced runs.

    A point of every curve is recorded each ``log_every`` steps, or at the end of every ``epoch``,
    and at the end. ``train_metrics``: ``measured`` on the whole training part at that point, or
    ``running``, the mean over the batches since the point before. ``averages`` are those by which
    batch norm measures: ``running`` along with training, or ``anew`` over the training part.
    Parameters are recorded at the steps ``snapshots``. ``probes`` measure more at each point.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: Count | None = None
    epochs: Count
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "constant"
    milestones: tuple[int, ...] = ()
    factor: float = Field(default=0.1, gt=0)
    reduction: Literal["mean", "sum"] = "mean"
    margin_weight: float = 0.0
    clip_norm: float | None = Field(default=None, gt=0)
    clip_by: Literal["gradients", "steps"] = "gradients"
    explosion: float | None = Field(default=None, gt=1)
    strategy: Strategy = Strategy()
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    scaling: Literal["raw", "maxabs", "minmax", "standard"] = "raw"
    pixels: Literal["raw", "unit", "centred", "standardised", "imagenet"] = "unit"
    augment: tuple[Literal["crop", "flip", "cutout"], ...] = ()
    init_scale: float = Field(default=1.0, ge=0)
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    validation: int = Field(default=0, ge=0, le=10**9)
    train_samples: Count | None = None
    test_samples: Count | None = None
    log_every: int | Literal["epoch"] = Field(default=1)
    train_metrics: Literal["measured", "running"] = "measured"
    averages: Literal["running", "anew"] = "running"
    snapshots: tuple[int, ...] = ()
    probes: tuple[Literal["theorem2", "spectrum"], ...] = ()

    @property
    def half(self) -> bool:
        """Whether the forward passes are in 16 bits."""
        return self.precision in ("bfloat16", "float16")

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if self.log_every != "epoch" and self.log_every < 1:
            raise ValueError("log_every counts steps from 1 on, or is epoch")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("milestones belong to schedule step, and only to it")
        if self.batch_size is None and self.train_metrics == "running":
            raise ValueError("train_metrics: a full batch is measured, not running")
        if self.batch_size is None and self.augment:
            raise ValueError("augment: a full batch is the images as they are; give a batch_size")
        for name in ("lr_g", "lr_b"):
            if (rate := getattr(self.strategy, name) or 0.0) > self.lr:
                raise ValueError(f"strategy: {name} {rate:g} is above lr {self.lr:g}, the free one")
        if self.clip_by == "steps" and self.clip_norm is None:
            raise ValueError("clip_by belongs to clip_norm: without one nothing is clipped")
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError("momentum belongs to sgd: adamw has its own")
        return self
