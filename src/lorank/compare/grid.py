"""A grid of cells: which there are, what each is asked for, and what was measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorank.artefact import file_checksum
from lorank.budget import Budget
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
from lorank.methods import METHODS
from lorank.methods.plugins import plugin_of
from lorank.plan import RankPlan
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
        counts: whether a budget that counts units waits for the plan that says what they cost; a search of learning rates takes
            the mean cost, so that every factor of a rate is tried at the same number of parameters.
        alike: task -> the task whose cells take as long: that without the factor, in a search of learning rates.

    """

    contents: Mapping[str, Mapping[str, Any]]
    budgets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    own: Mapping[str, Mapping[str, Any]]
    folder: Path
    rates: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    known: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    counts: bool = True
    alike: Mapping[str, str] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they run."""
        return list(cells_of(tuple(self.contents), self.budgets, self.methods, self.seeds))

    def settings(self) -> list[tuple[str, str, str]]:
        """Task, budget and method of the cells, without their seeds."""
        return list(dict.fromkeys((cell.task, cell.budget, cell.method) for cell in self.cells()))

    def kind(self, cell: Cell) -> tuple[str, str, str]:
        """Task, budget and method: cells of one kind take as long as each other."""
        return self.alike.get(cell.task, cell.task), cell.budget, cell.method

    def source(self, cell: Cell) -> Cell:
        """The cell that a control is one of; other cells are their own."""
        return replace(cell, method=source_of(self.contents[cell.task], cell.method))

    def recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell, its budget in parameters."""
        return recipe_of(self.contents[cell.task], cell, self.own_of(cell), self.asked_of(cell))

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

    def _counter(self, cell: Cell) -> str | None:
        """The method whose plan says what a budget that counts units costs: the recipe's, if it has units and is compared."""
        first = source_of(self.contents[cell.task], FROM_PLAN[0])
        has_units = first in METHODS and METHODS[first].allocates_in_training and first in self.methods
        return first if self.counts and has_units and Budget.parse(cell.budget).counts_units else None

    def counted_by(self, cell: Cell) -> Cell | None:
        """The cell, of the same seed, that decides how many parameters this one has; None where nothing is to be waited for."""
        counter = self._counter(cell)
        return None if counter in (None, cell.method) else replace(cell, method=str(counter))

    def asked_of(self, cell: Cell) -> int | None:
        """What the cell is asked for in parameters; None where it counts units itself."""
        return None if self._counter(cell) == cell.method else self.parameters(cell)

    def needed(self, cell: Cell) -> Cell | None:
        """The cell that has to be done before this one, for its plan or for what that spends."""
        return self.source(cell) if cell.method in FROM_PLAN else self.counted_by(cell)

    def plan_of(self, cell: Cell) -> Path:
        """The file of a cell's plan, which is there when the cell has made it."""
        return self.folder / "cells" / cell.folder / "run" / "plan.json"

    def parameters(self, cell: Cell) -> int:
        """What the budget of a cell means on its task: adapter parameters, the same for every method.

        A share of the initial units (`keep=50%`) is what the plan of the recipe's method spends, for each seed. Until that is
        there, and for that method, it is what so many units cost at the mean.

        Raises:
            LorankError: a budget, model or targets that cannot be read, or a damaged plan.

        """
        counted = self.counted_by(cell)
        if counted is not None and (path := self.plan_of(counted)).is_file():
            return RankPlan.load(path).spent
        return self.known_parameters(cell.task, cell.budget)[0]

    def known_parameters(self, task: str, budget: str) -> tuple[int, int]:
        """What a budget costs on a task, units at their mean cost; and what rank 1 everywhere costs."""
        key = (task, budget)
        if key not in self.known:
            recipe = recipe_of(self.contents[task], Cell(task, budget, BASELINE, self.seeds[0]))
            targets, provenance = check_model(recipe, (BASELINE,))
            size = {"base_parameters": provenance["base_parameters"], "initial_rank": recipe.triplets.initial_rank}
            costs = unit_costs(targets)
            self.known[key] = recipe.read_budget.parameters(costs, **size), sum(costs.values())
        return self.known[key]

    def _uniform_ranks(self, cell: Cell) -> dict[str, int | None]:
        """Limits of the last cut that leave no choice between modules; where the budget is no whole rank, between two ranks."""
        parameters, one = self.parameters(cell), self.known_parameters(cell.task, cell.budget)[1]
        return {"min_rank": parameters // one, "max_rank": -(-parameters // one), "multiple_of": 1, "within": None}

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
                counted = self.counted_by(cell)
                # Without that cell's plan it is not known what this one should have spent; it is when that one is done again.
                is_known = counted is None or self.plan_of(counted).is_file()
                if is_known and fingerprint != self.fingerprint(cell):
                    raise OutputError(
                        f"{path.parent} was run by another recipe; give another --output, or remove that folder"
                    )
                source = self.source(cell)
                plan = self.plan_of(source)
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
