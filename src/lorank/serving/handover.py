"""A plan in the words of the tools that people already train with, and as an adapter directory that they continue."""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from lorank.artefact import check_new_folder, check_unwritten, new_folder, write_text
from lorank.errors import PlanError
from lorank.lora_options import exactly, whole
from lorank.models.task_model import experts_patterns_are_known
from lorank.plan import RankPlan
from lorank.serving.base.built import without_weights
from lorank.serving.names import choose

SEED_ADAPTER = "seed-adapter"


def seed_adapter(
    plan: RankPlan,
    output: str | Path,
    model: str,
    *,
    task_type: str = "CAUSAL_LM",
    num_labels: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Path:
    """Write a fresh adapter with the plan's ranks: `B = 0`, A as PEFT starts it. Any tool that continues a LoRA trains it.

    Only the base model's config is read. PEFT itself makes and saves the adapter.

    Args:
        plan: the ranks.
        output: a new folder.
        model: hub name or folder of the base model.
        task_type: PEFT's task type, which says what the model's modules are called.
        num_labels: width of the head, for tasks that have one; None: as the model's config says.
        seed: of A, and of the head.
        trust_remote_code: let the model's own code run.

    Raises:
        OutputError: `output` is there already.
        PlanError: a plan for another model.
        AdapterError: the model's config cannot be read.

    """
    output = Path(output)
    check_new_folder(output)
    base = without_weights(model, task_type, num_labels=num_labels, trust_remote_code=trust_remote_code)
    plan.check_model(base)
    config = plan.lora_config(task_type=task_type, base_model_name_or_path=model)
    with experts_patterns_are_known():
        adapted: Any = get_peft_model(base, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _start(adapted, base)
    with new_folder(output) as folder:
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form
        plan.save(folder / "plan.json")
    return output


def _start(adapted: nn.Module, base: Any) -> None:
    """Give adapters, and a head that is trained beside them, values in place of the meta device's nothing."""
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            for held in (layer.lora_A, layer.lora_B):
                held["default"].to_empty(device="cpu")
            layer.reset_lora_parameters("default", True)
        elif isinstance(layer, ModulesToSaveWrapper):
            layer.modules_to_save["default"].to_empty(device="cpu").apply(base._init_weights)


def for_peft(plan: RankPlan, model: str, seed: Path | None) -> str:
    """Python: the LoraConfig of the plan."""
    return _python("from peft import LoraConfig, get_peft_model", "config = LoraConfig", _fields(plan)) + (
        "model = get_peft_model(model, config)\n"
    )


def for_axolotl(plan: RankPlan, model: str, seed: Path | None) -> str:
    """YAML for axolotl, whose patterns take whole numbers above 0 only.

    Raises:
        PlanError: an alpha that is not a whole number above 0.

    """
    fields = _fields(plan)
    for alpha in (fields["lora_alpha"], *fields["alpha_pattern"].values()):
        if not isinstance(alpha, int) or alpha < 1:
            raise PlanError(
                f"alpha {alpha:g} is not a whole number above 0, which axolotl needs; allocate with a whole --scale, or export "
                "--to seed-adapter and give it to axolotl as lora_model_dir"
            )
    content = {
        "base_model": model,
        "adapter": "lora",
        "lora_r": fields["r"],
        "lora_alpha": fields["lora_alpha"],
        "lora_dropout": 0.0,
        "lora_target_modules": fields["target_modules"],
        "lora_rank_pattern": fields["rank_pattern"],
        "lora_alpha_pattern": fields["alpha_pattern"],
    }
    return yaml.safe_dump(content, sort_keys=False)


def for_llama_factory(plan: RankPlan, model: str, seed: Path | None) -> str:
    """YAML for LLaMA-Factory, which has no patterns and continues the seed adapter."""
    content = {
        "model_name_or_path": model,
        "finetuning_type": "lora",
        "adapter_name_or_path": str(seed),
        "create_new_adapter": False,
    }
    return yaml.safe_dump(content, sort_keys=False)


def for_ms_swift(plan: RankPlan, model: str, seed: Path | None) -> str:
    """A command for ms-swift, which has no patterns and continues the seed adapter."""
    return (
        f"swift sft --model {shlex.quote(model)} --tuner_type lora --adapters {shlex.quote(str(seed))}"
        "  # and your data set and training arguments\n"
    )


def for_unsloth(plan: RankPlan, model: str, seed: Path | None) -> str:
    """Python for unsloth, which passes patterns, and a regular expression in place of target modules, on to PEFT."""
    fields = _fields(plan)
    # Of short names unsloth would make every layer's; a text it passes on to PEFT, which matches full names by it.
    fields["target_modules"] = "|".join(re.escape(name) for name in fields["target_modules"])
    return _python("from unsloth import FastLanguageModel", "model = FastLanguageModel.get_peft_model", fields, "model")


def hand_over(
    plan: RankPlan,
    to: str,
    output: str | Path | None = None,
    model: str | None = None,
    *,
    task_type: str = "CAUSAL_LM",
    num_labels: int | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> tuple[str, Path | None]:
    """A plan for another tool: its configuration, and a seed adapter where the tool has no patterns of its own.

    Args:
        plan: the ranks.
        to: a name out of `TOOLS`, or "seed-adapter".
        output: folder of the seed adapter (None: "seed-adapter"); for tools that need none, the file to write.
        model: hub name or folder of the base model; None: the one that the plan was made for.
        task_type: of the seed adapter.
        num_labels: of the seed adapter's head.
        trust_remote_code: let the model's own code run.
        overwrite: replace a snippet's file that is there already; a seed adapter's folder is never replaced.

    Returns:
        The configuration (empty for "seed-adapter"), and the folder of the seed adapter or None.

    Raises:
        AdapterError: an unknown tool.
        PlanError: no model named, or a plan that the tool cannot take.
        OutputError: a snippet's file is there already and holds something else.
        LorankError: as `seed_adapter`.

    """
    to = choose("tool", to, (*TOOLS, SEED_ADAPTER))
    name = model or plan.provenance.get("model")
    if not name:
        raise PlanError("the plan does not say which model it is for; give --model")
    if plan.experts and to in _WITHOUT_EXPERTS:
        raise PlanError(
            f"the plan has ranks for parameters of experts ({next(iter(plan.experts))!r}), which is not known to reach PEFT "
            f"through {to}'s settings; export --to peft or --to seed-adapter"
        )
    words, seeded = TOOLS.get(to, (None, True))
    folder = Path(output or SEED_ADAPTER) if seeded else None
    text = words(plan, str(name), folder) if words else ""
    if folder is None and output is not None:
        same = Path(output).is_file() and Path(output).read_bytes() == text.encode()
        check_unwritten(Path(output), same=same, overwrite=overwrite)
    if folder is not None:
        options: dict[str, Any] = {
            "task_type": task_type,
            "num_labels": num_labels,
            "trust_remote_code": trust_remote_code,
        }
        seed_adapter(plan, folder, str(name), **options)
    elif output is not None:
        write_text(Path(output), text)
    return text, folder


# Tool -> the words, and whether it needs a seed adapter.
TOOLS: Mapping[str, tuple[Callable[[RankPlan, str, Path | None], str], bool]] = {
    "peft": (for_peft, False),
    "axolotl": (for_axolotl, False),
    "llama-factory": (for_llama_factory, True),
    "ms-swift": (for_ms_swift, True),
    "unsloth": (for_unsloth, False),
}


_WITHOUT_EXPERTS = ("axolotl", "unsloth")


def _fields(plan: RankPlan) -> dict[str, Any]:
    """The fields of the plan's LoraConfig that are not PEFT's defaults, in a fixed order."""
    config = plan.lora_config()
    adapted = [name for name, rank in plan.ranks.items() if rank]
    experts = [name for name in adapted if name in plan.experts]
    return {
        "r": config.r,
        "lora_alpha": whole(config.lora_alpha),
        "target_modules": [name for name in adapted if name not in experts],
        **({"target_parameters": experts} if experts else {}),
        "rank_pattern": {exactly(name): config.rank_pattern[exactly(name)] for name in adapted},
        "alpha_pattern": {exactly(name): config.alpha_pattern[exactly(name)] for name in adapted},
    }


def _python(imports: str, call: str, fields: Mapping[str, Any], *positional: str) -> str:
    lines = [imports, "", f"{call}(", *(f"    {name}," for name in positional)]
    for name, value in fields.items():
        if isinstance(value, dict):
            lines += [f"    {name}={{", *(f"        {key!r}: {item!r}," for key, item in value.items()), "    },"]
        elif isinstance(value, list):
            lines += [f"    {name}=[", *(f"        {item!r}," for item in value), "    ],"]
        else:
            lines.append(f"    {name}={value!r},")
    return "\n".join([*lines, ")", ""])
