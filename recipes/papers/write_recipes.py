"""Write the papers' GLUE experiments as recipes: `python recipes/papers/write_recipes.py`. A test keeps them current.

Hyper-parameters are those of I-LoRA's Table 6 and of AdaLoRA's task table; what a paper does not say is named in
the first lines of each recipe.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml

HERE = Path(__file__).parent


class Task(NamedTuple):
    """A GLUE task as the papers use it."""

    examples: int
    text: list[str]
    metrics: list[str]
    max_length: int


TASKS = {
    "cola": Task(8551, ["sentence"], ["matthews"], 64),
    "sst2": Task(67349, ["sentence"], ["accuracy"], 128),
    "mnli": Task(392702, ["premise", "hypothesis"], ["accuracy"], 256),
    "rte": Task(2490, ["sentence1", "sentence2"], ["accuracy"], 320),
    "qqp": Task(363846, ["question1", "question2"], ["accuracy", "f1"], 320),
    "mrpc": Task(3668, ["sentence1", "sentence2"], ["accuracy", "f1"], 320),
    "qnli": Task(104743, ["question", "sentence"], ["accuracy"], 512),
    "stsb": Task(5749, ["sentence1", "sentence2"], ["pearson", "spearman"], 128),
}

# I-LoRA, Table 6: learning rate and epochs of stage 1 ("setup"), and of stage 2 ("finetune").
I_LORA = {
    "cola": (4e-4, 50, 6.9e-4, 25),
    "sst2": (4e-4, 48, 4e-4, 10),
    "mnli": (4e-4, 50, 5.1e-4, 25),
    "rte": (1.2e-3, 55, 1.2e-3, 50),
    "qqp": (4e-4, 5, 8e-4, 15),
    "mrpc": (1e-3, 30, 1e-3, 35),
    "qnli": (5e-4, 7, 5e-4, 40),
    "stsb": (2.2e-3, 25, 2e-3, 25),
}
# AdaLoRA's task table: learning rate, epochs, weight of the regulariser, first cut, steps between cuts, last steps without;
# alpha and weight decay are those of its scripts.
ADALORA = {
    "mnli": (5e-4, 7, 0.1, 8000, 100, 50000, 16, 0.0),
    "rte": (1.2e-3, 50, 0.3, 600, 1, 1800, 32, 0.01),
    "qnli": (1.2e-3, 5, 0.1, 2000, 100, 8000, 32, 0.01),
    "mrpc": (1e-3, 30, 0.1, 600, 1, 1800, 32, 0.01),
    "qqp": (5e-4, 5, 0.1, 8000, 100, 25000, 16, 0.01),
    "sst2": (8e-4, 24, 0.1, 6000, 100, 22000, 16, 0.01),
    "cola": (5e-4, 25, 0.5, 800, 10, 3500, 32, 0.0),
    "stsb": (2.2e-3, 25, 0.1, 800, 10, 2000, 32, 0.1),
}


def data_of(name: str) -> dict[str, Any]:
    """Where the task's examples come from: the hub's GLUE; the development set is evaluated once, at the end."""
    task = TASKS[name]
    content: dict[str, Any] = {"name": "nyu-mll/glue", "config": name, "text": task.text, "max_length": task.max_length}
    if name == "mnli":
        content["test_split"] = "validation_matched"
    if name == "stsb":
        content["task"] = "regression"
    return content


def i_lora(name: str) -> tuple[list[str], dict[str, Any]]:
    """I-LoRA on DeBERTaV3-base: adapters of rank 2 in stage 1, half of them pruned."""
    rate1, epochs1, rate2, epochs2 = I_LORA[name]
    notes = [
        f"I-LoRA, DeBERTaV3-base on GLUE {name}: Table 6 (rates, epochs), batch 32, rank 2 in stage 1, pruning ratio 50 %.",
        "Not in the paper, and lorank's defaults here: alpha / r, schedule, warm-up, weight decay, longest input (AdaLoRA's).",
        "The paper's 0.33M is the size of stage 1; after pruning about half of it is left.",
    ]
    return notes, {
        "model": "microsoft/deberta-v3-base",
        "method": "i-lora",
        "preset": "paper",
        "budget": "beta=0.5",
        "baselines": ["lora"],
        "data": data_of(name),
        "metrics": TASKS[name].metrics,
        "stage1": {"initial_rank": 2, "epochs": epochs1, "learning_rate": rate1, "batch_size": 32},
        "stage2": {"epochs": epochs2, "learning_rate": rate2, "batch_size": 32},
    }


def adalora(name: str) -> tuple[list[str], dict[str, Any]]:
    """AdaLoRA on DeBERTaV3-base: average rank 2, initial rank 4."""
    rate, epochs, weight, first, between, last, alpha, decay = ADALORA[name]
    steps = epochs * math.ceil(TASKS[name].examples / 32)
    notes = [
        f"AdaLoRA, DeBERTaV3-base on GLUE {name}: its task table, batch 32, 144 ranks in all (an average of 2), 4 at the start.",
        f"Its schedule in steps, t_i = {first}, Delta_T = {between}, t_f = {last} of {steps:,}, as steps of this run.",
        "alpha is that of its scripts; the paper has none. Schedule and warm-up are lorank's.",
    ]
    return notes, {
        "model": "microsoft/deberta-v3-base",
        "method": "adalora",
        "preset": "paper",
        "budget": "rank=144",
        "baselines": ["lora"],
        "data": data_of(name),
        "metrics": TASKS[name].metrics,
        "scale": alpha / 4,
        "pruning": {"begin": first, "interval": between, "end": steps - last, "orthogonality": weight},
        "stage1": {"initial_rank": 4, "epochs": epochs, "learning_rate": rate, "batch_size": 32, "weight_decay": decay},
        "stage2": {"epochs": epochs, "learning_rate": rate, "batch_size": 32, "weight_decay": decay},
    }


def written() -> dict[Path, str]:
    """Every recipe's file and its text."""
    found = {}
    for folder, make in (("i-lora", i_lora), ("adalora", adalora)):
        for name in TASKS:
            notes, content = make(name)
            head = "".join(f"# {line}\n" for line in notes)
            text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
            found[HERE / folder / f"deberta-v3-base-{name}.yaml"] = head + text
    return found


if __name__ == "__main__":
    for path, text in written().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
