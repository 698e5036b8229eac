"""How many examples a batch has, some of them apart, and one without padding."""

import pytest
import torch
from tests.conftest import random_batch, tiny_config
from tests.scoring.family_cases import llava, make, pictured, with_pixels
from transformers import BertForSequenceClassification

from lorank.errors import DataError
from lorank.scoring.examples import examples_in, in_rows, some_examples, without_padding


def classifier() -> BertForSequenceClassification:
    return BertForSequenceClassification(tiny_config())


def test_examples_are_rows_of_texts_not_of_images() -> None:
    assert examples_in({"pixel_values": torch.zeros(16, 96), "input_ids": torch.zeros(3, 5, dtype=torch.long)}) == 3
    assert examples_in({"pixel_values": torch.zeros(2, 3, 8, 8)}) == 2
    assert examples_in({"input_features": torch.zeros(2, 80, 30), "labels": torch.zeros(2, 5)}) == 2


class TestSomeExamples:
    def test_images_are_dealt_out_by_their_tokens(self) -> None:
        model, batch = make("qwen2-vl")
        assert not in_rows(model, batch, 3)
        parts = [some_examples(model, batch, 3, row, row + 1) for row in range(3)]
        assert [len(part["pixel_values"]) if "pixel_values" in part else 0 for part in parts] == [12, 0, 4]
        assert [len(part["image_grid_thw"]) if "image_grid_thw" in part else 0 for part in parts] == [2, 0, 1]
        torch.testing.assert_close(parts[2]["pixel_values"], batch["pixel_values"][12:])

    def test_as_many_images_as_examples_need_not_be_one_each(self) -> None:
        model = llava()
        even, uneven = (with_pixels(pictured(images, 2), 3) for images in ([1, 1, 1], [2, 0, 1]))
        assert in_rows(model, even, 3)
        assert not in_rows(model, uneven, 3)
        parts = [some_examples(model, uneven, 3, row, row + 1) for row in range(3)]
        assert [len(part["pixel_values"]) if "pixel_values" in part else 0 for part in parts] == [2, 0, 1]

    def test_what_cannot_be_dealt_out_is_refused(self) -> None:
        batch = {**pictured([1, 1, 1], 2), "pixel_values": torch.zeros(4, 3, 8, 8)}
        with pytest.raises(
            DataError, match=r"which rows of pixel_values \(4, 3, 8, 8\) .* batches of one example each"
        ):
            some_examples(llava(), batch, 3, 0, 1)
        with pytest.raises(DataError, match="extra of a calibration batch has 5 rows for 4 examples; give"):
            some_examples(classifier(), {**random_batch(), "extra": torch.zeros(5, 2)}, 4, 0, 1)

    def test_lists_shared_tensors_and_numbers(self) -> None:
        batch = {**random_batch(), "position_ids": torch.arange(7)[None], "names": list("abcd"), "return_dict": True}
        part = some_examples(classifier(), batch, 4, 1, 3)
        assert part["names"] == ["b", "c"]
        assert part["return_dict"] is True
        assert part["position_ids"].shape == (1, 7)
        assert part["input_ids"].shape == (2, 7)


def test_padding_is_cut_off_on_both_sides_with_all_that_runs_along_the_tokens() -> None:
    ids = torch.tensor([[0, 0, 7, 8, 9, 0]])
    batch = {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": ids,
        "position_ids": torch.arange(6).expand(3, 1, 6),
    }
    part = without_padding(classifier(), {**batch, "inputs_embeds": torch.zeros(1, 6, 4)})
    assert part["input_ids"].tolist() == part["labels"].tolist() == [[7, 8, 9]]
    assert part["position_ids"].shape == (3, 1, 3)
    assert part["inputs_embeds"].shape == (1, 3, 4)
