"""The model card, read back by the Hub's client."""

import pytest
from huggingface_hub import ModelCard

import qzoo
from qzoo.card import model_card
from qzoo.folder import read_folder


@pytest.fixture
def full_record(weights_folder):
    return read_folder(weights_folder).record.model_copy(
        update={
            "model": "qresnet20",
            "tag": "relinear_c10",
            "reduced": False,
            "table": "relinear",
            "table_version": 2,
            "recipe": {"optimizer": "sgd", "lr": 0.1},
            "commit": "1234abc",
            "versions": {"torch": "2.9.1"},
            "hardware": {"device": "cpu", "cores": 2},
            "claimed": 92.5,
            "evaluation": qzoo.Evaluation(
                dataset="torch/cifar10", split="test", images=10_000, top1=92.41, loss=0.25
            ),
        }
    )


def test_the_card_has_the_accuracy_in_the_hubs_schema(full_record):
    card = ModelCard(model_card(full_record))
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 92.41)
    assert (result.dataset_type, result.dataset_split) == ("cifar10", "test")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "timm")
    assert card.data.pipeline_tag == "image-classification"


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("diqnn", "One quadratic form per class of an image, of its pixels."),
        (
            "diqnn_conv_rank4",
            "One quadratic form of rank 4 per class of an image, behind one convolution with ReLU.",
        ),
    ],
)
def test_the_card_of_a_diqnn_is_about_its_forms(full_record, model, what):
    before = qzoo.Preprocessing(input_size=(1, 28, 28), mean=(0.0,), std=(1.0,))
    row = full_record.model_copy(update={"model": model, "tag": "m", "preprocessing": before})
    text = ModelCard(model_card(row)).text
    assert what in text
    assert "arXiv:2307.13609" in text
    assert "arXiv:2110.06081" not in text


def test_the_card_of_a_network_with_a_norm_says_so(full_record):
    said = "(w_g x/rms(x) + b_g) + w_b x²/rms(x²) + c`, where rms(x) is the root mean square of"
    assert said not in model_card(full_record)
    row = full_record.model_copy(update={"model": "qresnet20_rms", "tag": "c10"})
    assert said in model_card(row)


def test_the_card_says_where_the_weights_come_from(full_record):
    text = ModelCard(model_card(full_record)).text
    for fact in (
        "92.41 % on 10,000 images of torch/cifar10 (test), measured from this file",
        "92.50 %",
        "806,266",
        "| relinear, version 2 |",
        "| seed | 3 |",
        '{"optimizer": "sgd", "lr": 0.1}',
        "1234abc",
        "torch 2.9.1",
        "device cpu, cores 2",
        "arXiv:2110.06081",
        full_record.sha256,
        'timm.create_model("hf-hub:quadnets/qresnet20.relinear_c10", pretrained=True)',
    ):
        assert fact in text
    assert "reduced" not in text


def test_the_card_of_a_reduced_run_says_so(full_record):
    text = model_card(full_record.model_copy(update={"reduced": True}))
    assert "**Trained by a reduced run: not what its table asks for.**" in text


@pytest.mark.parametrize(
    ("name", "papers"),
    [
        ("qresnet20", ["fan2025relinear"]),
        ("qresnet20_rank2", ["fan2025relinear", "liu2023diqnn"]),
        ("cifar_resnet18_rank4", ["liu2023diqnn"]),
        ("cifar_resnet20", ["he2016resnet"]),
    ],
)
def test_the_card_cites_who_is_to_be_cited(full_record, name, papers):
    text = model_card(full_record.model_copy(update={"model": name}))
    keys = [line.split("{")[1].rstrip(",") for line in text.splitlines() if line.startswith("@")]
    assert keys == papers
