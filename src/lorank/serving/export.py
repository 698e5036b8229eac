"""`lorank export`: the folder of a trained adapter in, a folder that an engine, or every engine, scales right out."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorank.artefact import check_new_folder, file_checksum, new_folder, versions, write_json
from lorank.errors import AdapterError
from lorank.models.label_names import LABEL_NAMES
from lorank.report.markdown import code, inline, table
from lorank.serving.adapter_files import WEIGHTS, AdapterFiles
from lorank.serving.base_layers import BaseLayers
from lorank.serving.engines import ENGINES
from lorank.serving.forms import FORMS
from lorank.serving.gguf_adapter import check_gguf, write_gguf
from lorank.serving.names import DTYPES, choose
from lorank.serving.old_names import with_present_names
from lorank.serving.verify import Verdict, engine_verdicts

SIDE_FILE = "served_adapter.json"
# What tools and servers look for beside an adapter.
_COMPANIONS: tuple[str, ...] = ("README.md", "ranks.png", "plan.json", "tokenizer*", "vocab.*", "merges.txt", "*.model")
_COMPANIONS += ("added_tokens.json", "special_tokens_map.json", "chat_template.*", LABEL_NAMES)
# The engine that has to compute a form right, or there is no point in writing it.
_OWN_ENGINE = {"any": "peft", "vllm": "vllm", "llama.cpp": "llama.cpp", "peft": "peft"}


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


def export(
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
        base: hub name or folder of the base model, of which the config is read, and which weights it has; None: the one that
            the adapter names.
        dtype: "float32", "bfloat16" or "float16" (or fp32, bf16, fp16); None keeps the adapter's.
        gguf: also write `adapter.gguf` for llama.cpp and Ollama.
        trust_remote_code: let the base model's own code run.

    Raises:
        OutputError: `output` is there already.
        AdapterError: an adapter that cannot be read or exported, or a base model that is needed and cannot be read.

    """
    adapter, output = Path(adapter), Path(output)
    form = choose("form", form, FORMS)
    kind = getattr(torch, DTYPES[choose("dtype", dtype, DTYPES)]) if dtype is not None else None
    check_new_folder(output)
    trained = AdapterFiles.read(adapter)
    # Layers that the adapter leaves out, and llama.cpp's names, are known from the base model alone.
    layers, unread = BaseLayers.if_readable(trained, base, trust_remote_code=trust_remote_code)
    if layers is None and (form == "any" or gguf):
        raise AdapterError(unread)
    if layers is not None:
        trained = with_present_names(trained, layers)
        layers.check(trained)
    if gguf and layers is not None:
        check_gguf(trained, layers)
    _check_loaded(trained, layers)
    served = FORMS[form](trained, layers, kind)
    with new_folder(output) as folder:
        served.write(folder)
        if gguf and layers is not None:
            write_gguf(trained, layers, folder / "adapter.gguf")
        verdicts = engine_verdicts(AdapterFiles.read(folder), trained, layers)
        _check_own_engine(form, verdicts)
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


def _check_loaded(trained: AdapterFiles, layers: BaseLayers | None) -> None:
    """Refuse tensors that PEFT does not load: it is not known whether they were trained."""
    loaded = ENGINES["peft"][1](trained, layers).scales
    if trained.prefixed and (others := [module for module in trained.pairs if module not in loaded]):
        raise AdapterError(
            f"{trained.folder} holds tensors of {len(others)} modules that its target_modules does not match, {others[0]!r} "
            "first, which PEFT does not load; take both files from the same training"
        )


def _check_own_engine(form: str, verdicts: Sequence[Verdict]) -> None:
    own = next(verdict for verdict in verdicts if verdict.engine == _OWN_ENGINE[form])
    if own.answer in ("wrong", "refused"):
        problem = "would not load it" if own.answer == "refused" else "would be wrong"
        raise AdapterError(
            f"nothing is written, since {own.label} {problem}: {own.why}; another form, or merging (lorank merge), may do"
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
    _write_card(folder / "README.md", _note(form, served.parameters > bare.parameters, verdicts))


def _write_card(path: Path, note: str) -> None:
    """Add what the form is to the card. PEFT's empty one loses its questions, and keeps its metadata."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if "[More Information Needed]" in text:
        metadata = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
        text = metadata[0] if metadata else ""
    path.write_text(f"{text.rstrip()}\n\n{note}".lstrip(), encoding="utf-8")


def _note(form: str, padded: bool, verdicts: Sequence[Verdict]) -> str:
    """What the card says of the form, in Markdown."""
    lines = [
        f"## Served form `{form}`",
        "",
        "Written and checked by `lorank export`; true ranks are in `served_adapter.json`.",
    ]
    if padded:
        lines += ["", "Ranks are padded with zeros: for serving, not for training on."]
    rows = [
        (
            one.label,
            "yes" if one.right else f"{one.answer}: {inline(one.why)}",
            code(one.settings) if one.settings else "",
        )
        for one in verdicts
    ]
    lines += ["", table(("engine", "computes what was trained", "settings"), rows)]
    return "\n".join(lines)
