"""What every cut of an allocation left: ranks and scores by module, in `cuts.jsonl` beside the plan."""

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
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
    cut; its ranks and scores stand in the order of the modules.

    Attributes:
        initial_ranks: module name -> rank before the first cut.
        unit_costs: module name -> `d_in + d_out`.
        cuts: the first one first.

    """

    def __init__(
        self, initial_ranks: Mapping[str, int], unit_costs: Mapping[str, int], cuts: Iterable[Cut] = ()
    ) -> None:
        self.initial_ranks, self.unit_costs, self.cuts = dict(initial_ranks), dict(unit_costs), list(cuts)

    @property
    def ranks(self) -> Mapping[str, int]:
        """Ranks after the last cut."""
        return self.cuts[-1].ranks if self.cuts else self.initial_ranks

    def add(self, step: int, ranks: Mapping[str, int], unit_scores: Mapping[str, np.ndarray]) -> None:
        """Take down a cut.

        Args:
            step: of the optimizer.
            ranks: module name -> rank that it left.
            unit_scores: module name -> scores `(units,)` that it was made by.

        """
        sums = {name: float(f"{values.sum():.6g}") for name, values in unit_scores.items()}
        self.cuts.append(Cut(step, dict(ranks), sums))

    def write(self, path: Path) -> None:
        """Write all of it, atomically, in place of what is there."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "modules": list(self.initial_ranks),
            "unit_costs": [self.unit_costs[name] for name in self.initial_ranks],
            "ranks": list(self.initial_ranks.values()),
        }
        write_text(path, _line(head) + "".join(map(self._cut_line, self.cuts)))

    def append(self, path: Path) -> None:
        """Add the last cut to a file that holds those before it.

        Warns:
            LorankWarning: it could not be written; training is worth more than this file, which is written whole at its end.

        """
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(self._cut_line(self.cuts[-1]))
        except OSError as error:
            warnings.warn(
                f"{path}: the cut of step {self.cuts[-1].step} was not added ({error}); the file is written whole at the end",
                LorankWarning,
                stacklevel=2,
            )

    def arrays(self) -> dict[str, np.ndarray]:
        """The cuts for a checkpoint: `steps` `(cuts,)` int64, `ranks` int64 and `scores` float64 `(cuts, modules)`."""
        names = list(self.initial_ranks)
        return {
            "steps": np.array([cut.step for cut in self.cuts], dtype=np.int64),
            "ranks": np.array([[cut.ranks[name] for name in names] for cut in self.cuts], dtype=np.int64),
            "scores": np.array([[cut.scores[name] for name in names] for cut in self.cuts], dtype=np.float64),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from what `arrays` returned; cuts that were made after it are dropped."""
        rows = zip(*(arrays[key].tolist() for key in ("steps", "ranks", "scores")), strict=True)
        self.cuts = [self._cut(step, ranks, scores) for step, ranks, scores in rows]

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
            history = cls(*(dict(zip(names, head[key], strict=True)) for key in ("ranks", "unit_costs")))
            for line in rest:
                if line.endswith("\n"):
                    cut = json.loads(line)
                    history.cuts.append(history._cut(cut["step"], cut["ranks"], cut["scores"]))
                else:
                    warnings.warn(f"{path}: its last line is not whole and is left out", LorankWarning, stacklevel=2)
            history._check()
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            raise PlanError(f"{path}: damaged, or no history of cuts ({error}); give the {CUTS} of a run") from None
        return history

    def _check(self) -> None:
        """Refuse what is no number, or no history.

        Raises:
            ValueError: says what.

        """
        whole = [*self.initial_ranks.values(), *self.unit_costs.values(), *(cut.step for cut in self.cuts)]
        whole += [rank for cut in self.cuts for rank in cut.ranks.values()]
        if any(type(number) is not int or number < 0 for number in whole):
            raise ValueError("steps, ranks and costs are whole numbers from 0")
        if any(
            type(score) not in (int, float) or not math.isfinite(score)
            for cut in self.cuts
            for score in cut.scores.values()
        ):
            raise ValueError("scores are finite numbers")
        if any(one.step >= other.step for one, other in pairwise(self.cuts)):
            raise ValueError("steps ascend")

    def _cut(self, step: int, ranks: list[int], scores: list[float]) -> Cut:
        names = list(self.initial_ranks)
        return Cut(step, dict(zip(names, ranks, strict=True)), dict(zip(names, scores, strict=True)))

    def _cut_line(self, cut: Cut) -> str:
        ranks, scores = ([of[name] for name in self.initial_ranks] for of in (cut.ranks, cut.scores))
        return _line({"step": cut.step, "ranks": ranks, "scores": scores})


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"
