"""A grid is run: cells in several processes, continued where it was stopped, a failed cell tried again and reported."""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from lorank.artefact import make_folder, write_json
from lorank.compare.cells import ERROR, FROM_PLAN, ORDER, RESULT, Cell, Measured, read_measured
from lorank.compare.cost import planned_steps, time_left
from lorank.compare.grid import Grid
from lorank.compare.grid_checks import check_base, check_grid, left_out_budgets
from lorank.compare.launch import Launch, on_this_machine, stop_cells
from lorank.errors import OutputError, one_line
from lorank.methods.plugins import loaded_plugins


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
        LorankError: as `check_grid`.

    """
    console = console or Console(quiet=True)
    examples = check_grid(grid)
    for line in left_out_budgets(grid) if grid.counts else ():  # not for a search of learning rates, which comes before
        console.print(line, highlight=False)
    done = grid.results()
    check_base(grid, done)
    make_folder(grid.folder)
    try:
        with FileLock(grid.folder / ".lock", timeout=0):
            left = [cell for cell in grid.cells() if cell not in done]
            steps = f": about {planned_steps(grid, left, examples):,} training steps; {time_left(grid, left, done, processes)}"
            console.print(
                f"{len(done)} of {len(grid.cells())} cells are done, {len(left)} are left{steps if left else ''}",
                highlight=False,
                soft_wrap=True,
            )
            progress = Progress(grid, console, done, processes)
            _run(grid, left, progress, tries, launch or on_this_machine(processes))
    except Timeout:
        raise OutputError(
            f"{grid.folder} is in use by another comparison; wait for it, or give another --output"
        ) from None
    return grid.results()


@dataclass(frozen=True)
class Progress:
    """Says what is done, and how long the rest will take.

    Attributes:
        grid: that runs.
        console: for one line a cell.
        done: what has been measured, before and now.
        processes: cells at a time.

    """

    grid: Grid
    console: Console
    done: dict[Cell, Measured]
    processes: int

    def say(self, line: str) -> None:
        """One line."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def say_done(self, cell: Cell, result: Path, left: Sequence[Cell]) -> None:
        """That a cell has left its result, and what the cells that are left will take."""
        self.done[cell] = measured = read_measured(result)[0]
        bad = f"; {measured.skipped:,} optimizer steps that were not finite were skipped" if measured.skipped else ""
        self.say(f"done    {cell.folder}  ({time_left(self.grid, left, self.done, self.processes)}){bad}")


def _run(grid: Grid, cells: Sequence[Cell], progress: Progress, tries: int, launch: Launch) -> None:
    def work(cell: Cell) -> int:
        folder = grid.folder / "cells" / cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).unlink(missing_ok=True)
        source, counted = grid.source(cell), grid.counted_by(cell)
        if counted is not None and not grid.plan_of(counted).is_file():
            reason = f"{counted.folder} made no plan, whose parameters this cell is to have; see why it failed"
            (folder / ERROR).write_text(reason, encoding="utf-8")
            return 1
        content = {
            "cell": asdict(cell),
            "content": dict(grid.contents[cell.task]),
            "own": grid.own_of(cell),
            "parameters": grid.asked_of(cell),
            "plugins": loaded_plugins(),
            "began": time.time(),
            "plan_of": str((grid.folder / "cells" / source.folder).resolve()) if cell.method in FROM_PLAN else None,
        }
        write_json(folder / ORDER, content)
        try:
            return launch(folder)
        except Exception as error:  # a node that was lost is a try that failed
            (folder / ERROR).write_text(f"{type(error).__name__}: {one_line(error)}", encoding="utf-8")
            return 1

    processes = progress.processes
    pool = ThreadPoolExecutor(max_workers=processes)
    try:
        tried, waiting, running = dict.fromkeys(cells, 0), list(cells), dict[Future[int], Cell]()
        while waiting or running:
            # In order, so that a grid that is stopped early has whole seeds; a control when the plan that it trains is there.
            for cell in list(waiting):
                if grid.needed(cell) not in (*waiting, *running.values()) and len(running) < processes:
                    waiting.remove(cell)
                    running[pool.submit(work, cell)] = cell
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                cell, code = running.pop(future), future.result()
                tried[cell] += 1
                result = grid.folder / "cells" / cell.folder / RESULT
                if code == 0 and result.is_file():
                    progress.say_done(cell, result, (*waiting, *running.values()))
                    continue
                folder = grid.folder / "cells" / cell.folder
                if not (folder / ERROR).is_file():
                    (folder / ERROR).write_text(f"ended with {code}, see {folder / 'log.txt'}", encoding="utf-8")
                reason = (folder / ERROR).read_text(encoding="utf-8")
                again = tried[cell] < tries
                progress.say(f"failed  {cell.folder}: {reason}{', once more' if again else ''}")
                if again:
                    waiting.insert(0, cell)
    except BaseException:  # Ctrl-C, which reaches cells too if a terminal sent it, but not if another process did
        stop_cells()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
