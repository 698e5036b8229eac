"""All tasks together: means and ranks by hand, methods that miss a task, one task alone."""

import pytest
from tests.compare.made_up import measured

from lorank.compare.answer import Row, answer
from lorank.compare.cells import Cell, cells_of
from lorank.compare.over_tasks import over_tasks, overall_sentence
from lorank.compare.result_table import over_tasks_lines

VALUES = {
    "cola": {"lora": (0.50, 0.52, 0.54), "eva": (0.60, 0.61, 0.65), "i-lora": (0.50, 0.52, 0.54)},
    "mrpc": {"lora": (0.80, 0.81, 0.82), "eva": (0.79, 0.80, 0.83), "i-lora": (0.82, 0.83, None)},
}


def rows_of(tasks: list[str]) -> list[Row]:
    cells = list(cells_of(tasks, ["r=1"], ["lora", "eva", "i-lora"], range(3)))
    return answer(cells, {cell: measured(VALUES[cell.task][cell.method][cell.seed]) for cell in cells})


def test_means_ranks_and_seeds_by_hand() -> None:
    uniform, eva, i_lora = over_tasks(rows_of(["cola", "mrpc"]))
    assert uniform.difference is None
    assert eva.difference is not None
    assert eva.difference.mean == pytest.approx(((0.10 - 0.01) / 2 + (0.09 - 0.01) / 2 + (0.11 + 0.01) / 2) / 3)
    assert (eva.above, i_lora.above) == (1, 1)
    assert i_lora.difference is not None
    assert (i_lora.difference.pairs, i_lora.difference.mean) == (2, pytest.approx(0.01))
    # cola: eva 1, the others share 2 and 3; mrpc: i-lora, then lora above eva by less than a hundredth.
    assert [one.mean_rank for one in (uniform, eva, i_lora)] == [(2.5 + 2) / 2, (1 + 3) / 2, (2.5 + 1) / 2]
    assert eva.difference.holm >= eva.difference.p
    assert overall_sentence(eva, 3).startswith("mean of 2 tasks, budget r=1: eva is ")
    lines = over_tasks_lines([uniform, eva, i_lora], 3)
    assert lines[1][:3] == ("r=1", "eva", "+0.0483")
    assert lines[2][5:] == ("2 of 3", "1 of 2", "1.75", "2")


def test_a_method_that_misses_a_task_has_no_rank_and_one_task_is_no_mean() -> None:
    assert over_tasks(rows_of(["cola"])) == []
    cells = list(cells_of(["cola", "mrpc"], ["r=1"], ["lora", "eva"], range(3)))
    results = {cell: measured(VALUES[cell.task][cell.method][cell.seed]) for cell in cells}
    for seed in range(3):
        del results[Cell("mrpc", "r=1", "eva", seed)]
    uniform, eva = over_tasks(answer(cells, results))
    assert (eva.tasks, eva.of, uniform.mean_rank) == (("cola",), 2, 1.0)
    assert eva.mean_rank != eva.mean_rank
    assert over_tasks_lines([eva], 3)[0][-1] == "1 of 2"
