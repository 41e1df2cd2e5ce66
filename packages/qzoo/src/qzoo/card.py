"""The model card: what is known of weights, in words and in the Hub's schema."""

import json
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

import qcore
from qzoo.architectures import DIQNNS, get_architecture
from qzoo.cost import cost, rounded
from qzoo.hub import hub_id
from qzoo.provenance import Provenance

CITATIONS = {
    "relinear": """@article{fan2025relinear,
  title   = {On Expressivity and Trainability of Quadratic Networks},
  author  = {Fan, Feng-Lei and Li, Mengzhou and Wang, Fei and Lai, Rongjie and Wang, Ge},
  journal = {IEEE Transactions on Neural Networks and Learning Systems},
  volume  = {36},
  number  = {1},
  pages   = {1228--1242},
  year    = {2025},
  note    = {arXiv:2110.06081}
}""",
    "diqnn": """@article{liu2023diqnn,
  title   = {Dendritic Integration Based Quadratic Neural Networks Outperform Traditional
             Aritificial Ones},
  author  = {Liu, Chongming and Li, Songting and Zhou, Douglas},
  journal = {arXiv preprint arXiv:2307.13609},
  year    = {2023}
}""",
    "resnet": """@inproceedings{he2016resnet,
  title     = {Deep Residual Learning for Image Recognition},
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2016}
}""",
}


def model_card(row: Provenance) -> str:
    """The model card of weights, with their accuracy in the Hub's schema."""
    arguments = get_architecture(row.model)
    is_diqnn = row.model in DIQNNS
    neuron = qcore.get_neuron("linear" if is_diqnn else arguments.get("neuron", "quadratic"))
    head = arguments.get("head", "linear")
    quadratic_trunk = neuron.name != "linear"
    papers = [
        paper
        for paper, used in (("relinear", quadratic_trunk), ("diqnn", head != "linear"))
        if used
    ] or ["resnet"]
    if is_diqnn:
        of_rank = f" of rank {arguments['rank']}" if head == "low_rank" else ""
        of = "behind one convolution with ReLU" if "convolution" in arguments else "of its pixels"
        what = f"One quadratic form{of_rank} per class of an image, {of}"
    else:
        trunk = f"neurons `{neuron.formula}`" if quadratic_trunk else "linear convolutions"
        if arguments.get("rms_norm"):
            trunk = (
                f"neurons `{neuron.normalised_formula}`, where rms(x) is the root mean square of "
                "the layer's input, a norm that is not from the paper"
            )
        what = f"Residual network for small images with {trunk}"
        what += {"linear": "", "dense": ", and a dense quadratic head"}.get(
            head, f", and a quadratic head of rank {arguments.get('rank')}"
        )
    lines = [
        "---",
        _card_data(row).to_yaml(),
        "---",
        f"# {row.name}",
        "",
        f"{what}. (*q* is for *quadratic*, not *quantised*.)",
        *(["", "**Trained by a reduced run: not what its table asks for.**"] * row.reduced),
        "",
        "```python",
        "import qzoo, timm  # pip install quadnets-zoo",
        "",
        f'model = timm.create_model("hf-hub:{hub_id(row)}", pretrained=True).eval()',
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in facts(row)),
        "",
        "## Citation",
        "",
        *(f"```bibtex\n{CITATIONS[paper]}\n```" for paper in papers),
        "",
    ]
    return "\n".join(lines)


def facts(row: Provenance) -> Iterator[tuple[str, str]]:
    """What is known of weights: names of facts, and the facts, in words.

    >>> from qzoo import Provenance
    >>> row = Provenance(
    ...     model="qresnet20", tag="example", sha256="0" * 64, size=3_248_920, num_classes=10,
    ...     preprocessing={"input_size": (1, 28, 28), "mean": (0.1,), "std": (0.3,)}, reduced=True,
    ... )
    >>> dict(facts(row))["run"]
    'reduced: not what its table asks for'
    """
    measured, before = row.evaluation, row.preprocessing
    channels, size = before.input_size[:2]
    of_model = cost(row.model, num_classes=row.num_classes, in_chans=channels, size=size)
    if measured:
        yield (
            "top-1 accuracy",
            f"{measured.top1:.2f} % on {measured.images:,} images of {measured.dataset} "
            f"({measured.split or 'a dataset without a name'}), measured from this file",
        )
    if row.claimed is not None:
        yield "reported by the run", f"{row.claimed:.2f} %"
    yield "run", "reduced: not what its table asks for" if row.reduced else "full"
    yield "parameters", f"{of_model.parameters:,}"
    yield "multiply-adds", rounded(of_model.multiply_adds)
    yield "input", "×".join(map(str, before.input_size)) + f", mean {before.mean}, std {before.std}"
    yield "classes", ", ".join(row.label_names) if row.label_names else str(row.num_classes)
    yield "stored as", f"{row.dtype}, {row.size:,} bytes, sha256 {row.sha256}"
    if row.table:
        yield "table", row.table + (f", version {row.table_version}" if row.table_version else "")
    if row.recipe:
        yield "recipe", json.dumps(row.recipe)
    if row.seed is not None:
        yield "seed", str(row.seed)
    if row.commit:
        yield "commit", row.commit
    for key, known in (("versions", row.versions), ("hardware", row.hardware)):
        if known:
            yield key, ", ".join(f"{name} {value}" for name, value in known.items())
    yield "licence", row.licence


def _card_data(row: Provenance) -> ModelCardData:
    known: dict[str, Any] = {}
    if row.evaluation:
        dataset = row.evaluation.dataset.partition("/")[2]
        accuracy = EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=row.evaluation.dataset,
            dataset_split=row.evaluation.split,
            metric_type="accuracy",
            metric_name="top-1 accuracy, in percent",
            metric_value=row.evaluation.top1,
        )
        known = {"datasets": [dataset], "model_name": row.name, "eval_results": [accuracy]}
    return ModelCardData(
        library_name="timm",
        license=row.licence,
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "quadratic-neural-network", "quadnets"],
        **known,
    )
