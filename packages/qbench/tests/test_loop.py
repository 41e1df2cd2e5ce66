"""The loop: gradient descent as written, seeds that do not see each other, divergence as a
result."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qbench.architecture import ModelSpec
from qbench.build import build_model
from qbench.data import Problem, load_problem
from qbench.data.augment import generator
from qbench.loop import Curve, Training
from qbench.recipe import Recipe, Strategy
from qbench.stack import side_by_side
from qbench.table import Cell, load_table
from qcore import normalized_margin

UCI = load_table("uci")


def train(models: list[nn.Module], problem: Problem, recipe: Recipe) -> list[Curve]:
    seeds = range(len(models))
    return Training(side_by_side(models), problem, recipe, seeds).run()


def recorded(curves: list[Curve]) -> list[tuple[object, ...]]:
    """All but the times."""
    return [(curve.step, curve.metrics, curve.snapshots, curve.diverged_at) for curve in curves]


def run(cell: Cell, seeds: list[int], **recipe: object) -> list[Curve]:
    chosen = Recipe.model_validate({**cell.recipe.model_dump(), **recipe})
    problem = load_problem(cell.dataset, chosen, seeds)
    models = [
        build_model(cell.model, problem.shape, problem.classes, chosen.init_scale, seed)
        for seed in seeds
    ]
    return train(models, problem, chosen)


def cell(dataset: str, model: str, scaling: str = "maxabs") -> Cell:
    only = {"dataset": (dataset,), "model": (model,)}
    return next(UCI.cells(only, {"scaling": (scaling,)}))


def test_the_loop_is_plain_full_batch_gradient_descent() -> None:
    spec = cell("wine", "rank2")
    curve = run(spec, [3], epochs=30, log_every=1)[0]
    problem = load_problem("wine", spec.recipe, [3])
    model = build_model(spec.model, (13,), 3, 1.0, seed=3)
    (factors,) = model.parameters()
    for step in range(31):
        logits = model(problem.train.x[0])
        loss = F.cross_entropy(logits, problem.train.y[0])
        assert curve.metrics["train_loss"][step] == pytest.approx(loss.item(), rel=1e-5)
        margin = normalized_margin(logits, problem.train.y[0])
        assert curve.metrics["margin"][step] == pytest.approx(margin.item(), abs=1e-5)
        (gradient,) = torch.autograd.grad(loss, factors)
        if step < 30:
            with torch.no_grad():
                factors -= spec.recipe.lr * gradient
    right = (model(problem.test.x[0]).argmax(-1) == problem.test.y[0]).double().mean().item()
    assert curve.metrics["test_accuracy"][-1] == pytest.approx(100 * right)
    assert curve.step == list(range(31))


@pytest.mark.parametrize("model", list(UCI.grid.model))
@pytest.mark.parametrize("dataset", ["iris", "wisconsin"])
def test_a_seed_does_not_depend_on_its_neighbours(dataset: str, model: str) -> None:
    together = run(cell(dataset, model), list(range(10)), epochs=50, log_every=1)
    alone = run(cell(dataset, model), [7], epochs=50, log_every=1)[0]
    difference = torch.tensor(together[7].metrics["train_loss"]) - torch.tensor(
        alone.metrics["train_loss"]
    )
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("log_every", [1, 20])
def test_a_diverged_neighbour_changes_nothing(log_every: int) -> None:
    spec = cell("wine", "rank2")
    recipe = spec.recipe.model_copy(update={"epochs": 50, "log_every": log_every})
    problem = load_problem("wine", recipe, [0, 1])
    models = [build_model(spec.model, (13,), 3, 1.0, seed) for seed in (0, 1)]
    by_itself = build_model(spec.model, (13,), 3, 1.0, seed=0)
    (alone,) = train([by_itself], load_problem("wine", recipe, [0]), recipe)
    with torch.no_grad():
        models[1].factors.mul_(1e20)
    kept, lost = train(models, problem, recipe)
    assert lost.diverged_at == 0
    assert kept.diverged_at is None
    difference = torch.tensor(kept.metrics["train_loss"]) - torch.tensor(
        alone.metrics["train_loss"]
    )
    assert difference.abs().max() < 1e-5


def test_the_same_block_gives_the_same_bits() -> None:
    first, second = (run(cell("wine", "rank1"), [0, 1, 2], epochs=200) for _ in range(2))
    assert recorded(first) == recorded(second)


@pytest.mark.parametrize("model", ["linear", "rank1", "rank4-affine"])
def test_divergence_is_recorded_with_its_first_step_at_any_thinning(model: str) -> None:
    spec = cell("wine", model, scaling="raw")
    every_step = run(spec, [0, 1], epochs=120, log_every=1, lr=0.1)
    thinned = run(spec, [0, 1], epochs=120, log_every=50, lr=0.1)
    for fine, coarse in zip(every_step, thinned, strict=True):
        assert fine.diverged_at == coarse.diverged_at
        if fine.diverged_at is not None:
            assert max(fine.step) == fine.diverged_at - 1
            assert all(torch.tensor(v).isfinite().all() for v in fine.metrics.values())
    # the linear layer's steps are bounded; squares of raw features of the order of 1000 are not
    assert (every_step[0].diverged_at is not None) == (model != "linear")


def test_seeds_start_from_their_own_seed_alone_and_leave_the_global_state() -> None:
    spec = UCI.grid.model["rank2"]
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first = build_model(spec, (4,), 3, 1.0, seed=5)
    assert torch.equal(torch.rand(1), expected)
    second = build_model(spec, (4,), 3, 1.0, seed=5)
    other = build_model(spec, (4,), 3, 1.0, seed=6)
    assert torch.equal(first.factors, second.factors)
    assert not torch.equal(first.factors, other.factors)


@pytest.mark.parametrize("model", list(UCI.grid.model))
def test_init_scale_scales_the_outputs_at_the_start(model: str) -> None:
    x = torch.randn(7, 4)
    small = build_model(UCI.grid.model[model], (4,), 3, 0.1, seed=0)(x)
    large = build_model(UCI.grid.model[model], (4,), 3, 1.0, seed=0)(x)
    torch.testing.assert_close(large, 10 * small, rtol=1e-4, atol=1e-6)


def digits(**recipe: object) -> Recipe:
    return Recipe.model_validate(
        {"epochs": 2, "batch_size": 100, "train_metrics": "running", "log_every": 5, **recipe}
    )


def test_small_batches_are_sgd_in_the_order_of_seed_and_epoch() -> None:
    recipe = digits(lr=0.05, momentum=0.9, scaling="maxabs", test_fraction=0.2, log_every="epoch")
    problem = load_problem("digits", recipe, [4])
    spec = UCI.grid.model["rank2"]
    (curve,) = Training(
        side_by_side([build_model(spec, (64,), 10, 1.0, seed=4)]), problem, recipe, [4]
    ).run()
    model = build_model(spec, (64,), 10, 1.0, seed=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = problem.train.x[0], problem.train.y[0]
    for epoch in range(2):
        order = torch.randperm(len(x), generator=generator(4, epoch, 0))
        losses = []
        for index in order.split(100):
            loss = F.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert curve.metrics["train_loss"][epoch] == pytest.approx(sum(losses) / 15, rel=1e-5)
        right = (model(problem.test.x[0]).argmax(-1) == problem.test.y[0]).double().mean().item()
        assert curve.metrics["test_accuracy"][epoch] == pytest.approx(100 * right)
    assert curve.step == [15, 30]
    assert sorted(curve.time) == curve.time


def test_seeds_side_by_side_on_small_batches_do_not_see_each_other() -> None:
    recipe = digits(test_fraction=0.2, scaling="maxabs", clip_norm=0.5, lr=0.1)
    spec = ModelSpec(kind="mlp", hidden=(8,), neuron="quadratic")

    def curves(seeds: list[int]) -> list[Curve]:
        models = [build_model(spec, (64,), 10, 1.0, seed) for seed in seeds]
        return Training(
            side_by_side(models), load_problem("digits", recipe, seeds), recipe, seeds
        ).run()

    together, (alone,) = curves([0, 1, 2]), curves([1])
    assert together[1].metrics["train_loss"] == pytest.approx(alone.metrics["train_loss"], abs=1e-5)
    assert together[0].metrics["train_loss"] != together[1].metrics["train_loss"]


def test_a_ramp_ends_with_the_training_and_goes_on_from_a_checkpoint() -> None:
    gamma = {"start": 0, "end": 1}
    recipe = digits(test_fraction=0.2, scaling="maxabs", lr=0.1, strategy={"gamma": gamma})
    spec = ModelSpec(kind="mlp", hidden=(8,), neuron="quadratic")
    problem = load_problem("digits", recipe, [0])

    def training() -> Training:
        model = build_model(spec, (64,), 10, 1.0, 0, recipe.strategy)
        return Training(side_by_side([model]), problem, recipe, [0])

    whole, first, second = training(), training(), training()
    assert whole.strategy is not None
    factors: list[float] = []
    whole.run(on_step=lambda _: factors.append(whole.strategy.rate_factors(whole.optimizer)[1]))
    steps = [step / whole.steps for step in whole.curves[0].step]
    assert factors == pytest.approx(steps)
    assert factors[-1] == 1.0

    def stop(step: int) -> None:
        if step >= whole.steps // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(on_step=stop)
    second.restore(first.state())
    second.run()
    for name, value in whole.model.module.state_dict().items():
        assert torch.equal(second.model.module.state_dict()[name], value)


def test_averages_taken_anew_are_those_of_the_training_part_and_change_no_step() -> None:
    spec = ModelSpec(kind="zoo", name="cifar_resnet20", options={"depths": [1, 1, 1]})
    states, curves = {}, {}
    for averages in ("running", "anew"):
        recipe = digits(lr=0.05, train_samples=200, test_samples=100, averages=averages)
        problem = load_problem("digits32", recipe, [0])
        model = build_model(spec, problem.shape, problem.classes, 1.0, 0)
        (curves[averages],) = Training(side_by_side([model]), problem, recipe, [0]).run()
        states[averages] = model.state_dict()
    assert curves["anew"].metrics["train_loss"] == curves["running"].metrics["train_loss"]
    assert curves["anew"].metrics["test_loss"] != curves["running"].metrics["test_loss"]
    for name, value in states["running"].items():
        if "num_batches" not in name:
            assert torch.equal(states["anew"][name], value) != ("running_" in name)
    # the first layer's: a mean over batches of the mean of each
    convolved = nn.functional.conv2d(
        torch.cat([x[0] for x, _ in problem.train.chunks(None)]),
        states["anew"]["stem.conv.weight"],
        padding=1,
    )
    torch.testing.assert_close(
        states["anew"]["stem.bn.running_mean"], convolved.mean((0, 2, 3)), rtol=1e-3, atol=1e-5
    )


def test_a_sum_over_a_batch_is_the_mean_at_a_larger_rate() -> None:
    def losses(**options: object) -> list[float]:
        recipe = digits(test_fraction=0.2, scaling="maxabs", batch_size=1, epochs=1, **options)
        problem = load_problem("iris", recipe, [0])
        model = build_model(UCI.grid.model["rank1"], (4,), 3, 1.0, seed=0)
        return Training(side_by_side([model]), problem, recipe, [0]).run()[0].metrics["train_loss"]

    assert losses(lr=0.01) == losses(lr=0.01, reduction="sum")  # batches of one sample

    def after(**options: object) -> list[float]:
        recipe = digits(test_fraction=0.2, scaling="maxabs", batch_size=40, epochs=3, **options)
        problem = load_problem("iris", recipe, [0])
        model = build_model(UCI.grid.model["rank1"], (4,), 3, 1.0, seed=0)
        return Training(side_by_side([model]), problem, recipe, [0]).run()[0].metrics["train_loss"]

    # what is recorded is the mean in both
    assert after(lr=0.04) == pytest.approx(after(lr=0.001, reduction="sum"), rel=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_clipped_steps_are_as_long_as_the_bound_where_gradients_that_gamma_holds_back_are_not(
    count: int,
) -> None:
    spec = ModelSpec(kind="mlp", hidden=(8,), neuron="quadratic")

    def first_step(clip_by: str) -> list[float]:
        recipe = digits(
            test_fraction=0.2,
            lr=1.0,
            epochs=1,
            batch_size=2000,  # all: one step
            clip_norm=1e-3,
            clip_by=clip_by,
            strategy={"gamma": 0.0},
        )
        problem = load_problem("digits", recipe, range(count))
        models = [build_model(spec, (64,), 10, 1.0, seed=seed) for seed in range(count)]
        training = Training(side_by_side(models), problem, recipe, range(count))
        before = [training.model.replica_state(seed) for seed in range(count)]
        training.run()
        return [
            math.sqrt(sum((v - before[seed][k]).double().square().sum() for k, v in after.items()))
            for seed in range(count)
            for after in [training.model.replica_state(seed)]
        ]

    assert first_step("steps") == pytest.approx([1e-3] * count, rel=1e-2)
    assert max(first_step("gradients")) < 0.9e-3


def test_the_margin_is_subtracted_from_the_loss_with_its_weight() -> None:
    recipe = digits(test_fraction=0.2, scaling="maxabs", batch_size=40, margin_weight=0.7)
    problem = load_problem("iris", recipe, [0])
    model = build_model(UCI.grid.model["rank1"], (4,), 3, 1.0, seed=0)
    training = Training(side_by_side([model]), problem, recipe, [0])
    x, y = training.batch()
    _, mean, loss = training._loss(x, y, y.shape[1])
    logits = model(x[0])
    expected = F.cross_entropy(logits, y[0]) - 0.7 * normalized_margin(logits, y[0])
    assert loss[0].item() == pytest.approx(expected.item())
    assert mean[0].item() == pytest.approx(F.cross_entropy(logits, y[0]).item())


def test_an_exploding_loss_is_divergence_though_it_is_finite() -> None:
    recipe = digits(test_fraction=0.2, lr=0.5, explosion=20.0, log_every=1, epochs=5)
    problem = load_problem("digits", recipe, [0])
    model = build_model(ModelSpec(kind="linear"), (64,), 10, 1.0, seed=0)
    (curve,) = Training(side_by_side([model]), problem, recipe, [0]).run()
    assert curve.diverged_at is not None
    first = curve.metrics["train_loss"][0]
    assert max(curve.metrics["train_loss"]) <= 20 * first
    assert max(curve.step) <= curve.diverged_at


def test_a_trained_network_that_begins_with_next_to_no_loss_has_not_exploded() -> None:
    recipe = digits(test_fraction=0.2, lr=0.5, epochs=200)
    problem = load_problem("digits", recipe, [0])
    model = build_model(ModelSpec(kind="linear"), (64,), 10, 1.0, seed=0)
    Training(side_by_side([model]), problem, recipe, [0]).run()
    update = {"batch_size": 10, "lr": 1e-6, "explosion": 2.0, "log_every": 1, "epochs": 1}
    after = recipe.model_copy(update=update | {"train_metrics": "running"})
    (curve,) = Training(side_by_side([model]), problem, after, [0]).run()
    losses = curve.metrics["train_loss"]
    assert max(losses) > 2 * losses[0]
    assert curve.diverged_at is None


class LateInEvaluation(nn.Module):
    """A linear classifier that is of use in evaluation only after some steps, as one is whose batch
    norm has seen too few batches."""

    def __init__(self, late: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.late = late
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
        elif self.steps < self.late:
            return self.linear(x) * torch.nan
        return self.linear(x)


@pytest.mark.parametrize(("late", "diverged_at"), [(5, None), (1000, 12)])
def test_a_loss_that_evaluation_alone_does_not_have_is_no_divergence(
    late: int, diverged_at: int | None
) -> None:
    """But for the end: what is left then is a network of no use."""
    more = {"batch_size": 40, "log_every": 1, "train_metrics": "running", "epochs": 4}
    recipe = digits(test_fraction=0.2, scaling="maxabs", **more)
    problem = load_problem("iris", recipe, [0])
    torch.manual_seed(0)
    (curve,) = Training(side_by_side([LateInEvaluation(late)]), problem, recipe, [0]).run()
    assert curve.diverged_at == diverged_at
    assert math.isnan(curve.metrics["test_loss"][2])
    assert all(map(math.isfinite, curve.metrics["train_loss"][1:]))


def test_images_in_a_whole_batch_give_the_gradient_of_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe(epochs=3, lr=0.1, log_every=1)
    problem = load_problem("digits32", recipe, [0, 1])
    spec = ModelSpec(kind="low_rank", rank=1)

    def curves() -> list[Curve]:
        models = [build_model(spec, (1, 32, 32), 10, 1.0, seed) for seed in (0, 1)]
        return Training(side_by_side(models), problem, recipe, [0, 1]).run()

    monkeypatch.setattr("qbench.loop.CHUNK", 100)
    in_chunks = curves()
    monkeypatch.setattr("qbench.loop.CHUNK", 10_000)
    at_once = curves()
    for one, other in zip(in_chunks, at_once, strict=True):
        for name, values in one.metrics.items():
            assert values == pytest.approx(other.metrics[name], rel=1e-4)


def test_validation_samples_are_measured_and_never_trained_on() -> None:
    recipe = digits(epochs=1, validation=200, log_every="epoch", batch_size=50)
    problem = load_problem("digits32", recipe, [0])
    assert (len(problem.train), len(problem.validation), len(problem.test)) == (1237, 200, 360)
    model = build_model(ModelSpec(kind="low_rank", rank=1), (1, 32, 32), 10, 1.0, seed=0)
    training = Training(side_by_side([model]), problem, recipe, [0])
    (curve,) = training.run()
    assert curve.metrics["validation_accuracy"] == pytest.approx(
        training.measure(problem.validation)["accuracy"].tolist()
    )
    assert training.step == 25


def test_batch_norm_learns_in_training_and_rests_in_measuring() -> None:
    spec = ModelSpec(kind="zoo", name="cifar_resnet20", options={"depths": [1, 1, 1]})
    recipe = digits(epochs=1, batch_size=32, train_samples=64, test_samples=40, log_every="epoch")
    problem = load_problem("digits32", recipe, [0])
    model = build_model(spec, (1, 32, 32), 10, 1.0, seed=0)
    training = Training(side_by_side([model]), problem, recipe, [0])
    training.run()
    counts = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {2}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    training.measure(problem.test)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["bfloat16", "tf32"])
def test_a_lower_precision_trains_to_nearly_the_same(name: str) -> None:
    def loss(name: str) -> float:
        recipe = digits(test_fraction=0.2, scaling="maxabs", precision=name, lr=0.1)
        problem = load_problem("digits", recipe, [0])
        model = build_model(ModelSpec(kind="linear"), (64,), 10, 1.0, seed=0)
        return (
            Training(side_by_side([model]), problem, recipe, [0]).run()[0].metrics["train_loss"][-1]
        )

    exact, lower = loss("float32"), loss(name)
    assert lower == pytest.approx(exact, rel=0.02)
    assert (lower == exact) == (name == "tf32")  # which a CPU does not know


def test_compiled_training_of_a_model_is_not_that_of_the_one_before() -> None:
    """The two differ in hooks alone, which torch does not look at when it takes compiled code."""
    recipe = Recipe(epochs=3, lr=0.1)
    problem = load_problem("iris", recipe, [0])

    def losses(*, doubled: bool, compiled: bool) -> list[float]:
        spec = ModelSpec(kind="mlp", hidden=(4,), neuron="quadratic")
        model = build_model(spec, (4,), 3, 1.0, 0, Strategy(start="conventional"))
        if doubled:
            model[0].register_forward_hook(lambda _layer, _inputs, outputs: 2 * outputs)
        training = Training(side_by_side([model]), problem, recipe, [0], compiled=compiled)
        return training.run()[0].metrics["train_loss"]

    expected = losses(doubled=True, compiled=False)
    assert losses(doubled=False, compiled=True) != pytest.approx(expected, rel=1e-2)
    assert losses(doubled=True, compiled=True) == pytest.approx(expected, rel=1e-4)


def test_compiled_training_follows_the_plain_one() -> None:
    def loss(*, compiled: bool) -> list[float]:
        recipe = digits(test_fraction=0.2, scaling="maxabs", lr=0.1, epochs=1)
        problem = load_problem("digits", recipe, [0])
        model = build_model(ModelSpec(kind="mlp", hidden=(8,)), (64,), 10, 1.0, seed=0)
        training = Training(side_by_side([model]), problem, recipe, [0], compiled=compiled)
        return training.run()[0].metrics["train_loss"]

    assert loss(compiled=True) == pytest.approx(loss(compiled=False), rel=1e-4)
