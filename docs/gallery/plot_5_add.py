"""
Add a neuron, a model, a table
==============================

Each addition has one place. Here all three are made on the spot, without touching a file of Quadnets; to
contribute them, put the same lines where the last section says.
"""

import timm
import torch

import qcore
import qzoo  # noqa: F401 - registers the zoo's models

# %%
# A neuron is data
# ----------------
#
# Each branch is an ordinary layer applied to ``x``, to ``x²`` or a quadratic form of ``x``; the output is a sum of
# products of at most two branches. Here a linear neuron times a gate, which is 1 at the start (the *offset*).

gated = qcore.Neuron(
    name="gated",
    branches={"r": qcore.Branch(), "g": qcore.Branch(offset=1.0)},
    terms=(("r", "g"),),
    reference="r",
    source="this tutorial",
)
print(gated.formula)
print(gated.cost(64))

# %%
# Every layer takes it in place of a name, with initialisation, dtypes, ``torch.compile`` and the state dict for free; and
# ReLinear knows its reference.

torch.manual_seed(0)
layer = qcore.QuadraticLinear(64, 10, neuron=gated)
qcore.ReLinear(gamma=0.1).init_(layer)
x = torch.randn(3, 64)
print(torch.allclose(layer(x), layer["r"](x)), sorted(layer.state_dict()))

# %%
# A model is a row
# ----------------
#
# All residual networks of the zoo are one class; options that are not registered are keywords.

model = timm.create_model("qresnet20", neuron="compact", head="low_rank", rank=2, depths=(1, 1, 1))
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %%
# A table is one YAML file
# ------------------------
#
# Grid, recipe, what the paper leaves open, and its claims. Nothing in it is code.

from qbench.table import parse_table

table = parse_table(
    """
id: iris-tutorial
version: 1
title: Two classifiers on Iris
paper: none
shows: how a table is written
control: linear
main_metric: test_accuracy
grid:
  dataset: [iris]
  model:
    linear: {kind: linear}
    rank2: {kind: low_rank, rank: 2}
recipe: {optimizer: sgd, lr: 0.01, epochs: 200, test_fraction: 0.2}
unstated:
  scaling: {default: maxabs, also: [standard], why: how features are scaled is not stated}
seeds: 3
claims:
  - {order: [linear, rank2], by: test_accuracy, source: a guess}
""",
    "iris-tutorial.yaml",
)
print([str(cell) for cell in table.cells()])

# %%
# It runs like any other, and is reported with its claim's verdict.

from pathlib import Path
from tempfile import TemporaryDirectory

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.report.files import report_of
from qbench.trial import RunFolder

with TemporaryDirectory() as out:
    folder = RunFolder(Path(out), table, create=True)
    for block, results in run_blocks(folder, plan(folder, table.cells(), table.seeds)):
        print(block.cell, [round(result.value("test_accuracy"), 1) for result in results])
    report, _ = report_of(folder)
for claim in report.claims:
    print(f"{claim.text}: {claim.verdict} ({claim.why})")

# %%
# Where they go
# -------------
#
# A neuron: one entry in ``qcore/neurons.py``. A model: one row in ``qzoo/architectures.py``. A table: one file in
# ``qbench/tables/``. CONTRIBUTING says which tests check each of them.
