"""A grid of cells: run in several processes, continued where it was stopped, a failed cell tried again and reported."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from lorank.artefact import file_checksum, make_folder, write_json
from lorank.compare.cells import (
    BASELINE,
    BORROWING,
    ERROR,
    FROM_PLAN,
    ORDER,
    RESULT,
    Cell,
    Measured,
    cells_of,
    fingerprint_of,
    merged,
    rate_section,
    read_measured,
    recipe_of,
    source_of,
)
from lorank.compare.grid_checks import check_base, check_grid
from lorank.compare.launch import Launch, on_this_machine, stop_cells
from lorank.errors import OutputError, one_line
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
            own = merged(own, {"allocation": self._uniform_ranks(cell)})
        if cell.method in FROM_PLAN:
            own = {**own, "stage2": {key: value for key, value in own.get("stage2", {}).items() if key != "skip"}}
        rate = self.rates.get((cell.task, cell.budget, cell.method))
        if rate is None:
            return own
        section = rate_section(recipe_of(self.contents[cell.task], cell, own))
        return merged(own, {section: {"learning_rate": rate}})

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
            size = {"base_parameters": provenance["base_parameters"], "initial_rank": recipe.stage1.initial_rank}
            costs = unit_costs(targets)
            self.known[key] = recipe.read_budget.parameters(costs, **size), sum(costs.values())
        return self.known[key]

    def _uniform_ranks(self, cell: Cell) -> dict[str, int]:
        """Limits of the last cut that leave no choice between modules; where the budget is no whole rank, between two ranks."""
        parameters, one = self._known(cell.task, cell.budget)
        return {"min_rank": parameters // one, "max_rank": -(-parameters // one), "multiple_of": 1}

    def check(self) -> None:
        """Try every recipe, the data and the budgets before anything is trained.

        Raises:
            LorankError: what would stop cells, as far as it can be seen now; several findings are raised as one.

        """
        check_grid(self)

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
            if source in self.methods and rate_section(self.recipe(Cell(task, self.budgets[0], source, 0))) == "stage2":
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
                if fingerprint != self.fingerprint(cell):
                    raise OutputError(
                        f"{path.parent} was run by another recipe; give another --output-dir, or remove that folder"
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


def run_grid(
    grid: Grid, *, processes: int = 1, tries: int = 2, console: Console | None = None, launch: Launch | None = None
) -> dict[Cell, Measured]:
    """Run the cells that are not done yet, each in a process of its own.

    Args:
        grid: what to run.
        processes: cells at a time.
        tries: for each cell; a cell that fails in all of them is left out, and said.
        console: for one line a cell.
        launch: runs the cell in a folder and gives its exit code; None: a process on this machine.

    Raises:
        OutputError: the folder is in use, or cells in it are of another grid or another base model.
        LorankError: as `Grid.check`.

    """
    console = console or Console(quiet=True)
    grid.check()
    done = grid.results()
    check_base(grid, done)
    make_folder(grid.folder)
    try:
        with FileLock(grid.folder / ".lock", timeout=0):
            left = [cell for cell in grid.cells() if cell not in done]
            console.print(f"{len(done)} of {len(grid.cells())} cells are done, {len(left)} are left", highlight=False)
            _run(grid, left, processes, tries, console, launch or on_this_machine(processes))
    except Timeout:
        raise OutputError(f"{grid.folder} is in use by another comparison; wait for it, or give another one") from None
    return grid.results()


def _run(grid: Grid, cells: Sequence[Cell], processes: int, tries: int, console: Console, launch: Launch) -> None:
    def work(cell: Cell) -> int:
        folder = grid.folder / "cells" / cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).unlink(missing_ok=True)
        source = grid.source(cell)
        content = {
            "cell": asdict(cell),
            "content": dict(grid.contents[cell.task]),
            "own": grid.own_of(cell),
            "parameters": grid.parameters(cell.task, cell.budget),
            "plan_of": str((grid.folder / "cells" / source.folder).resolve()) if cell.method in FROM_PLAN else None,
        }
        write_json(folder / ORDER, content)
        try:
            return launch(folder)
        except Exception as error:  # a node that was lost is a try that failed
            (folder / ERROR).write_text(f"{type(error).__name__}: {one_line(error)}", encoding="utf-8")
            return 1

    pool = ThreadPoolExecutor(max_workers=processes)
    try:
        tried, waiting, running = dict.fromkeys(cells, 0), list(cells), dict[Future[int], Cell]()
        while waiting or running:
            # In order, so that a grid that is stopped early has whole seeds; a control when the plan that it trains is there.
            for cell in list(waiting):
                source = grid.source(cell)
                ready = cell.method not in FROM_PLAN or source not in (*waiting, *running.values())
                if ready and len(running) < processes:
                    waiting.remove(cell)
                    running[pool.submit(work, cell)] = cell
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                cell, code = running.pop(future), future.result()
                tried[cell] += 1
                if code == 0 and (grid.folder / "cells" / cell.folder / RESULT).is_file():
                    console.print(f"done    {cell.folder}", highlight=False)
                    continue
                folder = grid.folder / "cells" / cell.folder
                if not (folder / ERROR).is_file():
                    (folder / ERROR).write_text(f"ended with {code}, see {folder / 'log.txt'}", encoding="utf-8")
                reason = (folder / ERROR).read_text(encoding="utf-8")
                again = tried[cell] < tries
                console.print(f"failed  {cell.folder}: {reason}{', once more' if again else ''}", highlight=False)
                if again:
                    waiting.insert(0, cell)
    except BaseException:  # Ctrl-C, which reaches cells too if a terminal sent it, but not if another process did
        stop_cells()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def grid_content(grid: Grid) -> dict[str, Any]:
    """What a grid is, as JSON values, for the record."""
    rates = [dict(zip(("task", "budget", "method"), key, strict=True)) | {"rate": r} for key, r in grid.rates.items()]
    content = {"budgets": grid.budgets, "methods": grid.methods, "seeds": grid.seeds, "own": grid.own, "rates": rates}
    return json.loads(json.dumps({**content, "recipes": grid.contents}, default=str))
