"""Tokens that a recipe adds to a tokenizer: embeddings with rows for them, and these rows trained beside the adapters."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from lorank.errors import RecipeError
from lorank.models.trained_whole import TrainedWhole

_KEY = "model.new_tokens"


def add_new_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str] | None, name: str) -> None:
    """Add special tokens to a tokenizer, in place: they are never split, and left out where texts are decoded as plain text.

    Raises:
        RecipeError: one that is there already, is given twice, or is empty.

    """
    known, given = tokenizer.get_vocab(), list(tokens or ())
    for token in given:
        if not token.strip():
            raise RecipeError(f"{_KEY}: {token!r} is empty; give the text of each token")
        if token in known:
            raise RecipeError(f"{_KEY}: {token!r} is a token of {name!r} already; leave it out")
        if given.count(token) > 1:
            raise RecipeError(f"{_KEY}: {token!r} is given twice")
    if given:
        tokenizer.add_tokens(given, special_tokens=True)


def resize_embeddings(model: Any, rows: int, *, from_mean: bool) -> None:
    """Give the embeddings, and an output layer, at least so many rows; a table that has them already stays as it is.

    Args:
        model: changed in place.
        rows: tokens of the tokenizer.
        from_mean: draw new rows around the mean of the others, as transformers does.

    Raises:
        RecipeError: a model without such a table.

    """
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise RecipeError(f"{_KEY}: {type(model).__name__} has no table of embeddings; leave it out")
    if table.num_embeddings < rows:
        model.resize_token_embeddings(rows, mean_resizing=from_mean)


def rows_of_new_tokens(
    model: Any, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str] | None, whole: TrainedWhole
) -> dict[str, list[int]]:
    """PEFT's `trainable_token_indices`: full name of an embedding or output layer -> rows that train.

    An output layer that shares the embedding's weight follows it. A table that trains whole has these rows in it.

    Raises:
        RecipeError: an encoder-decoder, whose tables PEFT cannot train in part.

    """
    if not tokens:
        return {}
    if getattr(model.config, "is_encoder_decoder", False):
        raise RecipeError(f"{_KEY}: rows of an encoder-decoder's embeddings cannot be trained in part; leave it out")
    rows = [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [first, *([] if last is None or last.weight is first.weight else [last])]
    names = {id(module): name for name, module in model.named_modules()}
    return {name: rows for table in tables if (name := names[id(table)]) not in whole.names}
