"""The dense form by blocks of its triangle: the values and all derivatives of the formula."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qcore
from qcore import QuadraticForm
from qcore.kernels import triangle

DOUBLE = torch.float64


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks from two features on, halved down to four: every shape of them in small forms."""
    monkeypatch.setattr(triangle, "_SMALLEST", 2)
    monkeypatch.setattr(triangle, "_LEAF", 4)


def results(form, x, name):
    """The value, and the gradients of a weighted sum of it for the input and the triangle."""
    x = x.detach().requires_grad_()
    with qcore.backend(name):
        assert form.path(x) == name
        y = form(x)
    weights = torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, form.triangle])]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("n", range(2, 42))
def test_every_size_has_the_values_and_gradients_of_the_formula(n):
    form = QuadraticForm(n, 3, dtype=DOUBLE)
    x = torch.randn(5, n, dtype=DOUBLE)
    torch.testing.assert_close(results(form, x, "fast"), results(form, x, "plain"))


@pytest.mark.parametrize("n", [256, 401])
def test_the_blocks_of_large_forms(n):
    form = QuadraticForm(n, 2, dtype=DOUBLE)
    x = torch.randn(3, n, dtype=DOUBLE)
    torch.testing.assert_close(results(form, x, "fast"), results(form, x, "plain"))


@pytest.mark.parametrize("n", range(1, 200, 7))
@pytest.mark.parametrize("leaf", [1, 4, 100])
def test_the_blocks_cover_every_entry_of_the_triangle_once(n, leaf):
    places = torch.zeros((n + 1) // 2, n // 2 * 2 + 1, dtype=torch.int64)
    pairs = torch.zeros(n, n, dtype=torch.int64)
    for block in triangle._blocks(n, leaf):
        place, pair = places[block.place[1:]], pairs[block.rows, block.columns]
        ones = torch.ones_like(place)
        counts = {"full": ones, "upper": ones.triu(), "lower": ones.tril()}[block.kind]
        place += counts
        pair += counts
    assert (places == 1).all()
    assert ((pairs + pairs.t()).fill_diagonal_(0) == 1 - torch.eye(n, dtype=torch.int64)).all()
    assert (pairs.diagonal() == 1).all()


@pytest.mark.parametrize("samples", [0, 1, 3, 4, 11])
def test_tiles_of_samples_have_the_values_and_gradients_of_the_formula(monkeypatch, samples):
    monkeypatch.setattr(triangle, "_TILE", 3 * 2 * 260)
    form = QuadraticForm(260, 2, dtype=DOUBLE)
    x = torch.randn(samples, 260, dtype=DOUBLE)
    torch.testing.assert_close(results(form, x, "fast"), results(form, x, "plain"))
    with torch.profiler.profile() as profile:
        form(x)
    tiles = [event for event in profile.events() if event.name == "_Blocked"]
    assert len(tiles) == max(1, math.ceil(samples / 3))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("n", [7, 12])
@pytest.mark.parametrize("affine", [False, True], ids=["pure", "affine"])
def test_first_and_second_derivatives(n, affine):
    form = QuadraticForm(n, 2, affine=affine, dtype=DOUBLE)

    def run(x, stored):
        return torch.func.functional_call(form, {"triangle": stored}, (x,))

    x = torch.randn(2, n, dtype=DOUBLE, requires_grad=True)
    stored = form.triangle.detach().clone().requires_grad_()
    with qcore.backend("fast"):
        assert type(run(x, stored).grad_fn.next_functions[0][0]).__name__ == "_BlockedBackward"
        assert torch.autograd.gradcheck(run, (x, stored))
        assert torch.autograd.gradgradcheck(run, (x, stored))


def test_a_gradient_for_what_asks_for_one():
    form = QuadraticForm(300, 2)
    x = torch.randn(3, 300)
    assert form.path(x) == "fast"
    form(x).sum().backward()  # the input is data
    assert x.grad is None
    assert form.triangle.grad.any()
    form.triangle.requires_grad_(False).grad = None
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(form(x).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, 2 * (form.matrix.sum(0) @ x.t()).t(), rtol=1e-4, atol=1e-4)
    assert form.triangle.grad is None
    assert not form(x.detach()).requires_grad


@settings(max_examples=30, deadline=None)
@given(
    leading=st.lists(st.integers(0, 3), max_size=3),
    out=st.integers(0, 3),
    affine=st.booleans(),
    layout=st.sampled_from(["contiguous", "transposed", "expanded"]),
)
def test_any_leading_dimensions_and_layout(leading, out, affine, layout):
    form = QuadraticForm(260, out, affine=affine)
    x = torch.randn(*leading, 260)
    if layout == "transposed":
        x = torch.randn(260, *leading).movedim(0, -1)
    elif layout == "expanded":
        x = torch.randn(260).expand(*leading, 260)
    ours, expected = results(form, x, "fast"), results(form, x, "plain")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_which_forms_take_the_blocks():
    large, small, x = QuadraticForm(256, 2), QuadraticForm(255, 2), torch.randn(2, 256)
    assert large.path(x) == "fast"
    assert small.path(x[:, 1:]) == "plain"
    assert QuadraticForm(255, 2, affine=True).path(x) == "fast"  # with the appended 1
    for name, path in (("plain", "plain"), ("fast", "fast"), ("triton", "plain")):
        with qcore.backend(name):
            assert large.path(x) == path
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert large.path(x) == "plain"
        torch.testing.assert_close(large(x).float(), large.formula(x, large.triangle).float())
    assert large.path(x.double()) == "plain"  # which raises torch's own error
    assert large.path(x.to("meta")) == "plain"


def test_stacked_forms_take_the_formula():
    replicas = [QuadraticForm(256, 2) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(replicas)
    x = torch.randn(4, 256)
    together = torch.func.vmap(
        lambda values: torch.func.functional_call(replicas[0], values, (x,))
    )(stacked)
    torch.testing.assert_close(
        together, torch.stack([form(x) for form in replicas]), rtol=1e-4, atol=1e-4
    )


def test_a_jacobian_in_one_pass():
    """A batch of gradients at once, through a backward pass that writes in place otherwise."""
    form, x = QuadraticForm(300, 2), torch.randn(300)
    assert form.path(x) == "fast"
    found = torch.autograd.functional.jacobian(form, x, vectorize=True)
    torch.testing.assert_close(found, 2 * form.matrix @ x, rtol=1e-4, atol=1e-4)


def test_complex_forms_take_the_formula():
    form, x = (
        QuadraticForm(256, 2, dtype=torch.complex64),
        torch.randn(3, 256, dtype=torch.complex64),
    )
    assert form.path(x) == "plain"
    (form(x).abs().sum()).backward()
    assert form.triangle.grad.any()


def test_a_setting_holds_in_other_threads():
    """In which autograd computes checkpointed layers once more."""
    form, x, paths = QuadraticForm(256, 2), torch.randn(3, 256), []
    with qcore.backend("plain"):
        thread = threading.Thread(target=lambda: paths.append(form.path(x)))
        thread.start()
        thread.join()
    assert paths == ["plain"]
    assert form.path(x) == "fast"
