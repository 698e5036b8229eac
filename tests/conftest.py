"""One tiny model and one tiny data set for every test; nothing is downloaded."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lorank.adapter.triplet import TripletAdapter, triplet_config
from lorank.methods import METHODS
from lorank.recipe.files import make_recipe
from lorank.recipe.recipe import Recipe

# pytest-xdist sets it for its workers; tables would then be as narrow as its terminal.
os.environ.pop("COLUMNS", None)

GOOD, BAD = ("fine", "bright", "warm", "kind"), ("dull", "cold", "grim", "sour")
NEUTRAL = ("the", "day", "was", "and", "house", "looked", "rather", "very")


def tiny_config(**options: Any) -> BertConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=32, max_position_embeddings=32, **{**sizes, **options})


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("tiny"))


def make_tiny_folder(where: Path) -> Path:
    """A pretrained-model folder as `from_pretrained` reads it: tiny random BERT with a word tokenizer."""
    folder = where / "tiny-bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *NEUTRAL]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    set_seed(0)
    # Larger than BERT's 0.02, so that a few steps on this small a model change something.
    BertForSequenceClassification(tiny_config(initializer_range=0.3)).bert.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


def sentence(source: random.Random, mood: tuple[str, ...]) -> str:
    words = [source.choice(NEUTRAL) for _ in range(source.randint(2, 8))]
    return " ".join([*words, source.choice(mood), source.choice(NEUTRAL)])


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two tsv files: is the mood of the sentence good or bad?"""
    folder, source = tmp_path_factory.mktemp("data"), random.Random(0)
    for part, count in (("train", 120), ("test", 40)):
        rows = [(sentence(source, GOOD if k % 2 else BAD), "good" if k % 2 else "bad") for k in range(count)]
        (folder / f"{part}.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return {"train": str(folder / "train.tsv"), "test": str(folder / "test.tsv")}


@pytest.fixture(scope="session")
def tiny_recipe(tiny_folder: Path, tiny_data: dict[str, str]) -> Callable[..., Recipe]:
    """Make a recipe of a few seconds; sections given are merged into it."""

    def make(**changes: Any) -> Recipe:
        content: dict[str, Any] = {
            "model": str(tiny_folder),
            "budget": "r=1",
            "data": {**tiny_data, "max_length": 16},
            "checkpoint_every": 4,
            "log_every": 4,
            "triplets": {"initial_rank": 2},
            "train": {"max_steps": 10, "batch_size": 8, "learning_rate": 1e-2},
        }
        if METHODS[changes.get("method", "i-lora")].has_scoring_set:
            # A search as long as `train`, scored from its first tenth on: the default's leaves too little of 10 steps.
            content |= {"measure": {"scoring_batch_size": 8}, "preset": "paper"}
        for key, value in changes.items():
            own = content.get(key)
            content[key] = {**own, **value} if isinstance(own, dict) and isinstance(value, dict) else value
        return make_recipe(content)

    return make


def triplet_model(rank: int = 3, dtype: torch.dtype = torch.float64, **config: Any) -> tuple[PeftModel, TripletAdapter]:
    """Tiny BERT with triplets away from their start, in eval mode, and a view of its factors."""
    set_seed(1)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3, **quiet))
    lora = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["query", "dense"], task_type=TaskType.SEQ_CLS, **config
    )
    model = get_peft_model(base, triplet_config(lora)).to(dtype).eval()
    adapter = TripletAdapter.of(model)
    with torch.no_grad():
        for factor in adapter.factors("all"):
            factor.copy_(torch.randn_like(factor) * 0.3)
    return model, adapter


def tiny_trainer(
    folder: Path, *callbacks: Any, model: PeftModel | None = None, r: int = 4, rows: int = 96, **options: Any
) -> Trainer:
    """Trainer of a plain PEFT LoRA on tiny BERT (with its dropout): is token 7 in the text? 20 steps of 8 texts."""
    set_seed(0)
    if model is None:
        base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3))
        lora = LoraConfig(
            r=r,
            lora_alpha=2 * r,
            lora_dropout=0.1,
            target_modules=r".*layer.*\.(query|value|dense)",
            task_type=TaskType.SEQ_CLS,
        )
        model = get_peft_model(base, lora)
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 21, (rows, 8), generator=source)
    labels = (ids == 7).any(1).long()
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    usual = {"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "use_cpu": True, "save_steps": 3}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_steps": 5, "seed": 3}
    arguments = TrainingArguments(str(folder), **{**usual, **quiet, **options})
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data.select(range(16)), callbacks=list(callbacks))


def random_batch(size: int = 4, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 21, (size, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(size) % 2}


def save_tiny(model: PreTrainedModel, tiny_folder: Path, folder: Path, **tokens: str) -> Path:
    """Save a tiny random model as `from_pretrained` reads it, with the words of the tiny tokenizer."""
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens(tokens)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_writer(kind: str, tiny_folder: Path, folder: Path) -> Path:
    """A tiny model that writes: a "decoder" with Llama's architecture, or an "encoder-decoder" with BART's."""
    set_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if kind == "decoder":
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.3, tie_word_embeddings=True, **ids,
            )
        )  # fmt: skip
    else:
        model = BartForConditionalGeneration(
            BartConfig(
                vocab_size=32, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=1024,
                init_std=0.3, decoder_start_token_id=3, forced_eos_token_id=3, **ids,
            )
        )  # fmt: skip
    return save_tiny(model, tiny_folder, folder, eos_token="[SEP]")
