"""Full fine-tuning beside the methods of a run or a comparison: trained, evaluated, and its result read back."""

import shutil

from lorank.artefact import read_json, write_json
from lorank.errors import OutputError
from lorank.processes import processes
from lorank.received_files import record_of
from lorank.runs.method_run import MethodRun, as_result
from lorank.training.checkpoints import stage_folder
from lorank.training.full_stage import FullResult, train_full


def full_result(part: MethodRun) -> FullResult:
    """Train every weight and evaluate, or continue, or read back what is there; no model is kept.

    What stays in the folder is `evaluation.json`, and of text-generation tasks what was written. Checkpoints hold every weight
    with two moments each; they are removed once the result is there.

    Args:
        part: of a run; its recipe is `Recipe.of("full")`.

    Raises:
        TrainingError: a loss that is not finite.
        OutputError: a result that was damaged.

    """
    path, first = part.folder / "evaluation.json", processes().is_main_process
    if not path.exists():
        result = train_full(part.prepared, part.recipe.train, part.folder, part.console)
        if first:
            write_json(path, as_result(result))
    processes().wait_for_everyone()
    if first:
        for checkpoint in stage_folder(part.folder, "train", "stage2").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    try:
        return record_of(FullResult, read_json(path))
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path}: damaged ({error}); remove it to train and evaluate again") from None
