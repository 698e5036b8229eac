import pytest
import torch
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora.eva import get_eva_state_dict
from tests.conftest import random_batch
from tests.scoring.test_one_shot import tiny_bert

import lorank
from lorank.errors import DataError
from lorank.scoring.eva import principal_inputs
from lorank.targets import find_targets

BATCHES = [random_batch(size=8, seed=seed) for seed in range(3)]
LAYER = "bert.encoder.layer.1.output.dense"


def inputs_of(model: torch.nn.Module, name: str, batches: list) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda _, args, output: rows.append(args[0][batch["attention_mask"].bool()])
    )
    for batch in batches:
        model(**batch)
    hook.remove()
    return torch.cat(rows)


def test_scores_are_shares_of_the_variance_of_the_real_tokens() -> None:
    model, batches = tiny_bert(torch.float32), [{**batch} for batch in BATCHES]
    for batch in batches:
        batch["attention_mask"] = batch["attention_mask"].clone()
        batch["attention_mask"][:4, 5:] = 0
    scores = lorank.score(model, batches, "eva", components=16)
    with torch.no_grad():
        rows = inputs_of(model, LAYER, batches).double()
    sigma = torch.linalg.svdvals(rows - rows.mean(0))
    exact = (sigma.square() / sigma.square().sum())[:16]
    # PEFT's PCA takes batch after batch and keeps 16 of 32 directions in between.
    torch.testing.assert_close(torch.from_numpy(scores.scores[LAYER])[:6], exact[:6], rtol=0.1, atol=0)


def test_directions_of_one_batch_are_those_of_peft() -> None:
    model = tiny_bert(torch.float32)
    batch = {k: v for k, v in BATCHES[0].items() if k != "labels"}
    # No redistribution of ranks, and converged at once.
    config = LoraConfig(r=4, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0, tau=0.0), target_modules=[LAYER])
    theirs = get_eva_state_dict(model, [batch], config, show_progress_bar=False)
    ours = principal_inputs(model, find_targets(model, [LAYER]), [batch, batch], 4)[0][LAYER][0]
    cosines = torch.nn.functional.cosine_similarity(ours.float(), theirs[LAYER].float(), dim=1)
    torch.testing.assert_close(cosines[:3].abs(), torch.ones(3), atol=1e-2, rtol=0)


def test_layers_with_one_input_share_their_directions() -> None:
    model = tiny_bert(torch.float32)
    found, _ = principal_inputs(model, find_targets(model), BATCHES, 4)
    parts = [found[f"bert.encoder.layer.0.attention.self.{part}"][0] for part in ("query", "key", "value")]
    assert parts[0] is parts[1] is parts[2]


def test_a_fresh_adapter_starts_at_them_and_does_nothing_yet() -> None:
    from lorank.methods import METHODS
    from lorank.scoring.one_shot import ScoringInput
    from lorank.scoring.options import InputVarianceOptions

    model = tiny_bert(torch.float32)
    before = model(**BATCHES[0]).logits
    plan = lorank.allocate(lorank.score(model, BATCHES, "eva", components=8), "r=2")
    found, _ = principal_inputs(model, find_targets(model), BATCHES, 8)
    peft_model = get_peft_model(model, plan.lora_config(task_type="SEQ_CLS"))
    inside = peft_model.get_base_model()
    scoring = ScoringInput(inside, find_targets(tiny_bert()), BATCHES, InputVarianceOptions(components=8))
    METHODS["eva"].set_start(peft_model, scoring)
    for name, rank in plan.ranks.items():
        if rank:
            torch.testing.assert_close(
                inside.get_submodule(name).lora_A["default"].weight.detach(),
                found[name][0][:rank].float(),
                rtol=1e-4,
                atol=1e-5,
            )
    torch.testing.assert_close(peft_model.eval()(**BATCHES[0]).logits, before)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="saw fewer than 16 calibration tokens"):
        lorank.score(tiny_bert(torch.float32), [random_batch(size=1, length=4)], "eva")
