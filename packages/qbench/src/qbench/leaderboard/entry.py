"""An entry of the leaderboard: what somebody claims, and what was measured here beside it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from qbench.errors import UserError, first_problem
from qbench.frozen import Frozen, Scalar
from qbench.leaderboard.boards import BOARDS, get_board
from qbench.report.statistics import Summary, summarize
from qbench.trial import write_whole
from qzoo.provenance import Provenance

_JOINERS = "\u200c\u200d"  # which Persian names and emoji are written with
_LARGEST = 1_000_000  # bytes of an entry
_MOST_POINTS = 1000
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


class Claim(Frozen):
    """What is said of the weights or the run.

    ``accuracy`` is on the test set, in percent; of several seeds, their mean. ``training_seconds``
    are those of one seed on ``hardware``.
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
    """A cell of one of our tables over its seeds, as ``qbench run`` recorded it."""

    table: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=60)]
    version: PositiveInt
    axes: dict[Text, Scalar]
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
    def diverged(self) -> int:
        """How many seeds did."""
        return len(self.seeds) - len(self.accuracies)


class Measurement(Frozen):
    """What was measured here, of the very file or by running the very trial again.

    ``subject`` is the SHA-256 of the file, or the key of the run's first trial; ``claimed`` what it
    was compared with, ``seeds`` the trials that were run again. ``verdict`` and ``reason`` tell of
    ``accuracy``, whose ``difference`` to the claim is in percentage points. ``latency`` is the
    median time of one input in milliseconds. ``margin`` is the mean normalised margin over the test
    set: at most ``margin_bound``, which is 1 where no output is negative, and √2 for any others.
    """

    verdict: Literal["verified", "differs", "could not be loaded"]
    reason: Annotated[str, Field(max_length=2000)]
    subject: Annotated[str, Field(pattern=r"^[0-9a-f]{16}([0-9a-f]{48})?$")]
    claimed: Percent
    seeds: tuple[int, ...] = ()
    accuracy: Percent | None = None
    difference: FiniteFloat | None = None
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


class Entry(Frozen):
    """One row of a board: weights, a run, or both of one cell.

    ``weights`` is what ``timm.create_model`` takes: a name of the zoo's, ``hf-hub:ORG/NAME``, with
    ``@REVISION`` where a certain one is meant, or ``local-dir:FOLDER``; ``provenance`` says what
    they are, sha256 and preprocessing with it. ``run`` are the seeds of a cell of one of our
    tables. No code is part of an entry, and none is loaded from where it points to.

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
    selection: Selection = "last epoch"
    reduced: bool
    weights: Annotated[Text, Field(pattern=_SOURCE)] | None = None
    provenance: Provenance | None = None
    run: Run | None = None
    measurement: Measurement | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.board not in BOARDS:
            try:
                get_board(self.board)
            except UserError as error:
                raise ValueError(str(error)) from None
        datasets = BOARDS[self.board].datasets
        if self.dataset not in datasets:
            raise ValueError(
                f"dataset: {self.dataset!r} is none of board {self.board}: choose from "
                f"{', '.join(datasets)}"
            )
        if (self.weights is None) != (self.provenance is None):
            raise ValueError("weights and provenance belong together: give both, or neither")
        if self.weights is None and self.run is None:
            raise ValueError("an entry needs weights with their provenance, or a run")
        if self.run is not None and len({one.seed for one in self.run.seeds}) < len(self.run.seeds):
            raise ValueError("run: a seed is there twice: keep one of them")
        return self

    @property
    def subject(self) -> str:
        """What is measured: the file's SHA-256, or the key of the run's first trial."""
        if self.provenance is not None:
            return self.provenance.sha256
        assert self.run is not None  # noqa: S101 - an entry has one of the two
        return self.run.seeds[0].key

    def claimed(self, seeds: Sequence[int] = ()) -> float:
        """What a measurement is compared with: of the file, or of these seeds of the run."""
        if self.provenance is None and self.run is not None:
            of_seeds = summarize([self.run.accuracies[seed] for seed in seeds])
            return self.claim.accuracy if of_seeds is None else of_seeds.mean
        of_file = self.provenance.claimed if self.provenance and self.run else None
        return self.claim.accuracy if of_file is None else of_file

    @property
    def verdict(self) -> Verdict:
        """What became of the claim; a measurement of another file, or of another claim, is none."""
        found = self.measurement
        if found is None or found.subject != self.subject:
            return "not verified"
        known = self.run.accuracies if self.run else {}
        if not set(found.seeds) <= set(known) or found.claimed != self.claimed(found.seeds):
            return "not verified"
        return found.verdict

    @property
    def accuracy(self) -> Summary | None:
        """What was measured: the seeds of a run, or the one file; None where nothing was."""
        if self.run is not None:
            return summarize(list(self.run.accuracies.values()))
        if self.verdict not in ("verified", "differs") or self.measurement is None:
            return None
        return summarize([value for value in [self.measurement.accuracy] if value is not None])


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
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise UserError(f"{path} has {len(content):,} bytes, and {_LARGEST:,} are the most")
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


def write_entry(entry: Entry, folder: Path) -> Path:
    """Write an entry, whole or not at all."""
    path = entry_path(folder, entry.id)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(entry.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_whole(path, text + "\n")
    return path


def find_entries(entries: list[Entry], wanted: list[str]) -> Iterator[Entry]:
    """The entries with these ids.

    Raises ``UserError`` naming near matches for an id that is not there.
    """
    from qbench.errors import unknown

    known = {entry.id: entry for entry in entries}
    for identifier in wanted:
        if identifier not in known:
            raise unknown("entry", identifier, known)
        yield known[identifier]
