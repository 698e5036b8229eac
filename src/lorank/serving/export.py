"""`lorank export`: the folder of a trained adapter in, a folder that an engine, or every engine, scales right out."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorank.artefact import check_new_folder, file_checksum, new_folder, versions, write_json
from lorank.errors import AdapterError
from lorank.serving.adapter_files import WEIGHTS, AdapterFiles
from lorank.serving.base_layers import BaseLayers
from lorank.serving.forms import FORMS
from lorank.serving.gguf_adapter import check_gguf, write_gguf
from lorank.serving.verify import Verdict, verify
from lorank.validation import nearest

SIDE_FILE = "served_adapter.json"
# What tools and servers look for beside an adapter.
_COMPANIONS: tuple[str, ...] = ("README.md", "ranks.png", "plan.json", "tokenizer*", "vocab.*", "merges.txt", "*.model")
_COMPANIONS += ("added_tokens.json", "special_tokens_map.json", "chat_template.*")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: the served adapter.
        form: as it was asked for.
        rank: the largest rank of its tensors.
        parameters: adapter parameters in its file.
        compact_parameters: of the same adapter without padding.
        verdicts: what every engine makes of it, compared with the trained adapter.
        gguf: the GGUF file, if one was asked for.
        unread_base: why the base model was not looked at; empty where it was.

    """

    folder: Path
    form: str
    rank: int
    parameters: int
    compact_parameters: int
    verdicts: tuple[Verdict, ...]
    gguf: Path | None
    unread_base: str

    @property
    def padded(self) -> bool:
        """Whether zeros were added, which cannot be trained."""
        return self.parameters > self.compact_parameters


def export_adapter(
    adapter: str | Path,
    output: str | Path,
    form: str = "any",
    *,
    base: str | None = None,
    dtype: str | None = None,
    gguf: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Write a trained adapter in a form that is to be served, checked against the trained one under every engine's rule.

    Args:
        adapter: folder of a LoRA adapter, from whatever tool.
        output: a new folder.
        form: "any", "vllm", "llama.cpp" or "peft" (`lorank.serving.forms`).
        base: hub name or folder of the base model, of which the config is read; None: the one that the adapter names.
        dtype: "float32", "bfloat16" or "float16"; None keeps the adapter's.
        gguf: also write `adapter.gguf` for llama.cpp and Ollama.
        trust_remote_code: let the base model's own code run.

    Raises:
        OutputError: `output` is there already.
        AdapterError: an adapter that cannot be read or exported, or a base model that is needed and cannot be read.

    """
    adapter, output = Path(adapter), Path(output)
    if form not in FORMS:
        raise AdapterError(f"form {form!r} is unknown{nearest(form, FORMS)}; allowed: {', '.join(FORMS)}")
    if dtype is not None and dtype not in _DTYPES:
        raise AdapterError(f"dtype {dtype!r} is unknown{nearest(dtype, _DTYPES)}; allowed: {', '.join(_DTYPES)}")
    check_new_folder(output)
    trained = AdapterFiles.read(adapter)
    layers, unread = None, ""
    try:
        layers = BaseLayers.of(trained, base, trust_remote_code=trust_remote_code)
    except AdapterError as error:
        if form == "any" or gguf or base is not None:
            raise  # layers that the adapter leaves out are known from the base model alone
        unread = str(error)
    if layers is not None:
        layers.check(trained)
    if gguf and layers is not None:
        check_gguf(trained, layers)
    served = FORMS[form](trained, layers, _DTYPES[dtype] if dtype else None)
    with new_folder(output) as folder:
        served.write(folder)
        if gguf and layers is not None:
            write_gguf(trained, layers, folder / "adapter.gguf")
        verdicts = verify(AdapterFiles.read(folder), trained, layers)
        _write_companions(trained, served, form, verdicts, folder)
    return Exported(
        folder=output,
        form=form,
        rank=served.largest_rank,
        parameters=served.parameters,
        compact_parameters=trained.without_padding().parameters,
        verdicts=tuple(verdicts),
        gguf=output / "adapter.gguf" if gguf else None,
        unread_base=unread,
    )


def _write_companions(
    trained: AdapterFiles, served: AdapterFiles, form: str, verdicts: Sequence[Verdict], folder: Path
) -> None:
    """Tokenizer and card go along; true ranks and scales go into a file of ours, since engines read patterns differently."""
    for pattern in _COMPANIONS:
        for path in trained.folder.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    bare, scales = trained.without_padding(), trained.peft_scales()
    content = {
        "format": "lorank.served_adapter",
        "version": 1,
        "form": form,
        "modules": {m: {"rank": pair.rank, "scale": scales[m]} for m, pair in bare.pairs.items()},
        "parameters": {"file": served.parameters, "compact": bare.parameters},
        "source": {"file": WEIGHTS, "sha256": file_checksum(trained.folder / WEIGHTS)},
        "versions": versions(),
    }
    write_json(folder / SIDE_FILE, content)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8").rstrip() + "\n\n" if card.is_file() else ""
    card.write_text(text + _note(form, served.parameters > bare.parameters, verdicts), encoding="utf-8")


def _note(form: str, padded: bool, verdicts: Sequence[Verdict]) -> str:
    """What the card says of the form, in Markdown."""
    lines = [
        f"## Served form `{form}`",
        "",
        "Written and checked by `lorank export`; true ranks are in `served_adapter.json`.",
    ]
    if padded:
        lines += ["", "Ranks are padded with zeros: for serving, not for training on."]
    lines += ["", "| engine | computes what was trained | settings |", "|---|---|---|"]
    for verdict in verdicts:
        said = "yes" if verdict.right else f"no: {verdict.why}"
        lines.append(f"| {verdict.label} | {said} | {f'`{verdict.settings}`' if verdict.settings else ''} |")
    return "\n".join([*lines, ""])
