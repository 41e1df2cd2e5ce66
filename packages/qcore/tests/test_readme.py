"""The README: its code runs, and its table is the catalogue."""

import re
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import qcore
from qcore import CATALOGUE, Cost, QuadraticLinear

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
VARIANTS = [(name, None) for name in CATALOGUE]
VARIANTS.insert(list(CATALOGUE).index("bilinear") + 1, ("bilinear", 4))


def polynomial(function):
    """A polynomial of degree two in n, as text, from its values at 0, 1 and 2."""
    at_0, at_1, at_2 = (Fraction(function(n)) for n in range(3))
    square = (at_2 - 2 * at_1 + at_0) / 2
    assert function(10) == square * 100 + (at_1 - at_0 - square) * 10 + at_0
    coefficients = [(square, "n²"), (at_1 - at_0 - square, "n"), (at_0, "")]
    denominator = max(c.denominator for c, _ in coefficients)
    terms = []
    for coefficient, power in coefficients:
        count = int(coefficient * denominator)
        if count:
            terms.append(power if count == 1 and power else f"{count}{power}")
    text = " + ".join(terms)
    return text if denominator == 1 else f"({text})/{denominator}"


def table():
    """The README's table, from the catalogue."""
    rows = ["| neuron | formula | parameters | multiply-adds |", "|---|---|---|---|"]
    for name, rank in VARIANTS:
        neuron = CATALOGUE[name]
        label = f"`{name}`" + (" (default)" if name == "quadratic" else "")
        label += f", `rank={rank}`" if rank else ""
        cost = partial(neuron.cost, rank=rank)
        costs = [polynomial(lambda n, i=i, cost=cost: cost(n)[i]) for i in range(len(Cost._fields))]
        rows.append(f"| {label} | `{neuron.formula}` | {' | '.join(costs)} |")
    return "\n".join(rows) + "\n"


def test_the_table_is_the_catalogue():
    assert table() in README, f"put this table into the README:\n{table()}"


@pytest.mark.parametrize(("name", "rank"), VARIANTS)
@pytest.mark.parametrize("n", [1, 6, 33])
def test_the_costs_are_those_of_a_layer(name, rank, n):
    out = 5
    layer, cost = QuadraticLinear(n, out, neuron=name, rank=rank), CATALOGUE[name].cost(n, rank)
    assert sum(p.numel() for p in layer.parameters()) == out * cost.parameters
    if name == "bilinear":  # a form also multiplies outside of matrix products
        return
    with FlopCounterMode(display=False) as counter, qcore.backend("plain"):
        layer(torch.randn(1, n))
    factors = sum(len(term) - 1 for term in CATALOGUE[name].terms)
    assert counter.get_total_flops() / 2 == out * (cost.multiply_adds - factors)


@pytest.mark.parametrize("n", [6, 64, 100, 784])
def test_the_costs_of_forms_lie_between_the_triangle_and_the_square(n):
    with FlopCounterMode(display=False) as counter, qcore.backend("plain"):
        QuadraticLinear(n, 3, neuron="bilinear")(torch.randn(1, n))
    products = counter.get_total_flops() / 2 / (3 * n)  # for each output and input
    assert products == (n + 1 if n < 32 else 5 / 8 * n + 1)
    assert CATALOGUE["bilinear"].cost(n).multiply_adds / n < products + 2
    low_rank = CATALOGUE["bilinear"].cost(n, 2).multiply_adds
    assert low_rank == n + 2 * (n + 2)  # the linear branch; projections, squares and signs


def test_the_code_blocks_run_one_after_the_other():
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    # the last begins with timm, which qcore does without: it runs with qzoo's tests
    blocks = [block for block in blocks if "import timm" not in block]
    assert len(blocks) == 3
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102
    quadratic, compact = namespace["model"][0], namespace["model"][3]
    assert compact(namespace["model"][:3](namespace["images"])).shape == (32, 10)
    assert namespace["normed"].rms_dims == 3
    assert quadratic["g"].weight.any()  # it has left the linear network
