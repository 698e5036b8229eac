"""Tiny models, a word tokenizer and a few rows for TRL's trainers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

WORDS = ["[PAD]", "[UNK]", "</s>", *(f"w{i}" for i in range(20))]
PAIRS = [{"prompt": "w1 w2 ", "chosen": f"w{i % 9}", "rejected": f"w{(i + 1) % 9}"} for i in range(16)]
JUDGED = [{"prompt": "w1 w2 ", "completion": f"w{i % 9}", "label": i % 2 == 0} for i in range(16)]
PROMPTS = [{"prompt": f"w1 w{i % 9}"} for i in range(16)]


def word_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>")


def reward(completions: Sequence[str], **_: Any) -> list[float]:
    return [len(text) % 5 + 0.1 * k for k, text in enumerate(completions)]


def trl_trainer(kind: str, folder: Path, callbacks: Sequence[Any] = (), model: Any = None, **options: Any) -> Any:
    """A trainer of six steps: dpo, kto, reward, grpo, rloo; of `model`, a PeftModel, or of a new one with `peft_config`."""
    import trl

    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, eos_token_id=2, **sizes)
    usual: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False}
    usual |= {"report_to": "none", "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2}
    lora: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    if kind == "reward":
        config.num_labels = 1
        lora |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    generates = kind in ("grpo", "rloo")
    written = {"num_generations": 4, "max_completion_length": 6, "beta": 0.1} if generates else {}
    trainer, arguments, rows = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig, PAIRS),
        "kto": (trl.KTOTrainer, trl.KTOConfig, JUDGED),
        "reward": (trl.RewardTrainer, trl.RewardConfig, PAIRS),
        "grpo": (trl.GRPOTrainer, trl.GRPOConfig, PROMPTS),
        "rloo": (trl.RLOOTrainer, trl.RLOOConfig, PROMPTS),
    }[kind]
    return trainer(
        model=model or (LlamaForSequenceClassification if kind == "reward" else LlamaForCausalLM)(config),
        args=arguments(str(folder), **{**usual, **written, **options}),
        train_dataset=Dataset.from_list(rows),
        eval_dataset={"scoring": Dataset.from_list([{**row, "prompt": "w3 w4 w5 "} for row in rows[:8]])},
        processing_class=word_tokenizer(),
        peft_config=None if model else LoraConfig(**lora),
        callbacks=list(callbacks),
        **({"reward_funcs": reward} if generates else {}),
    )
