"""What the tests of RankAllocation share: two small schedules, a way to stop, and logits to compare."""

from typing import Any

import torch
from tests.conftest import random_batch
from transformers import TrainerCallback

# A window from step 4 to 12 of 20, and scores often enough for it.
SHORT: dict[str, Any] = {"begin": 0.2, "end": 0.6, "interval": 0.1}
IGU = {"method": "igu-lora", "every": 1, **SHORT}
ADALORA = {"method": "adalora", **SHORT}


class Stop(TrainerCallback):
    """Ends training at a step, as early stopping does or as Ctrl-C does."""

    def __init__(self, step: int, *, error: bool = False) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            if self.error:
                raise KeyboardInterrupt
            control.should_training_stop = True


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**random_batch()).logits
