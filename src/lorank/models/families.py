"""Which of transformers' classes a model is trained as, where nobody says for which task."""

from typing import Any, Literal

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
)

_DECODERS = (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM)
_ENCODER_DECODERS = (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, AutoModelForMultimodalLM)


def trained_families(config: PreTrainedConfig) -> tuple[Any, ...]:
    """Auto classes to try, the first one that has the architecture is the class that it is trained as.

    | the config                                              | tried first                                         |
    |---------------------------------------------------------|-----------------------------------------------------|
    | names a classifier among its `architectures`            | sequence classification                             |
    | is an encoder-decoder (T5, BART, Whisper)               | sequence to sequence, of text or of speech          |
    | has a masked language model (BERT, RoBERTa, DeBERTa)    | sequence classification                             |
    | any other (Llama, Mixtral, Qwen2-VL)                    | image and text to text, multimodal, causal          |

    Module names depend on it: the blocks of T5 are `encoder.block` in the class that writes text and `transformer.encoder.block`
    in the classifier, and Whisper's causal class has no encoder at all.
    """
    classifier = (AutoModelForSequenceClassification,)
    if is_classifier(config):
        return (*classifier, AutoModel)
    if config.is_encoder_decoder:
        return (*_ENCODER_DECODERS, *classifier, AutoModelForCausalLM, AutoModel)
    if type(config) in AutoModelForMaskedLM._model_mapping:
        return (*classifier, AutoModelForCausalLM, AutoModel)
    return (*_DECODERS, AutoModelForSeq2SeqLM, *classifier, AutoModel)


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether the config names a classifier of texts among its `architectures`."""
    return bool(set(config.architectures or ()) & _class_names(AutoModelForSequenceClassification, config))


def kind_of(config: PreTrainedConfig) -> Literal["encoder", "decoder", "encoder-decoder"]:
    """What an architecture can do: an encoder reads, a decoder continues a text, an encoder-decoder writes another one."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    masked, causal = (type(config) in one._model_mapping for one in (AutoModelForMaskedLM, AutoModelForCausalLM))
    return "decoder" if causal and not masked else "encoder"


def _class_names(family: Any, config: PreTrainedConfig) -> set[str]:
    if type(config) not in family._model_mapping:
        return set()
    found = family._model_mapping[type(config)]
    return {one.__name__ for one in (found if isinstance(found, list | tuple) else (found,))}
