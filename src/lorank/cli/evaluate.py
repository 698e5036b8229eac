"""`lorank evaluate`: tasks of lm-eval, loss and metrics on own data, samples to look at."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorank.cli.options import Json, read_data
from lorank.console import clear_errors, document, out, progress, say


def evaluate_command(
    model: Annotated[str, typer.Argument(help="folder of a PEFT adapter, or a model: folder or hub name")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the recipe")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="tasks of lm-eval with commas: names, patterns (mmlu_*), or YAML files of your own"),
    ] = None,
    task_files: Annotated[
        Path | None, typer.Option(help="folder with YAML task files of your own, as lm-eval's --include_path")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="examples in front of each question; default: the task's")
    ] = None,
    apply_chat_template: Annotated[bool, typer.Option(help="put the tasks' prompts into the chat template")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="examples: csv, tsv, json, jsonl, parquet; or a recipe, whose test parts are evaluated"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="of a data file, as data.task of a recipe; default: labels, or by the columns")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help='column of the text in a data file, or two: "one,two"; default: text')
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="column of the label, or of the text to be written, in a data file; default: label"),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="of a data file: longer texts or prompts are cut, in tokens; default: the task's")
    ] = None,
    generate: Annotated[
        bool, typer.Option(help="also write an answer for each row, for the metrics of the task (exact match, ROUGE)")
    ] = False,
    samples: Annotated[int, typer.Option(help="prompts of the data for which to show what is written")] = 0,
    sample_tokens: Annotated[int, typer.Option(help="most tokens that are written for a sample")] = 64,
    with_base: Annotated[bool, typer.Option(help="also evaluate the base model, without the adapter")] = False,
    limit: Annotated[
        float | None, typer.Option(help="evaluate the first examples only: a number, or a share below 1")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="examples side by side")] = 8,
    seed: Annotated[
        int | None, typer.Option(help="of few-shot examples and of the choice of samples; default: lm-eval's own seeds")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="base model, hub name or folder; default: the one that the adapter names")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16, of the base model; default: the checkpoint's")
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit, of the base model, by bitsandbytes")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="let the model's own code run")] = False,
    output: Annotated[
        Path | None, typer.Option(help="new folder for all numbers, the loss of each example, samples and predictions")
    ] = None,
    json: Json = None,
) -> None:
    """Evaluate an adapter or a model: tasks of lm-eval, loss and perplexity on your data, samples of what it writes."""
    with clear_errors(), document(json, checked=True) as write:
        loading: dict[str, Any] = {
            "name": base, "dtype": dtype, "quantization": quantization, "trust_remote_code": trust_remote_code or None
        }  # fmt: skip
        loading = {key: value for key, value in loading.items() if value is not None}
        is_recipe = data is not None and data.suffix.lower() in (".yaml", ".yml")
        changes = [f"model.{key}={value}" for key, value in loading.items()] if is_recipe else []
        read = read_data(data, [*changes, *(overrides or ())], text=text, label=label, task=task, max_length=max_length)
        from lorank.evaluation.question import Question, check_question
        from lorank.models.pretrained import Pretrained

        question = Question(
            model=model,
            base=Pretrained(**{"name": "", **loading}),
            tasks=tuple(name.strip() for name in (tasks or "").split(",") if name.strip()),
            task_files=task_files,
            fewshot=num_fewshot,
            chat_template=apply_chat_template,
            data=read,
            generate=generate,
            samples=samples,
            sample_tokens=sample_tokens,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            with_base=with_base,
        )
        check_question(question, output, json)  # before torch is loaded
        from lorank.evaluation.run_evaluation import run_evaluation

        found = run_evaluation(question, output, progress)
        _show(found, output)
        write(found)


def _show(found: dict[str, Any], output: Path | None) -> None:
    from lorank.evaluation.samples import sample_lines
    from lorank.evaluation.tables import data_table, task_table

    first = next(iter(found["results"].values()))
    for key, table in (("tasks", task_table), ("data", data_table)):
        if key in first:
            out.print(table(found["results"]))
    for line in sample_lines(found.get("samples", ())):
        say(line)
    if output is not None:
        say(f"{'evaluation':<20}{output}")
