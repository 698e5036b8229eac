"""Examples as tokens, and tokens as padded batches, for the kind of model that a recipe trains."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from peft import TaskType
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, PreTrainedTokenizerBase

from lorank.models.loading import task_type_of
from lorank.recipe.recipe import Recipe
from lorank.tasks.data import TaskData
from lorank.tasks.text_data import IGNORED, encode_text


def tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Dataset:
    """Model inputs, `labels` and `length` (tokens after cutting); not padded: batches are."""
    task_type, max_length = task_type_of(recipe), recipe.data.max_length
    if task_type != TaskType.SEQ_CLS:
        return encode_text(rows, tokenizer, recipe.data, encoder_decoder=task_type == TaskType.SEQ_2_SEQ_LM)
    columns = [name for name in ("text_1", "text_2") if name in rows.column_names]

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        encoded = dict(tokenizer(*(batch[name] for name in columns), truncation=True, max_length=max_length))
        return encoded | {"length": [len(ids) for ids in encoded["input_ids"]]}

    return rows.map(encode, batched=True, remove_columns=[*columns, "content"], keep_in_memory=True)


def check_texts(data: TaskData, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """For tasks that write, whether prompts fit and the tokenizer can end a text, before anything is trained.

    Raises:
        RecipeError: they do not, or it cannot.

    """
    if recipe.data.writes:
        tokenize(data.train.select([0]), tokenizer, recipe)


def collator(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Any:
    """Makes a padded batch of examples: labels of texts are padded too, with what losses leave out."""
    if task_type_of(recipe) == TaskType.SEQ_CLS:
        return DataCollatorWithPadding(tokenizer)
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
