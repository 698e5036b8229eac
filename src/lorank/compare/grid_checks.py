"""What is checked before a grid runs: every recipe, the data, the controls, and the base model of cells that are done."""

from collections.abc import Mapping
from dataclasses import replace

from lorank.artefact import checksum
from lorank.budget import Budget
from lorank.compare.cells import BASELINE, CONTROLS, SAME, Cell, Measured, recipe_of
from lorank.compare.controls import check_shortened
from lorank.compare.grid import Grid
from lorank.engine.options import ScoringSetChoices
from lorank.errors import ComparisonError, OutputError
from lorank.findings import Findings
from lorank.methods import METHODS
from lorank.models.base_fingerprint import base_sum
from lorank.recipe.recipe import Recipe
from lorank.runs.prepare import prepare
from lorank.runs.recipe_values import pretrained_of
from lorank.tasks.data import TaskData, load_task_data


def check_grid(grid: Grid) -> dict[str, int]:
    """Try every recipe, the data and the budgets.

    Returns:
        Task -> number of training examples.

    Raises:
        LorankError: what would stop cells; several findings are raised as one.

    """
    findings, data = Findings(), dict[str, TaskData]()
    for task, content in grid.contents.items():
        with findings.check():
            section = recipe_of(content, Cell(task, grid.budgets[0], BASELINE, 0)).data
            if section.stream:
                raise ComparisonError(
                    f"{task}: data.stream: the rows of a comparison are counted, a stream has no number; set it to false"
                )
            if section.packing:
                raise ComparisonError(
                    f"{task}: data.packing: steps of a comparison are counted by examples, and packed rows hold several; set it "
                    "to false"
                )
            data[task] = load_task_data(section)
            data[task].needs_test(f"{task}: to compare methods")
    for cell in grid.cells():
        if cell.seed == grid.seeds[0] and cell.task in data:
            with findings.check():
                _check_cell(grid, cell, data[cell.task])
    findings.raise_all()
    return {task: len(one.train) for task, one in data.items()}


def _check_cell(grid: Grid, cell: Cell, data: TaskData) -> None:
    recipe, baseline = grid.recipe(cell), grid.recipe(replace(cell, method=BASELINE)).train
    for key in SAME:
        if (mine := getattr(recipe.train, key)) != (theirs := getattr(baseline, key)):
            raise ComparisonError(
                f"train.{key} of {cell.method} on {cell.task} is {mine}, of lora {theirs}; one for all is needed"
            )
    if recipe.start.scale_by != "initial":
        raise ComparisonError(f"{cell.task}: start.scale_by must be initial, or effective scales would differ")
    choices = recipe.choices()
    if _weighs_units(recipe) and Budget.parse(cell.budget).kind == "total rank":
        raise ComparisonError(
            f"{cell.task}: budget {cell.budget} is a sum of the unit costs of {recipe.method} ({recipe.preset}), which the other "
            "methods do not have; give parameters, or a share of the units such as keep=37.5%"
        )
    if (
        recipe.keeps_triplets
        and isinstance(choices, ScoringSetChoices)
        and choices.measure.source == "held-out"
        and any(task == cell.task and method != cell.method for task, _, method in grid.settings())
    ):
        raise ComparisonError(
            f"{cell.task}: with start.factors kept, {cell.method} would be trained without the scoring set, and so on less than "
            "the others; give expert.measure.source=training with it"
        )
    if cell.method in CONTROLS:
        _check_control(grid, cell, recipe.triplets.initial_rank, len(data.train))
        return
    prepare(recipe, (recipe.method,), data=data)


def _weighs_units(recipe: Recipe) -> bool:
    cut = getattr(METHODS[recipe.method].presets[str(recipe.preset)], "cut", None)
    return bool(getattr(cut, "cost_weights", None))


def left_out_budgets(grid: Grid) -> list[str]:
    """What is said of budgets that recipes give to baselines: a comparison gives every method the same parameters."""
    lines = []
    for task, content in grid.contents.items():
        baselines = content.get("baselines")
        sections = baselines.items() if isinstance(baselines, Mapping) else ()
        if own := [f"{of['budget']} of {name}" for name, of in sections if "budget" in (of or {})]:
            lines.append(f"{task}: every method gets the same parameters; left out: budget {', '.join(own)}")
    return lines


def check_base(grid: Grid, done: Mapping[Cell, Measured]) -> None:
    """Refuse to go on with another base model than the cells that are done were trained on.

    Raises:
        OutputError: names the task.

    """
    for task in grid.contents:
        # Of models on the hub, earlier versions knew nothing.
        unknown = ("", checksum({}))
        sums = {measured.base for cell, measured in done.items() if cell.task == task and measured.base not in unknown}
        recipe = recipe_of(grid.contents[task], Cell(task, grid.budgets[0], BASELINE, 0))
        if sums and sums != {base_sum(pretrained_of(recipe))}:
            raise OutputError(
                f"{grid.folder}: the base model of {task}, or its tokenizer, changed since its first cells were run; give "
                "another --output"
            )


def _check_control(grid: Grid, cell: Cell, wide: int, examples: int) -> None:
    source = grid.source(cell).method
    if source not in grid.methods:
        raise ComparisonError(f"{cell.method} is a control of {source} on {cell.task}; add {source} to the methods")
    if cell.method == "equal-compute":
        made_by = grid.recipe(grid.source(cell))
        if not made_by.has_search:
            raise ComparisonError(
                f"equal-compute is for methods of two stages, {source} of {cell.task} has one; leave equal-compute out"
            )
        check_shortened(made_by, examples)
    if cell.method == "svd-truncate" and grid.parameters(cell) >= grid.known_parameters(cell.task, f"r={wide}")[0]:
        raise ComparisonError(
            f"svd-truncate cuts an adapter of rank {wide} (triplets.initial_rank), which is no larger than budget "
            f"{cell.budget}; raise the initial rank, ask for less, or leave svd-truncate out"
        )
