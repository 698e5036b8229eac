"""What each loader of files reads, mutated, and the call that reads it."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import torch
import yaml
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors

from lorank import ImportanceScores, allocate
from lorank.allocation.cut_history import CUTS, CutHistory
from lorank.artefact import checksum
from lorank.compare.cells import Measured, read_measured
from lorank.compare.learning_rate import _recorded
from lorank.errors import LorankError, as_seen
from lorank.headroom.results import looks_made
from lorank.in_training.checkpoint import STATE, VERSION, read_state
from lorank.models.label_names import read_label_names
from lorank.models.loading import load_without_weights
from lorank.models.saved_model import read_adapter_config
from lorank.page.page import write_page
from lorank.page.run_folder import read_run
from lorank.received_files import record_of
from lorank.recipe.files import load_recipe
from lorank.runs.prune_adapter import prune_adapter
from lorank.scores import _HEADER, _digest
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.export import export
from lorank.serving.merge import merge
from lorank.serving.verify import verify
from lorank.starter.columns import task_of_columns
from lorank.starter.first_rows import read_source
from lorank.suggest.kept_parts import KeptParts
from lorank.tasks.data import load_task_data
from lorank.tasks.section import DataSection
from lorank.training.checkpoints import latest_checkpoint, read_progress
from lorank.training.plan_stage import Evaluation
from tests.hostile_tokenizers import chat_template, tokenizer
from tests.mutations import World, changed, damaged, either
from tests.page.run_cases import make_run

RECIPE = {
    "format": 2, "model": {"name": "some/model", "dtype": "fp32", "new_tokens": ["<a>"]}, "method": "i-lora", "budget": "r=2",
    "baselines": {"lora": {"train": {"epochs": 1}}}, "data": {"train": "a.csv", "test": "b.csv", "text": ["a"], "label": "c"},
    "train": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3}, "ranks": {"max_rank": 4}, "target_modules": ["q", "v"],
}  # fmt: skip
ROWS = [
    {"text": f"the day {k} was fine", "label": ["good", "bad"][k % 2], "messages": [{"role": "user"}]} for k in range(6)
]
NAMES = {"layer.0.q": 16, "layer.1.q": 24}
SCORES = ImportanceScores({name: np.array([2.0, 1.0]) for name in NAMES}, NAMES, None, {"method": "i-lora"})


Loader = Callable[[World, st.DataObject], Any]


def said(error: LorankError) -> None:
    """A message is not endless, and holds nothing that steers a terminal."""
    assert len(str(error)) < 20_000
    assert str(error) == as_seen(str(error), "\n")


def _recipe(world: World, data: st.DataObject) -> None:
    either(world.folder / "r.yaml", RECIPE, data, lambda content: yaml.safe_dump(content, allow_unicode=True))
    load_recipe(world.folder / "r.yaml")


def _read_data(path: Path) -> None:
    for task, columns in (("classification", {"text": "text", "label": "label"}), ("chat", {}), ("text", {})):
        try:
            load_task_data(DataSection(train=str(path), test=str(path), task=task, **columns))
        except LorankError as error:
            said(error)
    source = read_source(str(path), None, None)
    task_of_columns(source.rows, None, (), "")


def _csv(world: World, data: st.DataObject) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, ["text", "label", "messages"])
    writer.writeheader()
    writer.writerows(ROWS)
    path = world.folder / data.draw(st.sampled_from(["d.csv", "d.tsv"]))
    path.write_bytes(damaged(table.getvalue().encode(), data))
    _read_data(path)


def _json(world: World, data: st.DataObject) -> None:
    either(world.folder / "d.json", ROWS, data)
    _read_data(world.folder / "d.json")


def _jsonl(world: World, data: st.DataObject) -> None:
    either(world.folder / "d.jsonl", ROWS, data, lambda rows: "\n".join(map(json.dumps, rows)))
    _read_data(world.folder / "d.jsonl")


def _parquet(world: World, data: st.DataObject) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), world.folder / "d.parquet")
    path = world.folder / "d.parquet"
    path.write_bytes(damaged(path.read_bytes(), data))
    _read_data(path)


def _adapter(world: World, data: st.DataObject) -> Path:
    """An adapter of which a file was changed."""
    folder = world.folder / "adapter"
    shutil.copytree(world.adapter, folder)
    weights = folder / "adapter_model.safetensors"
    if (kind := data.draw(st.sampled_from(["config", "bytes", "tensors"]))) == "config":
        either(folder / "adapter_config.json", json.loads((folder / "adapter_config.json").read_text()), data)
    elif kind == "bytes":
        weights.write_bytes(damaged(weights.read_bytes(), data))
    else:
        tensors = load_file(weights)
        for _ in range(data.draw(st.integers(1, 2))):
            key = data.draw(st.sampled_from(sorted(tensors)))
            one = tensors.pop(key)
            shape = data.draw(
                st.sampled_from([(), (0,), (0, 3), (3, 0), (2, 16), (16, 2), (1,), (2, 2, 2), tuple(one.shape)])
            )
            dtype = data.draw(st.sampled_from([torch.float32, torch.int64, torch.bool, torch.float16, torch.complex64]))
            name = data.draw(
                st.sampled_from([key, key.replace("query", "\x1b"), key.replace("lora_A", "lora_B"), "", "a.b"])
            )
            tensors[name] = torch.full(shape, data.draw(st.sampled_from([0.0, 1.0])), dtype=dtype)
        save_tensors(tensors, weights)
    return folder


def _adapter_files(world: World, data: st.DataObject) -> None:
    folder = _adapter(world, data)
    try:
        read_adapter_config(folder)
    except LorankError as error:
        said(error)
    AdapterFiles.read(folder)
    verify(folder)
    export(folder, world.folder / "served", "peft")


def _adapter_models(world: World, data: st.DataObject) -> None:
    folder = _adapter(world, data)
    for use in (
        lambda: prune_adapter(folder, "r=1", world.folder / "pruned", None),
        lambda: merge(folder, world.folder / "merged"),
    ):
        try:
            use()
        except LorankError as error:
            said(error)


def _scores(world: World, data: st.DataObject) -> None:
    tensors = {f"score/{name}": values for name, values in SCORES.scores.items()}
    for name in data.draw(st.sets(st.sampled_from(["score", "standard_error", "halves", "bootstrap", "\x1b", ""]))):
        shape = data.draw(st.sampled_from([(), (0,), (1,), (2,), (2, 2)]))
        value = data.draw(st.sampled_from([0.0, 1.0, np.inf, np.nan]))
        dtype = data.draw(st.sampled_from([np.float64, np.float32, np.int8, np.bool_]))
        if not (np.isfinite(value) or np.issubdtype(dtype, np.floating)):
            value = 1
        tensors[f"{name}/{data.draw(st.sampled_from([*NAMES, 'other']))}"] = np.full(shape, value, dtype)
    header = {
        "format": "lorank.scores",
        "version": 2,
        "unit_costs": NAMES,
        "max_ranks": None,
        "tensors": _digest(tensors),
    }
    header |= {"provenance": {}, "fingerprint": SCORES.fingerprint}
    path = world.folder / "s.safetensors"
    save_file(tensors, path, {_HEADER: json.dumps(header | {"checksum": checksum(header)})})
    if data.draw(st.booleans()):
        path.write_bytes(damaged(path.read_bytes(), data))
    allocate(ImportanceScores.load(path), "r=1")


def _cuts(world: World, data: st.DataObject) -> None:
    history, path = CutHistory(dict.fromkeys(NAMES, 2), NAMES), world.folder / CUTS
    for step in (1, 2, 3):
        history.add(step, dict.fromkeys(NAMES, 1), SCORES.scores)
    history.write(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    either(path, lines, data, lambda rows: "".join(json.dumps(row) + "\n" for row in rows))
    repr(CutHistory.load(path).ranks)


def _checkpoint(world: World, data: st.DataObject) -> None:
    checkpoint = world.folder / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "a.bin").write_bytes(b"abc")
    marker = {"step": 4, "finished": True, "seconds": 1.0, "files": {"a.bin": {"bytes": 3, "sha256": "0" * 64}}}
    either(checkpoint / "stage.json", marker, data)
    try:
        read_progress(checkpoint)
    except LorankError as error:
        said(error)
    latest_checkpoint(world.folder, whole=True)


def _allocation_state(world: World, data: st.DataObject) -> None:
    small = {"step": 4, "numbers": [1, 2], "ranks": {"a": 1}}
    stamp = {"format": "lorank.rank_allocation", "version": VERSION, "belongs_to": checksum(small)}
    save_file({"smoothed/a": np.zeros(2)}, world.folder / STATE, stamp)
    (world.folder / STATE).write_bytes(damaged((world.folder / STATE).read_bytes(), data))
    values: Any = {"attributes": {"saved": small}}
    arguments: Any = SimpleNamespace(output_dir=str(world.folder), resume_from_checkpoint=str(world.folder))
    read_state(values if data.draw(st.booleans()) else changed(values, data), arguments, 4)


def _records(world: World, data: st.DataObject) -> None:
    path = world.folder / "record.json"
    cell = Measured({"accuracy": 0.5}, 1.0, 10, 2.0, 5, 100, 1.0, 0.5, {"steps": 1}, 10, "sum")  # type: ignore[arg-type]
    search = {"question": "q", "found": [{"task": "t", "budget": "b", "method": "m", "chosen": 1e-3}]}
    looks = {"plans": {"uniform": 1}, "looks": [], "options": {"smallest": 0.1}}
    files: tuple[tuple[Any, Callable[[Path], Any]], ...] = (
        (asdict(cell) | {"format": "lorank.cell", "version": 1, "fingerprint": "f"},
         read_measured),
        (search, lambda file: _recorded(file, "q")),
        (looks, lambda file: looks_made(file, {}, 0.1)),
        (["good", "bad"], lambda file: read_label_names(file.rename(world.folder / "label_names.json").parent)),
        ({"losses": [1.0, None]}, lambda file: KeptParts(world.folder / "parts", {}).losses("record", lambda: np.zeros(1))),
    )  # fmt: skip
    content, read = data.draw(st.sampled_from(files))
    if "losses" in content:
        (world.folder / "parts").mkdir()
        path = world.folder / "parts" / "record.json"
    either(path, content, data)
    read(path)


def _evaluation(world: World, data: st.DataObject) -> None:
    content = changed({"metrics": {"a": 0.5}, "loss": 1.0, "adapter_parameters": 3, "steps": 4, "seconds": 2.0}, data)
    with suppress(ValueError):
        found = record_of(Evaluation, content)
        assert isinstance(found.metrics, dict)
        assert isinstance(found.steps, int)


def _page(world: World, data: st.DataObject) -> None:
    run = world.folder / "run"
    make_run(run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.suffix in (".json", ".yaml", ".jsonl"))
    path = data.draw(st.sampled_from(files))
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        content.pop("checksum", None)
        content = changed(content, data)
        stamped = {**content, "checksum": checksum(content)} if path.name == "plan.json" else content
        path.write_text(json.dumps(stamped), "utf-8", "surrogatepass")
    else:
        path.write_bytes(damaged(path.read_bytes(), data))
    text = write_page([read_run(run)], world.folder / "report.html", figures=False).read_text("utf-8")
    assert text.count("<script") == 2


def _model_config(world: World, data: st.DataObject) -> None:
    folder = world.folder / "model"
    shutil.copytree(world.model, folder)
    either(folder / "config.json", json.loads((folder / "config.json").read_text()), data)
    load_without_weights(str(folder))


LOADERS: dict[str, Loader] = {
    "recipes": _recipe, "csv": _csv, "json": _json, "jsonl": _jsonl, "parquet": _parquet, "adapters' files": _adapter_files,
    "adapters on models": _adapter_models, "scores": _scores, "cuts": _cuts, "checkpoints": _checkpoint,
    "allocation states": _allocation_state, "records": _records, "evaluations": _evaluation, "pages": _page,
    "model configs": _model_config, "tokenizers": tokenizer, "chat templates": chat_template,
}  # fmt: skip
SLOW = ("adapters on models", "pages", "chat templates")
