"""Two gloo processes on the CPU: the run that `accelerate launch` and `torchrun` start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from torch import distributed

import lorank.__main__
from lorank import RankPlan
from lorank.runs.run import run
from tests.test_interrupt import signalled


def launched(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a module in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", *command]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=900, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.parametrize("words", [["--version"], ["no-such-command"]])
def test_a_command_that_has_done_its_work_leaves_the_group(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error the others may be waiting, and torchrun ends them."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(sys, "argv", ["lorank", *words])
    try:
        with pytest.raises(SystemExit) as ended:
            lorank.__main__.main()
        assert distributed.is_initialized() == bool(ended.value.code)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@pytest.mark.long
def test_allocation_in_a_trainer_resumes_exactly_on_two_processes(tmp_path: Path) -> None:
    """Each process scores batches of its own; what they measured is averaged, so one file holds the state of both."""
    launched("tests.in_training.two_processes", str(tmp_path))
    first, second = ((tmp_path / f"ranks of process {number}").read_text() for number in (0, 1))
    assert first == second


@pytest.mark.long
@pytest.mark.parametrize("method", ["i-lora", "igu-lora"])
def test_two_processes_share_one_run(method: str, tiny_recipe, tmp_path: Path) -> None:
    more = {"measure": {"every": 1}, "gradient_checkpointing": True} if method == "igu-lora" else {}
    recipe = tiny_recipe(method=method, baselines=["lora"], **more)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude={"resolved"})))
    done = launched("lorank.cli", "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out"))
    assert done.stdout.count("rank by layer and projection") == 1  # the first process prints, the other does not
    # What they left is a finished run like any other.
    result = run(recipe, tmp_path / "out", Console(quiet=True))
    assert result.plan == RankPlan.load(tmp_path / "out" / "plan.json")
    assert set(result.results) == {method, "lora"}
    if method == "i-lora":
        assert (
            result.results["i-lora"]["search"]["passes"] == 9 + 4
        )  # the loss is compared at the 1st, 2nd, 4th and 8th
    else:  # DDP holds gradients in buckets: λ is masked until the end, and then everything is cut
        parameters = result.results["igu-lora"]["adapter_parameters"]
        assert parameters == result.plan.spent <= result.plan.budget_parameters


@pytest.mark.long
def test_a_signal_to_torchrun_ends_all_processes_after_one_step(tiny_recipe, tmp_path: Path) -> None:
    """Torchrun passes it on to each; they agree on the step, write one checkpoint, and the same command goes on from it."""
    recipe = tiny_recipe(method="lora", preset=None, train={"max_steps": 300}, checkpoint_every=1000, log_every=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude={"resolved"})))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lorank"]
    process = subprocess.Popen(
        [*launch, "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stderr=subprocess.PIPE,
        text=True,
    )
    said = signalled(process, "step 8/300", signal.SIGTERM)
    assert process.wait(60) != 0
    assert any("this continues from what was saved: the same torchrun command" in line for line in said), said
    (marker,) = (tmp_path / "out").glob("train/checkpoint-*/stage.json")
    assert 8 <= int(marker.parent.name.rpartition("-")[2]) < 300
    assert {path.name for path in marker.parent.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
