"""What a model writes for a few prompts of the data, to be read by people."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import TaskType

from lorank.errors import DataError, as_seen, one_line
from lorank.evaluation.own_data import OwnData
from lorank.tasks.encoding import tokenize
from lorank.tasks.text_data import IGNORED
from lorank.tasks.text_evaluation import text_of, write_texts

_LONGEST = 600  # characters of a prompt that are shown, its last ones


@dataclass(frozen=True)
class Prompts:
    """Prompts of a few rows.

    Attributes:
        ids: tokens of each.
        texts: the same as text.
        targets: what the data have behind them.

    """

    ids: Sequence[Sequence[int]]
    texts: Sequence[str]
    targets: Sequence[str]


def sample_prompts(own: OwnData, count: int, seed: int) -> Prompts:
    """Prompts of rows that are drawn by the seed from the first part.

    A decoder's prompt ends where its labels begin; of a chat it is everything before the last message of the assistant, as the
    chat template asks for one, whatever the template marks. A text without a prompt is cut in half.

    Args:
        own: of `prepare_own_data`.
        count: of prompts; all rows where there are fewer.
        seed: of the draw.

    Raises:
        DataError: the chat template refuses the messages of a prompt.

    """
    rows = next(iter(own.parts.values()))
    chosen = sorted(random.Random(f"{seed}/samples").sample(range(len(rows)), min(count, len(rows))))
    prepared = own.prepared
    encoded = tokenize(rows.select(chosen), prepared.tokenizer, prepared.section, prepared.task_type)
    decoder = prepared.task_type == TaskType.CAUSAL_LM
    pairs = [_split(row) if decoder else (row["input_ids"], row["labels"]) for row in encoded]
    prompts, targets = ([list(ids) for ids in part] for part in zip(*pairs, strict=True))

    def texts(many: list[list[int]]) -> list[str]:
        return [text_of(prepared.tokenizer, ids, prepared.new_tokens) for ids in many]

    shown = texts(targets)
    if prepared.section.task == "chat":
        for place, row in enumerate(chosen):
            chat = _before_the_answer(json.loads(rows[row]["example"]), prepared.tokenizer)
            if chat is not None:
                prompts[place], shown[place] = chat[0][-prepared.section.max_length :], chat[1]
    return Prompts(prompts, texts(prompts), shown)


def _before_the_answer(example: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], str] | None:
    """Tokens up to the last message of the assistant, with the generation prompt, and what that message says.

    None where no message is the assistant's, or none stands before it.
    """
    messages = example["messages"]
    last = next((k for k in reversed(range(len(messages))) if messages[k].get("role") == "assistant"), 0)
    if last == 0:
        return None
    tools = example.get("tools")
    try:
        ids = tokenizer.apply_chat_template(
            messages[:last],
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            add_generation_prompt=True,
            return_dict=False,
            **example.get("chat_template_kwargs", {}),
        )
    except Exception as error:  # jinja's, or what a template does to a message of another form
        raise DataError(
            f"--samples: the chat template refuses the messages before an answer ({type(error).__name__}: {one_line(error)}); "
            "leave --samples out, or mend the chat template"
        ) from None
    content = messages[last].get("content", "")
    return list(ids), content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _split(row: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[int]]:
    """Prompt and target of a decoder's row: the first run of labels is the target."""
    ids, labels = row["input_ids"], row["labels"]
    start = next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))
    if start == 0:
        start = max(1, len(ids) // 2)
        return ids[:start], ids[start:]
    end = next((place for place in range(start, len(labels)) if labels[place] == IGNORED), len(labels))
    return ids[:start], ids[start:end]


def write_samples(model: Any, own: OwnData, prompts: Prompts, *, tokens: int, directory: Path) -> list[str]:
    """What a model writes for the prompts, greedily: at most so many tokens for each."""
    return write_texts(model, prompts.ids, own.prepared.tokenizer, own.settings, directory, tokens=tokens)


def sample_lines(samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Samples as lines for a terminal, which takes nothing in them for a command.

    Args:
        samples: each with `prompt`, `target` and `written`: who -> text.

    """
    for number, sample in enumerate(samples, 1):
        yield f"sample {number}"
        prompt = sample["prompt"]
        shown = prompt if len(prompt) <= _LONGEST else f"...{prompt[-_LONGEST:]}"
        for name, text in (("prompt", shown), ("target", sample["target"]), *sample["written"].items()):
            lines = (as_seen(text, "\n") or "(nothing)").split("\n")
            yield from (f"  {name if not place else '':<9}{line}" for place, line in enumerate(lines))
