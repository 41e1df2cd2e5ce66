"""What a paper's figure is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.numpy

from qbench.report.numbers import CellReport, Report
from qbench.report.wording import format_value
from qbench.trial import ARRAYS, Result, RunFolder

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Evidence:
    """A report, its results under the first combination of choices, and the folder of all files.

    ``results`` of other combinations are left out: figures that show several have their own way.
    """

    report: Report
    every_result: Sequence[Result]
    folder: RunFolder | None = None

    @cached_property
    def results(self) -> list[Result]:
        """The results under the first combination of choices: the defaults, where they were run."""
        first = dict(self.report.combinations[0]).items()
        return [result for result in self.every_result if first <= result.axes.items()]

    @cached_property
    def _by_place(self) -> dict[tuple[str, str], list[Result]]:
        found: dict[tuple[str, str], list[Result]] = {}
        for result in self.results:
            place = (self.report.panel_of(result), str(result.axes["model"]))
            found.setdefault(place, []).append(result)
        return found

    @cached_property
    def cells(self) -> list[CellReport]:
        """The cells under the same choices."""
        first = self.report.combinations[0]
        return [cell for cell in self.report.cells if self.report.choices_of(cell) == first]

    @property
    def panels(self) -> list[str]:
        """The panels of these cells, in the order of the table."""
        return list(dict.fromkeys(cell.panel for cell in self.cells))

    @property
    def models(self) -> list[str]:
        """The models of these cells, in the order of the table."""
        present = {str(cell.axes["model"]) for cell in self.cells}
        return [model for model in self.report.models if model in present]

    @property
    def choices(self) -> str:
        """The choices in words, to follow a sentence; empty where the table leaves none open."""
        named = [f"{axis} = {format_value(value)}" for axis, value in self.report.combinations[0]]
        return f" (for {', '.join(named)})" if named else ""

    def cell(self, panel: str, model: str) -> CellReport | None:
        """The cell of a model in a panel; None where it has not been run."""
        found = (c for c in self.cells if (c.panel, c.axes["model"]) == (panel, model))
        return next(found, None)

    def of(self, panel: str, model: str) -> list[Result]:
        """The results of a model in a panel, by seed."""
        return self._by_place.get((panel, model), [])

    def arrays(self, result: Result) -> dict[str, Array]:
        """What a trial left for figures to draw; empty where it left nothing, as a diverged one.

        Raises ``UserError`` where the file is not there, or not what was written.
        """
        if self.folder is None or ARRAYS not in result.files:
            return {}
        content = self.folder.read_file(result, ARRAYS)
        return safetensors.numpy.load(content)
