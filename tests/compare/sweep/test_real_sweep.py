"""Table 3 and Table 4 of I-LoRA, small: MiniLM on rows of CoLA; run by `make slow`, skipped loudly where they are missing.

`downloads/cola`, or the folder that `LORANK_COLA` names, holds train.tsv and validation.tsv (or dev.tsv), with the columns
sentence and label.
"""

import os
from pathlib import Path

import pytest
import yaml

from lorank.compare.sweep.run_sweep import run_sweep
from lorank.compare.sweep.variants import read_sweep, read_values, read_variants

MINILM, COLA = Path("downloads/minilm"), Path(os.environ.get("LORANK_COLA", "downloads/cola"))
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not MINILM.exists(), reason="run `python examples/prepare_quickstart.py downloads`"),
    pytest.mark.skipif(
        not (COLA / "train.tsv").is_file(), reason="put CoLA into downloads/cola, or give LORANK_COLA=FOLDER"
    ),
]


@pytest.fixture
def cola(tmp_path: Path) -> Path:
    data = {}
    names = {"train": "train.tsv", "test": "validation.tsv" if (COLA / "validation.tsv").is_file() else "dev.tsv"}
    for (part, name), count in zip(names.items(), (600, 200), strict=True):
        lines = (COLA / name).read_text(encoding="utf-8").splitlines(keepends=True)
        path = tmp_path / f"{part}.tsv"
        path.write_text("".join(lines[: count + 1]), encoding="utf-8")
        data[part] = str(path)
    content = {
        "model": {"name": str(MINILM.resolve()), "dropout": 0.0}, "preset": "paper", "budget": "keep=50%",
        "data": {**data, "text": "sentence", "max_length": 16}, "metrics": ["matthews", "accuracy"],
        "triplets": {"initial_rank": 2}, "search": {"max_steps": 8, "learning_rate": 1e-2},
        "train": {"max_steps": 20, "learning_rate": 4e-3},
    }  # fmt: skip
    path = tmp_path / "cola.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_table_4(cola: Path, tmp_path: Path) -> None:
    key, variants = read_values("triplets.initial_rank=2,8")
    sweep = read_sweep([cola], [], variants, key=key, methods=None, seeds=(0, 1), folder=tmp_path / "out")
    found = run_sweep(sweep)
    assert not found.failed
    assert [(row.method, len(row.known)) for row in found.rows] == [("i-lora", 2), ("lora", 2)] * 2
    # Half of rank 2 and of rank 8 in every linear layer of MiniLM, for both methods alike; a unit costs 1,920 at most.
    at = {(row.task.partition("=")[2], row.method): row.parameters[1] for row in found.rows}
    assert all(abs(at[rank, "i-lora"] - at[rank, "lora"]) < 1920 for rank in ("2", "8"))
    assert at["8", "i-lora"] > 3 * at["2", "i-lora"]
    assert (tmp_path / "out" / "sweep.svg").is_file()


def test_table_3(cola: Path, tmp_path: Path) -> None:
    variants = read_variants(Path("src/lorank/recipes/i-lora/table3.yaml"))
    sweep = read_sweep([cola], [], variants, key=None, methods=None, seeds=(0, 1), folder=tmp_path / "out")
    found = run_sweep(sweep)
    assert not found.failed
    assert [one.variant for one in found.changes] == [one.name for one in variants]
    for one in found.changes[1:]:
        assert one.difference is not None
        assert one.difference.pairs == 2
        assert one.difference.mean == pytest.approx(one.mean - found.changes[0].mean)
