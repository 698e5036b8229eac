"""The loss of each example apart."""

import pytest
import torch
from tests.conftest import tiny_config
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from lorank.errors import DataError
from lorank.scoring.batches import shifts_labels
from lorank.tasks.example_losses import example_losses

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def classifier() -> tuple[torch.nn.Module, torch.Tensor]:
    return BertForSequenceClassification(tiny_config(num_labels=3)), torch.tensor([0, 2, 1, 1])


def several_numbers() -> tuple[torch.nn.Module, torch.Tensor]:
    config = tiny_config(num_labels=5, problem_type="regression")
    return BertForSequenceClassification(config), torch.randn(4, 5)


def decoder() -> tuple[torch.nn.Module, torch.Tensor]:
    labels = torch.randint(0, 50, (4, 6))
    labels[:, 0] = labels[1, :4] = -100
    return LlamaForCausalLM(LlamaConfig(**SMALL)), labels


def encoder_decoder() -> tuple[torch.nn.Module, torch.Tensor]:
    labels = torch.randint(3, 50, (4, 6))
    labels[2, 3:] = -100
    sizes = {f"{part}_{key}": 2 for part in ("encoder", "decoder") for key in ("layers", "attention_heads", "ffn_dim")}
    return BartForConditionalGeneration(BartConfig(vocab_size=50, d_model=16, **sizes)), labels


@pytest.mark.parametrize("made", [classifier, several_numbers, decoder, encoder_decoder])
def test_sums_over_targets_are_the_stock_mean_loss(made: object) -> None:
    torch.manual_seed(0)
    model, labels = made()  # type: ignore[operator]
    with torch.no_grad():
        outputs = model.eval()(input_ids=torch.randint(3, 20, (4, 6)), labels=labels)
    sums, counts = example_losses(outputs.logits, labels, shifted=shifts_labels(model))
    assert sums.shape == counts.shape == (4,)
    torch.testing.assert_close(sums.sum() / counts.sum(), outputs.loss)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="a label for each example"):
        example_losses(torch.zeros(4, 6, 9), torch.zeros(4, 5, dtype=torch.long))
    with pytest.raises(DataError, match="a number for each output"):
        example_losses(torch.zeros(4, 2), torch.zeros(4))
