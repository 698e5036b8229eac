"""What a tokenizer cannot make tokens of is an error of the data."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import TaskType
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from lorank.errors import DataError
from lorank.models.loading import load_tokenizer
from lorank.models.pretrained import Pretrained
from lorank.tasks.data import load_task_data
from lorank.tasks.encoding import tokenize

# Tries every way to match a run of w before it sees that no Y follows: the package gives up, and panics.
ENDLESS = "(w|w|[a-z ])*(?=Y)Y"


@pytest.mark.parametrize("task_type", [TaskType.SEQ_CLS, TaskType.CAUSAL_LM])
def test_a_text_at_which_the_tokenizer_panics(
    task_type: TaskType, tiny_recipe: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    tokenizer: Any = load_tokenizer(Pretrained(str(tiny_folder)))
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex(ENDLESS), "isolated")
    tokenizer.eos_token = "[SEP]"
    text = "w" * 40 + "1Y"
    rows = [{"text": text, "label": label, "document": text, "summary": "fine"} for label in "ab"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = str(tmp_path / "rows.jsonl")
    task = {"task": "summarization"} if task_type == TaskType.CAUSAL_LM else {}
    section = tiny_recipe(model=str(tiny_folder), data={"train": file, "test": file, **task}, method="lora").data
    with pytest.raises(DataError, match=r"the tokenizer cannot make tokens of a text .*retry-limit-in-match over"):
        tokenize(load_task_data(section).train, tokenizer, section, task_type)
