"""Does a scorer find the layer whose experts a teacher has changed?

usage: python benchmarks/planted_experts.py

A random Mixtral of 4 blocks is the student. Its teacher is the same model with a change of rank 1 in each expert (or in one) of
a single block, `experts.down_proj`, and labels 24 texts of 12 random tokens. The student is scored by these labels, and the
parameters of experts, which all cost the same, share a budget. Counted over blocks and seeds is

- highest: the changed block has the highest score of all; and which blocks ever had it;
- more than elsewhere: the changed block gets more rank than on average where another block was changed;
- against its own answers: scores are divided by those for labels of the student's own, and the changed block is the highest.
"""

import copy
import warnings
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM, set_seed

import lorank

BLOCKS, SEEDS, SIZE = 4, 8, 16
SCORERS: dict[str, dict[str, Any]] = {
    "gradient": {"method": "gradient"},
    "fisher": {"method": "sensitivity-lora", "preset": "paper", "topk_weight": 0.0, "effective_rank_weight": 0.0},
}


def name_of(block: int) -> str:
    return f"model.layers.{block}.mlp.experts.down_proj"


def student(seed: int) -> Any:
    set_seed(seed)
    config = MixtralConfig(
        vocab_size=32, hidden_size=SIZE, intermediate_size=SIZE, num_hidden_layers=BLOCKS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_local_experts=4, num_experts_per_tok=1, initializer_range=0.25,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def labelled(model: Any, ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Each next token is the one that the model thinks most likely."""
    with torch.no_grad():
        answers = model(input_ids=ids).logits.argmax(-1)
    labels = torch.full_like(ids, -100)
    labels[:, 1:] = answers[:, :-1]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}]


def changed(base: Any, block: int, experts: list[int], seed: int) -> Any:
    teacher = copy.deepcopy(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for expert in experts:
            teacher.get_parameter(name_of(block))[expert] += 4 * torch.outer(torch.randn(SIZE), torch.randn(SIZE))
    return teacher


def main() -> None:
    for scorer, options in SCORERS.items():
        for experts in ([2], [0, 1, 2, 3]):
            highest = more = against = 0
            ever = set[int]()
            for seed in range(SEEDS):
                base = student(seed)
                ids = torch.randint(0, 32, (24, 12))

                def scored(model: Any, base: Any = base, ids: torch.Tensor = ids, options: Any = options) -> Any:
                    parameters = ["experts.down_proj"]
                    return lorank.score(base, labelled(model, ids), targets=[], target_parameters=parameters, **options)

                own = scored(base)
                found = [scored(changed(base, block, experts, seed + 10)) for block in range(BLOCKS)]
                plans = [lorank.allocate(one, "r=6", max_rank=SIZE) for one in found]
                for block, one in enumerate(found):
                    name, values = name_of(block), {key: float(value[0]) for key, value in one.scores.items()}
                    ratios = {key: value / float(own.scores[key][0]) for key, value in values.items()}
                    elsewhere = [plan.ranks[name] for number, plan in enumerate(plans) if number != block]
                    first = max(range(BLOCKS), key=lambda number: values[name_of(number)])
                    highest, ever = highest + (first == block), ever | {first}
                    more += plans[block].ranks[name] > sum(elsewhere) / len(elsewhere)
                    against += max(ratios, key=lambda key: ratios[key]) == name
            of = f"of {SEEDS * BLOCKS}"
            counts = f"highest {highest} {of} (blocks {sorted(ever)}), more than elsewhere {more} {of}"
            print(f"{scorer}, {len(experts)} of 4 experts changed: {counts}, against its own answers {against} {of}")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
