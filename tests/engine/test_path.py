import math
import random

import numpy as np
import pytest
import torch
from tests.conftest import random_batch, triplet_model

from lorank import LorankError
from lorank.adapter.path import capture, path_point
from lorank.engine.options import PathScoreOptions
from lorank.engine.path import PathScorer, model_loss
from lorank.scoring.undisturbed import undisturbed


def scorer_of(model, adapter, start=None, **options) -> PathScorer:
    return PathScorer(model, adapter, PathScoreOptions(**options), baseline=start, seed=3)


def loss_at(model, adapter, alpha: float, **path) -> float:
    with torch.no_grad(), path_point(adapter, alpha, **path):
        return float(model_loss(model, random_batch()))


# A path of P, λ and Q takes ten times as long: `make test` has one of it.
PATHS = [
    pytest.param(
        rule,
        start,
        moved,
        marks=[pytest.mark.long] if moved == "all" and (rule, start) != ("midpoint", "initial") else [],
    )
    for rule in ("trapezoid", "midpoint")
    for start in ("zero", "initial")
    for moved in ("lambda", "all")
]


@pytest.mark.parametrize(("rule", "baseline_kind", "moved"), PATHS)
def test_signed_shares_add_up_to_the_loss_reduction_and_the_error_falls_as_the_square(
    moved, baseline_kind, rule
) -> None:
    model, adapter = triplet_model()
    baseline = [0.1 * torch.randn_like(v) for v in capture(adapter, moved)] if baseline_kind == "initial" else None
    reduction = loss_at(model, adapter, 0, moved=moved, baseline=baseline) - loss_at(model, adapter, 1)
    assert abs(reduction) > 1e-2
    errors = []
    # Moving all three factors bends the path: more nodes until the error is in its asymptotic range.
    for intervals in (8, 16, 32) if moved == "lambda" else (64, 128, 256):
        scorer = scorer_of(
            model,
            adapter,
            baseline,
            nodes=rule,
            intervals=intervals,
            draw="sweep",
            moved=moved,
            baseline=baseline_kind,
            parameter_factor="signed",
        )
        errors.append(abs(scorer.batch_scores(random_batch()).sum().item() - reduction))
    orders = [math.log2(errors[k] / errors[k + 1]) for k in range(2)]
    assert orders == pytest.approx([2, 2], abs=0.15), errors
    assert errors[-1] < 2e-3 * abs(reduction)


def test_one_unit_alone_has_all_of_its_modules_share() -> None:
    model, adapter = triplet_model(rank=1)
    options = {
        "nodes": "midpoint",
        "intervals": 64,
        "draw": "sweep",
        "parameter_factor": "signed",
        "path_scope": "module",
    }
    scores = scorer_of(model, adapter, **options).batch_scores(random_batch())
    for index in range(len(adapter.names)):
        alone = loss_at(model, adapter.only(index), 0) - loss_at(model, adapter, 1)
        assert scores[index].item() == pytest.approx(alone, abs=2e-4)


def test_the_paper_score_is_the_plain_formula() -> None:
    model, adapter = triplet_model()
    batch = random_batch()
    got = scorer_of(model, adapter, draw="sweep", vector_reduction="mean").batch_scores(batch)
    raw = scorer_of(model, adapter, draw="sweep", vector_reduction="sum").batch_scores(batch)
    mean_expected, sum_expected = [], []
    for k in range(len(adapter.names)):
        for unit in range(adapter.ranks[k]):
            mean = total = 0.0
            for step in range(1, 11):
                with path_point(adapter, step / 10):
                    g = torch.autograd.grad(model_loss(model, batch), [adapter.lambdas[k], adapter.p[k], adapter.q[k]])
                vectors = g[0][unit].abs(), g[1][:, unit].abs(), g[2][unit, :].abs()
                mean += sum(v.mean().item() for v in vectors) / 10
                total += sum(v.sum().item() for v in vectors) / 10
            mean_expected.append(mean)
            sum_expected.append(total)
    assert got.numpy() == pytest.approx(np.array(mean_expected), rel=1e-5)
    assert raw.numpy() == pytest.approx(np.array(sum_expected), rel=1e-5)


def test_absolute_attribution_is_the_parameter_times_the_integral() -> None:
    model, adapter = triplet_model()
    options = {"nodes": "trapezoid", "intervals": 6, "draw": "sweep", "moved": "lambda"}
    signed = scorer_of(model, adapter, parameter_factor="signed", **options).batch_scores(random_batch())
    absolute = scorer_of(model, adapter, parameter_factor="absolute", **options).batch_scores(random_batch())
    # With λ alone on the path a unit's attribution is one number, so the two differ by its sign.
    assert torch.equal(absolute, signed.abs())


@pytest.mark.parametrize("rule", ["paper", "trapezoid"])
def test_one_drawn_node_has_the_sweep_as_its_mean(rule) -> None:
    model, adapter = triplet_model()
    drawn = scorer_of(model, adapter, nodes=rule, intervals=4, parameter_factor="signed")
    swept = scorer_of(model, adapter, nodes=rule, intervals=4, parameter_factor="signed", draw="sweep")
    points = drawn.nodes.alphas
    by_point = {}
    for draw in range(400):
        by_point.setdefault(drawn.drawn_points(draw)[0][0], draw)
    assert set(by_point) == set(points)
    counts = [sum(drawn.drawn_points(draw)[0][0] == alpha for draw in range(400)) for alpha in points]
    assert min(counts) > 400 / len(points) / 2
    mean = torch.stack([drawn.batch_scores(random_batch(), draw) for draw in by_point.values()]).mean(0)
    assert torch.allclose(mean, swept.batch_scores(random_batch()), atol=1e-6)


def test_a_loss_scale_is_divided_out_again() -> None:
    model, adapter = triplet_model()
    plain = PathScorer(model, adapter).batch_scores(random_batch())
    assert torch.equal(PathScorer(model, adapter, loss_scale=1024.0).batch_scores(random_batch()), plain)


def test_module_granularity_gives_every_unit_its_modules_score() -> None:
    model, adapter = triplet_model()
    units = scorer_of(model, adapter, draw="sweep").batch_scores(random_batch()).split(list(adapter.ranks))
    modules = scorer_of(model, adapter, draw="sweep", granularity="module").batch_scores(random_batch())
    for unit, module in zip(units, modules.split(list(adapter.ranks)), strict=True):
        assert torch.allclose(module, unit.mean().expand_as(unit))


def test_scoring_leaves_training_untouched() -> None:
    model, adapter = triplet_model(lora_dropout=0.5)
    model.train()
    model.get_base_model().bert.eval()
    optimizer = torch.optim.AdamW(adapter.factors("all"))
    model_loss(model, random_batch()).backward()
    before = {
        "modes": [module.training for module in model.modules()],
        "gradients": [f.grad.clone() for f in adapter.factors("all")],
        "values": capture(adapter, "all"),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
    }
    for dropout in (False, True):
        scores = scorer_of(model, adapter, dropout=dropout, draw="sweep").batch_scores(random_batch())
        assert scores.dtype == torch.float64  # that of this adapter
        assert not scores.requires_grad
    assert [module.training for module in model.modules()] == before["modes"]
    assert all(torch.equal(f.grad, g) for f, g in zip(adapter.factors("all"), before["gradients"], strict=True))
    assert all(torch.equal(f, v) for f, v in zip(adapter.factors("all"), before["values"], strict=True))
    assert torch.equal(torch.get_rng_state(), before["torch"])
    assert random.getstate() == before["python"]
    assert np.random.get_state()[1].tolist() == before["numpy"]
    assert optimizer.state_dict()["state"] == {}


def test_gradient_checkpointing_saves_memory_while_scoring_too() -> None:
    """And dropout stays off: transformers checkpoints only what is in training mode."""
    model, adapter = triplet_model(lora_dropout=0.5)
    saved: dict[bool, int] = {}
    scores = []
    for checkpointing in (False, True):
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        sizes: list[int] = []

        def kept(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor), undisturbed(model):
            loss = model_loss(model, random_batch())
            saved[checkpointing] = sum(sizes)
            scores.append(torch.autograd.grad(loss, adapter.lambdas))
    assert saved[True] < 0.5 * saved[False]
    assert all(torch.equal(a, b) for a, b in zip(*scores, strict=True))


def test_dropout_while_scoring_is_off_unless_asked_for_and_seeded() -> None:
    model, adapter = triplet_model(lora_dropout=0.5)
    model.train()
    quiet = scorer_of(model, adapter, draw="sweep")
    assert torch.equal(quiet.batch_scores(random_batch()), quiet.batch_scores(random_batch()))
    noisy = scorer_of(model, adapter, draw="sweep", dropout=True)
    assert torch.equal(noisy.batch_scores(random_batch(), 1), noisy.batch_scores(random_batch(), 1))
    assert not torch.equal(noisy.batch_scores(random_batch(), 1), noisy.batch_scores(random_batch(), 2))


def test_cost_in_passes_is_stated() -> None:
    model, adapter = triplet_model()
    assert scorer_of(model, adapter).passes_per_batch == 1
    assert scorer_of(model, adapter, draw="sweep").passes_per_batch == 10
    assert scorer_of(model, adapter, draw="sweep", nodes="trapezoid", intervals=20).passes_per_batch == 21
    assert scorer_of(model, adapter, path_scope="module").passes_per_batch == len(adapter.names)


def test_what_is_missing_is_said() -> None:
    model, adapter = triplet_model()
    with pytest.raises(LorankError, match="initial values"):
        PathScorer(model, adapter, PathScoreOptions(baseline="initial"))
    batch = random_batch()
    del batch["labels"]
    with pytest.raises(LorankError, match="labels"):
        scorer_of(model, adapter).batch_scores(batch)
