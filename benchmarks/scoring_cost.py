"""What scoring before training costs, beside a bare forward pass, a LoRA step and PEFT's EVA initialisation.

usage: python benchmarks/scoring_cost.py [--shape minilm|110m|llama] [--dtype fp32|bf16] [--quantization 4bit|8bit]
       [--rounds 7] [--json FILE] (more: --help)

All run in this process over the same batches, turn and turn about in an order that rotates; every ratio is taken within the
round. `gram` and `eva` are compared with a forward pass without gradients, the others with the forward and backward pass of
a PEFT LoRA of rank 8 on the same layers (without its optimizer step). A call is `lorank.score` as a user makes it: resamples
and standard errors included. PEFT's EVA (`get_eva_state_dict`, rank 8, its own defaults) goes over the batches until its
directions stop turning; it is timed in the last round alone. Half of the examples are padded by a quarter. Random weights:
speed does not depend on them. Peak memory is that of a call, above what is held before it (profiler's count on a CPU).

Forward pass, LoRA and scores work on the same base: `llama` has 62M parameters of SmolLM2's width; with `--quantization`
bitsandbytes holds its linear layers in 4 (nf4) or 8 bits and computes in `--dtype`. `hutchinson` takes one probe of every
example, of one module after the other, `hutchinson-all` one of all modules together (`modules_at_once`). Both are left out
in bf16, where lorank refuses them: second derivatives are noise there.

On a CPU with one thread (OMP_NUM_THREADS=1) times are those that this process computed, which other work on the machine
disturbs less; else they are those of the clock.
"""

import argparse
import copy
import json
import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.eva import get_eva_state_dict
from step_overhead import SHAPES, clock, clock_name, lora, peak_bytes, synchronize
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import lorank
from lorank.models.base_dtype import DTYPES
from lorank.models.pretrained import Pretrained
from lorank.models.quantization import quantization_config
from lorank.scoring.precision import exact_4_bit
from lorank.targets import find_targets

LLAMA = {
    "hidden_size": 576, "num_hidden_layers": 15, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    "vocab_size": 8192,
}  # fmt: skip
COMPARED = {
    "gram": "forward",
    "lorank eva": "forward",
    "fisher": "LoRA",
    "kfac": "LoRA",
    "gradient": "LoRA",
    "hutchinson": "LoRA",
    "hutchinson-all": "LoRA",
}


SCORES: dict[str, Callable[..., object]] = {
    **{name: partial(lorank.score, estimator=name) for name in ("gram", "fisher", "kfac", "hutchinson")},
    "hutchinson-all": partial(lorank.score, estimator="hutchinson", modules_at_once="all"),
    "gradient": partial(lorank.score, method="gradient"),
    "lorank eva": partial(lorank.score, method="eva", components=16),
}


def make_model(shape: str) -> PreTrainedModel:
    """A model of that shape with random weights; SmolLM2's width for `llama`."""
    if shape == "llama":
        return LlamaForCausalLM(LlamaConfig(**LLAMA))
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**SHAPES[shape], **quiet))


def loaded_as(model: PreTrainedModel, dtype: str, quantization: str | None, device: str) -> PreTrainedModel:
    """The model as `from_pretrained` would load it from a checkpoint in fp32."""
    if quantization is None:
        return model.to(device=device, dtype=DTYPES[dtype])
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        base = Pretrained(folder, dtype=dtype, quantization=quantization)
        config = quantization_config(base, DTYPES[dtype], ())
        return type(model).from_pretrained(
            folder, dtype=DTYPES[dtype], quantization_config=config, device_map={"": device}
        )


def make_batches(shape: str, examples: int, size: int, length: int, device: str) -> list[dict[str, torch.Tensor]]:
    batches = []
    for _ in range(0, examples, size):
        ids = torch.randint(5, 1000, (size, length), device=device)
        mask = torch.ones_like(ids)
        mask[: size // 2, 3 * length // 4 :] = 0
        labels = torch.where(mask.bool(), ids, -100) if shape == "llama" else torch.arange(size, device=device) % 2
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def timed(call: Callable[[], object]) -> float:
    synchronize()
    began = clock()
    call()
    synchronize()
    return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "llama"], default="minilm")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--quantization", choices=("4bit", "8bit"))
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=SCORES, default=[*SCORES], help="these scores, and no PEFT EVA")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = loaded_as(make_model(arguments.shape), arguments.dtype, arguments.quantization, device).eval()
    everything = len(arguments.only) == len(SCORES)
    second = [name for name in arguments.only if "hutchinson" in name]
    if arguments.dtype == "bf16" and second:
        print(f"{', '.join(second)}: left out, lorank refuses second derivatives in bf16")
        arguments.only = [name for name in arguments.only if name not in second]
    targets = [target.name for target in find_targets(model)]
    batches = make_batches(arguments.shape, arguments.examples, arguments.batch, arguments.length, device)
    unlabelled = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    trained = lora(model, targets, 8, device).train()
    bare = copy.deepcopy(model)

    def forward() -> None:
        # In 4 bits with the kernels that lorank takes, see there.
        with torch.no_grad(), exact_4_bit(bare):
            for batch in batches:
                bare(**batch)

    def lora_steps() -> None:
        for batch in batches:
            trained(**batch).loss.backward()
            trained.zero_grad()

    def peft_eva() -> None:
        # rho 1: no more directions than the rank; tau and everything else as PEFT has it.
        config = LoraConfig(r=8, init_lora_weights="eva", target_modules=targets)
        get_eva_state_dict(bare, unlabelled, config, show_progress_bar=False)

    calls: dict[str, Callable[[], object]] = {"forward": forward, "LoRA": lora_steps}
    calls |= {name: partial(score, model, batches) for name, score in SCORES.items() if name in arguments.only}

    names = list(calls)
    for name in names:
        calls[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(timed(calls[name]))
    if everything:
        times["PEFT EVA"] = [timed(peft_eva)]
    one: dict[str, Callable[[], object]] = {"LoRA": lambda: trained(**batches[0]).loss.backward()}
    beside = ("gram", *(name for name, base in COMPARED.items() if base == "LoRA"))
    one |= {name: partial(SCORES[name], model, batches[:1]) for name in beside if name in arguments.only}
    peaks = {name: peak_bytes(call) for name, call in one.items()}

    found: dict[str, Any] = {}
    for name, seconds in times.items():
        found[name] = {"seconds": round(statistics.median(seconds), 3)}
        if (base := COMPARED.get(name)) is not None:
            ratios = [a / b for a, b in zip(seconds, times[base], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            found[name] |= {"to": base, "ratio": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
        if name in peaks:
            found[name] |= {
                "peak_mib": round(peaks[name] / 2**20, 1),
                "peak_to_LoRA": round(peaks[name] / peaks["LoRA"], 3),
            }
    machine = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    settings: dict[str, Any] = {key: value for key, value in vars(arguments).items() if key != "json"}
    parameters = sum(p.numel() for p in make_model(arguments.shape).parameters())
    settings |= {"base_parameters": parameters, "modules": len(targets), "seconds": clock_name()}
    report = {"settings": settings, "machine": machine, "torch": torch.__version__, "results": found}
    for name, values in found.items():
        ratio = (
            f"{values['ratio']:.2f} x {values['to']} ({values['quartiles'][0]:.2f}, {values['quartiles'][1]:.2f})"
            if "to" in values
            else ""
        )
        peak = f"peak {values['peak_mib']:.1f} MiB, {values['peak_to_LoRA']:.2f} x LoRA" if "peak_mib" in values else ""
        print(f"{name:<12} {values['seconds']:>8.2f} s  {ratio:<38} {peak}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
