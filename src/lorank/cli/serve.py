"""`lorank export`, `verify` and `merge`: a trained adapter on its way to a serving engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorank.cli.options import Adapter, Base, Json, Private, PushToHub, RemoteCode
from lorank.console import clear_errors, document, out, say
from lorank.serving.names import DTYPES, ENGINES, FORMS, choose

if TYPE_CHECKING:
    from lorank.serving.export import Exported


def export_command(
    adapter: Adapter,
    output: Annotated[Path, typer.Argument(help="new folder")],
    form: Annotated[
        str, typer.Option("--for", help="any (all engines, padded), or compact: vllm, llama.cpp, peft")
    ] = "any",
    gguf: Annotated[bool, typer.Option("--gguf", help="also adapter.gguf, for llama.cpp and Ollama")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: the adapter's")] = None,
    base: Base = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    trust_remote_code: RemoteCode = False,
    json: Json = None,
) -> None:
    """Write a trained adapter so that serving engines scale it right, and check it under each engine's rule."""
    with clear_errors(), document(json) as write:
        choose("form", form, FORMS)
        choose("dtype", dtype or "fp32", DTYPES)
        if push_to_hub:
            from lorank.serving.hub import check_hub, push

            check_hub(push_to_hub)
        from lorank.serving.export import export
        from lorank.serving.verdict_table import verdict_numbers

        exported = export(adapter, output, form, base=base, dtype=dtype, gguf=gguf, trust_remote_code=trust_remote_code)
        _print_export(exported)
        if push_to_hub:
            say(f"on the hub           {push(output, push_to_hub, private=private)}")
        write({**vars(exported), "verdicts": verdict_numbers(exported.verdicts)})


def _print_export(exported: "Exported") -> None:
    from lorank.serving.engines import vllm_rank
    from lorank.serving.verdict_table import verdict_table

    out.print(verdict_table(exported.verdicts))
    right = sum(verdict.right for verdict in exported.verdicts)
    say(f"right in            {right} of {len(exported.verdicts)} engines")
    compact, held = exported.compact_parameters, exported.parameters
    size = f"{held:,} parameters"
    size += (
        f", {held / compact:.2f} times the compact form's {compact:,}" if exported.padded else ", as compact as can be"
    )
    say(f"size                {size}")
    slot = vllm_rank(exported.rank)
    say(
        f"rank                {exported.rank}; smallest --max-lora-rank of vLLM: {slot if slot else 'none is large enough'}"
    )
    if exported.padded:
        say(
            "lost                training on: padded units of rank have no gradient; train the adapter that this was made of"
        )
    if exported.unread_base:
        say(f"not looked at       the base model: {exported.unread_base}")
    say(f"served adapter      {exported.folder}")
    if exported.gguf:
        say(f"GGUF adapter        {exported.gguf} (llama-server --lora FILE; ADAPTER FILE in Ollama's Modelfile)")


def verify_command(
    adapter: Adapter,
    against: Annotated[
        Path | None, typer.Option(help="the trained adapter that it should compute; default: itself, by PEFT's rule")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"exit with 1 unless it is right: {', '.join(ENGINES)}; may be given again"),
    ] = None,
    base: Base = None,
    trust_remote_code: RemoteCode = False,
    json: Json = None,
) -> None:
    """Say which engines would compute what was trained, from the files alone.

    The error is the relative difference of a module's update to the trained one (Frobenius norm), the largest of all modules;
    right means: within one rounding of the files' dtype.
    """
    with clear_errors(), document(json) as write:
        asked = [choose("engine", name, ENGINES) for name in ",".join(engine or ()).split(",") if name]
        from lorank.serving.verdict_table import verdict_numbers, verdict_table
        from lorank.serving.verify import verify

        found = verify(adapter, against, base=base, trust_remote_code=trust_remote_code)
        out.print(verdict_table(found.verdicts))
        if found.unread_base:
            say(f"base model not looked at: {found.unread_base}")
        failed = [verdict for verdict in found.verdicts if verdict.engine in asked and not verdict.right]
        for verdict in failed:
            say(f"{verdict.label}: {verdict.answer}; lorank export writes forms that engines scale right")
        verdicts = verdict_numbers(found.verdicts)
        write({"adapter": adapter, "against": against, "unread_base": found.unread_base, "verdicts": verdicts})
    if failed:
        raise typer.Exit(1)


def merge_command(
    adapter: Adapter,
    output: Annotated[Path, typer.Argument(help="new folder")],
    base: Base = None,
    dtype: Annotated[
        str, typer.Option(help="auto (as the base model is stored), float32, bfloat16 or float16")
    ] = "auto",
    max_shard_size: Annotated[str, typer.Option(help="largest weight file")] = "5GB",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Add an adapter to its base model and save the result as a model of its own."""
    with clear_errors():
        choose("dtype", dtype, ("auto", *DTYPES))
        from lorank.serving.merge import merge

        merge(
            adapter, output, base=base, dtype=dtype, max_shard_size=max_shard_size, trust_remote_code=trust_remote_code
        )
        say(f"merged model        {output}")
