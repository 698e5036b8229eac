"""The card of an adapter that a Trainer saves, or that `lorank prune` makes: the run's card without its data and test results."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from lorank.artefact import read_json
from lorank.models.adapted_model import saved_modules
from lorank.plan import RankPlan
from lorank.report.model_card import CARD, MARK, write_model_card

# Parts of the cards that PEFT, TRL and transformers write by themselves, and of ours.
_GENERATED = (
    "# Model Card for Model ID",
    "It has been trained using [TRL](https://github.com/huggingface/trl)",
    "This model card has been generated automatically according to the information the Trainer had access to",
    MARK,
)


def write_adapter_card(
    folder: Path,
    plan: RankPlan,
    made: Sequence[str],
    *,
    title: str | None = None,
    method: str | None = None,
    num_labels: int = 1,
    before: str | None = None,
    tables: str = "",
) -> None:
    """Write README.md into the folder of an adapter that was just saved; a card that somebody has written stays.

    What the adapter is of is read from its `adapter_config.json`; tags, licence and data sets stay as the present card has them.

    Args:
        folder: of the adapter.
        plan: its ranks.
        made: how it was made, a Markdown line each.
        title: what it is called; None: as its folder.
        method: what decided the ranks; None: as the plan says.
        num_labels: width of the head of a classifier.
        before: text of the card that was there before the adapter was saved, if there was one.
        tables: Markdown, what it cost or scored.

    """
    if before is not None and not any(part in before for part in _GENERATED):
        return
    config = read_json(folder / "adapter_config.json")
    provenance, built = plan.provenance, config.get("auto_mapping") or {}
    of_transformers = re.match(r"transformers\b", str(built.get("parent_library")))
    write_model_card(
        folder,
        plan,
        title=title or _name(folder.resolve()),
        base_model=config.get("base_model_name_or_path") or "",
        method=method or str(provenance.get("method", "a plan")),
        preset=provenance.get("preset"),
        task_type=config.get("task_type") or "",
        num_labels=num_labels,
        whole=saved_modules(folder),
        made=made,
        tables=tables,
        metadata=_metadata(before or "", (folder / CARD).read_text("utf-8") if (folder / CARD).is_file() else ""),
        model_class=built.get("base_model_class") if of_transformers and not config.get("task_type") else None,
    )


def _name(folder: Path) -> str:
    """Of a folder, or of the one that it becomes when all of it is written."""
    return (folder.stem if folder.suffix == ".partial" else folder.name).lstrip(".")


def _metadata(*cards: str) -> dict[str, Any]:
    """What the front matter of cards says, the last one's where they differ; tags of all."""
    found: dict[str, Any] = {}
    tags: list[str] = []
    for text in filter(None, cards):
        try:
            data = ModelCard(text).data.to_dict()
        except Exception:  # yaml has kinds of its own
            continue  # front matter that nobody can read
        own = data.get("tags")
        tags += [tag for tag in own if isinstance(tag, str)] if isinstance(own, list) else []
        found |= data
    return {**found, "tags": tags}
