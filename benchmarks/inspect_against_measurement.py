"""What `lorank inspect` says of a training, and what the training then holds and does.

usage: python benchmarks/inspect_against_measurement.py [--models smollm2-135m bert-base t5-base] [--method igu-lora]
       [--batch 1] [--seq 128] [--steps 20] [--dtype fp32] [--json FILE]

Random weights of real shapes: neither bytes nor passes depend on them. Each model is trained for a few steps by transformers'
Trainer with lorank's callback, on random tokens. Measured are bytes of parameters and buffers of the base, of the adapter, its
gradients and the optimizer's state after the first step, the largest state of the smoother, the storages that autograd saves
in the first forward pass (weights left out), and calls of the model. Dropout of the base is 0: with dropout in the attention
PyTorch has no fused kernel on a CPU.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    BertConfig,
    LlamaConfig,
    T5Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from lorank import RankAllocation
from lorank.engine.smoother import Smoother
from lorank.memory.inspection import inspect_model
from lorank.memory.question import read_question
from lorank.models.loading import load_without_weights
from lorank.targets import find_targets

SHAPES: dict[str, Any] = {
    "smollm2-135m": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True, pad_token_id=0,
    ),
    "bert-base": BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "t5-base": T5Config(
        d_model=768, d_ff=3072, num_layers=12, num_heads=12, d_kv=64, vocab_size=32128, dropout_rate=0.0,
        decoder_start_token_id=0,
    ),
}  # fmt: skip
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def size_of(tensors: Any) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class FirstStep(TrainerCallback):
    """Looks at the optimizer before and after its first step."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        """Gradients are there."""
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.found.setdefault("trained_bytes", size_of(trained))
        self.found.setdefault("gradient_bytes", size_of([p.grad for p in trained if p.grad is not None]))

    def on_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        """The state is there."""
        held = optimizer.state.values()
        self.found.setdefault("optimizer_state_bytes", size_of([t for state in held for t in state.values()]))


class FirstForward:
    """Counts calls of a model, and what autograd saves in the first one."""

    def __init__(self, model: Any) -> None:
        self.calls, self.saved = 0, 0
        self._known = {t.untyped_storage()._cdata: t for t in (*model.parameters(), *model.buffers())}
        self._hooks: Any = None
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)

    def _before(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == 1:
            self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
            self._hooks.__enter__()

    def _after(self, *_: Any) -> None:
        if self.calls == 1:
            self._hooks.__exit__(None, None, None)
            self._known = {}

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = tensor
            self.saved += storage.nbytes()
        return tensor


def measured(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Predict, train, and put both side by side."""
    SHAPES[name].save_pretrained(folder)
    began = time.process_time()
    meta = load_without_weights(str(folder))
    targets = find_targets(meta)
    question = read_question(
        {
            "budget": "r=4", "method": arguments.method, "initial_rank": 8, "batch": arguments.batch, "seq": arguments.seq,
            "dtype": arguments.dtype, "steps": arguments.steps, "epochs": 1,
        }
    )  # fmt: skip
    found = inspect_model(meta, targets, question)
    seconds = time.process_time() - began
    said = found.to_json()

    set_seed(0)
    kind: Any = type(load_without_weights(str(folder)))
    base = kind(kind.config_class.from_pretrained(folder)).to(KINDS[arguments.dtype])
    base_bytes = size_of((*base.parameters(), *base.buffers()))
    classifier = name == "bert-base"
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=[target.name for target in targets],
        task_type=TaskType.SEQ_CLS if classifier else None,
    )
    model = get_peft_model(base, config)
    rows = arguments.batch * arguments.steps
    ids = torch.randint(5, 1000, (rows, arguments.seq), generator=torch.Generator().manual_seed(0))
    labels: Any = (ids[:, 0] % 2).tolist() if classifier else ids.tolist()
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels})
    options = TrainingArguments(
        str(folder / "run"), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch, learning_rate=1e-3,
        use_cpu=not torch.cuda.is_available(), report_to="none", disable_tqdm=True, save_strategy="no", optim="adamw_torch",
    )  # fmt: skip
    allocation, step = RankAllocation(arguments.method, "r=4"), FirstStep()
    trainer = Trainer(model, options, train_dataset=data, callbacks=[step])
    allocation.attach(trainer)
    held = watch_smoothers()
    forward = FirstForward(base)
    trainer.train()
    # The head of a classifier and the adapter train together.
    pairs = {
        "base_bytes": (said["base_bytes_by_dtype"][f"{arguments.dtype}_bytes"], base_bytes),
        "trained_bytes": (said["initial_adapter_bytes"] + said["head_copy_bytes"], step.found["trained_bytes"]),
        "gradient_bytes": (said["gradient_bytes"], step.found["gradient_bytes"]),
        "optimizer_state_bytes": (said["optimizer_state_bytes"], step.found["optimizer_state_bytes"]),
        "score_state_bytes": (said["score_state_bytes"], held[0]),
        "saved_tensors_bytes": (said["saved_tensors_bytes"], forward.saved),
        "forward_passes_count": (
            arguments.steps + said["scoring_passes_count"] + said["forward_only_passes_count"], forward.calls
        ),
    }  # fmt: skip
    both = {
        key: {"predicted": p, "measured": m, "ratio": round(p / m, 4) if m else None} for key, (p, m) in pairs.items()
    }
    parameters = sum(said["parameters_by_kind"][kind]["parameters_count"] for kind in said["parameters_by_kind"])
    return {
        "model_class": found.model_class,
        "parameters": parameters,
        "inspect_cpu_seconds": round(seconds, 2),
        **both,
    }


def watch_smoothers() -> list[int]:
    """The largest state of any smoother from here on, as the only entry of a list."""
    held = [0]
    for kind in Smoother.__subclasses__():
        add = kind.add

        def and_look(self: Any, tensors: Any, add: Any = add) -> None:
            add(self, tensors)
            held[0] = max(held[0], self.state_bytes)

        kind.add = and_look  # type: ignore[method-assign, assignment]
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--method", choices=("igu-lora", "adalora"), default="igu-lora")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", choices=KINDS, default="fp32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measured(name, arguments, Path(folder))
        print(name, json.dumps(results[name], indent=2))
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"results": results, **settings, "device": device, **versions}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
