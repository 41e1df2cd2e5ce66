"""The report as numbers: what ``report.json`` holds and every page shows."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from qbench.architecture import ModelSpec
from qbench.claim import ValueClaim
from qbench.frozen import Frozen, Scalar
from qbench.metrics import QUANTITIES, Metric
from qbench.recipe import Recipe
from qbench.report.claims import ClaimReport, judge
from qbench.report.statistics import Comparison, compare_paired, holm, summarize
from qbench.report.wording import format_value, listed
from qbench.table import Cell, RecordedReduction, Reduction, Table, option_of, panel_of
from qbench.trial import Environment, Result, values_by_seed

Choices = tuple[tuple[str, Scalar], ...]
"""A combination of unstated choices: the name and the value of each."""


class Claimed(Frozen):
    """What the paper prints for a cell; its spread is the paper's, never ours."""

    value: float
    spread: float | None
    source: str


class Measured(Frozen):
    """A metric over seeds: mean, standard deviation, number of seeds, 95 % interval of the mean.

    The mean is None where a value is not finite.
    """

    mean: float | None
    std: float | None
    n: int
    interval95: tuple[float, float] | None


class CellReport(Frozen):
    """One cell: its main metric against the control and the claim, and its cost.

    Accuracies are in percent, losses in nats. ``n`` counts the seeds in the mean, ``trials`` all,
    ``diverged`` those that did, between the steps ``diverged_at``; they are in the mean of a metric
    that says how many learned, and of no other. ``difference`` and ``p_value``
    compare with the control, paired by seed, with Holm's correction over all cells of the same
    choices. ``multiply_adds`` are those of one input, ``seconds`` is the wall time of all seeds
    together, ``core_seconds`` that of each block times the threads it ended with, None in reports
    of before it was counted, and ``samples_per_second`` what a block went through in training, with
    measuring and saving.
    """

    axes: dict[str, Scalar]
    panel: str
    metric: Metric
    mean: float | None
    std: float | None
    n: int
    trials: int
    diverged: int
    diverged_at: tuple[int, int] | None
    interval95: tuple[float, float] | None
    difference: float | None
    p_value: float | None
    claim: Claimed | None
    others: dict[str, Measured]
    parameters: int
    multiply_adds: int
    seconds: float
    core_seconds: float | None = None
    samples_per_second: float | None


class Report(Frozen):
    """A table's report.

    ``axes`` are the grid's beside dataset and model; ``measured`` are the metrics that the table
    is about, the main one first; ``models`` says what each model is;
    ``control`` is the one that the others are compared with.
    ``choices`` are the unstated choices with the values that were run; ``expected`` is the number
    of trials of the whole table under these choices, ``recorded`` how many of them there are.
    ``hardware``, ``threads``, ``commit`` and ``versions`` are those of the latest trial;
    ``processors`` counts the trials by processor, or accelerator where one was used, and is empty
    in reports of before it was counted.
    ``memory`` is the most bytes that a process held, or an accelerator where one was used.
    ``warnings`` say that a run is reduced or partial, and stand on everything that shows it.
    """

    table: str
    version: int
    title: str
    paper: str
    shows: str
    reduced: RecordedReduction
    expected: int
    recorded: int
    choices: dict[str, list[Scalar]]
    open_choices: dict[str, str]
    axes: list[str]
    measured: list[str]
    models: dict[str, ModelSpec]
    control: str | None
    warnings: list[str]
    notes: list[str]
    command: str
    commit: str | None
    hardware: dict[str, str | int]
    threads: int
    processors: dict[str, int] = Field(default_factory=dict)
    versions: dict[str, str]
    made: str
    seconds: float
    memory: int | None
    cells: list[CellReport]
    claims: list[ClaimReport]

    @property
    def mark(self) -> str:
        """The warnings in a word or two, empty where there are none."""
        partial = self.recorded < self.expected
        return " · ".join(["REDUCED RUN"] * bool(self.reduced) + ["PARTIAL"] * partial)

    @property
    def machines(self) -> str:
        """What the trials were run on: how many on which, where that was not one."""
        if len(self.processors) > 1:
            counted = sorted(self.processors.items(), key=lambda item: -item[1])
            return listed(f"{name} ({count} trial{'s' * (count != 1)})" for name, count in counted)
        return ", ".join(f"{name} {value}" for name, value in self.hardware.items())

    @property
    def counts_diverged(self) -> bool:
        """Whether trials that diverged are in the means, as not learned, or in none."""
        return QUANTITIES[self.cells[0].metric].of_diverged is not None if self.cells else False

    @property
    def columns(self) -> list[str]:
        """The metrics to show beside the main one: the table's others, or the training loss."""
        shown = {name for cell in self.cells for name in cell.others}
        return [name for name in (self.measured[1:] or ["train_loss"]) if name in shown]

    @property
    def panels(self) -> list[str]:
        """The panels that were run, in the order of the table: the values of the grid's axes but
        the model."""
        return list(dict.fromkeys(cell.panel for cell in self.cells))

    def core_seconds(self, cell: CellReport) -> float:
        """What a cell took of all cores: where that was not counted, with the threads of the
        latest trial."""
        known = cell.core_seconds
        return cell.seconds * self.threads if known is None else known

    @property
    def varied(self) -> list[str]:
        """The unstated choices that were run with more than one value."""
        return [name for name, values in self.choices.items() if len(values) > 1]

    @property
    def combinations(self) -> list[Choices]:
        """The combinations of unstated choices that were run, the first that of the defaults
        where they were."""
        return list(dict.fromkeys(self.choices_of(cell) for cell in self.cells))

    def panel_of(self, result: Result) -> str:
        """The panel of a result."""
        return panel_of(result.axes, self.axes)

    def choices_of(self, cell: CellReport) -> Choices:
        """The unstated choices under which a cell was run."""
        return tuple((name, cell.axes[name]) for name in self.choices)

    def claims_of(self, cell: CellReport) -> list[ClaimReport]:
        """The paper's claims that praise a cell's model in its panel, under its choices."""
        return [
            claim
            for claim in self.claims
            if claim.of_paper
            and claim.panel == cell.panel
            and claim.subject == cell.axes["model"]
            and tuple(claim.choices.items()) == self.choices_of(cell)
        ]

    def departures(self, choices: Choices) -> Choices:
        """What tells a combination from the first: of that itself, all that varies."""
        usual, varied = self.combinations[0], self.varied
        if choices == usual:
            return tuple((name, value) for name, value in choices if name in varied)
        return tuple(choice for choice in choices if choice not in usual)

    def label(self, combinations: Iterable[Choices]) -> str:
        """Combinations in words, as in ``scaling = maxabs, raw``; empty where nothing varies.

        Where several choices vary, the first combination is named in full, and of the others what
        they differ in from it.
        """
        words: list[tuple[tuple[str, ...], str]] = []  # names, and names with values
        for choices in combinations:
            named = self.departures(choices)
            names = tuple(name for name, _ in named)
            if len(names) == 1 and words and words[-1][0] == names:
                words[-1] = (names, f"{words[-1][1]}, {format_value(named[0][1])}")
            else:
                text = ", ".join(f"{name} = {format_value(value)}" for name, value in named)
                words.append((names, text))
        return "; ".join(text for _, text in words)


def build_report(table: Table, cells: Sequence[Cell], results: Sequence[Result]) -> Report:
    """The numbers of a table from its recorded results, which must not be empty.

    ``cells`` are all cells of the grid under the choices that were asked for. Under the first of
    these, the defaults where they were run, those without a result count as expected and not
    recorded; what others lack is a note.
    """
    by_cell: dict[str, list[Result]] = {cell.key: [] for cell in cells}
    for result in results:
        by_cell[result.cell_key].append(result)
    present = [(cell, by_cell[cell.key]) for cell in cells if by_cell[cell.key]]
    reduced = next((result.reduced for result in results if result.reduced), None)
    groups = _by_choices(table, present)
    missing = _missing(table, cells, by_cell, table.usual_seeds(reduced))
    lacking = missing[next(iter(groups))]
    latest = max(results, key=lambda result: result.environment.started).environment
    return Report(
        table=table.id,
        version=table.version,
        title=table.title,
        paper=table.paper,
        shows=table.shows,
        reduced=reduced,
        expected=len(results) + lacking,
        recorded=len(results),
        choices={name: _values_run(table, name, present) for name in table.unstated},
        open_choices={name: choice.why for name, choice in table.unstated.items()},
        axes=list(table.grid.other),
        measured=list(table.measured),
        models={
            name: spec
            for name, spec in table.grid.model.items()
            if any(cell.axes["model"] == name for cell, _ in present)
        },
        control=table.control,
        warnings=_warnings(table, present, reduced, len(results), len(results) + lacking),
        notes=[
            *_notes(table, present, latest, reduced),
            *_naming(table, list(groups)),
            *_incomplete(table, groups, missing),
        ],
        command=_command(table, present, reduced),
        commit=latest.commit,
        hardware=latest.hardware,
        threads=latest.threads,
        processors=_processors(results),
        versions=latest.versions,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(latest.started)),
        seconds=sum(_seconds(_blocks(found)) for _, found in present),
        memory=max((m for r in results if (m := r.environment.memory) is not None), default=None),
        cells=[report for group in groups.values() for report in _cell_reports(table, group)],
        claims=[
            verdict
            for choices, group in groups.items()
            for verdict in judge(
                table, dict(zip(table.unstated, choices, strict=True)), group, reduced
            )
        ],
    )


def _processors(results: Sequence[Result]) -> dict[str, int]:
    """The number of trials on each processor, or accelerator where one was used."""
    found = [result.environment.hardware for result in results]
    return dict(Counter(str(one.get("gpu") or one.get("cpu") or "unknown") for one in found))


def _by_choices(
    table: Table, present: Sequence[tuple[Cell, list[Result]]]
) -> dict[tuple[Scalar, ...], list[tuple[Cell, list[Result]]]]:
    """The cells of each combination of choices, in the table's order: the defaults first."""
    groups: dict[tuple[Scalar, ...], list[tuple[Cell, list[Result]]]] = {}
    for cell, found in present:
        choices = tuple(cell.axes[name] for name in table.unstated)
        groups.setdefault(choices, []).append((cell, found))
    orders = [choice.values for choice in table.unstated.values()]
    return dict(
        sorted(
            groups.items(),
            key=lambda item: [
                order.index(value) for order, value in zip(orders, item[0], strict=True)
            ],
        )
    )


def _missing(
    table: Table, cells: Sequence[Cell], found: Mapping[str, Sequence[Result]], seeds: int
) -> dict[tuple[Scalar, ...], int]:
    """How many trials are not recorded under each combination of choices."""
    missing: dict[tuple[Scalar, ...], int] = {}
    for cell in cells:
        choices = tuple(cell.axes[name] for name in table.unstated)
        lacking = max(0, seeds - len(found[cell.key]))
        missing[choices] = missing.get(choices, 0) + lacking
    return missing


def _incomplete(
    table: Table,
    groups: Mapping[tuple[Scalar, ...], Sequence[tuple[Cell, list[Result]]]],
    missing: Mapping[tuple[Scalar, ...], int],
) -> list[str]:
    """Which combinations of choices after the first were run in part, in a sentence."""
    said = []
    first, *others = groups
    for choices in others:
        if missing[choices]:
            recorded = sum(len(found) for _, found in groups[choices])
            named = ", ".join(
                f"{name} = {format_value(value)}"
                for name, value, usual in zip(table.unstated, choices, first, strict=True)
                if value != usual
            )
            said.append(f"{recorded} of {recorded + missing[choices]} for {named}")
    return [f"Recorded in part beside that: {'; '.join(said)}."] if said else []


def _cell_reports(table: Table, group: Sequence[tuple[Cell, list[Result]]]) -> list[CellReport]:
    """The cells of one combination of choices; Holm's correction is over all of them."""
    samples = {
        (cell.panel, str(cell.axes["model"])): values_by_seed(found, table.main_metric)
        for cell, found in group
    }
    comparisons: dict[tuple[str, str], Comparison] = {}
    for (panel, model), values in samples.items():
        control = samples.get((panel, table.control or ""))
        if model != table.control and control:
            comparison = compare_paired(values, control)
            if comparison is not None:
                comparisons[panel, model] = comparison
    tested = {place: c.p_value for place, c in comparisons.items() if c.p_value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [_cell_report(table, cell, found, comparisons, adjusted) for cell, found in group]


def _cell_report(
    table: Table,
    cell: Cell,
    found: Sequence[Result],
    comparisons: Mapping[tuple[str, str], Comparison],
    adjusted: Mapping[tuple[str, str], float],
) -> CellReport:
    place = (cell.panel, str(cell.axes["model"]))
    summary = summarize(list(values_by_seed(found, table.main_metric).values()))
    steps = [result.diverged_at for result in found if result.diverged_at is not None]
    comparison = comparisons.get(place)
    blocks = _blocks(found)
    others = {
        name: summarize(list(values_by_seed(found, name).values()))
        for name in dict.fromkeys(
            [*table.measured, *sorted({name for result in found for name in result.metrics})]
        )
        if name != table.main_metric
    }
    return CellReport(
        axes=cell.axes,
        panel=cell.panel,
        metric=table.main_metric,
        mean=summary.mean if summary else None,
        std=summary.std if summary else None,
        n=summary.n if summary else 0,
        trials=len(found),
        diverged=len(steps),
        diverged_at=(min(steps), max(steps)) if steps else None,
        interval95=summary.interval95 if summary else None,
        difference=comparison.difference if comparison else None,
        p_value=adjusted.get(place),
        claim=_claimed(table, cell),
        others={
            name: (
                Measured(mean=s.mean, std=s.std, n=s.n, interval95=s.interval95)
                if math.isfinite(s.mean)
                else Measured(mean=None, std=None, n=s.n, interval95=None)
            )
            for name, s in others.items()
            if s is not None
        },
        parameters=found[0].parameters,
        multiply_adds=found[0].multiply_adds,
        seconds=_seconds(blocks),
        core_seconds=_core_seconds(blocks),
        samples_per_second=_throughput(blocks),
    )


def _claimed(table: Table, cell: Cell) -> Claimed | None:
    for claim in table.claims:
        if (
            isinstance(claim, ValueClaim)
            and claim.metric == table.main_metric
            and all(format_value(cell.axes[axis]) == value for axis, value in claim.cell.items())
        ):
            return Claimed(value=claim.value, spread=claim.spread, source=claim.source)
    return None


def _blocks(results: Iterable[Result]) -> list[Environment]:
    """Where each block was run, once, though all its trials carry it."""
    found = (result.environment for result in results)
    return list({environment.started: environment for environment in found}.values())


def _seconds(blocks: Iterable[Environment]) -> float:
    """Wall time of the blocks."""
    return sum(block.seconds for block in blocks)


def _core_seconds(blocks: Iterable[Environment]) -> float:
    """As :func:`_seconds`, of each thread."""
    return sum(block.seconds * block.threads * block.processes for block in blocks)


def _throughput(blocks: Iterable[Environment]) -> float | None:
    """Training samples per second of all seeds that train together, the mean over blocks."""
    known = [rate for block in blocks if (rate := block.samples_per_second) is not None]
    return sum(known) / len(known) if known else None


def _warnings(
    table: Table,
    present: Sequence[tuple[Cell, list[Result]]],
    reduced: Reduction | None,
    recorded: int,
    expected: int,
) -> list[str]:
    warnings = []
    if reduced:
        seeds = max(len(found) for _, found in present)
        less = _reductions([cell for cell, _ in present])
        if seeds < table.seeds:
            less.append(f"{seeds} {_singular('seeds', seeds)} instead of {table.seeds}")
        warnings.append(f"REDUCED RUN: {listed(less)}; no number here is the table's.")
    if recorded < expected:
        warnings.append(f"PARTIAL: {recorded} of {expected} trials are recorded.")
    return warnings


def _singular(words: str, count: int) -> str:
    """``epochs`` of one epoch is ``epoch``."""
    return words.removesuffix("s") if count == 1 else words


_REDUCED = {
    "epochs": "epochs",
    "train_samples": "training samples",
    "test_samples": "test samples",
    "batch_size": "samples in a batch",
    "validation": "validation samples",
}

_RECORDS = frozenset({"log_every", "train_metrics", "snapshots"})
"""Fields of a recipe that change what is recorded, and no outcome."""


def _reductions(cells: Sequence[Cell]) -> list[str]:
    """Where the recipes of a reduced run are other than the full ones, in words."""
    changed: dict[str, dict[tuple[Any, Any], None]] = {}
    batches = set()
    for cell in cells:
        reduced, full = cell.recipe, Cell(cell.table, cell.axes).recipe
        batches.add(full.batch_size)
        for name in Recipe.model_fields:
            pair = (getattr(reduced, name), getattr(full, name))
            if name not in _RECORDS and pair[0] != pair[1]:
                changed.setdefault(name, {})[pair] = None
    said = []
    for name in dict.fromkeys([*_REDUCED, *changed]):
        if name not in changed:
            continue
        values = list(dict.fromkeys(reduced for reduced, _ in changed[name]))
        instead = " or ".join(dict.fromkeys(_in_words(full) for _, full in changed[name]))
        unit = "steps" if name == "epochs" and batches == {None} else _REDUCED.get(name)
        shown = " or ".join(map(_in_words, values))
        if unit is None:
            said.append(f"{name} {shown} instead of {instead}")
        else:
            count = values[0] if len(values) == 1 else 2
            said.append(f"{shown} {_singular(unit, count)} instead of {instead}")
    return said


def _in_words(value: Any) -> str:
    """A value of a recipe.

    >>> _in_words(None), _in_words(0.1), _in_words((100, 150)), _in_words(())
    ('all', '0.1', '100, 150', 'none')
    """
    if value is None:
        return "all"
    if isinstance(value, tuple):
        return ", ".join(map(_in_words, value)) or "none"
    return format_value(value) if isinstance(value, str | int | float) else str(value)


def _notes(
    table: Table,
    present: Sequence[tuple[Cell, list[Result]]],
    latest: Environment,
    reduced: Reduction | None,
) -> list[str]:
    notes = [f"Other than in the paper, on purpose: {sentence}" for sentence in table.departs]
    for name, choice in table.unstated.items():
        run = _values_run(table, name, present)
        rest = [format_value(value) for value in choice.values if value not in run]
        shown = (
            f"Shown: {', '.join(map(format_value, run))}; for the rest ({', '.join(rest)}): "
            f"{' '.join(['qbench run', table.id, '--axis', f'{name}=all', *option_of(reduced)])}"
            if rest
            else "All its values are shown."
        )
        notes.append(f"The outcome may depend on {name}: {choice.why}. {shown}")
    trials = [result for _, found in present for result in found]
    others = sum(
        (result.environment.commit, result.environment.hardware, result.environment.versions)
        != (latest.commit, latest.hardware, latest.versions)
        for result in trials
    )
    if others:
        notes.append(
            f"{others} of {len(trials)} trials were run elsewhere, at another commit or with other "
            "versions than the latest, which are named below; each result.json has its own."
        )
    lost = [result.diverged_at for result in trials if result.diverged_at is not None]
    if lost:
        steps = f"step {min(lost)}" + (f" to {max(lost)}" if len(set(lost)) > 1 else "")
        notes.append(
            f"{len(lost)} of {len(trials)} trials diverged (a loss that is not finite, or has "
            f"exploded) at {steps}. They are counted beside each mean"
            + (
                ", in which they count as not learned."
                if QUANTITIES[table.main_metric].of_diverged is not None
                else ", and are not in it."
            )
        )
    return notes


def _naming(table: Table, combinations: Sequence[tuple[Scalar, ...]]) -> list[str]:
    """How combinations of several choices are named: see ``Report.label``."""
    by_name = dict(zip(table.unstated, zip(*combinations, strict=True), strict=True))
    varied = {name: values[0] for name, values in by_name.items() if len(set(values)) > 1}
    if len(varied) < 2:
        return []
    first = ", ".join(f"{name} = {format_value(value)}" for name, value in varied.items())
    return [f"Combinations of choices are named by what tells them from the first: {first}."]


def _command(
    table: Table, present: Sequence[tuple[Cell, list[Result]]], reduced: Reduction | None
) -> str:
    options = []
    for name, every in table.grid_axes.items():
        used = [value for value in every if any(cell.axes[name] == value for cell, _ in present)]
        if len(used) < len(every):
            options.append(f"--only {name}={','.join(map(format_value, used))}")
    for name, choice in table.unstated.items():
        run = _values_run(table, name, present)
        if len(run) == len(choice.values) > 1:
            options.append(f"--axis {name}=all")
        elif run != [choice.default]:
            options.append(f"--axis {name}={','.join(map(format_value, run))}")
    seeds = max(len(found) for _, found in present)
    if seeds != table.usual_seeds(reduced):
        options.append(f"--seeds {seeds}")
    return " ".join(["qbench run", table.id, *options, *option_of(reduced)])


def _values_run(
    table: Table, name: str, present: Sequence[tuple[Cell, list[Result]]]
) -> list[Scalar]:
    found = {cell.axes[name] for cell, _ in present}
    return [value for value in table.unstated[name].values if value in found]


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values."""
    return report.model_dump(mode="json")
