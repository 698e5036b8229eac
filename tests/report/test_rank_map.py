"""The map of a plan: layout, sums, empty cells, contrast, and what a scale does with one large value."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from tests.test_plan import some_plan

from lorank import ImportanceScores, RankPlan
from lorank.errors import OutputError, PlanError
from lorank.report.heat_map import IMPORTANCE, RANKS, Paint, colour_scale, draw_heat_map
from lorank.report.module_grid import layer_groups, module_grid, projection_groups
from lorank.report.picture import plain_text
from lorank.report.rank_map import draw_rank_map, module_importance, rank_figure


def plan_of(ranks: dict[str, int], **more: Any) -> RankPlan:
    return RankPlan(ranks, dict.fromkeys(ranks, 10), "here", 10**9, **more)


def texts(figure: Any, number: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[number].texts]


def test_the_grid_is_layers_by_projections() -> None:
    plan = some_plan((2, 0, 1, 3, 1, 0))
    grid = module_grid(plan.ranks)
    assert grid.rows == ("0", "1")
    assert grid.columns == ("query", "attention.output", "output")
    assert grid.means(plan.ranks).tolist() == [[2, 0, 1], [3, 1, 0]]
    assert grid.starts == ()


def test_two_stacks_are_told_apart_and_holes_are_marked() -> None:
    names = [
        "model.encoder.layers.0.fc1",
        "model.encoder.layers.0.self_attn.q_proj",
        "model.decoder.layers.0.fc1",
        "model.decoder.layers.0.self_attn.q_proj",
        "model.decoder.layers.0.encoder_attn.q_proj",
    ]
    grid = module_grid(names)
    assert grid.rows == ("encoder 0", "decoder 0")
    # q_proj of the encoder stands below the same name as the decoder's, which has two of them.
    assert set(grid.columns) == {"fc1", "self_attn.q_proj", "encoder_attn.q_proj"}
    found = grid.means(dict.fromkeys(names, 1))
    assert np.isnan(found).sum() == 1
    assert np.isnan(found[0, grid.columns.index("encoder_attn.q_proj")])
    assert grid.starts == (1,)


def test_columns_stand_in_the_order_of_the_fullest_layer() -> None:
    names = ["layer.0.value", "layer.1.query", "layer.1.key", "layer.1.value"]
    assert module_grid(names).columns == ("query", "key", "value")


def test_experts_share_a_cell() -> None:
    names = [f"layers.{k}.mlp.experts.{e}.up_proj" for k in (0, 1) for e in range(4)] + ["layers.0.q_proj"]
    plan = plan_of({name: number for number, name in enumerate(names)})
    grid = module_grid(plan.ranks)
    assert grid.columns == ("up_proj\n4 experts", "q_proj")
    found = grid.means(plan.ranks)
    assert found[0].tolist() == [1.5, 8]  # experts 0..3
    assert found[1, 0] == 5.5  # 4..7
    assert np.isnan(found[1, 1])
    assert [group.modules for group in projection_groups(plan)] == [8, 1]
    assert "1.5" in texts(rank_figure(plan))


def test_groups_of_layers_and_projections_by_hand() -> None:
    """Seven layers in thirds: 3, 2 and 2. A module of rank 0 counts in the mean."""
    ranks = {f"h.{layer}.{name}": layer * (name == "up") for layer in range(7) for name in ("q", "up")}
    plan = RankPlan(ranks, {name: 30 if "up" in name else 10 for name in ranks}, "here", 10**6)
    lower, middle, upper = layer_groups(plan)
    assert [group.name for group in (lower, middle, upper)] == [
        "lower third: layers 0-2",
        "middle third: layers 3-4",
        "upper third: layers 5-6",
    ]
    assert (lower.mean_rank, middle.mean_rank, upper.mean_rank) == (3 / 6, 7 / 4, 11 / 4)
    assert (lower.share, middle.share, upper.share) == pytest.approx((3 / 21, 7 / 21, 11 / 21))
    assert [group.name for group in layer_groups(plan, 4)] == ["layers 0-1", "layers 2-3", "layers 4-5", "layer 6"]
    query, up = projection_groups(plan)
    assert (query.mean_rank, query.share, up.mean_rank, up.share) == (0, 0, 3, 1)
    assert layer_groups(plan_of({"lm_head": 1})) == []
    assert len(layer_groups(plan_of({"h.0.q": 1, "h.1.q": 1}))) == 2  # fewer layers than parts


def test_margins_are_sums_means_and_shares_by_hand() -> None:
    costs = {"layer.0.q": 10, "layer.0.up": 30, "layer.1.q": 10, "layer.1.up": 30}
    plan = RankPlan(dict(zip(costs, (1, 2, 5, 0), strict=True)), costs, "here", 10**6)  # 10 + 60 + 50 of 120
    found = texts(rank_figure(plan))
    below = found[4:]
    assert found[:4] == ["1", "2", "5", "0"]
    assert below == [
        "sum of ranks", "6", "2", "mean rank", "3.0", "1.0", "% of parameters", "50.0", "50.0",  # q: 60, up: 60 of 120
        "sum of\nranks", "3", "5", "mean\nrank", "1.5", "2.5", "% of\nparam.", "58.3", "41.7",  # layer 0: 70, layer 1: 50
    ]  # fmt: skip


def scores_of(values: dict[str, list[float]]) -> ImportanceScores:
    return ImportanceScores({n: np.array(v) for n, v in values.items()}, dict.fromkeys(values, 10))


def test_importance_is_the_sum_of_a_modules_units_in_percent_of_all() -> None:
    scores = scores_of({"layer.0.q": [1.0, 2.0], "layer.0.k": [1.0, 0.0], "layer.1.q": [6.0, 0.0], "layer.1.k": [0, 0]})
    plan = plan_of(dict.fromkeys(scores.scores, 1), provenance={"scores": scores.fingerprint})
    assert module_importance(plan, scores) == {"layer.0.q": 30, "layer.0.k": 10, "layer.1.q": 60, "layer.1.k": 0}
    figure = rank_figure(plan, scores)
    assert texts(figure, 2) == ["30.0", "10.0", "60.0", "0.0", "", "90.0", "10.0", "sum", "40.0", "60.0"]
    assert "sum of\nunit scores, % of all" in figure.axes[3].get_ylabel()
    signed = scores_of({"layer.0.q": [-1.0, 0.0], "layer.0.k": [3.0, 0.0]})
    other = plan_of(dict.fromkeys(signed.scores, 1))
    assert module_importance(other, signed) == {"layer.0.q": -25, "layer.0.k": 75}
    assert "asinh" in rank_figure(other, signed).axes[3].get_ylabel()
    nothing = scores_of({name: [0.0] for name in signed.scores})
    assert set(module_importance(other, nothing).values()) == {0}
    for wrong in (signed, scores_of({"layer.0.q": [1.0]})):
        with pytest.raises(PlanError, match="made from other scores"):
            module_importance(plan, wrong)


def luminance(colour: Any) -> float:
    """WCAG 2.2, relative luminance, written down a second time."""
    total = 0.0
    for channel, weight in zip(colour[:3], (0.2126, 0.7152, 0.0722), strict=True):
        total += weight * (channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4)
    return total


@pytest.mark.parametrize(("colours", "kind"), [(RANKS, ""), (RANKS, "logarithmic"), (IMPORTANCE, "asinh")])
def test_every_number_can_be_read_on_its_cell(colours: str, kind: str) -> None:
    from matplotlib.figure import Figure

    values = np.arange(-100.0 if kind == "asinh" else 0.0, 140.0).reshape(-1, 10)
    if kind == "logarithmic":
        values = values**3
    grid = module_grid(f"layer.{row}.p{column}" for row in range(values.shape[0]) for column in range(10))
    axes = Figure().add_subplot()
    norm, said = colour_scale(values)
    assert said == kind
    mesh = draw_heat_map(axes, grid, values, norm, Paint(colours, str, 0.6, 0.3))
    mesh.update_scalarmappable()
    faces = mesh.get_facecolors().reshape(*values.shape, 4)
    assert len(axes.texts) == values.size
    for text in axes.texts:
        row, column = int(text.get_position()[1]), int(text.get_position()[0])
        cell = faces[row, column] if values[row, column] else (1, 1, 1)
        high, low = sorted((luminance(cell), luminance(to_rgb(text.get_color()))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (values[row, column], text.get_color())


def pixels_of(figure: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_zero_is_empty_one_is_not_and_a_place_without_a_module_is_neither() -> None:
    """The lightness of drawn cells beside their numbers: 0 is white, 1 is not, and no module is hatched grey."""
    figure = rank_figure(plan_of({"layer.0.q": 0, "layer.0.k": 1, "layer.1.q": 64}))
    pixels, axes = pixels_of(figure), figure.axes[0]

    def cell(row: int, column: int) -> np.ndarray:
        (left, top), (right, bottom) = axes.transData.transform([(column, row), (column + 1, row + 1)])
        height = pixels.shape[0]
        inside = pixels[
            int(height - top) + 6 : int(height - bottom) - 6, int(left) + 8 : int(left + (right - left) / 3)
        ]
        return inside.reshape(-1, 3)

    assert (cell(0, 0) == 255).all()
    assert cell(0, 1).mean() < 240
    assert cell(1, 0).mean() < cell(0, 1).mean() - 60
    hatched = cell(1, 1)
    assert len(np.unique(hatched, axis=0)) > 2
    assert 220 < hatched.mean() < 254
    assert (np.ptp(hatched, axis=1) < 3).all()  # grey


def test_one_outlier_does_not_make_all_others_alike() -> None:
    norm, kind = colour_scale(np.array([1.0, 2, 4, 8, 8, 16, 256]))
    assert kind == "logarithmic"
    assert [float(norm(value)) for value in (1, 16, 256)] == pytest.approx([0, 0.5, 1])
    norm, kind = colour_scale(np.array([0.0, 2, 4, 8, 8]))
    assert kind == ""
    assert [float(norm(value)) for value in (2, 8)] == [0.25, 1]
    norm, _ = colour_scale(np.array([1e-9, 1e-9, 1.0, np.nan]))
    assert float(norm(1e-9)) == 0  # below three decades: the lightest colour
    assert colour_scale(np.zeros(3))[1] == ""


def test_the_picture_has_a_cell_for_every_module(tmp_path: Path) -> None:
    draw_rank_map(some_plan(), tmp_path / "ranks.png", "i-lora · tiny · cola\nbudget r=2")
    picture = np.asarray(Image.open(tmp_path / "ranks.png").convert("RGB"))
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_many_layers_stay_readable() -> None:
    ranks = {f"model.layers.{k}.{name}": k % 7 for k in range(80) for name in ("q_proj", "k_proj", "mlp.down_proj")}
    figure = rank_figure(plan_of(ranks))
    width, height = figure.get_size_inches()
    assert width < 8
    assert height < 20
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(k) for k in range(80)]
    row = axes.get_position().height * height * 72 / 80  # points
    assert all(5 <= text.get_fontsize() <= row for text in axes.texts[:240])


def test_an_svg_holds_the_numbers_as_text(tmp_path: Path) -> None:
    plan = some_plan((2, 0, 1, 3, 17, 0))
    plan.plot(tmp_path / "ranks.svg")
    tree = ElementTree.parse(tmp_path / "ranks.svg")
    said = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"17", "3", "query", "attention.output", "mean rank"} <= set(said)
    first = (tmp_path / "ranks.svg").read_bytes()
    plan.plot(tmp_path / "ranks.svg")
    assert (tmp_path / "ranks.svg").read_bytes() == first
    assert not re.search(rb"<dc:date>", first)


def test_a_plan_draws_itself(tmp_path: Path) -> None:
    figure = some_plan().plot()
    assert texts(figure)[:6] == ["2", "0", "1", "3", "1", "0"]
    assert not list(tmp_path.iterdir())
    (tmp_path / "ranks.jpg").write_text("mine")
    with pytest.raises(OutputError, match=r"ranks\.jpg: a picture ends with \.png or \.svg"):
        some_plan().plot(tmp_path / "ranks.jpg")
    assert (tmp_path / "ranks.jpg").read_text() == "mine"
    with plain_text():
        assert some_plan().plot(tmp_path / "ranks.PNG").axes
    assert (tmp_path / "ranks.PNG").read_bytes().startswith(b"\x89PNG")
