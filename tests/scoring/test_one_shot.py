import math

import numpy as np
import pytest
import torch
from tests.conftest import random_batch, tiny_config, triplet_model
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, set_seed

import lorank
from lorank.errors import DataError, LorankWarning, RecipeError, ScoresError, TargetError
from lorank.scoring.one_shot import resampling


def tiny_bert(dtype: torch.dtype = torch.float64) -> BertForSequenceClassification:
    set_seed(0)
    return BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3)).to(dtype).eval()


BATCHES = [random_batch(seed=seed) for seed in range(6)]
LAYER = "bert.encoder.layer.0"


class TestResampling:
    def test_rows_are_all_both_halves_and_draws(self) -> None:
        rows, used = resampling(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0)
        assert used == 4
        assert rows[:3].tolist() == [[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
        assert bool((rows[3:].sum(1) == 4).all())
        assert torch.equal(rows, resampling(torch.ones(4), 0)[0])
        assert not torch.equal(rows, resampling(torch.ones(4), 1)[0])

    def test_folds_without_targets_take_no_part(self) -> None:
        rows, used = resampling(torch.tensor([3.0, 0.0, 2.0]), 0)
        assert used == 2
        assert not rows[:, 1].any()

    def test_one_fold_says_nothing_about_others(self) -> None:
        rows, used = resampling(torch.tensor([0.0, 5.0]), 0)
        assert (rows.tolist(), used) == ([[0, 1]], 1)


class TestSensitivity:
    @pytest.mark.filterwarnings("ignore:.*negative and counts as zero", "ignore:the standard error of the trace")
    @pytest.mark.parametrize("estimator", ["gram", "fisher", "kfac", "hutchinson"])
    def test_every_module_has_a_score_with_its_standard_error(self, estimator: str) -> None:
        model = tiny_bert()
        scores = lorank.score(model, BATCHES, estimator=estimator)
        assert len(scores.scores) == 12
        assert all(values.shape == (1,) for values in scores.scores.values())
        assert scores.max_ranks == {
            name: min(m.weight.shape) for name, m in model.named_modules() if name in scores.scores
        }
        assert scores.standard_errors is not None
        assert all(error > 0 for values in scores.standard_errors.values() for error in values)
        made = scores.provenance
        assert (made["method"], made["estimator"], made["examples"], made["batches"]) == (
            "sensitivity-lora",
            estimator,
            24,
            6,
        )

    def test_gram_cannot_tell_query_key_and_value_apart_and_the_others_can(self) -> None:
        for estimator, told in (("gram", 1), ("fisher", 3), ("kfac", 3)):
            scores = lorank.score(tiny_bert(), BATCHES, estimator=estimator).scores
            found = {float(scores[f"{LAYER}.attention.self.{part}"][0]) for part in ("query", "key", "value")}
            assert len(found) == told

    def test_the_trace_alone_is_the_trace_over_its_mean(self) -> None:
        model = tiny_bert()
        scores = lorank.score(
            model, BATCHES, estimator="fisher", per_output=False, topk_weight=0, effective_rank_weight=0
        )
        traces = dict.fromkeys(scores.scores, 0.0)
        for batch in BATCHES:
            for one in range(4):
                model.zero_grad()
                model(**{key: value[one : one + 1] for key, value in batch.items()}).loss.backward()
                for name in traces:
                    traces[name] += float(model.get_submodule(name).weight.grad.square().sum()) / 24
        mean = np.mean(list(traces.values()))
        for name, values in scores.scores.items():
            assert float(values[0]) == pytest.approx(traces[name] / mean, rel=1e-9)

    def test_the_trace_of_a_mean_row_and_ranks_by_unit_cost(self) -> None:
        alone = {"topk_weight": 0, "effective_rank_weight": 0}
        whole, mean = (lorank.score(tiny_bert(), BATCHES, per_output=own, **alone) for own in (False, True))
        names = list(whole.scores)
        d_out = np.array([tiny_bert().get_submodule(name).out_features for name in names])
        traces, rows = (np.array([float(one.scores[name][0]) for name in names]) for one in (whole, mean))
        assert rows == pytest.approx(traces / d_out / np.mean(traces / d_out))
        assert mean.provenance["calibration"]["per_output"] is True
        # A budget at which the shares are whole ranks but for rounding: proportional to score / (d_in + d_out).
        costs = np.array([whole.unit_costs[name] for name in names])
        plan = lorank.allocate(whole, "r=2", rank_by="score-per-parameter", within=math.inf)
        shares = traces / costs * 2 * costs.sum() / traces.sum()
        assert np.abs(np.array([plan.ranks[name] for name in names]) - shares).max() < 1

    def test_the_standard_error_is_that_of_the_mean(self) -> None:
        # Inputs of one column: the score of the only module is its trace over itself; so look at two with a fixed sum.
        errors, spread = [], []
        for seed in range(30):
            batches = [random_batch(size=64, seed=1000 * seed + k) for k in range(2)]
            scores = lorank.score(tiny_bert(torch.float32), batches, estimator="kfac", folds=16)
            errors.append(float(scores.standard_errors[f"{LAYER}.output.dense"][0]))
            spread.append(float(scores.scores[f"{LAYER}.output.dense"][0]))
        assert np.mean(errors) == pytest.approx(np.std(spread, ddof=1), rel=0.5)

    @pytest.mark.filterwarnings("ignore:.*negative and counts as zero", "ignore:the standard error of the trace")
    def test_scores_are_the_same_for_a_seed(self) -> None:
        one, two, other = (lorank.score(tiny_bert(), BATCHES, estimator="hutchinson", seed=seed) for seed in (1, 1, 2))
        assert one.fingerprint == two.fingerprint != other.fingerprint

    def test_a_single_example_has_no_standard_error(self) -> None:
        with pytest.warns(LorankWarning, match="the scores are of a single example, so no standard error is known"):
            scores = lorank.score(tiny_bert(), [random_batch(size=1)])
        assert scores.standard_errors is None
        assert scores.resamples is None

    def test_a_loss_that_no_layer_changes_is_refused(self) -> None:
        def nothing(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
            return model(**batch).logits.sum() * 0, torch.ones(4)

        with pytest.raises(ScoresError, match="no layer is sensitive"):
            lorank.score(tiny_bert(), BATCHES, estimator="fisher", loss=nothing)

    def test_a_loss_that_curves_downwards_everywhere_says_so(self) -> None:
        def hill(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
            logits = model(**batch).logits  # at its top: the gradient is 0, the Hessian -2 J'J
            return -(logits - logits.detach()).square().sum(), torch.ones(4)

        with pytest.raises(
            ScoresError, match=r"traces of all \d+ modules are negative.*use estimator='fisher' or 'kfac'"
        ):
            lorank.score(tiny_bert(), BATCHES, estimator="hutchinson", loss=hill, probes=8)


class TestOtherScorers:
    def test_gradient_is_the_mean_of_weight_times_gradient_of_single_examples(self) -> None:
        model = tiny_bert()
        found = lorank.score(model, BATCHES[:1], "gradient").scores
        for name in found:
            weight, expected = model.get_submodule(name).weight, 0.0
            for one in range(4):
                loss = model(**{key: value[one : one + 1] for key, value in BATCHES[0].items()}).loss
                (gradient,) = torch.autograd.grad(loss, [weight])
                expected += float((weight * gradient).abs().mean()) / 4
            assert float(found[name][0]) == pytest.approx(expected, rel=1e-9)

    def test_conv1d_weights_are_stored_the_other_way_round(self) -> None:
        set_seed(0)
        sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)).double().eval()
        ids = torch.arange(12).reshape(2, 6)
        found = lorank.score(model, [{"input_ids": ids, "labels": ids}], "gradient").scores[
            "transformer.h.0.attn.c_attn"
        ]
        weight, expected = model.transformer.h[0].attn.c_attn.weight, 0.0
        for row in ids:
            loss = model(input_ids=row[None], labels=row[None]).loss * 5
            expected += float((weight * torch.autograd.grad(loss, [weight])[0]).abs().mean()) / 10
        assert float(found[0]) == pytest.approx(expected, rel=1e-9)

    def test_magnitude_needs_no_data(self) -> None:
        model = tiny_bert()
        found = lorank.score(model, method="magnitude")
        for name, values in found.scores.items():
            assert float(values[0]) == pytest.approx(float(model.get_submodule(name).weight.abs().mean()))
        assert found.resamples is None

    def test_magnitude_of_damaged_weights(self) -> None:
        model = tiny_bert()
        with torch.no_grad():
            model.get_submodule(f"{LAYER}.output.dense").weight[0, 0] = torch.nan
        with pytest.raises(ScoresError, match=rf"weights of '{LAYER}\.output\.dense' are not finite"):
            lorank.score(model, method="magnitude")


def test_negative_and_unsure_traces_are_said_aloud() -> None:
    unsure = (
        r"trace is not below its value in \d+ of 12 modules \('bert.* more\); raise probes .* or the number of examples"
    )
    with (
        pytest.warns(LorankWarning, match=unsure),
        pytest.warns(LorankWarning, match=r"of 12 modules is negative and counts as zero; raise probes"),
    ):
        lorank.score(tiny_bert(), BATCHES[:1], estimator="hutchinson")


def test_where_directions_are_not_the_noise_more_examples_are_asked_for() -> None:
    batches = [random_batch(size=2, seed=7)]
    with pytest.warns(LorankWarning, match=r"modules .*; raise the number of examples$"):
        lorank.score(tiny_bert(), batches, estimator="hutchinson", probes=64)


class TestPresets:
    def test_paper_is_the_hessian_of_the_loss_by_fisher_for_classifiers_and_language_models(self) -> None:
        set_seed(0)
        decoder = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2)).eval()
        texts = [{"input_ids": (ids := torch.randint(1, 32, (4, 6))), "labels": ids}]
        for model, batches in ((tiny_bert(), BATCHES), (decoder, texts)):
            paper = lorank.score(model, batches, preset="paper")
            by_hand = lorank.score(model, batches, estimator="fisher", per_output=False)
            assert paper.fingerprint == by_hand.fingerprint != lorank.score(model, batches).fingerprint
            made = paper.provenance
            assert (made["preset"], made["estimator"]) == ("paper", "fisher")
            assert made["hessian_of"].startswith("the loss, by squared gradients")
            assert by_hand.provenance["preset"] == "per-output"
        assert "not the loss" in lorank.score(tiny_bert(), BATCHES).provenance["hessian_of"]

    @pytest.mark.filterwarnings("ignore:.*negative and counts as zero", "ignore:the standard error of the trace")
    def test_an_option_over_it_takes_hutchinson_and_plans_say_whose_hessian_it_is(self) -> None:
        scores = lorank.score(tiny_bert(), BATCHES, preset="paper", estimator="hutchinson", probes=2)
        made = lorank.allocate(scores, "r=2").provenance
        assert (made["preset"], made["estimator"]) == ("paper", "hutchinson")
        assert made["hessian_of"] == "the loss itself, by random directions"
        assert set(made["traces"]) == set(scores.scores)
        assert all(one["standard_error_of_probes"] > 0 for one in made["traces"].values())

    def test_gram_over_it_is_said_aloud(self) -> None:
        with pytest.warns(LorankWarning, match="preset paper takes the Hessian of the loss, but estimator gram"):
            lorank.score(tiny_bert(), BATCHES, preset="paper", estimator="gram")

    def test_a_preset_that_there_is_not(self) -> None:
        with pytest.raises(RecipeError, match=r"preset 'papr' of sensitivity-lora is unknown \(did you mean paper\?\)"):
            lorank.score(tiny_bert(), BATCHES, preset="papr")


def test_something_else_than_a_model() -> None:
    with pytest.raises(TargetError, match="model is str; give the loaded model"):
        lorank.score("tiny-bert", BATCHES)  # type: ignore[arg-type]


class TestTheDoor:
    def test_five_lines_give_a_model_to_train(self) -> None:
        from peft import get_peft_model

        model = tiny_bert(torch.float32)
        scores = lorank.score(model, BATCHES)
        plan = lorank.allocate(scores, "r=2")
        peft_model = get_peft_model(model, plan.lora_config(task_type="SEQ_CLS"))
        held = sum(p.numel() for name, p in peft_model.named_parameters() if ".lora_" in name)
        assert held == plan.spent <= plan.budget_parameters

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                {"method": "sensitivity"},
                RecipeError,
                r"did you mean sensitivity-lora\?.*to score before training: sensi",
            ),
            ({"method": "i-lora"}, RecipeError, "scores while it trains: use `lorank run`"),
            (
                {"estimater": "gram"},
                RecipeError,
                r"estimater: no option .*did you mean estimator\?.*allowed: folds, estimator, trace",
            ),
            ({"method": "gradient", "estimator": "gram"}, RecipeError, r"estimator: no option of method 'gradient'"),
            ({"target_modules": ["query"]}, RecipeError, r"did you mean targets\?"),
            ({"dataloader": BATCHES[0]}, DataError, "is a single batch; give an iterable"),
            (
                {"estimator": "fisher", "loss": lambda m, batch: (m(**batch).loss, 4)},
                DataError,
                "returned 4 as number of targets",
            ),
            ({"estimator": "grams"}, RecipeError, "estimator: Input should be 'gram'"),
            ({"folds": 1}, RecipeError, "folds: Input should be greater than or equal to 2"),
            ({"targets": ["qery"]}, TargetError, "query"),
            ({"dataloader": None}, DataError, "needs calibration batches"),
        ],
    )
    def test_bad_input(self, arguments: dict, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            lorank.score(tiny_bert(), **{"dataloader": BATCHES, **arguments})

    def test_a_model_with_adapters_is_refused(self) -> None:
        with pytest.raises(TargetError, match="carries an adapter already; score the base model"):
            lorank.score(triplet_model()[0], BATCHES)

    def test_a_file_keeps_everything(self, tmp_path) -> None:
        scores = lorank.score(tiny_bert(), BATCHES)
        scores.save(tmp_path / "scores.safetensors")
        loaded = lorank.ImportanceScores.load(tmp_path / "scores.safetensors")
        assert list(loaded.scores) == list(scores.scores)
        assert loaded.fingerprint == scores.fingerprint
        assert loaded.max_ranks == scores.max_ranks
        one, two = lorank.allocate(scores, "r=2"), lorank.allocate(loaded, "r=2")
        assert one == two
        assert set(one.provenance["stability"]) == {"halves", "bootstrap"}


@pytest.mark.parametrize("estimator", ["gram", "fisher"])
def test_scores_are_the_same_inside_of_inference_mode(estimator: str) -> None:
    model = tiny_bert()
    outside = lorank.score(model, BATCHES, estimator=estimator)
    with torch.inference_mode():
        inside = lorank.score(model, BATCHES, estimator=estimator)
        made_inside = tiny_bert()
    assert inside.scores == outside.scores
    with pytest.raises(ScoresError, match=r"made inside of torch\.inference_mode"):
        lorank.score(made_inside, BATCHES)
