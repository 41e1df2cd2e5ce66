"""An entry of the leaderboard: what somebody claims, and what was measured here beside it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from qbench.errors import UserError, first_problem, unknown
from qbench.frozen import Frozen
from qbench.leaderboard.boards import get_board
from qbench.report.statistics import Summary, summarize
from qbench.table import identity
from qbench.trial import write_whole
from qzoo.provenance import Provenance

_JOINERS = "\u200c\u200d"  # which Persian names and emoji are written with
_LARGEST = 1_000_000  # bytes of an entry
_MOST_POINTS = 1000
_ROUNDING = 1e-6
_SOURCE = r"^((hf-hub:[\w.-]+/[\w.-]+(@[\w.-]+)?)|local-dir:.+|[\w.]+)$"


def _readable(text: str) -> str:
    """A text on one line, in which nothing moves a cursor or turns the direction of writing."""
    for character in text:
        if not (character.isprintable() or character in _JOINERS):
            raise ValueError(
                f"the character U+{ord(character):04X} cannot be shown: leave it out, on one line"
            )
    if text != text.strip() or not text:
        raise ValueError("begin and end it with a letter, not with a space")
    return text


Text = Annotated[str, Field(max_length=200), AfterValidator(_readable)]
Title = Annotated[str, Field(max_length=80), AfterValidator(_readable)]
Link = Annotated[
    str, Field(max_length=200, pattern=r"^https://[A-Za-z0-9.-]+(:[0-9]+)?(/[^\s\"'<>\\]*)?$")
]
Percent = Annotated[FiniteFloat, Field(ge=0.0, le=100.0)]
Step = Annotated[int, Field(ge=0, le=10**9)]
Words = dict[Title, Text | int]

Verdict = Literal["verified", "differs", "could not be loaded", "not verified"]
"""What became of a claim: measured as claimed, measured otherwise, not measurable, not measured."""

Selection = Literal["last epoch", "best on validation", "best on test"]
"""Which epoch's weights were taken, and what chose them."""
_USUAL: Selection = "last epoch"


class Claim(Frozen):
    """What is said of the weights or the run.

    ``accuracy`` is on the test set, in percent; of several seeds, their mean. ``training_seconds``
    are those of one seed on ``hardware``; of a run, its own are shown.
    """

    accuracy: Percent
    authors: Text
    paper: Text | None = None
    url: Link | None = None
    training_seconds: PositiveFloat | None = None
    hardware: Text | None = None


class Seed(Frozen):
    """One trial of a run: its key, its test accuracy (None where it diverged), its share of the
    seconds that its block took, and the test accuracy along the steps of the run."""

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    seed: Annotated[int, Field(ge=0, le=2**31)]
    accuracy: Percent | None
    seconds: Annotated[FiniteFloat, Field(ge=0.0)]
    curve: Annotated[tuple[Percent, ...], Field(max_length=_MOST_POINTS)] = ()


class Run(Frozen):
    """A cell of one of our tables over its seeds 0, 1, …, as ``qbench run`` recorded it."""

    table: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=60)]
    version: PositiveInt
    axes: dict[Title, Title | FiniteFloat]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)]
    steps: Annotated[tuple[Step, ...], Field(max_length=_MOST_POINTS)] = ()
    parameters: PositiveInt
    multiply_adds: PositiveInt
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}\+?$")] | None = None
    versions: Words = Field(default={})
    hardware: Words = Field(default={})

    @property
    def accuracies(self) -> dict[int, float]:
        """The test accuracy by seed, of those that did not diverge."""
        return {one.seed: one.accuracy for one in self.seeds if one.accuracy is not None}

    @property
    def seconds(self) -> float | None:
        """What training one seed took, in the mean; None where that was not measured."""
        return fmean(one.seconds for one in self.seeds) or None

    def mean_of(self, seeds: Iterable[int]) -> float:
        """The mean accuracy of these seeds, none of which diverged."""
        return fmean(self.accuracies[seed] for seed in seeds)


class Measurement(Frozen):
    """What was measured here, of the very file or by running the very trials again.

    ``subject`` is the identity of all that was measured and claimed, so that a measurement belongs
    to nothing else; ``seeds`` are the trials that were run again. ``verdict`` and ``reason`` are of
    ``accuracy``, whose ``difference`` to what is claimed of the same is in points, of which
    ``tolerance`` are allowed. ``latency`` is the median time of one input in milliseconds.
    ``margin`` is the mean normalised margin over the test set: at most ``margin_bound``, which is 1
    where no output is negative, and √2 for any others.
    """

    verdict: Literal["verified", "differs", "could not be loaded"]
    reason: Annotated[str, Field(max_length=2000)]
    subject: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    seeds: tuple[int, ...] = ()
    accuracy: Percent | None = None
    difference: FiniteFloat | None = None
    tolerance: Annotated[FiniteFloat, Field(ge=0.0)] | None = None
    images: PositiveInt | None = None
    loss: FiniteFloat | None = None
    parameters: PositiveInt | None = None
    multiply_adds: PositiveInt | None = None
    latency: PositiveFloat | None = None
    threads: PositiveInt | None = None
    margin: FiniteFloat | None = None
    margin_bound: Literal["1", "√2"] | None = None
    measured: date
    versions: Words = Field(default={})
    hardware: Words = Field(default={})

    @model_validator(mode="after")
    def _says_what_it_found(self) -> Self:
        known = (self.accuracy, self.difference, self.tolerance)
        if (self.verdict == "could not be loaded") != (None in known):
            raise ValueError(
                "accuracy, difference and tolerance belong to what was measured: give all three, "
                "or the verdict 'could not be loaded'"
            )
        if self.difference is not None and self.tolerance is not None:
            too_far = abs(self.difference) > self.tolerance
            if self.verdict == "verified" and too_far:
                raise ValueError(f"verdict: {self.difference} is more than {self.tolerance}")
        return self


class Entry(Frozen):
    """One row of a board: weights, or a run.

    ``weights`` is what ``timm.create_model`` takes: a name of the zoo's, ``hf-hub:ORG/NAME``, with
    ``@REVISION`` where a certain one is meant, or ``local-dir:FOLDER``; ``provenance`` says what
    they are, sha256 and preprocessing with it. ``run`` are the seeds of a cell of one of our
    tables, of which ``claim.accuracy`` is the mean. No code is part of an entry, and none is loaded
    from where it points to.

    >>> Entry.model_validate({"id": "a", "board": "mnits"})
    Traceback (most recent call last):
        ...
    pydantic_core._pydantic_core.ValidationError: ...
    """

    schema_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=80)]
    board: str
    dataset: str
    title: Title
    claim: Claim
    submitted: date
    selection: Selection = _USUAL
    reduced: bool
    weights: Annotated[Text, Field(pattern=_SOURCE)] | None = None
    provenance: Provenance | None = None
    run: Run | None = None
    measurement: Measurement | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        try:
            datasets = get_board(self.board).datasets
        except UserError as error:
            raise ValueError(str(error)) from None
        if self.dataset not in datasets:
            raise ValueError(
                f"dataset: {self.dataset!r} is none of board {self.board}: choose from "
                f"{', '.join(datasets)}"
            )
        if (self.weights is None) != (self.provenance is None):
            raise ValueError("weights and provenance belong together: give both, or neither")
        if (self.weights is None) == (self.run is None):
            raise ValueError("an entry is of weights with their provenance, or of a run: give one")
        if self.provenance is not None:
            self._check_weights(self.provenance)
        if self.run is not None:
            self._check_run(self.run)
        return self

    def _check_weights(self, record: Provenance) -> None:
        _, height, width = record.preprocessing.input_size
        if height != width:
            raise ValueError(f"provenance: {height}×{width} is no square, as all images here are")
        if record.reduced != self.reduced:
            raise ValueError(
                f"reduced: the provenance says {str(record.reduced).lower()}: say the same"
            )

    def _check_run(self, run: Run) -> None:
        if run.axes.get("dataset") != self.dataset:
            raise ValueError(f"run: it is not on {self.dataset}, which the entry says")
        if self.selection != _USUAL:
            raise ValueError(
                f"selection: the accuracy of a run is that of its {_USUAL}, not {self.selection}"
            )
        seeds = [one.seed for one in run.seeds]
        if seeds != list(range(len(seeds))):
            raise ValueError("run: its seeds are to be 0, 1, …, none left out, each once")
        mean = summarize(list(run.accuracies.values()))
        if mean is None or abs(mean.mean - self.claim.accuracy) > _ROUNDING:
            raise ValueError("claim.accuracy: it is not the mean over the seeds of the run")

    @property
    def subject(self) -> str:
        """The identity of all that a measurement is about: what is measured, what is claimed."""
        record = self.provenance
        if record is not None:
            before = record.preprocessing.model_dump(mode="json")
            what: tuple[Any, ...] = (record.sha256, record.model, record.num_classes, before)
        else:
            what = (self.run.model_dump(mode="json") if self.run else None,)
        if self.selection != _USUAL:
            what = (*what, self.selection)
        return identity(self.dataset, self.reduced, self.claim.accuracy, *what)

    @property
    def measured(self) -> Measurement | None:
        """The measurement, where it is of what the entry says now."""
        found = self.measurement
        return found if found is not None and found.subject == self.subject else None

    @property
    def verdict(self) -> Verdict:
        """What became of the claim."""
        return self.measured.verdict if self.measured is not None else "not verified"

    @property
    def accuracy(self) -> Summary | None:
        """What was measured: the seeds of a run that was verified, or the one file."""
        if self.measured is None or self.measured.accuracy is None:
            return None
        if self.run is None:
            return summarize([self.measured.accuracy])
        return summarize(list(self.run.accuracies.values())) if self.verdict == "verified" else None


def machine(hardware: Mapping[str, str | int]) -> str | None:
    """Hardware in words: the accelerator, or the processor with its cores.

    >>> machine({"cpu": "AMD EPYC", "cores": 2})
    'AMD EPYC, 2 cores'
    """
    if "gpu" in hardware:
        return str(hardware["gpu"])
    cores = f", {hardware['cores']} cores" if hardware.get("cores") else ""
    return f"{hardware['cpu']}{cores}" if hardware.get("cpu") else None


def entry_path(folder: Path, identifier: str) -> Path:
    """Where an entry stands: one JSON file, named after it."""
    return folder / f"{identifier}.json"


def read_entry(path: Path) -> Entry:
    """The entry in a file.

    Raises ``UserError`` naming file and field for what is no entry.
    """
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise UserError(f"{path} has {size:,} bytes, and {_LARGEST:,} are the most")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        entry = Entry.model_validate_json(content)
    except ValidationError as error:
        raise UserError(f"{path} is no entry of the leaderboard: {first_problem(error)}") from error
    if entry.id != path.stem:
        raise UserError(f"{path} has the id {entry.id!r}: name the file {entry.id}.json")
    return entry


def read_entries(folder: Path) -> list[Entry]:
    """All entries of a folder, by id.

    Raises ``UserError`` for a folder that is not there, and for a file that is no entry.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {str(folder)!r}: make the first entry with qbench leaderboard "
            "submit, or name another with --entries"
        )
    return [read_entry(path) for path in sorted(folder.glob("*.json"))]


def entry_text(entry: Entry) -> str:
    """An entry as its file holds it."""
    text = json.dumps(entry.model_dump(mode="json"), indent=1, ensure_ascii=False)
    return text + "\n"


def write_entry(entry: Entry, folder: Path) -> Path:
    """Write an entry, whole or not at all."""
    path = entry_path(folder, entry.id)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, entry_text(entry))
    return path


def find_entries(entries: list[Entry], wanted: list[str]) -> Iterator[Entry]:
    """The entries with these ids.

    Raises ``UserError`` naming near matches for an id that is not there.
    """
    known = {entry.id: entry for entry in entries}
    for identifier in wanted:
        if identifier not in known:
            raise unknown("entry", identifier, known)
        yield known[identifier]
