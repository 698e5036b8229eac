"""Results of a grid that was never run."""

import random

from lorank.compare.cells import Cell, Measured, cells_of


def measured(accuracy: float | None, **options: object) -> Measured:
    usual = {
        "metrics": {"accuracy": accuracy, "f1": accuracy}, "loss": 0.5, "parameters": 448, "scale": 2.0, "steps": 10,
        "tokens": 900, "seconds": 3.0, "peak_bytes": 2**30, "data": {"train": "a", "test": "b"},
    }  # fmt: skip
    return Measured(**(usual | options))  # type: ignore[arg-type]


def grid_of(effects: dict[str, float], seeds: int = 5, noise: float = 0.004) -> tuple[list[Cell], dict[Cell, Measured]]:
    """Methods with true differences to uniform LoRA; the luck of a seed is shared."""
    cells = list(cells_of(["mood"], ["r=1"], ["lora", *effects], range(seeds)))
    results = {}
    for cell in cells:
        luck = random.Random(cell.seed).gauss(0.8, 0.02)
        own = random.Random(f"{cell.method}/{cell.seed}").gauss(0, noise)
        results[cell] = measured(luck + effects.get(cell.method, 0.0) + own)
    return cells, results
