"""What each of two processes does in `test_nonfinite.py`: one of them has a bad loss. `nonfinite_on_two.py RECIPE FOLDER`."""

import sys
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console

from lorank.errors import LorankWarning
from lorank.processes import processes
from lorank.recipe.files import load_recipe
from lorank.runs.run import run
from lorank.training.trainer import StageTrainer


def main(recipe: Path, folder: Path) -> None:
    real = StageTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **options: Any) -> Any:
        bad = self.state.global_step == 2 and self.model.training and processes().process_index == 1
        # Added, so that gradients stay finite: only the loss of this process says it.
        return real(self, *args, **options) + (float("nan") if bad else 0.0)

    StageTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LorankWarning)
        results = run(load_recipe(recipe), folder, Console(quiet=True)).results
    said = [str(one.message) for one in caught if "optimizer steps were skipped" in str(one.message)]
    assert len(said) == (1 if processes().is_main_process else 0), said
    assert results["igu-lora"]["skipped_steps"] == [3]
    (folder.parent / f"process {processes().process_index}").write_text("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
