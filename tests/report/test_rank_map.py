from pathlib import Path

import numpy as np
from PIL import Image
from tests.test_plan import some_plan

from lorank import RankPlan
from lorank.report.rank_map import draw_rank_map, rank_grid


def test_the_grid_is_layers_by_projections() -> None:
    grid = rank_grid(some_plan((2, 0, 1, 3, 1, 0)))
    assert grid.layers == ("0", "1")
    assert grid.projections == ("query", "attention.output", "output")
    assert grid.ranks.tolist() == [[2, 0, 1], [3, 1, 0]]


def test_two_stacks_are_told_apart_and_holes_are_marked() -> None:
    names = ["model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1", "model.decoder.layers.0.encoder_attn.q_proj"]
    grid = rank_grid(RankPlan(dict.fromkeys(names, 1), dict.fromkeys(names, 4), "12", 12))
    assert grid.layers == ("encoder 0", "decoder 0")
    assert grid.ranks.tolist() == [[1, -1], [1, 1]]


def test_columns_stand_in_the_order_of_the_fullest_layer() -> None:
    names = ["layer.0.value", "layer.1.query", "layer.1.key", "layer.1.value"]
    assert rank_grid(RankPlan(dict.fromkeys(names, 1), dict.fromkeys(names, 4), "16", 16)).projections == (
        "query",
        "key",
        "value",
    )


def test_the_picture_has_a_cell_for_every_module(tmp_path: Path) -> None:
    draw_rank_map(some_plan(), tmp_path / "ranks.png", "i-lora · tiny · cola\nbudget r=2")
    picture = np.asarray(Image.open(tmp_path / "ranks.png").convert("RGB"))
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
