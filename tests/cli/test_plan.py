from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import plan_for
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from lorank.cli import app
from lorank.plan import RankPlan

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def lorank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_plan_show_diff_and_export(bases: dict[str, Path], tmp_path: Path) -> None:
    plan = plan_for(AutoModelForCausalLM.from_pretrained(bases["decoder"]), str(bases["decoder"]))
    moved = {name: min(rank, 3) for name, rank in plan.ranks.items()}
    plan.save(tmp_path / "plan.json")
    RankPlan(moved, plan.unit_costs, "less", plan.budget_parameters).save(tmp_path / "less.json")
    shown = lorank("plan", "show", tmp_path / "plan.json")
    assert shown.exit_code == 0, shown.output
    assert "q_proj" in shown.output
    assert "by hand, budget here" in shown.output
    changed = sum(rank > 3 for rank in plan.ranks.values())
    difference = lorank("plan", "diff", tmp_path / "plan.json", tmp_path / "less.json")
    assert f"{changed} of {len(plan.ranks)} ranks differ" in difference.output
    assert difference.output.count("-1") >= changed
    snippet = lorank("plan", "export", tmp_path / "plan.json", "--to", "peft")
    assert snippet.stdout.startswith("from peft import LoraConfig")
    seeded = lorank("plan", "export", tmp_path / "plan.json", "--to", "llama-factory", "--output", tmp_path / "seed")
    assert seeded.exit_code == 0, seeded.output
    assert f"adapter_name_or_path: {tmp_path / 'seed'}" in seeded.stdout
    assert (tmp_path / "seed" / "adapter_model.safetensors").is_file()
    assert lorank("plan", "export", tmp_path / "plan.json", "--to", "nowhere").exit_code == 1
