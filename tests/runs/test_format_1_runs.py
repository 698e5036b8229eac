"""A finished run whose recipe is of format 1 is read: nothing of it is done again."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from lorank.cli import app
from lorank.errors import LorankWarning, OutputError
from lorank.runs.run import run

QUIET = Console(quiet=True)
STAGE = {
    "epochs": 3.0,
    "max_steps": 10,
    "learning_rate": 0.01,
    "batch_size": 8,
    "gradient_accumulation": 1,
    "warmup": 0.06,
    "scheduler": "linear",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}


def content_of_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """The tiny recipe as a run of format 1 wrote it: every key, those of other methods too."""
    same = ("method", "preset", "budget", "data", "metrics", "seed", "scale", "lora_dropout", "precision", "report_to")
    training = ("gradient_checkpointing", "group_by_length", "checkpoint_every", "log_every", "resolved")
    return {
        **{key: content[key] for key in (*same, *training)},
        "model": content["model"]["name"],
        "model_dropout": None,
        "trust_remote_code": False,
        "targets": None,
        "baselines": ["lora"],
        "scoring": {
            **{"nodes": "paper", "intervals": 10, "draw": "random", "moved": "lambda", "baseline": "zero"},
            **{"path_scope": "global", "parameter_factor": "none", "granularity": "triplet", "dropout": False},
            **{"vector_reduction": "mean", "accumulate": "mean", "ema_decay": 0.85, "source": "held-out"},
            **{"fraction": 0.1, "batch_size": 8, "when": "during", "every": 1, "warmup": 0.1},
        },
        "calibration": {"examples": 256, "batch_size": 16, "folds": 8, "estimator": "gram", "components": 16},
        "allocation": {"rank_by": "score", "scope": "global", "max_rank": None, "min_rank": 0, "multiple_of": 1},
        "pruning": {"estimator": "single-pass", "every": 10, "ending": "continue"},
        "stage1": {
            **{**STAGE, "initial_rank": 2, "orthogonality": 0.1, "train_on_path": False},
            **{"pruning": "one-shot", "stop_when_stable": None},
        },
        "stage2": {**STAGE, "scale_by": "initial", "skip": False},
    }


@pytest.mark.long
def test_a_finished_run_of_format_1_is_read(tiny_recipe: Any, tmp_path: Path) -> None:
    recipe, out = tiny_recipe(baselines=["lora"]), tmp_path / "out"
    result = run(recipe, out, QUIET)
    (out / "search").rename(out / "stage1")
    for train in list(out.rglob("train")):
        train.rename(train.with_name("stage2"))
    path = out / "recipe.yaml"
    written = yaml.safe_dump(content_of_format_1(yaml.safe_load(path.read_text())))
    path.write_text(written)
    unchanged = [*out.rglob("adapter_model.safetensors"), *out.rglob("evaluation.json"), *out.rglob("plan.json"), path]
    stamps = {each: each.stat().st_mtime_ns for each in unchanged}

    assert run(recipe, out, QUIET) == result
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump({key: value for key, value in yaml.safe_load(written).items() if key != "resolved"}))
    with warnings.catch_warnings():
        warnings.simplefilter("default", LorankWarning)
        said = CliRunner().invoke(app, ["run", str(old), "--output", str(out)])
    assert said.exit_code == 0, said.output
    assert "recipe format 1" in said.output
    assert stamps == {each: each.stat().st_mtime_ns for each in unchanged}
    assert not [*out.rglob("search"), *out.rglob("train")]
    with pytest.raises(OutputError, match=r"belongs to another recipe: train\.learning_rate was 0\.01, now 0\.02"):
        run(tiny_recipe(baselines=["lora"], train={"learning_rate": 0.02}), out, QUIET)
