"""A starter recipe as YAML, with a comment behind each choice."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from lorank.artefact import write_text
from lorank.budget import Budget
from lorank.errors import RecipeError, as_seen
from lorank.findings import Findings
from lorank.models.loading import config_of, load_tokenizer, load_without_weights
from lorank.models.pretrained import Pretrained
from lorank.starter.choices import Choice, Starter, check_fits, check_method
from lorank.starter.columns import task_of_columns
from lorank.starter.first_rows import read_source
from lorank.untrusted.tokenizer_files import FILES

_COMMENT = 44  # column of the comments


def starter_choices(
    model: Pretrained,
    data: str,
    *,
    columns: tuple[str | None, tuple[str, ...], str],
    parts: tuple[Path | None, str | None],
    method: str,
    budget: str,
) -> list[Choice]:
    """Look at the config of a model and at the first rows of data, and choose.

    Args:
        model: of which the config is read, and the tokenizer where there is one.
        data: file, or name of a hub data set.
        columns: task, text columns and label column, as far as they are given.
        parts: a test file, and the configuration of a hub data set, as far as they are given.
        method: that decides the ranks.
        budget: as everywhere.

    Raises:
        LorankError: what cannot be read, or does not fit; as far as the parts are independent, all of it at once.

    """
    findings = Findings()
    config, source, task = None, None, None
    with findings.check():
        check_method(method)
    with findings.check():
        Budget.parse(budget)
    with findings.check():
        config = config_of(model)
    with findings.check():
        source = read_source(data, *parts)
        task = task_of_columns(source.rows, *columns)
    findings.raise_all()
    assert config is not None
    assert source is not None
    assert task is not None
    kind = check_fits(model.name, config, task)
    built = load_without_weights(model.name, trust_remote_code=model.trust_remote_code, task_type=kind)
    try:
        tokenizer = load_tokenizer(model)
    except RecipeError:
        if any((Path(model.name) / file).is_file() for file in FILES):
            raise  # lengths by characters are for a model without a tokenizer, not for one whose tokenizer is bad
        tokenizer = None
    return Starter(model.name, config, built, tokenizer, source, task, method, budget).choices()


def write_starter(path: Path, choices: Sequence[Choice], command: str) -> None:
    """Write the recipe, a comment behind each value.

    Args:
        path: of the file.
        choices: of `starter_choices`; those of a section stand together.
        command: that wrote it.

    """
    lines = [f"# Written by `{as_seen(command)}`. Every value is a start: change what you know better.", ""]
    for section, own in groupby(choices, key=lambda choice: choice.section):
        lines += [*([f"{section}:"] if section else []), *map(_line, own)]
    write_text(path, "\n".join([*lines, ""]))


def _line(choice: Choice) -> str:
    written = f"{'  ' if choice.section else ''}{choice.name}: {in_yaml(choice.value)}"
    return f"{written:<{_COMMENT}}  # {as_seen(choice.why)}"


def in_yaml(value: Any) -> str:
    """A value in one line of YAML."""
    parts = value if isinstance(value, list) else [value]
    # Only between double quotes are line ends and control characters written as escapes.
    quote = None if all(part.isprintable() for part in parts if isinstance(part, str)) else '"'
    dumped = yaml.safe_dump(
        [value], default_flow_style=True, default_style=quote, width=float("inf"), allow_unicode=True
    )
    return dumped.strip()[1:-1]
