"""Score, allocate, train some steps, save, reload: on a real encoder, decoder and encoder-decoder; run by `make slow`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import lorank

ENGLISH = (
    "The house by the river was sold last year.",
    "Nobody knows what the committee will decide, and nobody asks.",
    "Please bring the red book.",
    "Prices of wheat and corn rose again in March.",
    "He left.",
    "Our train to the coast leaves in the early morning.",
    "They have never seen so much snow in April.",
    "The report was short, clear and wrong.",
)
FRENCH = (
    "La maison au bord de la rivière a été vendue l'an dernier.",
    "Personne ne sait ce que décidera le comité, et personne ne demande.",
    "Apportez le livre rouge, s'il vous plaît.",
    "Les prix du blé et du maïs ont encore augmenté en mars.",
    "Il est parti.",
    "Notre train pour la côte part tôt le matin.",
    "Ils n'ont jamais vu autant de neige en avril.",
    "Le rapport était court, clair et faux.",
)
CASES = {
    "minilm": (AutoModelForSequenceClassification, DataCollatorWithPadding, "SEQ_CLS"),
    "smollm2": (AutoModelForCausalLM, DataCollatorForLanguageModeling, "CAUSAL_LM"),
    "marian": (AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, "SEQ_2_SEQ_LM"),
}


def rows_of(name: str, tokenizer: Any) -> list[dict[str, Any]]:
    encoded = tokenizer(list(ENGLISH), **({"text_target": list(FRENCH)} if name == "marian" else {}))
    rows = [{key: encoded[key][k] for key in encoded} for k in range(len(ENGLISH))]
    return [row | {"labels": k % 2} for k, row in enumerate(rows)] if name == "minilm" else rows


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore:.*negative and counts as zero")  # eight examples are few for hutchinson
@pytest.mark.filterwarnings("ignore:the standard error of the trace is not below its value")
@pytest.mark.parametrize("estimator", ["gram", "fisher", "kfac", "hutchinson"])
@pytest.mark.parametrize("name", CASES)
def test_the_whole_chain(name: str, estimator: str, tmp_path: Path) -> None:
    folder = Path("downloads") / name
    if not (folder / ".complete").exists():
        pytest.skip(f"{folder} is missing: run `python examples/prepare_more.py downloads`")
    family, collator, task = CASES[name]
    set_seed(0)
    model = family.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    collate = collator(tokenizer, **({"mlm": False} if name == "smollm2" else {}))
    rows = rows_of(name, tokenizer)

    scores = lorank.score(model, [collate(rows[:3]), collate(rows[3:])], estimator=estimator)
    again = lorank.score(model, [collate(rows)], estimator=estimator)
    for module, values in scores.scores.items():
        assert float(values[0]) == pytest.approx(float(again.scores[module][0]), rel=1e-2, abs=1e-4)
    plan = lorank.allocate(scores, "r=4", max_rank=32)
    assert plan.budget_parameters - max(plan.unit_costs.values()) < plan.spent <= plan.budget_parameters

    peft_model = get_peft_model(model, plan.lora_config(task_type=task))
    arguments = TrainingArguments(
        str(tmp_path / "training"), max_steps=4, per_device_train_batch_size=4, learning_rate=2e-3, use_cpu=True,
        report_to="none", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(peft_model, arguments, train_dataset=rows, data_collator=collate)
    batch = collate(rows)
    before = float(peft_model.eval()(**batch).loss)
    trainer.train()
    after = peft_model.eval()(**batch)
    assert float(after.loss) < before
    trainer.save_model(str(tmp_path / "adapter"))

    set_seed(0)
    loaded = PeftModel.from_pretrained(family.from_pretrained(folder), str(tmp_path / "adapter")).eval()
    held = sum(p.numel() for n, p in loaded.named_parameters() if ".lora_" in n)
    assert held == plan.spent
    torch.testing.assert_close(loaded(**batch).logits, after.logits, atol=1e-4, rtol=1e-4)
