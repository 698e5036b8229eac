"""`lorank inspect`: a model and the memory of a training, from the config alone."""

import re
from typing import Annotated, Any

import typer

from lorank.cli.options import Json, Plugin
from lorank.console import clear_errors, document, out, say

TASKS = {"classification": "SEQ_CLS", "seq2seq": "SEQ_2_SEQ_LM", "causal-lm": "CAUSAL_LM"}


def inspect_command(
    model: Annotated[str, typer.Argument(help="hub name or folder; only its config is read")],
    targets: Annotated[
        str | None, typer.Option(help='names, "query,value"; a regular expression for full names; or all-linear')
    ] = None,
    exclude_modules: Annotated[
        str | None, typer.Option(help='targets that are left out: names, "gate,lm_head", or a regular expression')
    ] = None,
    target_parameters: Annotated[
        str | None, typer.Option(help="fused experts that are targets too: all-experts, names, or a regular expression")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="classification, causal-lm or seq2seq; default: what the architecture is usually trained as"),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help='adapter parameters, "20M", "r=8", ...: also say what a training needs')
    ] = None,
    method: Annotated[str | None, typer.Option(help="a method of lorank; default: lora")] = None,
    preset: Annotated[str | None, typer.Option(help="of the method")] = None,
    initial_rank: Annotated[
        int | None, typer.Option(help="at the start; default: 8, or 1.5 times the mean rank of the budget")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="examples in a micro-batch of a device; default: 8")] = None,
    seq: Annotated[int | None, typer.Option(help="tokens of an example; default: 2048")] = None,
    target_seq: Annotated[
        int | None, typer.Option(help="tokens of an encoder-decoder's target; default: as --seq")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: the config's")] = None,
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit, by bitsandbytes")] = None,
    modules_to_save: Annotated[
        str | None, typer.Option(help='modules that train whole beside the adapters, "embed_tokens,lm_head"')
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd; default: adamw")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="keep the inputs of blocks alone")] = False,
    gpus: Annotated[int | None, typer.Option(help="devices; default: 1")] = None,
    shard: Annotated[str | None, typer.Option(help="none, fsdp or zero3: how the base is spread over devices")] = None,
    steps: Annotated[int | None, typer.Option(help="optimizer steps; default: 1000")] = None,
    epochs: Annotated[float | None, typer.Option(help="times through the data in these steps; default: 3")] = None,
    scoring_batch: Annotated[int | None, typer.Option(help="examples in a scored batch; default: as --batch")] = None,
    examples: Annotated[int | None, typer.Option(help="calibration examples; default: 256")] = None,
    json: Json = None,
    trust_remote_code: Annotated[bool, typer.Option(help="let the model's own code run")] = False,
    plugin: Plugin = None,
) -> None:
    """Show the adaptable modules of a model and what budgets mean; with --budget also memory and passes of a training."""
    asked: dict[str, Any] = {
        "budget": budget, "method": method, "preset": preset, "initial_rank": initial_rank, "batch": batch, "seq": seq,
        "target_seq": target_seq, "dtype": dtype, "quantization": quantization, "optimizer": optimizer, "gpus": gpus,
        "shard": shard, "steps": steps, "epochs": epochs, "scoring_batch": scoring_batch, "examples": examples,
        "gradient_checkpointing": gradient_checkpointing or None,
        "modules_to_save": modules_to_save and [name.strip() for name in modules_to_save.split(",")],
    }  # fmt: skip
    with clear_errors(), document(json) as write:
        _check(asked, task)
        chosen = (targets, exclude_modules, target_parameters)
        if budget is None:
            write(_show_model(model, chosen, task, trust_remote_code=trust_remote_code))
        else:
            write(_show_training(model, chosen, task, asked, trust_remote_code=trust_remote_code))


def _check(asked: dict[str, Any], task: str | None) -> None:
    """Refuse what cannot be, before torch is loaded; all of it at once.

    Raises:
        RecipeError: an unknown task, or options of a training without a budget.

    """
    from lorank.errors import RecipeError
    from lorank.findings import Findings

    findings = Findings()
    with findings.check():
        if task is not None and task not in TASKS:
            raise RecipeError(f"task {task!r} is unknown; allowed: {', '.join(TASKS)}")
    with findings.check():
        given = [f"--{key.replace('_', '-')}" for key, value in asked.items() if value is not None]
        if asked["budget"] is None and given:
            raise RecipeError(f"{', '.join(given)}: what a training needs depends on its budget; give --budget too")
    if asked["budget"] is not None:
        from lorank.memory.question import read_question

        with findings.check():
            read_question(asked)
    findings.raise_all()


def _loaded(model: str, task: str | None, *, trust_remote_code: bool) -> Any:
    from peft import TaskType

    from lorank.models.loading import load_without_weights

    kind = None if task is None else TaskType(TASKS[task])
    return load_without_weights(model, trust_remote_code=trust_remote_code, task_type=kind)


def _show_model(
    model: str, chosen: tuple[str | None, ...], task: str | None, *, trust_remote_code: bool
) -> dict[str, Any]:
    from lorank.models.base_size import base_parameters
    from lorank.report.tables import budget_table, target_table
    from lorank.targets import find_targets

    loaded = _loaded(model, task, trust_remote_code=trust_remote_code)
    found, size = find_targets(loaded, *map(_names_or_pattern, chosen)), base_parameters(loaded)
    counted = f"{size:,} parameters, heads and poolers not counted; a budget of 1% is {size // 100:,}"
    say(f"{model}: {type(loaded).__name__}, {counted}")
    out.print(target_table(found))
    out.print(budget_table(found, size))
    modules = [{"name": one.name, "d_in": one.d_in, "d_out": one.d_out, "unit_cost": one.unit_cost} for one in found]
    return {"model": model, "model_class": type(loaded).__name__, "base_parameters_count": size, "targets": modules}


def _show_training(
    model: str,
    chosen: tuple[str | None, ...],
    task: str | None,
    asked: dict[str, Any],
    *,
    trust_remote_code: bool,
) -> dict[str, Any]:
    from lorank.memory.inspection import inspect_model
    from lorank.memory.question import read_question
    from lorank.memory.tables import base_table, memory_table, parameter_table, pass_lines
    from lorank.targets import find_targets

    loaded = _loaded(model, task, trust_remote_code=trust_remote_code)
    found = inspect_model(loaded, find_targets(loaded, *map(_names_or_pattern, chosen)), read_question(asked))
    say(f"{model}: {found.model_class}, base in {found.question.quantization or found.dtype}")
    for table in (parameter_table(found), base_table(found), memory_table(found)):
        out.print(table)
    for line in pass_lines(found):
        say(line)
    return {"model": model, **found.to_json()}


def _names_or_pattern(targets: str | None) -> str | list[str] | None:
    """Names as a recipe's list has them: with a comma, or without any sign that makes it a regular expression."""
    if targets in (None, "all-linear", "all-experts") or not re.fullmatch(r"[\w.\-]+(\s*,\s*[\w.\-]+)*", targets):
        return targets
    return [name.strip() for name in targets.split(",")]
