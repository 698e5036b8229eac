"""Architectures whose layers are known without transformers: full names and shapes, in the order in which the model has them.

Only for these are names in a safetensors file the names of linear layers, and is it known which of its matrices are none. An
architecture belongs here if transformers renames no weight of it on loading and holds each weight as `(d_out, d_in)`; tests
compare each with the model that transformers builds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, int]]
OUTPUT = "lm_head"  # what all of them call the output layer


@dataclass(frozen=True)
class Architecture:
    """The layers of one `model_type`.

    A function of these raises KeyError, ValueError or ZeroDivisionError where the config does not say what it needs.

    Attributes:
        prefix: name of the pretrained model inside of one with a head (`base_model_prefix`).
        layers: config -> linear layers of the pretrained model that all of its classes have; names without the prefix.
        heads: PEFT's task type -> config, number of labels -> the other linear layers; names with the prefix.
        embedding: name of the input embedding, without the prefix.
        table: name that the weights have it under, where that is another one.
        width: key of the config for the number of its columns.
        others: names of further matrices that a file may have in the pretrained model, without the prefix.
        head_first: whether the class has its head before the pretrained model.
        tied: whether the output layer shares the weight of the input embedding where the config does not say it.
        padding: number of the padding token where the config does not say it.

    """

    prefix: str
    layers: Callable[[Config], Shapes]
    heads: Mapping[str, Callable[[Config, int], Shapes]]
    embedding: str
    table: str = ""
    width: str = "hidden_size"
    others: tuple[str, ...] = ()
    head_first: bool = False
    tied: bool = False
    padding: int | None = None

    @property
    def encodes_and_decodes(self) -> bool:
        """Whether it is an encoder with a decoder."""
        return "SEQ_2_SEQ_LM" in self.heads


def whole_number(config: Config, key: str) -> int:
    """A number above 0 of a config.

    Raises:
        KeyError: it is missing.
        ValueError: it is something else.

    """
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(key)
    return value


def _blocks(config: Config, stack: str, depth: str, block: Shapes) -> Shapes:
    return {
        f"{stack}.{number}.{name}": shape
        for number in range(whole_number(config, depth))
        for name, shape in block.items()
    }


def _heads(config: Config, width: str, heads: str) -> int:
    """Number of attention heads, which has to divide the width."""
    number = whole_number(config, heads)
    if whole_number(config, width) % number:
        raise ValueError(heads)
    return number


def _decoder(*, head_dim: int | None = None, fused: bool = False) -> Callable[[Config], Shapes]:
    """Layers of a decoder as Llama's.

    Args:
        head_dim: columns of one attention head where the config does not say it; None: the width over the number of heads.
        fused: query, key and value are one layer, and so are gate and up (Phi-3).

    """

    def layers(config: Config) -> Shapes:
        width, inner = whole_number(config, "hidden_size"), whole_number(config, "intermediate_size")
        number = _heads(config, "hidden_size", "num_attention_heads")
        each = head_dim or width // number
        if config.get("head_dim") is not None:
            each = whole_number(config, "head_dim")
        query, key = number * each, whole_number(config, "num_key_value_heads") * each
        attention = {"qkv_proj": (query + 2 * key, width)}
        gates = {"gate_up_proj": (2 * inner, width)}
        out = {"o_proj": (width, query)}
        if fused:
            attention = out | attention
        else:
            attention = {"q_proj": (query, width), "k_proj": (key, width), "v_proj": (key, width)} | out
            gates = {"gate_proj": (inner, width), "up_proj": (inner, width)}
        block = {f"self_attn.{name}": shape for name, shape in attention.items()}
        block |= {f"mlp.{name}": shape for name, shape in (gates | {"down_proj": (width, inner)}).items()}
        return _blocks(config, "layers", "num_hidden_layers", block)

    return layers


def _bert(config: Config) -> Shapes:
    width, inner = whole_number(config, "hidden_size"), whole_number(config, "intermediate_size")
    _heads(config, "hidden_size", "num_attention_heads")
    block = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    block |= {"attention.output.dense": (width, width)}
    block |= {"intermediate.dense": (inner, width), "output.dense": (width, inner)}
    return _blocks(config, "encoder.layer", "num_hidden_layers", block)


def _distilbert(config: Config) -> Shapes:
    width, inner = whole_number(config, "dim"), whole_number(config, "hidden_dim")
    _heads(config, "dim", "n_heads")
    block = {f"attention.{name}": (width, width) for name in ("q_lin", "k_lin", "v_lin", "out_lin")}
    block |= {"ffn.lin1": (inner, width), "ffn.lin2": (width, inner)}
    return _blocks(config, "transformer.layer", "n_layers", block)


def _bart(config: Config) -> Shapes:
    found: Shapes = {}
    width = whole_number(config, "d_model")
    if (config.get("decoder_vocab_size") or config["vocab_size"]) != config["vocab_size"]:
        raise ValueError("decoder_vocab_size")
    if not config.get("share_encoder_decoder_embeddings", True):
        raise ValueError("share_encoder_decoder_embeddings")
    for part, attentions in {"encoder": ("self_attn",), "decoder": ("self_attn", "encoder_attn")}.items():
        inner = whole_number(config, f"{part}_ffn_dim")
        _heads(config, "d_model", f"{part}_attention_heads")
        block = {f"{a}.{name}_proj": (width, width) for a in attentions for name in ("k", "v", "q", "out")}
        block |= {"fc1": (inner, width), "fc2": (width, inner)}
        found |= _blocks(config, f"{part}.layers", f"{part}_layers", block)
    return found


def _output(width: str) -> Callable[[Config, int], Shapes]:
    """The output layer of a model that writes."""
    return lambda config, labels: {OUTPUT: (whole_number(config, "vocab_size"), whole_number(config, width))}


def _two_layers(first: str, last: str, width: str = "hidden_size") -> Callable[[Config, int], Shapes]:
    """A classifier's head of a square layer and one that has a row for each label."""

    def head(config: Config, labels: int) -> Shapes:
        columns = whole_number(config, width)
        return {first: (columns, columns), last: (labels, columns)}

    return head


_DECODER_HEADS: Mapping[str, Callable[[Config, int], Shapes]] = {
    "CAUSAL_LM": _output("hidden_size"),
    "SEQ_CLS": lambda config, labels: {"score": (labels, whole_number(config, "hidden_size"))},
}
_BERT_OTHERS = tuple(f"embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
_BERT_OTHERS += ("embeddings.position_ids", "pooler.dense.weight")  # numbers of positions: of old files
_BART = Architecture(
    "model",
    _bart,
    {"SEQ_2_SEQ_LM": _output("d_model")},
    "shared",
    width="d_model",
    others=tuple(f"{part}.embed_{what}.weight" for part in ("encoder", "decoder") for what in ("tokens", "positions")),
    tied=True,
    padding=1,
)
_ROBERTA = Architecture(
    "roberta",
    _bert,
    {"SEQ_CLS": _two_layers("classifier.dense", "classifier.out_proj")},
    "embeddings.word_embeddings",
    others=_BERT_OTHERS,
    padding=1,
)
# model_type of a config -> its layers.
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("model", _decoder(), _DECODER_HEADS, "embed_tokens"),
    "mistral": Architecture("model", _decoder(), _DECODER_HEADS, "embed_tokens"),
    "qwen2": Architecture("model", _decoder(), _DECODER_HEADS, "embed_tokens"),
    "qwen3": Architecture("model", _decoder(head_dim=128), _DECODER_HEADS, "embed_tokens"),
    "gemma": Architecture("model", _decoder(head_dim=256), _DECODER_HEADS, "embed_tokens", tied=True, padding=0),
    "gemma2": Architecture("model", _decoder(head_dim=256), _DECODER_HEADS, "embed_tokens", tied=True, padding=0),
    "phi3": Architecture("model", _decoder(fused=True), _DECODER_HEADS, "embed_tokens", padding=32000),
    "bert": Architecture(
        "bert",
        _bert,
        {"SEQ_CLS": _two_layers("bert.pooler.dense", "classifier")},
        "embeddings.word_embeddings",
        others=_BERT_OTHERS,
        padding=0,
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": replace(_ROBERTA, head_first=True),
    "bart": _BART,
    "marian": replace(_BART, embedding="encoder.embed_tokens", table="shared", padding=58100),
    "distilbert": Architecture(
        "distilbert",
        _distilbert,
        {"SEQ_CLS": _two_layers("pre_classifier", "classifier", "dim")},
        "embeddings.word_embeddings",
        width="dim",
        others=("embeddings.position_embeddings.weight",),
        padding=0,
    ),
}
