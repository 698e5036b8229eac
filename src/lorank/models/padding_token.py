"""One padding for tokenizer and model: a text gets the same logits alone as in a padded batch."""

import inspect
from collections.abc import Iterator
from typing import Any

from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerBase

from lorank.errors import RecipeError


def set_padding(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, name: str) -> None:
    """Give a tokenizer a padding token, the side on which its model expects padding, and a mask that says where it is.

    Without a padding token of its own it pads with the token that the model's config names, else with the end of a text.
    Padding stands at the right: learned positions are counted from the left. Only models that read a text's last place
    (XLNet) want it at the left.

    Args:
        tokenizer: changed in place.
        config: of its model.
        name: of the model, for the message.

    Raises:
        RecipeError: there is no token to pad with.

    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _token_to_pad_with(tokenizer, config, name)
    tokenizer.padding_side = "left" if getattr(config, "summary_type", None) == "last" else "right"
    if "attention_mask" not in tokenizer.model_input_names and takes_mask(config):
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]


def set_pad_id(model: Any, pad_token_id: int) -> None:
    """Let every part of a loaded model take the same token for padding; what it was built with stays.

    Heads look it up in the config at each call. RoBERTa and others count positions from the padding index that they were built
    with, which is part of their weights.
    """
    for config in _configs(model):
        config.pad_token_id = pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = pad_token_id


def pad_id_of(config: PreTrainedConfig) -> int | None:
    """The padding token that a config names, in its text part where it has parts; None without one."""
    named = getattr(_text_part(config), "pad_token_id", None)
    return named if isinstance(named, int) and named >= 0 else None


def takes_mask(config: PreTrainedConfig) -> bool:
    """Whether the model can be told which tokens are padding; FNet cannot."""
    if type(config) not in AutoModel._model_mapping:
        return True  # code of its own
    known = AutoModel._model_mapping[type(config)]
    model = known[0] if isinstance(known, tuple) else known  # Funnel has two
    return "attention_mask" in inspect.signature(model.forward).parameters


def _token_to_pad_with(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, name: str) -> str:
    named = pad_id_of(config)
    # Beyond its vocabulary a tokenizer gives None, or fails.
    if named is not None and named < len(tokenizer):
        token = tokenizer.convert_ids_to_tokens(named)
        if isinstance(token, str):
            return token
    if tokenizer.eos_token is None:
        raise RecipeError(
            f"model: the tokenizer of {name!r} has no padding token and no end token, and the model's config names none, so "
            "texts cannot be put into a batch; set pad_token in its tokenizer_config.json to a token that the model knows"
        )
    return str(tokenizer.eos_token)


def _text_part(config: PreTrainedConfig) -> PreTrainedConfig:
    try:
        return config.get_text_config()
    except ValueError:  # several text parts
        return config


def _configs(model: Any) -> Iterator[PreTrainedConfig]:
    configs: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            configs |= {id(config): config, id(_text_part(config)): _text_part(config)}
    yield from (config for config in configs.values() if hasattr(config, "pad_token_id"))
