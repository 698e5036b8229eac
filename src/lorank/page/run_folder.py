"""What the folder of a run holds, finished or not: each file is read if it is there, and what cannot be read is said."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lorank.allocation.cut_history import CUTS, CutHistory
from lorank.artefact import read_json
from lorank.errors import LorankError, OutputError, one_line
from lorank.plan import RankPlan
from lorank.recipe.yaml_text import yaml_content
from lorank.scores import ImportanceScores
from lorank.training.adapter_sums import difference

_LARGEST = 32 * 2**20  # bytes of a file that is read as text: a log of many millions of steps is left out
_STAGES = {"search": "search", "train": "train", "stage1": "search", "stage2": "train"}  # of format 1 too
Read = TypeVar("Read")


@dataclass(frozen=True)
class LossCurve:
    """Losses of one stage, as its Trainer logged them.

    Attributes:
        stage: `search`, `train`, or with the baseline's name before it.
        steps: optimizer steps, ascending.
        losses: of training at these steps, means since the one before.
        eval_steps: steps of evaluations on `data.eval`.
        eval_losses: their losses.

    """

    stage: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    eval_steps: tuple[int, ...] = ()
    eval_losses: tuple[float, ...] = ()


@dataclass
class RunFolder:
    """One run.

    Attributes:
        folder: where it is.
        plan: None before ranks are decided.
        scores: None where nothing was scored, or not yet.
        history: of the cuts; None for methods that make none.
        metrics: of metrics.json; None before the end.
        recipe: text of recipe.yaml.
        resolved: what the run wrote into its recipe: versions, hashes of the data.
        curves: losses of the stages.
        notes: what is missing or cannot be read, in sentences.

    """

    folder: Path
    plan: RankPlan | None = None
    scores: ImportanceScores | None = None
    history: CutHistory | None = None
    metrics: Mapping[str, Any] | None = None
    recipe: str | None = None
    resolved: Mapping[str, Any] = field(default_factory=dict)
    curves: list[LossCurve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def results(self) -> Mapping[str, Mapping[str, Any]]:
        """Method -> its results; empty before the end."""
        found = (self.metrics or {}).get("results")
        return found if isinstance(found, Mapping) else {}


def read_run(folder: str | Path) -> RunFolder:
    """Read a run, or a folder in which `RankAllocation` or `AllocationLoop` left a plan.

    Raises:
        OutputError: no folder, or nothing of a run in it.

    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder; give the output directory of a run")
    run = RunFolder(folder)
    run.plan = _read(run, "plan.json", RankPlan.load)
    run.scores = _read(run, "scores.safetensors", ImportanceScores.load)
    run.history = _read(run, CUTS, CutHistory.load)
    if run.history is None and (folder / "search" / CUTS).is_file():
        run.history = _read(run, f"search/{CUTS}", CutHistory.load)
    run.metrics = _read(run, "metrics.json", _mapping)
    run.recipe = _read(run, "recipe.yaml", lambda path: path.read_text(encoding="utf-8", errors="replace"))
    if run.recipe is not None:
        run.resolved = _resolved(run.recipe)
    run.curves = _curves(run)
    if run.plan is None and run.recipe is None and run.history is None:
        why = "".join(f"; {note}" for note in run.notes)
        raise OutputError(
            f"{folder} holds no plan.json and no recipe.yaml that can be read{why}; give the output directory of a run"
        )
    # Of a file that is there and is left out, its own note says why.
    plan, metrics, scores = (folder / name for name in ("plan.json", "metrics.json", "scores.safetensors"))
    if not plan.is_file() and metrics.is_file():
        run.notes.append(
            "plan.json is missing: the run came to its end (metrics.json is there), and the same `lorank run` command writes "
            "plan.json again."
        )
    elif not plan.is_file():
        run.notes.append("There is no plan yet: the run has not come to its end, or it was stopped.")
    elif run.recipe is not None and not metrics.is_file():
        run.notes.append("There are no results: the run was stopped before its end, or nothing was evaluated.")
    if run.plan is not None and not scores.is_file() and run.plan.provenance.get("method") not in ("lora", None):
        run.notes.append("There are no scores beside the plan, so importance, margin and other budgets are not shown.")
    run.notes += _adapters_that_changed(run)
    return run


def _adapters_that_changed(run: RunFolder) -> list[str]:
    """A note for each adapter that is not the one that was measured."""
    notes = []
    for method, result in run.results.items():
        own = run.folder / "baselines" / Path(method).name
        adapter = (own if own.is_dir() else run.folder) / "adapter"
        if not (isinstance(result, Mapping) and isinstance(result.get("adapter_sha256"), str)):
            continue  # full fine-tuning, and runs of earlier versions
        try:
            what = difference(adapter, result)
        except (OSError, TypeError, ValueError, AttributeError):
            what = "its sums in metrics.json cannot be read"
        if what is not None:
            notes.append(
                f"{adapter.relative_to(run.folder)}, whose results are shown, is not what was measured: {what}."
            )
    return notes


def _read(run: RunFolder, name: str, load: Callable[[Path], Read]) -> Read | None:
    """What `load` makes of a file; None where it is not there, or cannot be read, which is noted."""
    path = run.folder / name
    if not path.is_file():
        return None
    try:
        if path.suffix != ".safetensors" and (size := path.stat().st_size) > _LARGEST:
            raise OutputError(f"it has {size / 2**20:,.0f} MiB, and at most {_LARGEST // 2**20} are read")
        return load(path)
    except (LorankError, OSError, ValueError, OverflowError, RecursionError) as error:
        run.notes.append(f"{name} is left out: {one_line(error):.300}")
        return None


def _mapping(path: Path) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        OutputError: it is something else.

    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise OutputError(f"it holds {type(found).__name__}, not an object")
    return found


def _resolved(text: str) -> Mapping[str, Any]:
    try:
        found = yaml_content(text, of_run=True)
    except ValueError:
        return {}
    found = found.get("resolved") if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _curves(run: RunFolder) -> list[LossCurve]:
    """Of the last checkpoint of each stage, whose log is that of the whole stage."""
    found = []
    baselines = sorted(path for path in run.folder.glob("baselines/*") if path.is_dir())
    for folder in (run.folder, *baselines):
        before = "" if folder == run.folder else f"{folder.name}: "
        for stage, name in _STAGES.items():
            states = {_number(path.parent): path for path in (folder / stage).glob("checkpoint-*/trainer_state.json")}
            if states:
                last = states[max(states)].relative_to(run.folder)
                if (curve := _read(run, str(last), partial(_curve, before + name))) is not None:
                    found.append(curve)
    return found


def _number(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _curve(stage: str, path: Path) -> LossCurve | None:
    """Losses of a Trainer's state; None where it logged none."""
    kinds: dict[str, dict[int, float]] = {"loss": {}, "eval_loss": {}}
    log = _mapping(path).get("log_history")
    for entry in log if isinstance(log, list) else ():
        if not isinstance(entry, dict) or type(entry.get("step")) is not int:
            continue
        for kind, values in kinds.items():
            value = entry.get(kind)
            if isinstance(value, int | float) and math.isfinite(value):
                values[entry["step"]] = float(value)
    train, held = (dict(sorted(kinds[kind].items())) for kind in ("loss", "eval_loss"))
    if not train and not held:
        return None
    return LossCurve(stage, tuple(train), tuple(train.values()), tuple(held), tuple(held.values()))
