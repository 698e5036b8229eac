"""A pretrained model by name: what has to be known to load it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pretrained:
    """A base model that is not loaded yet.

    Attributes:
        name: hub name or folder.
        trust_remote_code: let the code that comes with a hub model run.
        dropout: inside of the model; None: as its config says.
        classifier_dropout: in front of the head of a classifier; None: as its config says.
        dtype: fp32, bf16 or fp16; None: as its config says, see `dtype_of_checkpoint`.
        quantization: 4bit or 8bit; None: as the checkpoint is.
        attention: transformers' `attn_implementation`; None: transformers' choice.
        revision: branch, tag or commit on the hub; None: the main branch.
        modules_to_save: names, or their ends, of modules that train whole beside the adapters.
        new_tokens: special tokens that its tokenizer lacks, whose rows of the embeddings train.

    """

    name: str
    trust_remote_code: bool = False
    dropout: float | None = None
    classifier_dropout: float | None = None
    dtype: str | None = None
    quantization: str | None = None
    attention: str | None = None
    revision: str | None = None
    modules_to_save: tuple[str, ...] | None = None
    new_tokens: tuple[str, ...] | None = None
