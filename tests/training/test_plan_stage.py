"""What stands in the folder of a trained adapter, and what is said of one that does nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model

from lorank.errors import LorankWarning
from lorank.models.label_names import read_label_names
from lorank.models.loading import load_task_model
from lorank.models.pretrained import Pretrained
from lorank.training.plan_stage import save_adapter


def adapted(folder: Path, names: tuple[str, ...]) -> Any:
    task = load_task_model(Pretrained(str(folder)), TaskType.SEQ_CLS, names)
    lora = LoraConfig(target_modules=["query"], task_type=TaskType.SEQ_CLS, modules_to_save=list(task.heads))
    return get_peft_model(task.model, lora)


def test_an_adapter_that_does_nothing_is_said_and_saved(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.warns(LorankWarning, match=r"adapter: lora_B is below 1e-30 everywhere after training"):
        save_adapter(adapted(tiny_folder, ("no", "yes")), tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_label_names_stand_beside_the_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    for task, names in (("classification", ("10", "9")), ("regression", ())):
        model = adapted(tiny_folder, names)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(1.0)
        save_adapter(model, tmp_path / task)
        assert read_label_names(tmp_path / task / "adapter") == names
