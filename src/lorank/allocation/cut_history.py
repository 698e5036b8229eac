"""What every cut of an allocation left: ranks and scores by module, in `cuts.jsonl` beside the plan."""

import json
import math
import warnings
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorank.artefact import write_text
from lorank.errors import LorankWarning, PlanError

FORMAT = "lorank.cuts"
VERSION = 1
CUTS = "cuts.jsonl"


@dataclass(frozen=True)
class Cut:
    """One cut.

    Attributes:
        step: optimizer step after which it was made, counted from 1.
        ranks: module name -> rank that it left.
        scores: module name -> sum of the scores of the units that it chose from, to six significant digits.

    """

    step: int
    ranks: Mapping[str, int]
    scores: Mapping[str, float]


class CutHistory:
    """The cuts of one allocation, in their order.

    As a file it is JSON lines. The first names the modules with their unit costs and initial ranks, each further one is a
    cut; its ranks and scores stand in the order of the modules. In memory a cut is 12 bytes for a module: a run makes
    thousands of them.

    Attributes:
        initial_ranks: module name -> rank before the first cut.
        unit_costs: module name -> `d_in + d_out`.

    """

    def __init__(
        self, initial_ranks: Mapping[str, int], unit_costs: Mapping[str, int], cuts: Iterable[Cut] = ()
    ) -> None:
        self.initial_ranks, self.unit_costs = dict(initial_ranks), dict(unit_costs)
        self._forget()
        for cut in cuts:
            self._keep(
                cut.step, [cut.ranks[name] for name in initial_ranks], [cut.scores[name] for name in initial_ranks]
            )

    @property
    def cuts(self) -> list[Cut]:
        """All of them, the first one first."""
        return [self._cut(number) for number in range(len(self._steps))]

    @property
    def ranks(self) -> Mapping[str, int]:
        """Ranks after the last cut."""
        return self._cut(len(self._steps) - 1).ranks if self._steps else self.initial_ranks

    def add(self, step: int, ranks: Mapping[str, int], unit_scores: Mapping[str, np.ndarray]) -> None:
        """Take down a cut.

        Args:
            step: of the optimizer.
            ranks: module name -> rank that it left.
            unit_scores: module name -> scores `(units,)` that it was made by.

        """
        names = self.initial_ranks
        sums = [float(f"{unit_scores[name].sum():.6g}") for name in names]
        self._keep(step, [ranks[name] for name in names], sums)

    def write(self, path: Path) -> None:
        """Write all of it, atomically, in place of what is there."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "modules": list(self.initial_ranks),
            "unit_costs": [self.unit_costs[name] for name in self.initial_ranks],
            "ranks": list(self.initial_ranks.values()),
        }
        write_text(path, _line(head) + "".join(map(self._cut_line, range(len(self._steps)))))

    def append(self, path: Path) -> None:
        """Add the last cut to a file that holds those before it.

        Warns:
            LorankWarning: it could not be written; training is worth more than this file, which is written whole at its end.

        """
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(self._cut_line(len(self._steps) - 1))
        except OSError as error:
            warnings.warn(
                f"{path}: the cut of step {self._steps[-1]} was not added ({error}); the file is written whole at the end",
                LorankWarning,
                stacklevel=2,
            )

    def arrays(self) -> dict[str, np.ndarray]:
        """The cuts for a checkpoint: `steps` `(cuts,)` int64, `ranks` int64 and `scores` float64 `(cuts, modules)`."""
        table = (len(self._steps), len(self.initial_ranks))
        return {
            "steps": np.array(self._steps, dtype=np.int64),
            "ranks": np.array(self._ranks, dtype=np.int64).reshape(table),
            "scores": np.array(self._scores, dtype=np.float64).reshape(table),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from what `arrays` returned; cuts that were made after it are dropped."""
        self._forget()
        for row in zip(*(arrays[key].tolist() for key in ("steps", "ranks", "scores")), strict=True):
            self._keep(*row)

    @classmethod
    def load(cls, path: str | Path) -> "CutHistory":
        """Read a file of a finished or a running allocation; a line that is still being written is left out.

        Raises:
            PlanError: no such file, or it is not one of cuts, or damaged.

        """
        path = Path(path)
        if not path.is_file():
            raise PlanError(f"{path}: no such file; give the {CUTS} of a run or of a RankAllocation")
        try:
            first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
            head = json.loads(first)
            if head["format"] != FORMAT or head["version"] != VERSION:
                raise ValueError(f"format {head['format']} {head['version']}, this lorank reads {FORMAT} {VERSION}")
            names = head["modules"]
            _check_whole([*head["ranks"], *head["unit_costs"]])
            history = cls(*(dict(zip(names, head[key], strict=True)) for key in ("ranks", "unit_costs")))
            for line in rest:
                if line.endswith("\n"):
                    cut = json.loads(line)
                    history._check_cut(cut["step"], cut["ranks"], cut["scores"])
                    history._keep(cut["step"], cut["ranks"], cut["scores"])
                else:
                    warnings.warn(f"{path}: its last line is not whole and is left out", LorankWarning, stacklevel=2)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, OSError, RecursionError) as error:
            raise PlanError(f"{path}: damaged, or no history of cuts ({error}); give the {CUTS} of a run") from None
        return history

    def _check_cut(self, step: int, ranks: list[int], scores: list[float]) -> None:
        """Refuse a cut that is none, or not later than the last one.

        Raises:
            ValueError: says what.

        """
        _check_whole([step, *ranks])
        if any(type(score) not in (int, float) or not math.isfinite(score) for score in scores):
            raise ValueError("scores are finite numbers")
        if not len(ranks) == len(scores) == len(self.initial_ranks):
            raise ValueError(f"a cut has {len(self.initial_ranks)} ranks and scores")
        if self._steps and step <= self._steps[-1]:
            raise ValueError("steps ascend")

    def _forget(self) -> None:
        self._steps, self._ranks, self._scores = array("q"), array("i"), array("d")

    def _keep(self, step: int, ranks: Sequence[int], scores: Sequence[float]) -> None:
        self._steps.append(step)
        self._ranks.extend(ranks)
        self._scores.extend(scores)

    def _row(self, number: int) -> tuple[list[int], list[float]]:
        width = len(self.initial_ranks)
        row = slice(number * width, (number + 1) * width)
        return self._ranks[row].tolist(), self._scores[row].tolist()

    def _cut(self, number: int) -> Cut:
        ranks, scores = self._row(number)
        return Cut(
            self._steps[number],
            dict(zip(self.initial_ranks, ranks, strict=True)),
            dict(zip(self.initial_ranks, scores, strict=True)),
        )

    def _cut_line(self, number: int) -> str:
        ranks, scores = self._row(number)
        return _line({"step": self._steps[number], "ranks": ranks, "scores": scores})


def _check_whole(numbers: Iterable[int]) -> None:
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("steps, ranks and costs are whole numbers from 0")


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"
