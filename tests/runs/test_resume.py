"""SIGKILL at any point, the same call again: the plan and the weights are those of the uninterrupted run, bit for bit."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.numpy import load_file

from lorank import RankPlan
from lorank.runs.run import run

STEPS = 10
# Dropout everywhere, so that the random streams matter; a stopping rule, so that its state does; accumulated gradients
# and steps enough to come into a second epoch.
DURING = {
    "preset": "loss-per-parameter",
    "lora_dropout": 0.2,
    "cut": {"stop_when_stable": {"share": 0.001, "window": 2, "windows": 2}},
    "train": {"max_steps": STEPS, "gradient_accumulation": 2},
}
# What follows a finished search must find device and autocast as if it had just been trained.
AFTER = {
    "preset": "loss-per-parameter",
    "precision": "bf16",
    "measure": {"scoring_batch_size": 4},
    "expert": {"measure": {"when": "after"}},
}
# Cut while training: killed in it, in writing a checkpoint, the plan, the adapter.
PRUNED = {
    "method": "igu-lora",
    "lora_dropout": 0.2,
    "triplets": {"initial_rank": 3},
    "measure": {"every": 1, "estimator": "one-sample"},
    "smooth": {"state": "element"},
    "expert": {"cut": {"shrink": "every"}},
    "train": {"max_steps": STEPS, "gradient_accumulation": 2},
}
CASES = [
    (DURING, ("search", "checkpoint", "cut", "plan", "train", "adapter")),
    (AFTER, ("scores", "train")),
    (PRUNED, ("igu-lora", "checkpoint", "plan", "adapter")),
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "points"),
    [pytest.param(*CASES[0], marks=pytest.mark.long), CASES[1], pytest.param(*CASES[2], marks=pytest.mark.long)],
    ids=["scores-during", "scores-after-bf16", "pruned"],
)
def test_a_killed_run_ends_as_the_uninterrupted_one(tiny_recipe, changes, points, tmp_path: Path) -> None:
    recipe = tiny_recipe(**changes)
    # At random, a new point each time the tests run; a failure names it.
    counts = {point: random.SystemRandom().randint(1, _latest(point)) for point in points}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude={"resolved"})))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "TOKENIZERS_PARALLELISM": "false"}
    script = Path(__file__).with_name("killed_run.py")
    killed = {
        point: subprocess.Popen(
            [sys.executable, str(script), str(path), str(tmp_path / point), point, str(count)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for point, count in counts.items()
    }
    run(recipe, tmp_path / "whole", Console(quiet=True))
    whole = artefacts(tmp_path / "whole")
    for point, process in killed.items():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, f"{point}, {counts[point]}: was not killed\n{errors[-3000:]}"
        assert not (tmp_path / point / "adapter").exists()
        run(recipe, tmp_path / point, Console(quiet=True))
        resumed = artefacts(tmp_path / point)
        cuts = [(folder / "cuts.jsonl").read_bytes() for folder in (tmp_path / "whole", tmp_path / point)]
        assert cuts[0] == cuts[1], f"cuts after a kill in {point} at {counts[point]}"
        assert resumed[0] == whole[0], f"plan after a kill in {point} at {counts[point]}"
        assert resumed[1].keys() == whole[1].keys()
        different = [key for key, values in whole[1].items() if not np.array_equal(values, resumed[1][key])]
        assert not different, f"weights after a kill in {point} at {counts[point]}: {different}"


def _latest(point: str) -> int:
    """Last count at which a kill can happen: micro-batches, or checkpoints written."""
    return STEPS if point in ("search", "train", "igu-lora") else 3


def artefacts(directory: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    scores = load_file(directory / "scores.safetensors")
    adapter = load_file(directory / "adapter" / "adapter_model.safetensors")
    return dict(RankPlan.load(directory / "plan.json").ranks), {**scores, **adapter}
