"""Time of one optimizer step of stage 1 (triplets and regulariser, no scoring pass) over one of a PEFT LoRA of equal rank.

usage: python benchmarks/stage1_step.py [--model FOLDER] [--rank 8] [--batch 32] [--length 64] [--pairs 30] [--json FILE]

Both run in this process, turn and turn about: a pair is one step of each on the same batch, in alternating order, and the
ratio is taken within the pair, so that a machine that is busy for a while slows both. Printed: median of the pairs'
ratios with the quartiles. Without --model a random BERT of MiniLM's shape (6 layers x 384) is made: speed does not
depend on the weights.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from lorank.adapter.orthogonality import add_orthogonality_gradient
from lorank.adapter.triplet import TripletAdapter, triplet_config
from lorank.targets import find_targets


def base_model(folder: str | None) -> nn.Module:
    if folder is not None:
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**shape, **quiet))


class Stepper:
    """One optimizer step on a batch, as Trainer does it: forward, backward, clip, AdamW."""

    def __init__(self, model: PeftModel, regularised: TripletAdapter | None) -> None:
        self.model, self.regularised = model.train(), regularised
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)

    def __call__(self, batch: dict[str, torch.Tensor]) -> float:
        """Seconds of one step."""
        synchronize()
        began = time.perf_counter()
        loss = self.model(**batch).loss
        loss.backward()
        if self.regularised is not None:
            add_orthogonality_gradient(self.regularised, 0.1)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize()
        return time.perf_counter() - began


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = base_model(arguments.model)
    targets = [target.name for target in find_targets(base)]

    def config() -> LoraConfig:
        return LoraConfig(
            r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=targets, task_type=TaskType.SEQ_CLS
        )

    lora = Stepper(get_peft_model(copy.deepcopy(base), config()).to(device), None)
    triplets = get_peft_model(base, triplet_config(config())).to(device)
    ours = Stepper(triplets, TripletAdapter.of(triplets))

    shape = (arguments.batch, arguments.length)
    batch = {
        "input_ids": torch.randint(0, 1000, shape, device=device),
        "attention_mask": torch.ones(shape, dtype=torch.long, device=device),
        "labels": torch.arange(arguments.batch, device=device) % 2,
    }
    for _ in range(3):
        lora(batch)
        ours(batch)
    pairs = []
    for pair in range(arguments.pairs):
        if pair % 2:
            mine, theirs = ours(batch), lora(batch)
        else:
            theirs, mine = lora(batch), ours(batch)
        pairs.append((mine, theirs))
    low, middle, high = statistics.quantiles((mine / theirs for mine, theirs in pairs), n=4)
    found = {
        "ratio_median": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "stage1_ms": round(1000 * statistics.median(mine for mine, _ in pairs), 2),
        "peft_lora_ms": round(1000 * statistics.median(theirs for _, theirs in pairs), 2),
        "modules": len(targets),
        "rank": arguments.rank,
        "batch": list(shape),
        "pairs": arguments.pairs,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for key, value in found.items():
        print(f"{key:<16}{value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
