"""The README: its code runs, and its table is the catalogue."""

import re
from pathlib import Path

import pytest
from torch import nn

from qcore import CATALOGUE, QuadraticLinear

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)`(?: \(default\))? \| `(.+)` \| (.+) \|$", README, re.MULTILINE)


def weights_relative_to_linear(n, out, **options):
    layer = QuadraticLinear(n, out, bias=False, **options)
    linear = nn.Linear(n, out, bias=False)
    return sum(p.numel() for p in layer.parameters()) / linear.weight.numel()


def test_the_code_blocks_run_one_after_the_other():
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    # the third begins with timm, which qcore does without: it runs with qzoo's tests
    blocks = [block for block in blocks if "import timm" not in block]
    assert len(blocks) == 2
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102
    quadratic, compact = namespace["model"][0], namespace["model"][3]
    assert compact(namespace["model"][:3](namespace["images"])).shape == (32, 10)
    assert quadratic["g"].weight.any()  # it has left the linear network


def test_the_table_is_the_catalogue():
    assert [(name, formula) for name, formula, _ in ROWS] == [
        (name, neuron.formula) for name, neuron in CATALOGUE.items()
    ]


@pytest.mark.parametrize(("name", "_", "weights"), ROWS, ids=[row[0] for row in ROWS])
def test_the_weights_in_the_table(name, _, weights):
    n, out, r = 6, 4, 2
    if name == "bilinear":
        assert weights == "(n + 3)/2, or with `rank=r` 1 + r + r/n"
        assert weights_relative_to_linear(n, out, neuron=name) == (n + 3) / 2
        assert weights_relative_to_linear(n, out, neuron=name, rank=r) == 1 + r + r / n
    else:
        assert weights_relative_to_linear(n, out, neuron=name) == int(weights)
