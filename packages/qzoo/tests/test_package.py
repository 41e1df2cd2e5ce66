"""The package as a whole: importing it, its README, its declared dependencies."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import qzoo
from qzoo.cost import cost, rounded
from qzoo.index import get_provenance, read_index

PACKAGE = Path(__file__).parents[1]
README = (PACKAGE / "README.md").read_text(encoding="utf-8")

IMPORTS = """
import sys

import timm
from torch import nn
made, init = [], nn.Module.__init__
nn.Module.__init__ = lambda self, *arguments, **options: made.append(self) or init(
    self, *arguments, **options
)
models, modules = set(timm.list_models()), set(timm.models.list_modules())

import qzoo
import qzoo.models
import qzoo.architectures
import qzoo.models.cifar_qresnet
import qzoo.models.diqnn
import qzoo

assert not made, made
new_models = set(timm.list_models()) - models
new_modules = set(timm.models.list_modules()) - modules
assert new_models == set(qzoo.architectures.ARCHITECTURES), new_models
assert new_modules == {"cifar_qresnet", "diqnn"}, new_modules
for name in new_models:
    entry = timm.model_entrypoint(name)
    family = sys.modules[entry.__module__]
    assert entry.__name__ == name and entry is getattr(family, name) and name in family.__all__
"""


def test_import_registers_under_new_names_and_makes_no_module_and_no_warning():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTS], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_public_names():
    assert sorted(qzoo.__all__) == [
        "CifarQResNet",
        "DIQNN",
        "Evaluation",
        "Preprocessing",
        "Provenance",
        "WeightsError",
        "convert_relinear_state_dict",
        "evaluate",
        "save_weights",
        "verify",
    ]
    assert all(getattr(qzoo, name).__doc__ for name in qzoo.__all__)


def test_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102 - our own README


def test_readme_has_the_costs_of_its_models():
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d ]+) \| ([\d ]+ [Mk]) \|$", README, re.MULTILINE)
    assert len(rows) == 19
    for name, parameters, multiply_adds in rows:
        counted = cost(name)
        assert int(parameters.replace(" ", "")) == counted.parameters
        assert multiply_adds.replace(" ", "") == re.sub("[ ,]", "", rounded(counted.multiply_adds))


def test_readme_lists_the_weights_of_the_package_with_their_accuracy():
    rows = re.findall(
        r"^\| `([\w.]+)` \| ([\d×]+), .* \| ([\d.]+) % \| (.*) \|$", README, re.MULTILINE
    )
    assert {name for name, *_ in rows} == set(read_index())
    for name, size, accuracy, run in rows:
        row = get_provenance(name)
        assert size == "×".join(map(str, row.preprocessing.input_size))
        assert accuracy == f"{row.evaluation.top1:.2f}"
        assert f"qbench run {row.table}" in run
        assert ("reduced" in run) == row.reduced
        assert row.seed == 0


def test_dependencies_are_what_is_imported():
    imported = set()
    for path in (PACKAGE / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    # an editable install does not say which modules it has, so the sibling is named here
    distributions = {**importlib.metadata.packages_distributions(), "qcore": ["quadnets-core"]}
    imported -= {*sys.stdlib_module_names, "qzoo"}
    needed = {distributions[name][0].replace("_", "-") for name in imported}
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]

    def names(lines):
        return {re.match(r"[\w.-]+", line).group().replace("_", "-") for line in lines}

    extra = names(project["optional-dependencies"]["onnx"])
    assert needed - extra == names(project["dependencies"])
    assert needed & extra == {"onnxruntime"}  # torch's exporter imports the others
