"""What each of two processes does in `test_processes.py`: train, resume in the middle, compare. `two_processes.py FOLDER`."""

import shutil
import sys
from pathlib import Path

from tests.conftest import tiny_trainer

from lorank import RankAllocation
from lorank.processes import processes


def main(folder: Path) -> None:
    options = {"method": "igu-lora", "every": 1, "begin": 0.2, "end": 0.6, "interval": 0.1, "intervals": "auto"}
    whole = RankAllocation(budget="r=2", estimator="unbiased", **options)
    trainer = tiny_trainer(folder / "whole", whole, gradient_accumulation_steps=2)
    trainer.train()
    if processes().is_main_process:
        shutil.copytree(folder / "whole" / "checkpoint-6", folder / "again" / "checkpoint-6")
    processes().wait_for_everyone()
    again = RankAllocation(budget="r=2", estimator="unbiased", **options)
    resumed = tiny_trainer(folder / "again", again, gradient_accumulation_steps=2)
    resumed.train(resume_from_checkpoint=str(folder / "again" / "checkpoint-6"))
    assert again.plan.ranks == whole.plan.ranks
    assert all((again.scores.scores[name] == scores).all() for name, scores in whole.scores.scores.items())
    trained = dict(trainer.model.named_parameters())
    assert all(parameter.equal(trained[name]) for name, parameter in resumed.model.named_parameters())
    assert sum(p.numel() for name, p in trained.items() if "lora_" in name) == whole.plan.spent
    (folder / f"ranks of process {processes().process_index}").write_text(str(sorted(whole.plan.ranks.items())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
