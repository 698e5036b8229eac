"""Batches and models as users have them: what is scored right, and what is refused in which words."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.conftest import random_batch, tiny_config
from tests.scoring.family_cases import llava, make
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    set_seed,
)

import lorank
from lorank.errors import DataError
from lorank.scoring.batches import count_targets, summed_loss
from lorank.scoring.calibration import calibrate
from lorank.targets import find_targets


def classifier(**options: Any) -> BertForSequenceClassification:
    set_seed(0)
    return BertForSequenceClassification(tiny_config(initializer_range=0.3, **options)).double().eval()


class Inner(nn.Module):
    """A model of the user's own: one block, and an answer in a form of its own."""

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.blocks, self.answer = nn.ModuleList([nn.Linear(4, 4)]), answer

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
        return self.answer(self.blocks[0](x), labels)


class OfFeatures(nn.Module):
    """Called as sentence-transformers' models are: with a single dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**features, "embedding": self.blocks[0](features["x"])}


OWN = {"x": torch.arange(12.0).reshape(3, 4), "labels": torch.ones(3, 4)}


def squares(y: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (y - labels).square().sum(1).mean()


@pytest.mark.parametrize(
    "answer",
    [
        lambda y, t: {"loss": squares(y, t), "y": y},
        lambda y, t: (squares(y, t), y),
        lambda y, t: SimpleNamespace(loss=squares(y, t)),
    ],
    ids=["dict", "tuple", "object"],
)
def test_the_loss_of_whatever_a_model_returns(answer: Any) -> None:
    model = Inner(answer)
    sums = calibrate(model, find_targets(model), [OWN], "fisher")
    expected = torch.zeros(4)
    for row in range(3):
        loss = squares(model.blocks[0](OWN["x"][row : row + 1]), OWN["labels"][row : row + 1])
        expected += torch.autograd.grad(loss, [model.blocks[0].weight])[0].square().sum(0)
    torch.testing.assert_close(sums.columns["blocks.0"].sum(0), expected)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda y, t: {"logits": y}, r"Inner returned no loss for these labels \(dict of logits\); give loss="),
        (lambda y, t: (y, t), r"Inner returned no loss for these labels \(tuple\)"),
        (lambda y, t: {"loss": (y - t).sum(1)}, r"returned a loss of shape \(3,\), not one number"),
    ],
)
def test_models_without_a_loss_say_what_they_returned(answer: Any, message: str) -> None:
    model = Inner(answer)
    with pytest.raises(DataError, match=message):
        lorank.score(model, [OWN], estimator="fisher")


@pytest.mark.parametrize("estimator", ["gram", "fisher"])
def test_keys_that_a_model_does_not_take_are_named(estimator: str) -> None:
    with pytest.raises(
        DataError, match=r"Inner\.forward needs x and does not take input_ids, attention_mask; .* have input_ids"
    ):
        lorank.score(Inner(squares), [random_batch()], estimator=estimator)
    with pytest.raises(DataError, match=r"Inner\.forward does not take idx; "):
        lorank.score(Inner(squares), [{**OWN, "idx": torch.arange(3)}], estimator=estimator)


def test_a_model_that_is_called_with_a_dictionary() -> None:
    model = OfFeatures()
    with pytest.raises(DataError, match=r"OfFeatures\.forward needs features"):
        lorank.score(model, [OWN])

    def loss(model: nn.Module, batch: Any) -> Any:
        return (model(dict(batch))["embedding"] - batch["labels"]).square().sum(), torch.ones(len(batch["x"]))

    for options in ({}, {"estimator": "fisher"}, {"method": "eva", "components": 2}):
        assert set(lorank.score(model, [OWN], loss=loss, **options).scores) == {"blocks.0"}


def test_what_a_model_itself_refuses_says_on_which_batch() -> None:
    batch = {**random_batch(), "labels": torch.tensor([0.0, 1.0, 0.0, 1.0])}
    with pytest.raises(
        DataError, match=r"BertForSequenceClassification fails on a calibration batch .*labels float32 \(4,\)\)"
    ):
        lorank.score(classifier(num_labels=3), [batch], estimator="fisher")


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8, torch.bool])
def test_labels_of_every_whole_type(kind: torch.dtype) -> None:
    batch = random_batch()
    expected = lorank.score(classifier(), [batch], estimator="fisher").scores
    found = lorank.score(classifier(), [{**batch, "labels": batch["labels"].to(kind)}], estimator="fisher").scores
    assert found == expected


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({"num_labels": 2}, torch.tensor([[0], [1], [1], [0]])),
        ({"num_labels": 1}, torch.tensor([[0.5], [1.0], [-1.0], [0.0]]).double()),
        ({"num_labels": 1}, torch.tensor([0.5, 1.0, -1.0, 0.0]).double()),
        ({"num_labels": 3}, torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]]).double()),
    ],
    ids=["a column of classes", "a column of numbers", "numbers", "several classes each"],
)
def test_labels_of_every_shape(options: dict[str, Any], labels: torch.Tensor) -> None:
    batch = {**random_batch(), "labels": labels}
    model = classifier(**options)
    sums = calibrate(model, find_targets(model), [batch], "fisher")
    assert int(sums.targets.sum()) == 4
    name = "bert.encoder.layer.0.output.dense"
    weight, expected = model.get_submodule(name).weight, torch.zeros(32, dtype=torch.float64)
    for row in range(4):
        loss = model(**{key: value[row : row + 1] for key, value in batch.items()}).loss
        expected += torch.autograd.grad(loss, [weight])[0].square().sum(0)
    torch.testing.assert_close(sums.columns[name].sum(0), expected)


@pytest.mark.parametrize(("labels", "what"), [([0, 1, 0, 1], "list"), (torch.tensor(1), "a single number")])
def test_labels_that_cannot_be_counted(labels: Any, what: str) -> None:
    with pytest.raises(DataError, match=f"labels of a calibration batch are {what}"):
        lorank.score(classifier(), [{**random_batch(), "labels": labels}], estimator="fisher")


def test_a_batch_that_lacks_what_others_have() -> None:
    second = {key: value for key, value in random_batch().items() if key != "labels"}
    with pytest.raises(DataError, match=r"no labels \(keys: input_ids, attention_mask\)"):
        lorank.score(classifier(), [random_batch(), second], estimator="fisher")
    without_mask = {key: value for key, value in random_batch().items() if key != "attention_mask"}
    mixed = lorank.score(classifier(), [random_batch(), without_mask]).scores
    assert mixed == lorank.score(classifier(), [random_batch(), random_batch()]).scores


def test_a_row_that_was_not_collated_and_a_batch_without_rows() -> None:
    with pytest.raises(DataError, match=r"shape \(7,\): one row of a data set; collate rows"):
        lorank.score(classifier(), [{key: value[0] for key, value in random_batch().items()}])
    with pytest.raises(DataError, match="has no example"):
        lorank.score(classifier(), [{key: value[:0] for key, value in random_batch().items()}])


def test_counts_that_are_not_one_an_example() -> None:
    with pytest.raises(DataError, match="a number for each of the 4 examples"):
        lorank.score(classifier(), [random_batch()], estimator="fisher", loss=lambda m, b: (m(**b).loss, torch.ones(3)))


def test_the_targets_of_a_model_that_writes_after_images_are_shifted() -> None:
    model, batch = make("llava")
    total, counts = summed_loss(model, batch)
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    each = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    torch.testing.assert_close(total.double(), each.sum(), rtol=1e-5, atol=0)  # transformers' loss is in fp32
    assert counts.tolist() == (batch["labels"][:, 1:] != -100).sum(1).tolist()


def test_the_items_of_accumulated_batches_do_not_divide_the_loss() -> None:
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()
    ids = random_batch()["input_ids"]
    plain, counts = summed_loss(model, {"input_ids": ids, "labels": ids})
    torch.testing.assert_close(
        summed_loss(model, {"input_ids": ids, "labels": ids, "num_items_in_batch": 999})[0], plain
    )
    assert counts.tolist() == count_targets(model, ids).tolist() == [6] * 4


def test_targets_inside_of_an_adapted_model_are_those_of_its_base() -> None:
    set_seed(0)
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_ffn_dim": 24, "decoder_attention_heads": 2}
    unshifted = BartForCausalLM(BartConfig(vocab_size=32, **sizes))
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    for model, counts in ((unshifted, [2, 1]), (llava(), [1, 0])):
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        assert count_targets(adapted, labels).tolist() == count_targets(model, labels).tolist() == counts


class TestSounds:
    def model(self, reduction: str) -> Wav2Vec2ForCTC:
        set_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        convolutions = {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (2, 2), "num_feat_extract_layers": 2}
        positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False}
        return (
            Wav2Vec2ForCTC(
                Wav2Vec2Config(
                    vocab_size=12, ctc_loss_reduction=reduction, pad_token_id=0, **sizes, **convolutions, **positions
                )
            )
            .double()
            .eval()
        )

    def batch(self) -> dict[str, torch.Tensor]:
        source = torch.Generator().manual_seed(0)
        sounds = torch.randn(3, 60, generator=source).double()
        mask = (torch.arange(60) < torch.tensor([60, 40, 52])[:, None]).long()
        labels = torch.tensor([[3, 4, 5], [6, -100, -100], [7, 8, -100]])
        return {"input_values": sounds * mask, "attention_mask": mask, "labels": labels}

    def test_waves_of_unequal_length(self) -> None:
        model, batch = self.model("sum"), self.batch()
        targets = find_targets(model)
        alone = [
            {
                "input_values": batch["input_values"][row : row + 1, :length],
                "attention_mask": batch["attention_mask"][row : row + 1, :length],
                "labels": batch["labels"][row : row + 1],
            }
            for row, length in enumerate((60, 40, 52))
        ]
        for quantity in ("gram", "kfac"):
            together, each = (calibrate(model, targets, batches, quantity) for batches in ([batch], alone))
            torch.testing.assert_close(together.columns, each.columns)
            torch.testing.assert_close(together.outputs, each.outputs)
        total, counts = summed_loss(model, alone[0])
        torch.testing.assert_close(total, model(**alone[0]).loss)
        assert counts.tolist() == [3]

    def test_a_mean_that_weighs_short_labels_more(self) -> None:
        model, batch = self.model("mean"), self.batch()
        with pytest.raises(DataError, match=r"ctc_loss_reduction='mean' .*= 'sum', or give calibration batches of one"):
            summed_loss(model, batch)
        one = {key: value[:1] for key, value in batch.items()}
        torch.testing.assert_close(summed_loss(model, one)[0], summed_loss(self.model("sum"), one)[0])
