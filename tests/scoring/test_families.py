"""Layers whose rows belong to no single example of a batch: scored as the examples are one by one, by brute force."""

from typing import Any

import pytest
import torch
from tests.scoring.family_cases import IMAGE, clip, deberta_v3, make, texts, with_pixels
from torch.func import functional_call
from transformers import set_seed

import lorank
from lorank.scoring.calibration import Quantity, calibrate
from lorank.scoring.eva import principal_inputs
from lorank.targets import find_targets

FAMILIES = [
    "deberta-v3", "deberta", "xlnet", "multiple choice", "whisper", "llava", "llava, images in some", "qwen2-vl"
]  # fmt: skip


def alone(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Every example of a batch by itself and without padding, cut by hand."""
    examples = []
    images = batch["input_ids"].eq(IMAGE).sum(1).tolist() if "pixel_values" in batch else []
    mask = batch.get("attention_mask")
    for row in range(len(batch["labels"])):
        one = {k: v[row : row + 1] for k, v in batch.items() if k not in ("pixel_values", "image_grid_thw")}
        if mask is not None and mask.ndim == 2:
            length = int(mask[row].sum())
            one = {k: v[:, :length] if v.ndim == 2 else v for k, v in one.items()}
        elif mask is None:
            one["labels"] = one["labels"][:, : int((one["labels"][0] != -100).nonzero()[-1]) + 1]
        before, own = sum(images[:row]), images[row] if images else 0
        if "image_grid_thw" in batch and own:
            one["pixel_values"] = batch["pixel_values"][4 * before : 4 * (before + own)]
            one["image_grid_thw"] = batch["image_grid_thw"][:2] if row == 0 else batch["image_grid_thw"][2:]
        elif "pixel_values" in batch and own:
            one["pixel_values"] = batch["pixel_values"][before // 4 : (before + own) // 4]
        examples.append(one)
    return examples


def brute_force(family: str) -> dict[str, dict[str, torch.Tensor]]:
    """Every quantity from autograd and hooks on one example at a time."""
    model, batch = make(family)
    names = [target.name for target in find_targets(model)]
    weights = {name: model.get_submodule(name).weight for name in names}
    found: dict[str, dict[str, torch.Tensor]] = {
        kind: {} for kind in ("inputs", "tokens", "deltas", "fisher", "gradient")
    }

    def add(kind: str, name: str, value: Any) -> None:
        found[kind][name] = found[kind].get(name, 0) + value.detach()

    def hook(name: str) -> Any:
        def look(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            real = torch.ones(args[0].shape[:-1], dtype=torch.bool)
            if family == "multiple choice":
                real = one["attention_mask"][0].bool()
            add("inputs", name, args[0][real].square().sum(0))
            add("tokens", name, real.sum())
            output.register_hook(lambda delta: add("deltas", name, delta.square().sum()))
            return output.clone()  # DeBERTa divides outputs in place

        return look

    hooks = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    for one in alone(batch):
        targets = 1 if one["labels"].ndim == 1 else int((one["labels"] != -100).sum())
        if family.startswith(("llava", "qwen")):
            targets = int((one["labels"][:, 1:] != -100).sum())
        loss = model(**one).loss * targets
        gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True, retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            add("fisher", name, gradient.square().sum(0))
            add("gradient", name, (weights[name] * gradient).abs().sum(0))
    for one_hook in hooks:
        one_hook.remove()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_estimator_gives_what_examples_give_one_by_one(family: str) -> None:
    model, batch = make(family)
    targets, expected = find_targets(model), brute_force(family)
    reached = [target.name for target in targets if bool(expected["fisher"][target.name].any())]
    assert len(reached) > 0.6 * len(targets)
    kinds: list[tuple[Quantity, str, str]] = [
        ("gram", "columns", "inputs"), ("gram", "tokens", "tokens"), ("kfac", "columns", "inputs"),
        ("kfac", "outputs", "deltas"), ("fisher", "columns", "fisher"), ("gradient", "columns", "gradient"),
    ]  # fmt: skip
    for quantity, kind, brute in kinds:
        sums = calibrate(model, targets, [batch], quantity)
        assert sums.left_out == {}
        assert sums.examples == len(batch["labels"])
        assert sums.batches == 1
        wanted = [t.name for t in targets] if brute in ("inputs", "tokens") else reached
        values = {name: getattr(sums, kind)[name].sum(0).double() for name in wanted}
        torch.testing.assert_close(
            values,
            {name: expected[brute][name].double() for name in wanted},
            rtol=1e-7,
            atol=1e-12,
            msg=f"{quantity} {kind}",
        )


def test_a_second_derivative_along_the_direction_of_each_module_is_what_hutchinson_sums() -> None:
    model, batch = make("deberta-v3")
    targets = find_targets(model)
    found = calibrate(model, targets, [batch], "hutchinson", folds=4, probes=1)
    assert found.alone is not None
    from lorank.scoring.curvature.hutchinson import OuterProductProbes

    probes, weights = OuterProductProbes(targets, 0), dict(model.named_parameters())
    for number, one in enumerate(alone(batch)):
        probes.draw([number], 0)
        signs = {
            target.name: probes._signs[0, (place := probes._place[target.name])[0] :][: place[1] + place[2]]
            for target in targets
        }
        for target in targets:
            t = torch.zeros((), dtype=torch.float64, requires_grad=True)
            v = torch.outer(signs[target.name][target.d_in :], signs[target.name][: target.d_in])
            moved = {f"{target.name}.weight": weights[f"{target.name}.weight"] + t * v}
            (first,) = torch.autograd.grad(functional_call(model, moved, (), one).loss, t, create_graph=True)
            (second,) = torch.autograd.grad(first, t)
            assert float(found.columns[target.name][number].sum()) == pytest.approx(float(second), rel=1e-6, abs=1e-12)
            assert float(found.traces[target.name][0, number]) == pytest.approx(float(second), rel=1e-6, abs=1e-12)


def test_the_scores_do_not_depend_on_how_examples_are_put_into_batches() -> None:
    model, batch = make("deberta-v3")
    rows = [{key: value[row : row + 2] for key, value in batch.items()} for row in (0, 2)]
    for options in ({}, {"estimator": "fisher"}, {"estimator": "kfac"}, {"method": "gradient"}):
        one, two, each = (lorank.score(model, batches, **options) for batches in ([batch], rows, alone(batch)))
        for other in (two, each):
            for name, values in one.scores.items():
                assert float(other.scores[name][0]) == pytest.approx(float(values[0]), rel=1e-7)


def test_principal_inputs_are_those_of_all_rows_that_a_layer_sees() -> None:
    model, batch = make("deberta-v3")
    layer = "deberta.encoder.layer.0.attention.self"
    rows: dict[str, list[torch.Tensor]] = {"query_proj": [], "value_proj": []}
    hooks = [
        model.get_submodule(f"{layer}.{part}").register_forward_hook(
            lambda _, args, output, part=part: rows[part].append(args[0][0])
        )
        for part in rows
    ]
    for one in alone(batch):
        model(**one)
    for hook in hooks:
        hook.remove()
    found, why = principal_inputs(model, find_targets(model), [batch], 16)
    assert why is not None
    assert "query_proj" in why
    for part, seen in rows.items():
        values = torch.cat(seen).detach()
        exact = torch.linalg.svdvals(values - values.mean(0)).square()
        torch.testing.assert_close(found[f"{layer}.{part}"][1].double(), exact / exact.sum(), rtol=1e-3, atol=1e-5)
    assert found[f"{layer}.query_proj"][0] is found[f"{layer}.key_proj"][0]
    assert found[f"{layer}.query_proj"][0] is not found[f"{layer}.value_proj"][0]


def test_two_towers_count_their_own_tokens() -> None:
    set_seed(0)
    model, batch = clip().double().eval(), with_pixels(texts(4), 4)
    sums = calibrate(model, find_targets(model), [batch], "gram")
    for name, tokens in sums.tokens.items():
        assert int(tokens.sum()) == (4 * 5 if "vision" in name else 9 + 3 + 6 + 4), name


def test_as_many_tokens_as_examples_are_told_apart_by_another_number_of_examples() -> None:
    model, _ = make("xlnet")
    ids = torch.randint(5, 50, (4, 4))
    batch = {"input_ids": ids, "labels": torch.arange(4) % 2}
    for quantity in ("fisher", "gram"):
        one, each = (
            calibrate(model, find_targets(model), batches, quantity, folds=4)
            for batches in ([batch], [{k: v[row : row + 1] for k, v in batch.items()} for row in range(4)])
        )
        torch.testing.assert_close(one.columns, each.columns)
        assert one.alone is not None


def test_the_provenance_says_that_examples_went_one_at_a_time() -> None:
    set_seed(0)
    scores = lorank.score(deberta_v3(), [{**texts(4), "labels": torch.arange(4) % 2}])
    assert "query_proj' works on rows (1, 8, 16)" in scores.provenance["one_example_at_a_time"]
    assert "left_out" not in scores.provenance
