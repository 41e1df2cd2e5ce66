"""Each claim of a paper against what was measured: a verdict in words."""

import itertools
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise

from qbench.claim import (
    AtBest,
    Claim,
    CloseClaim,
    InteriorClaim,
    LimitClaim,
    OrderClaim,
    RisesClaim,
    ValueClaim,
    models_of,
)
from qbench.frozen import Frozen, Scalar
from qbench.metrics import QUANTITIES, Metric
from qbench.report.statistics import compare_close, compare_paired, compare_ranks, holm, summarize
from qbench.report.wording import Verdict, format_number, format_p, format_value, metric_name
from qbench.table import Cell, Reduction, Table, panel_of
from qbench.trial import Result

LEVEL = 0.05

NOT_OF_PAPER = "not claimed by the paper"
"""How the source of a comparison begins that a table makes beside the paper."""

FEWEST_SEEDS = 3
"""Seeds from which an interval says something of a printed value: that of two is 13 times their
standard error to either side."""


class ClaimReport(Frozen):
    """A claim under one combination of the unstated choices.

    ``verdict``: *holds* and *does not hold* are what was measured; *not decided* is an order, or
    a nearness, that the test does not support, either way (p ≥ 0.05, paired, Holm over the claims
    of these choices; by ranks, where trials of the other of two models diverged and none of the
    praised one), an order of more than two models of which another than the praised one diverged,
    and a printed value of which there are too few seeds; *not tested* lacks results. ``models``
    are the models it speaks of, ``subject`` the one it praises, where there is one, ``seeds`` the
    fewest and the most that one of them was run with; ``statement`` is the claim for any panel,
    ``short`` in the fewest words; ``why`` gives the figures.
    """

    text: str
    statement: str
    short: str
    subject: str | None
    source: str
    panel: str | None
    models: list[str]
    choices: dict[str, Scalar]
    seeds: tuple[int, int]
    verdict: Verdict
    why: str

    @property
    def of_paper(self) -> bool:
        """Whether the paper claims it; the others are comparisons that it does not make."""
        return not self.source.startswith(NOT_OF_PAPER)


class _Sample:
    """The results of one model in one panel, or in several."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results

    def values(self, metric: Metric) -> dict[int, float]:
        """The final values by seed: what models are compared within.

        Over several panels it is their mean, of the seeds that all of them have: a seed splits the
        data and draws the weights of every panel, so that these are no samples of their own.
        """
        places: dict[int, list[float]] = {}
        for result in self.results:
            if (value := result.value(metric)) is not None:
                places.setdefault(result.seed, []).append(value)
        panels = max(map(len, places.values()), default=0)
        return {seed: sum(found) / panels for seed, found in places.items() if len(found) == panels}

    def mean(self, metric: Metric) -> float:
        """The mean of the final values; NaN where there are none."""
        values = self.values(metric).values()
        return sum(values) / len(values) if values else math.nan

    @property
    def seeds(self) -> int:
        """How many seeds were run."""
        return len({result.seed for result in self.results})

    @property
    def diverged(self) -> int:
        """How many trials diverged."""
        return sum(result.status == "diverged" for result in self.results)


def judge(
    table: Table,
    choices: Mapping[str, Scalar],
    group: Sequence[tuple[Cell, list[Result]]],
    reduced: Reduction | None,
) -> list[ClaimReport]:
    """The verdict on every claim of the table, for the cells of one combination of choices.

    A reduced run decides nothing: its figures are given, and the verdict is *not tested*.
    """
    samples = {(cell.panel, str(cell.axes["model"])): _Sample(results) for cell, results in group}
    panels = _panels(table)
    open_orders: list[tuple[int, Verdict, float, str]] = []
    reports: list[ClaimReport] = []
    for claim in table.claims:
        for panel, members in _places_of(claim, panels, set(samples), _models(claim, table)):
            if isinstance(claim, OrderClaim) and claim.at_best is not None:
                places = {name: panels[name][claim.at_best.axis] for name in members}
                chosen = _at_best(claim.at_best, places, samples)
                found = {model: sample for model, (_, sample) in chosen.items()}
                at = [f"{m} at {format_value(chosen[m][0])}" for m in claim.order if m in chosen]
                where = f"; {claim.at_best.axis}: {', '.join(at)}" if at else ""
            else:
                found, where = _pooled(members, samples), ""
            verdict, why, p_value = _judge(claim, table, found)
            seeds = [found[m].seeds if m in found else 0 for m in _models(claim, table)]
            if p_value is not None:
                open_orders.append((len(reports), verdict, p_value, where))
                verdict, where = "not decided", ""
            reports.append(
                ClaimReport(
                    text=f"{_statement(claim)} on {panel}",
                    statement=_statement(claim),
                    short=_short(claim),
                    subject=_subject(claim),
                    source=claim.source,
                    panel=panel,
                    models=_models(claim, table),
                    choices=dict(choices),
                    seeds=(min(seeds), max(seeds)),
                    verdict=verdict,
                    why=f"{why}{where}",
                )
            )
    # what the means say of an order is decided by its test, corrected over all such claims
    for (index, said, _, where), adjusted in zip(
        open_orders, holm([p_value for _, _, p_value, _ in open_orders]), strict=True
    ):
        decided: Verdict = said if adjusted < LEVEL else "not decided"
        reports[index] = reports[index].model_copy(
            update={
                "verdict": decided,
                "why": f"{reports[index].why}, p {_equals(adjusted)}{where}",
            }
        )
    if reduced:
        reports = [
            report.model_copy(update={"verdict": "not tested", "why": f"reduced run: {report.why}"})
            for report in reports
        ]
    return reports


def _judge(
    claim: Claim, table: Table, samples: Mapping[str, _Sample]
) -> tuple[Verdict, str, float | None]:
    """What the means say, the figures, and the p-value where a test has yet to confirm it."""
    found = [(model, samples.get(model)) for model in _models(claim, table)]
    missing = [model for model, sample in found if sample is None]
    present = {model: sample for model, sample in found if sample is not None}
    if missing:
        nothing = f"no results for {', '.join(missing)}"
        if not present or not isinstance(claim, LimitClaim | RisesClaim):
            return "not tested", nothing, None
        # what is said of every model is refuted by one
        of_present = claim.model_copy(update={"models": tuple(present)})
        verdict, why, _ = _judge(of_present, table, present)
        refuted = verdict == "does not hold"
        return ("does not hold" if refuted else "not tested"), f"{why}; {nothing}", None
    counted = isinstance(claim, OrderClaim) and QUANTITIES[claim.by].of_diverged is not None
    # an inner value that diverged is not chosen, and refutes nothing
    needed = (
        (claim.interior[0], claim.interior[-1]) if isinstance(claim, InteriorClaim) else present
    )
    lost = {} if counted else {model: present[model] for model in needed if present[model].diverged}
    if lost:
        counts = (
            f"{model} diverged in {s.diverged} of {len(s.results)}" for model, s in lost.items()
        )
        subject = _subject(claim)
        if isinstance(claim, OrderClaim) and len(present) == 2 and subject not in lost:
            return _judge_losses(claim, present)
        refuted = not isinstance(claim, InteriorClaim) and (subject is None or subject in lost)
        return ("does not hold" if refuted else "not decided"), "; ".join(counts), None
    if isinstance(claim, OrderClaim):
        return _judge_order(claim, present)
    if isinstance(claim, CloseClaim):
        return _judge_close(claim, present)
    if isinstance(claim, RisesClaim):
        falls = [step for s in present.values() for step in _falls(s.results, claim.rises)]
        why = f"falls at step {falls[0]}" if falls else "never falls between recorded steps"
        return ("does not hold" if falls else "holds"), why, None
    if isinstance(claim, LimitClaim):
        known = [r.value(claim.limit) for s in present.values() for r in s.results]
        ends = [value for value in known if value is not None and math.isfinite(value)]
        if not ends:
            return "not tested", f"no trial has a value of {metric_name(claim.limit)}", None
        furthest = max(ends, key=lambda value: abs(value - claim.to))
        holds = abs(furthest - claim.to) <= claim.within
        verb = "is" if _of_whole_training(claim.limit) else "ends at"
        return (
            ("holds" if holds else "does not hold"),
            f"{verb} {format_number(furthest, claim.limit)}, the furthest of {len(ends)}",
            None,
        )
    if isinstance(claim, InteriorClaim):
        return _judge_interior(claim, present)
    return _judge_value(claim, present[str(claim.cell["model"])])


def _judge_value(claim: ValueClaim, sample: _Sample) -> tuple[Verdict, str, None]:
    """Whether the claimed value with its spread meets the measured mean with its 95 % interval."""
    measured = summarize(list(sample.values(claim.metric).values()))
    if measured is None or measured.interval95 is None or measured.n < FEWEST_SEEDS:
        return "not decided", f"an interval needs {FEWEST_SEEDS} seeds or more", None
    low, high = measured.interval95
    spread = claim.spread or 0.0
    holds = low - spread <= claim.value <= high + spread
    shown = [
        format_number(value, claim.metric, precise=True) for value in (measured.mean, low, high)
    ]
    why = f"measured {shown[0]}, 95 % interval {shown[1]} … {shown[2]}"
    return ("holds" if holds else "does not hold"), why, None


def _judge_close(
    claim: CloseClaim, present: Mapping[str, _Sample]
) -> tuple[Verdict, str, float | None]:
    """What the means say, and the p-value of the test that they are so close, or that they are
    not."""
    first, second = (present[model] for model in claim.close)
    test = compare_close(first.values(claim.by), second.values(claim.by), claim.within)
    means = " and ".join(
        format_number(sample.mean(claim.by), claim.by, precise=True) for sample in (first, second)
    )
    if test is None:
        return "not decided", f"{means}, too few seeds to test", None
    gap = abs(test.difference)
    apart = format_number(gap, claim.by, precise=True)
    if test.interval95 is not None:
        ends = sorted(math.copysign(1, test.difference) * end for end in test.interval95)
        apart += f" (95 %: {_range(ends, claim.by)})"
    why = f"{means}: {apart} apart"
    return ("holds" if gap <= claim.within else "does not hold"), why, test.p_value


def _judge_interior(
    claim: InteriorClaim, present: Mapping[str, _Sample]
) -> tuple[Verdict, str, float | None]:
    """Whether the inner model that one metric chose is better than both ends by the other."""
    direction = 1 if QUANTITIES[claim.chosen_by].rising else -1
    inner = [model for model in claim.interior[1:-1] if not present[model].diverged]
    if not inner:
        return "does not hold", "every inner value diverged", None
    best = max(inner, key=lambda model: direction * present[model].mean(claim.chosen_by))
    ends = (claim.interior[0], claim.interior[-1])
    orders = [OrderClaim(order=(end, best), by=claim.by, source=claim.source) for end in ends]
    judged = [_judge_order(order, present) for order in orders]
    why = f"{best} is chosen; " + ", ".join(
        f"against {end} {found[1]}" for end, found in zip(ends, judged, strict=True)
    )
    refuted = [found for found in judged if found[0] == "does not hold"]
    if refuted:  # one suffices, and of two the surer one
        return "does not hold", why, min((p for _, _, p in refuted if p is not None), default=None)
    if any(verdict == "not decided" for verdict, _, _ in judged):
        return "not decided", why, None
    # both have to hold, so that the larger p decides
    return "holds", why, max((p for _, _, p in judged if p is not None), default=None)


def _judge_losses(
    claim: OrderClaim, present: Mapping[str, _Sample]
) -> tuple[Verdict, str, float | None]:
    """What ranks say where trials of the worse model alone diverged, and the p-value of their test:
    a trial that diverged is behind all that did not."""
    direction = 1 if QUANTITIES[claim.by].rising else -1
    samples, words = [], []
    for model in claim.order:
        sample = present[model]
        lost = {result.seed for result in sample.results if result.status == "diverged"}
        known = sample.values(claim.by)
        values = [value for seed, value in known.items() if seed not in lost]
        samples.append(values + [-direction * math.inf] * len(lost))
        said = f"{model} diverged in {sample.diverged or 'none'} of {len(sample.results)}"
        mean = sum(values) / len(values) if values else None
        words.append(said if mean is None else f"{said}, else {_precisely(mean, claim.by)}")
    why = "; ".join(words)
    if min(map(len, samples)) < 2:
        return "not decided", f"{why}, too few seeds to test", None
    test = compare_ranks(samples[1], samples[0])
    verdict: Verdict = "holds" if direction * test.difference > 0 else "does not hold"
    return verdict, why, test.p_value


def _judge_order(
    claim: OrderClaim, present: Mapping[str, _Sample]
) -> tuple[Verdict, str, float | None]:
    """What the means say, and the p-value of the pair on which that rests."""
    means = [present[model].mean(claim.by) for model in claim.order]
    direction = 1 if QUANTITIES[claim.by].rising else -1
    shown = [format_number(mean, claim.by, precise=True) for mean in means]
    tests = [
        compare_paired(present[better].values(claim.by), present[worse].values(claim.by))
        for worse, better in pairwise(claim.order)
    ]
    # who leads is said by the pairs, as the test is: models may have been run on different seeds
    leads = [
        direction * (test.difference if test else after - before)
        for test, (before, after) in zip(tests, pairwise(means), strict=True)
    ]
    ordered = all(lead > 0 for lead in leads)
    sign = " < " if direction > 0 else " > "
    agree = all(direction * (after - before) > 0 for before, after in pairwise(means))
    why = sign.join(shown) if ordered and agree else f"measured {' and '.join(shown)}"
    if any(test is None for test in tests):
        return "not decided", f"{why}, too few seeds to test", None
    gaps = [
        f"{format_number(test.difference, claim.by, sign=True, precise=True)} "
        f"(95 %: {_range(test.interval95, claim.by, sign=True)})"
        for test in tests
        if test is not None and test.interval95 is not None
    ]
    if len(gaps) == len(tests):
        why += f", difference{'s' if len(gaps) > 1 else ''} {', '.join(gaps)}"
    if QUANTITIES[claim.by].exact and all(_same(present[model], claim.by) for model in claim.order):
        return ("holds" if ordered else "does not hold"), f"{why}, the same for every seed", None
    p_values = [test.p_value for test in tests if test is not None]
    deciding = [p for p, lead in zip(p_values, leads, strict=True) if ordered or lead < 0]
    known = [p for p in deciding if p is not None]
    if not known or len(known) < len(deciding):
        return "not decided", f"{why}, no variation to test against", None
    return ("holds", why, max(known)) if ordered else ("does not hold", why, min(known))


def _precisely(value: float, metric: Metric) -> str:
    return format_number(value, metric, precise=True)


def _range(ends: Sequence[float], metric: Metric, *, sign: bool = False) -> str:
    return " … ".join(format_number(end, metric, sign=sign, precise=True) for end in ends)


def _same(sample: _Sample, metric: Metric) -> bool:
    """Whether every trial has the same value."""
    return len(set(sample.values(metric).values())) == 1


def _equals(p_value: float) -> str:
    shown = format_p(p_value)
    return shown.replace("<", "< ") if shown.startswith("<") else f"= {shown}"


def _falls(results: Iterable[Result], metric: str) -> list[int]:
    """Steps at which the metric is lower than at the recorded step before."""
    return [
        result.step[i + 1]
        for result in results
        for i, (before, after) in enumerate(pairwise(result.history[metric]))
        if after < before
    ]


def _panels(table: Table) -> dict[str, Mapping[str, Scalar]]:
    """The table's panels, each with the values of the grid's axes that it stands for."""
    axes = {axis: values for axis, values in table.grid_axes.items() if axis != "model"}
    combined = (
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    )
    return {panel_of(values, table.grid.other): values for values in combined}


def _places_of(
    claim: Claim,
    panels: Mapping[str, Mapping[str, Scalar]],
    run: Container[tuple[str, str]],
    models: Sequence[str],
) -> list[tuple[str, list[str]]]:
    """Where a claim is made, in words, and the panels that it is: every one by itself, all that it
    names together, or the first. Together are those in which all of its models were run."""
    chosen = dict(claim.where)
    if isinstance(claim, ValueClaim):
        chosen |= {axis: (value,) for axis, value in claim.cell.items() if axis != "model"}
    named = [
        panel
        for panel, values in panels.items()
        if all(format_value(values[axis]) in allowed for axis, allowed in chosen.items())
    ]
    if isinstance(claim, OrderClaim) and claim.at_best is not None:
        groups: dict[str, list[str]] = {}
        for panel in named:
            fixed = {a: v for a, v in panels[panel].items() if a != claim.at_best.axis}
            others = [axis for axis in fixed if axis != "dataset"]
            groups.setdefault(panel_of(fixed, others), []).append(panel)
        return list(groups.items())[: None if claim.per or chosen else 1]
    if claim.per == "pooled" and len(named) > 1:
        whole = [panel for panel in named if all((panel, model) in run for model in models)]
        words = "all" if len(whole) in (0, len(named)) else f"{len(whole)} of {len(named)}"
        return [(f"{words} panels together", whole)]
    return [(panel, [panel]) for panel in (named if claim.per or chosen else named[:1])]


def _pooled(
    panels: Sequence[str], samples: Mapping[tuple[str, str], _Sample]
) -> dict[str, _Sample]:
    """The results of each model in these panels."""
    pooled: dict[str, list[Result]] = {}
    for (panel, model), sample in samples.items():
        if panel in panels:
            pooled.setdefault(model, []).extend(sample.results)
    return {model: _Sample(results) for model, results in pooled.items()}


def _at_best(
    best: AtBest,
    places: Mapping[str, Scalar],
    samples: Mapping[tuple[str, str], _Sample],
) -> dict[str, tuple[Scalar, _Sample]]:
    """Each model's best value of the axis with its results there; ``places`` are the panels with
    their values of the axis.

    A value with diverged trials is taken only where every value has some: of these the one with the
    fewest.
    """
    direction = 1 if QUANTITIES[best.chosen_by].rising else -1
    found: dict[str, list[tuple[Scalar, _Sample]]] = {}
    for (panel, model), sample in samples.items():
        if panel in places:
            found.setdefault(model, []).append((places[panel], sample))

    def worth(candidate: tuple[Scalar, _Sample]) -> tuple[int, float]:
        _, sample = candidate
        mean = sample.mean(best.chosen_by)
        return -sample.diverged, -math.inf if math.isnan(mean) else direction * mean

    return {model: max(candidates, key=worth) for model, candidates in found.items()}


def _models(claim: Claim, table: Table) -> list[str]:
    return list(models_of(claim) or table.grid.model)


def _of_whole_training(metric: Metric) -> bool:
    """Whether a value stands for the curve and not for its end."""
    return QUANTITIES[metric].derive is not None


def _subject(claim: Claim) -> str | None:
    if isinstance(claim, OrderClaim):
        return claim.order[-1]
    if isinstance(claim, CloseClaim):
        return claim.close[0]
    named = models_of(claim)
    return named[0] if len(named) == 1 else None


def _short(claim: Claim) -> str:
    if isinstance(claim, OrderClaim):
        word = metric_name(claim.by).split()[-1]
        return f"{word} {'>' if QUANTITIES[claim.by].rising else '<'} {claim.order[-2]}"
    if isinstance(claim, CloseClaim):
        return f"within {claim.within:g} of {claim.close[1]}"
    if isinstance(claim, ValueClaim):
        spread = f" ± {claim.spread:g}" if claim.spread is not None else ""
        return f"{claim.value:g}{spread}"
    return _text(claim)


def _statement(claim: Claim) -> str:
    """The claim, with the models it speaks of where it names some and their order does not."""
    named = claim.models if isinstance(claim, RisesClaim | LimitClaim) else None
    return f"{', '.join(named)}: {_text(claim)}" if named else _text(claim)


def _text(claim: Claim) -> str:
    if isinstance(claim, OrderClaim):
        better = " < " if QUANTITIES[claim.by].rising else " > "
        best = f", each at its best {claim.at_best.axis}" if claim.at_best else ""
        return f"{better.join(claim.order)} in {metric_name(claim.by)}{best}"
    if isinstance(claim, CloseClaim):
        first, second = claim.close
        return f"{first} within {claim.within:g} of {second} in {metric_name(claim.by)}"
    if isinstance(claim, RisesClaim):
        return f"{metric_name(claim.rises)} never falls"
    if isinstance(claim, LimitClaim):
        verb = "is" if _of_whole_training(claim.limit) else "ends"
        return f"{metric_name(claim.limit)} {verb} within {claim.within:g} of {claim.to:g}"
    if isinstance(claim, InteriorClaim):
        first, last = claim.interior[0], claim.interior[-1]
        return f"best strictly between {first} and {last} in {metric_name(claim.by)}"
    spread = f" ± {claim.spread:g}" if claim.spread is not None else ""
    return f"{claim.cell['model']} reaches {claim.value:g}{spread} in {metric_name(claim.metric)}"
