"""Entries: made of weights and runs, and measured again in a process of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

import qzoo
from qbench.block import plan
from qbench.data.image_folder import image_root
from qbench.errors import UserError
from qbench.executors import run_blocks
from qbench.leaderboard.entry import Entry, read_entries, read_entry, write_entry
from qbench.leaderboard.standings import standings
from qbench.leaderboard.submit import submit
from qbench.leaderboard.verify import Limits, verify
from qbench.table import load_table
from qbench.trial import RunFolder
from qzoo.index import get_provenance

DIGITS = "qresnet20.relinear_digits"
UCI = load_table("uci")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of two classifiers on Iris, in full."""
    out = tmp_path_factory.mktemp("runs")
    folder = RunFolder(out, UCI, create=True)
    cells = list(UCI.cells({"dataset": ("iris",), "model": ("linear", "rank1")}))
    for _ in run_blocks(folder, plan(folder, cells, 3)):
        pass
    return out


def key_of(model: str) -> str:
    (cell,) = UCI.cells({"dataset": ("iris",), "model": (model,)})
    return cell.trial_key(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo's digits network in a folder of somebody's own."""
    row = get_provenance(DIGITS)
    folder = tmp_path_factory.mktemp("weights")
    model = timm.create_model(DIGITS, pretrained=True)
    facts = {"preprocessing": row.preprocessing, "evaluation": row.evaluation}
    qzoo.save_weights(model, folder, tag="mine", reduced=False, **facts)
    return folder


def test_the_zoos_weights_are_submitted_by_name_and_verified(tmp_path: Path) -> None:
    entry = submit(DIGITS, tmp_path)
    assert (entry.board, entry.dataset, entry.verdict) == ("uci", "digits32", "not verified")
    assert read_entries(tmp_path) == [entry]
    found = verify(entry)
    assert found.verdict == "verified"
    measured = found.measurement
    assert measured is not None
    assert measured.accuracy == pytest.approx(entry.claim.accuracy)
    assert measured.subject == entry.subject
    assert measured.images == 360
    assert (measured.parameters, measured.margin_bound) == (805_978, "√2")
    assert measured.latency is not None
    assert measured.margin == pytest.approx(margin_of(timm.create_model(DIGITS, pretrained=True)))


def margin_of(model: torch.nn.Module) -> float:
    """The mean margin over the test set, written out."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    with image_root("digits32") as root:
        qzoo.evaluate(
            model, "torch/image_folder", root=root, observe=lambda x, y: pairs.append((x, y))
        )
    margins = []
    for logits, labels in pairs:
        for row, label in zip(logits.double(), labels.tolist(), strict=True):
            others = torch.cat([row[:label], row[label + 1 :]])
            margins.append(float((row[label] - others.max()) / row.norm()))
    return sum(margins) / len(margins)


def test_a_folder_is_submitted_with_what_its_record_says(weights: Path, tmp_path: Path) -> None:
    entry = submit(str(weights), tmp_path, board="uci", authors="A. Uthor", paper="A paper")
    assert entry.weights == f"local-dir:{weights}"
    assert (entry.id, entry.title) == ("qresnet20-mine", "qresnet20.mine")
    assert entry.claim.accuracy == pytest.approx(99.1667, abs=1e-3)
    assert (entry.claim.authors, entry.claim.paper) == ("A. Uthor", "A paper")


def test_a_claim_that_is_not_so_differs_by_how_much(weights: Path, tmp_path: Path) -> None:
    entry = verify(submit(str(weights), tmp_path, board="uci", authors="A", accuracy=100.0))
    assert entry.verdict == "differs"
    assert entry.measurement is not None
    assert entry.measurement.difference == pytest.approx(-0.8333, abs=1e-3)
    assert "99.17 % where 100.00 % are claimed (-0.83 points" in entry.measurement.reason


@pytest.mark.parametrize(("std", "verdict"), [(0.5, "differs"), (0.1, "could not be loaded")])
def test_wrong_preprocessing_is_found_and_named(std: float, verdict: str, tmp_path: Path) -> None:
    """The usual cause of a mismatch: the network itself is as good as it was said to be. Inputs
    that are large enough make a quadratic network's outputs infinite."""
    row = get_provenance(DIGITS)
    model = timm.create_model(DIGITS, pretrained=True)
    with image_root("digits32") as root:
        model.pretrained_cfg.update(mean=(0.5,), std=(0.5,))
        honest = qzoo.evaluate(model, "torch/image_folder", root=root)
    said = row.preprocessing.model_copy(update={"mean": (0.9,), "std": (std,)})
    folder = tmp_path / "weights"
    qzoo.save_weights(
        model, folder, tag="mine", reduced=False, preprocessing=said, evaluation=honest
    )
    entry = verify(submit(str(folder), tmp_path / "entries", board="uci", authors="A"))
    assert entry.verdict == verdict
    assert entry.measurement is not None
    assert "(pixels in [-1, 1])" in entry.measurement.reason or (
        "prepared as pixels in [-1, 1]" in entry.measurement.reason
    )
    assert entry.measurement.reason.endswith("the preprocessing in the entry is wrong")


def test_a_run_is_run_again(runs: Path, tmp_path: Path) -> None:
    entry = submit(None, tmp_path, key=key_of("rank1"), out=runs, authors="A")
    assert entry.run is not None
    assert [one.seed for one in entry.run.seeds] == [0, 1, 2]
    assert entry.claim.accuracy == pytest.approx(sum(entry.run.accuracies.values()) / 3)
    assert len(entry.run.steps) == len(entry.run.seeds[0].curve) > 10
    found = verify(entry)
    assert found.verdict == "verified", found.measurement
    assert found.measurement is not None
    assert found.measurement.seeds == (0, 1, 2)
    assert found.measurement.images == 30
    assert found.measurement.difference == 0.0  # the same block on the same machine


def test_an_invented_accuracy_of_a_run_is_found_out(runs: Path, tmp_path: Path) -> None:
    entry = submit(None, tmp_path, key=key_of("linear"), out=runs, authors="A")
    assert entry.run is not None
    invented = [one.model_copy(update={"accuracy": 100.0}) for one in entry.run.seeds]
    run = entry.run.model_copy(update={"seeds": tuple(invented)})
    claim = entry.claim.model_copy(update={"accuracy": 100.0})
    found = verify(entry.model_copy(update={"run": run, "claim": claim}))
    assert found.verdict == "differs"


def test_a_run_of_another_recipe_is_found_out(runs: Path, tmp_path: Path) -> None:
    entry = submit(None, tmp_path, key=key_of("linear"), out=runs, authors="A")
    assert entry.run is not None
    axes = {**entry.run.axes, "scaling": "raw"}
    found = verify(entry.model_copy(update={"run": entry.run.model_copy(update={"axes": axes})}))
    assert found.verdict == "could not be loaded"
    assert found.measurement is not None
    assert "is not the key of seed 0" in found.measurement.reason


def test_invented_parameters_of_a_run_are_found_out(runs: Path, tmp_path: Path) -> None:
    entry = submit(None, tmp_path, key=key_of("rank1"), out=runs, authors="A")
    assert entry.run is not None
    run = entry.run.model_copy(update={"parameters": 1})
    found = verify(entry.model_copy(update={"run": run}))
    assert found.verdict == "differs"
    assert found.measurement is not None
    assert found.measurement.parameters == entry.run.parameters
    assert f"it has {entry.run.parameters} parameters, and not 1" in found.measurement.reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "wine"}, "run: it is not on wine, which the entry says"),
        ({"claim": {"accuracy": 99.0, "authors": "A"}}, "it is not the mean over the seeds"),
        ({"run": {"seeds": [1, 2]}}, "its seeds are to be 0, 1, …, none left out, each once"),
        ({"run": {"seeds": [0, 0]}}, "its seeds are to be 0, 1, …, none left out, each once"),
        ({"run": None}, "an entry is of weights with their provenance, or of a run: give one"),
        ({"measurement": {"verdict": "verified"}}, "accuracy, difference and tolerance belong to"),
        (
            {"measurement": {"verdict": "verified", "difference": 9.0}},
            "verdict: 9.0 is more than 0.5",
        ),
    ],
)
def test_an_entry_that_contradicts_itself_is_none(
    change: dict[str, Any], said: str, runs: Path, tmp_path: Path
) -> None:
    entry = submit(None, tmp_path, key=key_of("rank1"), out=runs, authors="A")
    raw = entry.model_dump(mode="json")
    if seeds := (change.get("run") or {}).get("seeds"):
        change = {"run": {**raw["run"], "seeds": [raw["run"]["seeds"][seed] for seed in seeds]}}
    if found := change.get("measurement"):
        about = {"reason": "", "subject": entry.subject, "measured": "2026-01-01"}
        if "difference" in found:
            about |= {"accuracy": 90.0, "tolerance": 0.5}
        change = {"measurement": {**about, **found}}
    path = tmp_path / f"{entry.id}.json"
    path.write_text(json.dumps({**raw, **change}))
    with pytest.raises(UserError, match=re.escape(said)):
        read_entry(path)


def test_weights_that_changed_since_are_not_the_entrys(weights: Path, tmp_path: Path) -> None:
    entry = submit(str(weights), tmp_path / "entries", board="uci", authors="A")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(
        safetensors.torch.save({"conv1.weight": torch.zeros(1)})
    )
    moved = entry.model_copy(update={"weights": f"local-dir:{other}"})
    found = verify(moved)
    assert found.verdict == "could not be loaded"
    assert found.measurement is not None
    assert "bytes, but should have" in found.measurement.reason


def test_a_pickle_is_never_opened(weights: Path, tmp_path: Path) -> None:
    entry = submit(str(weights), tmp_path / "entries", board="uci", authors="A")
    bad = tmp_path / "bad"
    bad.mkdir()
    ran = tmp_path / "ran"
    torch.save(Owned(ran), bad / "model.safetensors")
    content = (bad / "model.safetensors").read_bytes()
    assert entry.provenance is not None
    record = entry.provenance.model_copy(update=qzoo.provenance.fingerprint(content))
    found = verify(entry.model_copy(update={"weights": f"local-dir:{bad}", "provenance": record}))
    assert found.verdict == "could not be loaded"
    assert found.measurement is not None
    assert "damaged, or no safetensors file" in found.measurement.reason
    assert not ran.exists()


class Owned:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_an_entry_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    entry = submit(DIGITS, tmp_path)
    began = time.monotonic()
    found = verify(entry, limits=Limits(seconds=1.0))
    assert time.monotonic() - began < 20
    assert found.verdict == "could not be loaded"
    assert found.measurement is not None
    assert found.measurement.reason == (
        "it did not end within 1 seconds; for more of them: qbench leaderboard verify --seconds"
    )


def test_an_entry_that_takes_too_much_memory_is_ended(tmp_path: Path) -> None:
    found = verify(submit(DIGITS, tmp_path), limits=Limits(memory=500_000_000))
    assert found.verdict == "could not be loaded"


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
    ],
)
def test_the_process_that_measures_opens_no_connection_and_starts_nothing(code: str) -> None:
    before = "from qbench.leaderboard.measure import confine; confine(16 * 10**9, 60); "
    done = subprocess.run(
        [sys.executable, "-c", before + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is not for a process that verifies" in done.stderr
    assert subprocess.run([sys.executable, "-c", before], check=False).returncode == 0


def test_it_sees_nothing_of_this_ones_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is nothing that weights need."""
    from qbench.leaderboard import verify as module

    monkeypatch.setenv("HF_TOKEN", "secret")
    seen: dict[str, str] = {}
    real = subprocess.Popen

    def watched(*arguments: Any, env: dict[str, str], **options: Any) -> Any:
        seen.update(env)
        return real(*arguments, env=env, **options)

    monkeypatch.setattr(module.subprocess, "Popen", watched)
    verify(submit(DIGITS, tmp_path), limits=Limits(seconds=0.1))
    assert "HF_TOKEN" not in seen
    assert seen["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "nothing to submit: give a folder of weights, a name on the Hub, or --run KEY"),
        ({"source": "qresnet20.relinear_imagenet"}, "has no weights: qresnet20 has those of"),
        ({"source": DIGITS, "board": "cfar10"}, "unknown board 'cfar10': did you mean 'cifar10'?"),
        ({"key": "zz"}, "'zz' is no key"),
        ({"source": DIGITS, "key": "ab"}, "are weights, 'ab' is a run: submit each by itself"),
        ({"key": "ab", "accuracy": 99.0}, "the accuracy of a run is the mean over its seeds"),
        ({"key": "0123456789abcdef"}, "no trial in '.*' has a key that begins with"),
        ({"source": DIGITS, "url": "javascript:alert(1)"}, "claim.url: String should match"),
        ({"source": DIGITS, "accuracy": 101.0}, "claim.accuracy: Input should be less than"),
        (
            {"source": DIGITS, "title": "a\x1b[31mb"},
            r"title: the character U\+001B cannot be shown",
        ),
        ({"source": DIGITS, "authors": "a\u202eb"}, r"the character U\+202E cannot be shown"),
        ({"source": DIGITS, "title": "a" * 81}, "title: String should have at most 80"),
        ({"source": DIGITS, "identifier": "../up"}, "id: String should match pattern"),
    ],
)
def test_what_cannot_be_submitted_is_one_sentence_and_writes_nothing(
    arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "entries"
    with pytest.raises(UserError, match=said):
        submit(arguments.pop("source", None), folder, out=tmp_path, **arguments)
    assert not folder.exists()


def test_an_entry_is_replaced_only_on_purpose(tmp_path: Path) -> None:
    first = submit(DIGITS, tmp_path)
    assert submit(DIGITS, tmp_path) == first
    with pytest.raises(UserError, match=r"is an entry of the same file, by Quadnets: submit anot"):
        submit(DIGITS, tmp_path, accuracy=12.0)
    assert read_entries(tmp_path) == [first]
    assert submit(DIGITS, tmp_path, accuracy=12.0, replace=True).claim.accuracy == 12.0


def test_a_file_and_a_run_stand_on_a_board_once(runs: Path, tmp_path: Path) -> None:
    first = submit(DIGITS, tmp_path)
    said = f"these weights are entry {first.id} already, and no board has one twice: submit another"
    with pytest.raises(UserError, match=re.escape(said)):
        submit(DIGITS, tmp_path, identifier="mine", authors="B")
    run: dict[str, Any] = {"key": key_of("rank1"), "out": runs, "authors": "A"}
    second = submit(None, tmp_path, **run)
    with pytest.raises(UserError, match=f"^this run is entry {second.id} already"):
        submit(None, tmp_path, identifier="mine", **run)
    # an epoch that was chosen on the test set is another claim, and is ranked apart
    submit(DIGITS, tmp_path, identifier="best", selection="best on test")
    assert {entry.id for entry in read_entries(tmp_path)} == {first.id, second.id, "best"}


def test_a_run_is_of_its_last_epoch_and_has_measured_its_own_time(
    runs: Path, tmp_path: Path
) -> None:
    run: dict[str, Any] = {"key": key_of("rank1"), "out": runs, "authors": "A"}
    said = "selection: the accuracy of a run is that of its last epoch, not best on test"
    with pytest.raises(UserError, match=said):
        submit(None, tmp_path, selection="best on test", **run)
    said = "a run has measured its seconds itself: leave out --training-seconds"
    with pytest.raises(UserError, match=said):
        submit(None, tmp_path, training_seconds=0.001, **run)
    assert list(tmp_path.iterdir()) == []
    entry = submit(None, tmp_path, **run)
    assert entry.run is not None
    (row,) = standings([entry])
    forged = entry.model_copy(
        update={"claim": entry.claim.model_copy(update={"training_seconds": 1e-3})}
    )
    assert row.seconds == standings([forged])[0].seconds
    assert row.seconds == pytest.approx(entry.claim.training_seconds)
    (weights,) = standings([submit(DIGITS, tmp_path, training_seconds=0.001)])
    assert weights.seconds is None


def test_what_chose_the_epoch_is_part_of_what_was_measured(tmp_path: Path) -> None:
    entry = submit(DIGITS, tmp_path)
    best = entry.model_copy(update={"selection": "best on test"})
    assert entry.subject != best.subject


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./weights", "../weights", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_repository(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^there is no folder '{re.escape(source)}': make one"):
        submit(source, tmp_path)


def test_weights_belong_to_the_board_of_what_they_were_measured_on(tmp_path: Path) -> None:
    said = "were measured on digits32, which belongs to board uci, not to cifar10"
    with pytest.raises(UserError, match=said):
        submit(DIGITS, tmp_path, board="cifar10")


def test_a_measured_entry_that_is_submitted_again_stays_measured(
    runs: Path, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"key": key_of("rank1"), "out": runs, "authors": "A"}
    found = verify(submit(None, tmp_path, **arguments))
    write_entry(found, tmp_path)
    assert submit(None, tmp_path, **arguments) == found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "Invalid JSON"),
        (b"[]", "is no entry of the leaderboard"),
        (b'{"schema_version": 2}', "is no entry of the leaderboard"),
        (b'{"id": "x", "boards": "uci"}', "unknown key 'boards': did you mean 'board'?"),
        (b" " * 1_000_001, "1,000,001 bytes, and 1,000,000 are the most"),
    ],
)
def test_a_file_that_is_no_entry_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        read_entries(tmp_path)
    assert str(path) in str(caught.value)


def test_an_entry_under_another_name_is_named(tmp_path: Path) -> None:
    entry = submit(DIGITS, tmp_path)
    path = tmp_path / "other.json"
    (tmp_path / f"{entry.id}.json").rename(path)
    with pytest.raises(UserError, match=rf"has the id '{entry.id}': name the file {entry.id}.json"):
        read_entry(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return submit(DIGITS, tmp_path_factory.mktemp("entry")).model_dump(mode="json")


@given(data=st.data())
def test_any_field_with_any_value_is_an_entry_or_one_sentence(
    data: st.DataObject, whole: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    field = data.draw(st.sampled_from([*whole, "unknown"]))
    changed = {**whole, field: data.draw(JSON)}
    path = tmp_path_factory.mktemp("any") / f"{whole['id']}.json"
    path.write_text(json.dumps(changed))
    try:
        entry = read_entry(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - whether it is raised is up to the values
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert Entry.model_validate_json(entry.model_dump_json()) == entry


def test_the_command_line_submits_verifies_and_lists(tmp_path: Path, weights: Path) -> None:
    def qbench(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "qbench", "leaderboard", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    said = qbench("submit", str(weights), "--board", "uci", "--authors", "A. Uthor")
    assert said.returncode == 0, said.stderr
    assert "qresnet20.mine claims 99.17 % on digits32" in said.stdout
    (path,) = (tmp_path / "leaderboard").glob("*.json")
    false = json.loads(path.read_text(encoding="utf-8"))
    false |= {"id": "too-good", "claim": {**false["claim"], "accuracy": 99.9}}
    path.with_name("too-good.json").write_text(json.dumps(false), encoding="utf-8")
    said = qbench("verify")
    assert said.returncode == 1, said.stderr
    assert "qresnet20-mine: verified: the file was measured again: 99.17 %" in said.stdout
    assert "too-good: differs: " in said.stdout
    assert "too-good: differs" in qbench("verify").stdout  # what is not verified is tried again
    listed = json.loads(qbench("list", "--json").stdout)
    assert [(row["id"], row["rank"], row["status"]) for row in listed] == [
        ("qresnet20-mine", 1, "verified"),
        ("too-good", 1, "differs"),
    ]
    assert "qresnet20-mine" in qbench("list").stdout
    assert "qresnet20-mine" in qbench("list", "uci").stdout
    assert json.loads(qbench("list", "mnist", "--json").stdout) == []
    said = qbench("list", "uic")
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "unknown board 'uic': did you mean 'uci'?" in said.stderr
    said = qbench("verify", "qresnet20-mien")
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "unknown entry 'qresnet20-mien': did you mean 'qresnet20-mine'?" in said.stderr
    said = qbench("build", "--entries", "nowhere")
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "make the first entry with qbench leaderboard submit" in said.stderr


def test_a_killed_verification_leaves_the_entry_as_it_was_and_nothing_running(
    tmp_path: Path,
) -> None:
    entry = submit(DIGITS, tmp_path)
    path = tmp_path / f"{entry.id}.json"
    before = path.read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "qbench", "leaderboard", "verify", "--entries", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (children := confined_children(process.pid)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def confined_children(parent: int) -> list[int]:
    """The processes that measure for a parent, and are confined already."""
    found = []
    for line in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in line.read_text().split():
            limits = Path(f"/proc/{child}/limits").read_text()
            if re.search(r"Max address space +16000000000 ", limits):
                found.append(int(child))
    return found
