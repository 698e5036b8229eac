"""Tiny models whose layers work on rows that belong to no single example of a batch, with ragged batches for them."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, set_seed

Batch = dict[str, Any]
IMAGE = 59  # the token that stands for a piece of an image
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 8, "patch_size": 4}


def deberta_v3() -> PreTrainedModel:
    """What microsoft/deberta-v3-base has: query and key layers run on words and on relative positions."""
    return transformers.DebertaV2ForSequenceClassification(
        transformers.DebertaV2Config(
            **SMALL, vocab_size=60, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True,
            position_buckets=4, norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0, initializer_range=0.3,
        )
    )  # fmt: skip


def deberta_v1() -> PreTrainedModel:
    return transformers.DebertaForSequenceClassification(
        transformers.DebertaConfig(
            **SMALL, vocab_size=60, relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=4,
            position_biased_input=False, type_vocab_size=0, initializer_range=0.3,
        )
    )  # fmt: skip


def xlnet() -> PreTrainedModel:
    return transformers.XLNetForSequenceClassification(
        transformers.XLNetConfig(vocab_size=60, d_model=16, n_layer=1, n_head=2, d_inner=24, initializer_range=0.3)
    )


def choices() -> PreTrainedModel:
    return transformers.BertForMultipleChoice(transformers.BertConfig(**SMALL, vocab_size=60, initializer_range=0.3))


def whisper() -> PreTrainedModel:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    tokens = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 4}
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **layers, **heads, **tokens, vocab_size=60, num_mel_bins=4, d_model=16, max_source_positions=10,
            max_target_positions=20, init_std=0.3,
        )
    )  # fmt: skip


def clip() -> PreTrainedModel:
    text = {**SMALL, "vocab_size": 60, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))


def llava() -> PreTrainedModel:
    text = transformers.LlamaConfig(**SMALL, vocab_size=60, initializer_range=0.3)
    vision = transformers.CLIPVisionConfig(**{**VISION, "num_hidden_layers": 2})
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=4)
    )


def qwen2_vl() -> PreTrainedModel:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = {**SMALL, "vocab_size": 60, "num_key_value_heads": 1, "rope_parameters": rope, "initializer_range": 0.3}
    tokens = {"image_token_id": IMAGE, "video_token_id": 58, "vision_start_token_id": 57, "vision_end_token_id": 56}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(vision_config=vision, text_config=text, **tokens)
    )


def texts(count: int = 4, kinds: tuple[int, int] = (5, 50)) -> Batch:
    """Texts of 3 to 9 tokens, padded behind."""
    source = torch.Generator().manual_seed(count)
    ids = torch.randint(*kinds, (count, 9), generator=source)
    mask = (torch.arange(9) < torch.tensor([9, 3, 6, 4])[:count, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def classified(count: int = 4) -> Batch:
    return {**texts(count), "labels": torch.arange(count) % 2}


def with_choices() -> Batch:
    ids = texts(4)
    return {key: torch.stack([value, value.flip(0)], 1) for key, value in ids.items()} | {
        "labels": torch.tensor([0, 1, 1, 0])
    }


def spoken() -> Batch:
    ids = texts(3)
    sounds = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
    labels[0, :2] = -100  # a prompt
    return {"input_features": sounds, "labels": labels}


def pictured(images: list[int], tokens: int) -> Batch:
    """Texts with so many images each, `tokens` tokens an image; labels on the words."""
    batch = texts(len(images))
    batch["attention_mask"][:, :8] = 1
    batch["attention_mask"][1, 8:] = 0
    ids = batch["input_ids"] = (batch["input_ids"] + 5).clamp_max(55) * batch["attention_mask"]
    for row, count in enumerate(images):
        ids[row, 1 : 1 + count * tokens] = IMAGE
    words = (batch["attention_mask"] == 1) & (ids != IMAGE)
    return {**batch, "labels": ids.masked_fill(~words, -100)}


def with_pixels(batch: Batch, images: int) -> Batch:
    return batch | {"pixel_values": torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()}


def with_patches(batch: Batch) -> Batch:
    """Two images in the first text, none in the second, one in the third: 4 patches of 4 pixels each for every token."""
    patches = torch.randn(16, 96, generator=torch.Generator().manual_seed(1)).double()
    grids = torch.tensor([[1, 2, 4], [1, 2, 2], [1, 2, 2]])
    ids = batch["input_ids"]
    ids[0, 1:4], ids[0, 4], ids[2, 1] = torch.tensor([IMAGE, IMAGE, 56]), IMAGE, IMAGE
    batch["labels"] = batch["labels"].masked_fill(ids >= 56, -100)
    return batch | {"pixel_values": patches, "image_grid_thw": grids, "mm_token_type_ids": (ids == IMAGE).long()}


FAMILIES: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[], Batch]]] = {
    "deberta-v3": (deberta_v3, classified),
    "deberta": (deberta_v1, classified),
    "xlnet": (xlnet, lambda: classified(3)),
    "multiple choice": (choices, with_choices),
    "whisper": (whisper, spoken),
    "llava": (llava, lambda: with_pixels(pictured([1, 1, 1], 4), 3)),
    "llava, images in some": (llava, lambda: with_pixels(pictured([1, 0, 1], 4), 2)),
    "qwen2-vl": (qwen2_vl, lambda: with_patches(pictured([0, 0, 0], 1))),
}


def make(family: str) -> tuple[PreTrainedModel, Batch]:
    set_seed(0)
    model, batch = FAMILIES[family]
    return model().double().eval(), batch()
