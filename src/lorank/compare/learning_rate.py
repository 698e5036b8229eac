"""The same small search of the learning rate for every method, on a part of the training data: the test part stays unseen."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from lorank.artefact import checksum, read_json, write_json, write_text
from lorank.compare.cells import (
    BASELINE,
    BORROWING,
    FROM_PLAN,
    Cell,
    Measured,
    budget_of,
    recipe_of,
    source_of,
)
from lorank.compare.grid import Grid, grid_content
from lorank.compare.grid_checks import check_grid
from lorank.compare.launch import Launch
from lorank.compare.run_grid import run_grid
from lorank.errors import ComparisonError
from lorank.tasks.data import hold_out, load_rows, load_task_data
from lorank.tasks.metrics import choose_metrics

# Not a seed of the grid: the search must not choose what happens to suit one of them.
SEARCH_SEED = 1000
AnyGrid = TypeVar("AnyGrid", bound=Grid)


def searched(
    grid: AnyGrid,
    factors: Sequence[float],
    *,
    fraction: float = 0.2,
    metrics: Mapping[str, str] | None = None,
    processes: int = 1,
    tries: int = 2,
    console: Console | None = None,
    launch: Launch | None = None,
) -> AnyGrid:
    """The grid with a learning rate for every task, budget and method.

    Each method is trained once for each factor times its own learning rate, on a part of the training data, and judged on the
    rest of it (split by content); where the metric is equal, or not defined, by the loss. No other metric is measured, so
    nothing is generated where the metric needs no texts. Controls of a method take its rate.
    Rates that were chosen for the same question stand: a factor that failed then is not tried again.

    Args:
        grid: what is compared.
        factors: of each method's own learning rate; 1 is among them in most searches.
        fraction: of the training data that methods are judged on here.
        metrics: task -> what it is judged by; None: the first of its metrics.
        processes: cells at a time.
        tries: for each cell.
        console: for one line a cell.
        launch: as in `run_grid`.

    Raises:
        ComparisonError: no factor, or one that is not above 0; or not one factor worked for a method.
        LorankError: as `run_grid`.

    """
    factors = tuple(dict.fromkeys(factors))
    if not factors or any(not 0 < factor < math.inf for factor in factors):
        raise ComparisonError(f"factors are {list(factors)}; allowed: numbers above 0, for example 0.3,1,3")
    if SEARCH_SEED in grid.seeds:
        raise ComparisonError(f"seed {SEARCH_SEED} is the search's own; leave it out of --seeds")
    check_grid(grid)
    on_training_data = {
        task: _on_training_data(task, content, grid.folder / "search", fraction, (metrics or {}).get(task))
        for task, content in grid.contents.items()
    }
    question = checksum(
        {
            **grid_content(replace(grid, seeds=())),
            "factors": factors,
            # Files are named by their content; where they are does not matter.
            "searched on": [
                [Path(one["data"][part]).name for part in ("train", "test")] for one in on_training_data.values()
            ],
            "fraction": fraction,
            "metrics": dict(metrics or {}),
        }
    )
    record = grid.folder / "search.json"
    if (chosen := _recorded(record, question)) is not None:
        _say(console, grid, chosen, factors)
        return replace(grid, rates=_with_controls(grid, chosen))
    methods = tuple(name for name in grid.methods if name not in BORROWING)
    wanted = [key for key in grid.settings() if key[2] in methods]
    own = {key: _own_rate(grid, Cell(*key, SEARCH_SEED)) for key in wanted}
    # A task of the search is a task and a factor: all factors are in one grid, so no process waits for one of them.
    parts = {(task, factor): f"{task}/times-{factor}" for task in grid.contents for factor in factors}
    if console is not None:
        console.print(
            f"learning rates are searched for first, on a part of the training data: {len(factors)} factor"
            f"{'s' * (len(factors) != 1)} x {len(wanted)} settings = {len(factors) * len(wanted)} cells",
            highlight=False,
            soft_wrap=True,
        )
    part = replace(
        grid,
        contents={name: on_training_data[task] for (task, _), name in parts.items()},
        methods=methods,
        seeds=(SEARCH_SEED,),
        folder=grid.folder / "search",
        rates={(parts[key[0], factor], *key[1:]): factor * own[key] for key in wanted for factor in factors},
        known={},
        counts=False,
        alike={name: task for (task, _), name in parts.items()},
    )
    results = run_grid(part, processes=processes, tries=tries, console=console, launch=launch)
    tried: dict[tuple[str, str, str], dict[float, tuple[tuple[float, float], float]]] = {}
    for key in wanted:
        cells = {factor: Cell(parts[key[0], factor], *key[1:], SEARCH_SEED) for factor in factors}
        tried[key] = {
            factor: (_judged(key[0], results[cell], metrics), factor * own[key])
            for factor, cell in cells.items()
            if cell in results
        }
    chosen = {key: _best(key, tried[key]) for key in wanted}
    lines = []
    for key in wanted:
        values: list[dict[str, float | None]] = []
        for factor in factors:
            (value, better), rate = tried[key].get(factor, ((-math.inf, -math.inf), factor * own[key]))
            values.append({"rate": rate, "value": _finite(value), "loss": _finite(-better)})
        task, budget, method = key
        lines.append({"task": task, "budget": budget, "method": method, "chosen": chosen[key], "tried": values})
    write_json(record, {"format": "lorank.search", "version": 1, "question": question, "found": lines})
    _say(console, grid, chosen, factors)
    return replace(grid, rates=_with_controls(grid, chosen))


def rates_in_words(rates: Mapping[tuple[str, str, str], float]) -> str:
    """The rates of a grid in one line."""
    listed = "; ".join(f"{name} {rate:g}" for name, rate in zip(_named(list(rates)), rates.values(), strict=True))
    return f"learning rates that were searched for: {listed}"


def _named(keys: Sequence[tuple[str, str, str]]) -> list[str]:
    """Task and method; the budget between them where there are several."""
    pairs = [(task, method) for task, _, method in keys]
    return [
        f"{task}, {budget}, {method}" if pairs.count((task, method)) > 1 else f"{task}, {method}"
        for task, budget, method in keys
    ]


def _say(
    console: Console | None, grid: Grid, chosen: Mapping[tuple[str, str, str], float], factors: Sequence[float]
) -> None:
    """The rates, and which of them are the smallest or the largest that was tried."""
    if console is None:
        return
    console.print(rates_in_words(chosen), highlight=False, soft_wrap=True)
    for word, end in (("smallest", min(factors)), ("largest", max(factors))):
        there = [
            key for key, rate in chosen.items() if math.isclose(rate, end * _own_rate(grid, Cell(*key, SEARCH_SEED)))
        ]
        if there and len(factors) > 1:
            names = "; ".join(_named(there))
            console.print(
                f"the {word} that was tried, so that a {word.replace('est', 'er')} one may be better: {names}",
                highlight=False,
                soft_wrap=True,
            )


def _recorded(path: Path, question: str) -> dict[tuple[str, str, str], float] | None:
    """The rates of an earlier search, if it was for the same question."""
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        if content["question"] != question:
            return None
        return {(one["task"], one["budget"], one["method"]): float(one["chosen"]) for one in content["found"]}
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ComparisonError(f"{path}: damaged ({error}); remove it to search again") from None


def _with_controls(grid: Grid, chosen: Mapping[tuple[str, str, str], float]) -> dict[tuple[str, str, str], float]:
    """The rates, and those of controls that take the rate of a method."""
    rates = dict(chosen)
    for task, budget, name in grid.settings():
        if name not in BORROWING:
            continue
        source = (task, budget, source_of(grid.contents[task], name))
        # Triplets that are kept were trained at another rate than their plan is.
        if name not in FROM_PLAN or not grid.recipe(Cell(*source, SEARCH_SEED)).keeps_triplets:
            rates[task, budget, name] = rates[source]
    return rates


def _own_rate(grid: Grid, cell: Cell) -> float:
    return recipe_of(grid.contents[cell.task], cell, grid.own.get(cell.method)).train.learning_rate


def _judged(task: str, measured: Measured, metrics: Mapping[str, str] | None) -> tuple[float, float]:
    """The metric, then the loss (the lower the better): rates that learn nothing yet have one and the same metric."""
    name = (metrics or {}).get(task) or next(iter(measured.metrics))
    value, loss = measured.metrics[name], measured.loss
    return -math.inf if value is None else value, -math.inf if loss is None else -loss


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _best(key: tuple[str, str, str], tried: Mapping[float, tuple[tuple[float, float], float]]) -> float:
    if all(max(judged) == -math.inf for judged, _ in tried.values()):  # also where every try failed
        raise ComparisonError(
            f"{'/'.join(key)}: no learning rate of the search gave a result; look at the folder search"
        )
    factor = max(tried, key=lambda factor: (tried[factor][0], -abs(math.log(factor))))
    return tried[factor][1]


def _on_training_data(
    task: str, content: Mapping[str, Any], folder: Path, fraction: float, metric: str | None
) -> dict[str, Any]:
    """The task's recipe on two parts of its training data, with the metric alone, or the first.

    The parts are files of JSON lines whose names have the checksum of their content: a search of other data has other files,
    and another recipe.
    """
    recipe = recipe_of(content, Cell(task, budget_of(content), BASELINE, SEARCH_SEED))
    # Of what is searched on, a share for evaluations while training is held out anew.
    data = load_task_data(recipe.data.model_copy(update={"eval": None}))
    numbered = data.train.add_column("row", list(range(len(data.train))))
    train, judged = hold_out(numbered, fraction, SEARCH_SEED)
    columns = [name for name in ("text_1", "text_2") if name in train.column_names]
    raw = list(load_rows(recipe.data, "train")) if recipe.data.writes else None
    if raw is not None and (drawn := data.drawn.get("train")) is not None:
        raw = [raw[number] for number in drawn.rows]
    paths = {}
    for part, name, rows in (("train", "train", train), ("test", "judged", judged)):
        if raw is None:
            # Numbers, not names: names would be sorted again, and F1 would be that of another class.
            written = [{**{name: row[name] for name in columns}, "label": row["labels"]} for row in rows]
        else:
            written = [raw[number] for number in rows["row"]]
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in written)
        path = folder / "data" / f"{task}-{name}-{checksum(text)[:16]}.jsonl"
        paths[part] = str(path)
        write_text(path, text)
    section = recipe.data.model_dump(exclude={"name", "config", "train_split", "test_split", "sample", "general_text"})
    section |= {**paths, "text": columns, "label": "label"} if raw is None else paths
    judged_by = metric or next(iter(choose_metrics(recipe.data.task, recipe.metrics)))
    return {**{key: value for key, value in content.items() if key != "data"}, "data": section, "metrics": [judged_by]}
