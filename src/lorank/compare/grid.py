"""A grid of cells: which there are, what each is asked for, and what was measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorank.artefact import file_checksum
from lorank.compare.cells import (
    BASELINE,
    BORROWING,
    ERROR,
    FROM_PLAN,
    RESULT,
    Cell,
    Measured,
    cells_of,
    fingerprint_of,
    read_measured,
    recipe_of,
    source_of,
)
from lorank.errors import OutputError
from lorank.methods.plugins import plugin_of
from lorank.recipe.method_sections import merged
from lorank.recipe.recipe import Recipe
from lorank.runs.checks import check_model
from lorank.targets import unit_costs


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        contents: task -> content of its recipe, as it was written with overrides.
        budgets: as they are asked for.
        methods: of `METHODS` and `CONTROLS`; uniform LoRA among them.
        seeds: of the runs.
        own: method -> keys and values of recipes, for this method only (its learning rate, say).
        folder: where cells work and leave their results.
        rates: (task, budget, method) -> learning rate that was searched for it; empty without a search.
        known: (task, budget) -> parameters, and those of rank 1 everywhere, once they have been worked out.

    """

    contents: Mapping[str, Mapping[str, Any]]
    budgets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    own: Mapping[str, Mapping[str, Any]]
    folder: Path
    rates: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    known: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they run."""
        return list(cells_of(tuple(self.contents), self.budgets, self.methods, self.seeds))

    def settings(self) -> list[tuple[str, str, str]]:
        """Task, budget and method of the cells, without their seeds."""
        return list(dict.fromkeys((cell.task, cell.budget, cell.method) for cell in self.cells()))

    def source(self, cell: Cell) -> Cell:
        """The cell that a control is one of; other cells are their own."""
        return replace(cell, method=source_of(self.contents[cell.task], cell.method))

    def recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell, its budget in parameters."""
        return recipe_of(self.contents[cell.task], cell, self.own_of(cell), self.parameters(cell.task, cell.budget))

    def own_of(self, cell: Cell) -> dict[str, Any]:
        """The cell's choices over its task's recipe: its method's, and the learning rate that was searched for it."""
        own = dict(self.own.get(cell.method) or {})
        if cell.method in BORROWING:  # trained as the method that it is a control of
            own = merged(self.own.get(self.source(cell).method) or {}, own)
        if cell.method == "uniform-triplets":
            own = merged(own, {"ranks": self._uniform_ranks(cell)})
        if cell.method in FROM_PLAN:
            own = {**own, "start": {key: value for key, value in own.get("start", {}).items() if key != "factors"}}
        rate = self.rates.get((cell.task, cell.budget, cell.method))
        return own if rate is None else merged(own, {"train": {"learning_rate": rate}})

    def parameters(self, task: str, budget: str) -> int:
        """What a budget means on a task: adapter parameters, the same for every method.

        Raises:
            LorankError: a budget, model or targets that cannot be read.

        """
        return self._known(task, budget)[0]

    def _known(self, task: str, budget: str) -> tuple[int, int]:
        key = (task, budget)
        if key not in self.known:
            recipe = recipe_of(self.contents[task], Cell(task, budget, BASELINE, self.seeds[0]))
            targets, provenance = check_model(recipe, (BASELINE,))
            size = {"base_parameters": provenance["base_parameters"], "initial_rank": recipe.triplets.initial_rank}
            costs = unit_costs(targets)
            self.known[key] = recipe.read_budget.parameters(costs, **size), sum(costs.values())
        return self.known[key]

    def _uniform_ranks(self, cell: Cell) -> dict[str, int]:
        """Limits of the last cut that leave no choice between modules; where the budget is no whole rank, between two ranks."""
        parameters, one = self._known(cell.task, cell.budget)
        return {"min_rank": parameters // one, "max_rank": -(-parameters // one), "multiple_of": 1}

    def controlled(self) -> dict[tuple[str, str], str]:
        """(task, control) -> the method whose ranks that control puts to the test.

        A plan that was made in training is shuffled for a fresh start: the difference to the method would be that of its
        training too, so these two are not tested against each other.
        """
        sources = {}
        for task, content in self.contents.items():
            source = source_of(content, FROM_PLAN[0])
            sources[task, "svd-truncate"] = source
            sources[task, "uniform-triplets"] = source_of(content, "uniform-triplets")
            if source in self.methods and not self.recipe(Cell(task, self.budgets[0], source, 0)).keeps_triplets:
                sources[task, "shuffled"] = source
        return sources

    def fingerprint(self, cell: Cell) -> str:
        """What decides the cell's numbers."""
        return fingerprint_of(self.recipe(cell), cell)

    def results(self) -> dict[Cell, Measured]:
        """Results of the cells that are done.

        Raises:
            OutputError: a cell was done for another recipe.

        """
        results = {}
        for cell in self.cells():
            path = self.folder / "cells" / cell.folder / RESULT
            if path.is_file():
                measured, fingerprint = read_measured(path)
                plugin = plugin_of(self.source(cell).method)
                if measured.plugin is not None and plugin is not None and plugin.sha != measured.plugin:
                    raise OutputError(
                        f"{path.parent} was run by a method of {plugin.path} as it was before; give another --output, or "
                        "remove that folder"
                    )
                if fingerprint != self.fingerprint(cell):
                    raise OutputError(
                        f"{path.parent} was run by another recipe; give another --output, or remove that folder"
                    )
                source = self.source(cell)
                plan = self.folder / "cells" / source.folder / "run" / "plan.json"
                if measured.plan is not None and plan.is_file() and file_checksum(plan) != measured.plan:
                    raise OutputError(f"{path.parent} trained another plan than {plan} holds now; remove that folder")
                results[cell] = measured
        return results

    def errors(self) -> dict[Cell, str]:
        """Why cells failed that are not done."""
        reasons = {}
        for cell in self.cells():
            folder = self.folder / "cells" / cell.folder
            if (folder / ERROR).is_file() and not (folder / RESULT).is_file():
                reasons[cell] = (folder / ERROR).read_text(encoding="utf-8")
        return reasons


def grid_content(grid: Grid) -> dict[str, Any]:
    """What a grid is, as JSON values, for the record."""
    rates = [dict(zip(("task", "budget", "method"), key, strict=True)) | {"rate": r} for key, r in grid.rates.items()]
    content = {"budgets": grid.budgets, "methods": grid.methods, "seeds": grid.seeds, "own": grid.own, "rates": rates}
    return json.loads(json.dumps({**content, "recipes": grid.contents}, default=str))
