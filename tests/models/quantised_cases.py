"""What each of two processes does in `test_quantization.py`: a base in 4 bits that FSDP2 shards keeps its bits, or is refused.

From a checkpoint in FOLDER. `copy_as_on_cuda` stands for what a GPU does to them.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from tests.in_training.fsdp_on_cpu import copy_as_on_cuda, shard_on_cpu
from tests.scoring.split.two_processes import refused
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

import lorank
from lorank import AllocationLoop, RankAllocation
from lorank.errors import TargetError, TrainingError
from lorank.in_training import sharded_base
from lorank.processes import leave_processes

IDS = torch.stack([(torch.arange(12) * (1 + k % 5) + k) % 32 for k in range(16)])
BATCH = {"input_ids": IDS, "labels": IDS}
CUTS = {"estimator": "training-pass", "every": 1, "begin": 0.2, "end": 0.6, "interval": 0.1}


def base(folder: Path, storage: torch.dtype, dtype: torch.dtype = torch.bfloat16) -> Any:
    """In bf16 all that FSDP gathers at a time is of one dtype, unless `storage` is another; else it gathers bytes."""
    options: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=storage, **options)
    return LlamaForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=quantised, device_map={"": torch.device("cpu")}
    )


def adapted(folder: Path, storage: torch.dtype) -> Any:
    set_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    return get_peft_model(base(folder, storage), lora)


def by_hand(model: Any, **options: Any) -> Any:
    """All but what trains; a mixed precision is nowhere, unless it is given."""
    mesh, whole = init_device_mesh("cpu", (2,)), {p for p in model.parameters() if p.requires_grad}
    for layer in [module for module in model.modules() if type(module).__name__ == "LlamaDecoderLayer"]:
        fully_shard(layer, mesh=mesh, ignored_params=whole or None, **options)
    return fully_shard(model, mesh=mesh, ignored_params=whole or None, **options)


def packed(model: nn.Module) -> list[Any]:
    return [module.weight for module in model.modules() if hasattr(module, "quant_state")]


def trained(folder: Path, storage: torch.dtype) -> dict[str, torch.Tensor]:
    """The adapter after some steps with cuts, in a Trainer whose 4-bit weights are in shards."""
    layers = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        bf16=True,  # accelerate would have FSDP cast weights to it
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        fsdp=True,
        fsdp_config={"version": 2, **layers},
    )
    rows = [{"input_ids": ids, "labels": ids} for ids in IDS]
    trainer = Trainer(model=adapted(folder, storage), args=arguments, train_dataset=rows)  # type: ignore[arg-type]
    RankAllocation("igu-lora", "r=2", **CUTS).attach(trainer)
    trainer.train()
    weights = packed(trainer.model)
    assert weights
    assert all(isinstance(weight, DTensor) and weight.dtype == torch.float32 for weight in weights), weights
    return get_peft_model_state_dict(trainer.model, dict(trainer.model.named_parameters()))  # type: ignore[union-attr]


def one_step(folder: Path, storage: torch.dtype = torch.bfloat16, **options: Any) -> None:
    """An own loop, in which lorank has no say in how the base is sharded."""
    model = by_hand(adapted(folder, storage), **options)
    allocation = AllocationLoop(model, "igu-lora", "r=2", steps=6, **CUTS)
    model(**BATCH).loss.backward()
    allocation.after_backward()
    allocation.before_step()


def scored(model: Any, method: str) -> dict[str, Any]:
    return lorank.score(model, None if method == "magnitude" else [BATCH], method=method).scores  # type: ignore[return-value]


def main(folder: Path) -> None:
    shard_on_cpu()
    plain = {method: scored(base(folder, torch.uint8), method) for method in ("magnitude", "gradient")}
    for method, expected in plain.items():  # read in shards, and in what is gathered of them
        found = scored(by_hand(base(folder, torch.bfloat16)), method)
        for name, scores in expected.items():
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(scores), rtol=1e-6, atol=0)
    one_step(folder)  # this CPU copies as it is
    before = {storage: trained(folder, storage) for storage in (torch.uint8, torch.bfloat16)}
    copy_as_on_cuda()
    after = trained(folder, torch.bfloat16)
    for adapter in (*before.values(), after):
        assert adapter.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in adapter.items())
    said = "with other bits than it sharded"
    # On bytes that are half as many bitsandbytes fails in the first pass; lorank is before it.
    rounded = {"storage": torch.float32, "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}
    refused(TrainingError, said, lambda: one_step(folder, **rounded))
    refused(TrainingError, said, lambda: one_step(folder))
    refused(TargetError, said, lambda: scored(by_hand(base(folder, torch.bfloat16)), "gradient"))
    scored(by_hand(base(folder, torch.float32)), "gradient")
    sharded_base.hold_for_sharding = lambda model, plugin: []  # type: ignore[assignment]
    refused(TrainingError, said, lambda: trained(folder, torch.bfloat16))
    (folder / f"process {distributed.get_rank()} is done").touch()


if __name__ == "__main__":
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"  # older transformers take it from here alone
    distributed.init_process_group("gloo")
    main(Path(sys.argv[1]))
    leave_processes()
