"""The one training loop: many seeds at once, whole batches or small ones."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from qbench.checkpoint import State
from qbench.data import Problem, Samples
from qbench.data.augment import Augmentation, generator
from qbench.distributed import averaging, own_share, processes, share_buffers, total, total_of
from qbench.errors import UserError
from qbench.optimize import (
    autocast,
    clip_gradients,
    make_optimizer,
    make_schedule,
    make_strategy,
    optimizer_tensors,
    precision,
)
from qbench.recipe import Recipe
from qbench.stack import Single, Stacked
from qcore import normalized_margin

_LOSSES = ("train_loss", "validation_loss", "test_loss")

CHUNK = 2000
"""Samples of one seed that go through a model at once, where a whole part does."""


@dataclass
class Curve:
    """What one seed's training recorded.

    ``step`` counts updates made before the measurement, ``time`` is that of the measurement in
    seconds since 1970. Metrics are in percent (accuracies), nats (losses) or without unit (margin);
    each list is as long as ``step``. ``diverged_at`` is the first step whose training loss was not
    finite, or exploded; nothing from that step on is recorded.
    """

    step: list[int] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    snapshots: dict[int, dict[str, list[object]]] = field(default_factory=dict)
    diverged_at: int | None = None


class Training:
    """A model, what it learns from, and how far it has come.

    The loss is the sum over seeds of each seed's own, so that every seed's gradient is its own.
    Order and augmentation of the samples depend on (seed, epoch) alone. A seed that diverged goes
    on unseen; training ends early only when every seed has diverged.

    Where ``torchrun`` has started several processes, each has a share of every small batch, and of
    what is measured: gradients, losses and metrics are those of all together. Raises ``UserError``
    for whole batches there, and for batches of fewer samples than processes.

    ``probe(training)`` measures more at each recorded step: ``{metric: (S,)}``.
    """

    def __init__(
        self,
        model: Stacked | Single,
        problem: Problem,
        recipe: Recipe,
        seeds: Sequence[int],
        *,
        device: str = "cpu",
        compiled: bool = False,
        probe: Callable[["Training"], dict[str, Tensor]] | None = None,
    ) -> None:
        self.model, self.problem, self.recipe = model, problem, recipe
        self.seeds, self.device, self.probe = tuple(seeds), device, probe
        self._forward: Callable[[Tensor], Tensor] = averaging(model)
        self._evaluated: Callable[[Tensor], Tensor] = model
        if compiled:
            # else what was compiled for another model is taken where the two differ in hooks alone,
            # and after a few models torch compiles no more
            torch.compiler.reset()
            self._forward, self._evaluated = map(torch.compile, (self._forward, model))
        samples = len(problem.train)
        self.steps_per_epoch = math.ceil(samples / (recipe.batch_size or samples))
        self.steps = recipe.epochs * self.steps_per_epoch
        self.strategy = make_strategy(recipe, self.steps_per_epoch)
        self.optimizer = make_optimizer(model, recipe, self.strategy)
        self._check_shares(samples)
        self.schedule = make_schedule(self.optimizer, recipe, self.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device, enabled=recipe.precision == "float16")
        self.step = 0
        self.seconds = 0.0
        self.curves = [Curve() for _ in seeds]
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._first_loss: Tensor | None = None
        self._epoch = -1

    def _check_shares(self, samples: int) -> None:
        if processes() == 1:
            return
        size = self.recipe.batch_size
        if size is None:
            raise UserError(
                f"torchrun with {processes()} processes is for training in small batches: this is "
                "training on whole ones; use --jobs to run several trials at once"
            )
        smallest = samples % size or min(size, samples)
        if smallest < processes():
            raise UserError(
                f"torchrun with {processes()} processes: the smallest batch of an epoch has "
                f"{smallest} samples; use at most as many processes"
            )

    def run(
        self,
        on_step: Callable[[int], None] = lambda step: None,
        save: Callable[[], None] = lambda: None,
        save_every: float = 60.0,
    ) -> list[Curve]:
        """Train to the end and return one curve per seed.

        ``on_step`` is called at each recorded step, ``save`` between two steps, where the last time
        is ``save_every`` seconds ago, and at the end.
        """
        saved = started = time.perf_counter()
        before = self.seconds
        with precision(self.recipe.precision):
            while any(curve.diverged_at is None for curve in self.curves):
                now = time.perf_counter()
                self.seconds = before + now - started
                if self.step and now - saved >= save_every:
                    save()
                    saved = time.perf_counter()
                if self._take_step(on_step):
                    break
        self.seconds = before + time.perf_counter() - started
        save()
        return self.curves

    def _take_step(self, on_step: Callable[[int], None]) -> bool:
        """Record what is due at this step, then update; True where training ends here."""
        step, last = self.step, self.step == self.steps
        whole = self.recipe.batch_size is None
        measured: dict[str, Tensor] = {}
        due = self._is_due(step, last)
        if last and not due:
            return True  # restored here, or recorded with the step before
        if whole:
            measured = self._whole_batch(train=not last, measure=due)
        if due:
            self._mark_diverged()
            if all(curve.diverged_at is not None for curve in self.curves):
                return True
            self._record(measured)
            on_step(step)
        if last:
            return True
        if not whole:
            self._small_batch()
        self._update()
        self.step += 1
        return False

    def _is_due(self, step: int, last: bool) -> bool:
        """Whether a point of the curves is recorded here, and is not there yet."""
        if any(curve.step[-1:] == [step] for curve in self.curves):
            return False  # restored at this very step
        every = self.recipe.log_every
        due = step % (self.steps_per_epoch if every == "epoch" else every) == 0
        if self.recipe.train_metrics == "running" and step == 0:
            return last
        return last or due or step in self.recipe.snapshots

    def _whole_batch(self, *, train: bool, measure: bool) -> dict[str, Tensor]:
        """The gradient on the whole training part, and what is measured on it by the way."""
        if train:
            self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        count = len(self.problem.train)
        size = CHUNK if self.problem.train.shared else None
        for x, y in self.problem.train.chunks(size):
            share = len(y[0]) / count
            with torch.set_grad_enabled(train):
                logits, mean, objective = self._loss(x, y, y.shape[1])
                weight = share if self.recipe.reduction == "mean" else 1.0
                if train:
                    self.scaler.scale(objective.sum() * weight).backward()
            values = {"loss": mean.detach()}
            if measure:
                values |= _measures(logits.detach(), y, margin=True)
            _add(sums, values, share)
        self._losses.append(sums["loss"])
        return sums

    def _small_batch(self) -> None:
        """The gradient on the samples of this step."""
        x, y = self.batch(own_share())
        count = self._size_of_batch()
        weight = y.shape[1] / count  # of this process's share of the batch: 1 where it is alone
        self.optimizer.zero_grad()
        logits, mean, objective = self._loss(x, y, count)
        loss = objective.sum()
        if processes() > 1:
            loss = loss * (weight * processes())  # for gradients are averaged over the processes
        self.scaler.scale(loss).backward()
        self._losses.append(total(mean.detach(), weight))
        if self.recipe.train_metrics == "running":
            correct = (logits.detach().argmax(-1) == y).float().mean(1)
            self._correct.append(total(correct, weight))

    def _update(self) -> None:
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            by = self.strategy if self.recipe.clip_by == "steps" else None
            clip_gradients(self.model, self.optimizer, self.recipe.clip_norm, by)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.schedule is not None:
            self.schedule.step()

    def _size_of_batch(self) -> int:
        """Samples of one seed in the small batch of this step, over all processes."""
        size = self.recipe.batch_size or 0
        first = self.step % self.steps_per_epoch * size
        return min(size, len(self.problem.train) - first)

    def batch(self, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The samples of this step, or a share of them, prepared: ``(S, B, *input)`` and
        ``(S, B)``."""
        train = self.problem.train
        if self.recipe.batch_size is None:
            x, y = next(train.chunks(None))
            return x, y
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._begin_epoch(epoch)
        size = self.recipe.batch_size
        index = self._order[:, position * size : (position + 1) * size][:, share]
        x, y = train.take(index)
        return train.prepare(self._augment(x, index)), y

    def _begin_epoch(self, epoch: int) -> None:
        samples = len(self.problem.train)
        orders = [torch.randperm(samples, generator=generator(s, epoch, 0)) for s in self.seeds]
        self._order = torch.stack(orders).to(self.device)
        self._augment = Augmentation(self.recipe.augment, self.seeds, epoch, samples, self.device)
        self._epoch = epoch

    def _outputs(self, x: Tensor) -> Tensor:
        """Outputs in the recipe's precision, as float32: ``(S, B, K)``."""
        forward = self._forward if torch.is_grad_enabled() else self._evaluated
        with autocast(self.recipe, self.device):
            outputs = forward(x).float()
        if outputs.requires_grad and self.model.replicas > 1:
            # the loss gives it transposed: contiguous, ten seeds of rank 1 on digits take 0.65 of
            # the time
            outputs.register_hook(Tensor.contiguous)
        return outputs

    def _loss(self, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs ``(S, B, K)``, mean cross-entropy of each seed, and what is minimised: ``(S,)``
        each. A sum is over ``count`` samples."""
        logits = self._outputs(x)
        mean = mean_cross_entropy(logits, y)
        objective = mean if self.recipe.reduction == "mean" else mean * count
        if self.recipe.margin_weight:
            margin = normalized_margin(logits, y, reduction="none").mean(1)
            objective = objective - self.recipe.margin_weight * margin
        return logits, mean, objective

    @torch.no_grad()
    def measure(self, samples: Samples, *, margin: bool = False) -> dict[str, Tensor]:
        """Loss, accuracy and, if wanted, margin of each seed over the samples, in eval mode:
        ``(S,)`` each."""
        self.model.eval()
        share_buffers(self.model)
        sums: dict[str, Tensor] = {}
        size = min(CHUNK, math.ceil(len(samples) / processes())) if samples.shared else None
        own = own_share()
        for x, y in islice(samples.chunks(size), own.start, None, own.step):
            logits = self._outputs(x)
            values = _measures(logits, y, margin=margin)
            values["loss"] = mean_cross_entropy(logits, y)
            _add(sums, values, len(y[0]) / len(samples))
        self.model.train()
        names = ("accuracy", "loss", *(["margin"] if margin else []))
        return total_of(sums, names, torch.zeros(len(self.seeds), device=self.device))

    def _record(self, whole: dict[str, Tensor]) -> None:
        values: dict[str, Tensor] = {}
        if self.recipe.averages == "anew":
            size = self.recipe.batch_size or CHUNK
            with autocast(self.recipe, self.device):
                # networks with batch norm train one by one, see costs: there is one seed
                update_bn((x[0] for x, _ in self.problem.train.chunks(size)), self.model.module)
        if self.recipe.train_metrics == "running":
            values["train_loss"] = torch.stack(self._losses).mean(0)
            values["train_accuracy"] = torch.stack(self._correct).mean(0) * 100
        else:
            values |= _named("train", whole or self.measure(self.problem.train, margin=True))
            values["margin"] = values.pop("train_margin")
        for part in ("validation", "test"):
            if len(samples := getattr(self.problem, part)):
                values |= _named(part, self.measure(samples))
        if self.probe is not None:
            values |= self.probe(self)
        self._losses.clear()
        self._correct.clear()
        columns = {name: value.tolist() for name, value in values.items()}
        now = time.time()
        for seed, curve in enumerate(self.curves):
            lost = any(not math.isfinite(columns[n][seed]) for n in _LOSSES if n in columns)
            # by the last update, which no loss of a batch has seen yet; else it is for evaluation
            # alone, whose averages of batch norm follow the network from behind
            lost = lost and (self.step == self.steps or self._is_broken(seed))
            if lost and curve.diverged_at is None:
                curve.diverged_at = self.step
            if curve.diverged_at is not None:
                continue
            curve.step.append(self.step)
            curve.time.append(now)
            for name, column in columns.items():
                curve.metrics.setdefault(name, []).append(column[seed])
            if self.step in self.recipe.snapshots:
                state = self.model.replica_state(seed)
                curve.snapshots[self.step] = {k: value.tolist() for k, value in state.items()}

    def _is_broken(self, seed: int) -> bool:
        """Whether a parameter of a seed is not finite."""
        names = {name for name, _ in self.model.module.named_parameters()}
        state = self.model.replica_state(seed)
        return any(not bool(state[name].isfinite().all()) for name in names)

    def _mark_diverged(self) -> None:
        """Note, per seed, the first step since the last recorded one whose loss was bad."""
        if not self._losses:
            return
        losses = torch.stack(self._losses)  # (steps, S)
        if self._first_loss is None:
            self._first_loss = losses[0]
        bad = ~losses.isfinite()
        if self.recipe.explosion is not None:
            # no smaller than that of guessing: a trained network begins with next to none
            usual = self._first_loss.clamp_min(math.log(self.problem.classes))
            bad |= losses > self.recipe.explosion * usual
        if not bad.any():
            return
        # the whole batch is measured before its step, a small one belongs to the step before
        latest = self.step if self.recipe.batch_size is None else self.step - 1
        first_step = latest - len(losses) + 1
        for seed, (is_bad, index) in enumerate(
            zip(bad.any(0).tolist(), bad.int().argmax(0).tolist(), strict=True)
        ):
            if is_bad and self.curves[seed].diverged_at is None:
                self.curves[seed].diverged_at = first_step + index

    @property
    def samples_per_step(self) -> float:
        """Samples of one seed that a step sees, on average over an epoch."""
        return len(self.problem.train) / self.steps_per_epoch

    def state(self, facts: Mapping[str, Any] | None = None) -> State:
        """All that :meth:`restore` needs to go on bit for bit, with plain ``facts`` beside it."""
        tensors = {f"model.{k}": value for k, value in self.model.module.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        for name, values in (("losses", self._losses), ("correct", self._correct)):
            if values:
                tensors[name] = torch.stack(values)
        if self._first_loss is not None:
            tensors["first_loss"] = self._first_loss
        tensors["random"] = torch.get_rng_state()
        if self.device == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.state_dict()["param_groups"]
        ]
        plain = {
            "facts": dict(facts or {}),
            "seeds": list(self.seeds),
            "seconds": self.seconds,
            "curves": [asdict(curve) for curve in self.curves],
            "groups": groups,
            "schedule": None if self.schedule is None else _plain(self.schedule.state_dict()),
            "scaler": self.scaler.state_dict(),
        }
        return State(self.step, tensors, plain)

    def restore(self, state: State) -> None:
        """Go back to where :meth:`state` was taken, of the same model, problem and recipe."""
        tensors, values = dict(state.tensors), state.values
        self.step, self.seconds = state.step, values["seconds"]
        self.curves = [_curve(recorded) for recorded in values["curves"]]
        self.model.module.load_state_dict(_below("model.", tensors))
        optimizer = self.optimizer.state_dict()
        known = _below("optimizer.", tensors)
        optimizer["state"] = {}
        for name, value in known.items():
            index, _, key = name.partition(".")
            optimizer["state"].setdefault(int(index), {})[key] = value
        optimizer["param_groups"] = [
            {**group, "params": old["params"]}
            for group, old in zip(values["groups"], optimizer["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict(optimizer)
        if self.schedule is not None:
            functions = {"lr_lambdas": [None for _ in self.optimizer.param_groups]}
            has_functions = isinstance(self.schedule, LambdaLR)
            kept = values["schedule"] | (functions if has_functions else {})
            self.schedule.load_state_dict(kept)
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        self._losses = list(tensors["losses"].to(self.device)) if "losses" in tensors else []
        self._correct = list(tensors["correct"].to(self.device)) if "correct" in tensors else []
        first = tensors.get("first_loss")
        self._first_loss = None if first is None else first.to(self.device)
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"])


def mean_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of each seed: ``(S, B, K)`` and ``(S, B)`` to ``(S,)``."""
    # classes in the middle: five times as fast on CPU as classes last, since samples vectorise
    logits = logits.transpose(1, 2)
    if len(logits) == 1:  # the same gradient, for a batch of MNIST's in 45 µs instead of 71
        return F.cross_entropy(logits, target).view(1)
    return F.cross_entropy(logits, target, reduction="none").mean(1)


def _measures(logits: Tensor, y: Tensor, *, margin: bool) -> dict[str, Tensor]:
    """Accuracy in percent and, if wanted, margin of each seed: ``(S,)`` each."""
    values = {"accuracy": (logits.argmax(-1) == y).double().mean(1) * 100}
    if margin:
        values["margin"] = normalized_margin(logits, y, reduction="none").mean(1)
    return values


def _named(part: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}_{name}": value for name, value in values.items()}


def _add(sums: dict[str, Tensor], values: dict[str, Tensor], weight: float) -> None:
    for name, value in values.items():
        sums[name] = value * weight if name not in sums else sums[name] + value * weight


def _curve(recorded: dict[str, Any]) -> Curve:
    snapshots = {int(step): value for step, value in recorded.pop("snapshots").items()}
    return Curve(**recorded, snapshots=snapshots)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without its functions, which the recipe has."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"}
