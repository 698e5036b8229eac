"""Examples as tokens, and tokens as padded batches, for each kind of model."""

import warnings
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from peft import TaskType
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, PreTrainedTokenizerBase

from lorank.errors import DataError, LorankWarning
from lorank.models.pretrained import loadable
from lorank.tasks.data import TaskData
from lorank.tasks.section import DataSection
from lorank.tasks.sft_tokens import encode_sft
from lorank.tasks.text_data import IGNORED, encode_text


def tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerBase, section: DataSection, task_type: TaskType) -> Dataset:
    """Model inputs, `labels` and `length` (tokens after cutting); not padded: batches are.

    Args:
        rows: of `load_task_data`.
        tokenizer: of the base model.
        section: says where texts are cut.
        task_type: of the model: a classifier, an encoder-decoder or a decoder.

    Raises:
        DataError: a text that the tokenizer cannot make tokens of.
        RecipeError: as `encode_sft` and `encode_text`.

    """
    if section.is_sft:
        if "input_ids" not in rows.column_names:
            return encode_sft(rows, tokenizer, section)
        return rows.select_columns(["input_ids", "attention_mask", "labels", "length"])
    with loadable(_no_tokens):
        if task_type != TaskType.SEQ_CLS:
            return encode_text(rows, tokenizer, section, encoder_decoder=task_type == TaskType.SEQ_2_SEQ_LM)
        return _encode_to_classify(rows, tokenizer, section)


def _no_tokens(why: str) -> DataError:
    return DataError(
        f"data: the tokenizer cannot make tokens of a text ({why}); mend or leave out what it does not know"
    )


def _encode_to_classify(rows: Dataset, tokenizer: PreTrainedTokenizerBase, section: DataSection) -> Dataset:
    columns = [name for name in ("text_1", "text_2") if name in rows.column_names]

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        encoded = dict(tokenizer(*(batch[name] for name in columns), truncation=True, max_length=section.max_length))
        return encoded | {"length": [len(ids) for ids in encoded["input_ids"]]}

    return rows.map(encode, batched=True, remove_columns=[*columns, "content"], keep_in_memory=True)


def check_texts(data: TaskData, tokenizer: PreTrainedTokenizerBase, section: DataSection, task_type: TaskType) -> None:
    """For tasks that write, whether prompts fit and the tokenizer can end a text, before anything is trained.

    Raises:
        RecipeError: they do not, or it cannot.

    """
    if section.writes and not section.is_sft:  # whose tokens are there already
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LorankWarning)  # what is cut is said when it is trained on
            tokenize(data.train.select([0]), tokenizer, section, task_type)


def collator(tokenizer: PreTrainedTokenizerBase, task_type: TaskType) -> Any:
    """Makes a padded batch of examples: labels of texts are padded too, with what losses leave out."""
    if task_type == TaskType.SEQ_CLS:
        return DataCollatorWithPadding(tokenizer)
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
