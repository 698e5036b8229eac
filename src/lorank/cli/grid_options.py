"""Options that `lorank compare` and `lorank sweep` share, and what they mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Seeds = Annotated[str, typer.Option(help='how many, "5", or which, "0,1,7"')]
Metric = Annotated[str | None, typer.Option(help="what is judged by; default: the first of each recipe's")]
Statistic = Annotated[str, typer.Option("--test", help="t or wilcoxon")]
Processes = Annotated[int, typer.Option(help="cells at a time")]
Tries = Annotated[int, typer.Option(help="for each cell, before it is left out")]
Engine = Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster, lorank[ray]")]


def recipes_and_overrides(words: list[str]) -> tuple[list[Path], list[str]]:
    """Arguments apart: files, and `key=value`.

    Raises:
        ComparisonError: no file.

    """
    from lorank.errors import ComparisonError

    paths = [Path(one) for one in words if "=" not in one]
    if not paths:
        raise ComparisonError("no recipe is given; give a YAML file for each task")
    return paths, [one for one in words if "=" in one]


def run_options(
    *, engine: str, test: str, processes: int, tries: int, level: float, search: str | None
) -> dict[str, Any]:
    """Keywords of `compare_recipes` and `run_sweep`.

    Raises:
        ComparisonError: a value that is not allowed.

    """
    from lorank.errors import ComparisonError

    if engine not in ("local", "ray"):
        raise ComparisonError(f"engine {engine!r} is unknown; allowed: local, ray")
    if test not in ("t", "wilcoxon"):
        raise ComparisonError(f"test {test!r} is unknown; allowed: t, wilcoxon")
    if processes < 1 or tries < 1 or not 0 < level < 1:
        raise ComparisonError("--processes and --tries start at 1, --level is a probability between 0 and 1")
    launch: Callable[[Path], int] | None = None
    if engine == "ray":
        from lorank.compare.ray_cluster import on_ray

        launch = on_ray(processes)
    factors = read_factors(search) if search else None
    numbers = {"processes": processes, "tries": tries, "level": level}
    return {**numbers, "test": test, "search": factors, "launch": launch}


def read_factors(text: str) -> list[float]:
    """Factors of learning rates, from "0.3,1,3".

    Raises:
        ComparisonError: no numbers.

    """
    from lorank.errors import ComparisonError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ComparisonError(f'search is {text!r}; allowed: factors of learning rates, "0.3,1,3"') from None


def read_seeds(text: str) -> list[int]:
    """Seeds, from "5" (how many) or "0,1,7" (which).

    Raises:
        ComparisonError: no numbers, or none.

    """
    from lorank.errors import ComparisonError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ComparisonError(f'seeds are {text!r}; allowed: how many, "5", or which, "0,1,7"') from None
    if len(numbers) == 1 and numbers[0] < 1:
        raise ComparisonError(f"seeds are {text!r}; at least one is needed")
    return list(range(numbers[0])) if len(numbers) == 1 else list(dict.fromkeys(numbers))


def read_names(text: str | None) -> list[str] | None:
    """Names between commas; None where there are none."""
    return [one.strip() for one in text.split(",")] if text else None
