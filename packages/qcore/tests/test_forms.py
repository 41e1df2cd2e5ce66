"""Quadratic forms: written-out formulas, their algebra, their matrices, gradient descent."""

import copy
import math
import pickle
import re
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qcore import LowRankForm, QuadraticForm
from qcore.convolutions import PatchForm

DOUBLE = torch.float64
LOW_RANK = {
    "lowrank": {"rank": 2},
    "lowrank-signed": {"rank": 3, "signed": True},
    "lowrank-affine": {"rank": 1, "affine": True},
    "lowrank-signed-affine": {"rank": 2, "signed": True, "affine": True},
}
KINDS = {
    "dense": (QuadraticForm, {}),
    "dense-affine": (QuadraticForm, {"affine": True}),
    **{name: (LowRankForm, options) for name, options in LOW_RANK.items()},
}
# Two sizes below the row blocks, and from 32 on: full blocks, and a last block that is smaller.
SIZES = [1, 5, 32, 33, 35]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_size = pytest.mark.parametrize("n", SIZES)
pure_kinds = pytest.mark.parametrize("kind", [k for k in KINDS if "affine" not in k])
ignore_script_is_deprecated = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:FutureWarning",
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
)


def make(kind, n=5, out=3, dtype=DOUBLE):
    """A form with random numbers in every parameter."""
    constructor, options = KINDS[kind]
    form = constructor(n, out, **options, dtype=dtype)
    with torch.no_grad():
        for parameter in form.parameters():
            parameter.normal_()
    return form


def place_written_out(n, i, j):
    """Where the entry (i, j) of the upper triangle of ``A_k`` is in its stored triangle."""
    large, small = (n + 1) // 2, n // 2
    width = 2 * small + 1
    if i < large <= j:
        return i * width + j - large  # the square
    if j < large:
        return i * width + small + j + (n % 2 == 0)  # the upper triangle beside it
    return (j - large + n % 2) * width + small + i - large  # the other one turned around, below it


def matrices_written_out(form):
    """``A_k`` as nested lists, entry by entry from what is stored."""
    matrices = []
    for k in range(form.out_features):
        A = [[0.0] * form.size for _ in range(form.size)]
        if isinstance(form, QuadraticForm):
            for i in range(form.size):
                for j in range(i, form.size):
                    stored = form.triangle[k, place_written_out(form.size, i, j)].item()
                    A[i][j] = A[j][i] = stored / (1.0 if i == j else math.sqrt(2.0))
        else:
            signs = form.signs[k].tolist() if form.signed else [1.0] * form.rank
            for sign, c in zip(signs, form.factors[k].tolist(), strict=True):
                for i, j in product(range(form.size), repeat=2):
                    A[i][j] += sign * c[i] * c[j]
        matrices.append(A)
    return matrices


def outputs_written_out(form, x):
    """``f_k(x)`` by loops over the batch, the outputs, i and j."""
    matrices = matrices_written_out(form)
    values = []
    for row in x.tolist():
        features = row + [1.0] * form.affine
        for A in matrices:
            total = 0.0
            for i, j in product(range(form.size), repeat=2):
                total += features[i] * A[i][j] * features[j]
            values.append(total)
    return torch.tensor(values, dtype=DOUBLE).reshape(len(x), form.out_features)


@every_kind
@every_size
def test_form_is_its_formula_written_out(kind, n):
    form = make(kind, n)
    x = torch.randn(2, n, dtype=DOUBLE)
    torch.testing.assert_close(form(x), outputs_written_out(form, x), rtol=1e-10, atol=1e-10)


@every_kind
@every_size
def test_matrix_is_symmetric_and_written_out(kind, n):
    form = make(kind, n)
    A = form.matrix
    torch.testing.assert_close(A, A.transpose(1, 2), rtol=0, atol=0)
    torch.testing.assert_close(A, torch.tensor(matrices_written_out(form), dtype=DOUBLE))


@every_kind
@every_size
def test_forward_is_the_einsum_with_matrix(kind, n):
    form = make(kind, n)
    x = torch.randn(4, 2, n, dtype=DOUBLE)
    features = torch.cat([x, torch.ones_like(x[..., :1])], -1) if form.affine else x
    expected = torch.einsum("...i,kij,...j->...k", features, form.matrix, features)
    torch.testing.assert_close(form(x), expected, rtol=1e-10, atol=1e-10)


@every_kind
def test_gradients_flow_through_matrix(kind):
    form = make(kind)
    direction = torch.randn_like(form.matrix)
    (form.matrix * direction).sum().backward()
    assert all(parameter.grad.ne(0).any() for parameter in form.parameters())


# --- algebra ---


@pure_kinds
@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    n=st.sampled_from(SIZES), t=st.floats(-4.0, 4.0, allow_subnormal=False), seed=st.integers(0, 99)
)
def test_pure_form_is_even_and_homogeneous_of_degree_two(kind, n, t, seed):
    torch.manual_seed(seed)
    form = make(kind, n)
    x = torch.randn(3, n, dtype=DOUBLE)
    assert torch.equal(form(-x), form(x))
    torch.testing.assert_close(form(t * x), t**2 * form(x), rtol=1e-9, atol=1e-9)
    assert torch.equal(form(torch.zeros_like(x)), torch.zeros(3, 3, dtype=DOUBLE))


@pytest.mark.parametrize("kind", [k for k in KINDS if "affine" in k])
def test_affine_form_is_not_even(kind):
    form = make(kind)
    x = torch.randn(3, 5, dtype=DOUBLE)
    assert not torch.allclose(form(-x), form(x))


@pytest.mark.parametrize("kind", ["lowrank", "lowrank-affine"])
@settings(deadline=None, derandomize=True, max_examples=20)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_low_rank_form_without_signs_is_non_negative(kind, seed, scale):
    torch.manual_seed(seed)
    form = make(kind)
    assert (form(scale * torch.randn(50, 5, dtype=DOUBLE)) >= 0).all()


def affine_matrix_of(linear):
    """``A_k`` with ``(x, 1)ᵀ A_k (x, 1) = w_k x + b_k``."""
    out, n = linear.weight.shape
    A = torch.zeros(out, n + 1, n + 1, dtype=linear.weight.dtype)
    A[:, n, :n] = A[:, :n, n] = linear.weight.detach() / 2
    A[:, n, n] = linear.bias.detach()
    return A


@every_size
def test_dense_affine_form_contains_the_linear_layer(n):
    linear = torch.nn.Linear(n, 3, dtype=DOUBLE)
    form = QuadraticForm(n, 3, affine=True, dtype=DOUBLE)
    form.matrix = affine_matrix_of(linear)
    x = torch.randn(7, n, dtype=DOUBLE)
    torch.testing.assert_close(form(x), linear(x), rtol=1e-12, atol=1e-12)


def test_signed_affine_form_of_rank_two_contains_the_linear_layer():
    linear = torch.nn.Linear(5, 3, dtype=DOUBLE)
    form = LowRankForm(5, 3, rank=2, signed=True, affine=True, dtype=DOUBLE)
    assert torch.equal(form.signs, torch.tensor([[1.0, -1.0]] * 3, dtype=DOUBLE))
    # y = ((y + 1)² - (y - 1)²) / 4 with y = w x + b
    y = torch.cat([linear.weight, linear.bias[:, None]], 1)
    one = torch.zeros_like(y)
    one[:, -1] = 1.0
    with torch.no_grad():
        form.factors.copy_(torch.stack([y + one, y - one], 1) / 2)
    x = torch.randn(7, 5, dtype=DOUBLE)
    torch.testing.assert_close(form(x), linear(x))


def test_signed_low_rank_form_reaches_any_symmetric_matrix_of_its_rank():
    B = torch.randn(3, 4, 4, dtype=DOUBLE)
    A = B + B.transpose(1, 2)
    eigenvalues, vectors = torch.linalg.eigh(A)
    assert (eigenvalues[:, 0] < 0).all()  # indefinite
    assert (eigenvalues[:, -1] > 0).all()
    form = LowRankForm(4, 3, rank=4, signed=True, dtype=DOUBLE)
    with torch.no_grad():
        form.factors.copy_(vectors.transpose(1, 2))
        form.signs.copy_(eigenvalues)
    torch.testing.assert_close(form.matrix, A)


def test_signed_low_rank_form_starts_indefinite():
    eigenvalues = torch.linalg.eigvalsh(LowRankForm(6, 4, rank=2, signed=True, dtype=DOUBLE).matrix)
    assert (eigenvalues[:, 0] < -1e-3).all()
    assert (eigenvalues[:, -1] > 1e-3).all()


@pytest.mark.parametrize("kind", LOW_RANK)
def test_dense_form_takes_over_the_matrix_of_a_low_rank_form(kind):
    low_rank = make(kind, 33)
    dense = QuadraticForm(33, 3, affine=low_rank.affine, dtype=DOUBLE)
    dense.matrix = low_rank.matrix
    x = torch.randn(4, 33, dtype=DOUBLE)
    torch.testing.assert_close(dense(x), low_rank(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_matrix_of_a_low_rank_form_has_its_rank(rank):
    A = LowRankForm(6, 3, rank=rank, signed=True, dtype=DOUBLE).matrix
    assert torch.linalg.matrix_rank(A).tolist() == [rank] * 3


# --- setting the matrix ---


@every_size
@pytest.mark.parametrize("affine", [False, True], ids=["pure", "affine"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
def test_matrix_can_be_set_and_read_back(n, affine, dtype):
    form = QuadraticForm(n, 2, affine=affine, dtype=dtype)
    B = torch.randn(2, form.size, form.size, dtype=dtype)
    A = B + B.transpose(1, 2)
    parameter = form.triangle
    form.matrix = A
    assert form.triangle is parameter
    assert parameter.requires_grad
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(form.matrix, A, rtol=4 * eps, atol=0)


def test_setting_the_matrix_keeps_its_length():
    """√2 on the off-diagonal entries: the Frobenius norm is the length of the triangle."""
    form = QuadraticForm(6, 1, dtype=DOUBLE)
    B = torch.randn(1, 6, 6, dtype=DOUBLE)
    form.matrix = B + B.transpose(1, 2)
    torch.testing.assert_close(form.triangle.norm(), (B + B.transpose(1, 2)).norm())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(2, 3, 4), "matrix has shape (2, 3, 4), but this form takes (2, 3, 3)"),
        (torch.zeros(3, 3), "matrix has shape (3, 3), but this form takes (2, 3, 3)"),
        (
            torch.ones(2, 3, 3).triu(),
            "matrix is not symmetric; a form only sees the symmetric part, (A + Aᵀ) / 2",
        ),
    ],
    ids=["not square", "one matrix", "not symmetric"],
)
def test_a_matrix_that_does_not_fit_is_refused(value, text):
    form = QuadraticForm(3, 2)
    before = form.triangle.clone()
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        form.matrix = value
    assert torch.equal(form.triangle, before)


# --- gradient descent ---


def descend(outputs, parameter, target, steps=50, lr=0.05):
    """The parameter after each step of gradient descent on the cross-entropy."""
    trajectory = []
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(functional.cross_entropy(outputs(), target), parameter)
        with torch.no_grad():
            parameter -= lr * gradient
        trajectory.append(parameter.clone())
    return trajectory


@pytest.mark.parametrize("n", [6, 33])
def test_descent_on_the_triangle_follows_descent_on_the_full_matrix(n):
    form = QuadraticForm(n, 4, dtype=DOUBLE)
    A = form.matrix.detach().requires_grad_()
    # a triangle that stores A_ij itself, without √2
    naive = A.detach().triu().requires_grad_()
    x = torch.randn(20, n, dtype=DOUBLE)
    target = torch.randint(4, (20,))

    def full(matrix):
        return torch.einsum("bi,kij,bj->bk", x, matrix, x)

    def symmetric(upper):
        return upper.triu() + upper.triu(1).transpose(1, 2)

    def as_matrix(triangle):
        other = copy.deepcopy(form)
        other.load_state_dict({"triangle": triangle})
        return other.matrix

    expected = descend(lambda: full(A), A, target)
    ours = [as_matrix(t) for t in descend(lambda: form(x), form.triangle, target)]
    others = [symmetric(t) for t in descend(lambda: full(symmetric(naive)), naive, target)]
    assert not torch.allclose(expected[-1], expected[0], rtol=1e-2)
    for step in range(50):
        torch.testing.assert_close(ours[step], expected[step], rtol=1e-10, atol=1e-13)
        assert not torch.allclose(others[step], expected[step], rtol=1e-3, atol=1e-6)


# --- initial values ---


@pytest.mark.parametrize(
    "kind", ["dense", "dense-affine", "lowrank", "lowrank-signed", "lowrank-affine"]
)
@pytest.mark.parametrize("init_scale", [1.0, 0.25, 0.0])
def test_init_scale_is_the_standard_deviation_of_an_output(kind, init_scale):
    constructor, options = KINDS[kind]
    form = constructor(9, 20_000, **options, init_scale=init_scale, dtype=DOUBLE)
    x = torch.randn(9, dtype=DOUBLE)
    length = math.sqrt(form.size - form.affine)  # with the appended 1: ‖x‖² = n
    y = form(x * length / x.norm())
    assert y.std(correction=0).item() == pytest.approx(init_scale, rel=0.05)


@every_kind
def test_reset_draws_anew(kind):
    form = make(kind)
    before = [parameter.clone() for parameter in form.parameters()]
    form.reset_parameters()
    after = list(form.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_signs_start_alternating_and_are_trainable_only_if_signed():
    signed = LowRankForm(4, 2, rank=3, signed=True)
    unsigned = LowRankForm(4, 2, rank=3)
    assert signed.signs.tolist() == [[1.0, -1.0, 1.0]] * 2
    assert unsigned.signs.tolist() == [[1.0, 1.0, 1.0]] * 2
    assert [name for name, _ in signed.named_parameters()] == ["factors", "signs"]
    assert [name for name, _ in unsigned.named_parameters()] == ["factors"]
    assert list(unsigned.state_dict()) == ["factors"]


# --- sizes, counts, errors ---


def test_parameters_of_the_dense_head_of_mnist():
    form = QuadraticForm(784, 10, device="meta")
    assert sum(parameter.numel() for parameter in form.parameters()) == 3_077_200
    assert form.out_features * form.size**2 == 6_146_560  # as counted in the paper


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    kind=st.sampled_from(list(KINDS)),
    n=st.one_of(st.integers(0, 4), st.sampled_from([31, 32])),
    out=st.integers(0, 3),
    batch=st.integers(0, 3),
)
def test_any_size(kind, n, out, batch):
    form = make(kind, n, out)
    x = torch.randn(batch, n, dtype=DOUBLE)
    y = form(x)
    torch.testing.assert_close(y, outputs_written_out(form, x), rtol=1e-10, atol=1e-10)
    assert form.matrix.shape == (out, form.size, form.size)
    expected = form.size * (form.size + 1) // 2 if "dense" in kind else form.rank * form.size
    expected += form.rank if "signed" in kind else 0
    assert sum(parameter.numel() for parameter in form.parameters()) == out * expected
    y.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in form.parameters())


@settings(deadline=None, derandomize=True, max_examples=15)
@given(rank=st.integers(1, 5), n=st.integers(0, 3), signed=st.booleans())
def test_any_rank(rank, n, signed):
    form = LowRankForm(n, 2, rank, signed, dtype=DOUBLE)
    x = torch.randn(3, n, dtype=DOUBLE)
    assert form.factors.shape == (2, rank, n)
    assert form.signs.shape == (2, rank)
    torch.testing.assert_close(form(x), outputs_written_out(form, x))


@every_kind
def test_leading_dimensions_are_free(kind):
    form = make(kind)
    x = torch.randn(2, 4, 5, dtype=DOUBLE)
    assert form(x).shape == (2, 4, 3)
    torch.testing.assert_close(form(x[1, 3]), form(x)[1, 3])


@pytest.mark.parametrize(
    ("constructor", "arguments"),
    [(QuadraticForm, {}), (LowRankForm, {"rank": 2})],
    ids=["dense", "lowrank"],
)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"in_features": -1}, "in_features=-1 is not allowed: give 0 or more"),
        ({"out_features": -2}, "out_features=-2 is not allowed: give 0 or more"),
        ({"init_scale": -0.5}, "init_scale=-0.5 is not allowed: give 0 or more"),
    ],
    ids=["in_features", "out_features", "init_scale"],
)
def test_negative_numbers_are_refused(constructor, arguments, change, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        constructor(**({"in_features": 3, "out_features": 2} | arguments | change))


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_below_one_is_refused(rank):
    text = f"rank={rank} is not allowed: a form has at least one factor (rank >= 1)"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        LowRankForm(3, 2, rank)


@every_kind
def test_an_input_of_another_length_is_refused(kind):
    text = "the input has shape [2, 4], but its last dimension must be in_features=5"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        make(kind)(torch.zeros(2, 4, dtype=DOUBLE))


def test_print_shows_the_sizes():
    assert repr(QuadraticForm(3, 2, affine=True)) == (
        "QuadraticForm(in_features=3, out_features=2, affine=True)"
    )
    assert repr(LowRankForm(3, 2, rank=1)) == (
        "LowRankForm(in_features=3, out_features=2, rank=1, signed=False, affine=False)"
    )


# --- what torch expects of a module ---


@every_kind
@pytest.mark.parametrize("n", [5, 33])
@ignore_script_is_deprecated
def test_scripted_form_returns_the_same_bits(kind, n):
    form = make(kind, n, dtype=torch.float32)
    x = torch.randn(4, n)
    assert torch.equal(torch.jit.script(form)(x), form(x))


@every_kind
@pytest.mark.parametrize(
    "round_trip",
    [lambda form: pickle.loads(pickle.dumps(form)), copy.deepcopy],  # noqa: S301
    ids=["pickle", "deepcopy"],
)
def test_form_survives(kind, round_trip):
    form = make(kind)
    x = torch.randn(4, 5, dtype=DOUBLE)
    restored = round_trip(form)
    assert torch.equal(restored(x), form(x))
    assert torch.equal(restored.matrix, form.matrix)


@every_kind
def test_form_under_vmap_is_the_form_row_by_row(kind):
    form = make(kind, 33)
    x = torch.randn(4, 33, dtype=DOUBLE)
    torch.testing.assert_close(torch.func.vmap(form)(x), form(x))


@pytest.mark.parametrize("affine", [False, True], ids=["pure", "affine"])
def test_form_over_patches_orders_them_as_a_convolution(affine):
    """With an affine form that is linear, it is the convolution itself."""
    convolution = torch.nn.Conv2d(2, 3, (3, 2), stride=2, padding=1, dtype=DOUBLE)
    form = QuadraticForm(12, 3, affine=affine, dtype=DOUBLE)
    weight = convolution.weight.detach().flatten(1)
    x = torch.randn(2, 2, 6, 5, dtype=DOUBLE)
    if affine:
        linear = torch.nn.Linear(12, 3, dtype=DOUBLE)
        linear.load_state_dict({"weight": weight, "bias": convolution.bias})
        form.matrix = affine_matrix_of(linear)
        expected = convolution(x)
    else:
        form.matrix = torch.einsum("ki,kj->kij", weight, weight)
        expected = (convolution(x) - convolution.bias[:, None, None]).square()
    patches = PatchForm(form, (3, 2), stride=2, padding=1)
    torch.testing.assert_close(patches(x), expected)


# --- autocast ---


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_autocast_stays_finite_where_the_result_fits(kind, dtype):
    form = make(kind, n=40, dtype=torch.float32)
    with torch.no_grad():
        for parameter in form.parameters():
            parameter.mul_(1e-5 if kind.startswith("dense") else 1e-3)
    x = torch.randn(6, 40).sign() * torch.logspace(-2, 4, 240).view(6, 40)
    exact = form(x)
    assert exact.abs().max() < torch.finfo(dtype).max
    assert x.square().max() > torch.finfo(torch.float16).max
    for given_x in (x, x.to(dtype)):
        with torch.autocast("cpu", dtype=dtype):
            y = form(given_x)
        tolerance = 0.05 * float(exact.detach().abs().max())
        torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=tolerance)
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.mean(), [*form.parameters()]))
