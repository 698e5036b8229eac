"""Folders of runs that are made by hand: what a run leaves, without training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import lorank
from lorank.allocation.cut_history import CUTS, CutHistory
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HOSTILE = "</script><img src=x onerror=alert(1)>\"&'{{ 1234*5678 }}"


def names_of(layers: int, projections: tuple[str, ...] = PROJECTIONS) -> list[str]:
    return [f"model.layers.{layer}.{projection}" for layer in range(layers) for projection in projections]


def make_run(
    folder: Path,
    *,
    layers: int = 3,
    units: int = 4,
    budget: str = "r=2",
    seed: int = 0,
    errors: bool = True,
    metrics: bool = True,
    **provenance: Any,
) -> RankPlan:
    """A finished run with scores of units, two cuts, a log of each stage, and results."""
    draw = np.random.default_rng(seed)
    names = names_of(layers)
    costs = {name: 10 + 5 * name.endswith(("gate_proj", "up_proj", "down_proj")) for name in names}
    values = {name: np.sort(draw.random(units))[::-1] for name in names}
    standard = {name: 0.1 * one for name, one in values.items()} if errors else None
    made = {"method": "i-lora", "preset": "paper", "model": "some/model", **provenance}
    scores = ImportanceScores(values, costs, standard, made, None if units > 1 else dict.fromkeys(names, 4))
    plan = lorank.allocate(scores, budget)
    folder.mkdir(parents=True, exist_ok=True)
    scores.save(folder / "scores.safetensors")
    plan.save(folder / "plan.json")
    history = CutHistory(dict.fromkeys(names, units), costs)
    half = {name: (rank + units) // 2 for name, rank in plan.ranks.items()}
    history.add(10, half, values)
    history.add(20, plan.ranks, values)
    history.write(folder / CUTS)
    (folder / "recipe.yaml").write_text("method: i-lora\nresolved: {data: {train: abc}, versions: {torch: '2'}}\n")
    for stage, steps in (("search", 20), ("train", 40)):
        write_log(folder / stage / f"checkpoint-{steps}", [{"step": s, "loss": 1 / s} for s in range(5, steps + 1, 5)])
    if metrics:
        result = {"metrics": {"accuracy": 0.5}, "adapter_parameters": plan.spent, "steps": 40, "seconds": 2.0}
        content = {"results": {"i-lora": result, "lora": {**result, "metrics": {"accuracy": None}}}}
        (folder / "metrics.json").write_text(json.dumps(content))
    return plan


def write_log(checkpoint: Path, entries: list[Mapping[str, Any]]) -> None:
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
