"""Write the papers' experiments as recipes: `python recipes/write_paper_recipes.py`. A test keeps them current.

Hyper-parameters are those of I-LoRA's Tables 6 and 7, of AdaLoRA's task table, and of IGU-LoRA as far as they are known; what
a paper does not say is named in the first lines of each recipe.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).parents[1] / "src" / "lorank" / "recipes"


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
# alpha, weight decay and warm-up (a share of the training) are those of its scripts.
ADALORA = {
    "mnli": (5e-4, 7, 0.1, 8000, 100, 50000, 16, 0.0, 0.0116),
    "rte": (1.2e-3, 50, 0.3, 600, 1, 1800, 32, 0.01, 0.0513),
    "qnli": (1.2e-3, 5, 0.1, 2000, 100, 8000, 32, 0.01, 0.0305),
    "mrpc": (1e-3, 30, 0.1, 600, 1, 1800, 32, 0.01, 0.1),
    "qqp": (5e-4, 5, 0.1, 8000, 100, 25000, 16, 0.01, 0.0352),
    "sst2": (8e-4, 24, 0.1, 6000, 100, 22000, 16, 0.01, 0.0198),
    "cola": (5e-4, 25, 0.5, 800, 10, 3500, 32, 0.0, 0.0149),
    "stsb": (2.2e-3, 25, 0.1, 800, 10, 2000, 32, 0.1, 0.0222),
}
# Full fine-tuning is in every table of results; at which learning rate is not known here.
BASELINES = ["lora", "full"]
FULL_NOTE = (
    "Full fine-tuning trains as `train` says, at lorank's learning rate for it (5e-5): the paper's is not known here."
)


# The tasks of IGU-LoRA's table for Qwen2.5-0.5B: data, and tokens of prompt and target (ours).
REASONING: dict[str, tuple[dict[str, Any], int, int]] = {
    "boolq": ({"name": "google/boolq", "test_split": "validation", "task": "boolq"}, 512, 8),
    "arc-easy": ({"name": "allenai/ai2_arc", "config": "ARC-Easy", "test_split": "test", "task": "arc"}, 256, 8),
    "arc-challenge": ({"name": "allenai/ai2_arc", "config": "ARC-Challenge", "test_split": "test", "task": "arc"}, 256, 8),
    "gsm8k": ({"name": "openai/gsm8k", "config": "main", "test_split": "test", "task": "gsm8k"}, 256, 320),
    "aqua": ({"name": "deepmind/aqua_rat", "config": "raw", "test_split": "test", "task": "aqua"}, 256, 320),
}  # fmt: skip
# XSum: lengths and beams are those of AdaLoRA's script.
XSUM = {
    "name": "EdinburghNLP/xsum",
    "task": "summarization",
    "prompt": "{document}",
    "max_length": 768,
    "max_target_length": 64,
    "beams": 8,
}
XSUM_EXAMPLES = 204045


def data_of(name: str) -> dict[str, Any]:
    """Where the task's examples come from: the hub's GLUE; the development set is evaluated once, at the end."""
    task = TASKS[name]
    content: dict[str, Any] = {"name": "nyu-mll/glue", "config": name, "text": task.text, "max_length": task.max_length}
    if name == "mnli":
        content["test_split"] = {"matched": "validation_matched", "mismatched": "validation_mismatched"}
    if name == "stsb":
        content["task"] = "regression"
    return content


def i_lora(name: str) -> tuple[list[str], dict[str, Any]]:
    """I-LoRA on DeBERTaV3-base: adapters of rank 2 in its first stage, half of them pruned."""
    rate1, epochs1, rate2, epochs2 = I_LORA[name]
    notes = [
        f"I-LoRA, DeBERTaV3-base on GLUE {name}: Table 6 (rates, epochs), batch 32, rank 2 in search, pruning ratio 50 %.",
        "Not in the paper, and lorank's defaults here: alpha / r, schedule, warm-up, weight decay, longest input (AdaLoRA's).",
        "The paper's 0.33M is the size of search (r = 2, 331,776); half of its 144 units is left. LoRA has the printed 0.33M",
        "here; baselines=[lora] gives it the parameters of the plan. AdaLoRA's row is a recipe of its own.",
        FULL_NOTE,
    ]
    return notes, {
        "model": "microsoft/deberta-v3-base",
        "method": "i-lora",
        "preset": "paper",
        "budget": "keep=50%",
        "baselines": {"lora": {"budget": "r=2"}, "full": {}},
        "data": data_of(name),
        "metrics": TASKS[name].metrics,
        "triplets": {"initial_rank": 2},
        "search": {"epochs": epochs1, "learning_rate": rate1},
        "train": {"epochs": epochs2, "learning_rate": rate2, "batch_size": 32},
    }


def adalora(name: str) -> tuple[list[str], dict[str, Any]]:
    """AdaLoRA on DeBERTaV3-base: average rank 2, initial rank 4."""
    rate, epochs, weight, first, between, last, alpha, decay, warmup = ADALORA[name]
    steps = epochs * math.ceil(TASKS[name].examples / 32)
    notes = [
        f"AdaLoRA, DeBERTaV3-base on GLUE {name}: its task table, batch 32, 144 ranks in all (an average of 2), 4 at the start.",
        f"Its schedule in steps, t_i = {first}, Delta_T = {between}, t_f = {last} of {steps:,}, as steps of this run.",
        "alpha, weight decay and warm-up are those of its scripts; the schedule (linear) is lorank's.",
        "Its scripts set a dropout of the classifier (cls_dropout) too, at values that are not known here: the model's own is",
        "kept, and `model.classifier_dropout=0.1`, for example, sets one.",
        FULL_NOTE,
    ]
    return notes, {
        "model": "microsoft/deberta-v3-base",
        "method": "adalora",
        "preset": "paper",
        "budget": "rank=144",
        "baselines": BASELINES,
        "data": data_of(name),
        "metrics": TASKS[name].metrics,
        "scale": alpha / 4,
        "triplets": {"initial_rank": 4, "orthogonality": weight},
        "cut": {"begin": first, "interval": between, "end": steps - last},
        "train": {"epochs": epochs, "learning_rate": rate, "batch_size": 32, "warmup": warmup, "weight_decay": decay},
    }


def i_lora_xsum() -> tuple[list[str], dict[str, Any]]:
    """I-LoRA on BART-large and XSum."""
    notes = [
        "I-LoRA, BART-large on XSum: Table 7 (rates, epochs, batch), 0.06 % of the parameters, and a random 20 % of train and",
        "validation, drawn with a seed (0: the paper's is not known). Lengths and the 8 beams are those of AdaLoRA's script.",
        "Not in the paper: the initial rank (half of rank 1 is 0.066 %), alpha, schedule.",
        FULL_NOTE,
    ]
    data = {**XSUM, "test_split": "validation", "sample": {"train": 0.2, "test": 0.2, "seed": 0}}
    return notes, {
        "model": "facebook/bart-large",
        "method": "i-lora",
        "preset": "paper",
        "budget": "0.06%",
        "baselines": ["adalora", "full"],
        "data": data,
        "metrics": ["rouge1", "rouge2", "rougeL"],
        "triplets": {"initial_rank": 1},
        "search": {"learning_rate": 2e-4},
        "train": {"epochs": 50, "learning_rate": 4e-4, "batch_size": 24},
    }


def adalora_xsum() -> tuple[list[str], dict[str, Any]]:
    """AdaLoRA on BART-large and XSum: its 1.1 % row."""
    batch, epochs = 64, 25
    steps = epochs * math.ceil(XSUM_EXAMPLES / batch)
    notes = [
        "AdaLoRA, BART-large on XSum: an average rank of 8 over 192 matrices (its 1.1 %), 12 at the start, batch 64, 25 epochs.",
        f"Its schedule in steps, t_i = 6000, Delta_T = 100, t_f = 50000 of {steps:,}, as steps of this run.",
        "Of its script: alpha 32 at rank 12 (a scale of 32/12), 768 and 64 tokens, 8 beams, 3,000 steps of warm-up.",
        "Not known: weight decay. The schedule (linear) is lorank's.",
        FULL_NOTE,
    ]
    return notes, {
        "model": "facebook/bart-large",
        "method": "adalora",
        "preset": "paper",
        "budget": "rank=1536",
        "baselines": BASELINES,
        "data": {**XSUM, "test_split": "test"},
        "metrics": ["rouge1", "rouge2", "rougeL"],
        "scale": 32 / 12,
        "triplets": {"initial_rank": 12, "orthogonality": 0.1},
        "cut": {"begin": 6000, "interval": 100, "end": steps - 50000},
        "train": {"epochs": epochs, "learning_rate": 5e-4, "batch_size": batch, "warmup": 3000},
    }


def igu_lora_glue(name: str) -> tuple[list[str], dict[str, Any]]:
    """IGU-LoRA on RoBERTa-large: rank 2 at the start, 1 on average in the end."""
    rate = ADALORA[name][0]
    notes = [
        f"IGU-LoRA, RoBERTa-large on GLUE {name}: rank 2 at the start, 1 on average at the end, N = 20, cuts in epochs 2 to 5.",
        f"Not known of the paper: learning rate ({rate:g} is AdaLoRA's for this task), batch, epochs, alpha, beta1 and beta2.",
        "Its early stopping on the development set is left out: that set is reported. The paper has the median of five seeds.",
        FULL_NOTE,
    ]
    stage = {"epochs": 10, "learning_rate": rate, "batch_size": 32}
    return notes, {
        "model": "FacebookAI/roberta-large",
        "method": "igu-lora",
        "preset": "paper",
        "budget": "rank=144",
        "baselines": BASELINES,
        "data": data_of(name),
        "metrics": TASKS[name].metrics,
        "triplets": {"initial_rank": 2},
        "measure": {"intervals": 20},
        "cut": {"begin": 0.2, "end": 0.5, "interval": 0.02},
        "train": stage,
    }


def igu_lora_reasoning(name: str) -> tuple[list[str], dict[str, Any]]:
    """IGU-LoRA on Qwen2.5-0.5B: rank 32 at the start, 16 on average in the end (8.8M parameters)."""
    data, read, written_tokens = REASONING[name]
    notes = [
        f"IGU-LoRA, Qwen2.5-0.5B on {name}: rank 32 at the start, 16 on average in the end (8.8M parameters), N = 20, cuts from",
        "epoch 2 to 5 of 10, three beams. Not known of the paper: prompts and lengths (lorank's), learning rate and batch (of",
        "its code's one script, 2e-4 and 4 x 8), epochs, alpha, beta1 and beta2. The paper has the median of five seeds.",
        FULL_NOTE,
    ]
    stage = {"epochs": 10, "learning_rate": 2e-4, "batch_size": 4, "gradient_accumulation": 8}
    return notes, {
        "model": "Qwen/Qwen2.5-0.5B",
        "method": "igu-lora",
        "preset": "paper",
        "budget": "rank=2688",
        "baselines": BASELINES,
        "data": {**data, "max_length": read, "max_target_length": written_tokens, "beams": 3},
        "metrics": ["exact_match"],
        "precision": "bf16",
        "triplets": {"initial_rank": 32},
        "measure": {"intervals": 20},
        "cut": {"begin": 0.2, "end": 0.5, "interval": 0.02},
        "train": stage,
    }


def written() -> dict[Path, str]:
    """Every recipe's file and its text."""
    made = {f"i-lora/deberta-v3-base-{name}": i_lora(name) for name in TASKS}
    made |= {f"adalora/deberta-v3-base-{name}": adalora(name) for name in TASKS}
    made |= {f"igu-lora/roberta-large-{name}": igu_lora_glue(name) for name in TASKS}
    made |= {f"igu-lora/qwen2.5-0.5b-{name}": igu_lora_reasoning(name) for name in REASONING}
    made |= {"i-lora/bart-large-xsum": i_lora_xsum(), "adalora/bart-large-xsum": adalora_xsum()}
    found = {}
    for name, (notes, content) in made.items():
        content["checkpoint_every"] = 500  # those of full fine-tuning are three times the model
        head = "".join(f"# {line}\n" for line in notes)
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
        found[FOLDER / f"{name}.yaml"] = head + text
    return found


if __name__ == "__main__":
    for path, text in written().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
